"""Gates and schedules: what they see and when they let alpha through, against the equations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import cdkit
from cdkit.branches.state import BranchState
from cdkit.interfaces.combiner import State
from cdkit.interfaces.schedule import AlphaSchedule, Signals
from cdkit.strategies.schedules.attention_gate import AttentionGate

from .against import Ran, assert_close, branch_logits, generate, reference
from .decoders import Decoder
from .reference import (
    Rules,
    apply_constraint,
    attention_logits,
    calibrated_positions,
    cross_modal,
)
from .test_modes import STEPS, beams, lists
from .tiny import IMAGE, Sample, batch, sample, sequence, tiny

SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 6, seed=52), sample(0, 4, seed=53, bos=False))
IMCCD = Rules(distortion="mean_scalar", calibrated=True, gamma=3.0, first_gap="unit")
SHIFT = 1000.0
"""A factor is never negative, but a sum of logits may be: what shows it adds this much."""


# ---- the reference -------------------------------------------------------------------------------


@torch.no_grad()
def attention(model: Any, one: Sample, fed: Sequence[int], rules: Rules) -> tuple[Tensor, Tensor]:
    """The original branch's attention logits and weights: (layers, heads, rows, columns) each."""
    decoder = Decoder.of(model)
    tokens = sequence(model, one.ids, fed, one.pixels)
    state, count = tokens.embeds.double(), len(tokens.image)
    ordinary = torch.arange(1, count + 1, dtype=torch.float64)
    moved = calibrated_positions(tokens.image, rules) if rules.calibrated else ordinary
    causal = torch.ones(count, count, dtype=torch.bool).tril()
    every_logits, every_weights = [], []
    for layer in range(decoder.layers):

        def through(x: Tensor, name: str, layer: int = layer) -> Tensor:
            return x @ decoder.weight(f"layers.{layer}.{name}").T

        x = decoder.normed(state, f"layers.{layer}.input_layernorm")
        copies = decoder.heads // decoder.kv_heads
        query = through(x, "self_attn.q_proj").view(count, decoder.heads, -1)
        key, value = (
            through(x, f"self_attn.{name}_proj")
            .view(count, decoder.kv_heads, -1)
            .repeat_interleave(copies, dim=1)
            for name in "kv"
        )
        logits = torch.where(
            cross_modal(tokens),
            attention_logits(query, key, moved, decoder),
            attention_logits(query, key, ordinary, decoder),
        )
        weights = logits.masked_fill(~causal, -math.inf).softmax(-1)
        mixed = torch.einsum("hij,jhd->ihd", weights, value).flatten(1)
        state = state + through(mixed, "self_attn.o_proj")
        x = decoder.normed(state, f"layers.{layer}.post_attention_layernorm")
        gate = torch.nn.functional.silu(through(x, "mlp.gate_proj"))
        state = state + through(gate * through(x, "mlp.up_proj"), "mlp.down_proj")
        every_logits.append(logits)
        every_weights.append(weights)
    return torch.stack(every_logits), torch.stack(every_weights)


def image_columns(one: Sample) -> list[int]:
    return [place for place, token in enumerate(one.ids) if token == IMAGE]


def seen_by(one: Sample, fed: Sequence[int], quantity: str, rules: Rules) -> list[float]:
    """The gate's quantity at each step, the first from the prompt's last row."""
    logits, weights = attention(tiny(2), one, fed, rules)
    chosen = logits if quantity == "logits" else weights
    sums = chosen[:, :, len(one.ids) - 1 :, image_columns(one)].sum(-1).mean((0, 1))
    values: list[float] = sums.tolist()
    return values


def kept(seen: Sequence[float], history: str, window: int) -> bool:
    """IMCCD's rule: alpha stays unless this step lies below the mean, strictly."""
    steps = {"first": seen[:window], "last": seen[-window:], "all": seen}[history]
    return not seen[-1] < fmean(steps)


def scales(seen: Sequence[float], history: str, window: int) -> list[float]:
    return [float(kept(seen[:count], history, window)) for count in range(1, len(seen) + 1)]


def scaled_contrast(original: Tensor, distorted: Tensor, alpha: Tensor, beta: float) -> Tensor:
    """Contrast where each row and step has an alpha of its own."""
    combined = (1 + alpha[..., None]) * original - alpha[..., None] * distorted
    return combined if beta == 0 else apply_constraint(combined, original, beta)


