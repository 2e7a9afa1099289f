"""Try a generic adapter out on a user's prompts, before a method runs on them.

A generic adapter searches the model for its parts and may be wrong. So the first prompts with an
image that a model gets are run some six times to hold the adapter against the stock model. This
happens once for each model.
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
from cdkit.probing.adapter_checks import (
    check_causal_prefix,
    check_modules,
    check_pixels,
    check_rotary,
    check_stock_run,
    tokens_of_images,
)
from cdkit.probing.identical_branch import ONE_BATCH, Attach, check_identical_branch
from cdkit.probing.promises import precision
from cdkit.probing.stock_generate import Inputs, generate_tokens, with_other_ending

STEPS = 2
NOT_INPUTS = frozenset(
    {CACHE, OLD_CACHE, "inputs_embeds", "labels", "logits_to_keep", "return_dict", "use_cache"}
)
"""Arguments of a model's forward that are no part of a prompt."""

_passed: WeakKeyDictionary[nn.Module, type[ModelAdapter]] = WeakKeyDictionary()
"""Model -> the adapter that has passed on it; weak, so that it lasts as long as the model."""
_under_way: WeakSet[nn.Module] = WeakSet()
"""Models on trial: the trial attaches methods itself, and these must not start another one."""


def is_due(adapter: ModelAdapter, model: nn.Module) -> bool:
    """Whether the adapter must still be tried out on this very model."""
    known = _passed.get(model) is type(adapter) or model in _under_way
    return adapter.needs_check and not known


def try_adapter(
    adapter: ModelAdapter, model: Any, given: Mapping[str, Any], *, attach: Attach
) -> None:
    """Hold the adapter against the stock model; one warning says what was checked.

    Args:
        adapter: A generic adapter.
        model: The stock model, with no method attached.
        given: The arguments of `generate`, or of a plain call, with the prompts.
        attach: `cdkit.attach`.

    Raises:
        CdkitError: Where the adapter does not fit, or these prompts cannot show it.
    """
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return  # the session that starts next refuses it, whatever the adapter
    inputs = _inputs(adapter, model, given)
    token_mask = inputs["attention_mask"].bool()
    index = adapter.image_index(model, ids).masked_fill(~token_mask, -1)
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
            warnings.simplefilter("ignore")  # the user's run repeats them
            unmatched = _run_checks(adapter, model, inputs, name, attach)
    finally:
        _under_way.discard(model)
    _passed[model] = type(adapter)
    pixels = f" Methods that change pixels are refused: {unmatched}." if unmatched else ""
    rotation = "rotate keys as found"
    if adapter.rotary(model) is None:
        rotation = (
            "rotate keys in a way that was not found out, so methods with a calibrator are refused"
        )
    warnings.warn(
        f"{name} has no adapter of its own, a generic one is in use. Checked once for this model, "
        f"on these prompts: each run of image tokens is an image ({_listed(counts)} tokens), the "
        "decoder gets the image's features there; its layers run through the attention function, "
        f"{rotation}, attend to nothing ahead; an identical branch gives the stock logits "
        f"within {_within(model):g}.{pixels} See docs/models.md",
        CdkitWarning,
        stacklevel=6,  # the line that calls generate
    )


def _run_checks(
    adapter: ModelAdapter, model: Any, inputs: Inputs, name: str, attach: Attach
) -> str:
    """Run all checks; return why methods that change pixels cannot run, empty where they can."""
    # before the handlers below: an error of the prompts themselves is not the adapter's
    stock = generate_tokens(model, inputs, steps=STEPS)
    checked, unmatched = "", ""
    try:
        checked = "its parts"
        check_modules(adapter, model)
        checked = "a stock generate"
        encoder = check_stock_run(adapter, model, inputs)
        checked = "its pixels"
        try:
            check_pixels(adapter, model, inputs, encoder)
        except UnmatchedPixelsError as error:
            unmatched = str(error)
        checked = "its rotary embedding"
        check_rotary(adapter, model)
        checked = "what its images depend on"
        if _has_other_ending(adapter, model, inputs):
            check_causal_prefix(adapter, model, inputs)
        checked = "two branches alike"
        for optimize in (ONE_BATCH, True):
            check_identical_branch(adapter, model, inputs, stock, attach=attach, optimize=optimize)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, CdkitError) as error:
        raise _unfit(name, f"{error}") from None
    except Exception as error:  # an unknown model may fail in any way
        raise _unfit(name, f"{checked}: {type(error).__name__}: {error}") from error
    return unmatched


def _unfit(name: str, what: str) -> CdkitError:
    return CdkitError(
        f"{name} has no adapter of its own, and the generic one does not fit: "
        f"{what.rstrip('.')}. {HOW_TO_ADD}"
    )


def _inputs(adapter: ModelAdapter, model: Any, given: Mapping[str, Any]) -> Inputs:
    """The arguments that belong to the prompts, with an attention mask."""
    functions = (model.forward, getattr(*adapter.encoder(model)))
    names = {name for function in functions for name in signature(function).parameters}
    inputs = {
        name: value
        for name, value in given.items()
        if value is not None and (name in names - NOT_INPUTS or name == "input_ids")
    }
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    return inputs


def _has_other_ending(adapter: ModelAdapter, model: Any, inputs: Inputs) -> bool:
    try:
        with_other_ending(inputs, adapter.image_index(model, inputs["input_ids"]) >= 0)
    except CdkitError:
        return False
    return True


def _listed(counts: list[int]) -> str:
    first = ", ".join(map(str, counts[:8]))
    return first + ", ..." * (len(counts) > 8)


def _within(model: Any) -> float:
    """What `check_identical_branch` allows, relative to 1 + the largest logit."""
    return max(precision(torch.float32), precision(model.dtype))
