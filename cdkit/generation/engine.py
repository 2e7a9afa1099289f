"""What happens between `generate` and the model while a method is on.

`generate` stays Hugging Face's. The decoder's forward gets the rows of all branches, the attention
of those rows is changed where the method says so, and the forward that `generate` reads hands back
logits of the original batch size.
"""

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from cdkit.attention.context import AttentionCall, SignalsWanted
from cdkit.attention.layer import Change
from cdkit.branches.batch import BranchedBatch, axes_last
from cdkit.branches.cache import BranchedCache, given_cache
from cdkit.branches.inputs import (
    PromptRows,
    features_in,
    features_of_rows,
    place_features,
    rewritten,
    rewritten_text,
    stack,
)
from cdkit.branches.layout import make_layout
from cdkit.errors import CdkitError
from cdkit.execution.compiled_steps import CompiledSteps
from cdkit.execution.optimizations import Optimization
from cdkit.execution.running import decoder_call, run_decoder, shared_columns
from cdkit.functional.rope import Rotary
from cdkit.generation.session import Session
from cdkit.generation.trace import Step, Trace
from cdkit.interfaces.cache_names import CACHE, OLD_CACHE
from cdkit.interfaces.depth import layers_within
from cdkit.interfaces.distortion import AttentionDistortion
from cdkit.interfaces.intervention import Intervention
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.methods.method import ORIGINAL, Branch, Method

Forward = Callable[..., Any]


