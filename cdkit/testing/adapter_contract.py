"""The contract suite of model adapters: what they declare, held against the model at work."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cdkit.errors import CdkitError
from cdkit.interfaces.adapter_lookup import adapter_for, unwrap
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.probing.adapter_checks import (
    check_causal_prefix,
    check_logits,
    check_modules,
    check_stock_run,
)
from cdkit.probing.pixel_checks import check_pixels
from cdkit.probing.promises import name_of, require
from cdkit.probing.rotary_checks import check_rotary
from cdkit.probing.stock_generate import Inputs, generate_tokens
from cdkit.testing.adapter_prompts import QUESTION, batched, encoded, longer, prepared
from cdkit.testing.decode_modes import check_decode_modes


def check_adapter(model: Any, *, processor: Any = None, inputs: Any = None) -> None:
    """Check the adapter that `cdkit.adapter_for(model)` finds, on this very model.

    A tiny model with random weights will do, on the CPU, in float32 or float64: it generates some
    dozens of tokens.

    Args:
        model: A Hugging Face model in evaluation mode.
        processor: Its processor. With it, the adapter's prompt and a distortion that writes text
            are checked as well.
        inputs: The arguments of `generate` for one prompt with an image, or a video, and text after
            it. Without them a prompt with an image is made by the adapter and the processor.

    Raises:
        AssertionError: Where a promise of `cdkit.ModelAdapter` is broken.
        CdkitError: Where the arguments cannot be used.
    """
    if processor is None and inputs is None:
        raise CdkitError("check_adapter needs a processor, or the inputs of one prompt: pass one")
    with _ends_in_advice():
        _check(model, processor, inputs)


@contextmanager
def _ends_in_advice() -> Iterator[None]:
    """Add what to do to checks that also try an adapter out for a user, who did not write it."""
    try:
        yield
    except AssertionError as error:
        if "What to do: " in str(error):
            raise
        raise AssertionError(
            f"{error} What to do: correct what the adapter says about that; docs/own_model.md "
            "explains each of its methods"
        ) from error


def _check(model: Any, processor: Any, inputs: Mapping[str, Any] | None) -> None:
    before = _public(_attributes(unwrap(model)))
    adapter, model = adapter_for(model), unwrap(model)
    if model.training:
        raise CdkitError("check_adapter runs the model as it answers: call model.eval() first")
    with torch.no_grad():
        _check_declarations(adapter)
        check_modules(adapter, model)
        prompts = [] if processor is None else _made(adapter, model, processor)
        one = prompts[0] if inputs is None else prepared(inputs, model)
        other = prompts[1] if len(prompts) > 1 else longer(one, by=3)
        pad = _pad(model)
        for prompt in (one, other):
            encoders = check_stock_run(adapter, model, prompt)
            check_logits(adapter, model, prompt)
            ordered = not check_pixels(adapter, model, prompt, encoders)
            _check_grids(adapter, model, prompt)
            _check_slot(adapter, model, prompt, processor)
        _check_padding(adapter, model, one, other, pad)
        check_rotary(adapter, model)
        check_causal_prefix(adapter, model, one)
        # Hugging Face sets private attributes at a model's first call: these are compared from here
        before = _attributes(model) | before
        notes = _notes_of_generate(model, one)
        both = batched(one, other, pad=pad)
        check_decode_modes(
            adapter, model, one, other, both=both, processor=processor, ordered=ordered
        )
    require(
        not vars(adapter),
        adapter,
        "it keeps no state",
        vars(adapter),
        todo="compute from the arguments alone: an adapter has no attributes of its own",
    )
    after = _attributes(model)
    changed = sorted(n for n in (before | after).keys() - notes if before.get(n) != after.get(n))
    require(
        not changed,
        adapter,
        "the model is left as it was",
        changed[:5],
        todo="read the model and set nothing on it or its config",
    )


def _check_declarations(adapter: ModelAdapter) -> None:
    example = getattr(adapter, "example", None)
    named = isinstance(example, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", example)
    require(
        bool(named),
        adapter,
        "example is a name on the hub, OWNER/NAME",
        example,
        todo="write the hub name of a checkpoint that it runs, such as llava-hf/llava-1.5-7b-hf",
    )
    causal = getattr(adapter, "causal_prefix", None)
    require(
        isinstance(causal, bool),
        adapter,
        "causal_prefix is True or False",
        causal,
        todo="set it in the class: True only if no state up to the image depends on later ones",
    )


def _check_grids(adapter: ModelAdapter, model: Any, prompt: Inputs) -> None:
    """Grids have tokens and frames that are there; an image without grids has a reason."""
    if "pixel_values" not in prompt or "pixel_values_videos" in prompt:
        return
    index = adapter.image_index(model, prompt["input_ids"])
    tokens = [int((row == n).sum()) for row in index for n in range(int(row.max()) + 1)]
    told = list(adapter.token_grids(model, prompt, tokens))
    require(
        len(told) == len(tokens) and all(told),
        adapter,
        "token_grids has grids, or words that say why there are none, for each image",
        told,
        todo="return a tuple of cdkit.TokenGrid or a text for each picture",
    )
    if all(isinstance(own, str) for own in told):
        return
    images = adapter.split_pixels(model, prompt, tokens)
    for grids, count, image in zip(told, tokens, images, strict=True):
        for grid in () if isinstance(grids, str) else grids:
            cells, frames = grid.tokens.flatten(), grid.frames
            there = 0 <= int(cells.min()) and int(cells.max()) < count
            there = there and len(set(cells.tolist())) == len(cells)
            there = there and 0 <= int(frames.min()) and int(frames.max()) < len(image)
            require(
                there,
                adapter,
                "a token grid has tokens of its image, each once, and frames of split_pixels",
                f"{grid} of an image with {count} tokens and {len(image)} frames",
                todo="number tokens and frames within their image, from 0",
            )


# ---- prompts -------------------------------------------------------------------------------------


def _made(adapter: ModelAdapter, model: Any, processor: Any) -> list[Inputs]:
    """A prompt with one image, and one with two where the family takes several."""
    prompts: list[Inputs] = []
    for images in (1, 2):
        try:
            text = adapter.prompt(QUESTION, images=images, processor=processor)
        except CdkitError:
            require(
                images == 2,
                adapter,
                "a prompt with one image can be made",
                todo="write the placeholder of one image, or set most_images",
            )
            return prompts
        require(
            isinstance(text, str),
            adapter,
            "prompt returns text",
            type(text),
            todo="return the text that the processor gets",
        )
        require(
            QUESTION in text,
            adapter,
            "the prompt holds the question",
            text,
            todo="put the question into the text as it is",
        )
        try:
            prompt = encoded(model, adapter, processor, images=images)
        except ValueError as error:  # what processors raise
            raise AssertionError(
                f"{name_of(adapter)}: the processor takes the prompt with {images} images. "
                f"Got: {error}. What to do: write one placeholder for each image"
            ) from error
        found = int(adapter.image_index(model, prompt["input_ids"]).max()) + 1
        require(
            found == images,
            adapter,
            f"a prompt with {images} images has as many",
            found,
            todo="write the processor's image placeholder once for each image",
        )
        prompts.append(prompt)
    return prompts


def _check_padding(adapter: ModelAdapter, model: Any, one: Inputs, other: Inputs, pad: int) -> None:
    ids = batched(one, other, pad=pad)["input_ids"]
    alone = [adapter.image_index(model, prompt["input_ids"])[0] for prompt in (one, other)]
    for filler in (pad, -1):  # the engine marks the padding of a rewritten prompt by -1
        for row, wanted in enumerate(alone):
            lead = ids.shape[1] - wanted.shape[0]
            filled = ids.index_fill(1, torch.arange(lead, device=ids.device), filler)
            rows = torch.where(torch.arange(len(alone))[:, None].to(ids.device) == row, filled, ids)
            index = adapter.image_index(model, rows)[row, lead:]
            same = index.equal(wanted)
            require(
                same,
                adapter,
                "image_index is the same in a padded batch",
                (index, wanted),
                todo="find images by the ids of each row alone; padding may stand before them",
            )


def _check_slot(adapter: ModelAdapter, model: Any, inputs: Inputs, processor: Any) -> None:
    ids = inputs["input_ids"][0].tolist()
    image = adapter.image_index(model, inputs["input_ids"])[0] >= 0
    first = int(image.nonzero()[0])
    if first == 0:  # the text begins behind the images: at its first token, or after it
        first = int((~image).nonzero()[0]) + 1
    for tokenizer in {
        id(t): t for t in (None, getattr(processor, "tokenizer", processor))
    }.values():
        slot = adapter.system_slot(ids, tokenizer)
        inside = isinstance(slot, int) and 0 <= slot <= first
        promise = "system_slot is in the prompt, before the first image or all text after it"
        require(
            inside,
            adapter,
            promise,
            slot,
            todo="return an index from 0 to the number of ids",
        )


# ---- the model itself ----------------------------------------------------------------------------


def _pad(model: Any) -> int:
    configs = (model.generation_config, model.config, model.config.get_text_config())
    found = (getattr(config, "pad_token_id", None) for config in configs)
    return next((pad for pad in found if pad is not None), 0)


def _attributes(model: nn.Module) -> dict[str, object]:
    """The attributes of every module: the identity of each object, and the length of containers."""
    return {
        f"{name}.{key}": (id(value), len(value) if isinstance(value, dict | list | set) else None)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    }


def _notes_of_generate(model: Any, inputs: Inputs) -> set[str]:
    """The attributes that the stock model sets at each `generate`."""
    # held, because an object made meanwhile must not get the id of one that is gone
    held = [dict(vars(module)) for module in model.modules()]
    before = _attributes(model)
    generate_tokens(model, inputs, steps=1)
    after = _attributes(model)
    del held
    return {name for name in before | after if before.get(name) != after.get(name)}


def _public(attributes: dict[str, object]) -> dict[str, object]:
    return {n: value for n, value in attributes.items() if not n.rpartition(".")[2].startswith("_")}
