"""Where image tokens stand in the pixels: each token follows its own cell, or the family says why
not. Pages draw attention over pictures by it."""

import ast
import copy
import inspect
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.interfaces.model_adapter import ADAPTERS
from cdkit.models.layouts.padded_images import _without_padding
from cdkit.models.molmo2 import Molmo2

from . import gemma3n_tiny, grid_tiny, test_fuyu, test_video
from . import tiny as families
from .grid_tiny import BOS, Prompt
from .moved_tokens import follows, grids_of, reads_everywhere, redden, weaken
from .tiny import FAMILIES, Family, inputs, tiny

WITHOUT = {"idefics2": "perceiver", "instructblip": "Q-Former"}
"""Families whose tokens have no place -> a word of the reason."""


def made(name: str) -> Any:
    others = {"gemma3n": gemma3n_tiny.model_of, "fuyu": test_fuyu.tiny}
    return others[name]() if name in others else tiny(name)


def given_to(name: str, row: int) -> dict[str, Tensor]:
    others: dict[str, Any] = {
        "gemma3n": gemma3n_tiny.given,
        "fuyu": test_fuyu.inputs,
    }
    return dict(others[name](row) if name in others else inputs(name, row))


EACH = [*FAMILIES, "gemma3n", "fuyu"]


def test_every_family_is_here() -> None:
    """Llama 4 and Qwen-VL have tests of their own."""
    tried = {FAMILIES[name].model_type if name in FAMILIES else name for name in EACH}
    assert tried == set(ADAPTERS) - {"llama4", "qwen_vl"}


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("name", EACH)
def test_a_token_follows_its_cell(name: str, row: int) -> None:
    given = given_to(name, row)
    found = grids_of(made(name), given)
    if name in WITHOUT:
        assert isinstance(found, str) and WITHOUT[name] in found
        return
    assert not isinstance(found, str), found
    assert follows(made(name), given, found) == []


@pytest.mark.parametrize("name", WITHOUT)
def test_what_has_no_place_reads_the_whole_picture(name: str) -> None:
    assert reads_everywhere(made(name), given_to(name, 0))


def test_what_has_places_does_not() -> None:
    assert not reads_everywhere(tiny("llava"), inputs("llava", 0))


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl", "molmo2", "phi4_multimodal"])
def test_a_wrong_grid_is_seen(name: str) -> None:
    given = inputs(name, 1)
    found = grids_of(tiny(name), given)
    assert not isinstance(found, str)
    wrong = [replace(own, tokens=own.tokens.flip(0)) for own in found]
    assert follows(tiny(name), given, tuple(wrong))


def test_a_class_token_has_no_place() -> None:
    """CLIP's stands before the patches."""
    clip = families._llava("clip_vision_model", "full")
    family = Family("llava", lambda: clip, families.square(17))
    model, given = families.made(family), families.laid_out(family, 0)
    found = grids_of(model, given)
    assert not isinstance(found, str) and int(found[0].tokens[0, 0]) == 1
    assert follows(model, given, found) == []


def test_padding_has_no_tokens() -> None:
    """A wide picture in the middle of its tiles: rows above and below it are taken out."""
    found = _without_padding(4, (1, 2), [4, 16], 16 + 2 * 9, lambda h, w: (h, w))
    assert found is not None and found.box == (0.25, 0.0, 0.75, 1.0)
    assert found.tokens.tolist() == [[*range(16, 24)], [*range(25, 33)]]  # 24 and 33 end rows
    assert _without_padding(4, (1, 2), [4, 16], 16 + 2 * 8, lambda h, w: (h, w)) is None


FILM: Prompt = (BOS, 10, (3, 2, 2), 20, 21, 22, 23)
"""A video of three patches in time, two tokens high and two wide."""


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "glm4v", *test_video.FRAMES])
def test_a_token_of_a_video_follows_its_frame(name: str) -> None:
    """One run of all tokens, or one for each patch in time; of pooled frames, or of patches."""
    of_frames = name in test_video.FRAMES
    given = test_video.frames(name, 1) if of_frames else grid_tiny.inputs(name, FILM)
    model = copy.deepcopy(tiny(name) if of_frames else grid_tiny.tiny(name))
    weaken(model)
    adapter = adapter_for(model)
    videos = adapter.videos
    assert videos is not None
    index = adapter.image_index(model, given["input_ids"])
    tokens = [int((index == n).sum()) for n in range(int(index.max()) + 1)]
    runs = [own.clone() for own in videos.split_pixels(model, given, tokens)]
    found = videos.token_grids(model, given, tokens)
    assert len(found) == len(runs) == len(tokens)
    owner, attribute = videos.encoder(model)
    taken = inspect.signature(getattr(owner, attribute)).parameters

    def features() -> Tensor:
        own = {key: value for key, value in given.items() if key in taken}
        own["pixel_values_videos"] = videos.join_pixels(model, runs, given)
        return adapter.features(getattr(owner, attribute)(**own))

    plain, first = features(), 0
    for run, grids, count in zip(runs, found, tokens, strict=True):
        assert not isinstance(grids, str)
        for grid in grids:
            for cell in (0, 2):
                row, column = divmod(cell, grid.tokens.shape[1])
                before = run.clone()
                redden(run, grid, row, column)
                moved = int((features() - plain).norm(dim=-1).argmax())
                assert moved == first + int(grid.tokens[row, column]), (grid.name, cell)
                run.copy_(before)
        first += count
    assert sum(map(len, found)) == (4 if of_frames else 3) and first == len(plain)


