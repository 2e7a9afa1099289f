"""The model arguments of a harness's command line: which model, which method, and how to run it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.ablation.side_by_side import overrides
from cdkit.evals.protocols.follow import not_their_papers, unmatched
from cdkit.evals.protocols.model_type import model_type
from cdkit.evals.protocols.protocol import SETTINGS, Protocol
from cdkit.evals.protocols.read import read_protocol
from cdkit.evals.runner.chosen_model import ChosenModel, check_dtype
from cdkit.methods.method import Method

PROTOCOL = ("protocol", "system", "template", "image_preprocessing")
"""The model arguments that say what stands around the method."""
EXAMPLE = "pretrained=llava-hf/llava-1.5-7b-hf,method=cmac"


@dataclass(frozen=True)
class Options:
    """`pretrained`: "micro", a folder or a hub name. `seed`: of sampling and of all noise.

    `method` has the protocol's parameters, where none were given beside it.
    """

    pretrained: str
    method: Method
    dtype: str = "auto"
    revision: str | None = None
    attn_implementation: str | None = None
    load_in_4bit: bool = False
    device: str | None = None
    device_map: str | None = None
    batch_size: int = 1
    seed: int = 0
    stop_at_blank_line: bool = False
    """Whether a task's stop string of a blank line counts; lmms-eval gives it to most tasks."""
    allow_truncated_images: bool = False
    protocol: Protocol | None = None
    """What stands around the method, with its sections; see `around`."""
    model_type: str | None = None
    """`config.model_type`, by which a protocol has sections."""

    def __post_init__(self) -> None:
        for name, number, least in (("batch_size", self.batch_size, 1), ("seed", self.seed, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise CdkitError(f"{name} must be a whole number >= {least}, got {number!r}")
        check_dtype("dtype", self.dtype)
        if self.load_in_4bit is True and self.device_map is not None:
            raise CdkitError(f"load_in_4bit and device_map={self.device_map}: give one of them")
        for name in ("load_in_4bit", "stop_at_blank_line", "allow_truncated_images"):
            if not isinstance(answer := getattr(self, name), bool):
                raise CdkitError(f"{name} must be true or false, got {answer!r}")
        if self.device is not None and self.device_map is not None:
            raise CdkitError(
                f"device={self.device} and device_map={self.device_map}: give one of them"
            )

    @property
    def model_protocol(self) -> Protocol | None:
        """The protocol as it is for this model."""
        return None if self.protocol is None else self.protocol.at(model=self.model_type)

    @property
    def chosen(self) -> ChosenModel:
        """The model and how it is loaded."""
        return ChosenModel(
            self.pretrained,
            self.dtype,
            self.revision,
            self.load_in_4bit,
            self.attn_implementation,
        )


def read_options(given: Mapping[str, Any]) -> Options:
    """Options from a harness's arguments, which it has read as numbers, booleans and text.

    What is no option of ours is a parameter of the method, by the names that `cdkit.load` takes.
    """
    known = {*Options.__dataclass_fields__} - {*PROTOCOL, "model_type"}
    chosen = {name: value for name, value in given.items() if name in known}
    for name in ("pretrained", "method"):
        if chosen.get(name) in (None, ""):
            raise CdkitError(f"the model argument {name} is missing: give it, such as {EXAMPLE}")
    if given.get("max_batch_size") is not None:
        raise CdkitError("max_batch_size belongs to batch_size=auto, which is not supported")
    size = chosen.get("batch_size", 1)
    chosen["batch_size"] = int(size) if isinstance(size, str) and size.isdecimal() else size
    for name in ("pretrained", "dtype", "revision", "attn_implementation", "device", "device_map"):
        if chosen.get(name) is not None:  # a folder called 7, a device called 0
            chosen[name] = str(chosen[name])
    parameters = {
        name: _value(name, value)
        for name, value in given.items()
        if name not in chosen and name not in (*PROTOCOL, "max_batch_size")
    }
    method = str(chosen["method"])
    if (protocol := around(given)) is not None:
        kind = model_type(chosen["pretrained"], chosen.get("revision"))
        chosen |= {"protocol": protocol, "model_type": kind}
        parameters = protocol.at(model=kind).parameters(method) | parameters
    chosen["method"] = cdkit.load(method, **parameters)
    chosen["method"].check_complete()
    return Options(**chosen)


def around(given: Mapping[str, Any]) -> Protocol | None:
    """The protocol of a harness's arguments; a single setting wins over the protocol's.

    Args:
        given: The model arguments.

    Returns:
        The protocol with its sections; None where nothing is set.

    Raises:
        CdkitError: There is no such protocol, or a setting is not allowed.
    """
    said = {name: given[name] for name in PROTOCOL if given.get(name) is not None}
    if not said:
        return None
    for name, value in said.items():
        if not isinstance(value, str) or not (value or name == "system"):
            raise CdkitError(f"the model argument {name} must be text, got {value!r}")
        if len(value) > 1 and value[0] == value[-1] in ('"', "'"):  # around a text with commas
            said[name] = value[1:-1]
    name = said.pop("protocol", None)
    return (Protocol("none") if name is None else read_protocol(name)).replace(**said)


def protocol_notes(options: Options, processor: Any) -> list[str]:
    """What a user must know of a protocol: what cannot be matched, and what the task decides.

    Args:
        options: The options.
        processor: The model's processor, after `prepare`.

    Returns:
        Sentences; empty without a protocol.
    """
    if options.protocol is None or options.model_protocol is None:
        return []
    found = unmatched(options.protocol, processor=processor, model=options.model_type)
    stranger = not_their_papers(options.model_protocol, {options.method.name: options.method})
    sections = [options.model_protocol.settings(), *options.protocol.benchmarks.values()]
    left = [n for n in SETTINGS if SETTINGS[n] == "benchmark" and any(n in s for s in sections)]
    if left:
        found.append(
            f"protocol {options.protocol.name}: the task decides {', '.join(left)}, so the "
            "protocol's values are not applied: compare them with the task's file and --gen_kwargs"
        )
    return [*found, stranger] if stranger is not None else found


def _value(name: str, value: Any) -> Any:
    """Text as the command line of cdkit reads it: TOML where it is any, such as a list."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise CdkitError(f"the model argument {name} is empty: give it a value, such as alpha=1.0")
    return overrides([f"{name}={value}"])[name]
