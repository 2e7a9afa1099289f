"""ReVisiT against its formula (bscho333/ReVisiT, LLaVA1.5/data/transformers-v4.31.0/.../utils.py,
b382967)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import Ran, assert_close, branch_logits, generate
from .decoders import Decoder
from .inner import read_out
from .reference import Layer, Result, Rules, apply_constraint
from .test_modes import STEPS, beams, drawn, same
from .tiny import IMAGE, Sample, sample, sequence, tiny

SAMPLES = (
    sample(3, 5, seed=41),
    sample(2, 3, 6, seed=42),  # two images
    sample(0, 4, seed=43, bos=False),
)
READOUT: Any = cdkit.READOUTS["nearest_image_token"]


@torch.no_grad()
def image_states(model: Any, one: Sample, depth: int) -> Tensor:
    """(image, hidden): the states of a prompt's image tokens after `depth` layers, written out."""
    decoder, at = Decoder.of(model), sequence(model, one.ids, (), one.pixels)
    states = at.embeds.double()
    for layer in range(depth):
        states = Layer(decoder, layer, states, at, Rules()).output(Result(torch.empty(0)), None)
    places = [place for place, token in enumerate(one.ids) if token == IMAGE]
    return states[places]


def distance(own: Tensor, other: Tensor, least: float) -> float:
    """The authors' divergence over the plausible tokens, by sums."""
    counts = [i for i, x in enumerate(own.tolist()) if x >= float(own.max()) + least]
    p, q = (x[counts].softmax(-1).tolist() for x in (own, other))
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        total += m * math.log(m / a) + m * math.log(m / b)
    return total / 2


def nearest(original: Tensor, image: Tensor, among: float, far: Any = distance) -> Tensor:
    """(steps,): which image token (image, vocab) is nearest to each step (steps, vocab)."""
    least = math.log(among) if among else -math.inf
    found = [[far(own, one, least) for one in image] for own in original]
    return torch.tensor([row.index(min(row)) for row in found])


def read(one: Sample, depth: int = 3, norm: bool = True) -> Tensor:
    return read_out(tiny(2), image_states(tiny(2), one, depth), norm=norm)


def scores(original: Tensor, chosen: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    summed = original + alpha * chosen
    return apply_constraint(summed, original, beta) if beta else summed


def by_hand(
    tokens: Tensor,
    samples: Sequence[Sample] = SAMPLES,
    *,
    among: float = 1e-5,
    beta: float = 1e-5,
    depth: int = 3,
    norm: bool = True,
    alpha: float = 1.0,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """All logits by the reference, and the chosen image token of each (row, step)."""
    original = branch_logits(tiny(2), samples, tokens, Rules())
    image = [read(one, depth, norm) for one in samples]
    which = [nearest(own, one, among) for own, one in zip(original, image, strict=True)]
    chosen = torch.stack([one[own] for one, own in zip(image, which, strict=True)])
    combined = scores(original, chosen, beta, alpha)
    return {"original": original, "image_token": chosen, "combined": combined}, which


CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "few": {"among": 0.2, "beta": 0.1},
    "every": {"among": 0.0, "beta": 0.0},
    "inner": {"depth": 0.5, "norm": False},
    "embeddings": {"depth": 0.0, "alpha": 0.5},
}


@pytest.mark.parametrize(
    ("case", "optimize"),
    [
        ("default", True),
        ("few", False),
        ("every", True),
        ("inner", True),
        # the rest of the product takes as long again
        *(
            pytest.param(case, False, marks=pytest.mark.slow)
            for case in ("default", "every", "inner", "embeddings")
        ),
        *(pytest.param(case, True, marks=pytest.mark.slow) for case in ("few", "embeddings")),
    ],
)
def test_against_the_formula(case: str, optimize: bool) -> None:
    """Left-padded, with unequal images, at the prompt and three later steps."""
    given = CASES[case]
    ran = generate(tiny(2), cdkit.load("revisit", **given), SAMPLES, pad=3, optimize=optimize)
    own = {**given, "depth": {0.5: 2, 0.0: 0}.get(given.get("depth", 1.0), 3)}
    expected, which = by_hand(ran.tokens, **own)
    assert_close(ran.logits, expected, within=1e-8)
    assert torch.equal(ran.tokens, expected["combined"].argmax(-1))
    if case == "every":
        assert any(len(set(row.tolist())) > 1 for row in which)  # else no choice was tested


def test_the_scores_of_the_authors() -> None:
    """Sums of log-probabilities over the plausible tokens: the same but for a number a step."""
    ran = generate(tiny(2), cdkit.load("revisit"), SAMPLES[:1])
    logits, _ = by_hand(ran.tokens, SAMPLES[:1])
    for own, image, combined in zip(*(x[0] for x in logits.values()), strict=True):
        kept = own.log_softmax(-1) >= own.log_softmax(-1).max() + math.log(1e-5)
        theirs = own[kept].log_softmax(-1) + image[kept].log_softmax(-1)
        shift = theirs - combined[kept]
        torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=0, atol=1e-9)
        assert combined[~kept].isneginf().all()


