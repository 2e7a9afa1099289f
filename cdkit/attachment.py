"""Attach a method to a stock model: the model's `generate` runs with it until the block ends."""

import copy
import functools
import html
import threading
import warnings
import weakref
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any

from torch import nn

from cdkit.errors import CdkitError, CdkitWarning
from cdkit.execution.optimizations import chosen
from cdkit.explanation.explanation import Explanation
from cdkit.explanation.traced_answer import explain_call
from cdkit.generation.arguments import Forward, arguments
from cdkit.generation.attached_engine import AttachedEngine
from cdkit.generation.call_compatibility import check_eval, refuse_foreign_loop
from cdkit.generation.decode import decode
from cdkit.generation.encode import encode_images
from cdkit.generation.engine import Engine
from cdkit.generation.generate import run_generate
from cdkit.generation.hooks import BoundToModel, Hooks
from cdkit.generation.model_compatibility import (
    check_attachable,
    refuse_compiled,
    refuse_own_generate,
    refuse_virtual_tokens,
)
from cdkit.generation.plain_call import outer_forward
from cdkit.generation.prompts import open_session
from cdkit.generation.readouts import hook_readout
from cdkit.generation.reference import ReferenceEngine
from cdkit.generation.step import forward_step
from cdkit.generation.trace import FREE, Trace, make_trace
from cdkit.interfaces.adapter_lookup import unwrap
from cdkit.interfaces.model_adapter import attentions_of
from cdkit.method_on_model import method_on_model, with_colours_of
from cdkit.methods.method import Method
from cdkit.probing.adapter_trial import is_due, refuse_unfit, try_adapter
from cdkit.states.state_call import hook_sites

ATTACHED = "_cdkit_attached"
"""The attribute of a model under which the attachment in force stands."""
_WIRING = threading.RLock()
"""Held while some model's attributes are set or put back; nothing waits for a model under it."""


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
    Calling `model(...)` directly also applies the method, and treats the tokens of each row as one
    prompt. When the block ends, even by an exception, the model is exactly as before. A second
    attach replaces the first.
    Without `with` the method does not act, and the first `generate` warns of it.

    Args:
        model: A Hugging Face model in eval mode, or a PEFT wrapper around one.
        method: The method, such as `cdkit.load("cmac")`.
        processor: The model's processor. Methods that write text into the prompt need it.
        seed: All noise is drawn from (seed, sample id).
        sample_ids: A name for each prompt of the calls to come. By default a prompt's name is a
            digest of its pixels and tokens.
        trace: What to record in `run.trace` of each step of the latest call: "logits",
            "image_attention", "mask", "inputs" (what each branch was given: pixels, prompt,
            positions). `show` draws what is recorded. "last_logits" records the latest step alone,
            at no cost, and nothing where the method has no effect.
        optimize: True uses every optimisation; each of them is exact. False runs the plain
            algorithm: each branch with its own prompt, prefill and cache, one after the other. A
            collection of names of `cdkit.execution.optimizations` uses these alone, for tests and
            benchmarks. The tokens are the same.

    Returns:
        A context manager; `with` gives the `Attachment`, whose `trace` holds what is recorded.

    Raises:
        CdkitError: If the method cannot run on this model. Then nothing is changed.
    """
    attachment = Attachment(
        model,
        method,
        processor=processor,
        seed=seed,
        sample_ids=sample_ids,
        trace=make_trace(trace),
        optimize=optimize,
    )
    attachment.await_block()
    return attachment


class NotEntered(BoundToModel):
    """Stands as a model's `generate` between `cdkit.attach` and the block that it begins.

    The first call takes it away, warns that no method acts, and is plain. It goes silently where a
    block begins, or where none of the attachments is left that could begin one.
    """

    def __init__(self, model: nn.Module, hooks: Hooks) -> None:
        self._hooks, self._inner = hooks, model.generate
        self._waiting = 0
        functools.update_wrapper(self, self._inner)  # type: ignore[arg-type]

    def wait_for(self, attachment: "Attachment") -> None:
        """Take one more attachment that was not entered."""
        self._waiting += 1
        weakref.finalize(attachment, self._forget).atexit = False

    def _forget(self) -> None:
        with _WIRING:
            self._waiting -= 1
            if not self._waiting:
                self._hooks.undo()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _WIRING:
            self._hooks.undo()
        warnings.warn(
            "cdkit.attach acts in its block alone, and no block was entered: this is the model's "
            "plain answer. Write: with cdkit.attach(model, method): model.generate(...)",
            CdkitWarning,
            stacklevel=2,
        )
        inner: Any = self._inner
        return inner(*args, **kwargs)

    def end(self) -> None:
        """Put the model's own `generate` back."""
        self._hooks.undo()


