"""All branches' logits of one step -> the logits that `generate` reads."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.functional.logits import scale_difference
from cdkit.generation.attached_engine import AttachedEngine, StepLogits
from cdkit.generation.readouts import image_logits, kept_of_images, readout_logits
from cdkit.generation.trace import Step
from cdkit.interfaces.combiner import State
from cdkit.interfaces.schedule import AlphaSchedule, Signals
from cdkit.methods.branch import ORIGINAL
from cdkit.methods.method import Method
from cdkit.methods.part_results import check_kept, tensor_and_state, unwritten
from cdkit.states.image_lens import ImageStates

States = Mapping[str, State]
"""What the combiner, each schedule and an image readout carry from step to step, by their place in
the method."""


@runtime_checkable
class SteppedState(Protocol):
    """The state of one batch, which changes with each step."""

    step: int
    states: States


class Noted(NamedTuple):
    """What a call of the decoder showed beside its logits."""

    readouts: Mapping[str, Float[Tensor, "all_rows hidden"]]
    """Layer that is read out -> its last row, of the original branch's rows first."""
    image_logits: Sequence[Float[Tensor, " rows"]]
    """A layer each: the attention logits of the row that predicts the next token, summed over the
    image and averaged over heads. Empty where no schedule reads them."""
    image_weights: Sequence[Float[Tensor, "rows image"]]
    """A layer each: that row's weights on the image, averaged over heads."""
    last_weights: Float[Tensor, "rows heads new columns"] | None
    """Attention weights of the last layer, where a loop reads them."""
    stream_heads: Float[Tensor, "rows heads value_dim"] | None = None
    """The original branch's heads as a stream readout weighs them; None where there is none."""
    images: ImageStates | None = None
    """The states of the original branch's image tokens, where an image readout reads them, in a
    call that ran the prompts."""


class Combined(NamedTuple):
    """One step's result."""

    logits: Float[Tensor, "rows vocab"]
    states: States
    alpha_scale: Float[Tensor, " rows"] | None
    """What the schedules multiplied alpha by; None without any."""


def combine_call(
    engine: AttachedEngine,
    logits: Float[Tensor, "all_rows columns vocab"],
    branches: Sequence[str],
    state: SteppedState,
    noted: Noted,
    step: Step,
) -> Float[Tensor, "rows columns vocab"]:
    """Combine the logits of one call, and advance `state` by one step.

    Args:
        engine: The method on this model; it keeps the latest original logits.
        logits: Logits of the rows of all branches, below each other.
        branches: The names of the branches, "original" first.
        state: The state of the batch.
        noted: What the call showed besides the logits.
        step: What is traced of the call.
    """
    attached = engine.attached
    wide = logits if logits.dtype.itemsize >= 4 else logits.float()
    rows, columns, vocab = wide.shape[0] // len(branches), *wide.shape[1:]
    raw = wide.reshape(len(branches), -1, vocab)
    original, *distorted = raw.unbind(0)
    others = dict(zip(branches[1:], distorted, strict=True))
    if noted.readouts:
        states = {name: hidden[:rows] for name, hidden in noted.readouts.items()}
        others |= readout_logits(attached, states, noted.stream_heads, original)
    kept = state.states.get("readout", {})
    if attached.image_readout is not None:
        kept = kept_of_images(attached, noted.images, kept)
        others |= image_logits(attached.image_readout, kept, original)
    made = combine(attached.method, original, others, noted, step=state.step, states=state.states)
    state.step, state.states = (
        state.step + 1,
        {**made.states, **({"readout": kept} if kept else {})},
    )
    engine.last_original, engine.last_weights = original, noted.last_weights
    is_original = made.logits is original and not distorted
    engine.last_logits = StepLogits(branches, raw, made.logits, is_original)
    if engine.trace.wanted:
        each = {ORIGINAL: original, **others}
        engine.trace.keep(step, each, made.logits, made.alpha_scale)
    return made.logits.view(rows, columns, vocab)


def combine(
    method: Method,
    original: Float[Tensor, "rows vocab"],
    others: Mapping[str, Float[Tensor, "rows vocab"]],
    noted: Noted,
    *,
    step: int,
    states: States,
) -> Combined:
    """Schedules, then the combiner, then the constraint; a pure function.

    Args:
        method: Whose parts they are.
        original: Next-token logits of the original branch, in float32 or better.
        others: Next-token logits of distorted branches and of layers that are read out, by name.
        noted: What the schedules may read.
        step: Counts from 0 at the first token.
        states: As the step before returned them; empty at the first one.
    """
    scale, new = None, dict[str, State]()
    if method.schedules:
        signals = _signals(original, noted)
        scale = original.new_ones(original.shape[0])
        for index, schedule in enumerate(method.schedules):
            place = f"schedules.{index}"
            factor, new[place] = _factor(schedule, signals, step, states.get(place, {}))
            scale = scale * factor.to(scale)
        others = {name: scale_difference(original, own, scale) for name, own in others.items()}
    logits, new["combiner"] = method.combine(
        original, others, step=step, state=states.get("combiner", {})
    )
    return Combined(logits, new, scale)


def _factor(
    schedule: AlphaSchedule, signals: Signals, step: int, state: State
) -> tuple[Float[Tensor, " rows"], State]:
    """One schedule's factor and new state, held to their shapes."""
    rows = signals.logits.shape[:1]
    seen = (signals.logits, signals.image_logits, signals.image_mass, *state.values())
    with unwritten(schedule, "scale", *seen):
        made: object = schedule.scale(signals, step=step, state=state)
    factor, new = tensor_and_state(schedule, "scale", made, rows, "check_schedule", what="factors")
    check_kept(schedule, new, rows[0], "the state")
    return factor, new


def _signals(original: Float[Tensor, "rows vocab"], noted: Noted) -> Signals:
    """What the schedules get."""
    if not noted.image_logits:
        return Signals(original, None, None)
    # layers may stand on several devices
    logits = torch.stack([x.to(original.device) for x in noted.image_logits]).mean(0)
    mass = torch.stack([x.sum(-1).to(original.device) for x in noted.image_weights]).mean(0)
    return Signals(original, logits, mass)
