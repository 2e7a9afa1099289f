"""The textbook loop of contrastive decoding, as public code runs it.

Each branch has its own prompt, its own prefill and its own cache, and the branches go through the
model one after the other. Inputs are distorted before the model sees them. What happens inside of
the attention has no textbook code: there a copy of the model's modules, which shares its weights,
carries the one branch as its original one.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import cdkit
from cdkit.branches.layout import make_layout
from cdkit.errors import CdkitError
from cdkit.evals.runner.modes import PLAIN
from cdkit.evals.speed.bench_runners import Logits, Tick, Tokens
from cdkit.evals.speed.prompts import Prompts
from cdkit.generation.prompts import Session
from cdkit.interfaces.cache_names import CACHE
from cdkit.interfaces.depth import Depth
from cdkit.interfaces.distortion import AttentionDistortion, Prompt
from cdkit.interfaces.intervention import Intervention
from cdkit.interfaces.model_adapter import adapter_for
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.methods.method import ORIGINAL, Branch, Method, kind_of
from cdkit.strategies.combiners.contrast import Contrast

Inputs = Mapping[str, Tensor]
ALONE = Contrast(alpha=0.0)
"""Hands the original branch's logits on."""


@dataclass(frozen=True)
class OnOriginal(Intervention):
    """What a method does to a distorted branch's attention, done to the original branch."""

    part: AttentionDistortion | Intervention
    layers: Depth
    branches: tuple[str, ...] = (ORIGINAL,)

    @property
    def needs_whole_prompt(self) -> bool:
        return self.part.needs_whole_prompt

    def intervene(self, segment: CrossModalSegment) -> CrossModalSegment:
        if isinstance(self.part, AttentionDistortion):
            return self.part.distort(segment)
        return self.part.intervene(segment)


@dataclass(frozen=True, eq=False)
class Pass:
    """One branch: the model it goes through, what is done inside of it, and its prompts."""

    branch: str
    model: Any
    method: Method | None
    """Attached to `model`; None where it is stock."""
    prompts: Callable[[], Inputs]


