"""The contract suite of model adapters: what they declare, held against the model at work."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache

from cdkit.adapter import ModelAdapter, Rotary, adapter_for, rotate, unwrap
from cdkit.cache import CACHE
from cdkit.errors import CdkitError
from cdkit.testing.prompts import (
    QUESTION,
    Inputs,
    batched,
    encoded,
    longer,
    placed,
    with_other_end,
)
from cdkit.testing.runs import check_runs, generated
from cdkit.testing.tools import name_of, require, require_close, require_same, tolerance
from cdkit.testing.watch import Seen, watching


def check_adapter(model: Any, *, processor: Any = None, inputs: Any = None) -> None:
    """The promises of the adapter that `cdkit.adapter_for(model)` finds, on this very model.

    `inputs` are the arguments of `generate` for one prompt with an image and text after it; without
    them a prompt is made by the adapter and the `processor`. With a processor, the adapter's prompt
    and a distortion that writes text are checked as well. A tiny model with random weights will do,
    on the CPU, in float32 or float64: it generates some dozens of tokens.
    """
    if processor is None and inputs is None:
        raise CdkitError("check_adapter needs a processor, or the inputs of one prompt: pass one")
    before = _public(_attributes(unwrap(model)))
    adapter, model = adapter_for(model), unwrap(model)
    if model.training:
        raise CdkitError("check_adapter runs the model as it answers: call model.eval() first")
    with torch.no_grad():
        _check_declarations(adapter, model)
        prompts = [] if processor is None else _made(adapter, model, processor)
        one = prompts[0] if inputs is None else placed(inputs, model)
        other = prompts[1] if len(prompts) > 1 else longer(one, by=3)
        pad = _pad(model)
        for prompt in (one, other):
            _check_at_work(adapter, model, prompt, pad=pad)
            _check_slot(adapter, model, prompt, processor)
        _check_padding(adapter, model, one, other, pad)
        _check_rotary(adapter, model)
        _check_causal_prefix(adapter, model, one)
        # Hugging Face leaves private things at a model's first call: those count from here on
        before = _attributes(model) | before
        own = _own_notes(model, one)
        both = batched(one, other, pad=pad)
        check_runs(adapter, model, one, other, both=both, processor=processor)
    require(not vars(adapter), adapter, "it keeps no state", vars(adapter))
    after = _attributes(model)
    changed = sorted(n for n in (before | after).keys() - own if before.get(n) != after.get(n))
    require(not changed, adapter, "the model is left as it was", changed[:5])


# ---- what is declared ----------------------------------------------------------------------------


def _check_declarations(adapter: ModelAdapter, model: Any) -> None:
    example = getattr(adapter, "example", None)
    named = isinstance(example, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", example)
    require(bool(named), adapter, "example is a name on the hub, OWNER/NAME", example)
    causal = getattr(adapter, "causal_prefix", None)
    require(isinstance(causal, bool), adapter, "causal_prefix is True or False", causal)
    owner, attribute = adapter.encoder(model)
    decoder, layers = adapter.decoder(model), adapter.layers(model)
    found = {"decoder": decoder, "reader": adapter.reader(model), "encoder": owner}
    for name, module in found.items():
        mine = any(module is own for own in model.modules())
        require(mine, adapter, f"the {name} is a module of this model", type(module).__name__)
    called = callable(getattr(owner, attribute, None))
    require(called, adapter, "the encoder is a method of its owner", attribute)
    inside = {id(module) for module in decoder.modules()}
    stray = [type(layer).__name__ for layer in layers if id(layer) not in inside]
    require(bool(layers) and not stray, adapter, "layers are modules of the decoder", stray)
    config: Any = getattr(decoder, "config", None)
    count = getattr(config, "num_hidden_layers", len(layers))
    whole = len({id(layer) for layer in layers}) == len(layers) == count
    require(whole, adapter, f"layers are all {count} of the decoder, each once", len(layers))
    for layer in layers:
        attention = adapter.attention(layer)
        own = any(attention is module for module in layer.modules() if module is not layer)
        require(own, adapter, "attention is a module inside the layer", type(attention).__name__)


def _made(adapter: ModelAdapter, model: Any, processor: Any) -> list[Inputs]:
    """A prompt with one image, and one with two where the family takes several."""
    prompts: list[Inputs] = []
    for images in (1, 2):
        try:
            text = adapter.prompt(QUESTION, images=images, processor=processor)
        except CdkitError:
            require(images == 2, adapter, "a prompt with one image can be made")
            return prompts
        require(isinstance(text, str), adapter, "prompt returns text", type(text))
        require(QUESTION in text, adapter, "the prompt holds the question", text)
        try:
            prompt = encoded(model, adapter, processor, images=images)
        except ValueError as error:  # how processors complain
            raise AssertionError(
                f"{name_of(adapter)}: the processor takes the prompt with {images} images. "
                f"Got: {error}"
            ) from error
        found = int(adapter.image_index(model, prompt["input_ids"]).max()) + 1
        require(found == images, adapter, f"a prompt with {images} images has as many", found)
        prompts.append(prompt)
    return prompts


# ---- the stock model at work ---------------------------------------------------------------------


def _watched(adapter: ModelAdapter, model: Any, inputs: Inputs, steps: int = 2) -> list[Seen]:
    """The calls of a stock `generate`."""
    layers = {f"layer {i}": (m, "forward") for i, m in enumerate(adapter.layers(model))}
    places = {
        "encoder": adapter.encoder(model),
        "decoder": (adapter.decoder(model), "forward"),
        "reader": (adapter.reader(model), "forward"),
    }
    with watching(layers | places) as seen:
        generated(model, inputs, steps=steps)
    return seen


def _last(layer: Seen) -> Tensor:
    hidden: Tensor = layer.output[0] if isinstance(layer.output, tuple) else layer.output
    return hidden


def _check_at_work(adapter: ModelAdapter, model: Any, inputs: Inputs, *, pad: int) -> None:
    layers = [f"layer {i}" for i in range(len(adapter.layers(model)))]
    seen = _watched(adapter, model, inputs)
    for name in ("encoder", "decoder", "reader"):
        called = any(call.name == name for call in seen)
        require(called, adapter, f"generate calls the {name} of the adapter")
    order = [call.name for call in seen if call.name.startswith("layer")]
    require(order == layers * 2, adapter, "generate runs the layers, in order", order)
    first = {call.name: call for call in reversed(seen)}
    decoder = first["decoder"]
    embeds: Any = decoder.given.get("inputs_embeds")
    whole = decoder.by_name and embeds is not None
    require(whole, adapter, "the decoder gets inputs_embeds, and all its arguments by name")
    assert embeds is not None

    ids = inputs["input_ids"]
    index = adapter.image_index(model, ids)
    _check_image_index(adapter, model, ids, index)
    features = adapter.features(first["encoder"].output)
    counts = [int((index == image).sum()) for image in range(int(index.max()) + 1)]
    promise = "there are as many features as image tokens"
    require(len(features) == sum(counts), adapter, promise, (len(features), counts))
    promise = "the decoder gets the features in the places of image_index"
    require_close(features.to(embeds), embeds[index >= 0], adapter, promise)
    _check_pixels(adapter, model, {**first["encoder"].given, **_named(inputs)}, counts)
    text = index < 0
    own = adapter.embed(model, ids.masked_fill(~text, int(ids[text][0])))
    promise = "embed returns what the decoder gets for text tokens"
    require_close(own[text], embeds[text], adapter, promise)

    wanted = first["reader"].output.logits[:, -1]
    promise = "logits of the last layer's output are the model's next-token logits"
    hidden = _last(first[layers[-1]])[:, -1]
    require_close(adapter.logits(model, hidden), wanted, adapter, promise)
    promise = "logits of the decoder's output, with norm=False, are the same"
    hidden = decoder.output.last_hidden_state[:, -1]
    require_close(adapter.logits(model, hidden, norm=False), wanted, adapter, promise)


def _named(inputs: Inputs) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if value is not None}


def _check_pixels(
    adapter: ModelAdapter, model: Any, given: dict[str, Any], counts: Sequence[int]
) -> None:
    """Split and joined again, the pixels are what they were, wherever the model reads them."""
    images = adapter.split_pixels(model, given, counts)
    require(len(images) == len(counts), adapter, "split_pixels has an entry for each image")
    shapes = [tuple(image.shape) for image in images]
    kinds = all(image.ndim == 4 and image.shape[1] == 3 for image in images)
    require(kinds, adapter, "an image's pixels are (frames, 3, height, width)", shapes)
    joined = adapter.join_pixels(model, images, given)
    same = joined.shape == given["pixel_values"].shape
    require(same, adapter, "join_pixels gives the shape of pixel_values", joined.shape)
    require_same(joined, given["pixel_values"], adapter, "join_pixels undoes split_pixels")


def _check_image_index(
    adapter: ModelAdapter, model: Any, ids: Int[Tensor, "1 tokens"], index: Tensor
) -> None:
    whole = index.shape == ids.shape and not index.is_floating_point()
    require(whole, adapter, "image_index has a whole number for each token", index.shape)
    found = index[index >= 0]
    require(bool(found.numel()), adapter, "image_index finds the image of the prompt", index)
    steps = torch.cat((found[:1] + 1, found.diff()))
    counted = bool(((steps == 0) | (steps == 1)).all()) and int(found[0]) == 0
    require(counted, adapter, "image_index counts the images from 0, in their order", index)
    text = ids[index < 0][None]
    none = adapter.image_index(model, text)
    require(bool((none == -1).all()), adapter, "image_index is -1 on text", none)


def _check_padding(adapter: ModelAdapter, model: Any, one: Inputs, other: Inputs, pad: int) -> None:
    ids = batched(one, other, pad=pad)["input_ids"]
    alone = [adapter.image_index(model, prompt["input_ids"])[0] for prompt in (one, other)]
    for filler in (pad, -1):  # the engine marks the padding of a rewritten prompt by -1
        for row, own in enumerate(alone):
            lead = ids.shape[1] - own.shape[0]
            filled = ids.index_fill(1, torch.arange(lead, device=ids.device), filler)
            rows = torch.where(torch.arange(len(alone))[:, None].to(ids.device) == row, filled, ids)
            index = adapter.image_index(model, rows)[row, lead:]
            same = index.equal(own)
            require(same, adapter, "image_index is the same in a padded batch", (index, own))


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
        require(inside, adapter, promise, slot)


# ---- rotary embedding and causality --------------------------------------------------------------


def _check_rotary(adapter: ModelAdapter, model: Any) -> None:
    rotary = adapter.rotary(model)
    if rotary is None:
        return
    each = list(rotary) if isinstance(rotary, Sequence) else [rotary]
    one_each = len(each) == len(adapter.layers(model)) and all(
        own is None or isinstance(own, Rotary) for own in each
    )
    require(one_each, adapter, "rotary is None, or has a Rotary or None for each layer", rotary)
    decoder: Any = adapter.decoder(model)
    random = torch.Generator().manual_seed(0)
    shape = (1, 6, model.get_input_embeddings().weight.shape[-1])
    embeds = torch.randn(shape, generator=random).to(model.device, model.dtype)
    positions = torch.arange(6, device=model.device)[None]

    def keys(at: Tensor) -> list[Tensor]:
        cache = DynamicCache(config=decoder.config)
        decoder(inputs_embeds=embeds, position_ids=at, use_cache=True, **{CACHE: cache})
        layers: list[Any] = cache.layers
        return [layer.keys for layer in layers]

    def check(by: Tensor, promise: str, within: float | None, layers: slice) -> None:
        start = positions if by.ndim == 2 else positions.expand(3, 1, -1)
        moved = keys(start + (by if by.ndim == 2 else by.movedim(-1, 0)))
        pairs = list(zip(rotary, keys(start), moved, strict=True))
        for own, before, after in pairs[layers]:
            turned = before if own is None else rotate(before, by.to(embeds), own)
            how: dict[str, float] = {} if within is None else {"within": within}
            require_close(turned, after, adapter, promise, **how)

    promise = "turning by rotary gives the model's own keys at the moved position"
    by = torch.tensor([[0, 2, 2, 5, 9, 30]], device=model.device)
    check(by, promise, None, slice(1))  # the layers above would see other states
    check(torch.full_like(by, 7), promise, None, slice(None))
    if rotary[0] is not None and rotary[0].axes is not None:
        grid = torch.stack((by, by.flip(-1), by * 0), dim=-1)
        check(grid, promise, None, slice(1))
    longest = getattr(decoder.config, "max_position_embeddings", None)
    if longest is not None and longest <= 2**15:  # beyond, float32 angles say nothing
        promise = "rotary is None where the frequencies change with the length"
        check(torch.full_like(by, 3 * longest), promise, 0.05, slice(1))


def _check_causal_prefix(adapter: ModelAdapter, model: Any, inputs: Inputs) -> None:
    is_image = adapter.image_index(model, inputs["input_ids"]) >= 0
    stop = int(is_image[0].nonzero()[-1]) + 1
    last = f"layer {len(adapter.layers(model)) - 1}"
    states = []
    for prompt in (inputs, with_other_end(inputs, is_image)):
        seen = _watched(adapter, model, prompt, steps=1)
        states.append(next(_last(call)[:, :stop] for call in seen if call.name == last))
    moved = bool((states[0] - states[1]).abs().max() > tolerance(states[0]))
    promise = (
        "with causal_prefix = True no state up to the image depends on the text after it"
        if adapter.causal_prefix
        else "with causal_prefix = False states of the image depend on the text after it"
    )
    require(moved != adapter.causal_prefix, adapter, promise)


# ---- the model itself ----------------------------------------------------------------------------


def _pad(model: Any) -> int:
    configs = (model.generation_config, model.config, model.config.get_text_config())
    found = (getattr(config, "pad_token_id", None) for config in configs)
    return next((pad for pad in found if pad is not None), 0)


def _attributes(model: nn.Module) -> dict[str, object]:
    """The attributes of every module: which objects they are, and how much containers hold."""
    return {
        f"{name}.{key}": (id(value), len(value) if isinstance(value, dict | list | set) else None)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    }


def _own_notes(model: Any, inputs: Inputs) -> set[str]:
    """The attributes in which the stock model notes something at each `generate`."""
    held = [dict(vars(module)) for module in model.modules()]  # no new object takes an old one's id
    before = _attributes(model)
    generated(model, inputs, steps=1)
    after = _attributes(model)
    del held
    return {name for name in before | after if before.get(name) != after.get(name)}


def _public(attributes: dict[str, object]) -> dict[str, object]:
    return {n: value for n, value in attributes.items() if not n.rpartition(".")[2].startswith("_")}
