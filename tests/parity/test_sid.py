"""SID: the distorted branch sees the least attended image tokens alone, above an early layer."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.depth import layers_within

from .against import CALIBRATED, assert_close, generate, reference
from .decoders import Decoder
from .expected import WAYS, branches, check, check_fault, check_modes, with_combined
from .reference import Edit, Layer, Result, Rules, with_foreign_past
from .tiny import IMAGE, LAYERS, batch, sample, sequence, tiny

MIXED = (
    sample(3, 5, seed=71),
    sample(0, 4, seed=72, bos=False),  # nothing before the image: pruned tokens see themselves
    sample(2, 3, 6, seed=73),  # two images
    sample(1, 0, 2, seed=74),  # two images without text between them
)
SAMPLES = (sample(3, 5, seed=75), sample(2, 3, 4, seed=76))
WIDE = cdkit.load("sid", layers=(0.0, 1.0), kept=0.3)
"""Prunes in two of the three layers: what image rows lose shows in what text rows see."""


Scored = Callable[[Tensor, int], Tensor]
"""(weights (heads, rows, image columns), row) -> how attended each column is."""
Decides = Callable[[int, Layer], int]
"""(row, layer) -> the row whose weights decide what it may see."""


def by_own_weights(weights: Tensor, row: int) -> Tensor:
    return weights[:, row].mean(0)


def by_the_prompts_end(row: int, layer: Layer) -> int:
    """The prompt's last row decides for the prompt, each generated one for itself."""
    return max(row, layer.sequence.prompt - 1)


def kept_columns(
    layer: Layer, weights: Tensor, row: int, share: float, scored: Scored = by_own_weights
) -> Tensor:
    """The image columns that the row may see, by its weights (heads, rows, columns)."""
    image = [column for column, number in enumerate(layer.sequence.image) if number >= 0]
    score = scored(weights[:, :, image], row)
    count = int(share * len(image) + 0.5)
    order = sorted(range(len(image)), key=lambda index: float(score[index]))
    return torch.tensor([image[index] for index in order[:count]])


def pruned(
    share: float = 100 / 576,
    scored: int = 1,
    *,
    first: int = 1,
    read: Callable[[Result, int], Tensor] = lambda result, scored: result.weights[scored],
    decides: Decides = by_the_prompts_end,
    score: Scored = by_own_weights,
    rows: Callable[[Tensor], Tensor] = torch.ones_like,
) -> Edit:
    """No row sees an image column that its T leaves out, in the layers above `scored`."""

    def edit(layer: Layer, logits: Tensor, result: Result) -> Tensor:
        if layer.layer < scored + first:
            return logits
        tokens = len(layer.sequence.image)
        is_image = torch.tensor(layer.sequence.image) >= 0
        weights, new = read(result, scored), logits.clone()
        for row in rows(is_image).nonzero()[:, 0].tolist():
            gone = is_image.clone()
            gone[kept_columns(layer, weights, decides(row, layer), share, score)] = False
            if (~gone)[: row + 1].any():
                new[:, row, gone] = -math.inf
            else:  # nothing is left: the row sees itself
                new[:, row] = torch.where(torch.arange(tokens) == row, logits[:, row], -math.inf)
        return new

    return edit


def zeroed(share: float, scored: int) -> Edit:
    """A fault: the weights of pruned columns are zero, the others stay as they were."""
    right = pruned(share, scored)

    def reweigh(layer: Layer, weights: Tensor, result: Result) -> Tensor:
        gone = right(layer, torch.zeros_like(layer.logits), result).isneginf()
        return weights.masked_fill(gone, 0)

    return reweigh


CASES: dict[str, tuple[cdkit.Method, Edit]] = {
    "sid": (cdkit.load("sid"), pruned()),
    "from the first layer": (WIDE, pruned(0.3, 0)),
    "one token": (cdkit.load("sid", layers=(0.0, 1.0), kept=1 / 16), pruned(1 / 16, 0)),
    "most": (cdkit.load("sid", layers=(0.0, 1.0), kept=0.8, beta=0.0), pruned(0.8, 0)),
    "as the public code": (cdkit.load("sid", alpha=0.5), pruned()),
}


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
@pytest.mark.parametrize("case", CASES)
def test_every_variant_equals_the_reference(
    case: str, kv_heads: int, optimize: bool, pad: int
) -> None:
    own, edit = CASES[case]
    expected = branches(original=Rules(), distorted=Rules(edit=edit))
    check(own, expected, MIXED, kv_heads=kv_heads, optimize=optimize, pad=pad)


