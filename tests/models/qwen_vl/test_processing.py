"""Images in texts: markers, templates, pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import cdkit
from cdkit.models.qwen_vl import (
    BASE_TEMPLATE,
    QwenVLConfig,
    QwenVLForConditionalGeneration,
    QwenVLImageProcessor,
    QwenVLProcessor,
)

from .published import END, IMAGE, IMAGE_START, QUERIES

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])
SPAN = [IMAGE_START, *[IMAGE] * QUERIES, IMAGE_START + 1]


def by_hand(image: Image.Image, side: int) -> torch.Tensor:
    small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    values = (np.asarray(small, dtype=np.float64) / 255 - MEAN) / DEVIATION
    return torch.from_numpy(values.transpose(2, 0, 1).copy()).float()


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_pixels(mode: str, processor: Any, photo: Image.Image) -> None:
    image = photo.convert(mode)
    for side, used in ((36, processor.image_processor), (448, QwenVLImageProcessor())):
        pixels = used([image], return_tensors="pt")["pixel_values"]
        assert pixels.dtype == torch.float32 and pixels.shape == (1, 3, side, side)
        torch.testing.assert_close(pixels[0], by_hand(image, side), rtol=0, atol=1e-5)


def test_an_image_is_256_tokens(processor: Any, photo: Image.Image) -> None:
    text = "the <img></img> is <img>not/read.png</img>in"
    out = processor(images=[photo, photo], text=text, return_tensors="pt")
    words = [processor.tokenizer(part)["input_ids"] for part in ("the ", " is ", "in")]
    assert out["input_ids"].tolist() == [[*words[0], *SPAN, *words[1], *SPAN, *words[2]]]
    assert out["pixel_values"].shape == (2, 3, 36, 36)
    plain = processor(text=["the", "the is"], padding=True, return_tensors="pt")
    assert "pixel_values" not in plain and plain["input_ids"][0, 0] == END


def test_images_by_path(processor: Any, photo: Image.Image, tmp_path: Path) -> None:
    """The original's own way: the text alone names the file."""
    photo.save(tmp_path / "photo.png")
    texts = [f"<img>{tmp_path / 'photo.png'}</img>the Answer:", "is"]
    out = processor(text=texts, padding=True, return_tensors="pt")
    given = processor(images=[photo], text=["<img></img>the Answer:", "is"], padding=True)
    assert out["input_ids"].tolist() == given["input_ids"]
    assert torch.as_tensor(np.asarray(given["pixel_values"])).equal(out["pixel_values"])


@pytest.mark.parametrize(
    ("text", "images", "told"),
    [
        ("<img></img>the", 0, "without a path and no images are passed; pass images="),
        ("<img>the", 1, r"1 <img>, 0 </img> and 0 images between them; write <img>path</img>"),
        ("</img><img>", 1, "1 <img>, 1 </img> and 0 images"),
        ("the <imgpad>", 1, "0 <img>, 0 </img> and 1 images"),
    ],
)
def test_bad_markers(text: str, images: int, told: str, processor: Any, photo: Any) -> None:
    with pytest.raises(cdkit.CdkitError, match=told):
        processor(images=[photo] * images or None, text=text)


def test_more_images_than_markers(processor: Any, photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="should be the same as the number of images"):
        processor(images=[photo, photo], text="<img></img>")
    with pytest.raises(cdkit.CdkitError, match="it has no use for videos and audio"):
        processor(text="the", videos=[[photo]])


def said(text: str, *, images: int = 1) -> dict[str, Any]:
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    return {"role": "user", "content": content}


TURNS = [said("is it?", images=2), {"role": "assistant", "content": "the"}, said("in")]


def test_the_chat_prompt(processor: Any) -> None:
    """The words the original's chat builds, with `from_list_format`'s numbered pictures."""
    want = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nPicture 1:<img></img>\nPicture 2:<img></img>\nis it?<|im_end|>\n"
        "<|im_start|>assistant\nthe<|im_end|>\n"
        "<|im_start|>user\nPicture 1:<img></img>\nin<|im_end|>\n"
    )
    assert processor.apply_chat_template(TURNS) == want
    asked = processor.apply_chat_template(TURNS, add_generation_prompt=True)
    assert asked == f"{want}<|im_start|>assistant\n"
    own = [{"role": "system", "content": "in the"}, {"role": "user", "content": "is"}]
    assert processor.apply_chat_template(own) == (
        "<|im_start|>system\nin the<|im_end|>\n<|im_start|>user\nis<|im_end|>\n"
    )


def test_the_base_prompt(processor: Any) -> None:
    asked = processor.apply_chat_template(
        TURNS, chat_template=BASE_TEMPLATE, add_generation_prompt=True
    )
    assert asked == "<img></img><img></img>is it? Answer: the<img></img>in Answer:"
    assert processor.apply_chat_template(TURNS, chat_template=BASE_TEMPLATE).endswith("</img>in")


def test_from_an_image_to_an_answer(
    processor: Any, model: QwenVLForConditionalGeneration, photo: Image.Image
) -> None:
    """A template with the image in the message, and generate."""
    turn = [{"type": "image", "image": photo}, {"type": "text", "text": "the"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": turn}],
        chat_template=BASE_TEMPLATE,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert (inputs["input_ids"] == IMAGE).sum() == QUERIES
    known: Any = model
    tokens = known.generate(
        **{**inputs, "pixel_values": inputs["pixel_values"].double()}, max_new_tokens=3
    )
    answer = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :])
    assert len(answer) == 1 and isinstance(answer[0], str)


def test_the_processor_of_a_configuration(processor: Any, tmp_path: Path) -> None:
    """Without a word on its class, a folder's model type tells it."""
    processor.save_pretrained(tmp_path)
    QwenVLConfig().save_pretrained(tmp_path)
    found: Any = AutoProcessor.from_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    assert type(found) is QwenVLProcessor
    assert type(found.image_processor) is QwenVLImageProcessor
    assert found.tokenizer.padding_side == "left"
