"""Qwen2-VL and its kin: patches as images, positions of three axes, features at several depths."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from covers import a_third, covering
from PIL import Image
from torch import Tensor
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import cdkit
from cdkit.execution.optimizations import ALL
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.testing import check_adapter

from .grid_tiny import BOS, GRID, IMAGE, ONE, TWO, Prompt, Words, inputs, tiny
from .modes import MODES, PRESETS, answered, check_batch, generated
from .plain_cmac import check_cmac

NAMES = {ONE: "one", TWO: "two"}
ALIKE = "qwen3_5_moe"
"""It differs from Qwen3.5 in what other families with experts have."""
EACH = [pytest.param(n, marks=pytest.mark.wide if n == ALIKE else ()) for n in GRID]
CASES = [
    *covering([name for name in GRID if name != ALIKE], PRESETS),
    *(pytest.param(ALIKE, preset, marks=pytest.mark.wide) for preset in PRESETS),
]


def run(name: str, preset: str, prompts: tuple[Prompt, ...], *, optimize: bool, **how: Any) -> Any:
    names, given = [NAMES[prompt] for prompt in prompts], inputs(name, *prompts)
    return answered(tiny(name), preset, given, words=Words(), names=names, optimize=optimize, **how)


# ---- admission -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", a_third(name for name in GRID if name != ALIKE))
def test_the_contract(name: str) -> None:
    check_adapter(tiny(name), inputs=inputs(name, ONE))


@pytest.mark.parametrize("how", [{}, {"prefill_chunk_size": 5}, {"use_cache": False}])
@pytest.mark.parametrize("name", EACH)
def test_off_is_stock(name: str, how: dict[str, Any]) -> None:
    given = inputs(name, ONE, TWO)
    stock = torch.stack(generated(tiny(name), given, **how).logits)
    with cdkit.attach(tiny(name), cdkit.load("vcd", alpha=0.0, beta=0.0)):
        off = torch.stack(generated(tiny(name), given, **how).logits)
    assert off.equal(stock)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "preset"), CASES)
def test_a_batch_of_unequal_images_is_each_prompt_alone(name: str, preset: str, mode: str) -> None:
    check_batch(functools.partial(run, name, preset), (ONE, TWO), mode, close(name))


def close(name: str) -> dict[str, Any]:
    return {
        "rtol": 0,
        "atol": 1e-3 if name.endswith("moe") else 2e-5,
    }  # RoPE, output_logits are float32


@pytest.mark.parametrize("name", EACH)
def test_what_is_missing_is_refused(name: str) -> None:
    model, given = tiny(name), inputs(name, ONE)
    with cdkit.attach(model, cdkit.load("vcd")):
        for missing in ("image_grid_thw", "mm_token_type_ids"):
            rest = {key: value for key, value in given.items() if key != missing}
            words = f"{type(model).__name__} needs {missing} beside pixel_values"
            with pytest.raises(cdkit.CdkitError, match=words):
                model.generate(**rest, max_new_tokens=1)


# ---- pixels --------------------------------------------------------------------------------------


def test_patches_are_pictures() -> None:
    """By hand: patch (i, j) of token (y, x) holds rows 2 (2 y + i) and 2 (2 y + i) + 1."""
    given = inputs("qwen2_vl", ONE, TWO)
    adapter = adapter_for(tiny("qwen2_vl"))
    pictures = adapter.split_pixels(tiny("qwen2_vl"), given, [6, 8, 3])
    assert [tuple(p.shape) for p in pictures] == [(1, 3, 8, 12), (1, 3, 16, 8), (1, 3, 4, 12)]
    row = 0
    for picture, (_, height, width) in zip(pictures, given["image_grid_thw"].tolist(), strict=True):
        for y in range(height // 2):
            for x in range(width // 2):
                for i in range(2):
                    for j in range(2):
                        top, left = 2 * (2 * y + i), 2 * (2 * x + j)
                        own = picture[0, :, top : top + 2, left : left + 2]
                        patch = given["pixel_values"][row].view(3, 2, 2, 2)
                        assert patch[:, 0].equal(own) and patch[:, 1].equal(own)
                        row += 1
    assert adapter.join_pixels(tiny("qwen2_vl"), pictures, given).equal(given["pixel_values"])


@pytest.mark.parametrize("processor", [Qwen2VLImageProcessorPil, Glm4vImageProcessorPil])
def test_patches_of_the_stock_image_processor_are_the_picture(processor: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    processor = processor(
        patch_size=2, merge_size=2, size={"shortest_edge": 16, "longest_edge": 1000}
    )
    given = dict(processor(images=[Image.fromarray(pixels)], return_tensors="pt"))
    model = tiny("qwen2_vl")
    (picture,) = adapter_for(model).split_pixels(model, given, [6])
    mean, std = (torch.tensor(own) for own in (processor.image_mean, processor.image_std))
    wanted = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1)[None]
    torch.testing.assert_close(picture, wanted)


@dataclass(frozen=True)
class Doubled(cdkit.PixelDistortion):
    """Pictures with twice their contrast; what they were is kept."""

    seen: ClassVar[list[Tensor]] = []

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        self.seen.append(pixels)
        return 2 * pixels


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_a_distorted_picture_is_that_picture(name: str) -> None:
    """The branch's logits are the stock model's for the other picture, deeper levels and all."""
    given, model, doubled = inputs(name, ONE, TWO), tiny(name), Doubled()
    doubled.seen.clear()
    method = replace(cdkit.load("vcd"), branches=(cdkit.Branch("doubled", (doubled,)),))
    with cdkit.attach(model, method, trace=("logits",)) as attached:
        generated(model, given, max_new_tokens=1)
    other = given | {"pixel_values": 2 * given["pixel_values"]}
    stock = generated(model, other, max_new_tokens=1).logits[0]
    found = attached.trace.steps[0].logits["doubled"].float()
    torch.testing.assert_close(found, stock, **close(name))
    assert not found.allclose(attached.trace.steps[0].logits["original"].float(), atol=1e-2)
    assert sorted(tuple(seen.shape) for seen in doubled.seen) == [
        (1, 3, 4, 12), (1, 3, 8, 12), (1, 3, 16, 8),
    ]  # fmt: skip


@pytest.mark.parametrize("name", EACH)
def test_a_prompt_in_chunks_without_a_cache_or_in_a_plain_call(name: str) -> None:
    model, given = tiny(name), inputs(name, ONE, TWO)
    asked: list[dict[str, Any]] = [{}, {"prefill_chunk_size": 5}, {"use_cache": False}]
    with cdkit.attach(model, cdkit.load("vcd", beta=0.0)):
        whole, chunks, uncached = (
            torch.stack(generated(model, given, **how).logits) for how in asked
        )
        with torch.inference_mode():
            plain = model(**given).logits[:, -1]
    torch.testing.assert_close(chunks, whole, **close(name))
    torch.testing.assert_close(uncached, whole, **close(name))
    torch.testing.assert_close(plain.float(), whole[0], **close(name))


# ---- positions -----------------------------------------------------------------------------------


@contextmanager
def turned_at(model: Any) -> Iterator[list[Tensor]]:
    """The positions that the rotary embedding is asked for: (axes, rows, tokens), a call each."""
    seen: list[Tensor] = []

    def note(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(kwargs.get("position_ids", args[-1]))

    embedding = model.model.language_model.rotary_emb
    handle = embedding.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


def rope_index(name: str, given: dict[str, Tensor]) -> Tensor:
    found: Tensor = tiny(name).model.get_rope_index(
        given["input_ids"],
        mm_token_type_ids=given["mm_token_type_ids"],
        image_grid_thw=given["image_grid_thw"],
        attention_mask=given["attention_mask"],
    )[0]
    return found


@pytest.mark.parametrize("preset", ["icd", "pai"])
@pytest.mark.parametrize("name", EACH)
def test_rewritten_prompts_stand_where_the_model_puts_them(name: str, preset: str) -> None:
    model, given = tiny(name), inputs(name, ONE, TWO)
    method = cdkit.load(preset)
    cdkit.attach(model, method, processor=Words())  # runs the decoder once, to look at its keys
    with (
        turned_at(model) as seen,
        cdkit.attach(model, method, processor=Words(), optimize=ALL - {"shared_prefix"}),
    ):
        generated(model, given, max_new_tokens=3)
    rewritten = [_rewritten(method, prompt) for prompt in (ONE, TWO)]
    length = max(given["input_ids"].shape[1], *map(len, rewritten))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rewritten])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rewritten])
    new = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == IMAGE).int()}
    wanted = rope_index(name, given | new)
    prefill, *steps = seen
    assert prefill.shape[-1] == length
    real = mask.bool()
    own = prefill[:, 2:4]
    assert own[:, real].equal(wanted[:, real])
    stock = rope_index(name, given)
    at = given["attention_mask"].bool()
    assert prefill[:, :2, -at.shape[1] :][:, at].equal(stock[:, at])  # the original ones
    for number, step in enumerate(steps, start=1):
        last = torch.cat((stock, wanted[..., -stock.shape[-1] :]), dim=1)[..., -1:]
        assert step.equal(last + number)


def _rewritten(method: cdkit.Method, prompt: Prompt) -> list[int]:
    given = inputs("qwen2_vl", prompt)["input_ids"][0].tolist()
    distortion: Any = method.branches[0].distortions[0]
    if isinstance(distortion, cdkit.DISTORTIONS["no_image"]):
        return [token for token in given if token != IMAGE]
    text = Words()(distortion.instruction, add_special_tokens=False)["input_ids"]
    return [BOS, *text, *given[1:]]


# ---- CMAC against a plain recomputation ----------------------------------------------------------


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("name", EACH)
def test_cmac_is_its_definition(name: str, optimize: bool) -> None:
    prompts = functools.partial(inputs, name)
    check_cmac(tiny(name), prompts, (ONE, TWO), optimize=optimize, close=close(name))
