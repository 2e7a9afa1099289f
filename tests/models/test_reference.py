"""Each family with positions of one axis: CMAC against the independent reference, in float64."""

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from parity.decoders import Form, Turn
from parity.exact import exact
from parity.families import Inputs, Prompt, Ran, answered, check, differs, wanted
from parity.faults import faulty

from cdkit.interfaces.model_adapter import ADAPTERS

from . import kin_tiny, masked_tiny
from . import tiny as all_tiny

GRID = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "qwen3_5", "qwen3_5_moe")
"""Positions of three axes: test_grid.py recomputes those."""
BY_MODEL = ("granite4_vision", "phi4_multimodal")
"""Other decoders that are recomputed in that way, by files of their own."""
SINGLE = [
    name
    for name, family in all_tiny.FAMILIES.items()
    if family.model_type in ADAPTERS and family.model_type not in (*GRID, *BY_MODEL)
]
KIN, MASKED = kin_tiny.KIN, (*masked_tiny.FAMILIES, "paligemma2", "instructblip")
MODULES: dict[str, Any] = {"single": all_tiny, "kin": kin_tiny, "masked": masked_tiny}
EVERY = [
    *(f"single:{name}" for name in SINGLE),
    *(f"kin:{name}" for name in KIN),
    *(f"masked:{name}" for name in MASKED),
]


@pytest.fixture(scope="module")
def ran() -> Any:
    """Each family's exact model and what was computed with it, kept."""
    with ExitStack() as stack:

        @functools.cache
        def model(name: str) -> Any:
            module, family = name.split(":")
            return stack.enter_context(exact(MODULES[module].tiny(family)))

        @functools.cache
        def of(name: str, case: str = "cmac") -> Ran:
            batch, prompts = _prompts(name)
            return answered(model(name), case, batch, prompts)

        yield of


def _prompts(name: str) -> tuple[Inputs, list[Prompt]]:
    """Unequal prompts, several images and marks inside of them where the family takes those."""
    module, family = name.split(":")
    if module == "single":
        given = [all_tiny.inputs(family, row) for row in (0, 1)]
        counts: list[tuple[int, ...]] = [
            (int((own["input_ids"] == all_tiny.IMAGE).sum()),) for own in given
        ]
        batch, token = all_tiny.inputs(family, 0, 1), all_tiny.IMAGE
    elif module == "kin":
        parts = (kin_tiny.PAIR, kin_tiny.ONE, kin_tiny.TWO)
        given = [kin_tiny.inputs(family, own) for own in parts]
        counts = [
            tuple(
                kin_tiny.written(family, *part).count(kin_tiny.IMAGE)
                for part in own
                if isinstance(part, tuple)
            )
            for own in parts
        ]
        batch, token = kin_tiny.inputs(family, *parts), kin_tiny.IMAGE
    else:
        pair = masked_tiny.pair(family)
        given = [masked_tiny.inputs(family, own) for own in pair]
        each, tiled = masked_tiny.EACH[family], family in ("idefics2", "idefics3", "smolvlm")
        counts = [tuple(each * (t if tiled else 1) for t in own.tiles) for own in pair]
        batch, token = masked_tiny.inputs(family, *pair), masked_tiny.IMAGE
    zipped = zip(given, counts, strict=True)
    return batch, [Prompt(own, count, token) for own, count in zipped]


@pytest.mark.parametrize("name", EVERY)
def test_cmac_is_the_references(name: str, ran: Callable[..., Ran]) -> None:
    check(ran(name))


@pytest.mark.parametrize("case", ["cmac-row", "imccd"])
@pytest.mark.parametrize("name", [name for name in EVERY if not name.startswith("single")])
def test_variants_are_the_references(name: str, case: str, ran: Callable[..., Ran]) -> None:
    check(ran(name, case))


# ---- each of these mistakes would be seen --------------------------------------------------------

