"""A call of the forward that `generate` reads: the prompts of a plain one are noted first."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cdkit.branches.method_cache import MethodCache
from cdkit.errors import CdkitError
from cdkit.generation.arguments import Forward, arguments
from cdkit.generation.attached_engine import AttachedEngine
from cdkit.generation.call_compatibility import (
    check_arguments,
    check_attentions,
    refuse_running,
    refuse_split,
)
from cdkit.generation.guard import check_numbers
from cdkit.generation.pixels import check_videos
from cdkit.generation.prompts import open_session
from cdkit.interfaces.cache_names import given_cache


@contextmanager
def forward_call(engine: AttachedEngine, given: dict[str, Any]) -> Iterator[bool]:
    """Within it the prompts are known. Yields whether the model itself was called, not `generate`.

    Args:
        engine: The method on this model.
        given: The arguments of the forward.
    """
    method, session = engine.attached.method, engine.session
    refuse_running(engine.attached.model, method)
    if given.get("return_dict") is False:
        raise CdkitError("return_dict=False is not supported with a method attached; leave it out")
    if session is None:
        open_plain(engine, given)
    try:
        yield session is None or session.plain
    finally:
        if session is None:
            engine.session = None


def open_plain(engine: AttachedEngine, given: dict[str, Any]) -> None:
    """Note the prompts of a plain call of the model, where it does not continue with a cache."""
    method, adapter = engine.attached.method, engine.attached.adapter
    config = engine.attached.model.config
    if not isinstance(given_cache(given), MethodCache):
        engine.trace.steps.clear()
        engine.trace.inputs = engine.trace.sequences = None
        engine.session = open_session(engine.attached, given, defaults=[config], plain=True)
        return
    check_arguments(given, [config], method, plain=True)
    check_attentions(given, [config], engine.attached, plain=True)
    check_videos(engine.attached, given)
    ids = given.get("input_ids")
    if ids is not None and bool((adapter.image_index(engine.attached.model, ids) >= 0).any()):
        raise CdkitError(
            f"the new tokens hold an image, which {method.name} cannot take behind a cache: pass "
            "the whole text, with the pixels of all its images and videos, and no cache"
        )
    if ids is not None and ids.shape[1] > 1 and method.whole_prompt_parts:
        refuse_split(method, f"a cache and {ids.shape[1]} more tokens in one call")


def outer_forward(engine: AttachedEngine, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """A plain call of a model whose inner language model is the one that is read."""
    with engine.lock:
        if not engine.is_attached:
            return engine.attached.model.forward(*args, **kwargs)
        open_plain(engine, arguments(forward, *args, **kwargs))
        try:
            return forward(*args, **kwargs)
        finally:
            engine.session = None


def check_last_column(engine: AttachedEngine, columns: int) -> None:
    """Raise where the last logits of a plain call are no numbers.

    What is no number at an earlier token is none at the later ones, which attend to it; and columns
    of padding on the left count nothing.

    Args:
        engine: The method on this model, after the call.
        columns: Of how many columns there are logits.
    """
    logits, engine.last_logits = engine.last_logits, None
    if logits is None:
        return  # a chunk of a prompt
    last = slice(columns - 1, None, columns)
    check_numbers(engine.attached.method, logits.of(last))
