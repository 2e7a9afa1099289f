"""Qwen2-VL and its kin: patches as images, positions of three axes, features at several depths."""

import functools
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import cdkit
from cdkit.execution.optimizations import ALL
from cdkit.interfaces.model_adapter import adapter_for
from cdkit.testing import check_adapter

from .grid_tiny import BOS, GRID, IMAGE, ONE, TWO, VIDEO, Prompt, Words, inputs, tiny
from .modes import MODES, PRESETS, answered, check_batch, covering, generated

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


@pytest.mark.parametrize("name", EACH)
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


@dataclass(eq=False)
class Plain:
    """CMAC written out: one sequence, no cache, all attention weights, the model's own rotary
    embedding asked for the calibrated positions. Nothing here comes from cdkit."""

    model: Any
    prompt: int
    gamma: float
    index: list[int]
    """For each token the number of its image, -1 for text, -2 for a mark inside of an image."""
    positions: Tensor
    """(3, 1, tokens)."""
    distorted: bool = False
    axes: int = 3
    """Of the positions that the rotary embedding is asked for; 1 for most families."""
    raw: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Queries and keys of the layer under way, before they are turned."""

    @property
    def module(self) -> Any:
        return sys.modules[type(self.model.model.language_model.layers[-1].self_attn).__module__]

    def __post_init__(self) -> None:
        self.turn = self.module.apply_rotary_pos_emb

    def noted(self, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.raw.append((query, key))
        return self.turn(query, key, *args, **kwargs)

    def calibrated(self) -> Tensor:
        """Token by token: how far each stands behind the one before its image, axis by axis."""
        places: list[Tensor] = []
        here, start, longest = 0.0, 0.0, 0.0
        for token, number in enumerate(self.index):
            own = self.positions[:, 0, token].double()
            if number < 0 and token and self.index[token - 1] >= 0:
                # text may follow a video before the time of its last frame
                here += min(longest, float(own.max()) - start) / self.gamma
            if number < 0:
                here += 1
                places.append(torch.full((3,), here, dtype=torch.float64))
                continue
            if token == 0 or self.index[token - 1] != number:
                start, longest = float(own.min()), 0.0
            gone = own - start + 1
            longest = max(longest, float(gone.max()))
            places.append(here + gone / self.gamma)
        return torch.stack(places, dim=1)[:, None]

    def attention(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        tokens = len(self.index)
        text, image = (torch.tensor(self.index) == -1, torch.tensor(self.index) >= 0)
        causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        cells = causal & text[:, None] & image[None]
        plain_query, plain_key = self.raw.pop()
        rotary = self.model.model.language_model.rotary_emb
        places = self.calibrated() if self.axes > 1 else self.calibrated()[0]
        turned = self.turn(plain_query, plain_key, *rotary(value, position_ids=places))
        there = [  # some families split off the part of a head that does not turn
            torch.cat((own, whole[..., own.shape[-1] :]), dim=-1)
            for own, whole in zip(turned, (query, key), strict=True)
        ]
        ordinary, moved = (
            kwargs["scaling"] * q[0] @ _each_head(k, q).transpose(-1, -2)
            for q, k in ((query, key), there)
        )
        logits = torch.where(cells, moved, ordinary)
        weights = logits.masked_fill(~causal, -math.inf).softmax(-1)
        values = _each_head(value, query)
        out = weights @ values
        if self.distorted:
            cut = weights * self._above_mean(logits, cells)
            out = (weights - cut) @ values + cut @ self._means(values)
        return out.transpose(0, 1)[None], None

    def _above_mean(self, logits: Tensor, cells: Tensor) -> Tensor:
        """The prompt's cells share a threshold; each generated row has its own."""
        above = torch.zeros_like(logits, dtype=torch.bool)
        tokens = len(self.index)
        for rows in [range(self.prompt), *([row] for row in range(self.prompt, tokens))]:
            group = torch.zeros_like(cells)
            group[list(rows)] = cells[list(rows)]
            above |= group & (logits > logits[:, group].mean())
        return above

    def _means(self, values: Tensor) -> Tensor:
        means, index = torch.zeros_like(values), torch.tensor(self.index)
        for number in range(max(self.index) + 1):
            means[:, index == number] = values[:, index == number].mean(dim=1, keepdim=True)
        return means