def expected_logits(ran: Ran, rules: Rules, scale: Tensor, beta: float) -> dict[str, Tensor]:
    """All logits of a method with alpha 1."""
    plain = replace(rules, distortion="none")
    original = branch_logits(tiny(2), SAMPLES, ran.tokens, plain)
    distorted = branch_logits(tiny(2), SAMPLES, ran.tokens, rules)
    combined = scaled_contrast(original, distorted, scale, beta)
    return {"original": original, "distorted": distorted, "combined": combined}


def traced(ran: Ran) -> Tensor:
    """(rows, steps): what the schedules multiplied alpha by."""
    factors = [step.alpha_scale for step in ran.run.trace.steps if step.alpha_scale is not None]
    return torch.stack(factors, 1)


def schedule(kind: str, **fields: Any) -> AlphaSchedule:
    made: AlphaSchedule = cdkit.SCHEDULES[kind](**fields)
    return made


# ---- what a schedule sees ------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown(AlphaSchedule):
    """Hands the signal itself over as the factor, so that the trace tells it."""

    reads_attention: ClassVar[bool] = True
    quantity: str = "logits"

    def scale(
        self, signals: Signals, *, step: int, state: State
    ) -> tuple[Float[Tensor, " rows"], State]:
        assert signals.image_logits is not None and signals.image_mass is not None
        if self.quantity == "mass":
            return signals.image_mass, state
        return signals.image_logits + SHIFT, state


def shown(quantity: str, *, rules: Rules = IMCCD, **how: Any) -> tuple[Ran, Tensor]:
    """A run, and the quantity of each row and step as cdkit's engine has it."""
    method = replace(cdkit.load("imccd_mme"), schedules=(Shown(quantity),))
    if not rules.calibrated:
        method = replace(method, calibrator=None)
    ran = generate(tiny(2), method, SAMPLES, steps=4, **how)
    return ran, traced(ran) - SHIFT * (quantity == "logits")


@pytest.mark.parametrize(("pad", "optimize"), [(0, True), (3, True), (0, False)])
@pytest.mark.parametrize("rules", [IMCCD, replace(IMCCD, calibrated=False)], ids=["CMPC", "none"])
@pytest.mark.parametrize("quantity", ["logits", "mass"])
def test_the_signals(quantity: str, rules: Rules, pad: int, optimize: bool) -> None:
    ran, have = shown(quantity, rules=rules, pad=pad, optimize=optimize)
    want = torch.tensor(
        [
            seen_by(one, fed, quantity, rules)
            for one, fed in zip(SAMPLES, ran.tokens[:, :-1].tolist(), strict=True)
        ],
        dtype=torch.float64,
    )
    assert_close({"seen": have}, {"seen": want}, within=1e-9)


def test_the_attention_written_out_here_is_the_references() -> None:
    one, fed = SAMPLES[1], [5, 9]
    plain = replace(IMCCD, distortion="none")
    (result,) = reference(tiny(2), [one], [fed], plain)
    _, weights = attention(tiny(2), one, fed, plain)
    assert (torch.stack(result.weights) - weights).abs().max() < 1e-12


