"""Try an adapter out on a user's prompts, before a method runs on them.

A generic adapter searches the model for its parts and may be wrong. An adapter of a family may get
a text decoder that its tests never saw. So the first prompts with an image that such a model gets
are run some six times to hold the adapter against the stock model. This happens once for each
model; of a family's adapter, once for each configuration.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cdkit.errors import CdkitError, CdkitWarning, failure
from cdkit.generation.model_compatibility import sliding_window
from cdkit.interfaces.adapter_lookup import HOW_TO_ADD
from cdkit.interfaces.cache_names import CACHE, OLD_CACHE
from cdkit.interfaces.distortion import DistortionStrategy
from cdkit.interfaces.model_adapter import ModelAdapter, UnmatchedPixelsError
from cdkit.interfaces.pixel_source import sources_of
from cdkit.methods.attached import AttachedMethod
from cdkit.probing.adapter_checks import (
    check_causal_prefix,
    check_logits,
    check_modules,
    check_stock_run,
    images_see_ahead,
    tokens_of_images,
)
from cdkit.probing.identical_branch import (
    ONE_BATCH,
    Attach,
    SamePixels,
    SamePrompt,
    Unchanged,
    check_identical_branch,
)
from cdkit.probing.padding import why_padding_matters
from cdkit.probing.pixel_checks import check_pixels
from cdkit.probing.promises import precision
from cdkit.probing.rotary_checks import check_rotary
from cdkit.probing.stock_generate import Inputs, generate_tokens, with_other_ending

STEPS = 2
NOT_INPUTS = frozenset(
    {CACHE, OLD_CACHE, "inputs_embeds", "labels", "logits_to_keep", "return_dict", "use_cache"}
)
"""Arguments of a model's forward that are no part of a prompt."""
TESTED_DECODERS = frozenset(
    {"cohere2", "gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2"}
)
"""The text decoders, by `model_type`, with which cdkit's tests run its adapters. A family whose
decoder's `model_type` begins with its own has no other decoder."""
KNOWN_KERNELS = frozenset(
    {"eager", "sdpa", "flex_attention", *(f"flash_attention_{n}" for n in (2, 3, 4))}
)
"""Attention functions, by `attn_implementation`, that compute what cdkit's attention computes. One
that a user registered may compute anything."""


@dataclass(frozen=True)
class Findings:
    """What of a method does not run on a model, and why; empty where it does."""

    adapter: type[ModelAdapter]
    pixels: str = ""
    """Why pixels cannot be changed."""
    order: str = ""
    """Why pixels cannot be moved, only changed each by itself."""
    attention: str = ""
    """Why attention cannot be changed or read."""
    rotary: str = ""
    """Why positions cannot be calibrated."""
    readout: str = ""
    """Why layers cannot be read out."""


_passed: WeakKeyDictionary[nn.Module, Findings] = WeakKeyDictionary()
"""Model -> what was found on it; weak, so that it lasts as long as the model."""
_of_config: dict[tuple[type[ModelAdapter], type[nn.Module], str], Findings] = {}
"""What was found on a model of this configuration, with the adapter of its family."""
_under_way: WeakSet[nn.Module] = WeakSet()
"""Models on trial: the trial attaches methods itself, and these must not start another one."""


def is_due(adapter: ModelAdapter, model: nn.Module) -> bool:
    """Whether the adapter must still be tried out on this very model."""
    if model in _under_way or not (adapter.needs_check or _is_untested(adapter, model)):
        return False
    known = _passed.get(model)
    if known is None and not adapter.needs_check:
        known = _of_config.get(_place(adapter, model))
        if known is not None:
            _passed[model] = known
    return known is None or known.adapter is not type(adapter)


def _is_untested(adapter: ModelAdapter, model: Any) -> bool:
    decoder: Any = adapter.decoder(model)
    kind = getattr(decoder.config, "model_type", "")
    if (_kernel(decoder) or "eager") not in KNOWN_KERNELS:
        return True
    return kind not in TESTED_DECODERS and not kind.startswith(model.config.model_type)


