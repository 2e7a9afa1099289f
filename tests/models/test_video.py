"""Families that read videos: each run of video tokens is an image to every method."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from covers import covering
from parity import families as parity
from parity.exact import exact
from parity.families import Prompt as Written
from torch import Tensor
from torch.nn.functional import pad

import cdkit
from cdkit.execution.optimizations import ALL
from cdkit.functional.noise import generator, purpose_of
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.testing import check_adapter

from . import tiny as flat_tiny
from .grid_tiny import (
    BOS,
    FILM_ONE,
    FILM_TWO,
    GRID,
    IMAGE,
    MIXED,
    ONE,
    VIDEO,
    Prompt,
    Words,
    ids_of,
    inputs,
    kinds_of,
    tiny,
)
from .modes import CLOSE, MODES, PRESETS, answered, check_batch, generated
from .plain_cmac import check_cmac
from .test_grid import close, turned_at

SHARED = "glm4v"
"""Its videos have the token of images, so stock `generate` cannot repeat them for beams, nor mix
them with images."""
ALIKE = "qwen3_5_moe"
EACH = [pytest.param(n, marks=pytest.mark.slow if n == ALIKE else ()) for n in GRID]
MIXING = [
    pytest.param(n, marks=pytest.mark.slow if n == ALIKE else ()) for n in GRID if n != SHARED
]
FILMS = (FILM_ONE, FILM_TWO)
NAMES = {FILM_ONE: "one", FILM_TWO: "two", MIXED: "mixed", ONE: "image"}
ONE_RUN = ("qwen2_vl", "qwen2_5_vl")
"""Families that write a whole video as one run of tokens; the others write the time between."""


UNCACHED: dict[str, Any] = {"use_cache": False, "suppress_tokens": [IMAGE, VIDEO]}
"""Without a cache the stock model would look for the picture of a generated image token."""


CHUNKED = {"prefill_chunk_size": 5}


def modes_of(name: str) -> list[str]:
    return [mode for mode in MODES if mode != "beams" or name != SHARED]


def run(name: str, preset: str, prompts: tuple[Prompt, ...], *, optimize: bool, **how: Any) -> Any:
    names, given = [NAMES[prompt] for prompt in prompts], inputs(name, *prompts)
    return answered(tiny(name), preset, given, words=Words(), names=names, optimize=optimize, **how)


# ---- admission -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prompts"),
    covering([n for n in GRID if n != ALIKE], [FILMS, (MIXED, FILM_TWO), (ONE, FILM_TWO)]),
)
def test_off_is_stock(name: str, prompts: tuple[Prompt, ...]) -> None:
    if name == SHARED and prompts != FILMS:
        pytest.skip("the stock model cannot mix images and videos")
    model, given = tiny(name), inputs(name, *prompts)
    asked: list[dict[str, Any]] = [MODES[mode] for mode in modes_of(name)]
    for how in (*asked, CHUNKED, UNCACHED):
        stock = generated(model, given, **how)
        for method in (cdkit.load("vcd", alpha=0.0, beta=0.0), cdkit.load("plain")):
            with cdkit.attach(model, method):
                off = generated(model, given, **how)
            assert off.sequences.equal(stock.sequences)
            assert torch.stack(off.logits).equal(torch.stack(stock.logits))


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("name", EACH)
def test_an_identical_branch_is_stock(name: str, optimize: bool) -> None:
    model, given = tiny(name), inputs(name, *FILMS)
    stock = torch.stack(generated(model, given).logits)
    method = cdkit.load("identical", beta=0.0)
    with cdkit.attach(model, method, optimize=optimize):
        found = torch.stack(generated(model, given).logits)
    torch.testing.assert_close(found, stock, **close(name))


CASES = [
    *covering([name for name in GRID if name != ALIKE], PRESETS),
    *(pytest.param(ALIKE, preset, marks=pytest.mark.slow) for preset in PRESETS),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "preset"), CASES)
def test_a_batch_of_unequal_videos_is_each_prompt_alone(name: str, preset: str, mode: str) -> None:
    if mode not in modes_of(name):
        pytest.skip("the stock model cannot repeat videos for beams")
    check_batch(functools.partial(run, name, preset), FILMS, mode, close(name))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "preset"), covering(["qwen2_5_vl", "qwen3_vl"], PRESETS))
def test_images_and_videos_in_one_batch(name: str, preset: str, mode: str) -> None:
    check_batch(functools.partial(run, name, preset), (MIXED, ONE, FILM_TWO), mode, close(name))


@pytest.mark.parametrize("name", MIXING)
def test_a_prompt_in_chunks_without_a_cache_or_in_a_plain_call(name: str) -> None:
    model, given = tiny(name), inputs(name, MIXED, FILM_TWO)
    asked = [UNCACHED | how for how in ({"use_cache": True}, {"use_cache": True, **CHUNKED}, {})]
    with cdkit.attach(model, cdkit.load("vcd", beta=0.0)):
        whole, chunks, uncached = (
            torch.stack(generated(model, given, **how).logits) for how in asked
        )
        with torch.inference_mode():
            plain = model(**given).logits[:, -1]
    torch.testing.assert_close(chunks, whole, **close(name))
    torch.testing.assert_close(uncached, whole, **close(name))
    torch.testing.assert_close(plain.float(), whole[0], **close(name))


# ---- CMAC against a plain recomputation ----------------------------------------------------------


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize(
    ("name", "prompts"), covering([n for n in GRID if n != ALIKE], [FILMS, (MIXED,)])
)
def test_cmac_is_its_definition(name: str, prompts: tuple[Prompt, ...], optimize: bool) -> None:
    if name == SHARED and prompts != FILMS:
        pytest.skip("the stock model cannot mix images and videos")
    of_name = functools.partial(inputs, name)
    check_cmac(tiny(name), of_name, prompts, optimize=optimize, close=close(name))


@pytest.mark.parametrize("name", EACH)
def test_calibrated_positions_of_text_never_decrease(name: str) -> None:
    """Also where a video has more steps in time than the text after it makes."""
    model, given = tiny(name), inputs(name, FILM_TWO)
    with turned_at(model) as seen:
        generated(model, given)
    positions = torch.cat([own[-3:] for own in seen], dim=-1).movedim(0, -1)
    more = positions.shape[1] - given["input_ids"].shape[1]
    index = adapter_for(model).image_index(model, given["input_ids"])
    index = pad(index, (0, more), value=-1)
    calibrator = cdkit.load("cmac", gamma=3.0).calibrator
    assert calibrator is not None
    text = calibrator.calibrate(positions, index)[0, index[0] < 0]
    assert bool((text.diff(dim=0) > 0).all())


# ---- pixels --------------------------------------------------------------------------------------


def frames_by_hand(patches: Tensor, grid: list[int]) -> Tensor:
    """Frame 2 t + q of token (y, x), patch (i, j) of it: rows 2 (2 y + i) and the one after it."""
    times, height, width = grid
    frames, row = patches.new_empty(2 * times, 3, 2 * height, 2 * width), 0
    for t in range(times):
        for y in range(height // 2):
            for x in range(width // 2):
                for i in range(2):
                    for j in range(2):
                        top, left = 2 * (2 * y + i), 2 * (2 * x + j)
                        patch = patches[row].view(3, 2, 2, 2)
                        for q in range(2):
                            place = (2 * t + q, slice(None), slice(top, top + 2))
                            frames[place][..., left : left + 2] = patch[:, q]
                        row += 1
    return frames


def frames_of(given: Mapping[str, Tensor]) -> list[Tensor]:
    grids = given["video_grid_thw"].tolist()
    parts = torch.split(given["pixel_values_videos"], [t * h * w for t, h, w in grids])
    return [frames_by_hand(own, grid) for own, grid in zip(parts, grids, strict=True)]


@pytest.mark.parametrize("name", EACH)
def test_patches_are_frames(name: str) -> None:
    model, given = tiny(name), inputs(name, *FILMS)
    videos = adapter_for(model).videos
    assert videos is not None
    runs = videos.split_pixels(model, given, [])
    whole = frames_of(given)
    if name in ONE_RUN:
        assert [len(frames) for frames in runs] == [6, 4, 10]
        assert all(own.equal(frames) for own, frames in zip(runs, whole, strict=True))
    else:
        assert [len(frames) for frames in runs] == [2] * 10
        assert torch.cat(runs[:3]).equal(whole[0])
        assert torch.cat(runs[3:5]).equal(whole[1]) and torch.cat(runs[5:]).equal(whole[2])
    assert videos.join_pixels(model, runs, given).equal(given["pixel_values_videos"])
    index = adapter_for(model).image_index(model, given["input_ids"])
    ids = given["input_ids"].tolist()
    tokens = [kinds_of(name, row) for row in ids]
    assert (index >= 0).equal(torch.tensor(tokens) == 2)
    assert (index.amax(dim=1) + 1).tolist() == ([1, 2] if name in ONE_RUN else [3, 7])


@pytest.mark.parametrize("name", EACH)
def test_vcd_noises_frames_by_its_formula(name: str) -> None:
    """In one draw for all frames of the sample, as many pixels as they have."""
    model, given = tiny(name), inputs(name, FILM_ONE)
    method = cdkit.load("vcd")
    with cdkit.attach(model, method, trace=("logits",), seed=3, sample_ids=["film"]) as attached:
        generated(model, given, max_new_tokens=1)
    (branch,) = method.branches
    (distortion,) = branch.distortions
    (frames,) = frames_of(given)
    noise = torch.randn(frames.shape, generator=generator(3, "film", purpose_of(distortion)))
    betas = torch.linspace(-6, 6, 1000, dtype=torch.float64).sigmoid() * (5e-3 - 1e-5) + 1e-5
    kept = float((1 - betas)[:501].prod())
    noised = kept**0.5 * frames + (1 - kept) ** 0.5 * noise.to(frames)
    back = given["pixel_values_videos"].clone()
    blank = frames_by_hand(
        torch.arange(back.numel()).view_as(back), given["video_grid_thw"][0].tolist()
    )
    back.view(-1)[blank.flatten()] = noised.flatten()
    stock = generated(model, given | {"pixel_values_videos": back}, max_new_tokens=1).logits[0]
    (found,) = (own for n, own in attached.trace.steps[0].logits.items() if n != "original")
    torch.testing.assert_close(found.float(), stock, **close(name))
    assert not found.allclose(attached.trace.steps[0].logits["original"], atol=1e-2)


@dataclass(frozen=True)
class Doubled(cdkit.PixelDistortion):
    """Pictures with twice their contrast; what they were is kept."""

    seen: ClassVar[list[Tensor]] = []

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        self.seen.append(pixels)
        return 2 * pixels


@pytest.mark.parametrize("name", MIXING)
def test_a_distorted_video_is_that_video_beside_images(name: str) -> None:
    """The branch's logits are the stock model's for other pixels; frames are drawn together."""
    given, model, doubled = inputs(name, MIXED, FILM_TWO), tiny(name), Doubled()
    doubled.seen.clear()
    method = replace(cdkit.load("vcd"), branches=(cdkit.Branch("doubled", (doubled,)),))
    with cdkit.attach(model, method, trace=("logits",)) as attached:
        generated(model, given, max_new_tokens=1)
    other = {n: 2 * own if n.startswith("pixel_values") else own for n, own in given.items()}
    stock = generated(model, other, max_new_tokens=1).logits[0]
    found = attached.trace.steps[0].logits["doubled"].float()
    torch.testing.assert_close(found, stock, **close(name))
    assert not found.allclose(attached.trace.steps[0].logits["original"].float(), atol=1e-2)
    # once for the encoder of images, once for that of videos; the first image has another size
    assert {tuple(seen.shape) for seen in doubled.seen} == {
        (1, 3, 8, 12), (8, 3, 4, 8), (1, 3, 8, 8), (4, 3, 4, 12), (10, 3, 8, 8),
    }  # fmt: skip


def test_a_random_transform_is_one_for_all_frames_of_a_video() -> None:
    name, model = "qwen3_vl", tiny("qwen3_vl")
    given = inputs(name, MIXED)
    kind: Any = cdkit.DISTORTIONS["random_transform"]
    alike = given | {"pixel_values_videos": given["pixel_values_videos"][:8].repeat(4, 1)}
    noted: list[Tensor] = []

    class Noting(kind):  # type: ignore[misc]
        def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
            noted.append(super().distort(pixels, generator=generator))
            return noted[-1]

    method = replace(
        cdkit.load("vcd"), branches=(cdkit.Branch("rotated", (Noting(transforms=("rotation",)),)),)
    )
    with cdkit.attach(model, method):
        generated(model, alike, max_new_tokens=1)
    (film,) = (own for own in noted[:3] if len(own) == 8)
    assert film[::2].equal(film[:1].expand(4, -1, -1, -1))
    assert not film[0].allclose(film[1])


# ---- positions of rewritten prompts, traces ------------------------------------------------------


@pytest.mark.parametrize("preset", ["icd", "pai"])
@pytest.mark.parametrize("name", EACH)
def test_rewritten_prompts_stand_where_the_model_puts_them(name: str, preset: str) -> None:
    model, given = tiny(name), inputs(name, *FILMS)
    method = cdkit.load(preset)
    cdkit.attach(model, method, processor=Words())  # runs the decoder once, to look at its keys
    with (
        turned_at(model) as seen,
        cdkit.attach(model, method, processor=Words(), optimize=ALL - {"shared_prefix"}),
    ):
        generated(model, given, max_new_tokens=2)
    distortion: Any = method.branches[0].distortions[0]
    wanted = list[Tensor]()
    for prompt in FILMS:
        ids = ids_of(name, prompt)
        if preset == "icd":
            words = Words()(distortion.instruction, add_special_tokens=False)["input_ids"]
            ids = [BOS, *words, *ids[1:]]
            alone = inputs(name, prompt)
            grids = {n: alone[n] for n in ("video_grid_thw", "second_per_grid_ts") if n in alone}
            position, _ = model.model.get_rope_index(
                torch.tensor([ids]), mm_token_type_ids=torch.tensor([kinds_of(name, ids)]), **grids
            )
        else:
            kinds = kinds_of(name, ids)
            ids = [token for token, kind in zip(ids, kinds, strict=True) if not kind]
            position = torch.arange(len(ids)).expand(3, 1, -1)
        wanted.append(position[:, 0])
    prefill, step = seen
    for row, position in enumerate(wanted):
        assert prefill[-3:, 2 + row, -position.shape[-1] :].equal(position)
        assert step[-3:, 2 + row].equal(position[:, -1:] + 1)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_the_trace_has_the_columns_of_videos(name: str) -> None:
    model, given = tiny(name), inputs(name, MIXED)
    with cdkit.attach(model, cdkit.load("cmac"), trace=("image_attention", "mask")) as attached:
        generated(model, given)
    tokens = int((given["mm_token_type_ids"] > 0).sum())
    assert tokens == 6 + 8 + 4
    for step in attached.trace.steps:
        assert all(own.shape[-1] == tokens for own in step.image_attention["original"].values())
        assert all(mask.shape[-1] == tokens for own in step.mask.values() for mask in own.values())


# ---- videos as frames ----------------------------------------------------------------------------

FRAMES = {"llava_onevision": 2 * 4 + 1, "llava_next_video": 2 * 4, "video_llava": 2 * 17}
"""Families whose video is a tensor of frames -> the tokens of two frames of 8 x 8 pixels."""
QUESTION = (24, 25, 26, 27, 28, 29)


def frames(name: str, *rows: int) -> dict[str, Tensor]:
    """Prompt 0 has a video, prompt 1 two and a longer question, prompt 2 an image as well."""
    film, image = [VIDEO] * FRAMES[name], flat_tiny.inputs(name, 0)
    picture = [IMAGE] * int((image["input_ids"] == IMAGE).sum())
    prompts = (
        [BOS, 10, *film, 20, 21, 22, 23],
        [BOS, 10, 11, *film, 12, *film, *QUESTION],
        [BOS, *picture, *film, *QUESTION],  # nothing between the image and the video
    )
    length = max(len(prompts[row]) for row in rows)
    pixels = [flat_tiny.pixels(10 + row, (1, 2, 1)[row], 2, 3, 8, 8) for row in rows]
    given = {
        "input_ids": torch.tensor(
            [[0] * (length - len(p)) + p for p in map(prompts.__getitem__, rows)]
        ),
        "attention_mask": torch.tensor(
            [[int(at >= length - len(prompts[row])) for at in range(length)] for row in rows]
        ),
        "pixel_values_videos": torch.cat(pixels),
    }
    if 2 in rows:
        given |= {n: image[n] for n in ("pixel_values", "image_sizes") if n in image}
    return given


def framed(name: str, preset: str, rows: tuple[int, ...], *, optimize: bool, **how: Any) -> Any:
    names, given = [f"prompt {row}" for row in rows], frames(name, *rows)
    model = flat_tiny.tiny(name)
    return answered(model, preset, given, words=Words(), names=names, optimize=optimize, **how)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "preset"), covering(list(FRAMES), PRESETS))
def test_a_batch_of_frames_is_each_prompt_alone(name: str, preset: str, mode: str) -> None:
    check_batch(functools.partial(framed, name, preset), (0, 1, 2), mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FRAMES)
def test_off_is_stock_with_frames(name: str, mode: str) -> None:
    model, given = flat_tiny.tiny(name), frames(name, 0, 1, 2)
    stock = generated(model, given, **MODES[mode])
    for method in (cdkit.load("vcd", alpha=0.0, beta=0.0), cdkit.load("plain")):
        with cdkit.attach(model, method):
            off = generated(model, given, **MODES[mode])
        assert off.sequences.equal(stock.sequences)
        assert torch.stack(off.logits).equal(torch.stack(stock.logits))
    with cdkit.attach(model, cdkit.load("identical", beta=0.0)):
        same = generated(model, given, **MODES[mode])
    torch.testing.assert_close(torch.stack(same.logits), torch.stack(stock.logits), **CLOSE)


@pytest.mark.parametrize("name", FRAMES)
def test_cmac_is_the_references_with_frames(name: str) -> None:
    count = FRAMES[name]
    with exact(flat_tiny.tiny(name)) as model:
        prompts = [
            Written(frames(name, 0), (count,), VIDEO),
            Written(frames(name, 1), (count, count), VIDEO),
        ]
        ran = parity.answered(model, "cmac", frames(name, 0, 1), prompts)
    parity.check(ran)
    parity.differs(ran, parity.wanted(ran, gamma=3.0))


@pytest.mark.parametrize("row", [0, *(pytest.param(r, marks=pytest.mark.slow) for r in (1, 2))])
@pytest.mark.parametrize("name", FRAMES)
def test_the_contract_with_frames(name: str, row: int) -> None:
    check_adapter(flat_tiny.tiny(name), inputs=frames(name, row))


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("name", [n for n in GRID if n != SHARED])
def test_the_contract_with_patches(name: str) -> None:
    for prompt in (FILM_TWO, MIXED):
        check_adapter(tiny(name), inputs=inputs(name, prompt))


# ---- refusals ------------------------------------------------------------------------------------


def refused(
    name: str, given: Mapping[str, Any], words: str, method: str = "vcd", **how: Any
) -> None:
    with (
        cdkit.attach(tiny(name), cdkit.load(method)),
        pytest.raises(cdkit.CdkitError, match=re.escape(words)),
    ):
        generated(tiny(name), dict(given), max_new_tokens=1, **how)


@pytest.mark.parametrize("name", EACH)
def test_what_is_missing_is_refused(name: str) -> None:
    given = inputs(name, *FILMS)

    def without(missing: str) -> dict[str, Tensor]:
        return {key: value for key, value in given.items() if key != missing}

    also = ["second_per_grid_ts"] if name == "qwen2_5_vl" else []
    for missing in ("video_grid_thw", "mm_token_type_ids", *also):
        refused(name, without(missing), f"needs {missing} beside pixel_values_videos")
    refused(name, without("pixel_values_videos"), "distorts pixels: pass pixel_values_videos")
    words = "prompt 0 has video tokens, but no video came with it, and cmac would act on the"
    refused(name, without("pixel_values_videos"), words, method="cmac")
    extra = inputs(name, ONE) | {"pixel_values_videos": given["pixel_values_videos"]}
    extra["video_grid_thw"] = given["video_grid_thw"]
    refused(name, extra, "pixel_values_videos came with prompts that have no video token")


def test_videos_with_the_token_of_images() -> None:
    words = "Glm4vForConditionalGeneration cannot take images and videos in one call: it has one"
    refused(SHARED, inputs(SHARED, ONE, FILM_ONE), words)
    words = "Glm4vForConditionalGeneration cannot generate from a video with num_beams=3"
    refused(SHARED, inputs(SHARED, FILM_ONE), words, num_beams=3)
    words = words.replace("num_beams", "num_return_sequences")
    refused(SHARED, inputs(SHARED, FILM_ONE), words, num_return_sequences=3, do_sample=True)
    with pytest.raises(ValueError, match="expected a non-empty list"):  # the stock model as well
        generated(tiny(SHARED), inputs(SHARED, FILM_ONE), num_beams=3)


def test_a_family_whose_videos_are_not_known() -> None:
    for name, why in (("llava", "it takes none"), ("gemma4", "its adapter knows its images alone")):
        model, given = flat_tiny.tiny(name), flat_tiny.inputs(name, 0)
        words = f"pixel_values_videos=Tensor: videos are not supported with {type(model).__name__}"
        with cdkit.attach(model, cdkit.load("vcd")):
            for call in (model.generate, model):
                with (
                    torch.inference_mode(),
                    pytest.raises(cdkit.CdkitError, match=f"{words}, {why}"),
                ):
                    call(**given, pixel_values_videos=torch.ones(1))
