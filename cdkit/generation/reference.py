"""The plain algorithm: each branch by itself through the model, one after the other.

Every branch has separate prompts, a separate prefill and a separate cache, and in every layer all
attention weights are made. This is `cdkit.attach(optimize=False)`, with which every faster way is
compared. Read `decode` first: it is one call of the decoder; then `forward_step`, which combines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cdkit.branches.inputs import columns_of_values, features_in
from cdkit.branches.method_cache import MethodCache
from cdkit.errors import CdkitError
from cdkit.generation.arguments import Forward, arguments
from cdkit.generation.attached_engine import AttachedEngine, AttentionHandles
from cdkit.generation.branch_prompts import (
    features_of,
    plain_mask,
    prompt_alone,
    uses_cache,
)
from cdkit.generation.call_compatibility import check_alignment, refuse_adapter
from cdkit.generation.combine import Noted, combine_call
from cdkit.generation.encode import embed_tokens
from cdkit.generation.hooks import BoundToModel
from cdkit.generation.model_compatibility import ATTENTION_ARGUMENTS, unknown_attention_argument
from cdkit.generation.plain_call import check_last_column, forward_call
from cdkit.generation.prompts import Session
from cdkit.generation.reference_attention import (
    Attended,
    Change,
    Layer,
    Memory,
    Tokens,
    attend,
    plain_attention,
)
from cdkit.generation.reference_branch import BranchCall, note_attention
from cdkit.generation.reference_cache import Batch, BranchRows, ReferenceCache
from cdkit.generation.reference_inputs import first_inputs, next_inputs, nothing_kept
from cdkit.generation.reference_states import site_call
from cdkit.generation.trace import Step
from cdkit.interfaces.cache_names import CACHE, OLD_CACHE, given_cache
from cdkit.interfaces.depth import layers_within
from cdkit.interfaces.model_adapter import states_of
from cdkit.methods.branch import ORIGINAL, Branch
from cdkit.methods.part_results import CheckedChange
from cdkit.states.answer_states import prepare
from cdkit.states.image_lens import ImageStates
from cdkit.states.state_call import PromptRecorder

KEY = "cdkit_reference"
"""The name of this attention in Hugging Face's registries."""
HANDLE = "_cdkit_reference_attention"
"""The attribute of an attention module that holds its `LayerHandle`."""


@dataclass(eq=False)
class ForwardCall:
    """One call of the forward that `generate` reads."""

    step: Step
    ids: Int[Tensor, "rows tokens"] | None = None
    """Its token ids; None where it was given embeddings."""
    batch: Batch | None = None
    columns: int = 0
    """How many columns the decoder was given."""
    aligned: int = 0
    """In how many last columns every branch has the same token."""
    readouts: dict[str, Float[Tensor, "rows hidden"]] = field(default_factory=dict)
    images: ImageStates | None = None
    """The states of the original branch's image tokens, where a readout reads them."""
    seen: BranchCall | None = None
    """The original branch's."""


@dataclass(frozen=True, eq=False)
class LayerHandle(BoundToModel):
    """Takes the attention of one decoder layer to the engine."""

    engine: "ReferenceEngine"
    layer: Layer