@pytest.mark.parametrize("row", range(len(MIXED)))
def test_a_prompt_alone_is_as_in_the_batch(row: int) -> None:
    alone = generate(tiny(2), WIDE, [MIXED[row]])
    together = generate(tiny(2), WIDE, MIXED, pad=2)
    have = {name: own[row : row + 1] for name, own in together.logits.items()}
    assert_close(have, alone.logits, within=1e-8)


def test_the_layers_and_tokens_of_the_authors() -> None:
    """Two full layers of 32, scored by the second; 100 of 576 tokens."""
    (part,) = cdkit.load("sid").branches[0].attention
    assert list(layers_within(part.layers, 32)) == list(range(1, 32))
    assert round(part.kept * 576) == 100  # type: ignore[attr-defined]


def test_sampling_and_beams() -> None:
    check_modes(WIDE, branches(original=Rules(), distorted=Rules(edit=pruned(0.3, 0))), SAMPLES)


@pytest.mark.parametrize("optimize", [True, False])
def test_with_a_calibrator(optimize: bool) -> None:
    """The calibrated attention scores."""
    own = replace(WIDE, calibrator=cdkit.load("cmac").calibrator)
    rules = replace(CALIBRATED, edit=pruned(0.3, 0))
    check(own, branches(original=CALIBRATED, distorted=rules), MIXED, optimize=optimize)


@pytest.mark.parametrize("optimize", [True, False])
def test_beside_branches_of_other_kinds(optimize: bool) -> None:
    """One that shares the prefix, and one with a prompt of another length."""
    made = [
        cdkit.Branch("pruned", WIDE.branches[0].distortions),
        cdkit.Branch("cut", cdkit.load("attention_mask").branches[0].distortions),
        cdkit.Branch("blind", cdkit.load("no_image").branches[0].distortions),
    ]
    own = replace(WIDE, branches=tuple(made))
    expected = branches(
        original=Rules(),
        pruned=Rules(edit=pruned(0.3, 0)),
        cut=Rules(distortion="cut"),
        blind=(Rules(), lambda one: replace(one, ids=tuple(i for i in one.ids if i != IMAGE))),
    )
    check(own, expected, MIXED, optimize=optimize, pad=1)


def test_a_plain_call_of_one_prompt() -> None:
    """All of its tokens are the prompt's; it may be padded on the right."""
    free, inputs = replace(WIDE, constraint=None), batch(SAMPLES)
    for row, one in enumerate(SAMPLES):
        gap = inputs["input_ids"].shape[1] - len(one.ids)
        for name in "input_ids", "attention_mask":
            inputs[name][row] = inputs[name][row].roll(-gap)
    with cdkit.attach(tiny(2), free), torch.no_grad():
        scored = tiny(2)(**inputs).logits
    original, distorted = (
        reference(tiny(2), SAMPLES, [[], []], rules)
        for rules in (Rules(), Rules(edit=pruned(0.3, 0)))
    )
    for row, one in enumerate(SAMPLES):
        want = 2 * original[row].logits - distorted[row].logits
        assert (scored[row, : len(one.ids)] - want).abs().max() < 1e-8


def text_by_itself(row: int, layer: Layer) -> int:
    return row if layer.sequence.image[row] < 0 else by_the_prompts_end(row, layer)


