"""What settings of a protocol may be, and which of them exclude each other."""

from collections.abc import Mapping
from typing import Final, Literal

from cdkit.evals.runner.modes import BEAM, SAMPLE

Preprocessing = Literal["crop", "pad", "squash"]
"""How a picture that is no square becomes one: "crop" resizes the shorter side and cuts the middle
out; "pad" fills the picture up to a square, then resizes it; "squash" resizes both sides."""
UnfinishedSentence = Literal["kept", "dropped"]
MODE_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    SAMPLE: ("temperature", "top_k", "top_p"),
    BEAM: ("beams",),
}
"""The settings that belong to one decode mode alone."""
EXCLUDED: Final[Mapping[str, tuple[str, ...]]] = {
    "system": ("template",),
    "template": ("system",),
    "mode": tuple(key for keys in MODE_KEYS.values() for key in keys),
}
"""What a new value of a setting leaves without effect."""
MOST_BEAMS = 1000