def test_the_stock_model_says_the_same_of_the_image() -> None:
    """Hugging Face's own last states, which are normed, through its head."""
    model, one = tiny(2), SAMPLES[1]
    from .tiny import batch

    with torch.no_grad():
        states = model(**batch([one]), output_hidden_states=True).hidden_states[-1][0]
        stock = model.lm_head(states[torch.tensor(one.ids) == IMAGE])
    torch.testing.assert_close(read(one), stock, rtol=0, atol=1e-9)


def test_a_prompt_alone_is_what_it_is_in_a_batch() -> None:
    method = cdkit.load("revisit")
    together = generate(tiny(2), method, SAMPLES, pad=2)
    for row, one in enumerate(SAMPLES):
        own = {name: logits[row : row + 1] for name, logits in together.logits.items()}
        assert_close(own, generate(tiny(2), method, [one]).logits, within=1e-9)


def test_sampling_and_beams() -> None:
    """By hand; with beams what is kept of the image follows its rows."""
    method = cdkit.load("revisit", beta=0.0)

    def logits(one: Sample, generated: Sequence[int]) -> Tensor:
        tokens = torch.tensor([[*generated, 0]])
        return by_hand(tokens, [one], beta=0.0)[0]["combined"][0, -1].float()

    samples = SAMPLES[:2]
    torch.manual_seed(3)
    ran = generate(tiny(2), method, samples, steps=STEPS, trace=(), do_sample=True, top_k=0)
    assert ran.tokens.tolist() == drawn(logits, samples, same, 3)
    ran = generate(
        tiny(2), method, samples, steps=STEPS, trace=(), num_beams=3, num_return_sequences=3,
        early_stopping=True, output_scores=True,
    )  # fmt: skip
    best = [beam for one in samples for beam in beams(logits, one, 3)]
    assert ran.tokens.tolist() == [tokens for _, tokens in best]


@pytest.mark.parametrize("how", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_other_caches(how: dict[str, Any]) -> None:
    ran = generate(tiny(2), cdkit.load("revisit"), SAMPLES, **how)
    assert_close(ran.logits, by_hand(ran.tokens)[0], within=1e-8)


def test_beside_branches_that_share_the_image() -> None:
    """With another method's branch, whose prefix would run once for both."""
    both = cdkit.compose(cdkit.load("revisit"), cdkit.load("cmac_imd", beta=1e-5))
    for optimize in (True, False):
        ran = generate(tiny(2), both, SAMPLES, pad=1, optimize=optimize)
        wanted = by_hand(ran.tokens)[0]
        for name in ("original", "image_token"):
            assert_close({name: ran.logits[name]}, {name: wanted[name]}, within=1e-8)


def test_switched_off_it_is_the_stock_model() -> None:
    off = cdkit.load("revisit", alpha=0.0, beta=0.0)
    ran, plain = (generate(tiny(2), m, SAMPLES) for m in (off, cdkit.load("plain")))
    for one, other in zip(ran.output.logits, plain.output.logits, strict=True):
        assert torch.equal(one, other)


# ---- faults --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran() -> Ran:
    return generate(tiny(2), cdkit.load("revisit", **CASES["every"]), SAMPLES)


def furthest(own: Tensor, other: Tensor, least: float) -> float:
    return -distance(own, other, least)


def of_the_mean(own: Tensor, other: Tensor, least: float) -> float:
    """The other Kullback-Leibler divergence alone: of the image token from the model."""
    p, q = own.log_softmax(-1), other.log_softmax(-1)
    return float((q.exp() * (q - p)).sum())


FAULTS: dict[str, Callable[[Tensor, Tensor, Sample], Tensor]] = {
    "furthest": lambda own, image, one: image[nearest(own, image, 0.0, furthest)],
    "KL": lambda own, image, one: image[nearest(own, image, 0.0, of_the_mean)],
    "first step": lambda own, image, one: image[nearest(own[:1], image, 0.0)].expand_as(own),
    "first image alone": lambda own, image, one: image[:16][nearest(own, image[:16], 0.0)],
    "no norm": lambda own, image, one: read(one, 3, norm=False)[nearest(own, image, 0.0)],
    "a layer before": lambda own, image, one: read(one, 2)[nearest(own, read(one, 2), 0.0)],
    "mean of the image": lambda own, image, one: image.mean(0).expand_as(own),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(ran: Ran, fault: str) -> None:
    original, have = ran.logits["original"], ran.logits["image_token"]
    right = torch.stack(
        [read(s)[nearest(own, read(s), 0.0)] for s, own in zip(SAMPLES, original, strict=True)]
    )
    assert_close({"image": have}, {"image": right}, within=1e-8)
    wrong = torch.stack(
        [FAULTS[fault](own, read(s), s) for s, own in zip(SAMPLES, original, strict=True)]
    )
    with pytest.raises(AssertionError, match="off by"):
        assert_close({"image": have}, {"image": wrong}, within=1e-3)


@pytest.mark.usefixtures("as_for_a_user")
def test_what_is_refused() -> None:
    with pytest.raises(cdkit.CdkitError, match=r"among must be in \[0, 1\]"):
        cdkit.load("revisit", among=2.0)
    with pytest.raises(cdkit.CdkitError, match=r"depth must be a share of the layers"):
        cdkit.load("revisit", depth=1.5)
    with pytest.raises(cdkit.CdkitError, match=r"prefill_chunk_size=7: nearest_image_token reads"):
        generate(tiny(2), cdkit.load("revisit"), SAMPLES, prefill_chunk_size=7)