QWEN2 = ("kin:internvl", "kin:llava_onevision", "kin:ovis2")
FORMS: dict[str, dict[str, Callable[[Form], Form]]] = {
    **{name: {"no bias": lambda own: replace(own, biases=False)} for name in QWEN2},
    "kin:aya_vision": {
        "halves turn": lambda own: replace(own, pairs="halves"),
        "every layer turns": lambda own: replace(own, turns=own.turns[:1] * len(own.turns)),
        "the mean is kept": lambda own: replace(own, norm="rms"),
    },
    "masked:gemma3": {
        "no norm of heads": lambda own: replace(own, head_norms=False),
        "one base": lambda own: replace(own, turns=own.turns[:1] * len(own.turns)),
        "no stretch": lambda own: replace(
            own, turns=tuple(turn and Turn(turn.theta) for turn in own.turns)
        ),
        "scaled by the head": lambda own: replace(own, scaling=None),
        "images are causal": lambda own: replace(own, sees_ahead="nowhere"),
        "norms without the 1": lambda own: replace(own, norm="rms"),
        "what is added is not normed": lambda own: replace(own, block="serial"),
        "another gate": lambda own: replace(own, gate="silu"),
    },
    "single:gemma4": {
        "every layer sees ahead": lambda own: replace(own, ahead_layers=()),
        "images are causal": lambda own: replace(own, sees_ahead="nowhere"),
        "every frequency turns": lambda own: replace(
            own, turns=tuple(turn and Turn(turn.theta) for turn in own.turns)
        ),
        "values are not normed": lambda own: replace(own, value_norms=False),
        "scaled by the head": lambda own: replace(own, scaling=None),
    },
    "single:gemma4-small": {
        "keys are not shared": lambda own: replace(own, key_sources=(0, 1, 2, 2, 2)),
        "keys of the first layers": lambda own: replace(own, key_sources=(0, 1, 2, 0, 1)),
        "image tokens are no padding": lambda own: replace(own, soft_tokens=()),
        "images see ahead": lambda own: replace(own, sees_ahead="in images"),
    },
    "single:gemma4_unified": {
        "sliding layers see ahead": lambda own: replace(
            own, ahead_layers=(True, False, True, False)
        ),
        "keys of the last layer": lambda own: replace(own, key_sources=(0, 1, 2, 2)),
    },
    "single:molmo2": {
        "images are causal": lambda own: replace(own, block_tokens=()),
        "marks are causal": lambda own: replace(own, block_tokens=(90,)),
        "the last mark is causal": lambda own: replace(own, block_tokens=(90, 92, 94, 95)),
        "every layer is stretched": lambda own: replace(own, turns=own.turns[:1] * len(own.turns)),
    },
    "masked:paligemma2": {
        "logits are not capped": lambda own: replace(own, cap=None),
        "another cap": lambda own: replace(own, cap=25.0),
    },
    "masked:paligemma": {
        "the prompt is causal": lambda own: replace(own, sees_ahead="nowhere"),
        "images alone see ahead": lambda own: replace(own, sees_ahead="in images"),
        "norms without the 1": lambda own: replace(own, norm="rms"),
        "another gate": lambda own: replace(own, gate="silu"),
    },
}


@pytest.mark.parametrize(("name", "mistake"), [(n, m) for n, own in FORMS.items() for m in own])
def test_another_decoder_is_seen(name: str, mistake: str, ran: Callable[..., Ran]) -> None:
    own = ran(name)
    form = FORMS[name][mistake](own.decoder.form)
    differs(own, wanted(own, decoder=replace(own.decoder, form=form)))


@pytest.mark.parametrize("name", EVERY)
def test_another_calibration_is_seen(name: str, ran: Callable[..., Ran]) -> None:
    differs(ran(name), wanted(ran(name), gamma=3.0))


MARKED: dict[str, Sequence[int]] = {
    **{f"kin:{name}": (0, 1, 2) for name in ("aya_vision", "ovis2", "pixtral", "mistral3")},
    "masked:idefics3": (1,),
    "masked:smolvlm": (1,),
    "masked:idefics2": (1,),
}
"""Families with marks inside of an image, and the prompts that have them."""


@pytest.mark.parametrize("fault", ["marks_are_text", "mean_over_marks"])
@pytest.mark.parametrize("name", MARKED)
def test_marks_that_count_are_seen(name: str, fault: str, ran: Callable[..., Ran]) -> None:
    own = ran(name)
    with faulty(fault):
        differs(own, wanted(own), rows=MARKED[name])


PAIRS = {f"kin:{name}": 0 for name in KIN} | {
    f"masked:{name}": 1 for name in MASKED if name != "instructblip"
}
"""Families that take several images, and the prompt that has them."""


@pytest.mark.parametrize("name", PAIRS)
def test_a_mean_over_all_images_is_seen(name: str, ran: Callable[..., Ran]) -> None:
    own = ran(name)
    with faulty("mean_over_images"):
        differs(own, wanted(own), rows=[PAIRS[name]])


@pytest.mark.parametrize("name", EVERY)
def test_the_exact_model_is_the_stock_one(name: str, ran: Callable[..., Ran]) -> None:
    """But for rounding: else the parity above would be that of another model."""
    batch, _ = _prompts(name)
    module, family = name.split(":")
    stock = MODULES[module].tiny(family)
    with torch.no_grad(), exact(stock) as model:
        logits = [own(**batch).logits[:, -1].double() for own in (model, stock)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)


def test_text_between_the_images_of_a_prompt_that_sees_ahead(ran: Callable[..., Ran]) -> None:
    """PaliGemma's rows see the whole prompt, but a cell has an earlier image column alone."""
    name = "paligemma"
    image, each = [masked_tiny.IMAGE] * masked_tiny.EACH[name], masked_tiny.EACH[name]
    given = masked_tiny.of_ids(name, [[*image, 20, 21, *image, masked_tiny.BOS, 24, 25, 26, 94]])
    given["pixel_values"] = masked_tiny.inputs(name, masked_tiny.TILES)["pixel_values"]
    with exact(masked_tiny.tiny(name)) as model:
        check(answered(model, "cmac", given, [Prompt(given, (each, each), masked_tiny.IMAGE)]))
