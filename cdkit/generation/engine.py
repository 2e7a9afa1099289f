"""A method at work on a model: what one call of `generate` shares between its steps."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from cdkit.attention.context import AttentionRecord, DecoderContext, LayerWork
from cdkit.attention.layer import HANDLE, KEY, CurrentCall, LayerAttention
from cdkit.branches.state import BranchState
from cdkit.execution.compiled_steps import CompiledSteps, compiled_steps
from cdkit.execution.optimizations import Optimization
from cdkit.execution.plan import layer_works
from cdkit.generation.attached_engine import AttachedEngine, AttentionHandles
from cdkit.generation.prompts import Session
from cdkit.generation.trace import Step
from cdkit.interfaces.model_adapter import states_of
from cdkit.methods.branch import ORIGINAL
from cdkit.states.attached_states import Place, SiteEdit
from cdkit.states.image_lens import ImageStates


@dataclass(eq=False)
class Call:
    """One call of the forward that `generate` reads."""

    step: Step
    ids: Int[Tensor, "rows tokens"] | None = None
    """Its token ids; None where it was given embeddings."""
    state: BranchState | None = None
    columns: int = 0
    """How many columns the decoder was given."""
    aligned: int = 0
    """The last columns of the decoder's input in which every branch has the same token."""
    readouts: dict[str, Float[Tensor, "rows hidden"]] = field(default_factory=dict)
    images: ImageStates | None = None
    """The states of the original branch's image tokens, where a readout reads them."""
    record: AttentionRecord | None = None
    """What was noted of the original branch's attention."""


@dataclass(eq=False)
class Engine(AttachedEngine):
    """Runs the branches together, and nothing that cannot change a token."""

    optimizations: frozenset[Optimization] = frozenset()
    current: CurrentCall = field(default_factory=CurrentCall)
    """What the layers read."""
    compiled: CompiledSteps | None = None
    """The compiled steps, where the call of `generate` under way uses `torch.compile`."""
    compiled_before: CompiledSteps | None = None
    """What the latest such call compiled: the next one reuses it."""
    call: Call | None = None

    @cached_property
    def works(self) -> dict[tuple[str, ...], tuple[LayerWork, ...]]:
        """For each group of branches what the layers do."""
        attached, names = self.attached, self.attached.branch_names
        traces = bool(attached.traced & {"image_attention", "mask"})
        groups = [names] if "one_forward" in self.optimizations else [(name,) for name in names]
        return {
            group: layer_works(attached, group, records_image=attached.records_image, traces=traces)
            for group in groups
        }

    @cached_property
    def site_tables(self) -> dict[tuple[str, ...], dict[Place, tuple[SiteEdit, ...]]]:
        """For each group of branches what state interventions do at each site."""
        states = self.attached.states
        return {} if states is None else {group: states.table(group) for group in self.works}

    @cached_property
    def prompt_works(self) -> dict[tuple[str, ...], tuple[LayerWork, ...]]:
        """What the layers do where the states of prompts are read, in all branches together."""
        assert self.attached.states is not None
        names = (ORIGINAL, *self.attached.states.prompt_names)
        return {names: layer_works(self.attached, names, records_image=False, traces=False)}

    @cached_property
    def reading_works(self) -> dict[tuple[str, ...], tuple[LayerWork, ...]]:
        """What they do where the original branch runs to see what it attends to."""
        alone = (ORIGINAL,)
        return {alone: layer_works(self.attached, alone, records_image=True, traces=False)}

    def attention(self) -> AttentionHandles:
        numbers, sources = self.attached.attention_layers, self.attached.key_sources
        own, last = sorted(set(sources)), {source: index for index, source in enumerate(sources)}
        handles = [
            LayerAttention(index, numbers[of], own.index(of), last[of] == index, self.current)
            for index, of in enumerate(sources)
        ]
        return AttentionHandles(KEY, HANDLE, handles)

    def keep_readout(self, name: str, states: Any) -> None:
        context = self.current.context
        hidden = states_of(self.attached.adapter, states)
        if self.call is not None and context is not None and ORIGINAL in context.branches:
            self.call.readouts[name] = hidden[:, -1].clone()  # a view would keep all of it

    def keep_image(self, states: Any) -> None:
        context = self.current.context
        # rows are not packed where a readout is
        if self.call is None or not isinstance(context, DecoderContext):
            return
        if ORIGINAL in context.branches and not context.chunk.generated:
            own = states_of(self.attached.adapter, states)[: context.rows_per_branch]
            self.call.images = ImageStates.at(own, context.chunk.layout)

    def compile_steps(self, session: Session) -> None:
        self.compiled = compiled_steps(
            self.attached,
            session.compile_config,
            static=session.static_cache,
            earlier=self.compiled_before,
        )

    def end_call(self) -> None:
        super().end_call()
        if self.compiled is not None:
            self.compiled.clear()
            self.compiled_before = self.compiled
        self.compiled = None
