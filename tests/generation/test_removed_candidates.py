"""Where the user's processors remove every plausible token: an error, never an arbitrary token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from covers import covering
from torch import Tensor
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

import cdkit
from cdkit.generation import generate

QUESTIONS = ("is there a cat ?", "<image> w3 <image> w4 in the image ?")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "beams": {"do_sample": False, "num_beams": 3},
    "beam sampling": {"do_sample": True, "num_beams": 2},
}
Inputs = dict[str, Tensor]
MakeInputs = Callable[..., Inputs]


@pytest.fixture(autouse=True, params=[False, True], ids=["asks", "defers"])
def defers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the guard asks after the answer, as on a GPU, or at each step, as on a CPU."""
    if request.param:
        monkeypatch.setattr(generate, "WAITS_FOR_NOTHING", frozenset())


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return MODES[request.param]


def plausible_at_first(model: Any, inputs: Inputs, beta: float) -> list[int]:
    """Every token that any row's constraint keeps at the first step."""
    with torch.no_grad():
        logits = model(**inputs, logits_to_keep=1).logits[:, -1]
    kept = logits.softmax(-1) >= beta * logits.softmax(-1).amax(-1, keepdim=True)
    tokens: list[int] = kept.any(dim=0).nonzero()[:, 0].tolist()
    return tokens


def test_suppressed_tokens_raise(model: Any, make_inputs: MakeInputs, mode: dict[str, Any]) -> None:
    inputs = make_inputs(*QUESTIONS)
    banned = plausible_at_first(model, inputs, 0.5)
    with cdkit.attach(model, cdkit.load("cmac_imd", beta=0.5)):
        with pytest.raises(
            cdkit.CdkitError, match=r"cmac_imd, step 0, row 0: .*beta=0\.5"
        ) as error:
            model.generate(**inputs, max_new_tokens=3, suppress_tokens=banned, **mode)
    assert "use a smaller beta, or on_empty='original'" in str(error.value)


def test_a_combiner_with_a_cut_of_its_own(
    model: Any, make_inputs: MakeInputs, mode: dict[str, Any]
) -> None:
    """It has no beta: the error names the combiner, and the way out that it has."""
    inputs, method = make_inputs(*QUESTIONS), cdkit.load("deco", top_k=1)
    told = r"deco, step 0, row 0: .* layer_correction keeps; on_empty='original' falls back"
    with torch.no_grad():
        banned = model(**inputs, logits_to_keep=1).logits[:, -1].argmax(dim=-1).tolist()
    asked = {"max_new_tokens": 1, "suppress_tokens": banned} | mode
    with cdkit.attach(model, method):
        with pytest.raises(cdkit.CdkitError, match=told):
            model.generate(**inputs, **asked)
    torch.manual_seed(0)
    stock = model.generate(**inputs, **asked)
    with cdkit.attach(model, cdkit.load("deco", top_k=1, on_empty="original")):
        torch.manual_seed(0)
        assert model.generate(**inputs, **asked).equal(stock)


