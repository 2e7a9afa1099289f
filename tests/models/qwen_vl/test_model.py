"""A model of transformers: generate, caches, beams, saving, and clear errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

import cdkit
from cdkit.models.qwen_vl import (
    QwenVLConfig,
    QwenVLForConditionalGeneration,
    QwenVLModel,
    QwenVLVisionConfig,
)
from cdkit.models.qwen_vl.resampler import sine_table

from .conftest import texts
from .published import END, IMAGE
from .reference import Reference

Inputs = dict[str, Tensor]


@pytest.fixture
def inputs(row: Callable[..., list[int]], pixels: Callable[..., Tensor]) -> Inputs:
    """Two prompts of unequal length, an image in each."""
    rows = [row(3, 6), row(5, 11, seed=1)]
    return texts(rows, pad=END) | {"pixel_values": pixels(2)}


@torch.no_grad()
def test_greedy_decoding_follows_the_reference(
    model: Any, reference: Reference, inputs: Inputs
) -> None:
    """With a cache, in a left-padded batch, image by image, and with the images encoded before."""
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)
    for have, ids, mask, image in zip(out, *inputs.values(), strict=True):
        known = ids[mask.bool()].tolist()
        features = [reference.image(image)]
        for token in have[len(ids) :].tolist():
            assert token == int(reference.logits(known, features, image=IMAGE)[-1].argmax())
            known.append(token)
        alone = model.generate(
            input_ids=ids[mask.bool()][None],
            pixel_values=image[None],
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
        )
        assert alone[0].tolist() == known


def test_decode_modes(model: Any, inputs: Inputs) -> None:
    plain = {"max_new_tokens": 4, "eos_token_id": None}
    beams = model.generate(**inputs, **plain, do_sample=False, num_beams=3, num_return_sequences=2)
    assert beams.shape == (4, inputs["input_ids"].shape[1] + 4)
    torch.manual_seed(0)
    sampled = model.generate(**inputs, **plain, do_sample=True)
    assert sampled.shape[0] == 2
    static = model.generate(**inputs, **plain, do_sample=False, cache_implementation="static")
    assert static.equal(model.generate(**inputs, **plain, do_sample=False))
    chunked = model.generate(**inputs, **plain, do_sample=False, prefill_chunk_size=100)
    assert chunked.equal(static)


@torch.no_grad()
def test_ways_to_give_the_inputs(model: Any, inputs: Inputs) -> None:
    want = model(**inputs).logits
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    rest = {"attention_mask": inputs["attention_mask"]}
    encoded = {"image": model.get_image_features(pixels)}
    assert model(input_ids=ids, **rest, mm_encoder_outputs=encoded).logits.equal(want)
    embeds = model.get_input_embeddings()(ids)
    assert model(inputs_embeds=embeds, **rest, pixel_values=pixels).logits.equal(want)
    assert model(**inputs, logits_to_keep=1).logits.allclose(want[:, -1:], atol=1e-12)
    bare = model.model(**inputs).last_hidden_state
    assert model.lm_head(bare).equal(want)
    assert model(**inputs, return_dict=False)[0].equal(want)
    hidden = model(**inputs, output_hidden_states=True).hidden_states
    assert hidden[-1].equal(bare) and len(hidden) == 3
    loss = model(**inputs, labels=ids).loss
    shifted = torch.nn.functional.cross_entropy(want[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss.double(), shifted, rtol=1e-4, atol=1e-4)


def test_errors(model: Any, inputs: Inputs) -> None:
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    encoded = {"image": model.get_image_features(pixels)}
    with pytest.raises(cdkit.CdkitError, match="either input_ids or inputs_embeds"):
        model(pixel_values=pixels)
    with pytest.raises(cdkit.CdkitError, match="either pixel_values or mm_encoder_outputs"):
        model(**inputs, mm_encoder_outputs=encoded)
    with pytest.raises(
        cdkit.CdkitError, match="512 image tokens and the images make 256; pass the images"
    ):
        model(input_ids=ids, pixel_values=pixels[:1])


def test_a_round_trip(model: Any, converted: Path, inputs: Inputs, tmp_path: Path) -> None:
    """Saved and loaded by each Auto class: the same weights, bit for bit; half precision runs."""
    loaded: Any = AutoModelForImageTextToText.from_pretrained(converted)
    assert type(loaded) is QwenVLForConditionalGeneration and loaded.dtype == torch.float64
    loaded.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for part in ("vision_config", "text_config"):
        have, want = (getattr(one.config, part).to_dict() for one in (again, loaded))
        assert have == want
    for (name, have), (other, want) in zip(
        again.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert name == other and have.equal(want)
    assert type(AutoConfig.from_pretrained(tmp_path)) is QwenVLConfig
    bare = AutoModel.from_pretrained(tmp_path)
    assert type(bare) is QwenVLModel
    assert bare.resampler.positions.equal(model.model.resampler.positions)
    for dtype in (torch.bfloat16, torch.float32):
        other = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype)
        assert other(**inputs).logits.dtype == dtype


def test_a_new_model() -> None:
    """Random weights: positions of the resampler are sines, norms start as identity."""
    vision = {
        "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "output_size": 8,
        "num_attention_heads": 2, "num_positions": 4, "num_queries": 9, "image_size": 28,
        "resampler_attention_heads": 2,
    }  # fmt: skip
    text = {
        "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "vocab_size": 20,
        "num_attention_heads": 2, "num_key_value_heads": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    config = QwenVLConfig(vision_config=vision, text_config=text)
    model: Any = QwenVLForConditionalGeneration(config)
    inner = model.model
    assert inner.resampler.positions.equal(sine_table(3, 8).float())
    assert inner.resampler.queries.std() > 0 and inner.vision_tower.positions.std() > 0
    assert inner.vision_tower.pre_norm.weight.eq(1).all()
    assert "QwenVLVisionLayer" in model._no_split_modules
    assert "model.resampler.positions" not in dict(model.named_parameters())  # it is not trained
    assert model.get_output_embeddings() is model.lm_head


def test_the_default_configuration_is_the_published_one() -> None:
    config = QwenVLConfig()
    vision, text = config.vision_config, config.text_config
    assert type(vision) is QwenVLVisionConfig
    assert (vision.hidden_size, vision.intermediate_size) == (1664, 8192)
    assert (vision.num_hidden_layers, vision.num_queries) == (48, 256)
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (4096, 11008, 32)
    assert text.max_position_embeddings == 2048 and text.vocab_size == 151936
    assert text.rope_parameters["rope_theta"] == 10000


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_queries": 5}, "num_queries must be a square number, got 5"),
        ({"num_positions": 7}, "num_positions must be a square number, got 7"),
        ({"image_size": 449}, r"image_size \(449\) must be a multiple of patch_size \(14\)"),
        ({"num_attention_heads": 7}, "hidden_size must be a multiple of its 7 attention heads"),
        ({"resampler_attention_heads": 3}, "output_size must be a multiple of its 3"),
        ({"output_size": 6, "resampler_attention_heads": 1}, "output_size must be a multiple of 4"),
        ({"output_size": 64}, r"output_size \(64\) must be text_config.hidden_size \(4096\)"),
    ],
)
def test_a_wrong_configuration(changed: dict[str, int], told: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=told):
        QwenVLConfig(vision_config=changed)
