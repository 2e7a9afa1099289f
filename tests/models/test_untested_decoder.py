"""The adapter of a family on a text decoder that its tests never saw: it is tried out first."""

import functools
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import cdkit
from cdkit.interfaces.model_adapter import ADAPTERS
from cdkit.probing import adapter_trial
from cdkit.probing.adapter_trial import TESTED_DECODERS

from . import kin_tiny, masked_tiny, tiny
from .kin_tiny import Words

hf: Any = transformers
IMAGE, PAD = 90, 0
TEXT: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 512, "tie_word_embeddings": False, "pad_token_id": PAD,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
}  # fmt: skip
WINDOWS: dict[str, Any] = {
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "head_dim": None, "num_key_value_heads": 4, "moe_intermediate_size": 16,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 12, "qk_nope_head_dim": 8,
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "gpt_oss": WINDOWS | MOE,
    "gemma2": WINDOWS | {"attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    "deepseek_v3": LATENT,
    "qwen3": {},
    "smollm3": {"head_dim": None, "no_rope_layers": [1, 0, 1]},
    "phi": {"head_dim": None},
    "diffllama": {"head_dim": None},
    "afmoe": WINDOWS | {
        "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
        "num_shared_experts": 1, "num_dense_layers": 1,
    },
    "gemma": {"use_bidirectional_attention": True},
}  # fmt: skip


@functools.cache
def llava(decoder: str) -> Any:
    """A LLaVA with random weights and this text decoder."""
    text = TEXT | {"model_type": decoder} | DECODERS[decoder]
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 2,
    }  # fmt: skip
    config = hf.LlavaConfig(
        text_config={name: value for name, value in text.items() if value is not None},
        vision_config=vision, image_token_index=IMAGE, vision_feature_layer=-1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = hf.LlavaForConditionalGeneration(config).eval()
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, std=0.5 if weight.ndim > 1 else 0.2)
            if name.endswith("norm.weight"):
                torch.nn.init.normal_(weight, mean=1.0, std=0.2)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def prompts() -> dict[str, Tensor]:
    """Two prompts, of which the first is padded on the left."""
    image = [IMAGE] * 16
    rows = [[PAD, PAD, 1, 10, *image, 20, 21, 22], [1, 10, 11, 12, *image, 23, 24, 25]]
    ids = torch.tensor(rows)
    random = torch.Generator().manual_seed(1)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "pixel_values": torch.randn(2, 3, 8, 8, generator=random),
    }


def answer(model: Any, **options: Any) -> Any:
    how = {"max_new_tokens": 4, "do_sample": False, "num_beams": 1} | options
    return model.generate(**prompts(), **how, return_dict_in_generate=True, output_logits=True)


def under(model: Any, method: cdkit.Method, *, optimize: bool = True, **options: Any) -> Any:
    with cdkit.attach(model, method, processor=Words(), optimize=optimize):
        return answer(model, **options)


RIGHT = ("gpt_oss", "gemma2", "deepseek_v3", "smollm3")
MODES: list[dict[str, Any]] = [{}, {"num_beams": 2}, {"do_sample": True}]
CASES = [(name, MODES[0]) for name in RIGHT] + [("deepseek_v3", mode) for mode in MODES[1:]]


@pytest.mark.parametrize("decoder", [*RIGHT, "afmoe"])
def test_an_identical_branch_is_the_stock_model(decoder: str) -> None:
    """AFMoE takes views of what attention returns, so that must be contiguous."""
    model = llava(decoder)
    stock = answer(model)
    for optimize in (True, False):
        found = under(model, cdkit.load("identical", beta=0.0), optimize=optimize)
        assert found.sequences.equal(stock.sequences)
        for own, wanted in zip(found.logits, stock.logits, strict=True):
            torch.testing.assert_close(own, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("decoder", "mode"), CASES)
def test_cmac_is_that_of_the_plain_algorithm(decoder: str, mode: dict[str, Any]) -> None:
    model, method = llava(decoder), cdkit.load("cmac", beta=0.0)
    both = []
    for optimize in (True, False):
        torch.manual_seed(0)
        both.append(under(model, method, optimize=optimize, **mode))
    assert both[0].sequences.equal(both[1].sequences)
    for own, plain in zip(both[0].logits, both[1].logits, strict=True):
        torch.testing.assert_close(own, plain, rtol=0, atol=1e-3)
    assert not both[0].logits[0].equal(answer(model, **mode).logits[0])


