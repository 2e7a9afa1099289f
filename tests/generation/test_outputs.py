"""What `generate` returns, and what its processors, criteria and streamers see, is the method's."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

import cdkit
from cdkit.execution.optimizations import ALL
from cdkit.interfaces.cache_names import CACHE

from .presets import GREEDY, in_turn

QUESTIONS = ("is there a cat ?", "<image> w3 <image> w4 in the image ?")
Inputs = dict[str, Tensor]
MakeInputs = Callable[..., Inputs]
hf: Any = transformers  # much of it is not typed
FULL = {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}


def generate(model: Any, inputs: Inputs, **asked: Any) -> Any:
    return model.generate(**inputs, **({"max_new_tokens": 5, "do_sample": False} | FULL | asked))


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_logits_are_contrasted_and_constrained(
    beta: float, model: Any, make_inputs: MakeInputs
) -> None:
    method = cdkit.load("cmac", alpha=1.5, beta=beta)
    with cdkit.attach(model, method, trace=("logits",)) as run:
        out = generate(model, make_inputs(*QUESTIONS))
    assert len(run.trace.steps) == len(out.logits) == 5
    for step, given in zip(run.trace.steps, out.logits, strict=True):
        original, distorted = step.logits["original"], step.logits["distorted"]
        wanted = 2.5 * original - 1.5 * distorted
        # p_v >= beta max p, on probabilities here
        chances = original.softmax(dim=-1)
        kept = chances >= beta * chances.amax(dim=-1, keepdim=True) * (1 - 1e-12)
        wanted = wanted.masked_fill(~kept, -math.inf)
        torch.testing.assert_close(given.double(), wanted, rtol=1e-6, atol=1e-5)
        assert kept.sum(dim=-1).min() >= 1 and (kept.all() == (beta == 0))


def test_the_original_branch_of_imd_is_the_stock_model(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(model, cdkit.load("cmac_imd"), trace=("logits",)) as run:
        out = generate(model, inputs)
    ids = out.sequences
    mask = torch.cat((inputs["attention_mask"], torch.ones_like(ids[:, -5:])), dim=1)
    with torch.no_grad():
        stock = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),  # as generate counts
            pixel_values=inputs["pixel_values"],
        ).logits[:, -6:-1]
    traced = torch.stack([step.logits["original"] for step in run.trace.steps], dim=1)
    torch.testing.assert_close(traced, stock, rtol=0, atol=1e-9)
    assert ids[:, -5:].equal(torch.stack(out.logits, dim=1).argmax(dim=-1))


def test_the_latest_logits_are_there_at_no_cost(model: Any, make_inputs: MakeInputs) -> None:
    """A processor finds those of its own step; no branch is forced, and no step is kept."""
    inputs, method = make_inputs(*QUESTIONS), cdkit.load("cmac", alpha=1.5, beta=0.1)
    with cdkit.attach(model, method, trace=("logits",)) as run:
        wanted = generate(model, inputs)
        steps = run.trace.steps
    seen: list[Tensor] = []

    class Look(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            (step,) = latest.trace.steps
            own = steps[len(seen)]
            assert step.logits.keys() == own.logits.keys()
            for name, logits in step.logits.items():
                torch.testing.assert_close(logits, own.logits[name], rtol=0, atol=1e-9)
            assert step.combined is not None and own.combined is not None
            torch.testing.assert_close(step.combined, own.combined, rtol=0, atol=1e-6)
            seen.append(scores)
            return scores

    with cdkit.attach(model, method, trace=("last_logits",)) as latest:
        out = generate(model, inputs, logits_processor=LogitsProcessorList([Look()]))
    assert out.sequences.equal(wanted.sequences) and len(seen) == 5
    is_identity = cdkit.load("cmac", alpha=0.0)
    with cdkit.attach(model, is_identity, trace=("last_logits",), optimize=ALL) as latest:
        generate(model, inputs)
    assert latest.trace.steps[0].logits.keys() == {"original"}  # the other cannot matter
    with cdkit.attach(model, cdkit.load("plain"), trace=("last_logits",), optimize=ALL) as latest:
        generate(model, inputs)
    assert latest.trace.steps == []


def test_scores_come_after_the_processors(model: Any, make_inputs: MakeInputs) -> None:
    with cdkit.attach(model, cdkit.load("cmac")):
        out = generate(model, make_inputs(*QUESTIONS), do_sample=True, temperature=0.5, top_k=2)
    for logits, scores in zip(out.logits, out.scores, strict=True):
        best = logits.double().topk(2)
        kept = scores > -math.inf
        assert kept.sum(dim=-1).max() <= 2
        wanted = torch.full_like(logits.double(), -math.inf)
        wanted = wanted.scatter(-1, best.indices, best.values / 0.5)
        torch.testing.assert_close(scores.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", in_turn(GREEDY, 1))
@pytest.mark.parametrize("beams", [1, 3])
def test_the_returned_cache_is_a_plain_one_of_the_original_branch(
    name: str, beams: int, model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(model, cdkit.load(name), processor=processor):
        out = generate(model, inputs, num_beams=beams)
    cache = out[CACHE]
    stock = generate(model, inputs, num_beams=beams)[CACHE]
    assert type(cache) is type(stock) is hf.DynamicCache
    assert cache.get_seq_length() == stock.get_seq_length()
    for given, wanted in zip(cache.layers, stock.layers, strict=True):
        assert given.keys.shape == wanted.keys.shape
        assert given.values.shape == wanted.values.shape
    if not all(part.keeps_prefix for part in cdkit.load(name).live_state_interventions):
        return  # the image's own states are others
    # the image's keys do not depend on the method, whichever tokens came after them
    image = (inputs["input_ids"] == model.config.image_token_id)[1].nonzero()[:9, 0]
    for given, wanted in zip(cache.layers, stock.layers, strict=True):
        torch.testing.assert_close(
            given.keys[-1, :, image], wanted.keys[-1, :, image], rtol=0, atol=1e-9
        )


def test_the_returned_cache_can_be_used_by_the_stock_model(
    model: Any, make_inputs: MakeInputs
) -> None:
    """IMD leaves the original branch as it is, so its cache is the stock model's to the digit."""
    inputs = make_inputs("is there a cat ?")
    with cdkit.attach(model, cdkit.load("cmac_imd")):
        out = generate(model, inputs)
    ids = out.sequences
    with torch.no_grad():
        stock = model(input_ids=ids[:, :-1], pixel_values=inputs["pixel_values"])
        more = model(input_ids=ids[:, -1:], **{CACHE: out[CACHE]})
        whole = model(input_ids=ids, pixel_values=inputs["pixel_values"])
    for given, wanted in zip(out[CACHE].layers, stock[CACHE].layers, strict=True):
        kept = wanted.keys.shape[2]
        torch.testing.assert_close(given.keys[:, :, :kept], wanted.keys, rtol=0, atol=1e-9)
        torch.testing.assert_close(given.values[:, :, :kept], wanted.values, rtol=0, atol=1e-9)
    torch.testing.assert_close(more.logits[:, -1], whole.logits[:, -1], rtol=0, atol=1e-9)


