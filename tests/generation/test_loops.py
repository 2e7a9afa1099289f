"""A method's own decode loop: with loops of the test's own that say again what `generate` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList, SuppressTokensLogitsProcessor

import cdkit
from cdkit.interfaces.decoding_loop import DecodingContext, DecodingLoop, Hypothesis, Mode, Rows
from cdkit.strategies.loops.beam_search import first_beam, grow

from .presets import GREEDY, in_turn

hf: Any = transformers  # much of it is not typed
Inputs = dict[str, Tensor]
MakeInputs = Callable[..., Inputs]
QUESTIONS = ("is there a cat ?", "<image> w3 <image> w4 in the image ?", "w5 ?")
NEW = 6


@dataclass(frozen=True)
class Greedy(DecodingLoop):
    """Greedy search, a token at a time."""

    modes: ClassVar[frozenset[Mode]] = frozenset({"greedy"})

    def run(self, decoding: DecodingContext) -> Sequence[Hypothesis]:
        rows, tokens = decoding.prompt, decoding.prompt_ids.new_zeros(1, 0)
        while True:
            scores = decoding.processed(rows, tokens, rows.logits)
            tokens = torch.cat((tokens, scores.argmax(-1, keepdim=True)), dim=1)
            if bool(decoding.ended(tokens)):
                return [Hypothesis(tuple(tokens[0].tolist()), 0.0)]
            rows = decoding.extend(rows, tokens[:, -1:])


@dataclass(frozen=True)
class PlainBeams(DecodingLoop):
    """Beam search. `again`: all tokens of the beams are fed anew from the prompt at each step."""

    modes: ClassVar[frozenset[Mode]] = frozenset({"beam"})

    again: bool = False

    def run(self, decoding: DecodingContext) -> Sequence[Hypothesis]:
        beams, rows = first_beam(decoding), decoding.prompt
        while True:
            scores = decoding.processed(rows, beams.tokens, rows.logits.log_softmax(-1))
            beams = grow(beams, scores, decoding)
            if beams.over:
                return beams.finished
            if self.again:
                rows = decoding.select(decoding.prompt, torch.zeros_like(beams.parents))
                rows = decoding.extend(rows, beams.tokens)
            else:
                rows = decoding.extend(rows, beams.tokens[:, -1:], parents=beams.parents)


def with_loop(method: cdkit.Method, loop: DecodingLoop) -> cdkit.Method:
    return replace(method, loop=loop)


PLAIN = with_loop(cdkit.load("plain"), PlainBeams())
OPERA = cdkit.load("opera")


def answers(output: Any, inputs: Inputs, *ends: int) -> list[list[int]]:
    """The new tokens of each row, up to the first that ends it."""
    rows: list[list[int]] = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    stops = [next((i + 1 for i, x in enumerate(row) if x in ends), len(row)) for row in rows]
    return [row[:stop] for row, stop in zip(rows, stops, strict=True)]


def run(model: Any, inputs: Inputs, method: cdkit.Method | None = None, **asked: Any) -> Any:
    """`generate`, by the stock model where there is no method."""
    asked = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True} | asked
    if method is None:
        return model.generate(**inputs, **asked, output_scores=True)
    with cdkit.attach(model, method):
        return model.generate(**inputs, **asked)


def assert_same(loop: Any, stock: Any, inputs: Inputs, *ends: int) -> None:
    assert answers(loop, inputs, *ends) == answers(stock, inputs, *ends)
    assert (loop.sequences_scores - stock.sequences_scores).abs().max() < 1e-5


class AtToken(hf.StoppingCriteria):  # type: ignore[misc]
    """Ends a row at a token: the user's own criterion."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: Any) -> Tensor:
        return input_ids[:, -1] == self.token


