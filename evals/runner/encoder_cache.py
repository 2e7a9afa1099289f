"""Image features that a run keeps, so that the image encoder does not run twice for one batch.

Several methods answer the same batch, and batches that follow each other may have the same images
(`batches`). A key is a whole call of the encoder, not one image: the last digits of an image's
features may depend on what stands beside it. So answers are the same with any capacity.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from cdkit.generation.arguments import arguments
from cdkit.generation.hooks import Hooks

CAPACITY = 2**30
"""Bytes of a run's cache: features of about 200 images of LLaVA-1.5-7B."""
ENTRIES = 8
"""What comes again comes soon, and a call is compared with each entry."""
PIXELS = "pixel_values"
INNER_STATES = frozenset({"last_hidden_state", "hidden_states", "attentions"})
"""Fields of an encoder's output that no decoder reads. They are many times as large as the rest."""


@dataclass(frozen=True, eq=False)
class EncoderCall:
    """A call of the image encoder, and what it returned."""

    given: Mapping[str, Any]
    output: ModelOutput
    nbytes: int
    seconds: float


class EncoderCache:
    """The latest calls of one model's image encoder.

    Args:
        capacity: Bytes of features and pixels that are kept at most; 0 keeps nothing.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.seconds_saved = 0.0
        """What the calls that did not run took when they ran. The time of an answer counts them:
        else it would depend on which method is the first to answer a batch."""
        self._calls: list[EncoderCall] = []
        """The latest one last."""

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(call.nbytes for call in self._calls)

    @contextmanager
    def serving(self, owner: nn.Module, name: str, pixels: Tensor) -> Iterator[None]:
        """Within it, the encoder runs for `pixels` only where the cache has no such call.

        A method is attached inside of the block, not around it.

        Args:
            owner: The module whose method is the encoder.
            name: That method's name.
            pixels: The pixels of the original images. Those of distorted branches are drawn anew
                for each question, so they are not kept.
        """
        hooks = Hooks()
        hooks.wrap(owner, name, functools.partial(self._encode, pixels))
        try:
            yield
        finally:
            hooks.undo()

    def _encode(self, pixels: Tensor, encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = arguments(encode, *args, **kwargs)
        if given.get(PIXELS) is not pixels:
            return encode(*args, **kwargs)
        for call in reversed(self._calls):
            if _same(call.given, given):
                self._calls.remove(call)
                # these pixels, not the equal ones of before: they are seen to be the same at once
                self._calls.append(replace(call, given=given))
                self.seconds_saved += call.seconds
                return _copy(call.output)
        output, seconds = _timed(pixels.device, encode, *args, **kwargs)
        if not isinstance(output, ModelOutput):
            return output
        kept = _copy(output)
        call = EncoderCall(given, kept, _nbytes([given, kept]), seconds)
        if call.nbytes > self.capacity:
            return output
        self._calls = [*self._calls[1 - ENTRIES :], call]
        while self.nbytes > self.capacity:
            self._calls.pop(0)
        return _copy(kept)


def _timed(
    device: torch.device, encode: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Any, float]:
    """What the encoder returns, and the seconds until its features are there."""
    _wait(device)
    began = perf_counter()
    output = encode(*args, **kwargs)
    _wait(device)
    return output, perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are the same, number for number."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    match one:
        case Tensor():
            alike = one.dtype == other.dtype and one.device == other.device
            return alike and torch.equal(one, other)
        case dict():
            return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
        case list() | tuple():
            return len(one) == len(other) and all(map(_same, one, other))
        case bool() | int() | float() | str():
            return bool(one == other)
    return False


def _copy(output: ModelOutput) -> ModelOutput:
    """The output without its inner states; `generate` may put other tensors into it for beams."""
    copy = type(output)()
    for name, value in vars(output).items():
        if name not in INNER_STATES:
            setattr(copy, name, value)
    return copy


def _nbytes(value: Any) -> int:
    """Bytes of all tensors in a value: of whole storages, which a view keeps alive."""
    found: dict[int, int] = {}

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            storage = part.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(part, Mapping):
            for inner in part.values():
                add(inner)
        elif isinstance(part, list | tuple):
            for inner in part:
                add(inner)

    add(value)
    return sum(found.values())
