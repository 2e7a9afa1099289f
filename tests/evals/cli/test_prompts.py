"""Prompts that no model can answer as they stand: one error each, before the model runs."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from evals.command_line import refused, run
from evals.eval_run import answer, draw, metrics, parts_of
from PIL import Image

import cdkit
from cdkit.interfaces.benchmark import Benchmark
from cdkit.pretrained import micro_path
from cdkit.processors import check_positions, check_prompt, picture_tokens

hf: Any = transformers  # much of it is not typed


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(path)
    return path


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(hf.LlavaForConditionalGeneration, "forward", ran)


@pytest.mark.usefixtures("never")
def test_generate(picture: Path) -> None:
    asked = ("generate", "--image", picture, "--compare", "plain,vcd", "--prompt")
    told = refused(*asked, "what is <image> ?")
    assert "the prompt 'what is <image> ?' holds <image>, which stands for a picture" in told
    told = refused(*asked, "a cat " * 2000)
    assert "tokens, but the model has positions for 2048 (max_position_embeddings): short" in told


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("scaling", [None, "linear", "yarn", "dynamic"])
def test_positions_of_rope(scaling: str | None, picture: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(micro_path(), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 60
    if scaling is not None:
        rope = {"rope_type": scaling, "factor": 2.0, "rope_theta": 10000.0}
        if scaling == "yarn":
            rope["original_max_position_embeddings"] = 30
        config["text_config"]["rope_parameters"] = rope
    (folder / "config.json").write_text(json.dumps(config))
    told = refused(
        "generate", "--model", folder, "--image", picture, "--prompt", "a cat ? " * 30,
        "--method", "plain",
    )  # fmt: skip
    assert "but the model has positions for 60" in told


def test_a_long_answer_is_no_error(picture: Path) -> None:
    """As in stock generate, which warns: most answers end before."""
    asked = ("--image", picture, "--prompt", "is there a cat ?", "--max-new-tokens", "2000")
    assert run("generate", "--method", "plain", *asked).exit_code == 0


def test_eval_has_an_error_row(tmp_path: Path) -> None:
    (part, *_) = parts_of(draw(tmp_path / "world", images=1))
    path = Path(next(iter(part.benchmark.sources())))
    lines = path.read_text("utf-8").splitlines()
    first = json.loads(lines[0])
    key = next(name for name in ("text", "question") if name in first)
    first[key] += " <image>"
    path.write_text("\n".join([json.dumps(first), *lines[1:]]), "utf-8")
    again: Benchmark = type(part.benchmark)(path)  # type: ignore[call-arg]
    part = type(part)(part.name, again, part.images)
    outcome = answer([part], tmp_path / "run", method="plain")
    (reason,) = outcome.errors["pope_random"].values()
    assert "holds <image>, which stands for a picture" in reason
    assert metrics(outcome)["pope_random"]["scored"] == len(lines) - 1


FAMILIES: list[tuple[dict[str, Any], dict[str, int], set[str]]] = [
    ({"image_token": "<image>"}, {}, {"<image>"}),
    ({}, {"image_token_index": 4}, {"<image>"}),
    (
        {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        {"image_token_id": 5, "vision_start_token_id": 6},
        {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>"},
    ),
    ({"image_token": "<image_soft_token>", "boi_token": "<start_of_image>"}, {}, {
        "<image_soft_token>", "<start_of_image>",
    }),
    ({"fake_image_token": "<fake>", "global_image_tag": "<global-img>", "image_seq_len": 3}, {}, {
        "<fake>", "<global-img>",
    }),
]  # fmt: skip


@pytest.mark.parametrize(("named", "ids", "wanted"), FAMILIES)
def test_tokens_of_families(named: dict[str, Any], ids: dict[str, int], wanted: set[str]) -> None:
    words = {4: "<image>", 5: "<|image_pad|>", 6: "<|vision_start|>"}

    class Tokenizer:
        def __len__(self) -> int:
            return 9

        def convert_ids_to_tokens(self, given: list[int]) -> list[str]:
            return [words[i] for i in given]

    processor = SimpleNamespace(tokenizer=Tokenizer(), **named)
    tokens = picture_tokens(processor, SimpleNamespace(**ids))
    assert tokens == wanted
    for token in wanted:
        with pytest.raises(cdkit.CdkitError, match="stands for a picture"):
            check_prompt(f"a {token} b", tokens)
    check_prompt("a picture, an image, <img", tokens)


def test_a_config_that_names_no_limit() -> None:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
    check_positions(10**9, config)


def test_attach_follows_stock(make_model: Any, make_inputs: Any) -> None:
    """Prompt and answer go beyond the positions: stock generate warns, and so does this."""
    model, inputs = make_model(max_position_embeddings=20), make_inputs("is there a cat ?")
    asked: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False}
    with cdkit.attach(model, cdkit.load("identical", beta=0.0)), torch.no_grad():
        given = model.generate(**inputs, **asked)
    assert given.shape[1] > model.config.text_config.max_position_embeddings
