"""One traced call of `generate` -> the answer of one of its prompts, explained."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.explanation.explained import (
    AttentionMaps,
    ExplainedAnswer,
    PictureView,
    PositionLine,
)
from cdkit.explanation.explanation import Explanation
from cdkit.explanation.part_words import branch_inputs, described_parts, words_of
from cdkit.explanation.shown_pixels import picture_views
from cdkit.explanation.token_candidates import explained_steps
from cdkit.generation.trace import Step, Trace
from cdkit.generation.traced_inputs import TracedInputs
from cdkit.methods.method import Method

WHAT = ("logits", "image_attention", "mask", "inputs")
"""What a trace must record for a page with everything on it."""
AXES = ("time", "height", "width")
"""The axes of multimodal RoPE."""
STILL = 1e-9
"""Positions that differ by less count as equal."""


def end_tokens(model: Any) -> frozenset[int]:
    """The tokens that end an answer, as the model's generation config says."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return frozenset() if ends is None else frozenset(ends if isinstance(ends, list) else [ends])


def until_end(tokens: Sequence[int], ends: frozenset[int]) -> list[int]:
    """An answer up to its end token, that one included."""
    stop = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:stop])


def texts_of(processor: Any) -> Callable[[Sequence[int]], list[str]] | None:
    """Tokens -> the text of each, blanks included; None without a tokenizer."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        return None
    joins = _joins(tokenizer)

    def texts(ids: Sequence[int]) -> list[str]:
        special = set(tokenizer.all_special_ids)
        found = []
        for token, piece in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
            text = str(tokenizer.decode([token], skip_special_tokens=False))
            piece = str(piece)
            # of one token alone decoders drop the blank before it
            begins = piece.startswith(("\u2581", "\u0120")) or joins
            blank = " " if begins and token not in special and not text[:1].isspace() else ""
            found.append(blank + text)
        return found

    return texts


def _joins(tokenizer: Any) -> bool:
    """Whether the tokenizer puts blanks between all words, as those of whole words do."""
    ids = [i for i in range(min(len(tokenizer), 200)) if i not in set(tokenizer.all_special_ids)]
    some = ids[:2]
    if len(some) < 2:
        return False
    return " " in str(tokenizer.decode(some)).strip() and not any(
        " " in str(tokenizer.decode([i])).strip() for i in some
    )


def word_of(processor: Any) -> Callable[[int], str]:
    """The text of one token; its number without a tokenizer."""
    texts = texts_of(processor)
    if texts is None:
        return lambda token: f"token {token}"
    return lambda token: texts([token])[0]


def explained_answer(
    name: str,
    method: Method,
    trace: Trace,
    tokens: Sequence[int],
    *,
    row: int,
    sample: int,
    processor: Any,
    plain: Sequence[Float[Tensor, " vocab"]] | None,
    top: int,
    text: str,
    notes: Sequence[str] = (),
) -> ExplainedAnswer:
    """Put together what a trace holds of one answer.

    Args:
        name: What the page calls the method.
        method: The method.
        trace: Of its call; it has logits.
        tokens: The answer, with its end token.
        row: The answer's row in the trace.
        sample: Its prompt.
        processor: The model's; may be None.
        plain: As in `explained_steps`.
        top: As there.
        text: The answer as text.
        notes: What a reader must know.
    """
    columns, steps = explained_steps(
        method, trace.steps, tokens, row=row, plain=plain, top=top, word=word_of(processor)
    )
    inputs, more = trace.inputs, list(notes)
    used = trace.steps[: len(tokens)]
    maps = attention_maps(used, row, _image_tokens(inputs, sample))
    scaled = [step.alpha_scale for step in steps if step.alpha_scale is not None]
    if scaled:
        more.append(
            f"{name} has schedules: they multiply alpha by a factor from {min(scaled):.2g} to "
            f"{max(scaled):.2g} in this answer."
        )
    return ExplainedAnswer(
        name=name,
        summary=method.summary,
        text=text,
        columns=columns,
        branches=tuple(own.name for own in method.branches if own.name in columns),
        steps=steps,
        maps=maps,
        notes=tuple(more),
        parts=described_parts(method),
        given=branch_inputs(method, inputs, sample, texts_of(processor)),
        positions=position_lines(inputs, sample),
        contrastive=method.combiner.contrastive,
    )


def _image_tokens(inputs: TracedInputs | None, sample: int) -> int | None:
    return None if inputs is None else int((inputs.image_index[sample] >= 0).sum())


def attention_maps(steps: Sequence[Step], row: int, tokens: int | None) -> dict[str, AttentionMaps]:
    """Attention and masks of each branch, averaged over heads, of the row that predicts."""
    if not steps or not steps[0].image_attention:
        return {}
    found = {}
    for branch in steps[0].image_attention:
        attention = _stacked([step.image_attention[branch] for step in steps], row, tokens)
        mask = None
        if all(branch in step.mask for step in steps):
            cut = _stacked([step.mask[branch] for step in steps], row, tokens)
            mask = cut if cut.any() else None
        found[branch] = AttentionMaps(attention, mask)
    return found


def _stacked(
    steps: Sequence[Mapping[int, Tensor]], row: int, tokens: int | None
) -> Float[np.ndarray, "steps layers image"]:
    """(rows, heads, image), or (rows, heads, text, image) of which the last text row counts."""
    made = []
    for layers in steps:
        each = [layers[layer][row] for layer in sorted(layers)]
        rows = [own[:, -1] if own.ndim == 3 else own for own in each]
        means = [own[:, :tokens].float().mean(dim=0).cpu() for own in rows]
        made.append(torch.stack(means).numpy())
    return np.stack(made)


def position_lines(inputs: TracedInputs | None, sample: int) -> tuple[PositionLine, ...]:
    """How far the last token of the prompt is from each image token, before and after calibration.

    Returns:
        A line for each axis, and for each layer where the calibrator tells layers apart; none
        where nothing moves.
    """
    if inputs is None or not inputs.calibrated:
        return ()
    assert inputs.positions is not None
    on_image = inputs.image_index[sample] >= 0
    if not bool(on_image.any()):
        return ()
    last = int(inputs.token_mask[sample].nonzero()[-1])

    def ahead(positions: Float[Tensor, "..."]) -> Float[np.ndarray, "image axes"]:
        away = positions[last] - positions[on_image]
        found: Float[np.ndarray, "image axes"] = away.reshape(len(away), -1).cpu().numpy()
        return found

    ordinary = ahead(inputs.positions[sample])
    axes = AXES if ordinary.shape[1] == len(AXES) else ("",) * ordinary.shape[1]
    lines, seen = list[PositionLine](), list[Float[np.ndarray, "image axes"]]()
    for index, positions in enumerate(inputs.calibrated):
        moved = ahead(positions[sample])
        if any(np.abs(moved - other).max() < STILL for other in seen):
            continue
        seen.append(moved)
        layer = inputs.layers[index] if len(inputs.calibrated) > 1 else None
        for axis, name in enumerate(axes):
            lines.append(PositionLine(name, layer, ordinary[:, axis], moved[:, axis]))
    if all(np.abs(line.ordinary - line.calibrated).max() < STILL for line in lines):
        return ()
    return tuple(lines)


def prompt_text(inputs: TracedInputs | None, sample: int, processor: Any) -> str:
    """The prompt as the decoder gets it, image tokens counted."""
    texts = texts_of(processor)
    if inputs is None or texts is None:
        return ""
    ids = inputs.ids[sample][inputs.token_mask[sample]].tolist()
    image = set(inputs.ids[sample][inputs.image_index[sample] >= 0].tolist())
    return "".join(words_of(ids, image, texts)).strip()


def decoded(tokens: Sequence[int], processor: Any) -> str:
    """An answer as text, without special tokens; its numbers without a tokenizer."""
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "decode"):
        return ", ".join(map(word_of(processor), tokens))
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def explain_call(
    method: Method, trace: Trace, model: Any, processor: Any, *, row: int, top: int = 5
) -> Explanation:
    """Explain one answer of the latest call of an attachment.

    Args:
        method: The method that was attached.
        trace: What was recorded.
        model: The model, whose generation config says which tokens end an answer.
        processor: The model's; may be None.
        row: The answer, from 0.
        top: How many candidates of each column are shown.

    Raises:
        CdkitError: If the trace does not hold the logits of one answer's steps.
    """
    _check(method, trace, row)
    assert trace.sequences is not None
    tokens = trace.sequences[row, -len(trace.steps) :].tolist()
    tokens = until_end(tokens, end_tokens(model))
    sample = _prompt_of(row, trace)
    answer = explained_answer(
        method.name,
        method,
        trace,
        tokens,
        row=row,
        sample=sample,
        processor=processor,
        plain=None,
        top=top,
        text=decoded(tokens, processor),
    )
    views, notes = tuple[PictureView, ...](), tuple[str, ...]()
    if trace.inputs is not None:
        views, notes = picture_views(trace.inputs, sample, processor, {method.name: trace.inputs})
    return Explanation(
        model=model_name(model),
        prompt=prompt_text(trace.inputs, sample, processor),
        how="as the call of generate asked for",
        answers=(answer,),
        layers=layers_of(trace),
        shown_layers=None,
        views=views,
        notes=(*notes, *_missing(trace)),
    )


def _prompt_of(row: int, trace: Trace) -> int:
    """The prompt of an answer: with `num_return_sequences` a prompt has several, side by side."""
    if trace.inputs is None:
        return row
    assert trace.sequences is not None
    return row // (len(trace.sequences) // len(trace.inputs.ids))


def layers_of(trace: Trace) -> tuple[int, ...]:
    """The decoder's layers of which a trace has attention."""
    if not trace.steps or not trace.steps[0].image_attention:
        return ()
    indices = sorted(next(iter(trace.steps[0].image_attention.values())))
    return tuple(indices if trace.inputs is None else (trace.inputs.layers[i] for i in indices))


