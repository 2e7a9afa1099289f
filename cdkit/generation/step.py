"""The forward whose logits `generate` reads: all branches go in, combined logits come out."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.branches.batch import BranchedBatch
from cdkit.branches.cache import BranchedCache, given_cache
from cdkit.errors import CdkitError
from cdkit.functional.logits import scale_difference
from cdkit.generation.compatibility import check_arguments, check_eval, check_no_grad, refuse_split
from cdkit.generation.engine import Call, Engine, Forward, arguments
from cdkit.generation.opening import open_session
from cdkit.generation.trace import FREE, Step
from cdkit.interfaces.schedule import Signals
from cdkit.methods.method import ORIGINAL


def read(engine: Engine, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """Call the model's forward with all branches' rows and combine the logits."""
    with engine.lock:
        return _read(engine, forward, *args, **kwargs)


def _read(engine: Engine, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    given = arguments(forward, *args, **kwargs)
    check_eval(engine.model, engine.method)
    check_no_grad(engine.method)
    if given.get("return_dict") is False:
        raise CdkitError("return_dict=False is not supported with a method attached; leave it out")
    opened = engine.session is None
    plain = engine.session is None or engine.session.plain
    if opened and isinstance(given_cache(given), BranchedCache):
        _check_continuation(engine, given)
    elif opened:
        _open_plain(engine, given)
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
        if opened:
            engine.session = None
    if plain:
        engine.last_original = None  # read by what surrounds generate alone
    return output


def read_outer(engine: Engine, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """Note the prompts of a plain call of a model whose inner language model is the reader."""
    with engine.lock:
        _open_plain(engine, arguments(forward, *args, **kwargs))
        try:
            return forward(*args, **kwargs)
        finally:
            engine.session = None


def _open_plain(engine: Engine, given: dict[str, Any]) -> None:
    config: Any = engine.model.config
    engine.trace.steps.clear()
    engine.session = open_session(engine, given, defaults=[config], plain=True)


def _check_continuation(engine: Engine, given: dict[str, Any]) -> None:
    """A plain call that goes on with a cache that holds all branches."""
    check_arguments(given, [engine.model.config], engine.method)
    ids = given.get("input_ids")
    if ids is not None and ids.shape[1] > 1 and engine.method.whole_prompt_parts:
        refuse_split(engine.method, f"a cache and {ids.shape[1]} more tokens in one call")


def _combined(
    engine: Engine, call: Call, logits: Float[Tensor, "rows columns vocab"], *, every_column: bool
) -> Float[Tensor, "original_rows _ vocab"]:
    """Of every column, or of the last alone: some models hand out more than `generate` reads."""
    batch = call.batch
    if batch is None:
        raise CdkitError(
            f"the decoder of {type(engine.model).__name__} was not called by its forward; the "
            f"adapter of {engine.method.name} does not fit this model"
        )
    if not every_column:
        logits = logits[:, -1:]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    blocks = wide.chunk(len(batch.branches))
    original = blocks[0]
    if batch.seen < batch.layout.length:
        return original  # a chunk of the prompt: nobody reads these
    others = dict(zip(batch.branches[1:], blocks[1:], strict=True))
    readout = engine.method.readout
    for name, hidden in call.readouts.items():
        norm = readout is None or readout.norm
        read_out = engine.adapter.logits(engine.model, hidden[: batch.rows], norm=norm)
        others[name] = read_out[:, None].to(wide)
    columns = original.shape[1]
    flat = {name: block.flatten(0, 1) for name, block in {ORIGINAL: original, **others}.items()}
    first = flat.pop(ORIGINAL)
    scaled = _scaled(engine, call, batch, first, flat) if engine.method.schedules else flat
    combined, batch.states["combiner"] = engine.method.combine(
        first, scaled, step=batch.step, state=batch.states.get("combiner", {})
    )
    batch.step += 1
    engine.last_original = first
    engine.last_weights = None if call.seen is None else call.seen.last_weights
    wanted = engine.trace.wanted
    if "last_logits" in wanted:
        call.step.logits, call.step.combined = {ORIGINAL: first, **flat}, combined
        engine.trace.steps[:] = [call.step] if wanted <= FREE else engine.trace.steps
    if "logits" in wanted:
        call.step.logits = {ORIGINAL: first.clone()} | {k: v.clone() for k, v in flat.items()}
        call.step.combined = combined.clone()
    if wanted - FREE:
        engine.trace.steps.append(call.step)
    return combined.view(batch.rows, columns, -1)


def _scaled(
    engine: Engine,
    call: Call,
    batch: BranchedBatch,
    original: Float[Tensor, "rows vocab"],
    others: Mapping[str, Float[Tensor, "rows vocab"]],
) -> dict[str, Float[Tensor, "rows vocab"]]:
    """The distorted logits moved towards the original ones: alpha times what the schedules say."""
    signals = _signals(call, original)
    factor = original.new_ones(original.shape[0])
    for index, schedule in enumerate(engine.method.schedules):
        place = f"schedules.{index}"
        scale, batch.states[place] = schedule.scale(
            signals, step=batch.step, state=batch.states.get(place, {})
        )
        factor = factor * scale.to(factor)
    if engine.trace.wanted:
        call.step.alpha_scale = factor.clone()
    return {name: scale_difference(original, other, factor) for name, other in others.items()}


def _signals(call: Call, original: Float[Tensor, "rows vocab"]) -> Signals:
    seen = call.seen
    if seen is None or not seen.image_logits:
        return Signals(original, None, None)
    # layers may stand on several devices
    logits = torch.stack([x.to(original.device) for x in seen.image_logits]).mean(0)
    mass = torch.stack([x.sum(-1).to(original.device) for x in seen.image_weights]).mean(0)
    return Signals(original, logits, mass)


def _check_alignment(engine: Engine, call: Call, keep: int | Tensor, columns: int) -> None:
    """In a plain call each column's logits need the same token in every branch."""
    last = columns
    if isinstance(keep, Tensor):  # these columns; the first of them stands so far from the end
        last = int((call.columns - keep % call.columns).max())
    if last == 1:
        return  # what generate reads: the last token's logits, whatever stands before it
    if call.readouts:
        raise CdkitError(
            f"{engine.method.name} reads inner layers at the last token only; pass logits_to_keep=1"
        )
    if last > call.aligned:
        raise CdkitError(
            f"{engine.method.name} changes the prompt: only its last {call.aligned} tokens stand "
            f"in every branch, but logits of the last {last} were asked for; pass logits_to_keep"
        )
