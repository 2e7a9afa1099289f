"""Hugging Face's `generate` with a method on: its prompts noted, its processors guarded."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from cdkit.branches.method_cache import MethodCache
from cdkit.execution.static_cache import static_cache
from cdkit.generation.arguments import Forward
from cdkit.generation.attached_engine import AttachedEngine
from cdkit.generation.call_compatibility import refuse_foreign_loop
from cdkit.generation.custom_loop import of_each_prompt, run_loop, unexpanded
from cdkit.generation.guard import (
    GuardedProcessors,
    RecordingCriteria,
    record_stopping,
    top_continuations,
)
from cdkit.generation.hooks import Hooks
from cdkit.generation.prompts import Session
from cdkit.generation.trace import FREE
from cdkit.generation.traced_inputs import trace_inputs
from cdkit.interfaces.cache_names import CACHE

WAITS_FOR_NOTHING = frozenset({"cpu"})
"""Devices whose numbers the host has at once: there a guard need not put off its question."""


def run_generate(
    engine: AttachedEngine,
    session: Session,
    generate: Forward,
    given: dict[str, Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call `generate` for the prompts of `session`.

    Args:
        engine: The method on this model.
        session: The prompts, noted and checked.
        generate: The model's `generate` without the method.
        given: All arguments of the call, by name.
        *args: The positional arguments of the call.
        **kwargs: The named arguments of the call.

    Returns:
        What `generate` returns; a cache in it is a plain one of the original branch.
    """
    method = engine.attached.method
    kwargs |= session.overridden
    if method.loop is not None:
        kwargs["custom_generate"] = functools.partial(run_loop, engine)
    guards = Hooks()
    try:
        engine.session = session
        engine.trace.steps.clear()
        engine.trace.inputs = engine.trace.sequences = None
        if session.compile_config is not None:
            engine.compile_steps(session)
        made = _guard(guards, engine, session, given)
        output = generate(*args, **kwargs)
        for guard in made:
            guard.check()
        if engine.trace.wanted - FREE:
            engine.trace.sequences = getattr(output, "sequences", output)
        if "inputs" in engine.trace.wanted:
            engine.trace.inputs = trace_inputs(engine.attached, session, given)
    finally:
        guards.undo()
        engine.end_call()
    cache = getattr(output, CACHE, None)
    if isinstance(cache, MethodCache):
        setattr(output, CACHE, cache.original())
    return output


def _guard(
    guards: Hooks, engine: AttachedEngine, session: Session, given: dict[str, Any]
) -> list[GuardedProcessors]:
    """Wrap what `generate` makes for itself, for the time of one call; the guards will be here."""
    attached, method = engine.attached, engine.attached.method
    criteria: list[RecordingCriteria] = []
    made: list[GuardedProcessors] = []

    def guarded(processors: LogitsProcessorList, made_of: dict[str, Any]) -> GuardedProcessors:
        config, length = made_of["generation_config"], made_of["input_ids_seq_length"]
        constraint = method.constraint
        own = GuardedProcessors(
            processors,
            method=method,
            original=lambda: engine.last_original,
            logits=lambda: engine.last_logits,
            finished=lambda ids: _finished(ids[:, length:], config, criteria),
            prompt_length=length,
            beams=config.num_beams or 1,
            prompts=1 if method.loop is not None else session.ids.shape[0],
            defers=session.ids.device.type not in WAITS_FOR_NOTHING
            and method.loop is None
            and (config.num_beams or 1) == 1
            and given.get("streamer") is None  # which hands tokens out before the answer is there
            and (constraint is None or constraint.on_empty == "raise"),
        )
        made.append(own)
        return own

    def processors(make: Callable[..., Any], **kwargs: Any) -> Any:
        if method.loop is None:
            return guarded(make(**kwargs), kwargs)
        return [guarded(make(**own), own) for own in of_each_prompt(kwargs)]

    def static(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        prompt = session.ids.shape[1]
        return static_cache(attached.decoder.config, prompt, make(*args, **kwargs))

    wrapped: dict[str, Callable[..., Any]] = {
        # Hugging Face's automatic compilation would trace one step of the branches' bookkeeping
        "_valid_auto_compile_criteria": lambda *args, **kwargs: False,
        "_prepare_static_cache": static,
        "_get_logits_processor": processors,
        "_get_stopping_criteria": functools.partial(
            record_stopping, criteria, made, given.get("tokenizer")
        ),
        "_get_top_k_continuations": top_continuations,
        "_get_deprecated_gen_repo": lambda find, *args, **kwargs: (
            find(*args, **kwargs) and refuse_foreign_loop("a loop from the hub")
        ),
        "load_custom_generate": functools.partial(refuse_foreign_loop, "custom_generate"),
    }
    if method.loop is not None:
        wrapped["_expand_inputs_for_generation"] = unexpanded
    for name, around in wrapped.items():
        guards.wrap(attached.lm_module, name, around)
    return made


def _finished(generated: Tensor, config: Any, criteria: Sequence[RecordingCriteria]) -> Tensor:
    """Rows that have ended: no token of theirs is chosen any more."""
    ends = getattr(config, "_eos_token_tensor", None)
    done = generated.new_zeros(generated.shape[0], dtype=torch.bool)
    if ends is not None and generated.shape[1]:
        done = torch.isin(generated, ends.to(generated.device)).any(dim=1)
    stopped = criteria[0].stopped if criteria else None
    if stopped is not None and stopped.shape == done.shape:
        done = done | stopped.to(done.device)
    return done