def test_a_video_whose_frames_have_no_square() -> None:
    given = test_video.frames("llava_onevision", 0)
    videos = adapter_for(tiny("llava_onevision")).videos
    assert videos is not None
    (why,) = videos.token_grids(tiny("llava_onevision"), given, [2 * 4])
    assert isinstance(why, str) and "square" in why


# ---- Molmo 2: crops that overlap -----------------------------------------------------------------

SIDE, POOL = 5, 2
"""Patches of a crop below each other, and of a token: an odd number, so that tokens at the right
and below reach beyond the picture."""


def test_crops_that_overlap_are_one_picture() -> None:
    """The processor's own code cuts a picture of numbers, and says what tokens read."""
    cut, lay_out = _molmo2_processor()
    canvas = torch.arange(3.0 * 18 * 26).view(1, 3, 18, 26)  # 2 x 3 crops of 10 x 10 pixels
    crops, places = cut(canvas)
    pooling, rows, columns = lay_out(places, POOL, POOL)
    whole, small, _ = lay_out(torch.arange(SIDE**2).view(SIDE, SIDE), POOL, POOL)
    read = torch.where(pooling < 0, pooling, pooling + SIDE**2)
    given = {
        "image_token_pooling": torch.cat((whole, read)),
        "image_grids": torch.tensor([[small, small, rows, columns]]),
        "image_num_crops": torch.tensor([1 + len(crops)]),
    }
    model: Any = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(image_size=[10, 10], patch_size=2))
    )
    (grids,) = Molmo2().token_grids(model, given, [len(whole) + len(read)])
    assert not isinstance(grids, str)
    small_grid, grid = grids
    assert grid.picture(torch.cat((crops[:1], crops))).equal(canvas[0])
    assert small_grid.box == (0, 0, 1.2, 1.2)  # 3 cells of 2 patches over 5
    # of each patch of the picture, its token says that it reads it
    for y in range(9):
        for x in range(13):
            top, left, bottom, right = grid.box
            row = int((y + 0.5) / 9 / (bottom - top) * rows - top)
            column = int((x + 0.5) / 13 / (right - left) * columns - left)
            token = int(grid.tokens[row, column])
            assert int(places[y, x]) + SIDE**2 in given["image_token_pooling"][token].tolist()


def _molmo2_processor() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What of Molmo 2's image processor needs no torchvision: crops of a canvas, and pooling."""
    file = Path(transformers.__file__).parent / "models/molmo2/image_processing_molmo2.py"
    wanted = {
        "_build_overlapping_crops", "arange_for_pooling", "compute_crop_geometry", "select_tiling",
    }  # fmt: skip
    nodes = [
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name in wanted
    ]
    for node in nodes:
        node.returns, node.decorator_list = None, []
        for argument in node.args.args:
            argument.annotation = None
    found: dict[str, Any] = {
        "torch": torch, "F": torch.nn.functional, "itertools": itertools,
        "resize_and_normalize_image": _not_resized,
    }  # fmt: skip
    exec(compile(ast.Module(list(nodes), []), str(file), "exec"), found)

    def cut(canvas: Tensor) -> tuple[Tensor, Tensor]:
        crops, places = found["_build_overlapping_crops"](
            None, canvas, max_crops=6, overlap_margins=[1, 0], crop_size=2 * SIDE, resample=None,
            do_rescale=False, rescale_factor=1, do_normalize=False, image_mean=None,
            image_std=None, image_patch_size=2,
        )  # fmt: skip
        return crops[0].permute(0, 3, 1, 2), places

    return cut, found["arange_for_pooling"]


def _not_resized(
    backend: None, images: Tensor, size: list[int], *_: object, **__: object
) -> Tensor:
    assert list(images.shape[-2:]) == size
    return images