@pytest.mark.parametrize("decoder", RIGHT)
def test_calibration_moves_the_logits(decoder: str) -> None:
    """Also where keys are made of a smaller state at each step: no layer is taken for one whose
    keys do not rotate."""
    model, alone = llava(decoder), {"alpha": 0.0, "beta": 0.0}
    stock = answer(model).logits
    still = under(model, cdkit.load("cmac", gamma=1 + 1e-9, **alone)).logits
    moved = under(model, cdkit.load("cmac", gamma=4.0, **alone)).logits
    torch.testing.assert_close(still[-1], stock[-1], rtol=0, atol=1e-4)
    assert float((moved[0] - stock[0]).abs().max()) > 1e-2


def test_a_dropped_sink_would_be_seen() -> None:
    """The comparison with the stock model tells sinks, caps and their absence apart."""
    for decoder, name in (("gpt_oss", "sinks"), ("gemma2", "attn_logit_softcapping")):
        model = llava(decoder)
        wanted = answer(model).logits[0]
        layer = model.model.language_model.layers[1].self_attn
        value = getattr(layer, name)
        if name == "sinks":
            value.data.sub_(100.0)
        else:
            layer.attn_logit_softcapping = None
        try:
            assert float((answer(model).logits[0] - wanted).abs().max()) > 1e-3
        finally:
            if name == "sinks":
                value.data.add_(100.0)
            else:
                layer.attn_logit_softcapping = value


def test_methods_inside_another_attention_are_refused() -> None:
    """DiffLlama attends twice in each layer; what changes inputs alone runs."""
    model = llava("diffllama")
    with pytest.raises(cdkit.CdkitError, match=r"^pai changes or reads attention, and .* vcd$"):
        under(model, cdkit.load("pai"))
    with pytest.raises(cdkit.CdkitError, match=r"^pai changes or reads attention, and"):
        cdkit.attach(model, cdkit.load("pai"))
    assert under(model, cdkit.load("vcd")).sequences.shape[1] == prompts()["input_ids"].shape[1] + 4


def test_a_text_encoder_is_refused() -> None:
    """Gemma's config can have its text attend to what follows, although its tests never do."""
    model = llava("gemma")
    for name in ("vcd", "cmac"):
        with pytest.raises(cdkit.CdkitError, match=r"^GemmaAttention of this .* tokens that follo"):
            cdkit.attach(model, cdkit.load(name))
    assert under(model, cdkit.load("plain")).sequences.equal(answer(model).sequences)


def test_layers_are_read_out_behind_any_norm() -> None:
    """Phi calls its last norm `final_layernorm`."""
    assert under(llava("phi"), cdkit.load("dola")).sequences.shape[0] == 2


def test_a_configuration_is_tried_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    checks = adapter_trial._run_checks

    def counted(*given: Any) -> Any:
        ran.append("once")
        return checks(*given)

    monkeypatch.setattr(adapter_trial, "_run_checks", counted)
    monkeypatch.setattr(adapter_trial, "_of_config", {})
    model = llava.__wrapped__("qwen3")
    for _ in range(2):
        under(model, cdkit.load("vcd"))
    under(llava.__wrapped__("qwen3"), cdkit.load("vcd"))
    assert ran == ["once"]


def test_decoders_of_the_tests_are_known() -> None:
    """Each decoder that a family's tests run, and no other."""
    seen = set[str]()
    families: list[tuple[Any, str]] = [(tiny, name) for name in tiny.FAMILIES]
    families += [(kin_tiny, name) for name in kin_tiny.KIN]
    families += [(masked_tiny, name) for name in (*masked_tiny.FAMILIES, "paligemma2")]
    for module, name in families:
        model: Any = module.tiny(name)
        if model.config.model_type in ADAPTERS:
            decoder: Any = cdkit.adapter_for(model).decoder(model)
            kind = decoder.config.model_type
            if not kind.startswith(model.config.model_type):
                seen.add(kind)
    assert seen == TESTED_DECODERS