@dataclass(frozen=True, eq=False)
class TwoPass:
    """Greedy decoding of a method, pass after pass; without passes for branches, plain decoding."""

    passes: tuple[Pass, ...]
    """The original branch's first."""
    method: Method
    prompts: Prompts
    materialised: bool

    WHOLE: ClassVar[frozenset[str]] = frozenset()
    FAST: ClassVar[frozenset[str]] = frozenset({"fast_kernels"})

    @contextmanager
    def ready(self) -> Iterator[None]:
        with ExitStack() as stack:
            for own in self.passes:
                if own.method is not None:
                    attached = cdkit.attach(
                        own.model,
                        own.method,
                        sample_ids=self.prompts.sample_ids,
                        optimize=self.WHOLE if self.materialised else self.FAST,
                    )
                    stack.enter_context(attached)
            yield

    def answer(self, limit: int, tick: Tick) -> Tokens:
        chosen: list[Tensor] = []
        with torch.no_grad():
            for _, combined in self._steps(limit, lambda step: chosen[step]):
                chosen.append(combined.argmax(dim=-1))
                tick()
        return torch.stack(chosen, dim=1)

    def logits(self, tokens: Tokens) -> Logits:
        return self.original_and_combined(tokens)[1]

    def original_and_combined(self, tokens: Tokens) -> tuple[Logits, Logits]:
        """The original branch's logits beside what the method makes of them."""
        with torch.no_grad():
            steps = list(self._steps(tokens.shape[1], lambda step: tokens[:, step]))
        return torch.stack([own for own, _ in steps]), torch.stack([made for _, made in steps])

    def _steps(
        self, limit: int, token_of: Callable[[int], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Original and combined logits of each step, after the tokens that `token_of` tells."""
        state: Mapping[str, Tensor] = {}
        inputs = [dict(own.prompts()) for own in self.passes]
        for step in range(limit):
            logits = {}
            for own, given in zip(self.passes, inputs, strict=True):
                if step > 0:
                    token = token_of(step - 1)[:, None]
                    given["input_ids"] = token
                    seen = given["attention_mask"]
                    given["attention_mask"] = torch.cat((seen, torch.ones_like(token)), dim=1)
                    given.pop("pixel_values", None)
                output = own.model(**given, use_cache=True, logits_to_keep=1)
                given[CACHE] = getattr(output, CACHE)
                last = output.logits[:, -1]
                logits[own.branch] = last.to(torch.promote_types(last.dtype, torch.float32))
            original = logits.pop(ORIGINAL)
            combined, state = self.method.combine(original, logits, step=step, state=state)
            yield original, combined


def one_pass(model: Any, prompts: Prompts) -> TwoPass:
    """The same loop without a method: what `generate` computes when nothing is attached."""
    alone = Pass(ORIGINAL, model, None, _prompts_of(model, None, prompts, None))
    return TwoPass((alone,), Method(name=PLAIN, combiner=ALONE), prompts, materialised=False)


def two_pass(
    model: Any, method: Method, prompts: Prompts, *, processor: Any, materialised: bool = False
) -> TwoPass:
    """The loop for `method`; `materialised` has all attention weights of the decoder made.

    Raises CdkitError for what only cdkit's own engine can run.
    """
    check_expressible(method)
    branches = method.live_branches
    inner = {ORIGINAL: _inner(method, None)}
    inner |= {branch.name: _inner(method, branch) for branch in branches}
    stock = _eager(model) if materialised else model
    passes = tuple(
        Pass(
            branch=name,
            model=stock if own is None else _copied(model),
            method=own,
            prompts=_prompts_of(model, branch, prompts, processor),
        )
        for (name, own), branch in zip(inner.items(), (None, *branches), strict=True)
    )
    return TwoPass(passes, method, prompts, materialised)


def check_expressible(method: Method) -> None:
    """Raise for a method that is more than branches over a stock model."""
    extra: list[object] = [*method.schedules]
    extra += [part for part in (method.loop, method.readout) if part is not None]
    extra += [part for branch in method.branches for part in branch.feature]
    if extra:
        raise CdkitError(
            f"{method.name} cannot be benched: {kind_of(extra[0])} has no place in the two-pass "
            "loop that cdkit is checked against, which knows distortions of pixels, prompt and "
            "attention, interventions and a calibrator; use a method of these, such as cmac, vcd "
            "or icd"
        )
    if not method.live_branches:
        raise CdkitError(
            f"{method.name} cannot be benched: it has no distorted branch, so there is no second "
            "pass to save; use a method with one, such as cmac, vcd or icd"
        )


def _inner(method: Method, branch: Branch | None) -> Method | None:
    """What is done inside of the attention of one branch (None: the original one), on its own."""
    name = ORIGINAL if branch is None else branch.name
    if branch is not None and any(part.removes_image for part in branch.prompt):
        return None  # there is no image to look at
    parts: list[AttentionDistortion | Intervention] = []
    parts += [] if branch is None else branch.attention
    parts += [part for part in method.interventions if name in part.branches]
    calibrator = method.calibrator
    if calibrator is not None and calibrator.is_identity:
        calibrator = None
    if not parts and calibrator is None:
        return None
    return Method(
        name=f"{method.name}, branch {name}",
        combiner=ALONE,
        calibrator=calibrator,
        interventions=tuple(OnOriginal(part, part.layers) for part in parts),
    )


def _prompts_of(
    model: Any, branch: Branch | None, prompts: Prompts, processor: Any
) -> Callable[[], Inputs]:
    """A branch's inputs, made anew for each answer: distorting them is part of its price."""

    def make() -> Inputs:
        inputs = dict(prompts.inputs())
        if branch is None:
            return inputs
        adapter = adapter_for(model)
        image_index = adapter.image_index(model, prompts.ids)
        if branch.pixel:
            ones = [1] * prompts.ids.shape[0]
            images = adapter.split_pixels(model, inputs, ones)
            real = torch.ones_like(prompts.ids, dtype=torch.bool)
            layout = make_layout(image_index, real)
            noted = Session(prompts.ids, real, image_index, layout, images, 0, prompts.sample_ids)
            pixels = noted.distorted_pixels(branch, images)
            inputs["pixel_values"] = adapter.join_pixels(model, pixels, inputs)
        if branch.prompt:
            rows = zip(prompts.ids.tolist(), (image_index >= 0).tolist(), strict=True)
            new = [_rewritten(row, flags, branch, adapter, processor) for row, flags in rows]
            if len({len(prompt.ids) for prompt in new}) > 1:
                raise CdkitError(
                    f"branch {branch.name!r} makes prompts of unequal length of equal ones; the "
                    "two-pass loop pads none"
                )
            ids = torch.tensor([prompt.ids for prompt in new], device=prompts.ids.device)
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if not any(new[0].is_image):
                inputs.pop("pixel_values")
        return inputs

    return make


def _rewritten(
    ids: list[int], is_image: list[bool], branch: Branch, adapter: Any, processor: Any
) -> Prompt:
    tokenizer = processor.tokenizer
    last = len(is_image) - is_image[::-1].index(True)
    prompt = Prompt(
        ids=tuple(ids),
        is_image=tuple(is_image),
        system_slot=adapter.system_slot(ids, tokenizer),
        question_slot=last,
        encode=lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]),
    )
    for distortion in branch.prompt:
        prompt = distortion.distort(prompt)
    return prompt


def _copied(model: Any) -> Any:
    """Modules and configs of its own, the very same weights."""
    shared: list[Tensor] = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _eager(model: Any) -> Any:
    own = _copied(model)
    own.set_attn_implementation({"text_config": "eager"})
    return own
