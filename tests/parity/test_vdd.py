"""VDD's three forms against runs without a cache: no image, one unknown token for it, or both."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import cdkit

from .against import Rewrite, assert_close, branch_logits, generate
from .reference import Rules, apply_constraint, contrast
from .test_inputs import distortion, unchanged, without_image
from .tiny import IMAGE, IMAGE_TOKENS, Sample, WordTokenizer, sample, tiny

SAMPLES = (sample(3, 5, seed=61), sample(2, 3, 6, seed=62), sample(0, 4, seed=63, bos=False))
(UNKNOWN,) = WordTokenizer()("<unk>", add_special_tokens=False)["input_ids"]


def unknown_image(one: Sample, *, each: int = 1) -> Sample:
    """`each` unknown tokens in the place of every image, whose tokens stand in a row."""
    ids: list[int] = []
    for place, token in enumerate(one.ids):
        if token != IMAGE:
            ids.append(token)
        elif one.ids[:place].count(IMAGE) % IMAGE_TOKENS == 0:
            ids += [UNKNOWN] * each
    return replace(one, ids=tuple(ids), pixels=one.pixels[:0])


BRANCHES: dict[str, dict[str, Rewrite]] = {
    "vdd_none": {"distorted": without_image},
    "vdd_unk": {"distorted": unknown_image},
    "vdd": {"none": without_image, "unknown": unknown_image},
}


def logits(tokens: Tensor, rewrite: Rewrite) -> Tensor:
    return branch_logits(tiny(2), SAMPLES, tokens, Rules(), rewrite=rewrite)


@pytest.mark.parametrize(("pad", "optimize"), [(0, True), (3, True), (0, False)])
@pytest.mark.parametrize("name", BRANCHES)
def test_vdd(name: str, pad: int, optimize: bool) -> None:
    """`2 l - z`, z the mean of the branches' raw logits; the cut on l."""
    ran = generate(tiny(2), cdkit.load(name), SAMPLES, pad=pad, optimize=optimize)
    original = logits(ran.tokens, unchanged)
    others = {branch: logits(ran.tokens, rewrite) for branch, rewrite in BRANCHES[name].items()}
    mean = torch.stack(list(others.values())).mean(0)
    combined = contrast(original, [mean], [1.0], 0.2)
    expected = {"original": original, **others, "combined": combined}
    assert_close(ran.logits, expected, within=1e-8)
    assert torch.equal(ran.tokens, combined.argmax(-1))


def test_a_batch_is_its_rows_alone() -> None:
    method = cdkit.load("vdd")
    together = generate(tiny(2), method, SAMPLES).logits
    for row, one in enumerate(SAMPLES):
        own = {name: logits[row : row + 1] for name, logits in together.items()}
        assert_close(generate(tiny(2), method, [one]).logits, own, within=1e-8)


def without_next(one: Sample) -> Sample:
    """VDD-none with the token after each image gone too (a line break in LLaVA's prompts)."""
    pairs = zip(one.ids, (-1, *one.ids), strict=False)
    ids = [token for token, before in pairs if token != IMAGE and before != IMAGE]
    return replace(one, ids=tuple(ids), pixels=one.pixels[:0])


WRONG: dict[str, tuple[str, Rewrite]] = {
    "the token after the image gone": ("none", without_next),
    "unknown for none": ("none", unknown_image),
    "none for unknown": ("unknown", without_image),
    "as many unknown tokens as the image had": (
        "unknown",
        lambda one: unknown_image(one, each=IMAGE_TOKENS),
    ),
    "the image still there": ("none", unchanged),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_branch_is_seen_in_each_row(fault: str) -> None:
    branch, rewrite = WRONG[fault]
    ran = generate(tiny(2), cdkit.load("vdd"), SAMPLES)
    faulty = logits(ran.tokens, rewrite)
    for row in range(len(SAMPLES)):
        with pytest.raises(AssertionError, match="off by"):
            assert_close({branch: ran.logits[branch][row]}, {branch: faulty[row]}, within=1e-4)


def test_a_wrong_mixture_is_seen() -> None:
    ran = generate(tiny(2), cdkit.load("vdd"), SAMPLES)
    original, none, unknown = (ran.logits[name] for name in ("original", "none", "unknown"))
    have = {"combined": ran.logits["combined"]}
    right = contrast(original, [none, unknown], [0.5, 0.5], 0.2)
    assert_close(have, {"combined": right}, within=1e-9)
    probabilities = ((none.softmax(-1) + unknown.softmax(-1)) / 2).log()
    log_mean = (none.log_softmax(-1) + unknown.log_softmax(-1)) / 2
    free = contrast(original, [none, unknown], [0.5, 0.5], 0.0)
    faulty = {
        "the sum": contrast(original, [none, unknown], [1.0, 1.0], 0.2),
        "one of them": contrast(original, [none], [1.0], 0.2),
        "probabilities averaged": contrast(original, [probabilities], [1.0], 0.2),
        "log-probabilities averaged": contrast(original, [log_mean], [1.0], 0.2),
        "alpha the other way round": apply_constraint((none + unknown) / 2, original, 0.2),
        "the cut on the sum": apply_constraint(free, free, 0.2),
        "the cut on a branch": apply_constraint(free, none, 0.2),
        "beta no logarithm": free.masked_fill(
            original < original.amax(-1, keepdim=True) + 0.2, -torch.inf
        ),
    }
    for name, combined in faulty.items():
        with pytest.raises(AssertionError):
            assert_close(have, {"combined": combined}, within=1e-3)
        assert name


def test_other_texts_and_slots() -> None:
    """The words stand where the image was, and what follows in the branch finds its places."""
    unknown = distortion("unknown_image", text="an image")
    prefix = distortion("instruction_prefix", instruction="you see", place="question")
    method = replace(
        cdkit.load("vdd_unk"), branches=(cdkit.Branch("distorted", (unknown, prefix)),)
    )
    words = [
        WordTokenizer()(t, add_special_tokens=False)["input_ids"] for t in ("an image", "you see")
    ]

    def rewrite(one: Sample) -> Sample:
        own, last = unknown_image(one), max(p for p, t in enumerate(one.ids) if t == IMAGE)
        tail = len(one.ids) - last - 1
        ids: list[int] = []
        for token, place in zip(own.ids, range(len(own.ids)), strict=True):
            ids += words[1] * (place == len(own.ids) - tail)
            ids += words[0] if token == UNKNOWN else [token]
        return replace(own, ids=tuple(ids))

    ran = generate(tiny(2), method, SAMPLES)
    assert_close({"d": ran.logits["distorted"]}, {"d": logits(ran.tokens, rewrite)}, within=1e-8)


def test_images_side_by_side_are_one_gap() -> None:
    """The one place where the authors' code has more unknown tokens than ours."""
    one = sample(1, 0, 2, seed=64)
    ran = generate(tiny(2), cdkit.load("vdd_unk"), [one])
    twice = unknown_image(one)
    assert twice.ids.count(UNKNOWN) == 2
    at = twice.ids.index(UNKNOWN)
    once = replace(twice, ids=twice.ids[:at] + twice.ids[at + 1 :])
    for own, same in ((once, True), (twice, False)):
        want = branch_logits(
            tiny(2),
            [one],
            ran.tokens,
            Rules(),
            rewrite=lambda _, own=own: own,  # type: ignore[misc]
        )
        assert torch.allclose(ran.logits["distorted"], want, rtol=0, atol=1e-8) == same
