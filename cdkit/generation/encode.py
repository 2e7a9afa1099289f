"""The image encoder with a method on: the images of distorted branches beside the originals."""

from collections.abc import Callable
from typing import Any

import torch

from cdkit.branches.rewritten_prompts import rewritten_text
from cdkit.generation.arguments import arguments
from cdkit.generation.attached_engine import AttachedEngine
from cdkit.generation.prompts import Session
from cdkit.interfaces.pixel_source import PixelSource
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.method import ORIGINAL, Branch


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
    session.keep_deepstack(ORIGINAL, adapter.deepstack_features(output), source.kind)
    for branch in attached.branches:
        changed = {}
        if branch.prompt and adapter.encoder_text is not None:
            changed = _text_of(attached, branch, given, adapter.encoder_text)
        if branch.pixel:
            pixels = session.distorted_pixels(branch, source.kind)
            changed[source.argument] = source.join(attached.model, pixels, given)
        if changed:
            distorted = encode(**given | changed)
            session.keep_features(branch.name, adapter.features(distorted), source.kind)
            deepstack = adapter.deepstack_features(distorted)
            session.keep_deepstack(branch.name, deepstack, source.kind)


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
