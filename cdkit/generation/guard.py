"""The rule for removed candidates: never an arbitrary token, where no plausible one is left."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from cdkit.errors import PromptError
from cdkit.generation.attached_engine import StepLogits
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import kind_of

SPOILT = (
    "the logits processors make NaN of logits that are numbers; check the processors that generate "
    "was given"
)


@dataclass(eq=False)
class DeferredCheck:
    """The latest step of an answer whose guard asks after the last one."""

    input_ids: Int[Tensor, "rows tokens"]
    scores: Float[Tensor, "rows vocab"]
    """Before the processors."""
    left: Float[Tensor, "rows vocab"]
    """What they leave."""
    fine: Bool[Tensor, " rows"]
    """False where nothing is left, or some logits are no numbers."""
    kwargs: dict[str, Any]
    finished: Bool[Tensor, " rows"] | None = None
    """Rows that had ended before this step; None for none."""


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
        logits: Callable[[], StepLogits | None],
        finished: Callable[[Int[Tensor, "rows tokens"]], Bool[Tensor, " rows"]],
        prompt_length: int,
        beams: int,
        prompts: int,
        defers: bool,
    ) -> None:
        """`defers` says that the host does not ask the device at each step: `RecordingCriteria`
        stops an answer in trouble on the device, and `check` asks once, after it."""
        super().__init__(processors)
        self._method, self._original, self._logits = method, original, logits
        self._finished = finished
        self._prompt_length, self._beams, self._prompts = prompt_length, beams, prompts
        self._defers = defers
        self.deferred: DeferredCheck | None = None
        """What `check` will look at."""

    def __call__(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        scores: Float[Tensor, "rows vocab"],
        **kwargs: Any,
    ) -> Float[Tensor, "rows vocab"]:
        processed: Callable[..., Any] = super().__call__
        left: Tensor = processed(input_ids, scores, **kwargs)
        best, logits = left.amax(dim=-1), self._logits()
        if logits is not None and logits.is_original and not self:
            logits = None  # the same numbers again
        if self._defers:
            fine = best > -torch.inf  # neither is NaN
            if logits is not None:
                fine = fine & logits.valid().to(left.device)
            self.deferred = DeferredCheck(input_ids, scores, left, fine, kwargs)
            # whatever draws a token from a row must have something to draw
            return left.masked_fill(~fine[:, None], 0)
        # one number tells whether any of these is infinite or NaN
        sums = best
        if logits is not None:
            sums = sums + logits.raw.amax(dim=-1).sum(dim=0).to(left.device)
            if self:
                sums = sums + logits.combined.amax(dim=-1).to(left.device)
        if math.isfinite(float(sums if sums.numel() == 1 else sums.sum())):
            return left
        return self._examined(input_ids, scores, left, kwargs, self._finished(input_ids))

    def check(self) -> None:
        """Raise for a step that was in trouble, once the answer is there; waits for the device."""
        last, self.deferred = self.deferred, None
        if last is None or not bool((~last.fine).any()):
            return
        finished = last.finished
        if finished is None:
            finished = torch.zeros_like(last.fine)
        self._examined(last.input_ids, last.scores, last.left, last.kwargs, finished)

    def _examined(
        self,
        input_ids: Int[Tensor, "rows tokens"],
        scores: Float[Tensor, "rows vocab"],
        left: Float[Tensor, "rows vocab"],
        kwargs: dict[str, Any],
        finished: Bool[Tensor, " rows"],
    ) -> Float[Tensor, "rows vocab"]:
        """What may be chosen from, in a step of which some maximum is no number."""
        processed: Callable[..., Any] = super().__call__
        each, best, logits = max(1, len(left) // self._prompts), left.amax(dim=-1), self._logits()
        if logits is not None:
            counted = ~finished.to(logits.raw.device)
            check_numbers(self._method, logits, counted, rows_per_prompt=each)
        spoilt = best.isnan() & ~finished
        step = input_ids.shape[1] - self._prompt_length
        if bool(spoilt.any()):
            # beam search makes NaN of a row in which the method rules everything out
            ruled_out = [] if logits is None else logits.combined.isneginf().all(-1).tolist()
            raise self._error(
                spoilt,
                step,
                each,
                lambda row: self._none_left() if any(ruled_out[row : row + 1]) else SPOILT,
            )
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
                if bool(removed.all()):
                    return self._none_left()
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

    def _none_left(self) -> str:
        """The reason where nothing is left before the processors."""
        constraint, chooses = self._method.constraint, self._method.loop or self._method.combiner
        if constraint is None or constraint.is_identity:
            return f"{kind_of(chooses)} rules every token out; it must leave one at least"
        return (
            f"{constraint.description} and {kind_of(chooses)} rule every token out; they must "
            "leave one at least"
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
    logits: StepLogits,
    counted: Bool[Tensor, " rows"] | None = None,
    *,
    rows_per_prompt: int = 1,
) -> None:
    """Raise where logits hold NaN, or infinities that cannot be.

    Args:
        method: That is attached.
        logits: Of the step.
        counted: The rows that matter; None for all.
        rows_per_prompt: How many rows, such as beams, belong to each prompt.

    Raises:
        PromptError: It names the branch, and the prompts whose rows they are.
    """
    wrong = ~logits.valid() if counted is None else ~logits.valid() & counted
    if not bool(wrong.any()):
        return

    def reason(row: int) -> str:
        for branch, peak in zip(
            logits.branches, logits.raw[:, row].amax(dim=-1).tolist(), strict=True
        ):
            if not math.isfinite(peak):
                what = "NaN" if math.isnan(peak) else "infinite"
                return (
                    f"the model's logits are not numbers ({what}) in the {branch} branch; check "
                    "its weights, its pixel_values and its dtype (float16 overflows where bfloat16 "
                    f"and float32 do not){_or_parts(_changing(method, branch))}"
                )
        parts = [method.combiner, *method.schedules]
        parts += [] if method.readout is None else [method.readout]
        return (
            "the combined logits are not numbers, though the largest logit of every branch is; use "
            f"a smaller alpha, and check the model for logits of -inf{_or_parts(parts)}"
        )

    raise prompt_error(method.name, wrong, reason, rows_per_prompt=rows_per_prompt)


def _changing(method: Method, branch: str) -> list[object]:
    """The parts that may change a branch's logits: NaN can be theirs, and not the model's."""
    found: list[object] = [*method.interventions]
    found += [] if method.calibrator is None else [method.calibrator]
    found += [part for part in method.state_interventions if branch in part.branches]
    return found + [x for own in method.branches if own.name == branch for x in own.distortions]


def _or_parts(parts: Sequence[object]) -> str:
    names = dict.fromkeys(map(kind_of, parts))
    verb = "returns" if len(names) == 1 else "return"
    return f"; if they are sound, check what {' and '.join(names)} {verb}" if names else ""


class RecordingCriteria(StoppingCriteriaList):
    """The user's stopping criteria, remembering which rows they have stopped.

    They also stop an answer as soon as a step was in trouble of which the guard has not told yet.
    """

    def __init__(self, criteria: StoppingCriteriaList) -> None:
        super().__init__(criteria)
        self.stopped: Bool[Tensor, " rows"] | None = None
        self.guard: GuardedProcessors | None = None

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        done: Tensor = super().__call__(input_ids, scores, **kwargs)
        before = self.stopped
        if before is None or before.shape != done.shape:
            before, self.stopped = None, done
        else:
            self.stopped = before | done
        last = None if self.guard is None else self.guard.deferred
        if last is None:
            return done
        last.finished = before
        trouble = ~last.fine if before is None else ~(last.fine | before)
        return done | trouble.any()


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


def record_stopping(
    criteria: list[RecordingCriteria],
    made: Sequence[GuardedProcessors],
    tokenizer: Any,
    make: Callable[..., Any],
    /,
    **kwargs: Any,
) -> RecordingCriteria:
    """Put the stopping criteria of one call of `generate` in the place of its own.

    Args:
        criteria: Where they are kept.
        made: The guards of this call so far.
        tokenizer: The user's: Hugging Face does not pass it to a custom loop.
        make: How `generate` makes its criteria.
        **kwargs: What it makes them of.
    """
    criteria[:] = [RecordingCriteria(make(**kwargs | {"tokenizer": tokenizer}))]
    criteria[0].guard = made[-1] if made else None
    return criteria[0]
