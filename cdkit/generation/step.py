"""The forward whose logits `generate` reads: all branches go in, combined logits come out."""

from typing import Any

import torch

from cdkit.errors import CdkitError
from cdkit.generation.arguments import Forward, arguments
from cdkit.generation.call_compatibility import check_alignment, refuse_adapter, refuse_running
from cdkit.generation.combine import Noted, combine_call
from cdkit.generation.engine import Call, Engine
from cdkit.generation.plain_call import check_last_column, open_plain
from cdkit.generation.trace import Step


def forward_step(engine: Engine, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """Call the model's forward with all branches' rows and combine the logits.

    Args:
        engine: The method on this model. Without a session this is a plain call of the model, which
            treats the tokens of a row as one prompt.
        forward: The model's forward without the method.
        *args: The positional arguments of the call.
        **kwargs: The named arguments of the call.

    Returns:
        The model's output with the combined logits of the original rows.
    """
    with engine.lock:
        if not engine.is_attached:
            return engine.attached.lm_module.forward(*args, **kwargs)
        return _forward_step(engine, forward, *args, **kwargs)


def _forward_step(engine: Engine, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    given = kwargs if not args else arguments(forward, *args, **kwargs)
    method, session = engine.attached.method, engine.session
    if engine.attached.model.training or torch.is_grad_enabled():
        refuse_running(engine.attached.model, method)
    if given.get("return_dict") is False:
        raise CdkitError("return_dict=False is not supported with a method attached; leave it out")
    plain = session is None or session.plain
    if session is None:
        open_plain(engine, given)
    if "labels" in kwargs:
        kwargs["labels"] = None  # they are None or all -100, which means no loss
    engine.call = call = Call(Step(), given.get("input_ids"))
    try:
        output = forward(*args, **kwargs)
        state, logits = call.state, output.logits
        if state is None:
            refuse_adapter(engine.attached)
        if plain:
            check_alignment(
                method,
                given.get("logits_to_keep", 0),
                columns=call.columns,
                returned=logits.shape[1],
                aligned=call.aligned,
                reads_layers=bool(call.readouts) or engine.attached.image_readout is not None,
            )
        else:  # some models hand out more columns than `generate` reads
            logits = logits if logits.shape[1] == 1 else logits[:, -1:]
        plan, record = state.plan, call.record
        if state.seen[0] < plan.layout.length:
            output.logits = logits[: plan.rows]  # a chunk of the prompt: no token is chosen
        else:
            assert record is not None
            noted = Noted(
                call.readouts,
                record.image_logits,
                record.image_weights,
                record.last_weights,
                record.stream_heads,
                call.images,
            )
            output.logits = combine_call(engine, logits, plan.branches, state, noted, call.step)
    finally:
        engine.call = None
        if session is None:
            engine.session = None
    if plain:
        check_last_column(engine, output.logits.shape[1])
        engine.last_original = None  # read by what surrounds generate alone
    return output
