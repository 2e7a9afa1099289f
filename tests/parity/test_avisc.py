"""AvisC: the distorted branch keeps the features of the few tokens that draw attention."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.functional.noise import generator
from cdkit.strategies.distortions.blind_tokens import blind_tokens

from .against import CALIBRATED, IMD, SEED, Ran, assert_close, generate, next_logits
from .decoders import Decoder
from .expected import WAYS, Expected, check, check_fault, check_modes
from .reference import Edit, Result, Rules, Sequence_, run
from .test_pai import amplified
from .tiny import Sample, batch, sample, sequence, tiny

MIXED = (
    sample(3, 5, seed=81),
    sample(0, 4, seed=82, bos=False),
    sample(2, 3, 6, seed=83),
    sample(1, 0, 2, seed=84),
)
SAMPLES = (sample(3, 5, seed=85), sample(2, 3, 4, seed=86))
PLAIN = Rules()


@dataclass(frozen=True)
class Chosen:
    """How the tokens are chosen, piece by piece: a mistake is another piece."""

    rows: Callable[[Sequence_, Sequence[int]], Sequence[int]] = lambda own, image: [own.prompt - 1]
    shares: Callable[[Tensor], Tensor] = lambda a: a
    heads: Callable[[Tensor], Tensor] = lambda a: a.mean(0)
    layers: Callable[[Sequence[int], int], Sequence[int]] = lambda chosen, all_: chosen
    kept: Callable[[Tensor], Tensor] = lambda unusual: unusual


RIGHT = Chosen()


def kept_tokens(
    result: Result, own: Sequence_, share: float, spread: float, how: Chosen = RIGHT
) -> Tensor:
    """(image tokens): True where the attention of the prompt's last row is unusual."""
    image = [column for column, number in enumerate(own.image) if number >= 0]
    drawn, masses = [], []
    for weights in result.weights:
        a = weights[:, how.rows(own, image)].mean(1)[:, image]
        a = how.heads(how.shares(a))
        drawn.append(a)
        masses.append(float(a.sum()))
    order = sorted(range(len(masses)), key=lambda layer: -masses[layer])
    chosen: Sequence[int] = []
    covered = 0.0
    for layer in order:
        chosen = [*chosen, layer]
        covered += masses[layer] / sum(masses)
        if covered >= share:
            break
    chosen = how.layers(chosen, len(masses))
    b = [sum(float(drawn[layer][j]) for layer in chosen) / len(chosen) for j in range(len(image))]
    mean = sum(b) / len(b)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in b) / (len(b) - 1))
    unusual = torch.tensor([x >= mean + spread * deviation for x in b])
    return how.kept(unusual)


def filled(
    share: float = 0.5,
    spread: float = 1.0,
    fill: str = "zeros",
    *,
    rules: Rules = PLAIN,
    distorted: Rules | None = None,
    original: Rules | None = None,
    how: Chosen = RIGHT,
    hidden: bool = False,
) -> Expected:
    """Both branches; the distorted one's image features are those of the kept tokens alone.

    `hidden`: the mistake of `masked`.
    """

    def expected(model: Any, samples: Sequence[Sample], tokens: Tensor) -> dict[str, Tensor]:
        decoder = Decoder.of(model)
        clean, poor = [], []
        for one, fed in zip(samples, tokens[:, :-1].tolist(), strict=True):
            own = sequence(model, one.ids, fed, one.pixels)
            clean.append(own)
            (result,) = run(decoder, [own], original or rules)
            kept = kept_tokens(result, own, share, spread, how)
            image = torch.tensor(own.image) >= 0
            features = own.embeds[image]
            new = torch.full_like(features, 1.0 if fill == "ones" else 0.0)
            if fill == "noise":
                random = generator(SEED, one.name, "BlindTokens")
                new = torch.randn(features.shape, generator=random).double()
            embeds = own.embeds.clone()
            embeds[image] = torch.where(kept[:, None], features, new)
            poor.append(replace(own, embeds=embeds))
        steps, own_rules = tokens.shape[1], distorted or rules
        if hidden:
            own_rules = replace(own_rules, edit=masked(poor))
        return {
            "original": next_logits(run(decoder, clean, original or rules), steps),
            "distorted": next_logits(run(decoder, poor, own_rules), steps),
        }

    return expected


def masked(sequences: Sequence[Sequence_]) -> Edit:
    """A fault: tokens of zero features are not seen at all."""
    gone = {id(own): (own.embeds == 0).all(-1) for own in sequences}
    return lambda layer, logits, result: logits.masked_fill(gone[id(layer.sequence)], -math.inf)


def avisc(**how: Any) -> cdkit.Method:
    return cdkit.load("avisc", **how)