def model_name(model: Any) -> str:
    """The checkpoint's name on the hub, or its folder's; that of the class where it has none."""
    name = str(getattr(model.config, "name_or_path", ""))
    return (Path(name).name if Path(name).is_absolute() else name) or type(model).__name__


def _check(method: Method, trace: Trace, row: int) -> None:
    """Raise where the trace holds no answer to show."""
    if "logits" not in trace.wanted:
        raise CdkitError(
            f"show needs the logits of each step: attach with trace={WHAT!r}, or with some of "
            f"these; got trace={tuple(sorted(trace.wanted))!r}"
        )
    if method.loop is not None:
        raise CdkitError(
            f"{method.name} decides over several unfinished answers at once, so no step has the "
            "numbers of one answer: cdkit.explain shows what the plain model gives along it"
        )
    if not trace.steps or trace.sequences is None:
        raise CdkitError(
            "there is no answer to show: call model.generate in the block first. A plain call of "
            "the model chooses no token"
        )
    rows = len(next(iter(trace.steps[-1].logits.values())))
    if rows != len(trace.sequences) or len(trace.steps) > trace.sequences.shape[1]:
        raise CdkitError(
            f"the call has {rows} rows for {len(trace.sequences)} answers, as a beam search has, "
            "so no row belongs to one answer: use cdkit.explain(..., beams=5), which computes the "
            "numbers along the answer anew"
        )
    if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < rows:
        raise CdkitError(f"row must be in 0 .. {rows - 1}, the answers of the call, got {row!r}")


def _missing(trace: Trace) -> tuple[str, ...]:
    """What the page lacks because it was not recorded."""
    missing = [name for name in WHAT if name not in trace.wanted]
    if not missing:
        return ()
    return (f"Not recorded, so not shown: {', '.join(missing)} (trace={WHAT!r} records all).",)
