"""A model that answers batches of questions: the first step's logits, or whole answers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from traceback import walk_tb
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor
from transformers import LogitsProcessorList

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.protocols.conversation import prompt_under
from cdkit.evals.protocols.protocol import Protocol
from cdkit.evals.runner.checkpoint_settings import moving
from cdkit.evals.runner.encoder_cache import PIXELS, EncoderCache
from cdkit.evals.runner.gumbel import GumbelSampling
from cdkit.evals.runner.margins import MarginRecorder, scheduled
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.stock_logits import NO_NUMBERS, StockLogits
from cdkit.generation.call_compatibility import check_arguments
from cdkit.generation.guard import prompt_error
from cdkit.generation.trace import Step, Trace
from cdkit.interfaces.adapter_lookup import unwrap
from cdkit.interfaces.answer_text import (
    UNFINISHED,
    has_thought,
    is_thought_mark,
    opens_thought,
)
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.methods.method import Method
from cdkit.processors import check_prompt, picture_tokens

PINNED: Mapping[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_hidden_states": False,
    "output_attentions": False,
}
"""Arguments of `generate` that a run decides, whatever the checkpoint's generation config says."""
Logits = Mapping[str, Float[Tensor, "rows vocab"]]


@dataclass(frozen=True)
class Generated:
    """A generated answer.

    Args:
        text: The answer without special tokens.
        tokens: How many tokens it has, without the end token.
        truncated: Whether the token limit ended it.
        yes_score: As in `cdkit.Answer`, if margins were recorded and no thought stands before the
            answer.
        margin: The smallest change of a logit that could have changed the answer (see `margins`),
            if margins were recorded.
    """

    text: str
    tokens: int
    truncated: bool
    yes_score: float | None = None
    margin: float | None = None


