"""Parts that a user writes: interventions, readouts, combiners with state, several branches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import cdkit
from cdkit.interfaces.combiner import State
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.methods.branch import Branch
from cdkit.methods.method import Method
from cdkit.testing import check_combiner, check_readout, check_strategy

QUESTIONS = ("is there a cat ?", "<image> w3 <image> w4 in the image ?")
Inputs = dict[str, Tensor]
MakeInputs = Callable[..., Inputs]
Logits = Float[Tensor, "rows vocab"]
PLAIN = cdkit.load("plain").combiner
COMBINER = cdkit.load("vcd").combiner


@dataclass(frozen=True)
class Lift(cdkit.Intervention):
    """Adds a constant to the image logits of the last query row's text: more is looked at."""

    by: float = 2.0
    branches: tuple[str, ...] = ("original",)

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def intervene(self, segment: CrossModalSegment) -> CrossModalSegment:
        return replace(segment, logits=segment.logits + self.by)


@dataclass(frozen=True)
class FirstAndLast(cdkit.LayerReadout):
    """The first and the last decoder layer."""

    def layers(self, count: int) -> Mapping[str, int]:
        return {"first": 1, "last": count}


@dataclass(frozen=True)
class Fading(cdkit.LogitCombiner):
    """Contrast that grows with the step, against the running mean of the distorted logits."""

    stateful: ClassVar[bool] = True
    rate: float = 0.5

    @property
    def is_identity(self) -> bool:
        return False

    def uses(self, name: str) -> bool:
        return True

    def combine(
        self, original: Logits, others: Mapping[str, Logits], *, step: int, state: State
    ) -> tuple[Logits, State]:
        total = sum(others.values()) + state.get("total", torch.zeros_like(original))
        return original + self.rate * step * (original - total / (step + 1)), {"total": total}


def call(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**inputs).logits
    return logits


def test_they_keep_the_contract() -> None:
    check_strategy(Lift())
    check_readout(FirstAndLast())
    check_combiner(Fading())