def _place(adapter: ModelAdapter, model: Any) -> tuple[type[ModelAdapter], type[nn.Module], str]:
    decoder: Any = adapter.decoder(model)
    kernel = _kernel(decoder)
    function = None if kernel is None else ALL_ATTENTION_FUNCTIONS.get(kernel)
    return (
        type(adapter),
        type(model),
        f"{kernel} {function} {model.dtype} {model.config.to_json_string()}",
    )


def _kernel(decoder: Any) -> str | None:
    """The decoder's `attn_implementation`."""
    kernel: str | None = getattr(decoder.config, "_attn_implementation", None)
    return kernel


def refuse_unfit(attached: AttachedMethod) -> None:
    """Raise where a method uses what was found not to run on its model.

    Raises:
        CdkitError: It says what, and which methods run.
    """
    found, method = _passed.get(attached.model), attached.method
    if found is None:
        return
    name = type(attached.model).__name__
    if found.attention and attached.hooked:
        raise CdkitError(
            f"{method.name} changes or reads attention, and cdkit's attention is not that of "
            f"{name}: {found.attention}; use a method that changes only the inputs, such as vcd"
        )
    if found.rotary and method.calibrator is not None:
        raise CdkitError(
            f"{method.name} moves positions, and how {name} rotates its keys was not found out: "
            f"{found.rotary}; use a method without a calibrator"
        )
    states = method.live_state_interventions
    reads = any(part.reads & {"layer_logits", "image_readout"} for part in states)
    if found.readout and (reads or method.readout is not None):
        raise CdkitError(
            f"{method.name} reads layers out, and how {name} makes logits of their states was not "
            f"found out: {found.readout}; use a method without a readout"
        )


