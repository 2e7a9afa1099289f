"""GIFT against the authors' code (amazon-science/GIFT, inference.py and modeling_llama.py there,
commit e20b8a9), for all text after the image in the place of the question's content words."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.depth import layers_within
from cdkit.interfaces.segment import ImageColumns
from cdkit.testing.example_segments import example_segment

from .against import assert_close, generate
from .expected import WAYS, branches, check, check_fault, check_modes
from .reference import Edit, Layer, Result, Rules
from .test_cmac import MIXED
from .tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=71), sample(2, 3, 4, seed=72))


def positive(gained: Tensor) -> Tensor:
    """(heads, tokens, image): losses do not count."""
    new = gained.clone()
    new[new < 0.0] = 0.0
    return new


def clipped(heat: Tensor) -> Tensor:
    low, high = heat.mean() - 3 * heat.std(), heat.mean() + 3 * heat.std()
    return torch.clamp(heat, min=low.item(), max=high.item())


def gift(
    alpha: float = 5.0,
    read: int = 1,
    enhanced: range = range(1, 2),
    gain: Callable[[Tensor], Tensor] = positive,
    clip: Callable[[Tensor], Tensor] = clipped,
    of_query: bool = True,
) -> Edit:
    def edit(layer: Layer, logits: Tensor, result: Result) -> Tensor:
        image = torch.tensor(layer.sequence.image)
        columns = (image >= 0).nonzero()[:, 0]
        prompt, first = layer.sequence.prompt, int(columns[0])
        last = int(columns[-1])
        heads = logits.shape[0]

        def weights(row: int) -> Tensor:
            return logits[:, row, : row + 1].softmax(-1)

        kept: Any = result
        if layer.layer == read:
            rows = range(last + 2, prompt)
            gained = [weights(r)[:, columns] - weights(r - 1)[:, columns] for r in rows]
            kept.map = torch.ones(len(columns), dtype=logits.dtype)
            if gained:  # else nothing was asked
                attn = gain(torch.stack(gained, dim=1))
                best = torch.topk(attn.sum(dim=(1, 2)), heads // 2).indices
                heat = clip(attn[best].mean((0, 1)))
                kept.map = torch.exp((heat - heat.min()) / (heat.max() - heat.min()) * alpha)
        if layer.layer not in enhanced:
            return logits
        new = logits.clone()
        query = [i for i in range(first, prompt) if image[i] < 0]
        for row in range(prompt - 1, logits.shape[1]):
            if image[row] >= 0:  # a prompt that ends with its image
                continue
            own = weights(row)
            vision, asked = own[:, columns], own[:, query]
            best = torch.topk(vision.sum(-1), heads // 2).indices
            scale = (vision[best] * kept.map).sum() / vision[best].sum()
            vision[best] *= kept.map
            best = torch.topk(asked.sum(-1), heads // 2).indices
            if of_query and asked[best].numel():
                asked[best] *= scale
            own[:, columns], own[:, query] = vision, asked
            new[:, row, : row + 1] = own.log()
        return new

    return edit


CASES: dict[str, tuple[cdkit.Method, Edit]] = {
    "preset": (cdkit.load("gift"), gift(read=2, enhanced=range(2, 3))),
    "read below": (
        cdkit.load("gift", strength=2.0, layers=(0.0, 1.0), enhanced=(0.3, 1.0)),
        gift(2.0, 0, range(1, 3)),
    ),
}


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
@pytest.mark.parametrize("case", CASES)
def test_it_equals_the_reference(case: str, kv_heads: int, optimize: bool, pad: int) -> None:
    own, edit = CASES[case]
    expected = branches(original=Rules(edit=edit))
    check(own, expected, MIXED, kv_heads=kv_heads, optimize=optimize, pad=pad)


def test_sampling_and_beams() -> None:
    own, edit = CASES["read below"]
    check_modes(own, branches(original=Rules(edit=edit)), SAMPLES)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}], ids=str)
def test_beside_another_branch(how: dict[str, Any]) -> None:
    """Its memory in packed rows, with beams and in static caches."""
    both = cdkit.load("gift+icd", strength=2.0)
    both = cdkit.load("gift+cmac") if not how else both
    ran, plain = (generate(tiny(2), both, SAMPLES, optimize=x, **how) for x in (True, False))
    assert torch.equal(ran.tokens, plain.tokens)
    if "num_beams" not in how:
        assert_close(ran.logits, plain.logits, within=1e-8)


def test_answers_in_turn_do_not_mix() -> None:
    own = CASES["read below"][0]
    first, second = (generate(tiny(2), own, [one]) for one in SAMPLES)
    together = generate(tiny(2), own, SAMPLES)
    for row, alone in enumerate((first, second)):
        assert torch.equal(alone.tokens[0], together.tokens[row])


FAULTS: dict[str, dict[str, Any]] = {
    "losses count": {"gain": lambda gained: gained},
    "gains and losses alike": {"gain": lambda gained: gained.abs()},
    "the image alone": {"of_query": False},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    ran = generate(tiny(2), CASES["read below"][0], SAMPLES)
    faulty = gift(2.0, 0, range(1, 3), **FAULTS[fault])
    check_fault(ran, branches(original=Rules(edit=faulty))(tiny(2), SAMPLES, ran.tokens))


def test_a_sink_is_clipped() -> None:
    """Of 64 image tokens one takes far more than three deviations."""
    prompt = example_segment()
    heads, text, image = 2, 3, 64
    logits = torch.randn(1, heads, text, image, dtype=torch.float64) / 4
    logits[:, :, 1:, 7] += 6
    segment = replace(
        prompt,
        queries=prompt.queries[:1, :heads, :text],
        image=ImageColumns(
            keys=torch.zeros(1, 2, image, 4, dtype=torch.float64),
            values=torch.zeros(1, 2, image, 4, dtype=torch.float64),
            valid=torch.ones(1, image, dtype=torch.bool),
            image_index=torch.zeros(1, image, dtype=torch.long),
            token_index=torch.arange(image)[None],
            rng_keys=prompt.image.rng_keys[:1],
            layer=0,
            depth=1,
        ),
        predicts_next=prompt.predicts_next[:1, :text],
        token_index=prompt.token_index[:1, :text],
        before_image=torch.zeros(1, 2, dtype=torch.bool),
        generated_columns=torch.zeros(1, 2, dtype=torch.bool),
        logits=logits,
        cells=torch.ones(1, text, image, dtype=torch.bool),
        prompt=torch.ones(1, text, dtype=torch.bool),
        text_logits=torch.zeros(1, heads, text, 2, dtype=torch.float64),
    )
    module: Any = sys.modules[type(cdkit.load("gift").interventions[0]).__module__]
    weights = torch.cat((logits, segment.text_logits), dim=-1).softmax(-1)[0, :, :, :image]
    gained = positive(weights[:, 1:] - weights[:, :-1])
    best = torch.topk(gained.sum(dim=(1, 2)), 1).indices
    raw = gained[best].mean((0, 1))
    heat = clipped(raw)
    assert heat.max() < raw.max()
    want = (heat - heat.min()) / (heat.max() - heat.min())
    assert torch.allclose(module.saliency(segment)[0], want, rtol=0, atol=1e-12)


def test_off_is_the_stock_model() -> None:
    have = generate(tiny(2), cdkit.load("gift", strength=0.0), SAMPLES).logits["original"]
    want = generate(tiny(2), cdkit.load("plain"), SAMPLES).logits["original"]
    assert_close({"original": have}, {"original": want}, within=1e-12)


def test_the_layers_of_the_authors() -> None:
    part: Any = cdkit.load("gift").interventions[0]
    assert layers_within(part.layers, 32).start == 11
    assert list(layers_within(part.enhanced, 32)) == list(range(12, 23))


@pytest.mark.parametrize("how", [{"prefill_chunk_size": 7}, {"use_cache": False}], ids=str)
def test_what_splits_the_prompt_is_refused(how: dict[str, Any]) -> None:
    with pytest.raises(cdkit.CdkitError, match="gaze_shift_amplification depends on all text row"):
        generate(tiny(2), cdkit.load("gift"), SAMPLES, **how)


def test_a_loop_is_refused() -> None:
    with pytest.raises(cdkit.CdkitError, match="gaze_shift_amplification, which remembers"):
        cdkit.load("gift+opera")


def test_a_layer_below_the_read_one_is_refused() -> None:
    with pytest.raises(cdkit.CdkitError, match="enhanced must lie within layers"):
        cdkit.load("gift", enhanced=(0.1, 0.5))
