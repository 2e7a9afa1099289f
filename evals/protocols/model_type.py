"""Models by their configs and processors alone: what can be checked before weights are read."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from cdkit.evals.protocols.follow import prepare
from cdkit.evals.protocols.protocol import Protocol
from cdkit.evals.runner.fingerprints import base_model
from cdkit.interfaces.model_adapter import ADAPTERS
from cdkit.pretrained import BROKEN, MICRO, micro_path, not_loaded
from cdkit.processors import read_processor


def model_type(name: str, revision: str | None = None) -> str | None:
    """Find the type under which adapters and sections of protocols are named.

    Args:
        name: "micro", a checkpoint's folder, or a name on the hub.
        revision: The branch, tag or commit of a model on the hub.

    Returns:
        `config.model_type`; None where the config cannot be read: loading the model says why.
    """
    try:
        return _type(_config(name, revision))
    except BROKEN:
        return None


def check_model(name: str, revision: str | None, protocol: Protocol | None) -> None:
    """Check what a model's config and processor say, which are read in a moment.

    Args:
        name: "micro", a checkpoint's folder, or a name on the hub.
        revision: The branch, tag or commit of a model on the hub.
        protocol: How it is asked; None: as its adapter does.

    Raises:
        CdkitError: There is no such model, or it cannot be asked as the protocol says.
    """
    try:
        config = _config(name, revision)
    except BROKEN as error:
        raise not_loaded(name, error) from None
    kind = _type(config)
    here = None if protocol is None else protocol.at(model=kind)
    if here is None or here.system is None or kind is None or kind not in ADAPTERS:
        return
    try:
        source = {"trust_remote_code": False, "revision": revision or "main"}
        processor = read_processor(_path(name), config, source)
    except BROKEN:
        return  # loading the model says why
    prepare(here, adapter=ADAPTERS[kind](), processor=processor)


def _config(name: str, revision: str | None) -> Any:
    ADAPTERS.load()  # a family may define a config class, which the Auto classes must know
    return AutoConfig.from_pretrained(_path(name), revision=revision, trust_remote_code=False)


def _type(config: Any) -> str | None:
    found = getattr(config, "model_type", None)
    return found if isinstance(found, str) else None


def _path(name: str) -> str:
    """Where the config lies; an adapter's folder has that of the model that it was tuned from."""
    if name == MICRO:
        return str(micro_path())
    folder = Path(name)
    base = None if (folder / "config.json").is_file() else base_model(folder)
    return name if base is None else base