# ---- as Hugging Face's ----------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"repetition_penalty": 1.5}, {"max_new_tokens": 1}], ids=str)
def test_greedy(asked: dict[str, Any], model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(*QUESTIONS)
    stock = run(model, inputs, **asked)
    loop = run(model, inputs, with_loop(cdkit.load("plain"), Greedy()), **asked)
    assert loop.sequences.equal(stock.sequences)


def test_greedy_ends_where_it_ends(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(*QUESTIONS)
    free = answers(run(model, inputs), inputs)
    end = free[0][2]
    stock = run(model, inputs, eos_token_id=end)
    loop = run(model, inputs, with_loop(cdkit.load("plain"), Greedy()), eos_token_id=end)
    assert loop.sequences.equal(stock.sequences)
    assert len(set(map(len, answers(loop, inputs, end)))) > 1, "the prompts end together"


SEARCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 2},
    {"num_beams": 5, "num_return_sequences": 5},
    {"length_penalty": 0.0},
    {"length_penalty": 2.5},
    {"length_penalty": -1.0},
    {"early_stopping": True},
    {"early_stopping": "never"},
    {"early_stopping": "never", "length_penalty": 2.5},
    {"early_stopping": "never", "length_penalty": -1.0},
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 1},
    {"encoder_repetition_penalty": 1.5},
    {"encoder_no_repeat_ngram_size": 1},
    {"min_new_tokens": 4},
    {"renormalize_logits": True, "suppress_tokens": [6, 7, 8]},
    {"max_new_tokens": 1},
    {"prefill_chunk_size": 4},
]


OPEN = cdkit.load("opera", weight=0.0, threshold=1000, candidates=10_000)
"""OPERA with nothing to penalise, nothing to go back to, and every token a candidate."""


def cases(searches: Sequence[dict[str, Any]], *, opera: Sequence[int]) -> list[Any]:
    """Plain beams for all, OPERA for some: what it chooses with is the same."""
    asked = [(PLAIN, search) for search in searches] + [(OPEN, searches[i]) for i in opera]
    return [pytest.param(method, search, id=f"{method.name} {search}") for method, search in asked]


@pytest.mark.parametrize(("method", "asked"), cases(SEARCHES, opera=(0, 2, 10)))
def test_beam_search(
    method: cdkit.Method, asked: dict[str, Any], model: Any, make_inputs: MakeInputs
) -> None:
    inputs, asked = make_inputs(*QUESTIONS), {"num_beams": 3} | asked
    assert_same(run(model, inputs, method, **asked), run(model, inputs, **asked), inputs)


@pytest.mark.parametrize(("method", "asked"), cases(SEARCHES[:10], opera=(0, 6)))
def test_beam_search_with_ends(
    method: cdkit.Method, asked: dict[str, Any], model: Any, make_inputs: MakeInputs
) -> None:
    inputs, asked = make_inputs(*QUESTIONS), {"num_beams": 3, "num_return_sequences": 2} | asked
    free = answers(run(model, inputs, **asked), inputs)
    ends = [free[0][0], free[2][1], free[4][2]]  # at the first token, and later
    asked |= {"eos_token_id": ends, "max_new_tokens": 9}
    stock = run(model, inputs, **asked)
    lengths = set(map(len, answers(stock, inputs, *ends)))
    favours_long = asked.get("length_penalty", 1.0) > 1
    assert favours_long or (len(lengths) > 1 and min(lengths) < 9), "nothing ends early"
    assert_same(run(model, inputs, method, **asked), stock, inputs, *ends)


