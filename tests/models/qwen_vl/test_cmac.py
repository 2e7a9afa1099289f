"""Qwen-VL: CMAC against the independent reference, whose decoder here is Qwen2's, in float64.

Log-n attention and dynamic NTK begin beyond the training length, which is refused.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from parity.exact import exact
from parity.families import Prompt, Ran, answered, check, differs, wanted
from parity.faults import faulty
from torch import Tensor

from cdkit.models.qwen_vl import QwenVLForConditionalGeneration

from .conftest import texts
from .published import END, IMAGE, IMAGE_START

TOKENS = 9
"""Of an image: two of the published size do not fit into the tiny model's training length."""
SHOWN = [IMAGE_START, *[IMAGE] * TOKENS, IMAGE_START + 1]
ROWS = ([5, *SHOWN, 20, 21, 22], [6, 7, *SHOWN, 23, *SHOWN, 24, 25, 26, 27])


@pytest.fixture(scope="module")
def small(model: Any) -> Iterator[Any]:
    """The tiny model with a few tokens an image."""
    config = copy.deepcopy(model.config)
    config.vision_config.num_queries = TOKENS
    made: Any = QwenVLForConditionalGeneration(config).to(model.dtype).eval()
    shapes = {name: value.shape for name, value in made.state_dict().items()}
    full = model.state_dict().items()
    made.load_state_dict({n: v[: shapes[n][0]] if shapes[n] else v for n, v in full})
    made.generation_config.pad_token_id = END
    with exact(made) as own:
        yield own


@pytest.fixture(scope="module")
def ran(small: Any) -> Callable[[str], Ran]:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 3, 36, 36, generator=random, dtype=torch.float64)

    def given(*rows: int) -> dict[str, Tensor]:
        own = torch.cat([pixels[:1] if row == 0 else pixels[1:] for row in rows])
        return texts([ROWS[row] for row in rows], pad=END) | {"pixel_values": own}

    prompts = [Prompt(given(row), (TOKENS,) * (row + 1), IMAGE) for row in (0, 1)]
    return lambda case: answered(small, case, given(0, 1), prompts)


@pytest.mark.parametrize("case", ["cmac", "cmac-row", "imccd", "cmac-text-step"])
def test_cmac_is_the_references(case: str, ran: Callable[[str], Ran]) -> None:
    check(ran(case))


def test_mistakes_are_seen(ran: Callable[[str], Ran]) -> None:
    own = ran("cmac")
    differs(own, wanted(own, gamma=3.0))
    with faulty("mean_over_images"):
        differs(own, wanted(own), rows=[1])
    form = replace(own.decoder.form, biases=False)
    differs(own, wanted(own, decoder=replace(own.decoder, form=form)))
