"""Run a method's own decode loop inside `generate(custom_generate=...)`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput

from cdkit.cache import BranchedCache
from cdkit.engine import Engine
from cdkit.errors import CdkitError
from cdkit.loop import Decoding, Found, Rows


@dataclass(frozen=True, eq=False)
class ModelDecoding(Decoding):
    """On a model with a method attached."""

    engine: Engine
    model: Any

    def select(self, rows: Rows, indices: Int[Tensor, " chosen"]) -> Rows:
        return _select(rows, indices)

    def extend(self, rows: Rows, tokens: Int[Tensor, "rows new"]) -> Rows:
        every = torch.arange(tokens.shape[0], device=tokens.device)
        cache = _cache(rows).select(every)  # the model writes into its cache
        batch = cache.batch
        ahead = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        output = self.model(
            input_ids=tokens,
            past_key_values=cache,
            position_ids=batch.positions[: batch.rows, -1:] + ahead,
            use_cache=True,
            logits_to_keep=1,
        )
        return _rows(self.engine, output)


def run_loop(
    engine: Engine,
    model: Any,
    input_ids: Int[Tensor, "rows tokens"],
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    **inputs: Any,
) -> Any:
    """What Hugging Face's `generate` calls in place of its own loop."""
    config, loop = generation_config, engine.method.loop
    assert loop is not None
    for name in ("output_scores", "output_logits"):
        if getattr(config, name, None):
            raise CdkitError(
                f"{engine.method.name} brings its own decode loop, which keeps no {name[7:]} of "
                f"each step; leave {name} out, or use trace=('logits',) of cdkit.attach"
            )
    expanded = max(config.num_beams, config.num_return_sequences)
    first = torch.arange(0, input_ids.shape[0], expanded, device=input_ids.device)
    inputs = {name: value for name, value in inputs.items() if name != "synced_gpus"}
    prompts = _rows(engine, model._prefill(input_ids, config, inputs))
    layout = _cache(prompts).batch.layout
    prompt_ids = input_ids[first]
    width = prompt_ids.shape[1]
    ends = getattr(config, "_eos_token_tensor", None)
    found = loop.run(
        ModelDecoding(
            engine=engine,
            model=model,
            prompt=_select(prompts, first),
            prompt_ids=prompt_ids,
            image_columns=(layout.image_index[: input_ids.shape[0]] >= 0)[first],
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            ends=() if ends is None else tuple(ends.tolist()),
            max_new_tokens=config.max_length - width,
            beams=config.num_beams,
            returned=config.num_return_sequences,
            length_penalty=float(config.length_penalty),
            early_stopping=config.early_stopping,
        )
    )
    return _output(found, prompt_ids, config)


def _rows(engine: Engine, output: Any) -> Rows:
    weights = engine.last_weights
    assert weights is not None
    return Rows(output.logits[:, -1], weights, output.past_key_values)


def _select(rows: Rows, indices: Int[Tensor, " chosen"]) -> Rows:
    return Rows(rows.logits[indices], rows.weights[indices], _cache(rows).select(indices))


def _cache(rows: Rows) -> BranchedCache:
    assert isinstance(rows.cache, BranchedCache)
    return rows.cache


def _output(
    found: Sequence[Sequence[Found]], prompt_ids: Int[Tensor, "samples columns"], config: Any
) -> Any:
    """Prompts and answers, padded to one length, as Hugging Face's beam search gives them."""
    answers = [answer for sample in found for answer in sample]
    longest = max(len(answer.tokens) for answer in answers)
    pad = config._pad_token_tensor
    filler = 0 if pad is None else int(pad)
    new = [list(a.tokens) + [filler] * (longest - len(a.tokens)) for a in answers]
    prompts = prompt_ids.repeat_interleave(config.num_return_sequences, dim=0)
    generated = torch.tensor(new, dtype=prompts.dtype, device=prompts.device)
    sequences = torch.cat((prompts, generated.view(len(answers), longest)), dim=1)
    if not config.return_dict_in_generate:
        return sequences
    scores = torch.tensor([answer.score for answer in answers], device=prompts.device)
    return GenerateBeamDecoderOnlyOutput(sequences=sequences, sequences_scores=scores)  # type: ignore[arg-type]
