"""ONLY against its formula (zifuwan/ONLY, modeling_llama.py and only_sample.py, commit 109bffe)."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import Ran, assert_close, beta_of, generate
from .expected import check_fault, check_modes
from .reference import apply_constraint
from .tiny import IMAGE, Sample, batch, sample, tiny

SAMPLES = (sample(3, 5, seed=91), sample(2, 3, 6, seed=92), sample(0, 4, seed=93, bos=False))
HEADS, KV_HEADS, WIDTH = 4, 2, 16
READOUT: Any = cdkit.READOUTS["text_head_stream"]


@dataclass(frozen=True)
class Pieces:
    """The authors' stream, piece by piece: a mistake is another piece."""

    layer: int = 0
    residual: float = 0.2
    share: float = 0.5
    cuts: bool = True
    first_is_text: bool = False
    unbiased: bool = True
    renormalises: bool = False
    keeps: Callable[[float, float], bool] = lambda ratio, mean: ratio >= mean
    enters: Callable[[Any, Tensor], Tensor] = lambda layer, own: layer.input_layernorm(own)


RIGHT = Pieces()


def entropy(weights: list[float], columns: Sequence[int], how: Pieces) -> float:
    """That of some columns, after those that stand out are set to 0 in `weights`."""
    own = [weights[c] for c in columns]
    mean = sum(own) / len(own)
    freedom = len(own) - 1 if how.unbiased else len(own)
    spread = math.sqrt(sum((w - mean) ** 2 for w in own) / freedom) if freedom else math.nan
    for c in columns:
        if how.cuts and weights[c] > mean + spread:
            weights[c] = 0.0
    whole = sum(weights[c] for c in columns)
    shares = [weights[c] / whole for c in columns]
    return -sum(p * math.log(p + 1e-6) for p in shares)


