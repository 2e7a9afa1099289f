"""The type of a model by its config alone: a protocol is checked before weights are read."""

from typing import Any

from transformers import AutoConfig

from cdkit.interfaces.model_adapter import ADAPTERS
from cdkit.pretrained import BROKEN, MICRO, micro_path


def model_type(name: str, revision: str | None = None) -> str | None:
    """Find the type under which adapters and sections of protocols are named.

    Args:
        name: "micro", a checkpoint's folder, or a name on the hub.
        revision: The branch, tag or commit of a model on the hub.

    Returns:
        `config.model_type`; None where the config cannot be read: loading the model says why.
    """
    ADAPTERS.load()  # a family may define a config class, which the Auto classes must know
    path = str(micro_path()) if name == MICRO else name
    try:
        config: Any = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except BROKEN:
        return None
    found = getattr(config, "model_type", None)
    return found if isinstance(found, str) else None
