"""Qwen-VL under cdkit: its adapter, and the way from the published folder to an answer."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import cdkit
from cdkit.models.qwen_vl import QwenVLForConditionalGeneration
from cdkit.testing import check_adapter

from ..moved_tokens import grids_of, reads_everywhere
from .published import END, IMAGE, IMAGE_START

TOKENS = 9
"""Of an image in the model here; the published ones have 256."""
METHODS = ("cmac", "vcd", "icd", "pai")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 2},
}


@pytest.fixture(scope="session")
def ready(converted: Path) -> tuple[Any, Any]:
    """The converted model with a few tokens an image, so that attention over them is quick.

    Without an end token, and with a training length that its short prompts do not reach.
    """
    model, processor = cdkit.load_model(converted)
    config = copy.deepcopy(model.config)
    config.vision_config.num_queries = TOKENS
    small: Any = QwenVLForConditionalGeneration(config).to(model.dtype).eval()
    shapes = {name: value.shape for name, value in small.state_dict().items()}
    full = {
        name: value[: shapes[name][0]] for name, value in model.state_dict().items() if shapes[name]
    }
    small.load_state_dict(full)
    small.generation_config.pad_token_id = END
    processor.image_seq_length = TOKENS
    return small, processor


def asked(ready: tuple[Any, Any], *images: int, seed: int = 3) -> dict[str, Tensor]:
    """A prompt a row, of so many images each, the rows of unequal length."""
    model, processor = ready
    adapter = cdkit.adapter_for(model)
    texts = [
        adapter.prompt(f"is {'the ' * row}in?", images=count, processor=processor)
        for row, count in enumerate(images)
    ]
    random = torch.Generator().manual_seed(seed)
    noise = torch.randint(256, (sum(images), 50, 80, 3), generator=random, dtype=torch.uint8)
    pictures = [Image.fromarray(one.numpy()) for one in noise]
    inputs = processor(images=pictures, text=texts, return_tensors="pt", padding=True)
    return dict(inputs) | {"pixel_values": inputs["pixel_values"].to(model.dtype)}


def answer(ready: tuple[Any, Any], inputs: dict[str, Tensor], name: str, **how: Any) -> Tensor:
    model, processor = ready
    more = {"optimize": how.pop("optimize", True), "sample_ids": how.pop("sample_ids", None)}
    with (
        torch.random.fork_rng(),
        cdkit.attach(model, cdkit.load(name), processor=processor, **more),
    ):
        torch.manual_seed(0)
        out: Tensor = model.generate(**inputs, max_new_tokens=4, **how)
    return out[:, inputs["input_ids"].shape[1] :]


def test_the_contract(ready: tuple[Any, Any]) -> None:
    model, processor = ready
    assert type(cdkit.adapter_for(model)) is cdkit.ADAPTERS["qwen_vl"]
    check_adapter(model, processor=processor)


def test_a_token_has_no_place(ready: tuple[Any, Any]) -> None:
    """As many as a square, and each reads the whole picture."""
    model, _ = ready
    inputs = asked(ready, 1)
    found = grids_of(model, inputs)
    assert isinstance(found, str) and "resampler" in found
    assert reads_everywhere(model, inputs)


def test_images_are_told_apart(ready: tuple[Any, Any]) -> None:
    model, _ = ready
    row = [5, IMAGE_START, *[IMAGE] * TOKENS, IMAGE_START + 1]
    index = cdkit.adapter_for(model).image_index(model, torch.tensor([[*row, *row, 7]]))[0]
    assert index.max() == 1 and (index == 0).sum() == (index == 1).sum() == TOKENS
    assert (index[:2] == -1).all() and index[-1] == -1


def test_without_a_method_the_stock_model(ready: tuple[Any, Any]) -> None:
    model, _ = ready
    inputs = asked(ready, 1)
    how: dict[str, Any] = {"max_new_tokens": 4, "return_dict_in_generate": True}
    how |= {"do_sample": False, "output_logits": True}
    stock = torch.stack(model.generate(**inputs, **how).logits)
    with cdkit.attach(model, cdkit.load("plain")):
        assert torch.stack(model.generate(**inputs, **how).logits).equal(stock)
    assert torch.stack(model.generate(**inputs, **how).logits).equal(stock)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", METHODS)
def test_optimised_or_not(name: str, mode: str, ready: tuple[Any, Any]) -> None:
    inputs = asked(ready, 1, 2)
    runs = [answer(ready, inputs, name, optimize=on, **MODES[mode]) for on in (True, False)]
    assert runs[0].equal(runs[1])


@pytest.mark.parametrize("mode", ["greedy", "beams"])
@pytest.mark.parametrize("name", METHODS)
def test_in_a_batch_as_alone(name: str, mode: str, ready: tuple[Any, Any]) -> None:
    """Left-padded beside a prompt with two images."""
    inputs = asked(ready, 1, 2)
    assert inputs["attention_mask"][0, 0] == 0
    both = answer(ready, inputs, name, sample_ids=["a", "b"], **MODES[mode])
    for row, pixels, sample in ((0, slice(1), "a"), (1, slice(1, 3), "b")):
        start = int((inputs["attention_mask"][row] == 0).sum())
        alone = {
            "input_ids": inputs["input_ids"][row : row + 1, start:],
            "attention_mask": inputs["attention_mask"][row : row + 1, start:],
            "pixel_values": inputs["pixel_values"][pixels],
        }
        one = answer(ready, alone, name, sample_ids=[sample], **MODES[mode])
        assert one[0].equal(both[row])