@pytest.mark.parametrize("method", [PLAIN, OPEN], ids=["plain", "opera"])
def test_the_users_criteria_end_a_beam(
    method: cdkit.Method, model: Any, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(*QUESTIONS)
    asked: dict[str, Any] = {"num_beams": 3}
    end = answers(run(model, inputs, **asked), inputs)[0][1]
    asked |= {"stopping_criteria": StoppingCriteriaList([AtToken(end)])}
    stock, loop = run(model, inputs, **asked), run(model, inputs, method, **asked)
    assert any(len(row) < NEW for row in answers(stock, inputs, end)), "nothing ends early"
    assert_same(loop, stock, inputs, end)


def test_stop_strings(model: Any, processor: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(QUESTIONS[0])
    asked: dict[str, Any] = {"num_beams": 3}
    (free,) = answers(run(model, inputs, **asked), inputs)
    end = free[1]
    asked |= {"stop_strings": [processor.tokenizer.decode([end])], "tokenizer": processor.tokenizer}
    assert_same(run(model, inputs, PLAIN, **asked), run(model, inputs, **asked), inputs, end)


def test_processors_get_whole_prompts_of_beams(model: Any, make_inputs: MakeInputs) -> None:
    """Also at the first step, where a loop has one row, and where an answer has few beams left."""
    seen: list[tuple[int, ...]] = []

    class Seen(SuppressTokensLogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            seen.append((*input_ids.shape, *scores.shape))
            return scores

    inputs = make_inputs(*QUESTIONS)
    run(model, inputs, PLAIN, num_beams=3, logits_processor=LogitsProcessorList([Seen([0])]))
    length, vocab = inputs["input_ids"].shape[1], model.config.text_config.vocab_size
    one = [(3, length + step, 3, vocab) for step in range(NEW)]
    assert seen == one * len(QUESTIONS)


def test_allowed_tokens_of_each_prompt(model: Any, make_inputs: MakeInputs) -> None:
    def allowed(prompt: int, ids: Tensor) -> list[int]:
        return list(range(6 + 7 * prompt, 12 + 7 * prompt))

    inputs = make_inputs(*QUESTIONS)
    asked: dict[str, Any] = {"num_beams": 3, "prefix_allowed_tokens_fn": allowed}
    assert_same(run(model, inputs, PLAIN, **asked), run(model, inputs, **asked), inputs)


def test_the_plain_output_is_the_sequences(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(*QUESTIONS)
    whole = run(model, inputs, PLAIN, num_beams=3)
    alone = run(model, inputs, PLAIN, num_beams=3, return_dict_in_generate=False)
    assert alone.equal(whole.sequences)


# ---- with distorted branches ----------------------------------------------------------------

BRANCHED = [
    name
    for name in GREEDY
    if not cdkit.load(name).stateful
    and cdkit.load(name).remembering is None
    and not any(part.needs_whole_calls for part in cdkit.load(name).live_state_interventions)
]


@pytest.mark.parametrize("name", in_turn(BRANCHED, 0))
def test_branches_follow_a_loop(
    name: str, model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    """As under Hugging Face's beam search; also where generated tokens go in all at once."""
    inputs, method = make_inputs(*QUESTIONS), cdkit.load(name)
    asked = {
        "num_beams": 3,
        "max_new_tokens": 4,
        "do_sample": False,
        "return_dict_in_generate": True,
    }
    with cdkit.attach(model, method, processor=processor):
        stock = model.generate(**inputs, **asked, output_scores=True)
    for optimize in (True, False):
        own = with_loop(method, PlainBeams(again=optimize))
        with cdkit.attach(model, own, processor=processor, optimize=optimize):
            assert_same(model.generate(**inputs, **asked), stock, inputs)


@dataclass(frozen=True)
class Probe(DecodingLoop):
    """Looks at rows from several sides; keeps what it saw."""

    modes: ClassVar[frozenset[Mode]] = frozenset({"greedy"})
    seen: ClassVar[list[dict[str, Rows]]] = []

    def run(self, decoding: DecodingContext) -> Sequence[Hypothesis]:
        prompt, ids = decoding.prompt, decoding.prompt_ids
        first, second = ids.new_tensor([[7], [9], [7]]), ids.new_tensor([[11], [12], [13]])
        whole = torch.cat((first, second), dim=1)
        thrice = ids.new_zeros(3)
        three = decoding.select(prompt, thrice)
        one = decoding.extend(three, first)
        mixed = ids.new_tensor([2, 0])
        self.seen.append(
            {
                "prompt": prompt,
                "one": one,
                "one again": decoding.extend(prompt, first, parents=thrice),
                "two": decoding.extend(one, second),
                "two again": decoding.extend(one, second),  # `one` is what it was
                "two at once": decoding.extend(three, whole),
                "mixed": decoding.extend(one, second[mixed], parents=mixed),
                "mixed again": decoding.extend(decoding.select(one, mixed), second[mixed]),
                "mixed at once": decoding.extend(prompt, whole[mixed], parents=ids.new_zeros(2)),
            }
        )
        return [Hypothesis((7,), 0.0)]


def assert_rows(have: Rows, want: Rows) -> None:
    assert (have.logits - want.logits).abs().nan_to_num(0).max() < 1e-9
    assert torch.equal(have.logits.isneginf(), want.logits.isneginf())
    assert (have.original - want.original).abs().max() < 1e-9
    assert (have.weights[:, :, -1] - want.weights[:, :, -1]).abs().max() < 1e-9


@pytest.mark.parametrize("name", in_turn(BRANCHED, 1))
def test_rows_are_values(name: str, model: Any, processor: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(*QUESTIONS)
    Probe.seen.clear()
    method = with_loop(cdkit.load(name), Probe())
    with cdkit.attach(model, method, processor=processor):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    for prompt, seen in enumerate(Probe.seen):
        assert_rows(seen["one again"], seen["one"])
        assert_rows(seen["two again"], seen["two"])
        assert_rows(seen["two at once"], seen["two"])
        assert_rows(seen["mixed again"], seen["mixed"])
        assert_rows(seen["mixed at once"], seen["mixed"])
        assert not seen["two"].logits[0].equal(seen["two"].logits[1])
        length = inputs["input_ids"].shape[1]
        assert seen["prompt"].weights.shape[2:] == (1, length)
        assert seen["two at once"].weights.shape[2:] == (2, length + 2)
        for rows in seen.values():
            assert (rows.weights.sum(-1) - 1).abs().max() < 1e-9
            padding = inputs["attention_mask"][prompt] == 0
            assert not rows.weights[..., :length][..., padding].any()


@pytest.mark.parametrize("method", [PLAIN, OPERA], ids=["plain", "opera"])
def test_a_batch_is_each_prompt_alone(
    method: cdkit.Method, model: Any, make_inputs: MakeInputs
) -> None:
    asked = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 14}
    together = run(model, make_inputs(*QUESTIONS), method, **asked)
    found = answers(together, make_inputs(*QUESTIONS))
    for row, question in enumerate(QUESTIONS):
        alone = run(model, make_inputs(question), method, **asked)
        own = slice(2 * row, 2 * row + 2)
        assert answers(alone, make_inputs(question)) == found[own]
        assert (alone.sequences_scores - together.sequences_scores[own]).abs().max() < 1e-5


def test_a_trace_has_a_step_for_each_call(model: Any, make_inputs: MakeInputs) -> None:
    with cdkit.attach(model, OPERA, trace=("logits",)) as attached:
        model.generate(**make_inputs(QUESTIONS[0]), max_new_tokens=3, num_beams=2, do_sample=False)
    rows = [step.logits["original"].shape[0] for step in attached.trace.steps]
    assert rows == [1, 5, 10, 10]  # the prompt, then beams x candidates


def test_the_model_is_as_it_was(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(*QUESTIONS)
    before = run(model, inputs, num_beams=3).sequences
    run(model, inputs, OPERA, num_beams=3)
    assert run(model, inputs, num_beams=3).sequences.equal(before)


# ---- refusals -------------------------------------------------------------------------------


@pytest.fixture
def untouched(model: Any) -> Any:
    """A model whose decoder must not be called: a refusal comes before the first token."""

    def called(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the decoder ran")

    handle = model.model.language_model.register_forward_pre_hook(called)
    yield model
    handle.remove()


@pytest.mark.parametrize(
    ("asked", "mode"),
    [
        ({"do_sample": False}, "greedy"),
        ({"do_sample": True}, "sample"),
        ({"do_sample": True, "num_beams": 3}, "beam sample"),
    ],
)
def test_other_modes(
    asked: dict[str, Any], mode: str, untouched: Any, make_inputs: MakeInputs
) -> None:
    with cdkit.attach(untouched, OPERA), pytest.raises(cdkit.CdkitError) as error:
        untouched.generate(**make_inputs(QUESTIONS[0]), max_new_tokens=2, **asked)
    assert str(error.value) == (
        f"opera is not defined for decode mode {mode!r} (over_trust brings a loop of its own). "
        "It is defined for: beam (do_sample=False, num_beams=5, say)"
    )


def test_a_plain_call(untouched: Any, make_inputs: MakeInputs) -> None:
    told = "^opera is a way to decode; a plain call has none: generate$"
    with cdkit.attach(untouched, OPERA), torch.no_grad():
        with pytest.raises(cdkit.CdkitError, match=told):
            untouched(**make_inputs(QUESTIONS[0]))


class Streamer:
    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"use_cache": False}, "cannot run with use_cache=False: what it carries"),
        ({"output_scores": True}, r"cannot run with output_scores: over_trust brings its own"),
        ({"output_logits": True}, r"output_logits: .*; use trace=\('logits',\)"),
        ({"streamer": Streamer()}, "streamer: .*; its tokens may be taken back"),
        ({"synced_gpus": True}, "synced_gpus: .*; each process decodes as long as it needs"),
        ({"num_beam_groups": 3, "diversity_penalty": 0.5}, "a custom loop may not keep"),
        ({"custom_generate": lambda model, **kwargs: None}, "a custom loop may not keep"),
    ],
    ids=lambda case: "" if case is None or isinstance(case, str) else next(iter(case)),
)
def test_what_a_loop_cannot_do(
    asked: dict[str, Any], told: str, untouched: Any, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(*QUESTIONS[:2])
    asked = {"max_new_tokens": 2, "do_sample": False, "num_beams": 3} | asked
    with cdkit.attach(untouched, OPERA), pytest.raises(cdkit.CdkitError, match=told):
        untouched.generate(**inputs, **asked)


@pytest.mark.parametrize("method", [PLAIN, OPERA], ids=["plain", "opera"])
def test_a_prompt_without_an_image(method: cdkit.Method, untouched: Any, processor: Any) -> None:
    inputs = dict(processor(text=["USER: is there a cat ?"], return_tensors="pt"))
    with cdkit.attach(untouched, method):
        with pytest.raises(cdkit.CdkitError, match="prompt 0 has no image"):
            untouched.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)


@dataclass(frozen=True)
class Shy(DecodingLoop):
    """Gives one answer, whatever was asked for."""

    modes: ClassVar[frozenset[Mode]] = frozenset({"beam"})

    def run(self, decoding: DecodingContext) -> Sequence[Hypothesis]:
        return [Hypothesis((7,), 0.0)]


def test_a_loop_that_finds_too_few(model: Any, make_inputs: MakeInputs) -> None:
    told = "plain found 1 answers to prompt 0, but num_return_sequences=2; ask for fewer"
    with cdkit.attach(model, with_loop(cdkit.load("plain"), Shy())):
        with pytest.raises(cdkit.CdkitError, match=told):
            model.generate(
                **make_inputs(*QUESTIONS), max_new_tokens=2, num_beams=2, num_return_sequences=2
            )


def test_a_state_from_step_to_step_cannot_be_taken_back() -> None:
    stateful = next(m for m in map(cdkit.load, cdkit.presets()) if m.stateful)
    with pytest.raises(cdkit.CdkitError, match=r"takes tokens back, so .* cannot carry a state"):
        with_loop(stateful, PlainBeams())


# ---- removed candidates ---------------------------------------------------------------------


def logits_at_first(model: Any, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        first: Tensor = model(**inputs, logits_to_keep=1).logits[:, -1]
    return first


def test_processors_that_remove_what_is_plausible(model: Any, make_inputs: MakeInputs) -> None:
    inputs, plausible = make_inputs(QUESTIONS[0]), cdkit.load("plausibility", beta=0.5)
    p = logits_at_first(model, inputs).softmax(-1)[0]
    banned = (p >= 0.5 * p.max()).nonzero()[:, 0].tolist()
    asked: dict[str, Any] = {"num_beams": 3, "suppress_tokens": banned, "max_new_tokens": 4}
    for loop in (PLAIN.loop, OPERA.loop):
        assert loop is not None
        with pytest.raises(cdkit.CdkitError, match=r"plausibility, step 0, row 0: .*beta=0\.5"):
            run(model, inputs, with_loop(plausible, loop), **asked)
    back = cdkit.load("plausibility", beta=0.5, on_empty="original")
    with cdkit.attach(model, back):
        stock = run(model, inputs, **asked)
    assert_same(run(model, inputs, with_loop(back, PlainBeams()), **asked), stock, inputs)
    assert OPERA.loop is not None
    (found,) = answers(run(model, inputs, with_loop(back, OPERA.loop), **asked), inputs)
    assert not set(found) & set(banned)


def test_processors_that_remove_all_candidates(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(QUESTIONS[0])
    banned = logits_at_first(model, inputs)[0].topk(5).indices.tolist()
    told = (
        "^opera, step 0, row 0: the logits processors remove every token that over_trust keeps; "
        "set candidates higher, or on_empty='original' falls back to the original logits there$"
    )
    with pytest.raises(cdkit.CdkitError, match=told):
        run(model, inputs, OPERA, num_beams=3, suppress_tokens=banned)
    wide = cdkit.load("opera", candidates=8)
    (found,) = answers(run(model, inputs, wide, num_beams=3, suppress_tokens=banned), inputs)
    assert not set(found) & set(banned)


def test_where_nothing_else_is_left_it_does_not_go_back(
    model: Any, make_inputs: MakeInputs
) -> None:
    """A constraint that leaves one token at each step."""
    eager = cdkit.load(
        "opera", start=0, threshold=1, scale=100.0, factor=1.0, candidates=60, beta=1.0
    )
    inputs, asked = make_inputs(*QUESTIONS), {"num_beams": 3, "max_new_tokens": 10}
    found = answers(run(model, inputs, eager, **asked), inputs)
    greedy = answers(run(model, inputs, max_new_tokens=10), inputs)
    assert found == greedy


def test_allowed_tokens_hold_where_it_goes_back(model: Any, make_inputs: MakeInputs) -> None:
    eager = cdkit.load("opera", start=0, threshold=1, scale=100.0, factor=1.0, candidates=60)
    asked = {"num_beams": 3, "max_new_tokens": 12}
    for allowed in ([7], [7, 8, 9]):
        out = run(
            model,
            make_inputs(*QUESTIONS),
            eager,
            prefix_allowed_tokens_fn=lambda prompt, ids, own=allowed: own,
            **asked,
        )
        assert {t for row in answers(out, make_inputs(*QUESTIONS)) for t in row} <= set(allowed)


def test_logits_that_are_no_numbers(model: Any, make_inputs: MakeInputs) -> None:
    bias = model.lm_head.bias.data
    kept = bias.clone()
    try:
        bias[:] = float("nan")
        for method in (PLAIN, OPERA):
            with pytest.raises(cdkit.CdkitError, match="logits are not numbers"):
                run(model, make_inputs(QUESTIONS[0]), method, num_beams=2)
    finally:
        bias[:] = kept
