"""Run a method's decode loop inside `generate(custom_generate=...)`."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput

from cdkit.branches.method_cache import MethodCache
from cdkit.errors import CdkitError, PromptError
from cdkit.generation.attached_engine import AttachedEngine
from cdkit.generation.guard import check_numbers
from cdkit.interfaces.cache_names import CACHE
from cdkit.interfaces.decoding_loop import DecodingContext, Hypothesis, Mode, Rows
from cdkit.methods.part_results import check_answers, said_of

STOCK: Mapping[Mode, GenerationMode] = {
    "greedy": GenerationMode.GREEDY_SEARCH,
    "sample": GenerationMode.SAMPLE,
    "beam": GenerationMode.BEAM_SEARCH,
    "beam sample": GenerationMode.BEAM_SAMPLE,
}


@dataclass(frozen=True, eq=False)
class ModelDecoding(DecodingContext):
    """On a model with a method attached."""

    engine: AttachedEngine
    model: Any
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList

    def select(self, rows: Rows, indices: Int[Tensor, " chosen"]) -> Rows:
        return _select(rows, indices)

    def extend(
        self,
        rows: Rows,
        tokens: Int[Tensor, "chosen new"],
        *,
        parents: Int[Tensor, " chosen"] | None = None,
    ) -> Rows:
        if tokens.ndim != 2 or tokens.dtype.is_floating_point or tokens.dtype.is_complex:
            raise CdkitError(
                "extend takes whole numbers of shape (rows, new tokens), got "
                f"{said_of(tokens)}: write tokens[:, None] for one new token of each row"
            )
        # the model writes into the cache that it is given
        cache = _cache(rows).fork() if parents is None else _cache_of(rows, parents)
        output = self.model(
            input_ids=tokens,
            **{CACHE: cache},
            position_ids=cache.positions_ahead(tokens.shape[1]),
            use_cache=True,
            logits_to_keep=1,
        )
        return _rows(self.engine, output)

    def processed(
        self,
        rows: Rows,
        generated: Int[Tensor, "rows new"],
        scores: Float[Tensor, "rows vocab"],
    ) -> Float[Tensor, "rows vocab"]:
        count = scores.shape[0]
        # a processor may expect `beams` rows a prompt: missing ones are copies of the last row
        padded = torch.arange(max(count, self.beams), device=scores.device).clamp(max=count - 1)
        self.engine.last_original = rows.original[padded]
        left: Tensor = self.logits_processor(self._ids(generated[padded]), scores[padded])  # type: ignore[arg-type]
        return left[:count]

    def ended(self, generated: Int[Tensor, "rows new"]) -> Bool[Tensor, " rows"]:
        criteria: Any = self.stopping_criteria  # its type asks for a LongTensor
        done: Tensor = criteria(self._ids(generated), None)
        return done

    def _ids(self, generated: Int[Tensor, "rows new"]) -> Int[Tensor, "rows tokens"]:
        return torch.cat((self.prompt_ids.expand(generated.shape[0], -1), generated), dim=1)


def of_each_prompt(arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What Hugging Face makes logits processors of, for each prompt as if it came alone."""
    beams, allowed = arguments["generation_config"].num_beams, arguments["prefix_allowed_tokens_fn"]
    ids, inputs = arguments["encoder_input_ids"], arguments["model_kwargs"]
    mask = inputs.get("attention_mask")
    for sample in range(ids.shape[0]):
        rows = None if mask is None else mask[sample].expand(beams, -1)
        own = allowed and functools.partial(_allowed, allowed, sample)
        yield {
            **arguments,
            "encoder_input_ids": ids[sample : sample + 1],
            "model_kwargs": {**inputs, "attention_mask": rows},
            "prefix_allowed_tokens_fn": own,
        }


def _allowed(
    allowed: Callable[[int, Tensor], Any], sample: int, _: int, ids: Int[Tensor, " tokens"]
) -> Any:
    return allowed(sample, ids)


def unexpanded(expand: Callable[..., Any], **given: Any) -> Any:
    """In the place of Hugging Face's expansion to beams: a loop starts from one row a prompt."""
    return expand(**given | {"expand_size": 1})


