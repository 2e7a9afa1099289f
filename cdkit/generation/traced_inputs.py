"""What each branch of a call was given, for traces: pixels, prompts, positions.

Everything here is computed again from the noted prompts, and only where a trace asks for it. It is
what the branches got: noise follows from (seed, sample id) alone, and all parts are pure functions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.branches.positions import rotated_axes
from cdkit.branches.rewritten_prompts import distorted_prompt
from cdkit.generation.image_grids import tokens_of_images
from cdkit.generation.prompts import Session
from cdkit.interfaces.model_adapter import UnmatchedPixelsError
from cdkit.interfaces.pixel_source import Kind
from cdkit.interfaces.token_grid import TokenGrid
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import ORIGINAL


@dataclass(frozen=True, eq=False)
class TracedInputs:
    """What the branches of one `generate` call were given. Images are those of all prompts, in
    their order; of a video each run of tokens is one."""

    ids: Int[Tensor, "samples tokens"]
    token_mask: Bool[Tensor, "samples tokens"]
    """False on padding."""
    image_index: Int[Tensor, "samples tokens"]
    """The number of a token's image in its row, from 0; -1 for text and padding."""
    kinds: tuple[Kind, ...]
    """Of each image whether it is one of a video."""
    pixels: Mapping[str, Sequence[Float[Tensor, "frames channels height width"]]]
    """Branch -> its images as the image encoder reads them, normalised as the processor does it:
    "original", and each branch that distorts pixels. Empty where `why_no_pixels` says why."""
    why_no_pixels: str
    """Why the pixels of an image are not known as pictures; empty where they are."""
    prompts: Mapping[str, tuple[tuple[int, ...], ...]]
    """Branch that has prompts of its own -> the token ids of each prompt, without padding."""
    grids: tuple[tuple[TokenGrid, ...] | str, ...]
    """Of each image where its tokens stand in its pixels; or why that is not known."""
    positions: Float[Tensor, "samples tokens *axes"] | None
    """The positions of the original prompts; None where the call split them."""
    calibrated: tuple[Float[Tensor, "samples tokens *axes"], ...]
    """What the calibrator makes of these positions: one for all layers or one for each layer with
    attention; empty without a calibrator."""
    layers: tuple[int, ...]
    """The numbers of the decoder's layers that have attention: a step counts these alone."""


def trace_inputs(
    attached: AttachedMethod, session: Session, given: Mapping[str, Any]
) -> TracedInputs:
    """Collect what the branches of a call were given.

    Args:
        attached: The method on its model.
        session: The call's prompts, after the call.
        given: The arguments of `generate`, by name.
    """
    pixels, why = _pixels(attached, session, given)
    positions, calibrated = None, tuple[Tensor, ...]()
    if session.positions is not None:
        expand = len(session.positions) // len(session.ids)
        own = session.positions[::expand]
        positions = rotated_axes(own).double()
        calibration = session.calibration(attached, 1)
        if calibration is not None:
            moved = calibration.offsets(own, session.image_index)
            calibrated = tuple(positions + offset for offset in moved.by_layer)
    return TracedInputs(
        ids=session.ids,
        token_mask=session.token_mask,
        image_index=session.image_index,
        kinds=tuple(session.kinds),
        pixels=pixels,
        why_no_pixels=why,
        prompts=_prompts(attached, session),
        grids=tuple(_grids(attached, session, given)),
        positions=positions,
        calibrated=calibrated,
        layers=attached.attention_layers,
    )


def _pixels(
    attached: AttachedMethod, session: Session, given: Mapping[str, Any]
) -> tuple[dict[str, Sequence[Tensor]], str]:
    """The images of the original branch and of those that distort them; or why they are unknown."""
    if not session.kinds:
        return {}, "the prompt has no image"
    if session.pixels is None or session.unordered:
        return {}, _why_unordered(attached, session, given)
    found: dict[str, Sequence[Tensor]] = {ORIGINAL: session.pixels}
    for branch in attached.every_branch:
        if branch.pixel:
            of_kind: dict[Kind, Iterator[Tensor]] = {
                kind: iter(session.distorted_pixels(branch, kind)) for kind in set(session.kinds)
            }
            found[branch.name] = [next(of_kind[kind]) for kind in session.kinds]
    return found, ""


def _why_unordered(attached: AttachedMethod, session: Session, given: Mapping[str, Any]) -> str:
    counts = tokens_of_images(session.layout)
    for source in attached.sources:
        if given.get(source.argument) is None:
            continue
        own = [n for n, kind in zip(counts, session.kinds, strict=True) if kind == source.kind]
        try:
            source.split(attached.model, given, own)
        except UnmatchedPixelsError as error:
            return str(error)
    return "the image came encoded, without pixels"


def _prompts(attached: AttachedMethod, session: Session) -> dict[str, tuple[tuple[int, ...], ...]]:
    tokenizer = getattr(attached.processor, "tokenizer", attached.processor)
    found = {}
    for branch in attached.every_branch:
        if not branch.prompt:
            continue
        rows = []
        for ids, mask, index in zip(
            session.ids, session.token_mask, session.image_index, strict=True
        ):
            prompt = distorted_prompt(
                ids[mask].tolist(),
                (index[mask] >= 0).tolist(),
                branch,
                adapter=attached.adapter,
                tokenizer=tokenizer,
            )
            rows.append(prompt.ids)
        found[branch.name] = tuple(rows)
    return found


def _grids(
    attached: AttachedMethod, session: Session, given: Mapping[str, Any]
) -> Iterator[tuple[TokenGrid, ...] | str]:
    """Each image's grids, pictures and videos asked for apart and put into the prompts' order."""
    counts, adapter, model = tokens_of_images(session.layout), attached.adapter, attached.model
    of_kind: dict[Kind, list[int]] = {"image": [], "video": []}
    for count, kind in zip(counts, session.kinds, strict=True):
        of_kind[kind].append(count)
    told: dict[Kind, Iterator[tuple[TokenGrid, ...] | str]] = {}
    for source in attached.sources:
        own, place = of_kind[source.kind], adapter.token_grids
        if source.kind == "video" and adapter.videos is not None:
            place = adapter.videos.token_grids
        if own and given.get(source.argument) is None:
            told[source.kind] = iter(["the image came encoded, without pixels"] * len(own))
        else:
            told[source.kind] = iter(place(model, given, own) if own else ())
    for kind in session.kinds:
        yield next(told[kind])