FAULTS: dict[str, dict[str, Any]] = {
    "largest head": {"score": lambda weights, row: weights[:, row].amax(0)},
    # but for a number per head, which no order depends on
    "logits": {"score": lambda weights, row: weights[:, row].log().mean(0)},
    "every row": {"score": lambda weights, row: weights.mean((0, 1))},
    "most attended": {"score": lambda weights, row: -by_own_weights(weights, row)},
    "a layer later": {"first": 2},
    "another layer": {"read": lambda result, scored: result.weights[scored - 1]},
    "text rows only": {"rows": torch.logical_not},
    "each row by itself": {"decides": text_by_itself},
}
DECIDES: dict[str, Decides] = {
    "decided once": lambda row, layer: layer.sequence.prompt - 1,
    "decided by the last": lambda row, layer: len(layer.sequence.image) - 1,
}
"""Mistake -> the piece of `pruned` that is wrong."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    scored = 1 if fault == "another layer" else 0
    own = cdkit.load("sid", layers=(scored / 3, 1.0), kept=0.3)
    ran = generate(tiny(2), own, SAMPLES)
    wrong = branches(distorted=Rules(edit=pruned(0.3, scored, **FAULTS[fault])))
    check_fault(ran, wrong(tiny(2), SAMPLES, ran.tokens))


@pytest.mark.parametrize(
    "wrong",
    [
        Rules(edit=pruned(4 / 16, 0)),
        Rules(edit=pruned(6 / 16, 0)),
        Rules(edit=pruned(0.3, 1)),
        Rules(reweigh=zeroed(0.3, 0)),
        Rules(),
    ],
)
def test_other_numbers_are_seen(wrong: Rules) -> None:
    ran = generate(tiny(2), WIDE, SAMPLES)
    check_fault(ran, branches(distorted=wrong)(tiny(2), SAMPLES, ran.tokens))


@pytest.mark.parametrize("fault", DECIDES)
def test_each_generated_row_decides_for_itself_alone(fault: str) -> None:
    """And what is in the cache was computed under what its own row saw."""
    ran = generate(tiny(2), WIDE, SAMPLES, steps=6)
    right, wrong = (
        branches(distorted=Rules(edit=pruned(0.3, 0, decides=own)))
        for own in (by_the_prompts_end, DECIDES[fault])
    )
    for step in range(1, 6):
        tokens = ran.tokens[:, : step + 1]
        have = ran.logits["distorted"][:, step]
        assert (have - right(tiny(2), SAMPLES, tokens)["distorted"][:, -1]).abs().max() < 1e-8
        off = (have - wrong(tiny(2), SAMPLES, tokens)["distorted"][:, -1]).abs().amax(-1)
        assert (off > 1e-6).all()


def test_the_first_layers_are_those_of_the_original() -> None:
    ran = generate(tiny(2), cdkit.load("sid"), SAMPLES, trace=("image_attention", "mask"))
    for step in ran.run.trace.steps:
        seen, cut = step.image_attention, step.mask["distorted"]
        for layer in range(LAYERS):
            same = (seen["original"][layer] - seen["distorted"][layer]).abs().max() < 1e-9
            assert same == (layer < 2) and bool(cut[layer].any()) == (layer == 2)
        counts = (seen["distorted"][2] > 0).sum(-1)
        assert (counts == torch.tensor([[3], [6]])).all()  # of 16, and of 32


def test_a_foreign_past_is_seen() -> None:
    """The distorted branch has a cache of its own."""
    ran = generate(tiny(2), WIDE, SAMPLES)
    rules = Rules(edit=pruned(0.3, 0))
    for row, one in enumerate(SAMPLES):
        fed = ran.tokens[row, :2].tolist()
        (own,), (original,) = (reference(tiny(2), [one], [fed], r) for r in (rules, Rules()))
        at = sequence(tiny(2), one.ids, fed, one.pixels)
        have = ran.logits["distorted"][row, 2]
        assert (with_foreign_past(Decoder.of(tiny(2)), at, rules, own) - have).abs().max() < 1e-8
        foreign = with_foreign_past(Decoder.of(tiny(2)), at, rules, original)
        assert (foreign - have).abs().max() > 1e-6


def test_all_kept_is_the_identical_branch() -> None:
    own = cdkit.load("sid", kept=1.0, layers=(0.0, 1.0))
    check(own, branches(original=Rules(), distorted=Rules()), MIXED)


def test_the_constraint_holds_in_greedy() -> None:
    """A fault of the public code: it drops the constraint there."""
    ran = generate(tiny(2), WIDE, SAMPLES)
    want = with_combined({k: v for k, v in ran.logits.items() if k != "combined"}, WIDE)
    assert want["combined"].isneginf().any()
    assert_close({"c": ran.logits["combined"]}, {"c": want["combined"]}, within=1e-8)


def test_without_a_layer_to_prune_in() -> None:
    with pytest.raises(cdkit.CdkitError, match=r"layer 2 alone of the decoder's 3.*widen it"):
        generate(tiny(2), cdkit.load("sid", layers=(0.9, 1.0)), SAMPLES)


def test_a_prompt_that_ends_with_its_image() -> None:
    with pytest.raises(cdkit.CdkitError, match="prompt 1 ends with an image, but sid reads where"):
        generate(tiny(2), WIDE, [SAMPLES[0], sample(4, 0, seed=77)])


@pytest.mark.parametrize("how", [{"prefill_chunk_size": 7}, {"use_cache": False}], ids=str)
def test_a_prompt_in_pieces(how: dict[str, Any]) -> None:
    with pytest.raises(cdkit.CdkitError, match="token_pruning depends on all text rows") as error:
        generate(tiny(2), WIDE, SAMPLES, **how)
    assert str(error.value).endswith("Leave it out")


@pytest.mark.parametrize("kept", [0.0, 1.1])
def test_what_it_refuses(kept: float) -> None:
    with pytest.raises(cdkit.CdkitError, match=r"kept must be .*, got "):
        cdkit.load("sid", kept=kept)