CASES: dict[str, tuple[cdkit.Method, Expected]] = {
    "avisc": (avisc(), filled()),
    "avisc_instructblip": (cdkit.load("avisc_instructblip"), filled()),
    "one layer": (avisc(share=0.0), filled(0.0)),
    "all layers": (avisc(share=1.0), filled(1.0)),
    "ones": (avisc(fill="ones", alpha=1.0), filled(fill="ones")),
    "noise": (avisc(fill="noise"), filled(fill="noise")),
    "nothing kept": (avisc(spread=100.0), filled(spread=100.0)),
    "half kept": (avisc(spread=0.0, beta=0.0), filled(spread=0.0)),
}


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
@pytest.mark.parametrize("case", CASES)
def test_every_variant_equals_the_reference(
    case: str, kv_heads: int, optimize: bool, pad: int
) -> None:
    own, expected = CASES[case]
    check(own, expected, MIXED, kv_heads=kv_heads, optimize=optimize, pad=pad)


@pytest.mark.parametrize("case", ["avisc", "noise"])
@pytest.mark.parametrize("row", range(len(MIXED)))
def test_a_prompt_alone_is_as_in_the_batch(row: int, case: str) -> None:
    alone = generate(tiny(2), CASES[case][0], [MIXED[row]])
    together = generate(tiny(2), CASES[case][0], MIXED, pad=2)
    have = {name: own[row : row + 1] for name, own in together.logits.items()}
    assert_close(have, alone.logits, within=1e-7)


@pytest.mark.parametrize("case", ["avisc", "noise"])
def test_sampling_and_beams(case: str) -> None:
    check_modes(*CASES[case], SAMPLES)


@pytest.mark.parametrize("optimize", [True, False])
def test_with_a_calibrator(optimize: bool) -> None:
    """The calibrated attention decides."""
    own = replace(avisc(), calibrator=cdkit.load("cmac").calibrator)
    check(own, filled(rules=CALIBRATED), MIXED, optimize=optimize)


def test_with_the_distortion_of_cmac_and_the_intervention_of_pai() -> None:
    """What is looked at is what the original branch, as it is changed, looks at."""
    cmac = cdkit.load("cmac")
    (branch,) = avisc().branches
    own = replace(
        cmac,
        branches=(replace(branch, distortions=branch.distortions + cmac.branches[0].distortions),),
        interventions=cdkit.load("pai", strength=0.9).interventions,
    )
    changed = replace(CALIBRATED, edit=amplified(0.9))
    check(own, filled(original=changed, distorted=IMD), MIXED)


@pytest.mark.parametrize("pixels", [False, True])
def test_the_answer_without_a_cache(pixels: bool) -> None:
    """The features stay those that the prompt decided; noised images have features of their own."""
    own = avisc()
    if pixels:
        noise = cdkit.load("vcd").branches[0].distortions
        both = own.branches[0].distortions + noise
        own = replace(own, branches=(cdkit.Branch("distorted", both),))
    cached = generate(tiny(2), own, SAMPLES)
    uncached = generate(tiny(2), own, SAMPLES, use_cache=False)
    assert_close(uncached.logits, cached.logits, within=1e-7)


def test_a_plain_call_of_one_prompt() -> None:
    """All of its tokens are the prompt's; it may be padded on the right."""
    inputs = batch(SAMPLES)
    for row, one in enumerate(SAMPLES):
        gap = inputs["input_ids"].shape[1] - len(one.ids)
        for name in "input_ids", "attention_mask":
            inputs[name][row] = inputs[name][row].roll(-gap)
    with cdkit.attach(tiny(2), avisc(beta=0.0)), torch.no_grad():
        scored = tiny(2)(**inputs).logits
    want = filled()(tiny(2), SAMPLES, torch.zeros(2, 1).long())
    for row, one in enumerate(SAMPLES):
        combined = 3.5 * want["original"][row, -1] - 2.5 * want["distorted"][row, -1]
        assert (scored[row, len(one.ids) - 1] - combined).abs().max() < 1e-7


FAULTS: dict[str, dict[str, Any]] = {
    "every text row": {
        "how": Chosen(rows=lambda own, image: range(image[-1] + 1, own.prompt)),
    },
    "image softmax": {"how": Chosen(shares=lambda a: a / a.sum(-1, keepdim=True))},
    "largest head": {"how": Chosen(heads=lambda a: a.amax(0))},
    "every layer": {"how": Chosen(layers=lambda chosen, all_: range(all_))},
    "last layer": {"how": Chosen(layers=lambda chosen, all_: [all_ - 1])},
    "inverse": {"how": Chosen(kept=torch.logical_not)},
    "masked": {"hidden": True},
}
"""Mistake -> what of `filled` is wrong."""


@pytest.fixture(scope="module")
def half_kept() -> Ran:
    return generate(tiny(2), avisc(spread=0.0), SAMPLES + MIXED)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(half_kept: Ran, fault: str) -> None:
    """A choice of tokens may come out the same by chance, so not in every prompt."""
    wrong = filled(spread=0.0, **FAULTS[fault])(tiny(2), SAMPLES + MIXED, half_kept.tokens)
    off = (half_kept.logits["distorted"] - wrong["distorted"]).abs().amax((1, 2))
    assert (off > 1e-6).sum() >= (6 if fault in ("inverse", "masked") else 2)


