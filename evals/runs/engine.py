"""The model at work on a batch of questions: the first step's logits, or whole answers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor
from transformers import LogitsProcessorList

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.runs.gumbel import GumbelSampling
from cdkit.evals.runs.pictures import load_picture
from cdkit.evals.runs.questions import Question
from cdkit.evals.runs.watching import Watch, scheduled
from cdkit.generation.trace import Step
from cdkit.interfaces.model_adapter import ModelAdapter, unwrap
from cdkit.methods.method import Method

Logits = Mapping[str, Float[Tensor, "rows vocab"]]


@dataclass(frozen=True)
class Generated:
    """An answer's text, its tokens without the end, and whether the limit cut it off.

    Where the engine watched: `yes_score` as `cdkit.Answer` has it, and `margin`, the
    smallest change of a logit that could have changed it (see `watching`).
    """

    text: str
    tokens: int
    truncated: bool
    yes_score: float | None = None
    margin: float | None = None


@dataclass(frozen=True, eq=False)
class Engine:
    """A model with its processor. Any: what `transformers` hands out has no common type.

    `noise_seed` is the distorted branches': one for a whole run, so that sampling seeds vary the
    sampling alone.
    """

    model: Any
    processor: Any
    temperature: float = 1.0
    noise_seed: int = 0
    num_beams: int = 4
    top_k: int | None = None
    top_p: float | None = None

    def inputs(self, questions: Sequence[Question]) -> Mapping[str, Tensor]:
        """A left-padded batch of questions, one image each, on the model's device."""
        pictures = [[load_picture(q.image)] for q in questions]
        return self.encode(pictures, [q.prompt for q in questions])

    def encode(
        self, pictures: Sequence[Sequence[Image]], prompts: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """A left-padded batch of prompts, each with its images, on the model's device."""
        return self.moved(self.processed(pictures, prompts))

    def processed(
        self, pictures: Sequence[Sequence[Image]], prompts: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """The batch as the processor makes it, on the CPU."""
        batch = self.processor(
            images=[list(images) for images in pictures],
            text=[self.prompt(p, len(i)) for p, i in zip(prompts, pictures, strict=True)],
            return_tensors="pt",
            padding=True,
        )
        return dict(batch)

    def moved(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The batch on the model's device, pixels in its precision."""
        return {name: _to(tensor, self.model) for name, tensor in batch.items()}

    def prompt(self, question: str, images: int = 1) -> str:
        """The question in the model's own chat template, with a place for each image."""
        return str(self._adapter.prompt(question, images=images, processor=self.processor))

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt's own text: equal lengths make a batch without padding."""
        return [len(ids) for ids in self.processor.tokenizer(list(prompts))["input_ids"]]

    @torch.inference_mode()
    def first_step(
        self, method: Method, inputs: Mapping[str, Tensor], sample_ids: Sequence[str]
    ) -> tuple[Logits, Float[Tensor, "rows vocab"]]:
        """What a combiner is given after the prompt, and what `generate` made of it.

        Those are the branches' next-token logits, moved as far as the method's schedules say.
        """
        with self._attached(method, sample_ids, trace=("logits",)) as run:
            out = self._generate(inputs, 1, output_logits=True, return_dict_in_generate=True)
            step = run.trace.steps[0]
        return scheduled(step), out.logits[0].float()

    @torch.inference_mode()
    def first_trace(
        self, method: Method, inputs: Mapping[str, Tensor], sample_ids: Sequence[str]
    ) -> Step:
        """The image attention and the masks of the step that predicts the first token."""
        with self._attached(method, sample_ids, trace=("image_attention", "mask")) as run:
            self._generate(inputs, 1)
            step: Step = run.trace.steps[0]
        return step

    @torch.inference_mode()
    def answers(
        self,
        method: Method,
        inputs: Mapping[str, Tensor],
        sample_ids: Sequence[str],
        *,
        limit: int,
        seed: int | None,
        beams: bool = False,
        watch: bool = False,
    ) -> list[Generated]:
        """Whole answers by `generate`: greedy without a seed, else sampled by the Gumbel trick.

        With `beams` the best of a beam search instead. `watch` notes yes scores (of a method
        without a loop of its own) and margins (but of beams) on the way.
        """
        length = inputs["input_ids"].shape[1]
        sampling = LogitsProcessorList()
        if seed is not None:
            sampling.append(
                GumbelSampling(
                    seed,
                    sample_ids,
                    prompt_length=length,
                    temperature=self.temperature,
                    top_k=self.top_k,
                    top_p=self.top_p,
                )
            )
        num_beams = self.num_beams if beams else 1
        watch = watch and method.loop is None
        stock: list[Tensor] = []
        with (
            self._attached(method, sample_ids, trace=("last_logits",) if watch else ()) as run,
            self._first_logits(stock) if watch and method.is_identity else nullcontext(),
        ):
            looking = Watch(
                run.trace,
                method.combiner,
                method.constraint,
                sampling,
                prompt_length=length,
                margins=num_beams == 1,
            )
            processors = LogitsProcessorList([*sampling, *([looking] if watch else [])])
            ids = self._generate(inputs, limit, logits_processor=processors, num_beams=num_beams)
            made = [self._decoded(row[length:].tolist(), limit) for row in ids]
        if not watch:
            return made
        first = stock[0] if looking.first is None else looking.first
        scores = self.yes_scores(first[::num_beams]).tolist()
        # an end token was chosen too, where the limit did not cut the answer off
        margins = looking.smallest([answer.tokens + (not answer.truncated) for answer in made])
        return [
            replace(answer, yes_score=None if math.isnan(score) else score, margin=margin)
            for answer, score, margin in zip(made, scores, margins, strict=True)
        ]

    @contextmanager
    def _first_logits(self, found: list[Tensor]) -> Iterator[None]:
        """Appends the first logits that `generate` reads of a model with no method on."""

        def keep(module: object, given: object, output: Any) -> None:
            if not found:
                found.append(output.logits[:, -1].float())

        reader = self._adapter.lm_module(unwrap(self.model))
        hook = reader.register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def decode(self, token: int) -> str:
        return str(self.processor.tokenizer.decode([token], skip_special_tokens=True)).strip()

    @cached_property
    def _adapter(self) -> ModelAdapter:
        return cdkit.adapter_for(self.model)

    @cached_property
    def yes_ids(self) -> tuple[int, ...]:
        """The tokens that read "yes", whatever their case and blanks."""
        return self._variants("yes")

    @cached_property
    def no_ids(self) -> tuple[int, ...]:
        return self._variants("no")

    def yes_scores(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
        """logsumexp over the yes variants minus logsumexp over the no variants.

        NaN in a vocabulary that has no token for one of them.
        """
        if bool(logits.isnan().any()):
            raise CdkitError(
                "the model's logits are not numbers (NaN); check its weights and its dtype"
            )
        if not (self.yes_ids and self.no_ids):
            return logits.new_full(logits.shape[:1], math.nan, dtype=torch.float64)
        logits = logits.double()
        yes, no = logits[:, list(self.yes_ids)], logits[:, list(self.no_ids)]
        return yes.logsumexp(dim=-1) - no.logsumexp(dim=-1)

    def _variants(self, word: str) -> tuple[int, ...]:
        tokenizer = self.processor.tokenizer
        ids = range(len(tokenizer))
        texts = tokenizer.batch_decode([[i] for i in ids])
        return tuple(i for i, t in zip(ids, texts, strict=True) if t.strip().lower() == word)

    def _attached(self, method: Method, sample_ids: Sequence[str], **options: Any) -> Any:
        return cdkit.attach(
            self.model,
            method,
            processor=self.processor,
            seed=self.noise_seed,
            sample_ids=list(sample_ids),
            **options,
        )

    def _generate(self, inputs: Mapping[str, Tensor], limit: int, **options: Any) -> Any:
        options = {"num_beams": 1} | options
        return self.model.generate(**inputs, max_new_tokens=limit, do_sample=False, **options)

    def until_end(self, ids: list[int]) -> list[int]:
        """New tokens up to the first that ends an answer; all of them where none does."""
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        return ids[: next((i for i, token in enumerate(ids) if token in ends), None)]

    def _decoded(self, ids: list[int], limit: int) -> Generated:
        kept = self.until_end(ids)
        text = self.processor.tokenizer.decode(kept, skip_special_tokens=True)
        return Generated(text.strip(), len(kept), truncated=len(kept) == len(ids) >= limit)


def _to(tensor: Tensor, model: Any) -> Tensor:
    """Onto the model's device; pixels in its precision."""
    floats = model.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(model.device, floats)
