"""The shipped checkpoint: a true Hugging Face folder that answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

import cdkit.models
from cdkit.errors import CdkitError
from cdkit.evals.microworld import WORLD, checkpoint, train
from cdkit.evals.microworld.checkpoint import build_model, build_processor, save
from cdkit.evals.microworld.drawing import render
from cdkit.evals.microworld.text import CAPTION_PROMPT, NEUTRAL_ROLES, vocabulary
from cdkit.evals.microworld.train import train_micro
from cdkit.evals.microworld.world import Picture, draw_picture

MICRO = Path(cdkit.models.__file__).parent / "micro"


@pytest.fixture(scope="module")
def model() -> Any:  # `generate` is typed for a protocol that no model of transformers fulfils
    return LlavaForConditionalGeneration.from_pretrained(MICRO).train(False)


@pytest.fixture(scope="module")
def processor() -> Any:
    load: Any = AutoProcessor.from_pretrained
    loaded = load(MICRO)
    assert isinstance(loaded, LlavaProcessor)
    return loaded


def photos(count: int) -> list[tuple[Picture, Image.Image]]:
    rng = np.random.default_rng([1, 2**32 - 3])
    pictures = [draw_picture(WORLD, rng, degraded=0.0) for _ in range(count)]
    return [(picture, Image.fromarray(render(WORLD, picture))) for picture in pictures]


def chat(processor: Any, question: str, system: str = "") -> str:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    ]
    if system:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return str(processor.apply_chat_template(messages, add_generation_prompt=True))


def test_it_is_small_and_holds_no_code() -> None:
    assert sum(path.stat().st_size for path in MICRO.iterdir()) <= 10e6
    assert {path.suffix for path in MICRO.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_its_processor_is_the_world_s(processor: Any) -> None:
    built = build_processor(WORLD)
    assert processor.to_dict() == built.to_dict()
    assert processor.tokenizer.get_vocab() == built.tokenizer.get_vocab()
    assert processor.chat_template == built.chat_template
    ids = processor.tokenizer.get_vocab()
    assert sorted(ids, key=lambda word: ids[word]) == list(vocabulary(WORLD))


def test_a_chat_becomes_llava_s_prompt(processor: Any) -> None:
    asked = chat(processor, "Is there a cat in the image?", NEUTRAL_ROLES[0])
    assert asked == (
        "You are a good object detector. USER: <image>\nIs there a cat in the image? ASSISTANT:"
    )
    (_, image), *_ = photos(1)
    ids = processor(images=[image], text=[asked], return_tensors="pt")["input_ids"][0]
    words = processor.tokenizer.convert_ids_to_tokens(ids)
    assert words[:3] == ["<bos>", "you", "are"]
    assert words.count("<image>") == 64
    assert words[-9:] == ["is", "there", "a", "cat", "in", "the", "image", "?", "assistant"]
    assert "<unk>" not in words


def test_a_conversation_keeps_its_turns(processor: Any) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": "Where is the cat?"},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == "USER: <image>\nHi? ASSISTANT: yes USER: Where is the cat? ASSISTANT:"


def test_padding_goes_to_the_left(processor: Any) -> None:
    texts = [chat(processor, CAPTION_PROMPT), chat(processor, "Is there a cat in the image?")]
    images = [image for _, image in photos(2)]
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]
    assert 0 in inputs["attention_mask"][:, 0].tolist()


@torch.no_grad()
def test_it_sees_what_is_there(model: Any, processor: Any) -> None:
    """Present things against random absent ones on good photos: a coin would get 50 %."""
    rng = np.random.default_rng(0)
    right = []
    for picture, image in photos(16):
        present = int(rng.choice(list(picture.counts())))
        absent = int(rng.choice([c for c in range(24) if c not in picture.counts()]))
        texts = [
            chat(processor, f"Is there a {WORLD.categories[c]} in the image?")
            for c in (present, absent)
        ]
        inputs = processor(images=[image] * 2, text=texts, return_tensors="pt", padding=True)
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], True)
        right += [said[0] == "yes", said[1] == "no"]
    assert np.mean(right) > 0.75


@torch.no_grad()
def test_it_captions_in_sentences(model: Any, processor: Any) -> None:
    pairs = photos(8)
    texts = [chat(processor, CAPTION_PROMPT)] * len(pairs)
    images = [image for _, image in pairs]
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
    out = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    for said in processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], True):
        assert said.startswith("a photo of ") and said.endswith(".")


def test_it_takes_any_photo(processor: Any) -> None:
    photo = Image.new("RGB", (200, 120), "red")
    inputs = processor(images=[photo], text=["USER: <image>\nhi ASSISTANT:"], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)


def test_nothing_but_an_earlier_checkpoint_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CdkitError, match=r"holds thesis\.tex, which is no part of a checkpoint"):
        train_micro(tmp_path, quick=True, progress=False)
    with pytest.raises(CdkitError, match=r"thesis\.tex is a file: name a folder"):
        train_micro(tmp_path / "thesis.tex", quick=True, progress=False)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_parent_that_takes_nothing_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(train, "build_model", lambda *args: pytest.fail("too late"))
    with pytest.raises(CdkitError, match=r"cannot write to .*file"):
        train_micro(tmp_path / "file" / "model", quick=True, progress=False)


def test_a_failed_save_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = build_model(WORLD, 0)
    save(model, WORLD, Path("micro"))
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "build_processor", full)
    with pytest.raises(OSError, match="no space"):
        save(model, WORLD, Path("micro"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
