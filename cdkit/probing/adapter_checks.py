"""What an adapter says of a stock model, held against the model as it runs.

`cdkit.testing.check_adapter` runs these checks on prompts that it makes, the trial of a generic
adapter (`cdkit.probing.adapter_trial`) on the first prompts of a user. Each check raises an
AssertionError that names the first promise which does not hold.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import DynamicCache, GenerationMixin

from cdkit.branches.recurrent_states import keeps_keys
from cdkit.interfaces.cache_names import CACHE
from cdkit.interfaces.model_adapter import ModelAdapter, attentions_of, states_of
from cdkit.interfaces.pixel_source import Kind, PixelSource, sources_of
from cdkit.probing.images_in_decoder import encoded_before
from cdkit.probing.promises import require, require_close, require_same, tolerance
from cdkit.probing.recorded_calls import RecordedCall, recording_calls
from cdkit.probing.stock_generate import Inputs, generate_tokens, with_other_ending

# ---- what is declared ----------------------------------------------------------------------------


def check_modules(adapter: ModelAdapter, model: Any) -> None:
    """Require that the adapter names modules of this model, and all layers of the decoder."""
    decoder, layers = adapter.decoder(model), adapter.layers(model)
    encoders = {_encoder(source): source.encoder(model) for source in sources_of(adapter)}
    found = {"decoder": decoder, "lm_module": adapter.lm_module(model)}
    for name, module in (found | {name: owner for name, (owner, _) in encoders.items()}).items():
        inside = any(module is part for part in model.modules())
        require(inside, adapter, f"the {name} is a module of this model", type(module).__name__)
    for name, (owner, attribute) in encoders.items():
        called = callable(getattr(owner, attribute, None))
        require(called, adapter, f"the {name} is a method of its owner", attribute)
    of_decoder = {id(module) for module in decoder.modules()}
    stray = [type(layer).__name__ for layer in layers if id(layer) not in of_decoder]
    require(bool(layers) and not stray, adapter, "layers are modules of the decoder", stray)
    config: Any = getattr(decoder, "config", None)
    count = getattr(config, "num_hidden_layers", len(layers))
    whole = len({id(layer) for layer in layers}) == len(layers) == count
    require(whole, adapter, f"layers are all {count} of the decoder, each once", len(layers))
    attentions = attentions_of(adapter, model)
    for number, attention in attentions.items():
        parts = layers[number].modules()
        inside = any(attention is part for part in parts if part is not layers[number])
        require(inside, adapter, "attention is a module inside the layer", type(attention).__name__)
    caches: list[Any] = DynamicCache(config=config).layers
    missed = [n for n, cache in enumerate(caches) if keeps_keys(cache) and n not in attentions]
    promise = "attention is a module in each layer whose cache has keys and values"
    require(not missed, adapter, promise, missed)


# ---- the stock model as it generates -------------------------------------------------------------


def recorded_generate(
    adapter: ModelAdapter, model: Any, inputs: Inputs, *, steps: int, **options: Any
) -> list[RecordedCall]:
    """The calls of encoders, decoder, `lm_module` and layers in a stock `generate`.

    Of all layers but the last only the names are kept. `options` are those of `generate`.
    """
    layers = {_layer(i): (m, "forward") for i, m in enumerate(adapter.layers(model))}
    modules = {
        **{_encoder(source): source.encoder(model) for source in sources_of(adapter)},
        "decoder": (adapter.decoder(model), "forward"),
        "lm_module": (adapter.lm_module(model), "forward"),
    }
    given = adapter.encoder_kwargs(model, inputs)
    names_only = [*layers][given is not None : -1]  # what goes into the first layer is asked for
    with recording_calls(layers | modules, names_only=names_only) as calls:
        generate_tokens(model, inputs, steps=steps, **options)
    return calls if given is None else list(encoded_before(adapter, model, given, calls))


def _encoder(source: PixelSource) -> str:
    return "encoder" if source.kind == "image" else f"{source.kind} encoder"


def last_states(adapter: ModelAdapter, model: Any, inputs: Inputs) -> Tensor:
    """The output of the stock decoder's last layer for the prompts: (rows, tokens, hidden)."""
    last, all_tokens = _layer(len(adapter.layers(model)) - 1), inputs["input_ids"].shape[1]
    for options in ({}, {"output_hidden_states": True}):
        calls = recorded_generate(adapter, model, inputs, steps=1, **options)
        hidden = next(states_of(adapter, call.output) for call in calls if call.name == last)
        # layers without keys of their own run the last token alone, unless all states are asked for
        if hidden.shape[1] == all_tokens:
            break
    return hidden


def _layer(index: int) -> str:
    return f"layer {index}"


Encoders = Mapping[Kind, RecordedCall]
"""The calls of the encoders of images and of videos, whichever the prompts have."""


