"""The image encoder with a method on: the images of distorted branches beside the originals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.branches.inputs import features_of_rows, place_features
from cdkit.branches.method_cache import MethodCache
from cdkit.branches.rewritten_prompts import rewritten_text
from cdkit.errors import CdkitError
from cdkit.generation.arguments import arguments
from cdkit.generation.attached_engine import AttachedEngine
from cdkit.generation.prompts import Session
from cdkit.interfaces.cache_names import given_cache
from cdkit.interfaces.pixel_source import Kind, PixelSource
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import ORIGINAL, Branch


def encode_images(
    engine: AttachedEngine,
    source: PixelSource,
    encode: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The encoder's output for the original images, or videos, untouched.

    The features of distorted branches are kept in the session: the encoder runs once more for each
    branch that changes pixels, or the text that the encoder reads.
    """
    session = engine.session
    if session is None or engine.is_encoding:
        return encode(*args, **kwargs)
    engine.is_encoding = True
    try:
        output = encode(*args, **kwargs)
        given = arguments(encode, *args, **kwargs) if args else kwargs
        if given.get(source.argument) is not None:
            _keep(engine.attached, session, source, encode, given, output)
    finally:
        engine.is_encoding = False
    return output


def embed_tokens(engine: AttachedEngine, kwargs: dict[str, Any]) -> None:
    """Replace token ids, of a decoder that embeds them itself, by embeddings.

    Where it encodes images as well, they are encoded at the first call of a prompt, and their
    features stand at the image tokens.

    Args:
        engine: The method on this model.
        kwargs: What the decoder is given; is changed.

    Raises:
        CdkitError: Where `generate` would mix the images of prompts.
    """
    attached, session = engine.attached, engine.session
    ids = kwargs.pop("input_ids")
    embeds = attached.adapter.embed(attached.model, ids)
    if session is not None and session.encoder_kwargs is not None:
        for name in session.encoder_kwargs:
            kwargs.pop(name, None)
        cache = given_cache(kwargs)
        seen = cache.get_seq_length() if isinstance(cache, MethodCache) else 0
        here = session.ids.shape[1] - seen
        if here > 0:  # behind the prompts there is text alone
            _check_repeated(attached, session, len(ids))
            placed = _with_images(attached, session, session.encoder_kwargs, embeds[:, :here], seen)
            embeds = torch.cat((placed, embeds[:, here:]), dim=1)
    kwargs["inputs_embeds"] = embeds


def _check_repeated(attached: AttachedMethod, session: Session, rows: int) -> None:
    """Raise where `generate` repeats each image, and not the images of each prompt."""
    expand = rows // len(session.ids)
    most = max(session.images)
    if expand > 1 and most > 1:
        raise CdkitError(
            f"a prompt has {most} images, and Hugging Face's generate repeats each of them for the "
            f"{expand} rows of the prompt (num_beams, num_return_sequences), so "
            f"{type(attached.model).__name__} without a method would mix them up: leave both at 1"
        )


def _with_images(
    attached: AttachedMethod,
    session: Session,
    given: Mapping[str, Any],
    embeds: Float[Tensor, "rows columns hidden"],
    seen: int,
) -> Float[Tensor, "rows columns hidden"]:
    """Columns of the prompts from `seen` on, with the features of the original images."""
    adapter, model = attached.adapter, attached.model
    if ORIGINAL not in session.features:
        owner, name = adapter.encoder(model)
        output = getattr(owner, name)(**given)
        session.features[ORIGINAL] = adapter.placed_features(model, adapter.features(output))
    expand = len(embeds) // len(session.ids)
    rows = features_of_rows(session.features[ORIGINAL], session.tokens, expand)
    index = session.image_index.repeat_interleave(expand, dim=0)
    return place_features(embeds, index, rows, start=seen)


def _keep(
    attached: AttachedMethod,
    session: Session,
    source: PixelSource,
    encode: Callable[..., Any],
    given: dict[str, Any],
    output: Any,
) -> None:
    """Keep the features that the distorted branches need."""
    adapter = attached.adapter
    deepstack = adapter.deepstack_features(output)
    if session.is_video is not None:
        deepstack = _among_others(session, ORIGINAL, deepstack, source.kind)
    session.deepstack[ORIGINAL] = deepstack
    for branch in attached.every_branch:
        changed = {}
        if branch.prompt and adapter.encoder_text is not None:
            changed = _text_of(attached, branch, given, adapter.encoder_text)
        if branch.pixel:
            pixels = session.distorted_pixels(branch, source.kind)
            if source.kind in session.unordered:
                changed |= source.join_values(attached.model, pixels, given)
            else:
                changed[source.argument] = source.join(attached.model, pixels, given)
        if changed:
            distorted = encode(**given | changed)
            features = adapter.placed_features(attached.model, adapter.features(distorted))
            if session.is_video is not None:
                before = session.features.get(branch.name)
                features = _placed(session, session.is_video, before, features, source.kind)
            session.features[branch.name] = features
            deepstack = adapter.deepstack_features(distorted)
            if session.is_video is not None:
                deepstack = _among_others(session, branch.name, deepstack, source.kind)
            session.deepstack[branch.name] = deepstack


def _among_others(
    session: Session, branch: str, layers: Sequence[Float[Tensor, "_ hidden"]], kind: Kind
) -> Sequence[Float[Tensor, "tokens hidden"]]:
    """What deeper layers add in a branch, of images and of videos as far as both are encoded."""
    assert session.is_video is not None
    before: Sequence[Tensor | None] = session.deepstack.get(branch) or [None] * len(layers)
    pairs = zip(before, layers, strict=True)
    return [_placed(session, session.is_video, old, new, kind) for old, new in pairs]


def _placed(
    session: Session,
    is_video: Bool[Tensor, "samples columns"],
    before: Float[Tensor, "tokens hidden"] | None,
    features: Float[Tensor, "_ hidden"],
    kind: Kind,
) -> Float[Tensor, "tokens hidden"]:
    """Features of one kind among those of the other one, in the order of the prompts."""
    where = is_video[session.image_index >= 0].to(features.device)
    where = where if kind == "video" else ~where
    if len(features) != int(where.sum()):
        raise CdkitError(
            f"the prompts have {int(where.sum())} {kind} tokens but the {kind} encoder gives "
            f"{len(features)} features; prompts and {kind}s do not belong together"
        )
    whole = features.new_zeros(len(where), features.shape[-1]) if before is None else before
    return whole.index_put((where,), features)


def _text_of(
    attached: AttachedMethod, branch: Branch, given: dict[str, Any], name: str
) -> dict[str, Any]:
    """The branch's question for an encoder that reads it, as arguments; padded on the right."""
    if given.get(name) is None:
        return {}
    ids, mask_name = given[name], name.replace("input_ids", "attention_mask")
    mask = given.get(mask_name)
    token_mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    tokenizer = getattr(attached.processor, "qformer_tokenizer", None)
    before = [tuple(row[own].tolist()) for row, own in zip(ids, token_mask, strict=True)]
    texts = [rewritten_text(text, branch, tokenizer) for text in before]
    if texts == before:
        return {}
    length = max(len(text) for text in texts)
    padded = [list(text) + [0] * (length - len(text)) for text in texts]
    masks = [[1] * len(text) + [0] * (length - len(text)) for text in texts]
    return {
        name: torch.tensor(padded, dtype=ids.dtype, device=ids.device),
        mask_name: torch.tensor(masks, device=ids.device),
    }