class Attachment(BoundToModel):
    """A method attached to a model: a context manager. `trace` holds what is recorded."""

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
        method.check_complete()
        if isinstance(sample_ids, str):
            raise CdkitError(f"sample_ids must be a list, one name a prompt, got {sample_ids!r}")
        if not isinstance(model, nn.Module):
            raise CdkitError(
                f"model must be a Hugging Face model, got {type(model).__name__}; of a pipeline "
                "pass its .model"
            )
        if processor is not None:
            method = with_colours_of(method, processor)
        refuse_compiled(model)
        refuse_virtual_tokens(model)
        refuse_own_generate(unwrap(model))
        self.method, self.trace = method, trace
        self._hooks = Hooks()
        self._thread: threading.Thread | None = None
        self._model = unwrap(model)
        optimizations = chosen(optimize)
        self._forced = "skip_identity" not in optimizations or bool(trace.wanted - FREE)
        attached = method_on_model(
            self._model,
            model,
            method,
            processor=processor,
            seed=seed,
            sample_ids=None if sample_ids is None else tuple(sample_ids),
            traced=trace.wanted,
            forced=self._forced,
            takes_kernels=bool(optimize) and {"row_kernel", "fast_kernels"} <= optimizations,
        )
        check_attachable(attached)
        refuse_unfit(attached)
        self._is_due = False
        self._active = self._forced or not method.is_identity
        self._engine: AttachedEngine
        if optimize is False:
            self._engine = reference = ReferenceEngine(attached, trace)
            self._forward_step, self._decode = reference.forward_step, reference.decode
        else:
            self._engine = engine = Engine(attached, trace, optimizations=optimizations)
            self._forward_step = functools.partial(forward_step, engine)
            self._decode = functools.partial(decode, engine)

    def __repr__(self) -> str:
        state = "attached" if self._engine.is_attached else "not attached"
        recorded = f", trace={sorted(self.trace.wanted)}" if self.trace.wanted else ""
        return f"<{self.method.name} on {type(self._model).__name__}, {state}{recorded}>"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self)[1:-1])}</p>{self.method._repr_html_()}"

    def await_block(self) -> None:
        """Let the first `generate` warn, if it comes before the block of an attachment."""
        with _WIRING:
            standing = self._model.__dict__
            if not self._active or ATTACHED in standing:
                return
            waiting = standing.get("generate")
            if not isinstance(waiting, NotEntered):
                hooks = Hooks()
                waiting = NotEntered(self._model, hooks)
                hooks.set(self._model, "generate", waiting)
            waiting.wait_for(self)

    def __enter__(self) -> "Attachment":
        entered = False
        while not entered:
            entered = self._enter_alone()
        return self

    def _enter_alone(self) -> bool:
        """Attach, unless another attachment stands: then end that one and return False."""
        with _WIRING:
            standing: Attachment | None = self._model.__dict__.get(ATTACHED)
            if standing is None:
                self._thread = threading.current_thread()
                if isinstance(waiting := self._model.__dict__.get("generate"), NotEntered):
                    waiting.end()
                if self._active:
                    check_eval(self._model, self.method)
                    try:
                        self._warn_about_kernel()
                        self._wire()
                    except BaseException:
                        self._undo()
                        raise
                return True
            standing.refuse_other_thread(self.method)
        standing.detach()
        return False

    def refuse_other_thread(self, method: Method) -> None:
        """Raise where this attachment, which stands, is that of another thread that still runs.

        Args:
            method: What the calling thread wants to attach.
        """
        owner = self._thread
        if owner is not None and owner is not threading.current_thread() and owner.is_alive():
            raise CdkitError(
                f"cannot attach {method.name}: {self.method.name} is attached to this model by "
                f"another thread ({owner.name}); leave that block first, hold one lock around each "
                "block, or give each thread a model of its own (docs/threads.md)"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def show(self, *, row: int = 0, top: int = 5) -> Explanation:
        """Show one answer of the latest `generate` call: how each of its tokens was chosen.

        In a notebook the result is a page; `tables()` has its numbers. `cdkit.explain` compares
        with the plain model as well.

        Args:
            row: The answer, from 0: the prompt's number, but with `num_return_sequences=n` each
                prompt has n answers, one after the other.
            top: How many candidates of each branch are shown.

        Raises:
            CdkitError: If the trace has no logits (`attach(trace=("logits", "image_attention",
                "mask", "inputs"))` records everything), there was no call, or no row belongs to one
                answer, as under beams.
        """
        attached = self._engine.attached
        return explain_call(
            self.method, self.trace, attached.lm_module, attached.processor, row=row, top=top
        )

    def detach(self) -> None:
        """Restore the model, as the end of the `with` block does; a second call does nothing.

        Waits for a call of the model that is under way in another thread, and restores also where
        that wait is interrupted.
        """
        waited = False
        try:
            waited = self._engine.lock.acquire()
        finally:
            self._undo()
            if waited:
                self._engine.lock.release()

    def _undo(self) -> None:
        with _WIRING:
            self._hooks.undo()
            self._engine.is_attached = False

    def _wire(self) -> None:
        """Put the method into the model: its encoder, its decoder, its layers, its `generate`."""
        engine, model, hooks = self._engine, self._model, self._hooks
        attached = engine.attached
        adapter, lm_module, decoder = attached.adapter, attached.lm_module, attached.decoder
        hooks.set(model, ATTACHED, self)
        engine.is_attached = True
        hooks.wrap(model, "generate", self._generate)
        for name in ("generate_batch", "init_continuous_batching"):
            if hasattr(model, name):
                hooks.wrap(model, name, functools.partial(refuse_foreign_loop, name))
        for source in attached.sources:
            hooks.wrap(*source.encoder(model), functools.partial(encode_images, engine, source))
        hooks.wrap(decoder, "forward", self._decode)
        self._is_due = is_due(adapter, model)
        hooks.wrap(
            lm_module, "forward", self._first_forward if self._is_due else self._forward_step
        )
        if lm_module is not model:
            hooks.wrap(model, "forward", functools.partial(outer_forward, engine))
        if attached.states is not None:
            hook_sites(hooks, attached.states, engine.sites)
        hook_readout(hooks, engine, forced=self._forced)
        if attached.hooked:
            engine.gives_weights = decoder.config._attn_implementation == "eager"
            key, attribute, handles = engine.attention()
            modules = list(attentions_of(adapter, model).values())
            for module, handle in zip(modules, handles, strict=True):
                hooks.set(module, attribute, handle)
            # a copy of the config: another model may have been built from the same object
            own = copy.copy(decoder.config)
            own._attn_implementation_internal = key
            for module in (decoder, *modules):
                hooks.set(module, "config", own)

    def _warn_about_kernel(self) -> None:
        attached = self._engine.attached
        kernel = str(attached.decoder.config._attn_implementation)
        if attached.hooked and ("flash" in kernel or "flex" in kernel):
            warnings.warn(
                f"cdkit runs the text attention through PyTorch's SDPA instead of {kernel} "
                f"while {self.method.name} is attached",
                CdkitWarning,
                stacklevel=3,
            )

    def _try_adapter_out(self, given: dict[str, Any]) -> None:
        """Try an adapter out where it was not tested, with the method off; refuse what is unfit."""
        adapter = self._engine.attached.adapter
        if is_due(adapter, self._model):
            self.detach()
            try:
                try_adapter(adapter, self._model, given, attach=attach)
            finally:
                with _WIRING:
                    if (standing := self._model.__dict__.get(ATTACHED)) is not None:
                        standing.refuse_other_thread(self.method)
                    self._wire()
            refuse_unfit(self._engine.attached)

    def _first_forward(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """A plain call of a model whose adapter has not been tried out yet."""
        with self._engine.lock:
            if self._engine.session is None and self._engine.is_attached:
                self._try_adapter_out(arguments(forward, *args, **kwargs))
            return self._forward_step(forward, *args, **kwargs)

    def _generate(self, generate: Forward, *args: Any, **kwargs: Any) -> Any:
        """A call of the model's own `generate`."""
        engine = self._engine
        attached = engine.attached
        with engine.lock:
            if engine.is_attached:
                given = arguments(generate, *args, **kwargs) if args else dict(kwargs)
                given.setdefault("input_ids", given.get("inputs"))
                configs = (given.get("generation_config"), attached.lm_module.generation_config)
                defaults = [config for config in configs if config is not None]
                session = open_session(attached, given, defaults=defaults, plain=False)
                if self._is_due:
                    self._try_adapter_out(given)
                return run_generate(engine, session, generate, given, *args, **kwargs)
        model: Any = self._model  # the block ended before this thread's turn came
        return model.generate(*args, **kwargs)
