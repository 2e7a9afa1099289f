"""Noting the prompts of a call: what cannot run is refused here, before the first token."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from cdkit.branches.cache import given_cache
from cdkit.branches.layout import make_layout
from cdkit.errors import CdkitError
from cdkit.generation.compatibility import (
    check_arguments,
    check_cache,
    check_loop,
    check_mode,
    check_whole_prompt,
    setting,
)
from cdkit.generation.engine import Engine
from cdkit.generation.session import Session
from cdkit.interfaces.model_adapter import HOW_TO_ADD, UnmatchedPixelsError


def open_session(
    engine: Engine, given: dict[str, Any], *, defaults: Sequence[object], plain: bool
) -> Session:
    """Note the prompts, after everything that can be refused was."""
    method = engine.method
    check_arguments(given, defaults, method)
    check_cache(given_cache(given))
    if not plain:
        check_mode(given, defaults, method)
        check_whole_prompt(given, defaults, method, sees_ahead=engine.adapter.sees_ahead)
    elif method.stateful:
        raise CdkitError(f"{method.name} depends on the step; a plain call has none: generate")
    elif method.loop is not None:
        raise CdkitError(f"{method.name} is a way to decode; a plain call has none: generate")
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise CdkitError("input_ids of shape (prompts, tokens) are needed to find the image")
    if method.loop is not None:
        check_loop(given, defaults, method)
    _check_window(engine, ids.shape[1] + (0 if plain else _new_tokens(ids, given, defaults)))
    mask = given.get("attention_mask")
    if mask is None:
        # a plain call has no rule for a missing mask: every token counts
        mask = torch.ones_like(ids) if plain else _not_padding(engine, ids, given, defaults)
    elif mask.ndim != 2:
        raise CdkitError(f"attention_mask must be (prompts, tokens), got {tuple(mask.shape)}")
    real = mask.to(ids.device).bool()
    image_index = engine.adapter.image_index(engine.model, ids).masked_fill(~real, -1)
    if bool((image_index >= 0).any()):
        _check_required(engine, given)
    pixels = _pixels(engine, given, image_index)
    session = Session(
        ids=ids,
        real=real,
        image_index=image_index,
        pixels=pixels,
        seed=engine.seed,
        given_ids=engine.sample_ids,
        plain=plain,
        shows_logits=any(
            setting(name, given, defaults) for name in ("output_scores", "output_logits")
        ),
    )
    looks = engine.method.calibrator or engine.method.interventions or engine.method.loop
    if engine.branches or looks:
        for row, images in enumerate(session.images):
            if images == 0:
                raise CdkitError(
                    f"prompt {row} has no image, and {method.name} is about the image; put an "
                    "image placeholder into the prompt, or generate without cdkit.attach"
                )
    _check_last_row(engine, session)
    for branch in engine.branches:
        if branch.pixel and pixels is None:
            raise CdkitError(f"branch {branch.name!r} distorts pixels: pass pixel_values")
    return session


def _pixels(
    engine: Engine, given: dict[str, Any], image_index: Int[Tensor, "samples tokens"]
) -> Sequence[Tensor] | None:
    """Each image's; None where there are none, or nobody needs to know which is whose.

    Without them a digest that stands for a sample id is that of the prompt alone.
    """
    if given.get("pixel_values") is None:
        return None
    counts = list[int]()
    for row in image_index.tolist():
        found = Counter(row)
        counts += [found[number] for number in range(max(row) + 1)]
    try:
        return engine.adapter.split_pixels(engine.model, given, counts)
    except UnmatchedPixelsError as error:
        if any(branch.pixel for branch in engine.branches):
            raise CdkitError(
                f"{engine.method.name} changes pixels, but which are an image's is not known: "
                f"{error}; use a method that changes none, or write an adapter. {HOW_TO_ADD}"
            ) from None
        return None


def _check_required(engine: Engine, given: dict[str, Any]) -> None:
    for name in engine.adapter.required:
        if given.get(name) is None:
            raise CdkitError(
                f"{type(engine.model).__name__} needs {name} beside pixel_values, as its "
                "processor returns it: pass all of the processor's output on"
            )


def _check_last_row(engine: Engine, session: Session) -> None:
    """What the original branch looks at is read off a text row that follows the image."""
    # what rows of the image may see (`hidden`) is read off that row, too
    looks = any(b.feature or not all(d.keeps_prefix for d in b.attention) for b in engine.branches)
    looks = looks or engine.signals.image
    if not looks and engine.method.loop is None:
        return
    last = make_layout(session.image_index, session.real).last[:, None]
    for row, number in enumerate(session.image_index.gather(1, last)[:, 0].tolist()):
        if number >= 0:
            raise CdkitError(
                f"prompt {row} ends with an image, but {engine.method.name} reads where its last "
                "text token looks; put the question after the image"
            )


def _check_window(engine: Engine, longest: int) -> None:
    if engine.window is not None and longest > engine.window:
        raise CdkitError(
            f"{engine.method.name} needs the image tokens all along, but the decoder's sliding "
            f"window keeps {engine.window} tokens and prompt and answer may reach {longest}: "
            "shorten the prompt or max_new_tokens, or use a method that changes only the "
            "inputs, such as vcd"
        )


def _not_padding(
    engine: Engine,
    ids: Int[Tensor, "samples tokens"],
    given: dict[str, Any],
    defaults: Sequence[object],
) -> Int[Tensor, "samples tokens"]:
    """Hugging Face's rule for a missing mask: pad tokens are padding unless they end a text."""
    pad, eos = (setting(name, given, defaults) for name in ("pad_token_id", "eos_token_id"))
    ends = eos if isinstance(eos, list) else [eos]
    if pad is None or pad in ends:
        return torch.ones_like(ids)
    return ids.ne(int(pad)).long()


def _new_tokens(ids: Tensor, given: dict[str, Any], defaults: Sequence[object]) -> int:
    """How many tokens `generate` may add: Hugging Face adds 20 where nothing is said."""
    new, longest = (setting(name, given, defaults) for name in ("max_new_tokens", "max_length"))
    if new is not None:
        return int(new)
    return 20 if longest is None else max(0, int(longest) - ids.shape[1])
