"""Loading by name: the embedded model, a folder, and what is neither."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from generation.presets import RUNNABLE, decoded
from PIL import Image

import cdkit


def test_the_embedded_model_answers_under_every_method() -> None:
    model, processor = cdkit.load_model("micro")
    assert model.dtype == torch.float32 and not model.training
    size = model.config.vision_config.image_size
    image = Image.effect_noise((size, size), 80).convert("RGB")
    prompt = cdkit.adapter_for(model).prompt("is there a cat ?", images=1, processor=processor)
    inputs = processor(
        images=[image, image], text=[prompt, f"{prompt} yes"], return_tensors="pt", padding=True
    )
    assert inputs["attention_mask"][0, 0] == 0  # left padding
    for name in RUNNABLE:
        method = cdkit.load(name)
        asked = decoded(method, max_new_tokens=2, do_sample=False)
        with cdkit.attach(model, method, processor=processor):
            ids = model.generate(**inputs, **asked)
        assert ids.shape[0] == 2


def test_a_folder(
    tmp_path: Path,
    make_model: Callable[..., Any],
    processor: Any,
    make_inputs: Callable[..., Any],
    logits_of: Callable[..., Any],
) -> None:
    saved = make_model(dtype=torch.float32)
    saved.lm_head.bias = None
    saved.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    inputs = make_inputs("is there a cat ?")
    with cdkit.attach(saved, cdkit.load("cmac")):
        wanted = logits_of(saved, inputs)
    for path in (tmp_path, str(tmp_path)):
        model, _ = cdkit.load_model(path)
        with cdkit.attach(model, cdkit.load("cmac")):
            assert logits_of(model, inputs).equal(wanted)
    half, _ = cdkit.load_model(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["empty", "nowhere/at/all"])
def test_no_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(cdkit.CdkitError, match="cannot load the model") as error:
        cdkit.load_model(tmp_path / name)
    assert "\n" not in str(error.value)
    assert ("there is no such folder here" in str(error.value)) == (name != "empty")


def test_a_truncated_checkpoint(
    tmp_path: Path, make_model: Callable[..., Any], processor: Any
) -> None:
    make_model(dtype=torch.float32).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(cdkit.CdkitError, match="cannot load the model"):
        cdkit.load_model(tmp_path)


def test_the_chat_prompt(model: Any, processor: Any) -> None:
    """Without a template LLaVA-1.5's own words; with one, the template's."""
    adapter = cdkit.adapter_for(model)
    asked: dict[str, Any] = {"images": 2, "processor": processor}
    wanted = "USER: <image>\n<image>\nis there a cat ? ASSISTANT:"
    assert adapter.prompt("is there a cat ?", **asked) == wanted
    template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    processor.chat_template = template
    try:
        assert adapter.prompt("is there a cat ?", **asked) == "<image><image>is there a cat ?>"
    finally:
        processor.chat_template = None


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    for name in (str(tmp_path / "gone"), "models/micor"):
        with pytest.raises(cdkit.CdkitError, match="there is no such folder") as error:
            cdkit.load_model(name)
        assert repr(name) in str(error.value)
