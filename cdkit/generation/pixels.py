"""The pixels of prompts: whether each image, or video, has some, and which they are."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import Any, NamedTuple

from jaxtyping import Bool, Int
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.generation.call_compatibility import setting
from cdkit.interfaces.adapter_lookup import HOW_TO_ADD
from cdkit.interfaces.model_adapter import UnmatchedPixelsError
from cdkit.interfaces.pixel_source import Kind, PixelSource
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.part_kinds import kind_of


def check_videos(attached: AttachedMethod, given: Mapping[str, Any]) -> None:
    """Raise where a prompt comes with a video, and the adapter does not know the family's.

    Args:
        attached: The method on its model.
        given: The arguments of a call, by name.
    """
    if attached.adapter.videos is not None:
        return
    for name, value in given.items():
        if "video" not in name or value is None:
            continue
        model: Any = attached.model
        takes = "pixel_values_videos" in signature(model.forward).parameters
        why = "its adapter knows its images alone" if takes else "it takes none"
        raise CdkitError(
            f"{attached.method.name} cannot run with {name}={type(value).__name__}: videos are not "
            f"supported with {type(model).__name__}, {why}. docs/models.md says which families "
            "read videos; pass images, or generate without cdkit.attach"
        )


class Kinds(NamedTuple):
    """Which images of the prompts are those of videos."""

    kinds: Sequence[Kind]
    """Of each image, in their order."""
    is_video: Bool[Tensor, "samples tokens"] | None
    """Which image tokens are those of videos; None where none is."""


def kinds_in(
    attached: AttachedMethod,
    given: Mapping[str, Any],
    defaults: Sequence[object] | None,
    ids: Int[Tensor, "samples tokens"],
    image_index: Int[Tensor, "samples tokens"],
) -> Kinds:
    """Tell videos from images, after refusing what the model cannot do with them.

    Args:
        attached: The method on its model.
        given: The arguments of a call, by name.
        defaults: The configs behind those of `generate`; None for a plain call.
        ids: The prompts' tokens.
        image_index: The number of each token's image in its row; -1 for text and padding.
    """
    videos = attached.adapter.videos
    if videos is None:
        check_videos(attached, given)
        return Kinds(kinds_of(image_index, None), None)
    is_video = videos.is_video(attached.model, ids) & (image_index >= 0)
    if not bool(is_video.any()):
        return Kinds(kinds_of(image_index, None), None)
    if not videos.own_token:
        if bool(((image_index >= 0) & ~is_video).any()):
            raise CdkitError(
                f"{type(attached.model).__name__} cannot take images and videos in one call: it "
                "has one token for both, and puts the features of either in the places of all. "
                "Give them in calls of their own"
            )
        if defaults is not None and attached.method.loop is None:
            _check_rows(attached, given, defaults)
    return Kinds(kinds_of(image_index, is_video), is_video)


def _check_rows(
    attached: AttachedMethod, given: Mapping[str, Any], defaults: Sequence[object]
) -> None:
    """Raise where `generate` would repeat the features of videos, and cannot find their tokens."""
    for name in ("num_beams", "num_return_sequences"):
        rows = setting(name, given, defaults) or 1
        if rows > 1:
            raise CdkitError(
                f"{type(attached.model).__name__} cannot generate from a video with {name}={rows}: "
                "it has the token of images for it, so Hugging Face's generate finds none to "
                f"repeat. Leave {name} at 1"
            )


def kinds_of(
    image_index: Int[Tensor, "samples tokens"], is_video: Bool[Tensor, "samples tokens"] | None
) -> list[Kind]:
    """Of each image of the prompts, in their order, whether it is one of a video."""
    if is_video is None:
        images: list[Kind] = ["image"]
        return images * int((image_index.amax(dim=1) + 1).sum())
    kinds = list[Kind]()
    for index, flags in zip(image_index.tolist(), is_video.tolist(), strict=True):
        of_row = dict(zip(index, flags, strict=True))
        for number in range(max(index) + 1):
            kinds.append("video" if of_row[number] else "image")
    return kinds


def check_pixels(
    attached: AttachedMethod,
    given: dict[str, Any],
    image_index: Int[Tensor, "samples tokens"],
    is_video: Bool[Tensor, "samples tokens"] | None,
) -> None:
    """Raise where the prompts have image tokens, but nothing to put in their place."""
    encoded = given.get("mm_encoder_outputs")
    is_image = image_index >= 0
    for source in attached.sources:
        where = is_image
        if is_video is not None:
            where = is_video if source.kind == "video" else is_image & ~is_video
        elif source.kind == "video":
            continue
        rows = where.any(dim=1).nonzero()[:, 0].tolist()
        if not rows:
            continue
        if given.get(source.argument) is None:
            _refuse_missing(attached, given, source, rows[0])
        elif encoded is not None and is_video is not None:
            raise CdkitError(
                f"{source.argument} came with mm_encoder_outputs: pass images and videos either "
                "both as pixels or both encoded"
            )
        for name in source.required:
            if given.get(name) is None:
                raise CdkitError(
                    f"{type(attached.model).__name__} needs {name} beside {source.argument}, as "
                    "its processor returns it: pass all of the processor's output on"
                )


def _refuse_missing(
    attached: AttachedMethod, given: dict[str, Any], source: PixelSource, row: int
) -> None:
    """Raise where pixels of one kind are missing, unless what is encoded of them is there."""
    for branch in attached.branches:
        if branch.pixel:
            raise CdkitError(f"branch {branch.name!r} distorts pixels: pass {source.argument}")
    if given.get("mm_encoder_outputs") is None:
        raise CdkitError(
            f"prompt {row} has {source.kind} tokens, but no {source.kind} came with it, and "
            f"{attached.method.name} would act on the placeholders: pass {source.argument}, with "
            "every turn of a conversation"
        )


def pixels_of_images(
    attached: AttachedMethod,
    given: dict[str, Any],
    image_index: Int[Tensor, "samples tokens"],
    kinds: Sequence[Kind],
) -> tuple[Sequence[Tensor] | None, frozenset[Kind]]:
    """The pixels of each image, and of which kind their order is not known.

    None where there are none, or the adapter cannot assign them to images and no branch changes
    pixels. Without them the digest that replaces a sample id covers the prompt's tokens alone.
    """
    came = [source for source in attached.sources if given.get(source.argument) is not None]
    if not came:
        return None, frozenset()
    counts = list[int]()
    for row in image_index.tolist():
        found = Counter(row)
        counts += [found[number] for number in range(max(row) + 1)]
    split, unordered = dict[Kind, Iterator[Tensor]](), set[Kind]()
    for source in came:
        tokens = [n for n, kind in zip(counts, kinds, strict=True) if kind == source.kind]
        if source.kind == "video" and not tokens:
            raise CdkitError(
                f"{source.argument} came with prompts that have no video token; put a video "
                "placeholder into the prompt, or leave it out"
            )
        pixels, ordered = _split(attached, source, given, tokens)
        if pixels is None:
            return None, frozenset()
        if len(pixels) != len(tokens):
            raise CdkitError(
                f"the prompts have {len(tokens)} {source.kind}s but {len(pixels)} were passed, by "
                f"the {sum(tokens)} tokens that stand for them; pass one for each, and check that "
                "the processor's settings are those of this model"
            )
        split[source.kind] = iter(pixels)
        if not ordered:
            unordered.add(source.kind)
    return [next(split[kind]) for kind in kinds], frozenset(unordered)


def _split(
    attached: AttachedMethod, source: PixelSource, given: dict[str, Any], tokens: Sequence[int]
) -> tuple[Sequence[Tensor] | None, bool]:
    """The pixels of each image of one kind, and whether their order is known."""
    model = attached.model
    try:
        return source.split(model, given, tokens), True
    except UnmatchedPixelsError as error:
        reason = error
    moving = [d for branch in attached.branches for d in branch.pixel if not d.elementwise]
    if not moving:
        try:
            return source.split_values(model, given, tokens), False
        except UnmatchedPixelsError:
            pass  # why their order is not known says more
    if any(branch.pixel for branch in attached.branches):
        why = "which are an image's is not known"
        if moving:
            why = f"{kind_of(moving[0])} needs them as pictures"
        raise CdkitError(
            f"{attached.method.name} changes pixels, but {why}: {reason}; use a method that "
            f"changes none, or write an adapter. {HOW_TO_ADD}"
        )
    return None, True
