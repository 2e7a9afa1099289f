"""Attach a method to a stock model: its own `generate` runs with it until the block ends."""

import copy
import functools
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList

from cdkit.attention.layer import HANDLE, KEY, LayerAttention, Wired
from cdkit.branches.cache import BranchedCache
from cdkit.errors import CdkitError, CdkitWarning
from cdkit.execution.compiled_steps import CompiledSteps, compiled_steps
from cdkit.execution.optimizations import chosen
from cdkit.execution.static_cache import static_cache
from cdkit.generation.compatibility import check_eval
from cdkit.generation.custom_loop import of_each_prompt, run_loop, unexpanded
from cdkit.generation.engine import Engine, Forward, arguments
from cdkit.generation.guard import GuardedProcessors, RecordingCriteria, top_continuations
from cdkit.generation.hooks import Patches
from cdkit.generation.model_checks import (
    can_be_hooked,
    refuse_compiled,
    refuse_virtual_tokens,
    sliding_window,
)
from cdkit.generation.opening import open_session
from cdkit.generation.step import read, read_outer
from cdkit.generation.trace import FREE, Trace, make_trace
from cdkit.interfaces.cache_names import CACHE
from cdkit.interfaces.distortion import PixelDistortion
from cdkit.interfaces.model_adapter import adapter_for, unwrap
from cdkit.methods.method import ORIGINAL, Method, kind_of

ATTACHED = "_cdkit_attached"
"""The attribute of a model under which the attachment in force stands."""


def attach(
    model: nn.Module,
    method: Method,
    *,
    processor: Any = None,
    seed: int = 0,
    sample_ids: Sequence[str] | None = None,
    trace: Collection[str] = (),
    optimize: bool | Collection[str] = True,
) -> "Attachment":
    """Run `method` under the model's own `generate`, as long as the `with` block lasts.

        with cdkit.attach(model, cdkit.load("cmac"), processor=processor) as run:
            out = model.generate(**inputs, max_new_tokens=64)

    Greedy decoding, sampling, beams, streamers, logits processors and batches are Hugging Face's.
    A plain call of the model is scored with the method too: its tokens are one prompt's. Leaving
    restores the model to the bit, also after an exception; attaching again replaces.

    `processor` is needed by methods that write text into the prompt. All noise is drawn from
    (`seed`, sample id); `sample_ids` names each prompt of the calls to come, else a digest of its
    pixels and tokens does. `trace` keeps "logits", "image_attention" or "mask" of each step of the
    latest call in `run.trace`; "last_logits" keeps the latest step alone, at no cost, and nothing
    where the method has nothing to do. `optimize` True saves what can be saved, each saving exact;
    False forces every branch through the model, one after the other, and shares nothing between
    them: same tokens, slower; a collection of names of
    `cdkit.execution.optimizations` saves just that. For tests and benchmarks.

    Raises CdkitError where the method cannot run on this model, before anything is changed.
    """
    return Attachment(
        model,
        method,
        processor=processor,
        seed=seed,
        sample_ids=sample_ids,
        trace=make_trace(trace),
        optimize=optimize,
    )


