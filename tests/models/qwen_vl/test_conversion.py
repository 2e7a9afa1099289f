"""The converter: every published tensor is used once, in every layout, or nothing is written."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig

import cdkit
from cdkit.models.qwen_vl import (
    BASE_TEMPLATE,
    CHAT_TEMPLATE,
    QwenVLConfig,
    QwenVLForConditionalGeneration,
    QwenVLProcessor,
    convert,
)
from cdkit.models.qwen_vl.weights import rules

from .published import CONFIG, END, VISUAL, write_published

Weights = dict[str, Tensor]


def loaded(folder: Path) -> dict[str, Tensor]:
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    found: dict[str, Tensor] = model.state_dict()
    return found


@pytest.mark.parametrize(("suffix", "files"), [("bin", 1), ("safetensors", 1), ("safetensors", 3)])
def test_every_layout(
    suffix: str, files: int, weights: Weights, converted: Path, tmp_path: Path
) -> None:
    """As the session's one, of two .bin files, which the parity tests prove right."""
    folder = write_published(tmp_path / "in", weights, suffix=suffix, files=files)
    seen: list[str] = []
    out = convert(str(folder), str(tmp_path / "out"), progress=seen.append)
    assert len(list(out.glob("*.safetensors"))) == files == len(seen)
    have, want = loaded(out), loaded(converted)
    assert have.keys() == want.keys()
    assert all(have[name].equal(want[name]) for name in want)


def test_each_tensor_reaches_its_place(weights: Weights, converted: Path, tmp_path: Path) -> None:
    """A change of one published tensor changes what its rule names, and nothing else."""
    plan = rules(QwenVLConfig.from_pretrained(converted))
    assert plan.keys() == weights.keys()
    before = loaded(converted)
    targets = [name for rule in plan.values() for name in rule.names]
    assert sorted(targets) == sorted(before)
    shifted = {name: value + n for n, (name, value) in enumerate(weights.items(), 1)}
    after = loaded(convert(write_published(tmp_path / "in", shifted), tmp_path / "out"))
    for n, name in enumerate(weights, 1):
        for place in plan[name].names:
            assert after[place].equal(before[place] + n)


