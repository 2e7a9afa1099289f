"""Processors that would read videos too, without torchvision: by images and text alone."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers.utils.import_utils import is_torchvision_available
from typer.testing import CliRunner

import cdkit
from cdkit.evals import cli

from . import every_type
from .saved import _tokenizer, save_internvl, save_qwen2_vl

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


def test_what_pads_is_taken_from_the_config_of_a_model(tmp_path: Path) -> None:
    """Its tokenizer_config.json is gone, and no file of the tokenizer names a pad or an end."""
    model, processor = cdkit.load_model("micro")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert cdkit.load_model(tmp_path)[1].tokenizer.pad_token_id == 0
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / name
        text = path.read_text("utf-8")
        path.write_text(re.sub(r'"(pad|eos)_token_id": \d+', r'"\1_token_id": null', text), "utf-8")
    with pytest.raises(cdkit.CdkitError, match=r"no pad_token and no eos_token, .*: add the token"):
        cdkit.load_model(tmp_path)


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


def test_what_videos_need_is_said(folder: Path) -> None:
    _, processor = cdkit.load_model(folder)
    words = (
        f"needs torchvision: install the torchvision that was built for torch {torch.__version__}"
    )
    with pytest.raises(cdkit.CdkitError, match=re.escape(words)):
        processor(text=[processor.video_token], videos=[pictures((8, 8), (8, 8))])


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    told = r"cannot load the model .*preprocessor_config\.json"
    with pytest.raises(cdkit.CdkitError, match=told):
        cdkit.load_model(folder)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("kimi_k25", "Kimi_K25ImageProcessor"),
        ("phi4_multimodal", "Phi4MultimodalImageProcessor"),
    ],
)
def test_a_processor_that_only_torchvision_has(name: str, kind: str, tmp_path: Path) -> None:
    """The package and the torch that it must match are named; no word of transformers'."""
    model, _ = every_type.tiny(name)
    model.save_pretrained(tmp_path)
    _tokenizer({}, "<image>").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(f'{{"image_processor_type": "{kind}"}}')
    words = (
        rf"{kind}, the image processor of {name}, needs torchvision .* torch "
        rf"{re.escape(torch.__version__)}, "
    )
    with pytest.raises(cdkit.CdkitError, match=words):
        cdkit.load_model(tmp_path)


def test_a_model_that_needs_another_package(tmp_path: Path) -> None:
    """FastVLM's image encoder is of timm, and timm needs torchvision."""
    if not every_type.is_missing("timm"):
        pytest.skip("timm is installed")
    hf: Any = transformers
    config = hf.AutoConfig.for_model("fast_vlm", **every_type.DATA["fast_vlm"]["config"])
    config.save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    words = (
        "cannot load the model .*: it needs the package timm: pip install timm; it needs the "
        rf"torchvision that was built for torch {re.escape(torch.__version__)}, too"
    )
    with pytest.raises(cdkit.CdkitError, match=words):
        cdkit.load_model(tmp_path)


def test_a_torchvision_of_another_torch_is_left_out(tmp_path: Path) -> None:
    """In a process of its own: transformers itself cannot be imported beside it."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    about = tmp_path / "torchvision-0.27.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.27.0\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from cdkit.evals import cli; "
        "cli.app(['list', 'models'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "llava_next" in ran.stdout and "Traceback" not in ran.stderr
    assert "torchvision is left out" in ran.stderr and torch.__version__ in ran.stderr
