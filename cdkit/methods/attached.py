"""A method on a model: what `attach` got and found out, the same for every prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from cdkit.functional.rope import Rotary
from cdkit.interfaces.image_readout import ImageReadout
from cdkit.interfaces.model_adapter import ModelAdapter, SeesAhead
from cdkit.interfaces.pixel_source import PixelSource
from cdkit.interfaces.state_intervention import StateReading
from cdkit.methods.branch import ORIGINAL, Branch
from cdkit.methods.method import Method
from cdkit.states.attached_states import AttachedStates
from cdkit.states.attached_stream import AttachedStream

OF_THE_IMAGE: tuple[StateReading, ...] = (
    "prompt_states",
    "image_features",
    "image_readout",
    "image_attention",
)
"""What a state intervention reads of the image, or of a prompt that has one."""


@dataclass(frozen=True, eq=False)
class AttachedMethod:
    """One method on one model."""

    model: nn.Module
    adapter: ModelAdapter
    sources: tuple[PixelSource, ...]
    """What the model reads pixels from."""
    method: Method
    processor: Any
    seed: int
    sample_ids: tuple[str, ...] | None
    branches: tuple[Branch, ...]
    """The distorted branches that run."""
    rotary: Sequence[Rotary | None] | None
    """That of each layer with attention, where the method has a calibrator."""
    unobserved: str
    """What went wrong where it was tried what the layers do with keys; empty where nothing did."""
    hooked: bool
    """Whether the decoder's attention goes through `cdkit.attention`."""
    sees_ahead: SeesAhead
    """Which tokens of a prompt attend to tokens after them."""
    counts_padding_from: int | None
    """From how many columns on layers count columns, padding included; None where none does."""
    rope_limit: int | None
    """As `ModelAdapter.rope_limit`."""
    has_plain_cache: bool
    """Whether every layer's cache holds keys and values of tokens and nothing else. Others, such as
    an indexer's, may depend on how a prompt is cut into calls. False where layers use keys of
    others, and of which is not known."""
    caches_keys: bool
    """Whether the decoder's cache holds the keys that attention gets. Latent attention (MLA) makes
    them anew at each step, so rotated keys cannot be kept."""
    key_sources: tuple[int, ...]
    """For each layer with attention the one, counted among these, whose keys and values it uses:
    itself for most."""
    has_sliding_window: bool
    """Whether some of the decoder's layers keep the last tokens alone."""
    window: int | None
    """How many tokens the decoder's sliding layers keep; None where there are none, or the method
    does not need image tokens there."""
    why_padding_matters: str
    """Why no padding may be added before a prompt, which a decoder's recurrent layers may let into
    their states; empty where it may."""
    token_arguments: tuple[str, ...]
    """As `ModelAdapter.token_arguments`."""
    traced: frozenset[str]
    """What a trace records."""
    decoder: Any
    lm_module: Any
    """The module whose logits `generate` reads."""
    attention_layers: tuple[int, ...]
    """The numbers of the decoder's layers that have attention. All of them but in a hybrid decoder,
    whose other layers keep a recurrent state, or none."""
    row_kernels: Any
    """The module of kernels for generated rows; None where operators compute them."""
    states: AttachedStates | None
    """What changes hidden states; None where nothing does."""
    stream: AttachedStream | None
    """The stream that logits are read from; None where the method has none."""
    image_readout: ImageReadout | None = None
    """What reads the prompts' image tokens out; None where the method has none, or nothing uses
    it."""

    @property
    def depth(self) -> int:
        """How many layers have attention: what acts inside it counts these alone."""
        return len(self.attention_layers)

    @property
    def cached_depth(self) -> int:
        """How many of these layers have keys and values of their own."""
        return len(set(self.key_sources))

    @property
    def rotary_of_keys(self) -> Sequence[Rotary | None] | None:
        """`rotary` of the layers that have keys of their own."""
        if self.rotary is None:
            return None
        return [self.rotary[layer] for layer in sorted(set(self.key_sources))]

    @property
    def every_branch(self) -> tuple[Branch, ...]:
        """The distorted branches, and then those that run for the prompt alone."""
        return self.branches + (() if self.states is None else self.states.prompt_branches)

    @property
    def branch_names(self) -> tuple[str, ...]:
        """The original branch, then the distorted branches that run."""
        return (ORIGINAL, *(branch.name for branch in self.branches))

    @property
    def reads_image(self) -> bool:
        """Whether a readout or a state intervention reads the image, or states of branches'
        prompts."""
        states = self.states
        return bool(
            self.stream is not None
            or self.image_readout is not None
            or (states is not None and any(map(states.reading, OF_THE_IMAGE)))
        )

    @property
    def records_image(self) -> bool:
        """Whether a schedule reads the original branch's attention to the image."""
        return any(schedule.reads_attention for schedule in self.method.schedules)

    @property
    def records_weights(self) -> bool:
        """Whether a loop reads the attention weights of the original branch's last layer."""
        return self.method.loop is not None