@pytest.mark.parametrize(
    "wrong",
    [
        filled(spread=0.1),
        filled(share=0.9, spread=0.0),
        filled(share=0.0, spread=0.0),
        filled(spread=0.0, fill="ones"),
        filled(spread=0.0, fill="noise"),
        filled(spread=-9.0),
    ],
    ids=["spread", "more layers", "one layer", "ones", "noise", "all kept"],
)
def test_other_numbers_are_seen(half_kept: Ran, wrong: Expected) -> None:
    logits = wrong(tiny(2), SAMPLES + MIXED, half_kept.tokens)["distorted"]
    off = (half_kept.logits["distorted"] - logits).abs().amax((1, 2))
    assert (off > 1e-6).sum() >= 2


def test_later_steps_decide_nothing() -> None:
    ran = generate(tiny(2), avisc(), SAMPLES, steps=6)
    differs = torch.zeros(len(SAMPLES), dtype=torch.bool)
    for step in range(1, 6):
        tokens = ran.tokens[:, : step + 1]
        final = Chosen(rows=lambda own, image: [len(own.image) - 1])
        wrong = filled(how=final)(tiny(2), SAMPLES, tokens)["distorted"][:, -1]
        differs |= (ran.logits["distorted"][:, step] - wrong).abs().amax(-1) > 1e-6
    assert differs.all()


def test_all_kept_is_the_identical_branch() -> None:
    ran = generate(tiny(2), avisc(spread=-100.0), SAMPLES)
    assert_close({"l": ran.logits["distorted"]}, {"l": ran.logits["original"]}, within=1e-9)


def test_another_seed_gives_other_noise() -> None:
    one, same, other = (
        generate(tiny(2), avisc(fill="noise"), SAMPLES, seed=seed).logits for seed in (7, 7, 8)
    )
    assert_close(one, same, within=1e-12)
    check_fault(generate(tiny(2), avisc(fill="noise"), SAMPLES), {"distorted": other["distorted"]})


LOOKS = torch.zeros(3, 6).double()
LOOKS[1, 0], LOOKS[0, 1], LOOKS[2, 2] = 0.5, 0.3125, 0.1875
"""Three layers, each of which looks at one token; the middle one looks most."""


@pytest.mark.parametrize(
    ("share", "blind"),
    [
        (0.0, [0]),
        (0.5, [0]),  # the layer that reaches it is the last
        (0.51, [0, 1]),
        (0.8125, [0, 1]),
        (0.82, [0, 1, 2]),
        (1.0, [0, 1, 2]),
    ],
)
def test_layers_until_the_share_is_reached(share: float, blind: list[int]) -> None:
    assert chosen(LOOKS, share=share) == blind


def chosen(attention: Tensor, *, share: float, spread: float = 0.0) -> list[int]:
    tokens: list[int] = blind_tokens(attention, share=share, spread=spread).nonzero()[:, 0].tolist()
    return tokens


def test_layers_count_alike() -> None:
    """Weighted by their share, the second layer's tokens would fall below the mean."""
    looks = torch.tensor([[0.3, 0.3, 0, 0, 0, 0], [0, 0, 0.2, 0.2, 0, 0]]).double()
    assert chosen(looks, share=1.0) == [0, 1, 2, 3]


def test_the_deviation_is_unbiased() -> None:
    """By the biased one the first two stood at the threshold."""
    looks = torch.tensor([[0.25, 0.25, 0.0, 0.0]]).double()
    assert chosen(looks, share=0.5, spread=1.0) == []
    assert chosen(looks, share=0.5, spread=0.5 / 0.5774) == [0, 1]


def test_ties() -> None:
    """A token at the threshold is blind."""
    flat = torch.full((2, 4), 0.125).double()
    assert blind_tokens(flat, share=0.5, spread=1.0).all()
    assert blind_tokens(flat[:, :1], share=0.5, spread=1.0).all()  # an image of one token


def test_a_prompt_that_ends_with_its_image() -> None:
    with pytest.raises(cdkit.CdkitError, match="prompt 0 ends with an image, but avisc reads"):
        generate(tiny(2), avisc(), [sample(4, 0, seed=87)])


def test_a_prompt_in_pieces() -> None:
    with pytest.raises(cdkit.CdkitError, match="made from where the prompt's last row looks"):
        generate(tiny(2), avisc(), SAMPLES, prefill_chunk_size=7)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"share": 1.5}, r"share must be in \[0, 1\], got 1.5"),
        ({"share": -1.0}, "share must be a finite number >= 0"),
        ({"spread": math.nan}, "spread must be a finite number"),
    ],
)
def test_what_it_refuses(given: dict[str, float], told: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=told):
        avisc(**given)
