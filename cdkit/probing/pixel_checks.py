"""How pixels are taken apart, as an adapter says: held against the encoders of the model."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cdkit.generation.pixels import kinds_of
from cdkit.interfaces.model_adapter import ModelAdapter, UnmatchedPixelsError
from cdkit.interfaces.pixel_source import PixelSource, sources_of
from cdkit.probing.adapter_checks import Encoders, tokens_of_images, tokens_of_kinds
from cdkit.probing.promises import require, require_same, tolerance
from cdkit.probing.recorded_calls import RecordedCall
from cdkit.probing.stock_generate import Inputs


def check_pixels(adapter: ModelAdapter, model: Any, inputs: Inputs, encoders: Encoders) -> str:
    """Require that pixels survive splitting and joining, and are split as the model reads them.

    Args:
        adapter: The adapter under test.
        model: The stock model.
        inputs: Prompts, padded on the left.
        encoders: The calls of the encoders with their images and videos.

    Returns:
        Why the adapter does not know the order of an image's pixels, only which numbers are an
        image's; empty where it does.

    Raises:
        AssertionError: Where a promise is broken.
        UnmatchedPixelsError: Where the adapter cannot tell which numbers are which image's.
    """
    ids = inputs["input_ids"]
    index = adapter.image_index(model, ids)
    index = index.masked_fill(~inputs["attention_mask"].bool(), -1)
    is_video = tokens_of_kinds(adapter, model, ids, index)["video"]
    kinds, every = kinds_of(index, is_video), tokens_of_images(index)
    unordered = ""
    for source in sources_of(adapter):
        encoder = encoders.get(source.kind)
        if encoder is not None:
            counts = [n for n, kind in zip(every, kinds, strict=True) if kind == source.kind]
            unordered = _check_source(adapter, model, inputs, source, encoder, counts) or unordered
    return unordered


def _check_source(
    adapter: ModelAdapter,
    model: Any,
    inputs: Inputs,
    source: PixelSource,
    encoder: RecordedCall,
    counts: Sequence[int],
) -> str:
    """As `check_pixels`, of images or of videos."""
    given = {**encoder.arguments, **{n: value for n, value in inputs.items() if value is not None}}
    unordered, what = "", "pixels"
    try:
        images = source.split(model, given, counts)
    except UnmatchedPixelsError as error:
        unordered, what = str(error), "values"
        try:
            images = source.split_values(model, given, counts)
        except UnmatchedPixelsError:
            raise error from None  # why their order is not known says more
    one_each = len(images) == len(counts)
    require(one_each, adapter, f"split_{what} has an entry for each {source.kind}", len(images))
    if not unordered:
        shapes = [tuple(image.shape) for image in images]
        pictures = all(image.ndim == 4 and image.shape[1] == 3 for image in images)
        require(pictures, adapter, "an image's pixels are (frames, 3, height, width)", shapes)

    def joined(images: Sequence[Tensor]) -> Mapping[str, Tensor]:
        if unordered:
            return source.join_values(model, images, given)
        return {source.argument: source.join(model, images, given)}

    for name, found in joined(images).items():
        same = found.shape == given[name].shape
        require(same, adapter, f"join_{what} gives the shape of {name}", found.shape)
        require_same(found, given[name], adapter, f"join_{what} undoes split_{what}")
    if len(images) > 1:
        changed = joined([images[0].flip(-1) + 1, *images[1:]])
        _check_other_pixels(adapter, model, changed, source, encoder, counts[0])
    return unordered


def _check_other_pixels(
    adapter: ModelAdapter,
    model: Any,
    changed: Mapping[str, Tensor],
    source: PixelSource,
    encoder: RecordedCall,
    tokens: int,
) -> None:
    """Require that other pixels of the first image change its features, and no others."""
    owner, attribute = source.encoder(model)
    before = adapter.features(encoder.output)
    output = getattr(owner, attribute)(**{**encoder.arguments, **changed})
    moved = (adapter.features(output) - before).abs().amax(dim=-1) > tolerance(before)
    alone = bool(moved[:tokens].any()) and not bool(moved[tokens:].any())
    promise = "pixels of an image make the features of its own tokens, and of no others"
    require(alone, adapter, promise, moved.nonzero()[:, 0].tolist()[:8])
