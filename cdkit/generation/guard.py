"""The rule for removed candidates: never an arbitrary token, where no plausible one is left."""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from cdkit.errors import PromptError
from cdkit.generation.attached_engine import Peaks
from cdkit.methods.method import Method, kind_of

SPOILT = (
    "the logits processors make NaN of logits that are numbers; check the processors that generate "
    "was given"
)


class GuardedProcessors(LogitsProcessorList):
    """The user's processors and warpers; what they leave is checked before a token is chosen.

    A row that has finished is left alone, and so is a beam that dies while another beam of its
    sample lives: its candidates are at -inf, so that none of them is chosen.
    """

    def __init__(
        self,
        processors: LogitsProcessorList,
        *,
        method: Method,
        original: Callable[[], Float[Tensor, "rows vocab"] | None],
        peaks: Callable[[], Peaks | None],
        finished: Callable[[Int[Tensor, "rows tokens"]], Bool[Tensor, " rows"]],
        prompt_length: int,
        beams: int,
        prompts: int,
    ) -> None:
        super().__init__(processors)
        self._method, self._original, self._peaks = method, original, peaks
        self._finished = finished
        self._prompt_length, self._beams, self._prompts = prompt_length, beams, prompts

    def __call__(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        scores: Float[Tensor, "rows vocab"],
        **kwargs: Any,
    ) -> Float[Tensor, "rows vocab"]:
        processed: Callable[..., Any] = super().__call__
        left: Tensor = processed(input_ids, scores, **kwargs)
        # one reduction, and one wait for the device, tell of what is removed and what is no number
        best, peaks = left.amax(dim=-1), self._peaks()
        troubled = best.isneginf() | best.isnan()
        if peaks is not None:
            troubled = troubled | ~peaks.valid.to(left.device)
        if not bool(troubled.any()):
            return left
        finished = self._finished(input_ids)
        each = max(1, len(left) // self._prompts)
        if peaks is not None:
            counted = ~finished.to(peaks.valid.device)
            check_numbers(self._method, peaks, counted, rows_per_prompt=each)
        spoilt = best.isnan() & ~finished
        step = input_ids.shape[1] - self._prompt_length
        if bool(spoilt.any()):
            raise self._error(spoilt, step, each, lambda row: SPOILT)
        empty = best.isneginf()
        original = self._original()
        constraint = self._method.constraint
        falls_back = constraint is not None and constraint.on_empty == "original"
        if falls_back and original is not None:
            original = original.to(left)
            if self._beams > 1:  # beam search hands its processors log-probabilities
                original = original.log_softmax(dim=-1)
            again = processed(input_ids, original, **kwargs)
            left = torch.where(empty[:, None], again, left)
            empty = torch.isneginf(left).all(dim=-1)
        lost = empty & ~finished
        if self._beams > 1:
            groups = empty.view(-1, self._beams).all(dim=1, keepdim=True)
            lost = lost & groups.expand(-1, self._beams).reshape(-1)
        if bool(lost.any()):

            def reason(row: int) -> str:
                removed = scores[row].isneginf()  # before the processors: by combiner or constraint
                cut = original is not None and bool((removed & original[row].isfinite()).any())
                return self._removed(cut=cut)

            raise self._error(lost, step, each, reason)
        return left

    def _error(
        self,
        rows: Bool[Tensor, " rows"],
        step: int,
        rows_per_prompt: int,
        reason: Callable[[int], str],
    ) -> PromptError:
        return prompt_error(
            f"{self._method.name}, step {step}", rows, reason, rows_per_prompt=rows_per_prompt
        )

    def _removed(self, *, cut: bool) -> str:
        combiner, loop, constraint = (
            self._method.combiner,
            self._method.loop,
            self._method.constraint,
        )
        active = constraint if constraint is not None and not constraint.is_identity else None
        kept = "there is" if active is None else f"{active.description} keeps"
        if cut and active is None:
            kept = f"{kind_of(loop or combiner)} keeps"
        advice = ["ask less of the logits processors"]
        if cut and (constraint is None or constraint.on_empty == "raise"):
            advice = ["on_empty='original' falls back to the original logits there"]
            if constraint is None:
                advice = ["a constraint with on_empty='original' falls back to the original logits"]
        if cut and active is not None and active.advice and active.on_empty == "raise":
            advice = [active.advice, *advice]
        if cut and loop is not None and loop.advice:
            advice = [loop.advice, *advice]
        return f"the logits processors remove every token that {kept}; {', or '.join(advice)}"


def prompt_error(
    where: str,
    rows: Bool[Tensor, " rows"],
    reason: Callable[[int], str],
    *,
    rows_per_prompt: int = 1,
) -> PromptError:
    """The error of the rows that are True: its message is about the first of them.

    Args:
        where: What begins the message, such as the method and the step.
        rows: The rows that cannot go on.
        reason: What happened in a row, by its number.
        rows_per_prompt: How many rows, such as beams, belong to each prompt.
    """
    troubled = [int(row) for row in rows.nonzero()[:, 0]]
    first = {row // rows_per_prompt: row for row in reversed(troubled)}
    reasons = {prompt: reason(row) for prompt, row in sorted(first.items())}
    text = reasons[troubled[0] // rows_per_prompt]
    return PromptError(
        f"{where}, row {troubled[0]}: {text}",
        {prompt: f"{where}: {own}" for prompt, own in reasons.items()},
    )


def check_numbers(
    method: Method,
    peaks: Peaks,
    counted: Bool[Tensor, " rows"] | None = None,
    *,
    rows_per_prompt: int = 1,
) -> None:
    """Raise where logits hold NaN, or infinities that cannot be.

    Args:
        method: That is attached.
        peaks: Of the step.
        counted: The rows that matter; None for all.
        rows_per_prompt: How many rows, such as beams, belong to each prompt.

    Raises:
        PromptError: It names the branch, and the prompts whose rows they are.
    """
    wrong = ~peaks.valid if counted is None else ~peaks.valid & counted
    if not bool(wrong.any()):
        return

    def reason(row: int) -> str:
        for branch, peak in zip(peaks.branches, peaks.logits[:, row].tolist(), strict=True):
            if not math.isfinite(peak):
                what = "NaN" if math.isnan(peak) else "infinite"
                return (
                    f"the model's logits are not numbers ({what}) in the {branch} branch; check "
                    "its weights, its pixel_values and its dtype (float16 overflows where bfloat16 "
                    "and float32 do not)"
                )
        return (
            "the combined logits are not numbers, though the largest logit of every branch is; use "
            "a smaller alpha, and check the model for logits of -inf"
        )

    raise prompt_error(method.name, wrong, reason, rows_per_prompt=rows_per_prompt)


class RecordingCriteria(StoppingCriteriaList):
    """The user's stopping criteria, remembering which rows they have stopped."""

    def __init__(self, criteria: StoppingCriteriaList) -> None:
        super().__init__(criteria)
        self.stopped: Bool[Tensor, " rows"] | None = None

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        done: Tensor = super().__call__(input_ids, scores, **kwargs)
        if self.stopped is not None and self.stopped.shape == done.shape:
            self.stopped = self.stopped | done
        else:
            self.stopped = done
        return done


def top_continuations(inner: Callable[..., Any], **kwargs: Any) -> Any:
    """Beam sampling's draw, where fewer candidates are left than Hugging Face draws.

    It draws without replacement, and torch's multinomial makes arbitrary indices up where it runs
    out of candidates: there all that are left are taken, the best first, as beam search does.
    """
    scores: Tensor = kwargs["accumulated_log_probs"]
    few = (scores.softmax(dim=-1) > 0).sum(dim=-1) < kwargs["beams_to_keep"]
    if not kwargs["do_sample"] or not bool(few.any()):
        return inner(**kwargs)
    valid = scores.masked_fill(
        few[:, None], 0
    )  # rows that are not drawn from still must be drawable
    drawn = inner(**kwargs | {"accumulated_log_probs": valid})
    taken = inner(**kwargs | {"do_sample": False})
    return tuple(
        torch.where(few.view(-1, *[1] * (draw.ndim - 1)), take, draw)
        for draw, take in zip(drawn, taken, strict=True)
    )
