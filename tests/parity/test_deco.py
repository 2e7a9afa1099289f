"""DeCo against its formula (zjunlp/Deco, transformers/generation/utils.py, commit fee8d75)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import Ran, assert_close, branch_logits, generate
from .decoders import Decoder
from .inner import inner_states, read_out
from .reference import Rules, run
from .tiny import sample, sequence, tiny

SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 6, seed=52), sample(0, 4, seed=53, bos=False))
LAYERS = (1, 2)
GIVEN: dict[str, Any] = {"bucket": (0.3, 1.0)}
"""In a model of three layers: those that have passed 1 and 2 of them."""
CORRECTION: Any = cdkit.COMBINERS["layer_correction"]
READOUT: Any = cdkit.READOUTS["premature_layers"]


@dataclass(frozen=True)
class Pieces:
    """What DeCo decides for one row, piece by piece: a mistake is another piece."""

    judge: Callable[[Tensor, Sequence[Tensor]], Tensor] = lambda z, layers: z
    whole: Callable[[Sequence[float]], float] = lambda chances: 1.0
    drops: Callable[[bool, Sequence[int]], bool] = lambda crossed, kept: False
    chances: Callable[[Tensor, Sequence[int]], Tensor] = lambda q, kept: q
    tokens: Callable[[Sequence[int], int], Sequence[int]] = lambda kept, vocabulary: kept
    strength: Callable[[Sequence[float], Sequence[float]], float] = lambda seen, p: max(seen)
    added: Callable[[Sequence[Tensor], int], Tensor] = lambda layers, anchor: layers[anchor]
    cut: Callable[[Tensor, Tensor], Tensor] = lambda z, out: z.masked_fill(out, -math.inf)


RIGHT = Pieces()


def corrected(
    z: Tensor,
    layers: Sequence[Tensor],
    *,
    alpha: float = 0.6,
    top_p: float = 0.9,
    top_k: int = 20,
    how: Pieces = RIGHT,
) -> Tensor:
    """One row: `z + alpha M l_A` on the candidates."""
    p = how.judge(z, layers).softmax(-1).tolist()
    order = sorted(range(len(p)), key=lambda v: -p[v])[:top_k]
    whole = how.whole([p[v] for v in order])
    kept: list[int] = []
    held = 0.0
    for v in order:
        held += p[v] / whole
        if how.drops(held >= top_p, kept):
            break
        kept.append(v)
        if held >= top_p:
            break
    best, anchor = -1.0, 0
    seen: list[float] = []
    for j, own in enumerate(layers):
        q = how.chances(own.softmax(-1), kept)
        for v in how.tokens(kept, len(p)):
            seen.append(float(q[v]))
            if float(q[v]) > best:
                best, anchor = float(q[v]), j
    new = z + alpha * how.strength(seen, p) * how.added(layers, anchor)
    out = torch.ones_like(z, dtype=torch.bool)
    out[kept] = False
    return how.cut(new, out)


def correct(have: Mapping[str, Tensor], **how: Any) -> Tensor:
    """(rows, steps, vocab), each row and step by itself."""
    z = have["original"]
    layers = [have[f"layer_{j}"] for j in LAYERS]
    rows = [
        torch.stack(
            [corrected(z[r, s], [x[r, s] for x in layers], **how) for s in range(len(z[r]))]
        )
        for r in range(len(z))
    ]
    return torch.stack(rows)


def by_hand(ran: Ran, **how: Any) -> dict[str, Tensor]:
    model = tiny(2)
    states = inner_states(model, SAMPLES, ran.tokens)
    logits = {"original": branch_logits(model, SAMPLES, ran.tokens, Rules())}
    logits |= {f"layer_{j}": read_out(model, states[j], norm=True) for j in LAYERS}
    return logits | {"combined": correct(logits, **how)}


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "strong": {"alpha": 3.0, "top_p": 0.99, "top_k": 50},
    "few": {"top_k": 3, "top_p": 1.0},
    "one": {"top_k": 1},
    "alpha-0": {"alpha": 0.0},
    "more than the vocabulary": {"top_k": 4000, "top_p": 0.999},
}


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_against_the_formula(case: str, optimize: bool) -> None:
    """Left-padded, at the prompt and three later steps."""
    given = CASES[case]
    ran = generate(tiny(2), cdkit.load("deco", **GIVEN, **given), SAMPLES, pad=3, optimize=optimize)
    expected = by_hand(ran, **given)
    assert_close(ran.logits, expected, within=1e-8)
    assert torch.equal(ran.tokens, expected["combined"].argmax(-1))
    if case in ("one", "alpha-0"):  # the cut leaves the best token
        assert torch.equal(ran.tokens, expected["original"].argmax(-1))


def test_a_prompt_alone_is_what_it_is_in_a_batch() -> None:
    method = cdkit.load("deco", **GIVEN, alpha=2.0)
    batch = generate(tiny(2), method, SAMPLES)
    for row, one in enumerate(SAMPLES):
        alone = generate(tiny(2), method, [one])
        own = {name: logits[row : row + 1] for name, logits in batch.logits.items()}
        assert_close(own, alone.logits, within=1e-9)


@pytest.mark.parametrize("how", [{"use_cache": False}, {"prefill_chunk_size": 7}])
def test_other_ways_through_the_prompt(how: dict[str, Any]) -> None:
    ran = generate(tiny(2), cdkit.load("deco", **GIVEN), SAMPLES, **how)
    assert_close(ran.logits, by_hand(ran), within=1e-8)


def test_beams_of_a_batch_are_those_of_a_prompt_alone() -> None:
    method = cdkit.load("deco", **GIVEN)
    ran = generate(tiny(2), method, SAMPLES, trace=(), num_beams=3)
    alone = [generate(tiny(2), method, [one], trace=(), num_beams=3).tokens[0] for one in SAMPLES]
    assert ran.tokens.tolist() == [tokens.tolist() for tokens in alone]


def test_a_layer_is_a_shorter_decoder() -> None:
    """The states are those of a model that ends there: its norm, its head."""
    model, one, fed = tiny(2), SAMPLES[1], [5, 9]
    states = inner_states(model, [one], torch.tensor([[*fed, 0]]))
    at = sequence(model, one.ids, fed, one.pixels)
    for j in range(4):
        (short,) = run(replace(Decoder.of(model), layers=j), [at], Rules())
        mine = read_out(model, states[j], norm=True)[0]
        assert (mine - short.logits[-3:]).abs().max() < 1e-10


# ---- faults --------------------------------------------------------------------------------------

SEEN: dict[str, Any] = {"alpha": 3.0, "top_p": 0.8, "top_k": 8}


@pytest.fixture(scope="module")
def ran() -> Ran:
    return generate(tiny(2), cdkit.load("deco", **GIVEN, **SEEN), SAMPLES)


FAULTS = {
    "all tokens": Pieces(tokens=lambda kept, vocabulary: range(vocabulary)),
    "crossing token dropped": Pieces(drops=lambda crossed, kept: crossed and bool(kept)),
    "renormalised": Pieces(whole=sum),
    "candidates of the layer": Pieces(judge=lambda z, layers: layers[0]),
    "probability of candidates alone": Pieces(chances=lambda q, kept: q / q[kept].sum()),
    "mean probability": Pieces(strength=lambda seen, p: sum(seen) / len(seen)),
    "final probability": Pieces(strength=lambda seen, p: max(p)),
    "log-softmax": Pieces(added=lambda layers, anchor: layers[anchor].log_softmax(-1)),
    "no cut": Pieces(cut=lambda z, out: z),
    "mean of layers": Pieces(added=lambda layers, anchor: torch.stack(list(layers)).mean(0)),
    "first layer": Pieces(added=lambda layers, anchor: layers[0]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_correction_is_seen(ran: Ran, fault: str) -> None:
    have = {"combined": ran.logits["combined"]}
    assert_close(have, {"combined": correct(ran.logits, **SEEN)}, within=1e-8)
    faulty = correct(ran.logits, **SEEN, how=FAULTS[fault])
    with pytest.raises(AssertionError, match=r"off by|ruled out"):
        assert_close(have, {"combined": faulty}, within=1e-4)


@pytest.mark.parametrize("fault", ["no norm", "off by one"])
def test_a_faulty_readout_is_seen(ran: Ran, fault: str) -> None:
    states = inner_states(tiny(2), SAMPLES, ran.tokens)
    for j in LAYERS:
        faulty = read_out(tiny(2), states[j + (fault != "no norm")], norm=fault != "no norm")
        for step in range(ran.tokens.shape[1]):
            have = ran.logits[f"layer_{j}"][:, step]
            with pytest.raises(AssertionError, match="off by"):
                assert_close({"layer": have}, {"layer": faulty[:, step]}, within=1e-3)


def test_rows_have_anchors_of_their_own(ran: Ran) -> None:
    """A layer shared by the batch is seen: its rows do not agree on one."""
    shares = [ran.logits[f"layer_{j}"].softmax(-1) for j in LAYERS]
    finite = ran.logits["combined"].isfinite()
    sure = torch.stack([(share * finite).amax(-1) for share in shares])
    assert (sure.argmax(0) == 0).any() and (sure.argmax(0) == 1).any()


# ---- the candidates ------------------------------------------------------------------------------


def combine(z: Tensor, *layers: Tensor, **how: Any) -> Tensor:
    others = {f"layer_{j}": own for j, own in enumerate(layers)}
    combined: Tensor = CORRECTION(**how).combine(z, others, step=0, state={})[0]
    return combined


def kept(probabilities: Sequence[float], **how: Any) -> list[int]:
    z = torch.tensor([probabilities], dtype=torch.float64).log()
    return combine(z, **how)[0].isfinite().nonzero()[:, 0].tolist()


def test_the_cut() -> None:
    shares = [0.125, 0.5, 0.25, 0.0625, 0.0625]  # sums of powers of two are exact
    assert kept(shares, top_p=0.5 - 1e-9) == [1]
    assert kept(shares, top_p=0.74) == [1, 2]
    assert kept(shares, top_p=0.76) == [0, 1, 2]  # the token that crosses stays
    assert kept(shares, top_p=0.9, top_k=2) == [1, 2]  # the best two hold less than 0.9
    assert kept(shares, top_p=1e-9) == [1]
    assert len(kept(shares, top_p=0.9, top_k=99)) == 4
    equal = torch.full((1, 4), 7.0, dtype=torch.float64)  # softmax and sums are exact
    assert int(combine(equal, top_p=0.5).isfinite().sum()) == 2  # reaching it is enough


def test_ties_go_to_the_first_layer() -> None:
    z = torch.tensor([[3.0, 1.0, 0.0]], dtype=torch.float64)
    a, b = z, z + 1.0  # one distribution, other logits
    wanted = z + 0.6 * z.softmax(-1).max() * a
    have = combine(z, a, b, top_p=0.999)
    assert torch.allclose(have[have.isfinite()], wanted[have.isfinite()])


def test_the_authors_layers() -> None:
    """20 to 28 of 32, both included."""
    readout: Any = cdkit.load("deco").readout
    assert [*readout.layers(32).values()] == [*range(20, 29)]
    assert readout.norm
    assert [*readout.layers(40).values()] == [*range(25, 37)]
    for count in range(1, 33):
        layers = [*readout.layers(count).values()]
        assert layers and max(layers) < max(count, 1)  # the last layer is not its own correction


def test_what_is_refused() -> None:
    with pytest.raises(cdkit.CdkitError, match=r"top_p must be in \(0, 1\], got 1.5"):
        cdkit.load("deco", top_p=1.5)
    with pytest.raises(cdkit.CdkitError, match="top_p must be a finite number > 0"):
        cdkit.load("deco", top_p=0.0)
    with pytest.raises(cdkit.CdkitError, match="top_k must be 1 or more, got 0"):
        cdkit.load("deco", top_k=0)
    with pytest.raises(cdkit.CdkitError, match="alpha must be a finite number >= 0"):
        cdkit.load("deco", alpha=-1.0)
