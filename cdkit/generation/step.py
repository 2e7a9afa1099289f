"""The forward whose logits `generate` reads: all branches go in, combined logits come out."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.branches.cache import BranchedCache, given_cache
from cdkit.branches.state import BranchState
from cdkit.errors import CdkitError
from cdkit.functional.logits import scale_difference
from cdkit.generation.arguments import Forward, arguments
from cdkit.generation.compatibility import check_arguments, refuse_running, refuse_split
from cdkit.generation.engine import Call, Engine
from cdkit.generation.prompts import open_session
from cdkit.generation.trace import FREE, Step
from cdkit.interfaces.schedule import Signals
from cdkit.methods.method import ORIGINAL


def forward_step(engine: Engine, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """Call the model's forward with all branches' rows and combine the logits.

    Args:
        engine: The method on this model. Without a session this is a plain call of the model: its
            tokens are one prompt's.
        forward: The model's own forward.
        *args: What it was called with.
        **kwargs: The same, by name.

    Returns:
        The model's output with the combined logits of the original rows.
    """
    with engine.lock:
        return _forward_step(engine, forward, *args, **kwargs)


def _forward_step(engine: Engine, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    given = kwargs if not args else arguments(forward, *args, **kwargs)
    method, session = engine.attached.method, engine.session
    if engine.attached.model.training or torch.is_grad_enabled():
        refuse_running(engine.attached.model, method)
    if given.get("return_dict") is False:
        raise CdkitError("return_dict=False is not supported with a method attached; leave it out")
    plain = session is None or session.plain
    if session is None and isinstance(given_cache(given), BranchedCache):
        _check_continuation(engine, given)
    elif session is None:
        open_plain(engine, given)
    if "labels" in kwargs:
        kwargs["labels"] = None  # which ask for no loss, else they were refused
    engine.call = call = Call(Step())
    try:
        output = forward(*args, **kwargs)
        if plain:
            _check_alignment(engine, call, given.get("logits_to_keep", 0), output.logits.shape[1])
        output.logits = _combined(engine, call, output.logits, every_column=plain)
    finally:
        engine.call = None
        if session is None:
            engine.session = None
    if plain:
        engine.last_original = None  # read by what surrounds generate alone
    return output


def open_plain(engine: Engine, given: dict[str, Any]) -> None:
    """Note the prompts of a plain call of the model."""
    config: Any = engine.attached.model.config
    engine.trace.steps.clear()
    engine.session = open_session(engine.attached, given, defaults=[config], plain=True)


def _check_continuation(engine: Engine, given: dict[str, Any]) -> None:
    """A plain call that goes on with a cache that holds all branches."""
    method, config = engine.attached.method, engine.attached.model.config
    check_arguments(given, [config], method)
    ids = given.get("input_ids")
    if ids is not None and ids.shape[1] > 1 and method.whole_prompt_parts:
        refuse_split(method, f"a cache and {ids.shape[1]} more tokens in one call")


def _combined(
    engine: Engine, call: Call, logits: Float[Tensor, "rows columns vocab"], *, every_column: bool
) -> Float[Tensor, "original_rows _ vocab"]:
    """Of every column, or of the last alone: some models hand out more than `generate` reads."""
    attached, state, method = engine.attached, call.state, engine.attached.method
    if state is None:
        raise CdkitError(
            f"the decoder of {type(attached.model).__name__} was not called by its forward; the "
            f"adapter of {method.name} does not fit this model"
        )
    if not every_column:
        logits = logits[:, -1:]
    plan, wide = state.plan, logits.to(torch.promote_types(logits.dtype, torch.float32))
    blocks = wide.chunk(len(plan.branches))
    original = blocks[0]
    if state.seen[0] < plan.layout.length:
        return original  # a chunk of the prompt: no token is chosen from these
    others = dict(zip(plan.branches[1:], blocks[1:], strict=True))
    readout = method.readout
    for name, hidden in call.readouts.items():
        norm = readout is None or readout.norm
        read_out = attached.adapter.logits(attached.model, hidden[: plan.rows], norm=norm)
        others[name] = read_out[:, None].to(wide)
    columns = original.shape[1]
    first = original.flatten(0, 1)
    flat = {name: block.flatten(0, 1) for name, block in others.items()}
    scaled = _scaled(engine, call, state, first, flat) if method.schedules else flat
    combined, state.states["combiner"] = method.combine(
        first, scaled, step=state.step, state=state.states.get("combiner", {})
    )
    state.step += 1
    engine.last_original = first
    engine.last_weights = None if call.record is None else call.record.last_weights
    if engine.trace.wanted:
        _trace(engine, call, {ORIGINAL: first, **flat}, combined)
    return combined.view(plan.rows, columns, -1)


def _trace(
    engine: Engine,
    call: Call,
    logits: dict[str, Float[Tensor, "rows vocab"]],
    combined: Float[Tensor, "rows vocab"],
) -> None:
    """Keep what was asked for of this step."""
    trace, step = engine.trace, call.step
    if "last_logits" in trace.wanted:
        step.logits, step.combined = logits, combined
        trace.steps[:] = [step] if trace.wanted <= FREE else trace.steps
    if "logits" in trace.wanted:
        step.logits = {name: own.clone() for name, own in logits.items()}
        step.combined = combined.clone()
    if trace.wanted - FREE:
        trace.steps.append(step)


def _scaled(
    engine: Engine,
    call: Call,
    state: BranchState,
    original: Float[Tensor, "rows vocab"],
    others: Mapping[str, Float[Tensor, "rows vocab"]],
) -> dict[str, Float[Tensor, "rows vocab"]]:
    """The distorted logits moved towards the original ones: alpha times what the schedules say."""
    signals = _signals(call, original)
    factor = original.new_ones(original.shape[0])
    for index, schedule in enumerate(engine.attached.method.schedules):
        place = f"schedules.{index}"
        scale, state.states[place] = schedule.scale(
            signals, step=state.step, state=state.states.get(place, {})
        )
        factor = factor * scale.to(factor)
    if engine.trace.wanted:
        call.step.alpha_scale = factor.clone()
    return {name: scale_difference(original, other, factor) for name, other in others.items()}


def _signals(call: Call, original: Float[Tensor, "rows vocab"]) -> Signals:
    record = call.record
    if record is None or not record.image_logits:
        return Signals(original, None, None)
    # layers may stand on several devices
    logits = torch.stack([x.to(original.device) for x in record.image_logits]).mean(0)
    mass = torch.stack([x.sum(-1).to(original.device) for x in record.image_weights]).mean(0)
    return Signals(original, logits, mass)


def _check_alignment(engine: Engine, call: Call, keep: int | Tensor, columns: int) -> None:
    """In a plain call each column's logits need the same token in every branch."""
    method, last = engine.attached.method, columns
    if isinstance(keep, Tensor):  # these columns; the first of them stands so far from the end
        last = int((call.columns - keep % call.columns).max())
    if last == 1:
        return  # what generate reads: the last token's logits, whatever stands before it
    if call.readouts:
        raise CdkitError(
            f"{method.name} reads inner layers at the last token only; pass logits_to_keep=1"
        )
    if last > call.aligned:
        raise CdkitError(
            f"{method.name} changes the prompt: only its last {call.aligned} tokens stand "
            f"in every branch, but logits of the last {last} were asked for; pass logits_to_keep"
        )