def heads_of(
    row: int, queries: Tensor, keys: Tensor, values: Tensor, image: Sequence[bool], how: Pieces
) -> Tensor:
    """The outputs of all heads in one token, beside each other."""
    every: list[list[float]] = []
    ratios: list[float] = []
    for head in range(HEADS):
        key = keys[: row + 1, head * KV_HEADS // HEADS]
        weights = (key @ queries[row, head] / math.sqrt(WIDTH)).softmax(0).tolist()
        first = 0 if how.first_is_text else 1
        text = [c for c in range(first, row + 1) if not image[c]]
        pictures = [c for c in range(row + 1) if image[c]]
        over_text = entropy(weights, text, how)
        ratios.append(over_text / entropy(weights, pictures, how))
        every.append(weights)
    mean, out = sum(ratios) / HEADS, []
    for head, weights in enumerate(every):
        own = torch.tensor(weights, dtype=torch.float64)
        own = own / own.sum() if how.renormalises else own
        own = own * how.keeps(ratios[head], mean)
        out.append(own @ values[: row + 1, head * KV_HEADS // HEADS])
    return torch.cat(out)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


@torch.no_grad()
def by_hand(model: Any, one: Sample, generated: Sequence[int], how: Pieces) -> dict[str, Tensor]:
    """(steps, vocab) each: the original's logits, and the stream's."""
    ids, decoder = [*one.ids, *generated[:-1]], model.model.language_model
    out = model(input_ids=torch.tensor([ids]), pixel_values=one.pixels, output_hidden_states=True)
    layer, last = decoder.layers[how.layer], decoder.layers[-1]
    states = layer.input_layernorm(out.hidden_states[how.layer])[0]
    cos, sin = (x[0] for x in decoder.rotary_emb(states, torch.arange(len(ids))[None]))
    attention, n = layer.self_attn, len(ids)
    queries = turned(attention.q_proj(states).view(n, HEADS, WIDTH), cos, sin)
    keys = turned(attention.k_proj(states).view(n, KV_HEADS, WIDTH), cos, sin)
    values = attention.v_proj(states).view(n, KV_HEADS, WIDTH)
    image = [token == IMAGE for token in ids]
    logits: dict[str, list[Tensor]] = {"original": [], "text_heads": []}
    for row in range(n - len(generated), n):
        attended = attention.o_proj(heads_of(row, queries, keys, values, image, how))
        own = how.residual * out.hidden_states[-2][0, row] + how.enters(last, attended)
        own = own + last.mlp(last.post_attention_layernorm(own))
        states = decoder.norm(own) + how.share * out.hidden_states[-1][0, row]
        logits["original"].append(out.logits[0, row])
        logits["text_heads"].append(model.lm_head(states))
    return {name: torch.stack(own) for name, own in logits.items()}


def expected(
    model: Any, samples: Sequence[Sample], tokens: Tensor, how: Pieces = RIGHT
) -> dict[str, Tensor]:
    parts = [
        by_hand(model, one, own, how) for one, own in zip(samples, tokens.tolist(), strict=True)
    ]
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}


def distance(p: Tensor, q: Tensor) -> float:
    return float((p.softmax(-1) - q.softmax(-1)).abs().sum())


def mixed(
    threshold: float = 0.2,
    gain: float = 3.0,
    alpha: float = 1.0,
    *,
    at: Callable[[int], int] = lambda step: step,
    far: Callable[[Tensor, Tensor], float] = distance,
) -> Callable[[Mapping[str, Tensor], cdkit.Method], dict[str, Tensor]]:
    def combine(logits: Mapping[str, Tensor], method: cdkit.Method) -> dict[str, Tensor]:
        z, other = logits["original"], logits["text_heads"]
        new = torch.empty_like(z)
        for row in range(z.shape[0]):
            for step in range(z.shape[1]):
                if far(z[row, at(step)], other[row, at(step)]) < threshold:
                    new[row, step] = z[row, step] + gain * other[row, step]
                else:
                    new[row, step] = (1 + alpha) * z[row, step] - alpha * other[row, step]
        beta = beta_of(method)
        return {**logits, "combined": apply_constraint(new, z, beta) if beta else new}

    return combine


@functools.cache
def between() -> float:
    """A threshold with tokens of one answer on either side."""
    ran = generate(tiny(2), cdkit.load("only", threshold=0.0), SAMPLES)
    pairs = zip(ran.logits["original"][0], ran.logits["text_heads"][0], strict=True)
    far = [distance(z, other) for z, other in pairs]
    low, high = sorted(far)[1:3]
    assert high - low > 1e-3
    return (low + high) / 2


@pytest.mark.parametrize(("pad", "optimize"), [(0, True), (3, True), (3, False)])
@pytest.mark.parametrize("case", ["preset", "added", "both"])
def test_against_the_formula(case: str, pad: int, optimize: bool) -> None:
    """At the prompt and three later steps, which find keys and values in a cache."""
    given: dict[str, Any] = {}
    if case != "preset":
        given = {"threshold": 2.1 if case == "added" else between(), "gain": 2.0, "alpha": 1.5}
    method = cdkit.load("only", **given)
    ran = generate(tiny(2), method, SAMPLES, pad=pad, optimize=optimize)
    want = mixed(**given)(expected(tiny(2), SAMPLES, ran.tokens), method)
    assert_close(ran.logits, want, within=1e-8)
    assert torch.equal(ran.tokens, want["combined"].argmax(-1))


def test_a_deeper_layer() -> None:
    given = {"layer": 0.4, "residual": 0.7, "original_share": 0.0}
    ran = generate(tiny(2), cdkit.load("only", **given), SAMPLES, pad=1)
    how = Pieces(layer=1, residual=0.7, share=0.0)
    have = {name: ran.logits[name] for name in ("original", "text_heads")}
    assert_close(have, expected(tiny(2), SAMPLES, ran.tokens, how), within=1e-9)


def test_sampling_and_beams() -> None:
    given: dict[str, Any] = {"threshold": between(), "gain": 2.0, "alpha": 1.5}
    check_modes(cdkit.load("only", **given), expected, SAMPLES, combine=mixed(**given))


@pytest.mark.parametrize(
    "how", [{"use_cache": False}, {"prefill_chunk_size": 7}, {"cache_implementation": "static"}]
)
def test_other_ways_through_the_prompt(how: dict[str, Any]) -> None:
    method = cdkit.load("only")
    ran = generate(tiny(2), method, SAMPLES, **how)
    assert_close(ran.logits, mixed()(expected(tiny(2), SAMPLES, ran.tokens), method), within=1e-8)


def test_beside_a_branch() -> None:
    """VCD's branch beside it: the stream stays that of the original branch."""
    ran = generate(tiny(2), cdkit.load("only+vcd", **{"constraint.beta": 0.0}), SAMPLES, pad=1)
    want = expected(tiny(2), SAMPLES, ran.tokens)
    assert_close({name: ran.logits[name] for name in want}, want, within=1e-9)


@pytest.fixture(scope="module")
def ran() -> Ran:
    given = {"threshold": between(), "gain": 2.0, "alpha": 1.5, "beta": 0.0}
    return generate(tiny(2), cdkit.load("only", **given), SAMPLES)


FAULTS = {
    "other heads": Pieces(keeps=lambda ratio, mean: ratio < mean),
    "all heads": Pieces(keeps=lambda ratio, mean: True),
    "nothing stands out": Pieces(cuts=False),
    "biased deviation": Pieces(unbiased=False),
    "weights renormalised": Pieces(renormalises=True),
    "no first norm": Pieces(enters=lambda layer, own: own),
    "no residual": Pieces(residual=0.0),
    "no share of the original": Pieces(share=0.0),
    "other layer": Pieces(layer=1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_stream_is_seen(ran: Ran, fault: str) -> None:
    faulty = expected(tiny(2), SAMPLES, ran.tokens, FAULTS[fault])
    rows = (0,) if fault == "biased deviation" else None  # few weights lie between both limits
    check_fault(ran, {"text_heads": faulty["text_heads"]}, rows)


def test_the_first_token_is_no_text(ran: Ran) -> None:
    faulty = expected(tiny(2), SAMPLES, ran.tokens, Pieces(first_is_text=True))
    with_text_first = (0, 1)  # the other one begins with an image
    check_fault(ran, {"text_heads": faulty["text_heads"]}, with_text_first)


MIXTURES: dict[str, dict[str, Any]] = {
    "the first token decides": {"at": lambda step: 0},
    "half the distance": {"far": lambda p, q: distance(p, q) / 2},
    "always contrasted": {"threshold": 0.0},
    "other weight": {"gain": 2.5},
}


@pytest.mark.parametrize("fault", MIXTURES)
def test_a_faulty_mixture_is_seen(ran: Ran, fault: str) -> None:
    given: dict[str, Any] = {"threshold": between(), "gain": 2.0, "alpha": 1.5}
    method, have = cdkit.load("only", beta=0.0), dict(ran.logits)
    assert_close(have, mixed(**given)(have, method), within=1e-8)
    with pytest.raises(AssertionError):
        assert_close(have, mixed(**given | MIXTURES[fault])(have, method), within=1e-4)


def test_the_authors_constants() -> None:
    method = cdkit.load("only")
    readout: Any = method.readout
    assert readout.attention_layer(32) == 0 and readout.layers(32) == {"before_last": 31}
    combiner: Any = method.combiner
    assert (combiner.gain, combiner.alpha, combiner.threshold) == (3.0, 1.0, 0.2)
    assert READOUT(layer=0.3).attention_layer(10) == 3


def test_what_is_refused() -> None:
    with pytest.raises(cdkit.CdkitError, match=r"layer must be .* in \[0, 1\), got 1.0"):
        cdkit.load("only", layer=1.0)
    with pytest.raises(cdkit.CdkitError, match="residual must be a finite number >= 0"):
        cdkit.load("only", residual=-0.1)
    with pytest.raises(cdkit.CdkitError, match="threshold must be a finite number >= 0"):
        cdkit.load("only", threshold=-1.0)
    with pytest.raises(cdkit.CdkitError, match="reads no other logits"):
        cdkit.load("only", gain=0.0, alpha=0.0)
    with (
        cdkit.attach(tiny(2), cdkit.load("only")),
        pytest.raises(cdkit.CdkitError, match="prompt 0 ends with an image"),
    ):
        tiny(2).generate(**batch([sample(3, 0, seed=94)]), max_new_tokens=1)
