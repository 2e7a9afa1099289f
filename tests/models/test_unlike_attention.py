"""Decoders whose attention or rotary embedding is unlike most."""

from typing import Any

import pytest
import torch
import transformers

import cdkit
from cdkit.probing.rotary import probe_rotary

hf: Any = transformers  # much of it is not typed
IMAGE = 90
ROPE = {"rope_type": "default", "rope_theta": 50.0}
TEXT = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
    "rope_parameters": ROPE,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": [8, 8],
    "patch_size": [2, 2],
}


def gpt_oss() -> tuple[Any, dict[str, Any]]:
    """InternVL with attention sinks, whose cosines are half as wide as those of most."""
    text = TEXT | {
        "model_type": "gpt_oss",
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    config = hf.InternVLConfig(
        text_config=text, vision_config=VISION, image_token_id=IMAGE, downsample_ratio=0.5
    )
    return hf.InternVLForConditionalGeneration(config).eval(), {
        "pixel_values": torch.randn(1, 3, 8, 8)
    }


def mistral4() -> tuple[Any, dict[str, Any]]:
    """Mistral 3 with a text model that caches compressed keys."""
    yarn = ROPE | {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
        "partial_rotary_factor": 0.5,
    }
    text = TEXT | {
        "model_type": "mistral4",
        "num_key_value_heads": 4,
        "head_dim": 16,
        "rope_parameters": yarn,
        "moe_intermediate_size": 16,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "qk_nope_head_dim": 8,
        "n_shared_experts": 1,
    }
    vision = VISION | {
        "model_type": "pixtral",
        "image_size": 16,
        "patch_size": 2,
        "num_channels": 3,
        "head_dim": 8,
    }
    config = hf.Mistral3Config(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return hf.Mistral3ForConditionalGeneration(config).eval(), {
        "pixel_values": torch.randn(1, 3, 8, 8),
        "image_sizes": torch.tensor([[8, 8]]),
    }


def prompt() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, 10, 92, *[IMAGE] * 4, 93, 20, 21, 22]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("build", [gpt_oss, mistral4])
@pytest.mark.parametrize("name", ["cmac", "cmac_cmpc", "pai", "vcd"])
def test_both_engines_give_the_same_logits(name: str, build: Any) -> None:
    """Attention sinks, and a cache of compressed keys, under the fast engine and the plain one."""
    model, given = build()
    found = []
    for optimize in (True, False):
        with cdkit.attach(model, cdkit.load(name), optimize=optimize):
            made = model.generate(
                **prompt(), **given, max_new_tokens=3, do_sample=False,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        found.append(torch.stack(made.logits))
    finite = found[0].isfinite() & found[1].isfinite()
    assert finite.any() and torch.allclose(found[0][finite], found[1][finite], atol=1e-3)


def test_a_rotary_embedding_with_half_the_width() -> None:
    model, _ = gpt_oss()
    decoder = model.model.language_model
    rotary = probe_rotary(decoder.layers[0].self_attn, decoder.rotary_emb)
    assert rotary is not None and not rotary.interleaved
    assert rotary.inverse_frequencies.equal(decoder.rotary_emb.inv_freq)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, IndexError])
def test_one_that_is_called_otherwise(error: type[Exception], model: Any) -> None:
    class Unlike:
        inv_freq = torch.ones(4)

        def __call__(self, *args: object, **kwargs: object) -> None:
            raise error("other arguments")

    layers = model.model.language_model.layers
    assert probe_rotary(layers[0].self_attn, Unlike()) is None