def _each_head(x: Tensor, query: Tensor) -> Tensor:
    return x[0].repeat_interleave(query.shape[1] // x.shape[1], dim=0)


@torch.no_grad()
def plain_logits(
    model: Any,
    given: dict[str, Tensor],
    generated: list[int],
    *,
    gamma: float,
    distorted: bool,
    mark: int | None = None,
) -> Tensor:
    """(steps, vocab): what predicts each generated token, and the one after them.

    `mark` is the token that stands between the rows of an image; then there is one image.
    """
    decoder = model.model.language_model
    asked: dict[str, Any] = {}
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: asked.update(kwargs), with_kwargs=True
    )
    model(**given)
    handle.remove()
    prompt, more = given["input_ids"].shape[1], len(generated)
    embeds, positions = asked["inputs_embeds"], asked["position_ids"]
    if positions is None:
        positions = torch.arange(embeds.shape[1])[None]
    axes = 3 if positions.ndim == 3 else 1
    positions = positions[-3:] if axes > 1 else positions[None].expand(3, -1, -1)
    new = model.get_input_embeddings()(torch.tensor([generated], dtype=torch.long))
    ahead = positions[..., -1:] + torch.arange(1, more + 1)
    ids = given["input_ids"][0].tolist() + generated
    index, number = [], -1
    for place, token in enumerate(ids):
        here = token in (IMAGE, VIDEO) and place < prompt
        number += here and (place == 0 or ids[place - 1] != token)
        index.append(number if here else -1)
    if mark is not None:
        last = len(index) - 1 - index[::-1].index(number)
        index = [min(own, 0) for own in index]
        for place in range(last):
            index[place] = -2 if ids[place] == mark else index[place]
    positions = torch.cat((positions, ahead), dim=-1)
    own = Plain(model, prompt, gamma, index, positions, distorted, axes)
    levels: dict[str, Any] = {}
    if asked.get("deepstack_visual_embeds") is not None:
        where = torch.nn.functional.pad(asked["visual_pos_masks"], (0, more))
        levels = {
            "visual_pos_masks": where,
            "deepstack_visual_embeds": asked["deepstack_visual_embeds"],
        }
    if asked.get("deepstack_features") is not None:
        levels["deepstack_features"] = asked["deepstack_features"]
        levels["vision_mask"] = torch.nn.functional.pad(asked["vision_mask"], (0, 0, 0, more))
    for types in (name for name in asked if name.endswith("token_type_ids")):
        if asked[types] is not None:  # the answer is text
            levels[types] = torch.nn.functional.pad(asked[types], (0, more))
    with _as_attention(model, own):
        states = decoder(
            inputs_embeds=torch.cat((embeds, new), dim=1),
            position_ids=positions if axes > 1 else positions[0],
            use_cache=False,
            **levels,
        ).last_hidden_state
    logits: Tensor = model.lm_head(states[0, prompt - 1 :])
    return logits / getattr(decoder.config, "logits_scaling", 1)


@contextmanager
def _as_attention(model: Any, plain: Plain) -> Iterator[None]:
    decoder = model.model.language_model
    before = decoder.config._attn_implementation
    AttentionInterface.register("written_out", plain.attention)
    AttentionMaskInterface.register("written_out", sdpa_mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain.module, "apply_rotary_pos_emb", plain.noted)
        decoder.config._attn_implementation = "written_out"
        try:
            yield
        finally:
            decoder.config._attn_implementation = before


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("name", EACH)
def test_cmac_is_its_definition(name: str, optimize: bool) -> None:
    model, given = tiny(name), inputs(name, ONE, TWO)
    method = cdkit.load("cmac", gamma=2.5)
    with cdkit.attach(model, method, trace=("logits",), optimize=optimize) as attached:
        tokens = generated(model, given).sequences[:, given["input_ids"].shape[1] :]
    found = attached.trace.steps
    names = list(found[0].logits)
    for row, prompt in enumerate((ONE, TWO)):
        alone = inputs(name, prompt)
        for branch, distorted in zip(names, (False, True), strict=True):
            before = tokens[row, :-1].tolist()
            wanted = plain_logits(model, alone, before, gamma=2.5, distorted=distorted)
            own = torch.stack([step.logits[branch][row] for step in found])
            torch.testing.assert_close(own, wanted, **close(name))
            # the comparison would see positions left alone, and a branch left undistorted
            for gamma, other in ((1.0, distorted), (2.5, not distorted)):
                wrong = plain_logits(model, alone, before, gamma=gamma, distorted=other)
                assert not torch.allclose(own, wrong, rtol=0, atol=1e-2)
