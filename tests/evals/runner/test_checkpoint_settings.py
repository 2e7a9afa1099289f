"""Settings that come from a checkpoint: recorded, told where not neutral, and followed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from evals.command_line import run
from PIL import Image
from transformers import GenerationConfig

import cdkit
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.checkpoint_settings import (
    FROM_CHECKPOINT,
    LOGITS,
    SEARCH,
    moving,
    recorded,
    stored,
)
from cdkit.pretrained import micro_path

MOVED: dict[str, Any] = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 2,
    "suppress_tokens": [5],
    "bad_words_ids": [[7]],
    "sequence_bias": [[[7], -2.0]],
    "min_new_tokens": 3,
    "forced_eos_token_id": 2,
    "length_penalty": 0.5,
    "stop_strings": ["a cat"],
}
NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "length_penalty": 1,
    "temperature": 0.2,
    "top_p": 0.001,
    "do_sample": True,
}


def config(**given: Any) -> GenerationConfig:
    return GenerationConfig(**given)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", MOVED)
def test_each_setting_is_recorded_and_told(name: str, tmp_path: Path) -> None:
    given = config(**{name: MOVED[name]})
    assert recorded(given) == {name: MOVED[name]}
    assert (name in moving(given)) == (name not in SEARCH)
    assert moving(given, beams=True) == {name: MOVED[name]}
    (tmp_path / "generation_config.json").write_text(json.dumps({name: MOVED[name]}), "utf-8")
    assert stored(tmp_path) == {name: MOVED[name]}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_neutral_setting_is_not_told(name: str) -> None:
    given = config(**{name: NEUTRAL[name]})
    assert moving(given, beams=True) == {}
    assert (name in recorded(given)) == (name in FROM_CHECKPOINT)


def test_every_setting_of_transformers_has_a_place() -> None:
    """One that a new version brings is decided on before it moves a number."""
    known = {*FROM_CHECKPOINT, *PASSED, *IDLE}
    assert set(vars(config())) - known == set()
    assert LOGITS.keys() <= {*vars(config()), "guidance_scale"}


PASSED = {
    "max_new_tokens", "max_length", "num_beams", "do_sample", "num_return_sequences", "use_cache",
    "return_dict_in_generate", "output_scores", "output_logits",
}  # fmt: skip
"""The engine passes them to `generate`."""
IDLE = {
    # of sampling, which the engine does by itself over greedy search
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    # tokens that are no setting
    "pad_token_id", "bos_token_id", "decoder_start_token_id",
    # refused by `attach`, or of no effect on text
    "dola_layers", "penalty_alpha", "prompt_lookup_num_tokens", "assistant_early_exit",
    "token_healing", "output_attentions", "output_hidden_states", "cache_implementation",
    "generation_mode", "low_memory", "is_assistant", "max_matching_ngram_size",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_k", "prefill_chunk_size",
    "cache_config", "compile_config", "disable_compile", "continuous_batching_config",
    "speculation_config", "transformers_version", "trace_decode", "assistant_ensemble_weight",
    "speculation_type", "use_mtp", "max_cache_len",
}  # fmt: skip
IDLE |= {name for name in vars(config()) if name.startswith("_")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = Path(shutil.copytree(micro_path(), tmp_path / "model"))
    path = made / "generation_config.json"
    content = json.loads(path.read_text("utf-8")) | {
        "repetition_penalty": 50.0,
        "num_return_sequences": 1,
        "return_dict_in_generate": True,
        "output_scores": True,
        "use_cache": False,
    }
    path.write_text(json.dumps(content), "utf-8")
    return made


def test_the_command_tells_and_pins(folder: Path, tmp_path: Path) -> None:
    image = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    image.save(tmp_path / "photo.png")
    result = run(
        "generate", "--model", folder, "--image", tmp_path / "photo.png",
        "--prompt", "is there a cat ?", "--compare", "plain,vcd,cmac",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    told = "note: the checkpoint's generation_config sets repetition_penalty 50.0; every answer"
    assert told in result.stderr and "use_cache" not in result.stderr


def test_the_engine_knows(folder: Path) -> None:
    assert AnswerEngine(*cdkit.load_model(folder)).adjusts_logits
    assert not AnswerEngine(*cdkit.load_model("micro")).adjusts_logits


def test_a_grid_follows_it_as_an_evaluation_does(folder: Path, tmp_path: Path) -> None:
    """No answer is decided by logits that `generate` would have changed."""
    yes = list(AnswerEngine(*cdkit.load_model("micro")).yes_ids)
    path = folder / "generation_config.json"
    content = json.loads(path.read_text("utf-8")) | {"suppress_tokens": yes}
    path.write_text(json.dumps(content), "utf-8")
    assert run("data", "micro-world", tmp_path / "data", "--images", "3").exit_code == 0
    questions = next((tmp_path / "data").rglob("*random*.json*"))
    images = next((tmp_path / "data").rglob("*.png")).parent
    (tmp_path / "grid.toml").write_text(
        f"model = {json.dumps(str(folder))}\ndecode = ['greedy']\ncheck = 8\nresamples = 100\n"
        "[gallery]\nsamples = 0\n[methods.plain]\n[methods.vcd]\nbeta = 0.0\n[benchmarks.pope]\n"
        f"type = 'pope'\nimage_folder = {json.dumps(str(images))}\n"
        f"path = {json.dumps(str(questions))}\n",
        "utf-8",
    )
    runs = tmp_path / "runs"
    made = run("ablate", tmp_path / "grid.toml", "--output", runs, "--name", "grid")
    assert made.exit_code == 0, made.output
    assert "sets repetition_penalty 50.0, suppress_tokens" in made.stderr
    asked = run(
        "eval", "--model", folder, "--method", "plain", "--bench", "pope", "--name", "one",
        "--data", tmp_path / "data", "--only", "pope_micro_random", "--output", runs,
    )  # fmt: skip
    assert asked.exit_code == 0, asked.output
    assert "; every answer follows it; settings.json and manifest.json hold it" in asked.stderr
    answers = plain_answers(runs / "grid")
    assert answers == plain_answers(runs / "one")
    assert all("yes" not in answer for answer in answers.values())
    assert "hold it, and answers have no margins" in asked.stderr
    rows = (runs / "one" / "predictions.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(row)["margin"] for row in rows} == {None}
    ties = json.loads((runs / "one" / "manifest.json").read_text("utf-8"))["near_ties"]
    assert ties["of"] == ties["answers"] == 0 and "settings that move logits" in ties["rule"]


@pytest.mark.parametrize(
    ("setting", "known"),
    [
        ({"repetition_penalty": 1.3}, False),
        ({"no_repeat_ngram_size": 3}, False),
        ({"exponential_decay_length_penalty": [2, 1.5]}, False),
        ({"suppress_tokens": [3]}, False),
        ({"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "length_penalty": 2.0}, True),
    ],
)
@pytest.mark.parametrize("method", ["plain", "cmac"])
def test_a_margin_is_right_or_absent(setting: dict[str, Any], known: bool, method: str) -> None:
    """Yes scores stay: they are of logits before any penalty."""
    model, processor = cdkit.load_model("micro")
    for name, value in setting.items():
        setattr(model.generation_config, name, value)
    engine = AnswerEngine(model, processor)
    inputs = engine.encode([[Image.new("RGB", (64, 64))]], ["is there a cat ?"])
    (answer,) = engine.answers(
        cdkit.load(method), inputs, ["a"], limit=3, seed=None, record_margins=True
    )
    assert (answer.margin is not None) is known and answer.yes_score is not None


@pytest.mark.parametrize("method", ["plain", "cmac"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("dola_layers", "low"), ("penalty_alpha", 0.6), ("assistant_early_exit", 1)],
)
def test_what_no_method_runs_with_is_the_same_error_for_plain(
    name: str, value: object, method: str
) -> None:
    """Where stock `generate` fails on it; else plain runs, as without cdkit."""
    with pytest.raises(cdkit.CdkitError, match=f"^{method} cannot run with {name}={value!r}, whi"):
        asked_of_generate(method, name, value, error=AttributeError("'NoneType' object has no ..."))
    if method == "plain":
        asked_of_generate(method, name, value)


def test_plain_takes_the_cache_that_methods_take() -> None:
    asked = asked_of_generate("plain", "cache_implementation", "quantized")
    assert asked["cache_implementation"] is None


def test_stop_strings_are_read_with_the_tokenizer() -> None:
    assert asked_of_generate("plain", "stop_strings", ["cat"])["tokenizer"] is not None


def test_a_prompt_that_the_model_does_not_take_is_one_error() -> None:
    """Not a traceback: the processor makes fewer image tokens than the model has features."""
    model, processor = cdkit.load_model("micro")
    engine = AnswerEngine(model, processor)
    inputs = engine.encode([[Image.new("RGB", (64, 64))]], ["is there a cat ?"])
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(cdkit.CdkitError, match=r"does not take this prompt: Image features and im"):
        engine.answers(cdkit.load("plain"), inputs, ["a"], limit=1, seed=None)


def test_a_fault_of_a_plug_in_stays_its_own() -> None:
    model, processor = cdkit.load_model("micro")

    def broken(module: Any, given: Any) -> None:
        raise ValueError("of a plug-in")

    model.register_forward_pre_hook(broken)
    engine = AnswerEngine(model, processor)
    inputs = engine.encode([[Image.new("RGB", (64, 64))]], ["is there a cat ?"])
    with pytest.raises(ValueError, match=r"^of a plug-in$"):
        engine.answers(cdkit.load("plain"), inputs, ["a"], limit=1, seed=None)


def asked_of_generate(
    method: str, name: str, value: object, *, error: Exception | None = None
) -> dict[str, Any]:
    """The arguments of `generate` under a checkpoint that has this setting."""
    model, processor = cdkit.load_model("micro")
    setattr(model.generation_config, name, value)
    engine, asked = AnswerEngine(model, processor), dict[str, Any]()

    def generate(**given: Any) -> Any:
        asked.update(given)
        if error is not None:
            raise error
        return given["input_ids"]

    if method == "plain":
        model.generate = generate
    inputs = engine.encode([[Image.new("RGB", (64, 64))]], ["is there a cat ?"])
    engine.answers(cdkit.load(method), inputs, ["a"], limit=1, seed=None)
    return asked


def plain_answers(run: Path) -> dict[str, str]:
    lines = (run / "predictions.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["id"]: row["text"] for row in rows if row.get("method", "plain") == "plain"}