class Attachment(Wired):
    """A method on a model; a context manager. `trace` holds what was asked for."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        processor: Any,
        seed: int,
        sample_ids: Sequence[str] | None,
        trace: Trace,
        optimize: bool | Collection[str],
    ) -> None:
        if not isinstance(method, Method):
            raise CdkitError(
                f"method must be a cdkit.Method, such as cdkit.load('cmac'), got {method!r}"
            )
        if isinstance(sample_ids, str):
            raise CdkitError(f"sample_ids must be a list, one name a prompt, got {sample_ids!r}")
        if not isinstance(model, nn.Module):
            raise CdkitError(
                f"model must be a Hugging Face model, got {type(model).__name__}; of a pipeline "
                "pass its .model"
            )
        if processor is not None:
            method = _with_colours(method, processor)
        refuse_compiled(model)
        refuse_virtual_tokens(model)
        self.method, self.trace = method, trace
        self._patches = Patches()
        self._steps: CompiledSteps | None = None
        self._model = unwrap(model)
        adapter = adapter_for(model)
        saved = chosen(optimize)
        self._forced = forced = "skip_identity" not in saved or bool(trace.wanted - FREE)
        if not forced and method.calibrator is not None and method.calibrator.is_identity:
            method = replace(method, calibrator=None)
        branches = method.branches if forced else method.live_branches
        for branch in branches:
            for distortion in branch.prompt:
                if distortion.needs_text and processor is None:
                    raise CdkitError(
                        f"{kind_of(distortion)} writes text into the prompt: pass processor= to "
                        "cdkit.attach"
                    )
        hooked = bool(
            method.calibrator is not None
            or method.interventions
            or method.loop is not None
            or any(branch.attention or branch.feature for branch in branches)
            or any(schedule.reads_attention for schedule in method.schedules)
            or trace.wanted & {"image_attention", "mask"}
        )
        self._active = forced or not method.is_identity
        self._rotary = None if method.calibrator is None else adapter.rotary(self._model)
        decoder: Any = adapter.decoder(self._model)
        if method.calibrator is not None and self._rotary is None:
            raise CdkitError(
                f"{method.name} moves positions by RoPE, but {type(decoder).__name__} has no "
                "rotary embedding of fixed frequencies; use a method without a calibrator"
            )
        if hooked and getattr(decoder.config, "attn_logit_softcapping", None):
            raise CdkitError(
                f"{type(decoder).__name__} caps its attention logits, and {method.name} changes "
                "them; use a method that changes only the inputs, such as vcd"
            )
        shards = getattr(self._model, "tp_size", None) or 1
        if hooked and shards > 1:
            raise CdkitError(
                f"the model's heads are spread over {shards} processes (tensor parallelism), and "
                f"{method.name} looks at all of them; load it with device_map, or use a method "
                "that changes only the inputs, such as vcd"
            )
        if hooked and not can_be_hooked(decoder):
            raise CdkitError(
                f"{type(decoder).__name__} does not take its attention from Hugging Face's "
                f"attention interface, which {method.name} needs; use a method that changes only "
                "the inputs, such as vcd"
            )
        self._engine = Engine(
            model=self._model,
            adapter=adapter,
            method=method,
            processor=processor,
            seed=seed,
            sample_ids=None if sample_ids is None else tuple(sample_ids),
            saved=saved,
            everywhere=optimize is not True,
            rotary=self._rotary,
            hooked=hooked,
            slides=(window := sliding_window(decoder)) is not None,
            window=window if hooked else None,
            trace=trace,
            branches=branches,
        )

    def __enter__(self) -> "Attachment":
        if (standing := self._model.__dict__.get(ATTACHED)) is not None:
            standing.detach()
        if not self._active:
            return self
        check_eval(self._model, self.method)
        try:
            self._tell_kernel()
            self._wire()
        except BaseException:
            self._patches.undo()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Restore the model; a second call does nothing."""
        self._patches.undo()

    def _wire(self) -> None:
        engine, model, patches = self._engine, self._model, self._patches
        adapter = engine.adapter
        patches.set(model, ATTACHED, self)
        patches.wrap(model, "generate", self._generate)
        reader, decoder = adapter.lm_module(model), adapter.decoder(model)
        patches.wrap(*adapter.encoder(model), engine.encode)
        patches.wrap(decoder, "forward", engine.decode)
        patches.wrap(reader, "forward", self._read)
        if reader is not model:
            patches.wrap(model, "forward", functools.partial(read_outer, engine))
        layers = adapter.layers(model)
        if engine.method.readout is not None:
            read_out = engine.method.readout.layers(len(layers))
            _check_names(engine.method, read_out)
            for name, passed in read_out.items():
                if not (self._forced or engine.method.combiner.uses(name)):
                    continue
                keep = functools.partial(_keep_last_row, engine, name)
                if passed == 0:
                    patches.hook_before(layers[0], keep)
                else:
                    patches.hook(layers[passed - 1], keep)
        if engine.hooked:
            for index, layer in enumerate(layers):
                attention = LayerAttention(
                    layer=index,
                    depth=len(layers),
                    rotary=None if self._rotary is None else self._rotary[index],
                    changes=functools.partial(engine.changes, layer=index),
                    current=lambda: engine.attention,
                )
                patches.set(adapter.attention(layer), HANDLE, attention)
            config: Any = decoder.config
            # a copy of the config: another model may have been built from the same object
            own = copy.copy(config)
            own._attn_implementation_internal = KEY
            for module in (decoder, *(adapter.attention(layer) for layer in layers)):
                patches.set(module, "config", own)

    def _tell_kernel(self) -> None:
        decoder: Any = self._engine.adapter.decoder(self._model)
        kernel = str(decoder.config._attn_implementation)
        if self._engine.hooked and ("flash" in kernel or "flex" in kernel):
            warnings.warn(
                f"cdkit runs the text attention through PyTorch's SDPA instead of {kernel} "
                f"while {self.method.name} is attached",
                CdkitWarning,
                stacklevel=3,
            )

    def _try_adapter_out(self, given: dict[str, Any]) -> None:
        """Once a model, where the adapter is a generic one; on the stock model."""
        adapter = self._engine.adapter
        if not adapter.needs_check:
            return
        from cdkit.probing.self_check import is_due, self_check  # it attaches methods itself

        if is_due(adapter, self._model):
            self.detach()
            try:
                self_check(adapter, self._model, given)
            finally:
                self._wire()

    def _read(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """A call of the forward whose logits `generate` reads."""
        with self._engine.lock:
            if self._engine.session is None:
                self._try_adapter_out(arguments(forward, *args, **kwargs))
            return read(self._engine, forward, *args, **kwargs)

    def _generate(self, generate: Forward, *args: Any, **kwargs: Any) -> Any:
        """Hugging Face's generate, after noting the prompts; its processors guarded."""
        with self._engine.lock:
            return self._guarded_generate(generate, *args, **kwargs)

    def _guarded_generate(self, generate: Forward, *args: Any, **kwargs: Any) -> Any:
        engine = self._engine
        given = arguments(generate, *args, **kwargs)
        given.setdefault("input_ids", given.get("inputs"))
        reader: Any = engine.adapter.lm_module(self._model)
        chosen = given.get("generation_config")
        defaults = [config for config in (chosen, reader.generation_config) if config is not None]
        check_eval(self._model, self.method)
        session = open_session(engine, given, defaults=defaults, plain=False)
        self._try_adapter_out(given)
        engine.session = session
        engine.trace.steps.clear()
        guards = Patches()
        criteria: list[RecordingCriteria] = []

        def stopping(make: Callable[..., Any], **kwargs: Any) -> Any:
            # which Hugging Face keeps from a loop that is not its own
            kwargs["tokenizer"] = given.get("tokenizer")
            criteria[:] = [RecordingCriteria(make(**kwargs))]
            return criteria[0]

        def processors(make: Callable[..., Any], **kwargs: Any) -> Any:
            if self.method.loop is None:
                return guarded(make(**kwargs), kwargs)
            return [guarded(make(**own), own) for own in of_each_prompt(kwargs)]

        def guarded(processors: LogitsProcessorList, given: dict[str, Any]) -> GuardedProcessors:
            config, length = given["generation_config"], given["input_ids_seq_length"]
            return GuardedProcessors(
                processors,
                method=engine.method,
                original=lambda: engine.last_original,
                finished=lambda ids: _finished(ids[:, length:], config, criteria),
                prompt_length=length,
                beams=config.num_beams or 1,
            )

        if self.method.loop is not None:
            kwargs["custom_generate"] = functools.partial(run_loop, engine)
            guards.wrap(reader, "_expand_inputs_for_generation", unexpanded)

        def static(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            config = engine.adapter.decoder(self._model).config
            return static_cache(config, session.ids.shape[1], make(*args, **kwargs))

        engine.steps = compiled_steps(engine, given, defaults, self._steps)
        self._steps = engine.steps or self._steps
        try:
            # Hugging Face's own would trace one step of the branches' bookkeeping
            guards.wrap(reader, "_valid_auto_compile_criteria", lambda *args, **kwargs: False)
            guards.wrap(reader, "_prepare_static_cache", static)
            guards.wrap(reader, "_get_logits_processor", processors)
            guards.wrap(reader, "_get_stopping_criteria", stopping)
            guards.wrap(reader, "_get_top_k_continuations", top_continuations)
            output = generate(*args, **kwargs)
        finally:
            guards.undo()
            engine.session, engine.last_original, engine.last_weights = None, None, None
            if engine.steps is not None:
                engine.steps.forget()
            engine.steps = None
        cache = getattr(output, CACHE, None)
        if isinstance(cache, BranchedCache):
            setattr(output, CACHE, cache.original())
        return output


def _finished(generated: Tensor, config: Any, criteria: Sequence[RecordingCriteria]) -> Tensor:
    """Rows that have ended, whose candidates nobody will choose from."""
    ends = getattr(config, "_eos_token_tensor", None)
    done = generated.new_zeros(generated.shape[0], dtype=torch.bool)
    if ends is not None and generated.shape[1]:
        done = torch.isin(generated, ends.to(generated.device)).any(dim=1)
    stopped = criteria[0].stopped if criteria else None
    if stopped is not None and stopped.shape == done.shape:
        done = done | stopped.to(done.device)
    return done


def _keep_last_row(engine: Engine, name: str, states: Any) -> None:
    call = engine.attention
    if engine.call is not None and call is not None and ORIGINAL in call.branches:
        hidden = states[0] if isinstance(states, tuple) else states
        engine.call.readouts[name] = hidden[:, -1].clone()  # a view would keep all of it


def _check_names(method: Method, layers: Collection[str]) -> None:
    """Raise where a readout's names clash with branches, or the combiner names neither."""
    branches = [branch.name for branch in method.branches]
    if clash := set(branches) & set(layers):
        raise CdkitError(
            f"branch {min(clash)!r} of {method.name} is called like a layer that is read out; "
            "give the branch another name"
        )
    for name, parameter in method.combiner.names.items():
        if name not in branches and name not in layers:
            raise CdkitError(
                f"{parameter} names {name!r}, but {method.name} has "
                f"{', '.join((*branches, *layers))}"
            )


def _with_colours(method: Method, processor: Any) -> Method:
    """The method with the processor's mean and deviation where a pixel distortion asks for them."""
    images = getattr(processor, "image_processor", processor)
    means: Any = getattr(images, "image_mean", None)
    spreads: Any = getattr(images, "image_std", None)
    if means is None or spreads is None:
        return method
    mean, std = tuple(map(float, means)), tuple(map(float, spreads))

    def filled(part: Any) -> Any:
        if not (isinstance(part, PixelDistortion) and part.needs_colours):
            return part
        told: Any = part
        return replace(told, mean=told.mean or mean, std=told.std or std)

    branches = (
        replace(branch, distortions=tuple(map(filled, branch.distortions)))
        for branch in method.branches
    )
    return replace(method, branches=tuple(branches))