@dataclass(eq=False)
class ReferenceEngine(AttachedEngine):
    """One method on one model, without anything that only saves time."""

    call: ForwardCall | None = None
    running: BranchCall | None = None
    """The branch that is in the decoder."""

    def compile_steps(self, session: Session) -> None:
        """Nothing is compiled: that would save time."""

    def attention(self) -> AttentionHandles:
        rotary, depth = self.attached.rotary, self.attached.depth
        calibrator = self.attached.method.calibrator
        image_rows = calibrator is not None and calibrator.image_rows
        layers = [
            Layer(index, depth, None if rotary is None else rotary[index], image_rows)
            for index in range(depth)
        ]
        return AttentionHandles(KEY, HANDLE, [LayerHandle(self, layer) for layer in layers])

    # ---- the forward that generate reads: all branches go in, combined logits come out -----------

    def forward_step(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """The model's forward, its logits those of the method."""
        with self.lock:
            if not self.is_attached:
                return self.attached.lm_module.forward(*args, **kwargs)
            return self._forward_step(forward, *args, **kwargs)

    def _forward_step(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        given = arguments(forward, *args, **kwargs)
        with forward_call(self, given) as plain:
            if "labels" in kwargs:
                kwargs["labels"] = None  # they are None or all -100, which means no loss
            self.call = call = ForwardCall(Step(), given.get("input_ids"))
            try:
                output = forward(*args, **kwargs)
            finally:
                self.call = None
            if call.batch is None or call.seen is None:
                refuse_adapter(self.attached)
            if plain:
                check_alignment(
                    self.attached.method,
                    given.get("logits_to_keep", 0),
                    columns=call.columns,
                    returned=output.logits.shape[1],
                    aligned=call.aligned,
                    reads_layers=bool(call.readouts) or self.attached.image_readout is not None,
                )
            logits = output.logits if plain else output.logits[:, -1:]
            output.logits = self._combined(call, call.batch, call.seen, logits)
            if plain:
                check_last_column(self, output.logits.shape[1])
                self.last_original = None  # read by what surrounds generate alone
            return output

    def _combined(
        self,
        call: ForwardCall,
        batch: Batch,
        seen: BranchCall,
        logits: Float[Tensor, "all_rows columns vocab"],
    ) -> Float[Tensor, "rows columns vocab"]:
        branches = tuple(batch.branches)
        if batch.original.columns < batch.original.layout.length:
            # a chunk of the prompt: no token is chosen from these
            return logits[: logits.shape[0] // len(branches)]
        noted = Noted(
            call.readouts,
            seen.image_logits,
            seen.image_weights,
            seen.last_weights,
            seen.stream_heads,
            call.images,
        )
        return combine_call(self, logits, branches, batch, noted, call.step)

    # ---- the decoder: the branches one after the other -------------------------------------------

    def decode(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """The decoder's forward once for each branch; the output has the rows of all of them."""
        call = self.call
        if kwargs.get("inputs_embeds") is None and kwargs.get("input_ids") is not None:
            # an inner language model embeds its tokens itself, and some decoders their images
            embed_tokens(self, kwargs)
        if call is None or args or kwargs.get("inputs_embeds") is None:
            raise CdkitError(
                f"with {self.attached.method.name} attached, call the model itself or its "
                "generate; its decoder alone has no logits to combine"
            )
        cache = given_cache(kwargs)
        kwargs.pop(OLD_CACHE, None)
        call.columns = call.aligned = kwargs["inputs_embeds"].shape[1]
        if isinstance(cache, MethodCache):
            if not isinstance(cache, ReferenceCache) or cache.owner is not self:
                raise CdkitError("the cache was made under another cdkit.attach; start anew")
            call.batch = cache.batch
            inputs = next_inputs(self.attached, self.session, kwargs, call.ids, cache.batch)
        else:
            cached = cache is not None or uses_cache(self.attached, kwargs)
            self._distort_features(forward, kwargs)
            self._read_prompts(forward, kwargs)
            call.batch, inputs, aligned = self._first_inputs(
                kwargs, self.attached.branches, cached=cached
            )
            call.aligned = min(call.aligned, aligned)
        outputs = []
        for name, branch in call.batch.branches.items():
            running = self._branch_call(name, branch, call.batch, inputs[name].shape[1])
            outputs.append(self._run(forward, running, inputs[name], kwargs))
            if name == ORIGINAL:
                call.seen = running
        output = outputs[0]
        states = [_last_columns(own.last_hidden_state, call.columns) for own in outputs]
        output.last_hidden_state = torch.cat(states)
        if call.batch.original.cache is not None:
            setattr(output, CACHE, ReferenceCache(call.batch, owner=self))
        return output

    def _first_inputs(
        self, kwargs: dict[str, Any], branches: Sequence[Branch], *, cached: bool
    ) -> tuple[Batch, dict[str, Float[Tensor, "rows new hidden"]], int]:
        """See `first_inputs`."""
        session, call = self.session, self.call
        assert session is not None and call is not None
        return first_inputs(self.attached, session, kwargs, call.ids, branches, cached=cached)

    def _branch_call(
        self, name: str, branch: BranchRows, batch: Batch, new: int, *, notes_image: bool = False
    ) -> BranchCall:
        shift = None
        if batch.calibration is not None:
            index = branch.layout.image_index[:, : branch.columns]
            shift = batch.calibration.offsets(branch.positions, index)
        whole = branch.columns >= branch.layout.length
        # what is kept of a part of the prompt would not be that of the whole
        answer, remembered = (
            (branch.answer_cache, branch.memory)
            if whole
            else (nothing_kept(self.attached), nothing_kept(self.attached))
        )
        return BranchCall(
            name=name,
            branch=branch,
            tokens=Tokens.of(branch.layout, branch.token_mask, batch.rng_keys, shift, new=new),
            memory=Memory(answer, remembered),
            notes_image=name == ORIGINAL and (notes_image or self.attached.records_image),
            notes_last_layer=name == ORIGINAL and self.attached.method.loop is not None,
        )

    def _run(
        self,
        forward: Forward,
        running: BranchCall,
        embeds: Float[Tensor, "rows new hidden"],
        kwargs: dict[str, Any],
        recorder: PromptRecorder | None = None,
    ) -> Any:
        """One call of the decoder's forward, with this branch's rows alone."""
        branch = running.branch
        stop, prompt = branch.columns, branch.layout.length
        start = stop - embeds.shape[1]
        positions = branch.positions[:, start:]
        if positions.ndim == 3:
            positions = positions.movedim(-1, 0)
        own: dict[str, Any] = {"inputs_embeds": embeds, "position_ids": positions}
        own[CACHE] = branch.cache
        own["attention_mask"] = self._mask(running, kwargs, own, start)
        if branch.deepstack:
            added = None
            if start < prompt:
                on_image = running.tokens.is_image[:, start:]
                here = [x[:, start:stop][on_image[:, : prompt - start]] for x in branch.deepstack]
                added = on_image, here
            own |= self.attached.adapter.deepstack_kwargs(self.attached.model, added)
        for name, values in branch.token_values.items():
            if kwargs.get(name) is not None:
                own[name] = columns_of_values(values, kwargs[name], start, stop)
        if self.attached.adapter.reads_ids:
            ids = branch.ids[:, start:stop]
            own |= self.attached.adapter.token_kwargs(self.attached.model, ids)
        if "logits_to_keep" in kwargs:
            own["logits_to_keep"] = 0  # some run upper layers for these rows alone
        self.running = running
        running.handed_down = frozenset(kwargs)
        self.sites.call = recorder or site_call(
            self.attached, running.name, branch, start, running.head_attention
        )
        try:
            output = forward(**kwargs | own)
        finally:
            self.running = self.sites.call = None
        if self.attached.hooked and running.layers_run != self.attached.depth:
            raise CdkitError(
                f"{self.attached.method.name} looks into the attention, but only "
                f"{running.layers_run} of {self.attached.depth} layers of "
                f"{type(self.attached.decoder).__name__} came through it; this model does not use "
                "Hugging Face's attention interface"
            )
        return output

    def _mask(
        self, running: BranchCall, kwargs: dict[str, Any], own: dict[str, Any], start: int
    ) -> Any:
        """The mask of all columns so far: 2-D, or the stock model's where images are not causal."""
        sees_ahead, tokens = self.attached.sees_ahead, running.tokens
        prompt = running.branch.layout.length
        # after the prompt every model is causal; and so it is where it was given no token types
        typed = (
            kwargs.get("attention_mask") is not None
            and plain_mask(kwargs.get("attention_mask")) is None
        )
        if sees_ahead == "nowhere" or not typed or start >= prompt:
            return tokens.token_mask
        types = self.attached.adapter.token_types(self.attached.model, running.branch.ids)
        if types is None:
            types = tokens.is_image.long()
        if sees_ahead == "in prompts":
            types = (torch.arange(types.shape[1], device=types.device) >= prompt).long()
            types = types.expand(tokens.token_mask.shape)
        given = own | {"attention_mask": tokens.token_mask}
        return self.attached.adapter.create_masks(self.attached.model, types, given)

    # ---- one layer -------------------------------------------------------------------------------

    def attend(
        self,
        layer: Layer,
        running: BranchCall,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Attended:
        """A layer's attention for the branch that is in the decoder."""
        running.layers_run += 1
        if key.shape[2] < running.branch.columns:
            raise CdkitError(
                f"layer {layer.index} keeps only {key.shape[2]} of {running.branch.columns} tokens "
                "(a sliding window), perhaps without the image: ask for a shorter answer"
            )
        made = attend(
            running.tokens,
            layer,
            self._changes(running.name, layer.index),
            running.memory,
            query,
            key,
            value,
            mask,
            kwargs["scaling"],
            kwargs.get("softcap"),
            kwargs.get("s_aux"),
        )
        step = None if self.call is None else self.call.step
        note_attention(self.attached, running, layer, made, value, step)
        return made

    def _changes(self, branch: str, layer: int) -> list[Change]:
        """What is done to a branch's cross-modal segment: distortions, then interventions."""
        distortions = [
            d for own in self.attached.every_branch if own.name == branch for d in own.attention
        ]
        acting = [i for i in self.attached.method.interventions if branch in i.branches]
        changes: list[tuple[Any, Change]] = [(d, CheckedChange(d, d.distort)) for d in distortions]
        changes += [(i, CheckedChange(i, i.intervene)) for i in acting]
        return [
            do for part, do in changes if layer in layers_within(part.layers, self.attached.depth)
        ]

    def keep_readout(self, name: str, states: Any) -> None:
        """The last state of the original branch where a layer is read out."""
        if self.call is not None and self.running is not None and self.running.name == ORIGINAL:
            hidden = states_of(self.attached.adapter, states)
            self.call.readouts[name] = hidden[:, -1].clone()  # a view would keep all of it

    def keep_image(self, states: Any) -> None:
        """The original branch's image tokens where they are read out."""
        running = self.running
        if self.call is None or running is None or running.name != ORIGINAL:
            return
        own = states_of(self.attached.adapter, states)
        if own.shape[1] == running.branch.columns:
            self.call.images = ImageStates.at(own, running.branch.layout)

    # ---- the prompt once more, for what is read of it before it is answered ----------------------

    def _read_prompts(self, forward: Forward, kwargs: dict[str, Any]) -> None:
        """Read states of the prompts in each branch, without state interventions: once for each
        prompt."""
        session, states = self.session, self.attached.states
        assert session is not None
        if states is None or session.prepared is not None:
            return
        seen = {}
        if states.reads_prompts:
            names, adapter = states.prompt_names, self.attached.adapter
            branches = [b for b in self.attached.every_branch if b.name in names]
            given = prompt_alone(kwargs, session.ids.shape[1])
            batch, inputs, _ = self._first_inputs(given, branches, cached=False)
            expand = len(inputs[ORIGINAL]) // len(session.ids)
            for name, branch in batch.branches.items():
                rows = branch.layout.rows if name == ORIGINAL else 0
                recorder = PromptRecorder(branch.layout, rows, states, adapter.layer_states)
                running = self._branch_call(name, branch, batch, inputs[name].shape[1])
                uncached = kwargs | {"use_cache": False}
                self._run(forward, running, inputs[name], uncached, recorder)
                seen[name] = recorder.shown(slice(None, None, expand))
        session.prepared = prepare(self.attached, seen)

    def _distort_features(self, forward: Forward, kwargs: dict[str, Any]) -> None:
        """Make features that depend on the original branch's attention: a first pass over the
        prompt, once for each prompt."""
        session = self.session
        assert session is not None
        branches = [
            b
            for b in self.attached.every_branch
            if b.feature and b.name not in session.attended_features
        ]
        if not branches:
            return
        prompt = session.ids.shape[1]
        of_prompt = prompt_alone(kwargs, prompt)
        batch, inputs, _ = self._first_inputs(of_prompt, branches=(), cached=False)
        embeds = inputs[ORIGINAL]
        running = self._branch_call(ORIGINAL, batch.original, batch, prompt, notes_image=True)
        self._run(forward, running, embeds, kwargs | {"use_cache": False})
        attention = torch.stack([own.to(embeds.device) for own in running.image_weights], dim=1)
        rows = features_in(embeds, batch.original.layout.image_index)
        expand = len(embeds) // len(session.ids)
        for branch in branches:
            features = features_of(session, branch, len(embeds)) if branch.pixel else rows
            assert features is not None
            session.distort_features(branch, features[::expand], attention[::expand])


def _last_columns(
    states: Float[Tensor, "rows all_columns hidden"], count: int
) -> Float[Tensor, "rows columns hidden"]:
    """The last `count` columns; zeros replace those that a shorter prompt does not have."""
    return pad(states, (0, 0, max(0, count - states.shape[1]), 0))[:, -count:]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What Hugging Face's attention modules call: the output, and its weights."""
    handle: LayerHandle = getattr(module, HANDLE)
    running = handle.engine.running
    known = frozenset() if running is None else running.handed_down
    for name, argument in kwargs.items():
        if argument is not None and name not in ATTENTION_ARGUMENTS and name not in known:
            raise unknown_attention_argument(module, name)
    if running is None:  # not under a forward that is read
        of_softmax: dict[str, Any] = {
            name: kwargs.get(name) for name in ("scaling", "softcap", "s_aux")
        }
        plain = of_softmax["softcap"] is None and of_softmax["s_aux"] is None
        if plain:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        out = plain_attention(query, key, value, attention_mask, **of_softmax)
        return out.contiguous(), None
    made = handle.engine.attend(handle.layer, running, query, key, value, attention_mask, kwargs)
    weights = made.weights.to(query.dtype) if handle.engine.gives_weights else None
    return made.out.contiguous(), weights  # as stock attention gives it


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """A mask of every cell, also where plain causality would need none."""
    return sdpa_mask(*args, **kwargs | {"allow_is_causal_skip": False})


AttentionInterface.register(KEY, _attention)
AttentionMaskInterface.register(KEY, _mask)
