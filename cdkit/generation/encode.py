"""The image encoder with a method on: the images of distorted branches beside the originals."""

from collections.abc import Callable
from typing import Any

import torch

from cdkit.branches.rewritten_prompts import rewritten_text
from cdkit.generation.arguments import arguments
from cdkit.generation.attached_engine import AttachedEngine
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.method import ORIGINAL, Branch


def encode_images(
    engine: AttachedEngine,
    encode: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """The encoder's output for the original images, untouched.

    The features of distorted branches are kept in the session: the encoder runs once more for each
    branch that changes pixels, or the text that the encoder reads.
    """
    output = encode(*args, **kwargs)
    attached, session = engine.attached, engine.session
    given = arguments(encode, *args, **kwargs) if args else kwargs
    if session is None or given.get("pixel_values") is None:
        return output
    adapter = attached.adapter
    session.deepstack[ORIGINAL] = adapter.deepstack_features(output)
    for branch in attached.branches:
        changed = {}
        if branch.prompt and adapter.encoder_text is not None:
            changed = _text_of(attached, branch, given, adapter.encoder_text)
        if branch.pixel:
            assert session.pixels is not None
            pixels = session.distorted_pixels(branch, session.pixels)
            if session.in_order:
                changed["pixel_values"] = adapter.join_pixels(attached.model, pixels, given)
            else:
                changed |= adapter.join_values(attached.model, pixels, given)
        if changed:
            distorted = encode(**given | changed)
            features = adapter.features(distorted)
            session.features[branch.name] = adapter.placed_features(attached.model, features)
            session.deepstack[branch.name] = adapter.deepstack_features(distorted)
    return output


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