def arguments(function: Forward, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """What a call passes, by name. Hugging Face's wrappers want it by name, too."""
    if not args:
        return dict(kwargs)
    signature = inspect.signature(function)
    given: dict[str, Any] = signature.bind_partial(*args, **kwargs).arguments
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(parameter.name, {})
    return given


@dataclass(eq=False)
class Call:
    """One call of the forward that `generate` reads."""

    step: Step
    batch: BranchedBatch | None = None
    columns: int = 0
    """How many columns the decoder was given."""
    aligned: int = 0
    """The last columns of the decoder's input in which every branch has the same token."""
    shared: int = 0
    """The first columns of the original prompts that are the same in every branch."""
    catch_up: Callable[[], Float[Tensor, "rows hidden"]] | None = None
    """Where the distorted branches lag behind: bring them here, and give their last states."""
    readouts: dict[str, Float[Tensor, "rows hidden"]] = field(default_factory=dict)
    seen: AttentionCall | None = None
    """What was noted of the attention."""


@dataclass(eq=False)
class Engine:
    """One method on one model."""

    model: nn.Module
    adapter: ModelAdapter
    method: Method
    processor: Any
    seed: int
    sample_ids: tuple[str, ...] | None
    saved: frozenset[Optimization]
    """What is saved, see `cdkit.execution.optimizations`."""
    everywhere: bool
    """Whether it is saved where it does not pay, too: it was asked for by name."""
    rotary: Sequence[Rotary | None] | None
    """Each layer's, where the method has a calibrator."""
    hooked: bool
    """Whether the decoder's attention goes through `cdkit.attention.layer`."""
    slides: bool
    """Whether some of the decoder's layers keep the last tokens alone."""
    window: int | None
    """So many tokens the decoder's sliding layers keep, where the method needs the image's."""
    trace: Trace
    branches: tuple[Branch, ...]
    """The distorted branches that run."""
    steps: CompiledSteps | None = None
    """Where the call of `generate` under way asked for `torch.compile`."""
    session: Session | None = None
    call: Call | None = None
    attention: AttentionCall | None = None
    last_original: Float[Tensor, "rows vocab"] | None = None
    last_weights: Float[Tensor, "rows heads new columns"] | None = None
    """Of the latest call, where the method brings its own loop."""
    lock: Any = field(default_factory=threading.RLock)
    """One call at a time: a second thread waits."""

    @property
    def names(self) -> tuple[str, ...]:
        return (ORIGINAL, *(branch.name for branch in self.branches))

    def changes(self, branch: str, *, layer: int) -> Sequence[Change]:
        """What is done to a branch's cross-modal segments: distortions, then interventions."""
        return self._changes[branch][layer]

    @cached_property
    def _changes(self) -> dict[str, list[list[Change]]]:
        """For each branch and layer; asked in every layer of every step."""

        def acts(part: AttentionDistortion | Intervention, layer: int) -> bool:
            return layer in layers_within(part.layers, self.depth)

        found: dict[str, list[list[Change]]] = {}
        for name in self.names:
            own = [d for b in self.branches if b.name == name for d in b.attention]
            acting = [i for i in self.method.interventions if name in i.branches]
            parts: list[tuple[AttentionDistortion | Intervention, Change]] = [
                *((d, d.distort) for d in own),
                *((i, i.intervene) for i in acting),
            ]
            found[name] = [
                [change for part, change in parts if acts(part, layer)]
                for layer in range(self.depth)
            ]
        return found

    @property
    def materialises(self) -> bool:
        """Whether all attention weights are made, not those alone that the method looks at."""
        return self.hooked and "fast_kernels" not in self.saved

    @cached_property
    def depth(self) -> int:
        return len(self.adapter.layers(self.model))

    @property
    def signals(self) -> SignalsWanted:
        return SignalsWanted(
            image=any(schedule.reads_attention for schedule in self.method.schedules),
            last_layer=self.method.loop is not None,
        )

    # ---- the image encoder -----------------------------------------------------------------

    def encode(self, encode: Forward, *args: Any, **kwargs: Any) -> Any:
        """The originals as ever; the branches' distorted images beside them."""
        output = encode(*args, **kwargs)
        given = arguments(encode, *args, **kwargs)
        session = self.session
        if session is None or given.get("pixel_values") is None:
            return output
        session.levels[ORIGINAL] = self.adapter.deepstack_features(output)
        for branch in self.branches:
            changed = self._encoder_text(branch, given)
            if branch.pixel:
                assert session.pixels is not None
                pixels = session.distorted_pixels(branch, session.pixels)
                changed["pixel_values"] = self.adapter.join_pixels(self.model, pixels, given)
            if changed:
                distorted = encode(**given | changed)
                session.features[branch.name] = self.adapter.features(distorted)
                session.levels[branch.name] = self.adapter.deepstack_features(distorted)
        return output

    def _encoder_text(self, branch: Branch, given: dict[str, Any]) -> dict[str, Any]:
        """The branch's question for an encoder that reads it, as arguments; padded on the right."""
        name = self.adapter.encoder_text
        if name is None or not branch.prompt or given.get(name) is None:
            return {}
        ids, mask_name = given[name], name.replace("input_ids", "attention_mask")
        mask = given.get(mask_name)
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        tokenizer = getattr(self.processor, "qformer_tokenizer", None)
        before = [tuple(row[own].tolist()) for row, own in zip(ids, real, strict=True)]
        texts = [rewritten_text(text, branch, tokenizer) for text in before]
        if texts == before:
            return {}
        length = max(len(text) for text in texts)
        padded = [list(text) + [0] * (length - len(text)) for text in texts]
        masks = [[1] * len(text) + [0] * (length - len(text)) for text in texts]
        return {
            name: torch.tensor(padded, dtype=ids.dtype, device=ids.device),
            mask_name: torch.tensor(masks, device=ids.device),
        }

    # ---- the decoder -----------------------------------------------------------------------

    def decode(self, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        """Run the rows of all branches; the output has them all."""
        call = self.call
        if kwargs.get("inputs_embeds") is None and kwargs.get("input_ids") is not None:
            # an inner language model embeds its tokens itself
            kwargs["inputs_embeds"] = self.adapter.embed(self.model, kwargs.pop("input_ids"))
        if call is None or args or kwargs.get("inputs_embeds") is None:
            raise CdkitError(
                f"with {self.method.name} attached, call the model itself or its generate; its "
                "decoder alone has no logits to combine"
            )
        cache: Any = given_cache(kwargs)
        kwargs.pop(OLD_CACHE, None)
        call.columns = call.aligned = kwargs["inputs_embeds"].shape[1]
        if isinstance(cache, BranchedCache):
            if cache.owner is not self:
                raise CdkitError("the cache was made under another cdkit.attach; start anew")
            call.batch = cache.batch
            embeds = self._next_rows(cache.batch, kwargs)
        else:
            self._look(forward, kwargs)
            call.batch, embeds = self._first_rows(kwargs, self.branches)
            if cache is None and self._caches(kwargs):
                decoder: Any = self.adapter.decoder(self.model)
                cache = DynamicCache(config=decoder.config)
        kwargs[CACHE] = cache
        output = run_decoder(self, forward, call.batch, embeds, kwargs)
        if getattr(output, CACHE) is not None:
            setattr(output, CACHE, BranchedCache(call.batch, owner=self))
        return output

    def _look(self, forward: Forward, kwargs: dict[str, Any]) -> None:
        """Make the features that depend on where the original branch looks: once a prompt."""
        session = self.session
        assert session is not None
        branches = [b for b in self.branches if b.feature and b.name not in session.looked]
        if not branches:
            return
        prompt = session.ids.shape[1]
        of_prompt: dict[str, Any] = {"inputs_embeds": kwargs["inputs_embeds"][:, :prompt]}
        for name in ("attention_mask", "position_ids"):
            if isinstance(kwargs.get(name), Tensor):
                of_prompt[name] = kwargs[name][..., :prompt]
        batch, embeds = self._first_rows(of_prompt, branches=())
        group = batch.group((ORIGINAL,), None)
        call = AttentionCall(
            batch,
            batch.chunk(group, prompt),
            Step(),
            (ORIGINAL,),
            signals=SignalsWanted(image=True),
        )
        uncached = kwargs | {CACHE: None, "use_cache": False}
        decoder_call(self, forward, call, embeds, uncached, rows=group.rows)
        attention = torch.stack([seen.to(embeds.device) for seen in call.image_weights], dim=1)
        rows = features_in(embeds, batch.layout.image_index)
        expand = batch.rows // session.ids.shape[0]
        for branch in branches:
            features = self._features(branch, rows=batch.rows) if branch.pixel else rows
            assert features is not None
            session.look(branch, features[::expand], attention[::expand])

    def _caches(self, kwargs: dict[str, Any]) -> bool:
        asked = kwargs.get("use_cache")
        default = getattr(self.adapter.decoder(self.model).config, "use_cache", True)
        return bool(default if asked is None else asked)

    def _first_rows(
        self, kwargs: dict[str, Any], branches: Sequence[Branch]
    ) -> tuple[BranchedBatch, Float[Tensor, "rows tokens hidden"]]:
        """The batch of new prompts. Without a cache, generated tokens may follow them."""
        session = self.session
        assert session is not None
        embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        positions = axes_last(kwargs.get("position_ids"))
        rows, given = embeds.shape[:2]
        prompt = session.ids.shape[1]
        expand = rows // session.ids.shape[0]
        ids = session.ids.repeat_interleave(expand, dim=0)
        image_index = session.image_index.repeat_interleave(expand, dim=0)
        real = session.real.repeat_interleave(expand, dim=0)
        mask = self._plain_mask(mask)
        if mask is not None:
            real = torch.cat((mask[:, :prompt].bool(), real[:, mask.shape[1] :]), dim=1)
        if positions is None:
            positions = torch.arange(given, device=embeds.device)[None]
        positions = positions.expand(rows, *positions.shape[1:])
        here = min(prompt, given)  # fewer than the prompt: a chunk of it
        original = PromptRows(
            embeds[:, :here],
            real[:, :here],
            image_index[:, :here],
            positions[:, :here],
            tuple(level[:, :here] for level in self._levels(ORIGINAL, embeds, image_index)),
        )
        assert self.call is not None
        self.call.shared = here
        blocks = [original] + [
            self._branch_rows(branch, original, ids, image_index) for branch in branches
        ]
        cut = shared_columns(self, original) if branches else 0
        stacked, layout, padding = stack(blocks, cut)
        if padding.stop > padding.start and self.slides:  # a window would not reach as far
            cut, (stacked, layout, padding) = 0, stack(blocks)
        levels = stacked.levels
        if here < prompt:
            layout = make_layout(image_index.repeat(len(blocks), 1), real.repeat(len(blocks), 1))
            names = (ORIGINAL, *(branch.name for branch in branches))
            whole = [self._levels(name, embeds, image_index) for name in names]
            levels = tuple(torch.cat(level) for level in zip(*whole, strict=True))
        batch = BranchedBatch(
            calibrator=self.method.calibrator,
            branches=(ORIGINAL, *(branch.name for branch in branches)),
            layout=layout,
            positions=stacked.positions,
            rng_keys=session.rng_keys(expand).repeat(len(blocks)) if self.hooked else None,
            padding=padding,
            shared=cut,
            rotary=self.rotary,
            real=stacked.real,
            levels=levels,
        )
        tail = embeds[:, here:]
        if tail.shape[1]:
            late = None if mask is None else mask[:, here:].bool()
            batch.extend(positions[:, here:], late, tail.shape[1])
            batch.step = tail.shape[1]
        return batch, torch.cat((stacked.embeds, tail.repeat(len(blocks), 1, 1)), dim=1)

    def _branch_rows(
        self,
        branch: Branch,
        original: PromptRows,
        ids: Int[Tensor, "rows tokens"],
        image_index: Int[Tensor, "rows tokens"],
    ) -> PromptRows:
        """A branch's rows of new prompts: its own image features, its own prompt."""
        features = self._features(branch, rows=ids.shape[0])
        assert self.call is not None
        if features is not None:
            self.call.shared = min(self.call.shared, _first_image(image_index))
        here = original.embeds.shape[1]
        levels = self._levels(branch.name, original.embeds, image_index)
        original = replace(original, levels=tuple(level[:, :here] for level in levels))
        if branch.prompt:
            session = self.session
            assert session is not None
            if not bool(original.real[:, -1].all()):
                raise CdkitError(
                    f"branch {branch.name!r} has prompts of its own, which end where the original "
                    "ones end: pad on the left (processor.tokenizer.padding_side = 'left')"
                )
            block, aligned, shared = rewritten(
                original,
                ids,
                branch,
                model=self.model,
                adapter=self.adapter,
                expand=ids.shape[0] // session.ids.shape[0],
                tokenizer=getattr(self.processor, "tokenizer", self.processor),
                features=features,
            )
            self.call.aligned = min(self.call.aligned, aligned)
            self.call.shared = min(self.call.shared, shared)
            return block
        if features is None:
            return original
        embeds = place_features(original.embeds, image_index, features)
        return replace(original, embeds=embeds)

    def _features(self, branch: Branch, rows: int) -> list[Float[Tensor, "_ hidden"]] | None:
        """Each row's features of the branch's distorted images; None where it distorts none."""
        session = self.session
        if session is not None and branch.name in session.looked:
            features = session.looked[branch.name]
            return [own for own in features for _ in range(rows // len(features))]
        if session is not None and branch.name in session.features:
            tokens = session.tokens
            return features_of_rows(session.features[branch.name], tokens, rows // len(tokens))
        if branch.pixel:
            raise CdkitError(
                f"branch {branch.name!r} distorts pixels, but the image came encoded; pass "
                "pixel_values"
            )
        return None

    def _levels(
        self,
        branch: str,
        like: Float[Tensor, "rows _ hidden"],
        image_index: Int[Tensor, "rows tokens"],
    ) -> tuple[Float[Tensor, "rows tokens hidden"], ...]:
        """What deeper layers add to a branch's prompts, at their image tokens."""
        session = self.session
        if session is None:
            return ()
        added = session.levels.get(branch, session.levels.get(ORIGINAL, ()))
        expand = image_index.shape[0] // len(session.tokens)
        empty = like.new_zeros(*image_index.shape, like.shape[-1])
        return tuple(
            place_features(empty, image_index, features_of_rows(level, session.tokens, expand))
            for level in added
        )

    def typed(self, kwargs: dict[str, Any]) -> bool:
        """Whether the stock model made a mask of its own: without token types it is causal."""
        mask = kwargs.get("attention_mask")
        return mask is not None and self._plain_mask(mask) is None

    @staticmethod
    def _plain_mask(mask: Any) -> Tensor | None:
        """The 2-D mask, where the decoder was given one."""
        return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def _next_rows(
        self, batch: BranchedBatch, kwargs: dict[str, Any]
    ) -> Float[Tensor, "rows tokens hidden"]:
        """The new columns of a batch that has a cache: generated tokens, or more of the prompt."""
        embeds: Tensor = kwargs["inputs_embeds"]
        mask = self._plain_mask(kwargs.get("attention_mask"))
        new, start = embeds.shape[1], batch.seen
        real = None if mask is None else mask[:, -new:].bool()
        batch.extend(axes_last(kwargs.get("position_ids")), real, new)
        if start >= batch.layout.length:
            return embeds.repeat(len(batch.branches), 1, 1)
        image_index = batch.layout.image_index[: batch.rows]
        blocks = [embeds]
        for branch in self.branches:
            features = self._features(branch, batch.rows)
            blocks.append(
                embeds
                if features is None
                else place_features(embeds, image_index, features, start=start)
            )
        return torch.cat(blocks)


def _first_image(image_index: Int[Tensor, "rows tokens"]) -> int:
    """The first column in which any row has an image token."""
    on_image = (image_index >= 0).any(dim=0)
    return int(on_image.long().argmax()) if bool(on_image.any()) else image_index.shape[1]