def test_an_intervention_on_the_original_branch(
    model: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    inputs = make_inputs(*QUESTIONS)
    shares = []
    stock = logits_of(model, inputs)
    for by in (0.0, 2.0, 40.0):
        method = Method("lift", PLAIN, interventions=(Lift(by),))
        with cdkit.attach(model, method, trace=("image_attention",)) as run:
            lifted = logits_of(model, inputs)
        step = run.trace.steps[0]  # there, and in layer 0, all else is equal
        shares.append(step.image_attention["original"][0].sum(dim=-1))
        same = torch.allclose(lifted, stock, rtol=0, atol=1e-5)
        assert same == (by == 0.0)
    assert (shares[0] < shares[1]).all() and (shares[1] < shares[2]).all()
    torch.testing.assert_close(shares[2], torch.ones_like(shares[2]), rtol=0, atol=1e-6)


def test_an_intervention_acts_on_the_branches_that_it_names(
    model: Any, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(*QUESTIONS)
    method = cdkit.load("identical", beta=0.0)
    logits = {}
    for names in ((), ("original",), ("distorted",), ("original", "distorted")):
        acting = replace(method, interventions=(Lift(2.0, names),) if names else ())
        with cdkit.attach(model, acting, trace=("logits",)) as run:
            call(model, **inputs, logits_to_keep=1)
        logits[names] = run.trace.steps[0].logits
    stock, lifted = logits[()]["original"], logits[("original",)]["original"]
    assert not torch.allclose(stock, lifted)
    close: dict[str, Any] = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(logits[("original",)]["distorted"], stock, **close)
    torch.testing.assert_close(logits[("distorted",)]["original"], stock, **close)
    torch.testing.assert_close(logits[("distorted",)]["distorted"], lifted, **close)
    torch.testing.assert_close(logits[("original", "distorted")]["distorted"], lifted, **close)


def test_an_intervention_on_a_branch_that_is_not_there() -> None:
    with pytest.raises(cdkit.CdkitError, match="Lift acts on branch 'text', but lift has original"):
        Method("lift", PLAIN, interventions=(Lift(1.0, ("text",)),))


def test_a_readout_reaches_the_combiner(
    model: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    """The last layer read out is the original branch itself; the first one is another thing."""
    inputs = make_inputs(*QUESTIONS)
    method = Method("layers", COMBINER, readout=FirstAndLast())
    stock = logits_of(model, inputs)
    hidden: list[Tensor] = []
    layer = model.model.language_model.layers[0]
    with cdkit.attach(model, method, trace=("logits",)) as run:
        handle = layer.register_forward_hook(lambda m, i, output: hidden.append(output[:, -1]))
        changed = logits_of(model, inputs)
        handle.remove()
    assert not torch.allclose(changed[0], stock[0])
    for step, states in zip(run.trace.steps, hidden, strict=True):
        last, original = step.logits["last"], step.logits["original"]
        torch.testing.assert_close(last, original, rtol=0, atol=1e-9)
        with torch.no_grad():
            wanted = model.lm_head(model.model.language_model.norm(states))
        torch.testing.assert_close(step.logits["first"], wanted, rtol=0, atol=1e-9)


def test_a_readout_of_several_columns_is_refused(model: Any, make_inputs: MakeInputs) -> None:
    with cdkit.attach(model, Method("layers", COMBINER, readout=FirstAndLast())):
        with pytest.raises(cdkit.CdkitError, match="layers reads inner layers at the last token"):
            call(model, **make_inputs(*QUESTIONS))


def test_a_combiner_with_state(model: Any, make_inputs: MakeInputs) -> None:
    """Steps count from 0, and each row has its own state."""
    inputs = make_inputs(*QUESTIONS)
    method = replace(cdkit.load("vcd"), combiner=Fading(), constraint=None)
    asked = {"max_new_tokens": 5, "do_sample": False}
    with cdkit.attach(model, method, trace=("logits",)) as run:
        both = model.generate(**inputs, **asked)
        steps = run.trace.steps.copy()
        alone = [model.generate(**make_inputs(q), **asked)[0, -5:].tolist() for q in QUESTIONS]
    assert both[:, -5:].tolist() == alone
    total = torch.zeros_like(steps[0].logits["original"])
    for number, step in enumerate(steps):
        original = step.logits["original"]
        total = total + step.logits["distorted"]
        wanted = original + 0.5 * number * (original - total / (number + 1))
        torch.testing.assert_close(step.combined, wanted, rtol=0, atol=1e-9)


def test_state_goes_with_the_beams(model: Any, make_inputs: MakeInputs) -> None:
    """A beam's total is over the tokens of that beam: against beam search written out here."""
    method = replace(cdkit.load("vcd"), combiner=Fading(rate=2.0), constraint=None)
    steps, width = 4, 3

    def scored(inputs: Inputs, answer: list[int]) -> tuple[Tensor, Tensor]:
        ids = torch.cat((inputs["input_ids"], torch.tensor([answer], dtype=torch.long)), dim=1)
        with cdkit.attach(model, cdkit.load("vcd"), sample_ids=["a"], trace=("logits",)) as run:
            pixels = inputs["pixel_values"]
            call(model, input_ids=ids, pixel_values=pixels, logits_to_keep=1, use_cache=False)
        logits = run.trace.steps[0].logits
        return logits["original"][0], logits["distorted"][0]

    wanted, moved = [], False
    for question in QUESTIONS:
        inputs = make_inputs(question)
        beams: list[tuple[float, list[int], Any]] = [(0.0, [], 0.0)]
        for step in range(steps):
            longer = []
            for parent, (score, answer, total) in enumerate(beams):
                original, distorted = scored(inputs, answer)
                total = total + distorted
                logits = original + 2.0 * step * (original - total / (step + 1))
                best = logits.log_softmax(dim=-1).topk(width)
                longer += [
                    (score + float(value), [*answer, int(token)], total, parent)
                    for value, token in zip(best.values, best.indices, strict=True)
                ]
            longer = sorted(longer, key=lambda beam: -beam[0])[:width]
            moved |= step > 0 and [beam[3] for beam in longer] != list(range(width))
            beams = [beam[:3] for beam in longer]
        wanted += [(answer, score / steps) for score, answer, _ in beams]
    assert moved  # else no state had to follow
    with cdkit.attach(model, method, sample_ids=["a", "a"]):
        out = model.generate(
            **make_inputs(*QUESTIONS),
            max_new_tokens=steps,
            do_sample=False,
            num_beams=width,
            num_return_sequences=width,
            output_scores=True,
            return_dict_in_generate=True,
        )
    assert out.sequences[:, -steps:].tolist() == [answer for answer, _ in wanted]
    scores = torch.tensor([score for _, score in wanted])
    torch.testing.assert_close(out.sequences_scores, scores, rtol=0, atol=1e-5)


def test_a_combiner_that_counts_steps_refuses_a_plain_call(
    model: Any, make_inputs: MakeInputs
) -> None:
    method = replace(cdkit.load("vcd"), combiner=Fading(), constraint=None)
    with cdkit.attach(model, method):
        with pytest.raises(
            cdkit.CdkitError, match="vcd depends on the step; a plain call has none"
        ):
            call(model, **make_inputs(*QUESTIONS))


def several() -> Method:
    """All three kinds of distortion in one method, with a calibrator."""
    parts = [cdkit.load(name).branches[0].distortions for name in ("cmac", "vcd", "no_image")]
    names = ("attention", "pixels", "prompt")
    return Method(
        "several",
        COMBINER,
        branches=tuple(Branch(n, p) for n, p in zip(names, parts, strict=True)),
        calibrator=cdkit.load("cmac").calibrator,
        constraint=cdkit.load("vcd", beta=0.2).constraint,
    )


def test_several_branches(
    model: Any, make_inputs: MakeInputs, logits_of: Callable[..., Tensor]
) -> None:
    """Each branch is what it is alone; the weights add up: (1 + sum a) l - sum a l~."""
    inputs = make_inputs(*QUESTIONS)
    alphas = (("attention", 0.5), ("pixels", 0.0), ("prompt", 2.0))
    method = several()
    method = replace(method, combiner=replace(method.combiner, alphas=alphas))  # type: ignore[type-var]
    with cdkit.attach(model, method, trace=("logits",), sample_ids=["a", "b"]) as run:
        call(model, **inputs, logits_to_keep=1)
    step = run.trace.steps[0]
    original = step.logits["original"]
    for branch in method.branches:
        one = replace(several(), branches=(branch,), constraint=None)
        with cdkit.attach(model, one, trace=("logits",), sample_ids=["a", "b"]) as run:
            call(model, **inputs, logits_to_keep=1)
        for name, logits in run.trace.steps[0].logits.items():
            torch.testing.assert_close(step.logits[name], logits, rtol=0, atol=1e-9)
    wanted = 3.5 * original - 0.5 * step.logits["attention"] - 2.0 * step.logits["prompt"]
    kept = original.softmax(-1) >= 0.2 * original.softmax(-1).amax(-1, keepdim=True)
    assert step.combined is not None
    wanted = wanted.masked_fill(~kept, -float("inf"))
    torch.testing.assert_close(step.combined, wanted, rtol=0, atol=1e-9)
    with cdkit.attach(model, method, sample_ids=["a", "b"]):  # here the branch at 0 does not run
        short = logits_of(model, inputs, max_new_tokens=1)[0]
    torch.testing.assert_close(short.double(), wanted, rtol=1e-6, atol=1e-5)


def test_several_branches_in_every_mode(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(*QUESTIONS)
    for asked in ({}, {"num_beams": 3}, {"do_sample": True, "top_k": 1}):
        with cdkit.attach(model, several(), sample_ids=["a", "b"]):
            both = model.generate(**inputs, max_new_tokens=4, **{"do_sample": False} | asked)
        alone = []
        for question, name in zip(QUESTIONS, "ab", strict=True):
            with cdkit.attach(model, several(), sample_ids=[name]):
                out = model.generate(
                    **make_inputs(question), max_new_tokens=4, **{"do_sample": False} | asked
                )
            alone.append(out[0, -4:].tolist())
        assert both[:, -4:].tolist() == alone


def test_several_distortions_of_one_branch(model: Any, make_inputs: MakeInputs) -> None:
    """Noise, then IMD on what the noisy image gives: another thing than either alone."""
    inputs = make_inputs(*QUESTIONS)
    noise, mask = (cdkit.load(n).branches[0].distortions for n in ("vcd", "cmac_imd"))
    logits = []
    for parts in (noise, mask, (*noise, *mask)):
        method = Method("mixed", COMBINER, branches=(Branch("distorted", parts),))
        with cdkit.attach(model, method, trace=("logits",), sample_ids=["a", "b"]) as run:
            call(model, **inputs, logits_to_keep=1)
        logits.append(run.trace.steps[0].logits["distorted"])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(logits[i], logits[j], atol=1e-3)