class StopAt(StoppingCriteria):
    """Stops a row at a token; notes the rows it saw."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.rows: set[int] = set()

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.rows.add(input_ids.shape[0])
        return input_ids[:, -1] == self.token


def test_stopping_criteria_see_the_original_batch(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(QUESTIONS[0])
    with cdkit.attach(model, cdkit.load("cmac")):
        free = generate(model, inputs).sequences[0]
        stop = StopAt(int(free[-3]))
        both = StopAt(-1)
        out = generate(model, inputs, stopping_criteria=StoppingCriteriaList([stop]))
        generate(model, make_inputs(*QUESTIONS), stopping_criteria=StoppingCriteriaList([both]))
    assert stop.rows == {1} and both.rows == {2}
    end = inputs["input_ids"].shape[1] + free[-5:].tolist().index(stop.token) + 1
    assert out.sequences[0].equal(free[:end])


def test_stop_strings(model: Any, processor: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(QUESTIONS[0])
    with cdkit.attach(model, cdkit.load("cmac"), processor=processor):
        free = generate(model, inputs).sequences[0, -5:]
        word = processor.tokenizer.convert_ids_to_tokens([int(free[1])])[0]
        out = generate(model, inputs, stop_strings=[word], tokenizer=processor.tokenizer)
    given = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    assert given == free[: free.tolist().index(int(free[1])) + 1].tolist()


class Keep(LogitsProcessor):
    """Keeps what it was given."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.scores.append(scores)
        return scores


def test_logits_processors_get_the_combined_logits(model: Any, make_inputs: MakeInputs) -> None:
    keep = Keep()
    with cdkit.attach(model, cdkit.load("cmac")):
        out = generate(model, make_inputs(*QUESTIONS), logits_processor=LogitsProcessorList([keep]))
    assert len(keep.scores) == 5
    for given, wanted in zip(keep.scores, out.logits, strict=True):
        assert given.equal(wanted.to(given)) and given.isneginf().any()


def test_a_text_streamer_prints_the_answer(
    model: Any, processor: Any, make_inputs: MakeInputs, capsys: pytest.CaptureFixture[str]
) -> None:
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True)
    with cdkit.attach(model, cdkit.load("vcd")):
        out = generate(model, make_inputs(QUESTIONS[0]), streamer=streamer)
    words = processor.tokenizer.decode(out.sequences[0, -5:])
    assert capsys.readouterr().out.strip() == words


def test_the_arguments_of_generate_may_come_in_any_form(
    model: Any, make_inputs: MakeInputs
) -> None:
    """`inputs` positionally, a generation config, and arguments over it."""
    inputs = make_inputs(*QUESTIONS)
    ids, rest = inputs["input_ids"], {k: v for k, v in inputs.items() if k != "input_ids"}
    config = hf.GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0)
    with cdkit.attach(model, cdkit.load("cmac")):
        wanted = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert model.generate(ids, **rest, generation_config=config).equal(wanted)
        assert model.generate(ids, config, **rest).equal(wanted)
        assert model.generate(inputs=ids, **rest, generation_config=config).equal(wanted)
        longer = model.generate(ids, config, **rest, max_new_tokens=5)
    assert longer.shape[1] == wanted.shape[1] + 2


def test_a_missing_mask_means_no_padding_or_hugging_faces_guess(
    model: Any, make_inputs: MakeInputs
) -> None:
    for inputs in (make_inputs(QUESTIONS[0]), make_inputs(*QUESTIONS)):
        bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
        with cdkit.attach(model, cdkit.load("cmac")):
            wanted = generate(model, inputs)
            given = generate(model, bare)
        assert given.sequences.equal(wanted.sequences)
        for a, b in zip(given.logits, wanted.logits, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_generated_image_id_is_text(
    make_model: Callable[..., Any], make_inputs: MakeInputs
) -> None:
    own = make_model()
    with torch.no_grad():
        own.lm_head.bias[own.config.image_token_id] = 100.0  # it says nothing else
    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(own, cdkit.load("cmac"), trace=("image_attention", "mask")) as run:
        out = generate(own, inputs)
    assert out.sequences[:, -5:].eq(own.config.image_token_id).all()
    for step in run.trace.steps:
        assert step.image_attention["original"][0].shape == (2, 4, 18)
        assert step.mask["distorted"][0].shape[-1] == 18