def test_the_error_names_the_step_and_the_row(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(*QUESTIONS)
    length = inputs["input_ids"].shape[1]

    class Late(SuppressTokensLogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            banned = scores.clone()
            if input_ids.shape[1] == length + 2:
                banned[1] = -float("inf")
            return banned

    processors = LogitsProcessorList([Late([0])])
    with cdkit.attach(model, cdkit.load("vcd")):
        with pytest.raises(cdkit.CdkitError, match=r"^vcd, step 2, row 1: .*beta=0\.1"):
            model.generate(**inputs, max_new_tokens=4, do_sample=False, logits_processor=processors)


def test_the_original_logits_take_over(
    model: Any, make_inputs: MakeInputs, mode: dict[str, Any]
) -> None:
    inputs = make_inputs(*QUESTIONS)
    banned = plausible_at_first(model, inputs, 0.5)
    asked = {"max_new_tokens": 1, "suppress_tokens": banned} | mode
    with cdkit.attach(model, cdkit.load("cmac_imd", beta=0.5, on_empty="original")):
        torch.manual_seed(0)
        given = model.generate(**inputs, **asked)
    torch.manual_seed(0)
    stock = model.generate(**inputs, **asked)  # IMD's original branch is the stock model
    assert given.equal(stock)


class BanTheBest(SuppressTokensLogitsProcessor):
    """Removes each row's best token: with beta 1 that is all that the constraint keeps."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return scores.scatter(-1, scores.argmax(dim=-1, keepdim=True), -float("inf"))


def test_the_original_logits_take_over_at_every_step(
    model: Any, make_inputs: MakeInputs, mode: dict[str, Any]
) -> None:
    """Beams, too, are then ranked as the stock model's: by log-probabilities."""
    inputs = make_inputs(*QUESTIONS)
    asked = {"max_new_tokens": 5, "logits_processor": LogitsProcessorList([BanTheBest([0])])} | mode
    runs = []
    for method in ("cmac_imd", None):
        torch.manual_seed(0)
        if method is None:
            runs.append(model.generate(**inputs, **asked))
            continue
        with cdkit.attach(model, cdkit.load(method, beta=1.0, on_empty="original")):
            runs.append(model.generate(**inputs, **asked))
    assert runs[0].equal(runs[1])


def test_only_the_empty_row_falls_back(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(*QUESTIONS)
    first = plausible_at_first(model, make_inputs(QUESTIONS[0]), 0.9)
    method = cdkit.load("cmac_imd", beta=0.9, on_empty="original")
    asked = {"max_new_tokens": 1, "do_sample": False, "suppress_tokens": first}
    with cdkit.attach(model, method):
        given = model.generate(**inputs, **asked)
        alone = model.generate(**make_inputs(QUESTIONS[1]), **asked)
    assert given[1, -1] == alone[0, -1]
    assert given[0, -1] == model.generate(**make_inputs(QUESTIONS[0]), **asked)[0, -1]


def test_min_new_tokens(model: Any, make_inputs: MakeInputs, mode: dict[str, Any]) -> None:
    """The end token is the only plausible one: it may not end the answer yet."""
    inputs = make_inputs(QUESTIONS[0])
    with cdkit.attach(model, cdkit.load("cmac_imd", beta=1.0)):
        best = int(model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1])
        asked = {"max_new_tokens": 4, "eos_token_id": best, **mode}
        with pytest.raises(cdkit.CdkitError, match=r"step 0, row 0: .*beta=1\.0"):
            model.generate(**inputs, min_new_tokens=2, **asked)
    with cdkit.attach(model, cdkit.load("cmac_imd", beta=1.0, on_empty="original")):
        out = model.generate(**inputs, min_new_tokens=2, **asked)
    answer = out[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(answer) >= 2 and best not in answer[:2]


def test_no_repeat_ngrams(model: Any, make_inputs: MakeInputs, mode: dict[str, Any]) -> None:
    """With one plausible token a step, greedy decoding comes to repeat itself, and then it raises;
    until then no token is one that the constraint removes."""
    inputs = make_inputs(*QUESTIONS)
    asked = {"max_new_tokens": 30, "no_repeat_ngram_size": 1, **mode}
    with cdkit.attach(model, cdkit.load("cmac_imd", beta=1.0)):
        with pytest.raises(cdkit.CdkitError, match=r"step \d+, row \d: .*beta=1\.0"):
            model.generate(**inputs, **asked)
    with cdkit.attach(model, cdkit.load("cmac_imd", beta=1.0, on_empty="original")):
        out = model.generate(**inputs, **asked)
    for row in out[:, inputs["input_ids"].shape[1] :].tolist():
        assert len(set(row)) == len(row) == 30


@pytest.mark.parametrize(
    ("name", "beta"), covering(["cmac", "vcd", "plausibility"], [0.1, 0.5, 1.0])
)
def test_no_token_is_arbitrary(
    name: str,
    beta: float,
    model: Any,
    make_inputs: MakeInputs,
    mode: dict[str, Any],
) -> None:
    """Every token of every returned answer is one that the constraint kept at its step."""
    inputs = make_inputs(*QUESTIONS)
    method = cdkit.load(name, beta=beta)
    if name == "cmac":
        method = cdkit.load(name, beta=beta, scope="row")
    length = inputs["input_ids"].shape[1]
    names = ["a", "b"]
    returned = {"num_return_sequences": 2}
    if mode.get("num_beams") is None and not mode["do_sample"]:
        returned = {}
    with cdkit.attach(model, method, sample_ids=names):
        out = model.generate(**inputs, max_new_tokens=4, no_repeat_ngram_size=0, **returned, **mode)
    copies = out.shape[0] // 2
    for row, ids in enumerate(out):
        own = make_inputs(QUESTIONS[row // copies])
        whole = torch.cat((own["input_ids"], ids[None, length:]), dim=1)
        with torch.no_grad(), cdkit.attach(model, method, sample_ids=[names[row // copies]]):
            logits = model(
                input_ids=whole, pixel_values=own["pixel_values"], logits_to_keep=5
            ).logits[0]
        for step in range(4):
            assert logits[step, ids[length + step]] > -float("inf"), (row, step)


def test_a_finished_row_is_left_alone(model: Any, make_inputs: MakeInputs) -> None:
    """Row 0 ends at once; then it has no candidate left, and the other rows go on."""
    inputs = make_inputs(*QUESTIONS)
    length = inputs["input_ids"].shape[1]

    class EmptyFirstRow(SuppressTokensLogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            banned = scores.clone()
            if input_ids.shape[1] > length:
                banned[0] = -float("inf")
            return banned

    processors = LogitsProcessorList([EmptyFirstRow([0])])
    with cdkit.attach(model, cdkit.load("cmac")):
        free = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        asked = {"max_new_tokens": 4, "do_sample": False, "logits_processor": processors}
        with pytest.raises(cdkit.CdkitError, match="step 1, row 0"):
            model.generate(**inputs, **asked)
        end = int(free[0, length])
        assert end not in free[1, length:].tolist()
        out = model.generate(**inputs, **asked, eos_token_id=end)
    assert out[0, length:].tolist() == [end, 0, 0, 0]
    assert out[1].equal(free[1])


def test_a_row_that_a_criterion_stopped_is_left_alone(model: Any, make_inputs: MakeInputs) -> None:
    from transformers import StoppingCriteria, StoppingCriteriaList

    inputs = make_inputs(*QUESTIONS)
    length = inputs["input_ids"].shape[1]

    class FirstRow(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return torch.tensor([True, False])

    class EmptyFirstRow(SuppressTokensLogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            banned = scores.clone()
            if input_ids.shape[1] > length:
                banned[0] = -float("inf")
            return banned

    with cdkit.attach(model, cdkit.load("cmac")):
        free = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        out = model.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            logits_processor=LogitsProcessorList([EmptyFirstRow([0])]),
            stopping_criteria=StoppingCriteriaList([FirstRow()]),
            eos_token_id=3,
        )
    assert out[1].equal(free[1])


@pytest.mark.parametrize("beams", [2, 3])
def test_a_finished_sample_of_a_beam_search_is_left_alone(
    beams: int, model: Any, make_inputs: MakeInputs
) -> None:
    """All that is plausible of prompt 0 ends it; no later candidate of its beams is chosen."""
    inputs = make_inputs(*QUESTIONS)
    length = inputs["input_ids"].shape[1]

    class EmptyFirstSample(SuppressTokensLogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            banned = scores.clone()
            if input_ids.shape[1] > length:
                banned[:beams] = -float("inf")
            return banned

    asked = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams}
    with cdkit.attach(model, cdkit.load("plausibility", beta=1.0)):
        free = model.generate(**inputs, **asked)
        end = int(free[0, length])
        assert end not in free[1, length:].tolist()
        out = model.generate(
            **inputs,
            **asked,
            eos_token_id=end,
            logits_processor=LogitsProcessorList([EmptyFirstSample([0])]),
        )
    assert set(out[0, length:].tolist()) == {end}  # which is what beam search fills up with
    assert out[1].equal(free[1])


def test_without_the_constraint_the_message_does_not_blame_beta(
    model: Any, make_inputs: MakeInputs, mode: dict[str, Any]
) -> None:
    everything = list(range(model.config.text_config.vocab_size))
    with cdkit.attach(model, cdkit.load("cmac_imd", beta=0.0)):
        with pytest.raises(cdkit.CdkitError, match="remove every token that there is") as error:
            model.generate(
                **make_inputs(QUESTIONS[0]), max_new_tokens=2, suppress_tokens=everything, **mode
            )
    assert "ask less of the logits processors" in str(error.value)