def check_stock_run(adapter: ModelAdapter, model: Any, inputs: Inputs) -> Encoders:
    """Require that a stock `generate` runs the modules of the adapter, with what it says.

    Args:
        adapter: The adapter under test.
        model: The stock model.
        inputs: Prompts, padded on the left.

    Returns:
        The calls of the encoders.

    Raises:
        AssertionError: Where a promise is broken.
    """
    depth = len(adapter.layers(model))
    calls = recorded_generate(adapter, model, inputs, steps=2)
    came = [source for source in sources_of(adapter) if inputs.get(source.argument) is not None]
    loop: Any = GenerationMixin
    own = "a generate of its own" if type(model).generate is not loop.generate else None
    for name in (*map(_encoder, came), "decoder", "lm_module"):
        called = any(call.name == name for call in calls)
        require(called, adapter, f"generate calls the {name} of the adapter", own)
    order = [call.name for call in calls if call.name.startswith("layer")]
    wanted_order = [_layer(i) for i in range(depth)] * 2
    require(order == wanted_order, adapter, "generate runs the layers, in order", order)
    first = {call.name: call for call in reversed(calls)}
    encoders: dict[Kind, RecordedCall] = {source.kind: first[_encoder(source)] for source in came}
    decoder = first["decoder"]
    embeds: Any = decoder.arguments.get("inputs_embeds")
    whole = decoder.keywords_only and embeds is not None
    require(whole, adapter, "the decoder gets inputs_embeds, and all its arguments by name")
    assert embeds is not None
    known = {*KNOWN_TENSORS, *adapter.deepstack_kwargs(model, None)}
    known |= set(adapter.token_kwargs(model, inputs["input_ids"]))
    for name in adapter.token_arguments(model):
        found, given = decoder.arguments.get(name), inputs.get(name)
        if found is not None and given is not None and found.shape == given.shape:
            promise = f"the decoder gets {name} of the prompts as they are"
            require_same(found, given.to(found), adapter, promise)
            known.add(name)
    unknown = sorted(_tensors_in(decoder.arguments) - known)
    promise = "the decoder gets nothing of each token but what the engine repeats for its branches"
    require(not unknown, adapter, promise, ", ".join(unknown))

    ids, token_mask = inputs["input_ids"], inputs["attention_mask"].bool()
    index = adapter.image_index(model, ids).masked_fill(~token_mask, -1)
    for row, kept, found in zip(ids, token_mask, index, strict=True):
        if len(ids) == 1 or bool((found >= 0).any()):  # a batch may hold prompts without an image
            _check_image_index(adapter, model, row[kept][None])
    of_kind = tokens_of_kinds(adapter, model, ids, index)
    for kind, encoder in encoders.items():
        features, where = adapter.features(encoder.output), of_kind[kind]
        counts = tokens_of_images(index.masked_fill(~where, -1))
        promise = f"there are as many features as {kind} tokens"
        require(len(features) == sum(counts), adapter, promise, (len(features), counts))
        zeros = not bool(features.any())
        promise = "features are zeros where features_in_layers is True, and nowhere else"
        require(zeros == adapter.features_in_layers, adapter, promise)
        promise = "the decoder gets the features in the places of image_index"
        placed = adapter.placed_features(model, features).to(embeds)
        there, without = embeds[where], adapter.embed(model, ids[where][None])[0].to(embeds)
        if placed.shape == there.shape and _close(placed + without, there):
            promise += " alone, not added to the tokens' embeddings (an adapter's placed_features)"
        require_close(placed, there, adapter, promise)
    text = (index < 0) & token_mask
    text_embeds = adapter.embed(model, ids.masked_fill(~text, int(ids[text][0])))
    promise = "embed returns what the decoder gets for text tokens"
    require_close(text_embeds[text].to(embeds), embeds[text], adapter, promise)

    _check_token_kwargs(adapter, model, inputs, decoder)
    return encoders


def tokens_of_kinds(
    adapter: ModelAdapter, model: Any, ids: Tensor, index: Int[Tensor, "rows tokens"]
) -> dict[Kind, Bool[Tensor, "rows tokens"]]:
    """Which tokens are those of images, and of videos."""
    is_video = torch.zeros_like(index, dtype=torch.bool)
    if adapter.videos is not None:
        is_video = adapter.videos.is_video(model, ids) & (index >= 0)
    return {"image": (index >= 0) & ~is_video, "video": is_video}


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= tolerance(other))