def run_loop(
    engine: AttachedEngine,
    model: Any,
    input_ids: Int[Tensor, "samples tokens"],
    logits_processor: Sequence[LogitsProcessorList],
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    **inputs: Any,
) -> Any:
    """Hugging Face's `generate` calls this in place of its decode loop, with a list of processors
    for each prompt."""
    config, loop = generation_config, engine.attached.method.loop
    assert loop is not None
    _check_stock(engine, config)
    inputs = {name: value for name, value in inputs.items() if name != "synced_gpus"}
    prompts = _rows(engine, model._prefill(input_ids, config, inputs))
    is_image = _cache(prompts).image_columns
    ends = getattr(config, "_eos_token_tensor", None)
    found: list[Hypothesis] = []
    for sample, ids in enumerate(input_ids):
        own = torch.tensor([sample], device=ids.device)
        decoding = ModelDecoding(
            engine=engine,
            model=model,
            prompt=_select(prompts, own),
            prompt_ids=ids,
            image_columns=is_image[sample],
            logits_processor=logits_processor[sample],
            # a copy that records nothing: what ends a continuation has not stopped a row
            stopping_criteria=StoppingCriteriaList(stopping_criteria),
            eos_token_ids=() if ends is None else tuple(ends.tolist()),
            max_new_tokens=config.max_length - len(ids),
            beams=config.num_beams,
            returned=config.num_return_sequences,
            length_penalty=float(config.length_penalty),
            early_stopping=config.early_stopping,
        )
        try:
            answers = loop.run(decoding)
            check_answers(loop, answers, prompts.logits.shape[-1], decoding.max_new_tokens)
        except PromptError as error:  # its rows are those of this one prompt
            raise PromptError(str(error), {sample: next(iter(error.reasons.values()))}) from None
        name = engine.attached.method.name
        if len(answers) < decoding.returned:
            found_few = f"{name} found {len(answers)} answers"
            wanted = f"but num_return_sequences={decoding.returned}; ask for fewer"
            raise PromptError(
                f"{found_few} to prompt {sample}, {wanted}", {sample: f"{found_few}, {wanted}"}
            )
        found += answers[: decoding.returned]
    return _output(found, input_ids, config)


def _check_stock(engine: AttachedEngine, config: Any) -> None:
    """Raise where arguments choose another kind of search than the method's modes."""
    mode, name = config.get_generation_mode(), engine.attached.method.name
    if mode not in (wanted := [STOCK[own] for own in engine.attached.method.modes]):
        raise CdkitError(
            f"{name} brings its own loop in place of {', '.join(wanted)}, but the "
            f"arguments of generate ask for {mode}; leave out those that do"
        )


def _rows(engine: AttachedEngine, output: Any) -> Rows:
    assert engine.last_logits is not None
    check_numbers(engine.attached.method, engine.last_logits)
    engine.last_logits = None  # the rows that a loop chooses from are others
    cache, weights, original = getattr(output, CACHE), engine.last_weights, engine.last_original
    assert isinstance(cache, MethodCache) and weights is not None and original is not None
    logits, seen = output.logits[:, -1], cache.original_columns(weights)
    return Rows(logits, original, seen.to(logits.device), cache)


def _cache_of(rows: Rows, chosen: Int[Tensor, " chosen"]) -> MethodCache:
    """The cache of these rows."""
    try:
        return _cache(rows).select(chosen)
    except IndexError:  # asked before, it would be a wait for the device
        raise CdkitError(
            f"a loop chooses among rows 0 to {rows.logits.shape[0] - 1}, got {chosen.tolist()}"
        ) from None


def _select(rows: Rows, indices: Int[Tensor, " chosen"]) -> Rows:
    cache = _cache_of(rows, indices)
    return Rows(rows.logits[indices], rows.original[indices], rows.weights[indices], cache)


def _cache(rows: Rows) -> MethodCache:
    assert isinstance(rows.cache, MethodCache)
    return rows.cache


def _output(
    found: Sequence[Hypothesis], prompt_ids: Int[Tensor, "samples columns"], config: Any
) -> Any:
    """Prompts and answers, padded to one length, as Hugging Face's beam search gives them.

    But for a pad token of 0: there Hugging Face fills up with the first end token.
    """
    longest = max(len(answer.tokens) for answer in found)
    pad = config._pad_token_tensor
    filler = -1 if pad is None else int(pad)  # as there: no token at all
    new = [list(a.tokens) + [filler] * (longest - len(a.tokens)) for a in found]
    prompts = prompt_ids.repeat_interleave(config.num_return_sequences, dim=0)
    generated = torch.tensor(new, dtype=prompts.dtype, device=prompts.device)
    sequences = torch.cat((prompts, generated.view(len(found), longest)), dim=1)
    if not config.return_dict_in_generate:
        return sequences
    scores = torch.tensor([answer.score for answer in found], device=prompts.device)
    return GenerateBeamDecoderOnlyOutput(sequences=sequences, sequences_scores=scores)  # type: ignore[arg-type]