@dataclass(frozen=True, eq=False)
class AnswerEngine:
    """A model with its processor, and how it decodes.

    Args:
        model: A model of `transformers` with an adapter in cdkit.
        processor: Its processor.
        temperature: What logits are divided by when sampling.
        noise_seed: The seed of distorted branches: one for a whole run, so that sampling seeds vary
            only the sampling.
        num_beams: Beams of a beam search.
        top_k: When sampling, keep the k most probable tokens.
        top_p: When sampling, keep the smallest set of tokens whose probabilities sum to this.
        protocol: How prompts are written, as it is for this model; None: as the adapter does.
        encoder_cache: Keeps image features from one call to the next; None: keeps none.
    """

    # model and processor are Any: those of `transformers` have no common type

    model: Any
    processor: Any
    temperature: float = 1.0
    noise_seed: int = 0
    num_beams: int = 4
    top_k: int | None = None
    top_p: float | None = None
    protocol: Protocol | None = None
    encoder_cache: EncoderCache | None = None

    def inputs(self, questions: Sequence[Question]) -> Mapping[str, Tensor]:
        """Encode questions, one image each.

        Returns:
            The left-padded batch on the model's device.

        Raises:
            CdkitError: An image cannot be read.
        """
        pictures = [[q.picture()] for q in questions]
        return self.encode(pictures, [q.prompt for q in questions])

    def encode(
        self, pictures: Sequence[Sequence[Image]], prompts: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """A left-padded batch of prompts, each with its images, on the model's device."""
        return self.moved(self.processed(pictures, prompts))

    def processed(
        self, pictures: Sequence[Sequence[Image]], prompts: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """The batch as the processor makes it, on the CPU.

        Raises:
            CdkitError: A prompt holds a token that stands for a picture.
        """
        for prompt in prompts:
            self.check_prompt(prompt)
        texts = [self.prompt(p, len(i)) for p, i in zip(prompts, pictures, strict=True)]
        return self.batch(pictures, texts)

    def batch(
        self, pictures: Sequence[Sequence[Image]], texts: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """The batch of whole prompts, each with its images or all without, on the CPU."""
        batch = self.processor(
            images=[list(images) for images in pictures] if any(pictures) else None,
            text=list(texts),
            return_tensors="pt",
            padding=True,
        )
        return dict(batch)

    def check_prompt(self, prompt: str) -> None:
        """Raise a CdkitError where a question holds a token that stands for a picture."""
        check_prompt(prompt, self._picture_tokens)

    @cached_property
    def _picture_tokens(self) -> frozenset[str]:
        return picture_tokens(self.processor, unwrap(self.model).config)

    def moved(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The batch on the model's device, pixels in its precision."""
        return {name: _to(tensor, self.model) for name, tensor in batch.items()}

    def prompt(self, question: str, images: int = 1) -> str:
        """The question in a conversation, with a place for each image."""
        return prompt_under(
            self.protocol,
            question,
            adapter=self._adapter,
            processor=self.processor,
            images=images,
        )

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt's own text: equal lengths make a batch without padding."""
        return [len(ids) for ids in self.processor.tokenizer(list(prompts))["input_ids"]]

    @torch.inference_mode()
    def first_step(
        self, method: Method, inputs: Mapping[str, Tensor], sample_ids: Sequence[str]
    ) -> tuple[Logits, Float[Tensor, "rows vocab"]]:
        """Run a method for one step after the prompt.

        Args:
            method: The method.
            inputs: An encoded batch.
            sample_ids: A name for each row, by which noise is drawn.

        Returns:
            The next-token logits of each branch, as the method's schedules scale them, and the
            logits that `generate` chose from.
        """
        with self._attached(method, inputs, sample_ids, trace=("logits",)) as run:
            asked = {"output_logits": True, "return_dict_in_generate": True}
            out = self._generate(method, inputs, 1, **asked)
            step = run.trace.steps[0]
        return scheduled(step), out.logits[0].float()

    @torch.inference_mode()
    def first_trace(
        self, method: Method, inputs: Mapping[str, Tensor], sample_ids: Sequence[str]
    ) -> Step:
        """The image attention and the masks of the step that predicts the first token."""
        traced = ("image_attention", "mask")
        with self._attached(method, inputs, sample_ids, trace=traced) as run:
            self._generate(method, inputs, 1)
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
        record_margins: bool = False,
    ) -> list[Generated]:
        """Generate whole answers.

        Args:
            method: The method.
            inputs: An encoded batch.
            sample_ids: A name for each row, by which noise is drawn.
            limit: Most tokens of an answer.
            seed: None: greedy; else sample by the Gumbel trick under this seed.
            beams: Search with `num_beams` beams instead.
            record_margins: Also record yes scores and margins; a method with a decode loop of its
                own has neither. A beam search has no margins, nor has a checkpoint whose settings
                move logits: a penalty stretches a margin, by another factor for each token.

        Returns:
            An answer for each row.

        Raises:
            PromptError: Some of the questions cannot be answered.
            CdkitError: The method cannot run on the model or in this mode.
        """
        length = inputs["input_ids"].shape[1]
        sampling = self.sampling(seed, sample_ids, length)
        num_beams = self.num_beams if beams else 1
        recorders: list[MarginRecorder] = []

        def processors(trace: Trace) -> LogitsProcessorList:
            if not record_margins or method.loop is not None:
                return sampling
            recorder = MarginRecorder(
                trace,
                method.combiner,
                method.constraint,
                sampling,
                prompt_length=length,
                margins=num_beams == 1 and not self.adjusts_logits,
            )
            recorders.append(recorder)
            return LogitsProcessorList([*sampling, recorder])

        rows, stock = self.tokens(
            method,
            inputs,
            sample_ids,
            limit=limit,
            processors=processors,
            trace=("last_logits",) if record_margins and method.loop is None else (),
            num_beams=num_beams,
        )
        made = [
            self._decoded(row, limit, UNFINISHED * self._opens_thought(prompt))
            for row, prompt in zip(rows, inputs["input_ids"], strict=True)
        ]
        if not recorders:
            return made
        (recorder,) = recorders
        first = stock.first if recorder.first is None else recorder.first
        assert first is not None
        scores = self.yes_scores(first[::num_beams]).tolist()
        margins = recorder.smallest([self._steps(row) for row in rows])
        return [
            replace(
                answer,
                # the first step of a thought says nothing about yes and no
                yes_score=None if math.isnan(score) or has_thought(answer.text) else score,
                margin=margin,
            )
            for answer, score, margin in zip(made, scores, margins, strict=True)
        ]

    @torch.inference_mode()
    def tokens(
        self,
        method: Method,
        inputs: Mapping[str, Tensor],
        sample_ids: Sequence[str],
        *,
        limit: int,
        processors: Callable[[Trace], LogitsProcessorList],
        trace: Sequence[str] = (),
        **options: Any,
    ) -> tuple[list[list[int]], StockLogits]:
        """Generate new tokens: the one place where answers are made.

        Args:
            method: The method.
            inputs: An encoded batch.
            sample_ids: A name for each row, by which noise is drawn.
            limit: Most tokens of an answer.
            processors: Makes the logits processors; it is given what the method traces.
            trace: What the method traces.
            **options: Other arguments of `generate`.

        Returns:
            Each row's new tokens, with all that follows an end token, and the logits of a model
            with no method on, which are empty for any other.

        Raises:
            PromptError: Some of the prompts cannot be answered.
            CdkitError: The method cannot run on the model or in this mode.
        """
        length = inputs["input_ids"].shape[1]
        stock = StockLogits()
        with (
            self._attached(method, inputs, sample_ids, trace=trace) as run,
            self._watched(stock) if method.is_identity else nullcontext(),
        ):
            asked = {"logits_processor": processors(run.trace), **options}
            ids = self._generate(method, inputs, limit, **asked)
            rows: list[list[int]] = ids[:, length:].tolist()
        stock.check(method.name, [self._steps(row) for row in rows])
        return rows, stock

    def _steps(self, row: list[int]) -> int:
        """How many steps an answer took: its end token was chosen too, if it has one."""
        return min(len(self.until_end(row)) + 1, len(row))

    def sampling(
        self, seed: int | None, sample_ids: Sequence[str], prompt_length: int
    ) -> LogitsProcessorList:
        """What makes greedy search sample under a seed; nothing where there is none."""
        found = LogitsProcessorList()
        if seed is not None:
            found.append(
                GumbelSampling(
                    seed,
                    sample_ids,
                    prompt_length=prompt_length,
                    temperature=self.temperature,
                    top_k=self.top_k,
                    top_p=self.top_p,
                )
            )
        return found

    @contextmanager
    def _watched(self, found: StockLogits) -> Iterator[None]:
        """Shows `found` the logits that `generate` reads of a model with no method on."""

        def keep(module: object, given: object, output: Any) -> None:
            found.add(output.logits[:, -1])

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

    @property
    def adjusts_logits(self) -> bool:
        """Whether `generate` changes logits before it chooses, as the checkpoint asks for."""
        return bool(moving(self.model.generation_config))

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
        if bool((spoilt := logits.isnan().any(dim=-1)).any()):
            raise prompt_error("the first step", spoilt, lambda row: NO_NUMBERS)
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

    @contextmanager
    def _attached(
        self,
        method: Method,
        inputs: Mapping[str, Tensor],
        sample_ids: Sequence[str],
        trace: Sequence[str],
    ) -> Iterator[cdkit.Attachment]:
        """The method on the model, whose encoder is not asked twice for the images of `inputs`."""
        with (
            self._kept_features(inputs.get(PIXELS)),
            cdkit.attach(
                self.model,
                method,
                processor=self.processor,
                seed=self.noise_seed,
                sample_ids=list(sample_ids),
                trace=trace,
            ) as run,
        ):
            yield run

    @property
    def seconds_saved(self) -> float:
        """Seconds of the image encoder that were spared so far, since its output was kept."""
        return 0.0 if self.encoder_cache is None else self.encoder_cache.seconds_saved

    def _kept_features(self, pixels: Tensor | None) -> AbstractContextManager[None]:
        if self.encoder_cache is None or pixels is None:
            return nullcontext()
        return self.encoder_cache.serving(*self._adapter.encoder(unwrap(self.model)), pixels)

    def _generate(
        self, method: Method, inputs: Mapping[str, Tensor], limit: int, **options: Any
    ) -> Any:
        # a checkpoint's stop_strings are read with the tokenizer
        pinned = {**PINNED, "do_sample": False, "tokenizer": self.processor.tokenizer, **options}
        refusal = None
        try:
            pinned |= check_arguments(pinned, [self.model.generation_config], method, plain=False)
        except CdkitError as error:
            if not method.is_identity:
                raise
            refusal = error  # the stock model may take what no method runs with
        try:
            return self.model.generate(**inputs, max_new_tokens=limit, **pinned)
        except (CdkitError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if refusal is not None:
                raise refusal from error
            if not isinstance(error, ValueError) or not _is_of_transformers(error):
                raise
            said = str(error).strip().rstrip(".")
            raise CdkitError(
                f"{type(self.model).__name__} does not take this prompt: {said}. Check that the "
                "processor and generation_config.json are those of this checkpoint"
            ) from error

    def until_end(self, ids: list[int]) -> list[int]:
        """New tokens up to the first that ends an answer; all of them where none does."""
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        return ids[: next((i for i, token in enumerate(ids) if token in ends), None)]

    def _opens_thought(self, prompt: Tensor) -> bool:
        text = self.processor.tokenizer.decode(prompt[-16:].tolist(), skip_special_tokens=False)
        return opens_thought(str(text))

    @cached_property
    def _thought_marks(self) -> frozenset[int]:
        """Special tokens that open or close a thought: left out, a thought would look an answer."""
        tokenizer = self.processor.tokenizer
        special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        return frozenset(i for i, token in special if is_thought_mark(str(token)))

    def _decoded(self, ids: list[int], limit: int, before: str = "") -> Generated:
        kept = self.until_end(ids)
        tokenizer = self.processor.tokenizer
        if self._thought_marks.intersection(kept):
            dropped = set(tokenizer.all_special_ids) - self._thought_marks
            shown = [token for token in kept if token not in dropped]
            text = tokenizer.decode(shown, skip_special_tokens=False)
        else:
            text = tokenizer.decode(kept, skip_special_tokens=True)
        text = before + text
        return Generated(text.strip(), len(kept), truncated=len(kept) == len(ids) >= limit)


def _is_of_transformers(error: BaseException) -> bool:
    """Whether transformers found a fault in what it was given, by itself or by torch's checks."""
    frames = [frame.f_globals["__name__"] for frame, _ in walk_tb(error.__traceback__)]
    raised = [name.partition(".")[0] for name in frames]
    return next((name for name in reversed(raised) if name != "torch"), "") == "transformers"


def _to(tensor: Tensor, model: Any) -> Tensor:
    """Onto the model's device; pixels in its precision."""
    floats = model.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(model.device, floats)