def test_buffers_of_old_checkpoints_are_left_out(
    weights: Weights, converted: Path, tmp_path: Path
) -> None:
    buffers = {
        "transformer.rotary_emb.inv_freq": torch.ones(3),
        "transformer.h.1.attn.rotary_emb.inv_freq": torch.ones(3),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    out = convert(write_published(tmp_path / "in", weights | buffers), tmp_path / "out")
    assert loaded(out).keys() == loaded(converted).keys()


def test_what_is_written(converted: Path, weights: Weights, tmp_path: Path) -> None:
    """Chat: stops at a turn's end too, ChatML. Base, or without a generation file: plain."""
    chat = GenerationConfig.from_pretrained(converted)
    assert chat.eos_token_id == [END, END + 2, END + 1] and chat.pad_token_id == END
    assert chat.max_new_tokens == 12 and chat.do_sample is False
    processor: Any = QwenVLProcessor.from_pretrained(converted)
    assert processor.chat_template == CHAT_TEMPLATE and processor.image_seq_length == 256
    assert processor.image_processor.size == {"height": 36, "width": 36}
    sampling: dict[str, object] = {"do_sample": True, "top_k": 0, "top_p": 0.3}
    convert(write_published(tmp_path / "s", weights, generation=sampling), tmp_path / "sampling")
    sampled = GenerationConfig.from_pretrained(tmp_path / "sampling")
    assert sampled.do_sample and sampled.top_k == 0 and sampled.top_p == 0.3
    raw: dict[str, object] = {"chat_format": "raw", "top_p": 0.3}  # is_identity: do_sample is off
    folder = write_published(tmp_path / "in", weights, generation=raw)
    for out in (tmp_path / "raw", tmp_path / "none"):
        convert(folder, out)
        assert GenerationConfig.from_pretrained(out).eos_token_id == END
        base: Any = QwenVLProcessor.from_pretrained(out)
        assert base.chat_template == BASE_TEMPLATE
        (folder / "generation_config.json").unlink(missing_ok=True)


def test_a_tower_as_wide_as_its_output_projects_no_patches() -> None:
    config = QwenVLConfig(
        vision_config={"hidden_size": 16, "output_size": 16, "num_hidden_layers": 1,
                       "resampler_attention_heads": 2},
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 8,
                     "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2},
    )  # fmt: skip
    plan = rules(config)
    with torch.device("meta"):
        model = QwenVLForConditionalGeneration(config)
    assert {name for rule in plan.values() for name in rule.names} == set(model.state_dict())


C_ATTN, W1 = "transformer.h.0.attn.c_attn.weight", "transformer.h.1.mlp.w1.weight"


def test_all_faults_of_the_weights_in_one_error(weights: Weights, tmp_path: Path) -> None:
    faulty = {name: value for name, value in weights.items() if ".1.mlp.w" not in name}
    faulty |= {C_ATTN: torch.zeros(4, 256), "transformer.proj": torch.zeros(())}
    faulty |= {"transformer.ln_f.weight": torch.zeros(())}
    folder = write_published(tmp_path / "in", faulty)
    both = {"lm_head.weight": weights["lm_head.weight"]}
    for file in folder.glob("*.bin"):
        torch.save(torch.load(file) | both, file)
    with pytest.raises(cdkit.CdkitError) as error:
        convert(folder, tmp_path / "out")
    told = str(error.value)
    assert "1 unknown (transformer.proj)" in told
    assert f"2 missing ({W1}, transformer.h.1.mlp.w2.weight)" in told
    assert "1 there twice (lm_head.weight)" in told
    assert "2 of another shape (transformer.h.0.attn.c_attn.weight [4, 256], " in told
    assert not (tmp_path / "out").exists()


def _second(folder: Path) -> Path:
    return folder / "pytorch_model-00002-of-00002.bin"


def _truncate(folder: Path) -> None:
    _second(folder).write_bytes(_second(folder).read_bytes()[:2000])


def _pickled_code(folder: Path) -> None:
    _second(folder).write_bytes(pickle.dumps(Path("anything")))


def _a_list(folder: Path) -> None:
    torch.save([torch.ones(2)], _second(folder))


def _no_map(folder: Path) -> None:
    (folder / "pytorch_model.bin.index.json").write_text("{}")


def _no_files(folder: Path) -> None:
    for file in folder.glob("pytorch_model*"):
        file.unlink()


def _cut_vocabulary(folder: Path) -> None:
    lines = (folder / "qwen.tiktoken").read_text().splitlines()
    (folder / "qwen.tiktoken").write_text("\n".join(lines[:-1]))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: (folder / "config.json").unlink(), "give the folder of Qwen-VL as it was"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot read .*config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object"),
        (lambda folder: (folder / "qwen.tiktoken").unlink(), "cannot read .*qwen.tiktoken"),
        (lambda folder: _second(folder).unlink(), "names files that are not there: pytorch_model-"),
        (_cut_vocabulary, r"puts <img> at id \d+, config.json at \d+: the two are not of one"),
        (_no_files, r"has no weights; it must hold model.safetensors or pytorch_model.bin"),
        (_no_map, "has no weight_map"),
        (_truncate, "cannot read the weights in .*00002-of-00002.bin"),
        (_pickled_code, "cannot read the weights in .*00002-of-00002.bin"),
        (_a_list, "must hold tensors by name"),
    ],
)
def test_a_harmed_folder(
    harm: Callable[[Path], object], told: str, weights: Weights, tmp_path: Path
) -> None:
    folder = write_published(tmp_path / "in", weights)
    harm(folder)
    with pytest.raises(cdkit.CdkitError, match=told):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"visual": None}, "has no 'visual' part: not a Qwen-VL"),
        ({"quantization_config": {"bits": 4}}, "is of a quantised checkpoint; convert the one"),
        ({"model_type": "qwen2_vl"}, "has model_type 'qwen2_vl'; only 'qwen' can be converted"),
        ({"no_bias": False}, "has no_bias False; only True"),
        ({"rotary_pct": 0.5}, "has rotary_pct 0.5; only 1.0"),
        ({"tie_word_embeddings": True}, "has tie_word_embeddings True"),
        ({"scale_attn_weights": False}, "has scale_attn_weights False"),
        ({"kv_channels": 32}, r"must be hidden_size \(256\), got 32 x 4"),
        ({"seq_length": None}, "lacks 'seq_length', which every published"),
        ({"vocab_size": 400}, r"the tokenizer has \d+ tokens and the model embeds 400"),
        ({"visual": VISUAL | {"width": 30}}, "of another shape"),
        ({"num_hidden_layers": 3}, r"8 missing \(transformer.h.2.attn.c_attn.bias"),
    ],
)
def test_a_configuration_that_cannot_be_converted(
    changed: dict[str, Any], told: str, weights: Weights, tmp_path: Path
) -> None:
    folder = write_published(tmp_path / "in", weights)
    config = CONFIG | changed
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    with pytest.raises(cdkit.CdkitError, match=told):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(published: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    for out in (tmp_path, tmp_path / "kept"):
        with pytest.raises(cdkit.CdkitError, match="is not an empty folder; name another one"):
            convert(published, out)
    assert (tmp_path / "kept").read_text() == "mine"