def try_adapter(
    adapter: ModelAdapter, model: Any, given: Mapping[str, Any], *, attach: Attach
) -> None:
    """Hold the adapter against the stock model; of a generic one, a warning says what was checked.

    Args:
        adapter: A generic adapter, or one on a decoder that its tests never saw.
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
    window = sliding_window(adapter.decoder(model))
    cut = window is not None and ids.shape[1] + STEPS > window
    if not counts or all(inputs.get(s.argument) is None for s in sources_of(adapter)):
        if not adapter.needs_check:
            return  # later prompts will show it; without an image no method acts
        raise CdkitError(
            f"{name} runs with a generic adapter, which is tried out on the first prompts that a "
            "model gets: give it some with an image token and pixel_values first"
        )
    if cut:
        if not adapter.needs_check:
            return  # methods inside the attention are refused beyond the window
        raise CdkitError(
            f"{name} runs with a generic adapter, which is tried out on the first prompts that a "
            f"model gets: give it some that fit into its sliding window of {window} tokens first, "
            f"not {ids.shape[1]}"
        )
    _under_way.add(model)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the user's run repeats them
            found = _run_checks(adapter, model, inputs, name, attach)
    finally:
        _under_way.discard(model)
    _passed[model] = found
    if not adapter.needs_check:
        _of_config[_place(adapter, model)] = found
        return
    warnings.warn(
        f"{name} has no adapter of its own, a generic one is in use. Checked once for this model, "
        f"on these prompts: each run of image tokens is an image ({_listed(counts)} tokens), the "
        f"decoder gets the image's features there; {_said(adapter, model, found)} See "
        "docs/models.md",
        CdkitWarning,
        stacklevel=6,  # the line that calls generate
    )


def _said(adapter: ModelAdapter, model: Any, found: Findings) -> str:
    """What was found, in words."""
    rotation = "rotate keys as found"
    if found.rotary or adapter.rotary(model) is None:
        rotation = (
            "rotate keys in a way that was not found out, so methods with a calibrator are refused"
        )
    if found.attention:
        said = f"methods that change or read attention are refused: {found.attention}."
    else:
        said = (
            f"its layers run through the attention function, {rotation}, attend to nothing ahead; "
            f"an identical branch gives the stock logits within {_within(model):g}."
        )
    if found.pixels:
        said += f" Methods that change pixels are refused: {found.pixels}."
    if found.order:
        said += f" Methods that move pixels are refused: {found.order}."
    if found.readout:
        said += f" Methods that read layers out are refused: {found.readout}."
    return said


def _run_checks(
    adapter: ModelAdapter, model: Any, inputs: Inputs, name: str, attach: Attach
) -> Findings:
    """Run all checks; return what of a method does not run."""
    # before the handlers below: an error of the prompts themselves is not the adapter's
    stock = generate_tokens(model, inputs, steps=STEPS)
    checked, unmatched, unordered = "", "", ""
    try:
        checked = "its parts"
        check_modules(adapter, model)
        checked = "a stock generate"
        encoders = check_stock_run(adapter, model, inputs)
        checked = "its pixels"
        try:
            unordered = check_pixels(adapter, model, inputs, encoders)
        except UnmatchedPixelsError as error:
            unmatched = str(error)
        checked = "what its images depend on"
        if _has_other_ending(adapter, model, inputs):
            check_causal_prefix(adapter, model, inputs)
        checked = "two branches alike, as rows of one batch with one cache"
        attention = ""
        for optimize in (ONE_BATCH, True):
            attention = attention or _why_not(
                lambda how: check_identical_branch(
                    adapter, model, inputs, stock, attach=attach, optimize=how, same=Unchanged()
                ),
                optimize,
            )
        if attention:
            ahead = adapter.sees_ahead_in(model) == "nowhere"
            if ahead and images_see_ahead(adapter, model, inputs):
                raise CdkitError(
                    "its image tokens attend to image tokens after them, which an adapter has to "
                    "declare (sees_ahead)"
                )
        # where padding matters no branch has a prompt of its own: those methods are refused
        rows: DistortionStrategy = SamePrompt()
        if why_padding_matters(adapter.decoder(model)):
            rows = SamePixels()
        if attention and not (unmatched and isinstance(rows, SamePixels)):
            check_identical_branch(
                adapter, model, inputs, stock, attach=attach, optimize=True, same=rows
            )
        return Findings(
            type(adapter),
            pixels=unmatched,
            order=unordered,
            attention=attention,
            rotary=_why_not(check_rotary, adapter, model),
            readout=_why_not(check_logits, adapter, model, inputs),
        )
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, CdkitError) as error:
        raise _unfit(adapter, name, _words(error)) from None
    except Exception as error:  # an unknown model may fail in any way
        raise _unfit(adapter, name, f"{checked}: {failure(error)}") from error


def _words(error: Exception) -> str:
    """What an error says; a promise of the adapter as what does not hold."""
    said = f"{error}".rstrip(".")
    if isinstance(error, AssertionError):
        return f"it does not hold that {said.partition(': ')[2]}"
    return said.partition("; use ")[0]  # a method that the trial made up is no user's to change


def _why_not(check: Callable[..., None], *arguments: Any) -> str:
    """Why a check does not pass; empty where it does."""
    try:
        check(*arguments)
    except torch.OutOfMemoryError:
        raise
    except (AssertionError, CdkitError) as error:
        return _words(error)
    except Exception as error:  # an unknown model may fail in any way
        return failure(error)
    return ""


def _unfit(adapter: ModelAdapter, name: str, what: str) -> CdkitError:
    if not adapter.needs_check:
        return CdkitError(
            f"{name} has a decoder with which its adapter was never tested, and on these prompts "
            f"they do not fit: {what.rstrip('.')}. Generate without cdkit.attach, or use a model "
            "of the family with another decoder (docs/models.md)"
        )
    return CdkitError(
        f"{name} has no adapter of its own, and the generic one does not fit: "
        f"{what.rstrip('.')}. {HOW_TO_ADD}"
    )


def _inputs(adapter: ModelAdapter, model: Any, given: Mapping[str, Any]) -> Inputs:
    """The arguments that belong to the prompts, with an attention mask."""
    encoders = [getattr(*source.encoder(model)) for source in sources_of(adapter)]
    functions = (model.forward, *encoders)
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
