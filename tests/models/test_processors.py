"""Processors that would read videos too, without torchvision: by images and text alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image
from transformers.utils.import_utils import is_torchvision_available
from typer.testing import CliRunner

import cdkit
from cdkit.evals import cli

from .saved import save_internvl, save_qwen2_vl

SAVED = {"qwen2_vl": save_qwen2_vl, "internvl": save_internvl}
QUESTION = "is there a cat ?"
pytestmark = pytest.mark.skipif(
    is_torchvision_available(), reason="with torchvision these processors are Hugging Face's own"
)


@pytest.fixture(params=SAVED)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save: Callable[[Path], Path] = SAVED[request.param]
    return save(tmp_path / request.param)


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    return [Image.radial_gradient("L").resize(size).convert("RGB") for size in sizes]


def asked(model: Any, processor: Any) -> dict[str, Any]:
    adapter = cdkit.adapter_for(model)
    texts = [
        adapter.prompt(question, images=1, processor=processor)
        for question in (QUESTION, f"{QUESTION} yes or no ?")
    ]
    images = pictures((8, 24), (16, 16))
    return dict(processor(images=images, text=texts, return_tensors="pt", padding=True))


def test_from_a_folder_to_an_answer(folder: Path) -> None:
    """Hugging Face's own way fails, and cdkit's gives what a method needs."""
    with pytest.raises((ImportError, AttributeError, ValueError)):
        transformers.AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    model, processor = cdkit.load_model(folder)
    stock = {"qwen2_vl": "Qwen2VLProcessor", "internvl": "InternVLProcessor"}[folder.name]
    assert isinstance(processor, getattr(transformers, stock))
    assert type(processor).__name__ == stock
    inputs = asked(model, processor)
    assert (inputs["attention_mask"][:, 0] == 0).any()  # padded on the left
    plain = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    for name in ("plain", "cmac", "vcd", "icd"):
        with cdkit.attach(model, cdkit.load(name), processor=processor):
            ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert ids.shape == plain.shape
        assert name != "plain" or ids.equal(plain)


def test_the_command_finds_all_by_itself(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "photo.png"
    pictures((24, 16))[0].save(picture)
    arguments = ["generate", "--model", folder, "--image", picture, "--prompt", QUESTION]
    arguments += ["--compare", "plain,cmac", "--max-new-tokens", "3"]
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "150"})
    assert result.exit_code == 0, result.output


def test_saved_and_loaded_again(folder: Path, tmp_path: Path) -> None:
    model, processor = cdkit.load_model(folder)
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    _, again = cdkit.load_model(tmp_path / "again")
    wanted, found = asked(model, processor), asked(model, again)
    assert wanted.keys() == found.keys()
    assert all(found[name].equal(wanted[name]) for name in wanted)


def test_videos_are_refused(folder: Path) -> None:
    _, processor = cdkit.load_model(folder)
    with pytest.raises(cdkit.CdkitError, match="videos are not supported: cdkit's methods are"):
        processor(text=[processor.video_token], videos=[pictures((8, 8), (8, 8))])


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    told = r"cannot load the model .*preprocessor_config\.json"
    with pytest.raises(cdkit.CdkitError, match=told):
        cdkit.load_model(folder)