def images_see_ahead(adapter: ModelAdapter, model: Any, inputs: Inputs) -> bool:
    """Whether the state of an image token depends on a later image token.

    The decoder runs twice with what `generate` gives it for the prompts, once with another
    embedding of the last image token.

    Args:
        adapter: The adapter under test.
        model: The stock model.
        inputs: Prompts, padded on the left.
    """
    calls = recorded_generate(adapter, model, inputs, steps=1)
    arguments = dict(next(call for call in calls if call.name == "decoder").arguments)
    arguments |= {CACHE: None, "use_cache": False}
    arguments.pop("kwargs", None)
    if "logits_to_keep" in arguments:
        arguments["logits_to_keep"] = 0
    is_image = adapter.image_index(model, inputs["input_ids"]) >= 0
    is_image = is_image & inputs["attention_mask"].bool()
    row = int(is_image.sum(dim=-1).argmax())
    *earlier, last = is_image[row].nonzero()[:, 0].tolist()
    embeds: Tensor = arguments["inputs_embeds"]
    other = embeds.clone()
    other[row, last] += embeds.std()
    decoder: Any = adapter.decoder(model)
    states = [
        type(decoder).forward(decoder, **arguments | {"inputs_embeds": own}).last_hidden_state
        for own in (embeds, other)
    ]
    before, after = (own[row, earlier] for own in states)
    return bool(earlier) and not _close(after, before)


def _check_token_kwargs(
    adapter: ModelAdapter, model: Any, inputs: Inputs, decoder: RecordedCall
) -> None:
    """Require that `token_kwargs` makes of the prompts' ids what the decoder gets."""
    token_mask = inputs["attention_mask"].bool()
    for name, value in adapter.token_kwargs(model, inputs["input_ids"]).items():
        given = decoder.arguments.get(name)
        promise = f"token_kwargs makes the {name} of the prompt's tokens"
        require(isinstance(given, Tensor), adapter, promise, type(given).__name__)
        assert given is not None
        require_close(value[token_mask].to(given), given[token_mask], adapter, promise)


def check_logits(adapter: ModelAdapter, model: Any, inputs: Inputs) -> None:
    """Require that `logits` makes of a layer's states what the model makes of the last one's.

    Args:
        adapter: The adapter under test.
        model: The stock model.
        inputs: Prompts, padded on the left.

    Raises:
        AssertionError: Where a promise is broken.
    """
    depth = len(adapter.layers(model))
    calls = recorded_generate(adapter, model, inputs, steps=1)
    first = {call.name: call for call in reversed(calls)}
    decoder = first["decoder"]
    wanted = first["lm_module"].output.logits[:, -1]
    promise = "a layer gives one state for each token"
    last = states_of(adapter, first[_layer(depth - 1)].output)[:, -1]
    require(last.ndim == 2, adapter, promise, last.shape)
    promise = "logits of the decoder's output, with norm=False, are the model's next-token logits"
    hidden = decoder.output.last_hidden_state[:, -1]
    require_close(adapter.logits(model, hidden, norm=False), wanted, adapter, promise)
    promise = (
        "only the final norm stands between the last layer and the head, so that logits of the "
        "layer's output are the same"
    )
    require_close(adapter.logits(model, last), wanted, adapter, promise)


KNOWN_TENSORS = ("inputs_embeds", "attention_mask", "position_ids", "cache_position")
"""What the engine repeats for the branches, in the arguments of every decoder."""


def _tensors_in(arguments: Mapping[str, Any]) -> set[str]:
    """The names of arguments that are tensors, or lists with one."""
    return {
        name
        for name, value in arguments.items()
        if any(
            isinstance(v, Tensor) for v in (value if isinstance(value, list | tuple) else [value])
        )
    }


def tokens_of_images(index: Int[Tensor, "rows tokens"]) -> list[int]:
    """How many tokens each image has: the images of the first row, of the second, and so on."""
    return [int(count) for row in index for count in row[row >= 0].bincount()]


def _check_image_index(adapter: ModelAdapter, model: Any, ids: Int[Tensor, "1 tokens"]) -> None:
    index = adapter.image_index(model, ids)
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


# ---- causality -----------------------------------------------------------------------------------


def check_causal_prefix(adapter: ModelAdapter, model: Any, inputs: Inputs) -> None:
    """Require that `causal_prefix` says whether states up to the image depend on the question.

    The question is changed, and the states before and after are compared.

    Args:
        adapter: The adapter under test.
        model: The stock model.
        inputs: Prompts, padded on the left.

    Raises:
        AssertionError: Where the declaration is wrong.
        CdkitError: Where no prompt has a text after its image that could be changed.
    """
    token_mask = inputs["attention_mask"].bool()
    is_image = (adapter.image_index(model, inputs["input_ids"]) >= 0) & token_mask
    up_to_image = is_image.flip(-1).cummax(dim=-1).values.flip(-1)
    states = []
    for prompt in (inputs, with_other_ending(inputs, is_image)):
        hidden = last_states(adapter, model, prompt)
        states.append(hidden[(up_to_image & token_mask).to(hidden.device)])
    moved = bool((states[0] - states[1]).abs().max() > tolerance(states[0]))
    promise = (
        "with causal_prefix = True no state up to the image depends on the text after it"
        if adapter.causal_prefix
        else "with causal_prefix = False states of the image depend on the text after it"
    )
    require(moved != adapter.causal_prefix, adapter, promise)