Reading = Callable[[Tensor, Tensor, list[int]], Tensor]
"""(logits, weights, image columns) -> (layers, heads, rows): a wrong sum over columns."""
FAULTS: dict[str, Reading] = {
    "the last layer alone": lambda x, w, image: x[-1:, :, :, image].sum(-1),
    "the first head alone": lambda x, w, image: x[:, :1, :, image].sum(-1),
    "summed over heads": lambda x, w, image: x[..., image].sum((1, 3))[:, None],
    "a mean over the image": lambda x, w, image: x[..., image].mean(-1),
    "after the softmax": lambda x, w, image: w[..., image].sum(-1),
    "a column less": lambda x, w, image: x[..., image[1:]].sum(-1),
    "a column more": lambda x, w, image: x[..., [*image, image[-1] + 1]].sum(-1),
    "the row before": lambda x, w, image: x[..., image].sum(-1).roll(1, -1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_reading_is_seen_in_each_row(fault: str) -> None:
    ran, have = shown("logits")
    for row, (one, fed) in enumerate(zip(SAMPLES, ran.tokens[:, :-1].tolist(), strict=True)):
        logits, weights = attention(tiny(2), one, fed, IMCCD)
        faulty = FAULTS[fault](logits, weights, image_columns(one)).mean((0, 1))
        faulty = faulty[len(one.ids) - 1 :]
        with pytest.raises(AssertionError, match="off by"):
            assert_close({"seen": have[row]}, {"seen": faulty}, within=1e-6)


def test_uncalibrated_logits_and_the_distorted_branch_are_seen() -> None:
    ran, have = shown("logits")
    _, mass = shown("mass")
    for row, (one, fed) in enumerate(zip(SAMPLES, ran.tokens[:, :-1].tolist(), strict=True)):
        faulty = torch.tensor(seen_by(one, fed, "logits", Rules()), dtype=torch.float64)
        (result,) = reference(tiny(2), [one], [fed], IMCCD)
        rows = torch.stack(result.weights)[:, :, len(one.ids) - 1 :]
        distorted = rows[..., image_columns(one)].sum(-1).mean((0, 1))
        for right, wrong in ((have[row], faulty), (mass[row], distorted)):
            with pytest.raises(AssertionError, match="off by"):
                assert_close({"seen": right}, {"seen": wrong}, within=1e-6)


# ---- the gate ------------------------------------------------------------------------------------

GATES = [
    ("first", 2, "logits"),
    ("first", 3, "mass"),
    ("first", 30, "logits"),
    ("last", 1, "logits"),
    ("last", 2, "logits"),
    ("last", 3, "mass"),
    ("all", 30, "logits"),
    ("all", 30, "mass"),
]


@pytest.mark.parametrize(("pad", "optimize"), [(0, True), (3, True), (0, False)])
@pytest.mark.parametrize(("history", "window", "quantity"), GATES)
def test_the_gate(history: str, window: int, quantity: str, pad: int, optimize: bool) -> None:
    """Every row for itself: the reference has no batch."""
    method = cdkit.load("imccd_chair", beta=0.05, history=history, window=window, quantity=quantity)
    ran = generate(tiny(2), method, SAMPLES, steps=7, pad=pad, optimize=optimize)
    fed = ran.tokens[:, :-1].tolist()
    seen = [seen_by(one, own, quantity, IMCCD) for one, own in zip(SAMPLES, fed, strict=True)]
    scale = torch.tensor([scales(own, history, window) for own in seen], dtype=torch.float64)
    assert torch.equal(traced(ran), scale)
    assert_close(ran.logits, expected_logits(ran, IMCCD, scale, 0.05), within=1e-8)
    if window > 1:
        assert (scale[:, 1:] == 0).any() and (scale[:, 1:] == 1).any()
    else:
        assert (scale == 1).all()


def test_the_histories_do_not_agree_by_chance() -> None:
    one, fed = SAMPLES[0], [5, 9, 33, 60, 7, 81, 12, 44]
    seen = seen_by(one, fed, "logits", IMCCD)
    told = {case: tuple(scales(seen, *case)) for case in (("first", 3), ("last", 3), ("all", 3))}
    assert len(set(told.values())) == 3, told


@pytest.mark.parametrize(
    ("seen", "history", "window", "gated"),
    [
        ([0.1] * 8, "first", 3, ()),  # a step at the mean is not below it, and rounding is not less
        ([0.1] * 8, "last", 3, ()),
        ([0.1] * 8, "all", 3, ()),
        ([5, 4, 3, 2, 1], "first", 3, (1, 2, 3, 4)),
        ([5, 4, 3, 2, 1], "last", 1, ()),
        ([1, 2, 3, 4, 5], "all", 3, ()),
        ([1, 3, 9, 2, 1.9, 9, 2], "first", 2, (4,)),  # the mean stands still at 2; 2 is not less
        ([9, 1, 1, 1, 1, 2], "last", 3, (1, 2)),  # the 9 has left the window
        ([9, 1, 1, 1, 1, 2], "all", 3, (1, 2, 3, 4, 5)),
        ([9, 1, 1, 1, 1, 2], "first", 3, (1, 2, 3, 4, 5)),
    ],
)  # fmt: skip
def test_scripted_steps(
    seen: list[float], history: str, window: int, gated: tuple[int, ...]
) -> None:
    gate = schedule("attention_gate", history=history, window=window)
    for dtype in (torch.float32, torch.float64):
        state: State = {}
        closed = []
        for step, value in enumerate(seen):
            # a neighbour that only falls: it must not count
            rows = torch.tensor([value, -step], dtype=dtype)
            signals = Signals(torch.zeros(2, 5, dtype=dtype), rows, rows)
            factor, state = gate.scale(signals, step=step, state=state)
            closed += [step] * (factor[0].item() == 0)
            assert factor[1].item() == float(step == 0 or (history, window) == ("last", 1))
        assert tuple(closed) == gated


def test_the_gates_state_does_not_grow() -> None:
    for history, largest in (("first", 1), ("all", 1), ("last", 3)):
        gate = schedule("attention_gate", history=history, window=3)
        state: State = {}
        for step in range(9):
            rows = torch.full((2,), float(step))
            signals = Signals(torch.zeros(2, 5), rows, rows)
            _, state = gate.scale(signals, step=step, state=state)
        assert max(value.numel() for value in state.values()) == 2 * largest


def test_wrong_gates_are_seen() -> None:
    """The batch's mean for a row's, `<=` for `<`, another history, another window."""
    method = cdkit.load("imccd_chair", beta=0.05, window=3)
    ran = generate(tiny(2), method, SAMPLES, steps=7)
    fed = ran.tokens[:, :-1].tolist()
    seen = [seen_by(one, own, "logits", IMCCD) for one, own in zip(SAMPLES, fed, strict=True)]
    shared = [fmean(values) for values in zip(*seen, strict=True)]
    faulty = {
        "the batch's mean": [scales(shared, "first", 3)] * 3,
        "or equal": [
            [float(own[n] > fmean(own[: n + 1][:3])) for n in range(len(own))] for own in seen
        ],
        "sliding": [scales(own, "last", 3) for own in seen],
        "a step less": [scales(own, "first", 2) for own in seen],
    }
    right = traced(ran).tolist()
    assert right == [scales(own, "first", 3) for own in seen]
    for name, told in faulty.items():
        assert told != right, name


def test_a_closed_gate_is_the_constraint_alone_and_both_branches_go_on() -> None:
    """The distorted branch advances while it does not count: later steps need its cache."""
    method = cdkit.load("imccd_chair", window=2)
    ran = generate(tiny(2), method, SAMPLES, steps=7)
    scale, have = traced(ran), ran.logits
    closed, opened = scale == 0, scale == 1
    assert (opened[:, 1:] & closed[:, :-1]).any()  # one opens again
    alone = apply_constraint(have["original"], have["original"], 0.2)
    assert torch.equal(have["combined"][closed], alone[closed])
    assert not torch.equal(have["combined"][opened], alone[opened])
    expected = expected_logits(ran, IMCCD, scale, 0.2)
    assert_close(have, expected, within=1e-8)


def test_each_answer_starts_anew() -> None:
    method = cdkit.load("imccd_chair", window=3)
    first = generate(tiny(2), method, SAMPLES, steps=6)
    alone = [generate(tiny(2), method, [one], steps=6) for one in SAMPLES]
    again = generate(tiny(2), method, SAMPLES[::-1], steps=6)
    assert torch.equal(traced(first), traced(again).flip(0))
    assert torch.equal(traced(first), torch.cat([traced(ran) for ran in alone]))
    with cdkit.attach(tiny(2), method, trace=("logits",)) as run:
        told = []
        for _ in range(2):
            tiny(2).generate(**batch(SAMPLES), max_new_tokens=6, do_sample=False)
            told.append([step.alpha_scale.tolist() for step in run.trace.steps])  # type: ignore[union-attr]
    assert told[0] == told[1] == traced(first).T.tolist()


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize(("history", "window"), [("first", 2), ("last", 2), ("all", 30)])
def test_the_state_goes_with_the_beams(history: str, window: int, optimize: bool) -> None:
    """Beam search written out, where each beam's steps are those of its own tokens."""
    method = cdkit.load("imccd_chair", beta=0.0, alpha=3.0, history=history, window=window)
    gated = set()

    def by_hand(one: Sample, generated: Sequence[int]) -> Tensor:
        tokens = torch.tensor([[*generated, 0]])  # the last one is not fed
        plain = replace(IMCCD, distortion="none")
        original = branch_logits(tiny(2), [one], tokens, plain)[0, -1]
        distorted = branch_logits(tiny(2), [one], tokens, IMCCD)[0, -1]
        open_ = kept(seen_by(one, generated, "logits", IMCCD), history, window)
        gated.add(open_)
        return (original + 3.0 * open_ * (original - distorted)).float()

    samples = SAMPLES[:2]
    ran = generate(
        tiny(2), method, samples, steps=STEPS, optimize=optimize, trace=(),
        num_beams=3, num_return_sequences=3, early_stopping=True, output_scores=True,
    )  # fmt: skip
    expected = [beam for one in samples for beam in beams(by_hand, one, 3)]
    assert gated == {True, False}
    indices = ran.output.beam_indices[:, :STEPS]
    assert (indices[:, 1:] != indices[:, :-1]).any()  # else no state had to move
    assert lists(ran) == [tokens for _, tokens in expected]
    scores = torch.tensor([score / STEPS for score, _ in expected])
    assert (ran.output.sequences_scores - scores).abs().max() < 1e-4


def test_a_state_that_stays_behind_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: beams move and what the gate carries does not. It changes these answers."""
    method = cdkit.load("imccd_chair", history="all")
    asked: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 4, "trace": (), "steps": 10}
    right = generate(tiny(2), method, SAMPLES, **asked)
    reorder = BranchState.reorder

    def forgetful(self: BranchState, indices: Tensor) -> None:
        states = self.states
        reorder(self, indices)
        self.states = states

    monkeypatch.setattr(BranchState, "reorder", forgetful)
    wrong = generate(tiny(2), method, SAMPLES, **asked)
    assert lists(right) != lists(wrong)


def test_two_gates_each_carry_their_own() -> None:
    """Both keep a mean under one name: in a shared state each would go on from the other's."""
    gates = (
        AttentionGate(window=2, history="first", quantity="logits"),
        AttentionGate(window=3, history="all", quantity="mass"),
    )
    method = replace(cdkit.load("imccd_chair"), schedules=gates)
    ran = generate(tiny(2), method, SAMPLES, steps=7)
    scaled = [step.alpha_scale for step in ran.run.trace.steps]
    factors = torch.stack([one for one in scaled if one is not None], 1)
    for row, one in enumerate(SAMPLES):
        fed = ran.tokens[row, :-1].tolist()
        own = [
            scales(seen_by(one, fed, gate.quantity, IMCCD), gate.history, gate.window)
            for gate in gates
        ]
        assert factors[row].tolist() == [a * b for a, b in zip(*own, strict=True)]
    assert {0.0, 1.0} == set(factors.flatten().tolist())


# ---- schedules over steps ------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", [True, False])
def test_a_ramp_times_a_gate(optimize: bool) -> None:
    gate = schedule("attention_gate", window=2)
    ramp = schedule("ramp", start=2.0, end=0.5, steps=3)
    method = replace(cdkit.load("imccd_chair", beta=0.05), schedules=(ramp, gate))
    ran = generate(tiny(2), method, SAMPLES, steps=6, pad=2, optimize=optimize)
    fed = ran.tokens[:, :-1].tolist()
    seen = [seen_by(one, own, "logits", IMCCD) for one, own in zip(SAMPLES, fed, strict=True)]
    line = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.5, 0.5], dtype=torch.float64)
    scale = line * torch.tensor([scales(own, "first", 2) for own in seen], dtype=torch.float64)
    assert_close({"factor": traced(ran)}, {"factor": scale}, within=1e-12)
    assert_close(ran.logits, expected_logits(ran, IMCCD, scale, 0.05), within=1e-8)
    for wrong in (line.expand(3, -1), scale.roll(1, 1), scale / line):
        faulty = expected_logits(ran, IMCCD, wrong, 0.05)["combined"]
        with pytest.raises(AssertionError, match="off by"):
            assert_close({"c": ran.logits["combined"]}, {"c": faulty}, within=1e-4)
