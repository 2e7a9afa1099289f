"""Try an adapter that looks for things out on a user's own prompts, before a method runs on them.

Once a model: what was found out is kept beside it, and forgotten with it.
"""

import warnings
from collections.abc import Mapping
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from cdkit.errors import CdkitError, CdkitWarning
from cdkit.generation.compatibility import sliding_window
from cdkit.interfaces.cache_names import CACHE, OLD_CACHE
from cdkit.interfaces.model_adapter import HOW_TO_ADD, ModelAdapter, UnmatchedPixelsError
from cdkit.testing.at_work import (
    check_at_work,
    check_causal_prefix,
    check_pixels,
    check_places,
    check_rotary,
    tokens_of_images,
)
from cdkit.testing.prompts import Inputs, with_other_end
from cdkit.testing.runs import TOGETHER, check_identical, generated
from cdkit.testing.tools import precision

STEPS = 2
NOT_INPUTS = frozenset(
    {CACHE, OLD_CACHE, "inputs_embeds", "labels", "logits_to_keep", "return_dict", "use_cache"}
)
"""Arguments of a model's forward that are no part of a prompt."""

_passed: WeakKeyDictionary[nn.Module, type[ModelAdapter]] = WeakKeyDictionary()
_under_way: WeakSet[nn.Module] = WeakSet()


def is_due(adapter: ModelAdapter, model: nn.Module) -> bool:
    """Whether the adapter is still to be tried out on this very model."""
    known = _passed.get(model) is type(adapter) or model in _under_way
    return adapter.needs_check and not known


def self_check(adapter: ModelAdapter, model: Any, given: Mapping[str, Any]) -> None:
    """Hold the adapter against the stock model, which no method may be attached to.

    `given` are the arguments of `generate`, or of a plain call, whose prompts are run some six
    times. It passes with one warning that says what was checked. Where something does not hold, a
    CdkitError names it.
    """
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return  # refused in a moment, as with every adapter
    inputs = _inputs(adapter, model, given)
    real = inputs["attention_mask"].bool()
    index = adapter.image_index(model, ids).masked_fill(~real, -1)
    counts = tokens_of_images(index)
    name = f"{type(model).__name__} (model_type {model.config.model_type!r})"
    if not counts or inputs.get("pixel_values") is None:
        raise CdkitError(
            f"{name} runs with a generic adapter, which is tried out on the first prompts that a "
            "model gets: give it some with an image token and pixel_values first"
        )
    window = sliding_window(adapter.decoder(model))
    if window is not None and ids.shape[1] + STEPS > window:
        raise CdkitError(
            f"{name} runs with a generic adapter, which is tried out on the first prompts that a "
            f"model gets: give it some that fit into its sliding window of {window} tokens first, "
            f"not {ids.shape[1]}"
        )
    _under_way.add(model)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the run itself will say them
            unmatched = _try_out(adapter, model, inputs, name)
    finally:
        _under_way.discard(model)
    _passed[model] = type(adapter)
    pixels = f" Methods that change pixels are refused: {unmatched}." if unmatched else ""
    turning = "turn keys as found"
    if adapter.rotary(model) is None:
        turning = (
            "turn keys in a way that was not found out, so methods with a calibrator are refused"
        )
    warnings.warn(
        f"{name} has no adapter of its own, a generic one is in use. Checked once for this model, "
        f"on these prompts: each run of image tokens is an image ({_listed(counts)} tokens), the "
        "decoder gets the image's features there; its layers run through the attention function, "
        f"{turning}, look at nothing ahead; an identical branch gives the stock logits "
        f"within {_within(model):g}.{pixels} See docs/models.md",
        CdkitWarning,
        stacklevel=6,  # whoever calls generate
    )


def _try_out(adapter: ModelAdapter, model: Any, inputs: Inputs, name: str) -> str:
    """Why methods that change pixels cannot run here; empty where they can."""
    stock = generated(model, inputs, steps=STEPS)  # outside of what follows: a user's own error
    point, unmatched = "", ""
    try:
        point = "its parts"
        check_places(adapter, model)
        point = "a stock generate"
        encoder = check_at_work(adapter, model, inputs)
        point = "its pixels"
        try:
            check_pixels(adapter, model, inputs, encoder)
        except UnmatchedPixelsError as error:
            unmatched = str(error)
        point = "its rotary embedding"
        check_rotary(adapter, model)
        point = "what its images depend on"
        if _has_other_end(adapter, model, inputs):
            check_causal_prefix(adapter, model, inputs)
        point = "two branches alike"
        for optimize in (TOGETHER, True):
            check_identical(adapter, model, inputs, stock, optimize=optimize)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, CdkitError) as error:
        raise _unfit(name, f"{error}") from None
    except Exception as error:  # an unknown model may fail in any way: all mean the same here
        raise _unfit(name, f"{point}: {type(error).__name__}: {error}") from error
    return unmatched


def _unfit(name: str, what: str) -> CdkitError:
    return CdkitError(
        f"{name} has no adapter of its own, and the generic one does not fit: "
        f"{what.rstrip('.')}. {HOW_TO_ADD}"
    )


def _inputs(adapter: ModelAdapter, model: Any, given: Mapping[str, Any]) -> Inputs:
    """The arguments that belong to the prompts, with a mask."""
    functions = (model.forward, getattr(*adapter.encoder(model)))
    names = {name for function in functions for name in signature(function).parameters}
    inputs = {
        name: value
        for name, value in given.items()
        if value is not None and (name in names - NOT_INPUTS or name == "input_ids")
    }
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    return inputs


def _has_other_end(adapter: ModelAdapter, model: Any, inputs: Inputs) -> bool:
    try:
        with_other_end(inputs, adapter.image_index(model, inputs["input_ids"]) >= 0)
    except CdkitError:
        return False
    return True


def _listed(counts: list[int]) -> str:
    shown = ", ".join(map(str, counts[:8]))
    return shown + ", ..." * (len(counts) > 8)


def _within(model: Any) -> float:
    """What `check_identical` allows, relative to 1 + the largest logit."""
    return max(precision(torch.float32), precision(model.dtype))
