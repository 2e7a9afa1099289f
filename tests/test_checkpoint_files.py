"""Checkpoints with a fault: weights, processors and code, each read rightly or one clear error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evals.command_line import refused, run
from PIL import Image
from safetensors.torch import load_file, save_file

import cdkit
from cdkit.pretrained import micro_path

LAYER = "language_model.model.layers.1."
WEIGHTS = "model.safetensors"
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(micro_path(), tmp_path / "model"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(path)
    return path


def edited(path: Path, change: Change) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def reweighted(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def without_a_layer(weights: dict[str, torch.Tensor]) -> None:
    for name in [name for name in weights if name.startswith(LAYER)]:
        del weights[name]


def as_bin(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    without_a_layer(weights)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def as_shards(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    without_a_layer(weights)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({n: weights[n] for n in held}, folder / file, metadata={"format": "pt"})
    where = {name: file for file, held in parts.items() for name in held}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), "utf-8")


def one_file(folder: Path) -> None:
    reweighted(folder, without_a_layer)


def a_layer_more(folder: Path) -> None:
    def more(config: dict[str, Any]) -> None:
        config["text_config"]["num_hidden_layers"] += 1

    edited(folder / "config.json", more)


@pytest.mark.parametrize("fault", [one_file, as_bin, as_shards, a_layer_more])
def test_missing_weights_are_named(folder: Path, fault: Callable[[Path], None]) -> None:
    fault(folder)
    told = r"cannot load the model .*: its files lack \S*layers\.[14]\.\S+, .* and 6 more, which "
    with pytest.raises(cdkit.CdkitError, match=told):
        cdkit.load_model(folder)


def test_every_command_says_so(folder: Path, picture: Path, tmp_path: Path) -> None:
    one_file(folder)
    told = "its files lack model.language_model.layers.1"
    asked = ("--prompt", "is there a cat ?", "--image", picture)
    assert told in refused("generate", "--model", folder, *asked)
    grid = tmp_path / "grid.toml"
    grid.write_text(
        f"model = {json.dumps(str(folder))}\ndecode = ['greedy']\ncheck = 0\n"
        "[world]\nimages = 2\nexam_images = 2\n[methods.plain]\n"
        "[benchmarks.pope]\ntype = 'pope'\nimage_folder = 'world:images'\n"
        "path = 'world:pope.random'\n",
        "utf-8",
    )
    assert told in refused("ablate", grid, "--output", tmp_path / "runs")
    data = tmp_path / "data"
    assert run("data", "micro-world", data, "--images", "4").exit_code == 0
    assert told in refused(
        "eval", "--model", folder, "--method", "plain", "--bench", "pope", "--data", data,
        "--limit", "1", "--output", tmp_path / "runs",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("part", "layer"), [("text_config", "language_model"), ("vision_config", "vision_tower")]
)
def test_layers_that_the_config_does_not_know(folder: Path, part: str, layer: str) -> None:
    def fewer(config: dict[str, Any]) -> None:
        config[part]["num_hidden_layers"] -= 1

    edited(folder / "config.json", fewer)
    told = rf"cannot load the model .*: its files hold model\.{layer}\.\S*layers\.[23], more layers"
    with pytest.raises(cdkit.CdkitError, match=told):
        cdkit.load_model(folder)


HARMLESS = [
    "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    "vision_tower.vision_model.embeddings.position_ids",
    "mtp.layers.0.eh_proj.weight",
    "model.mtp.0.weight",
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HARMLESS)
def test_what_published_checkpoints_hold_besides(folder: Path, name: str) -> None:
    reweighted(folder, lambda weights: weights.update({name: torch.zeros(2)}))
    cdkit.load_model(folder)


def test_a_layer_that_predicts_further_tokens(folder: Path) -> None:
    """It stands behind the decoder's layers, and has weights that none of them has."""

    def add(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if name.startswith(LAYER)]:
            weights[name.replace("layers.1.", "layers.4.")] = weights[name].clone()
        weights["language_model.model.layers.4.eh_proj.weight"] = torch.zeros(2)

    reweighted(folder, add)
    with pytest.warns(cdkit.CdkitWarning, match=r"does not use \S*layers\.4\.eh_proj.* and 7 more"):
        cdkit.load_model(folder)


def test_other_weights_are_told(folder: Path) -> None:
    name = "vision_tower.vision_model.post_layernorm.scale"
    reweighted(folder, lambda weights: weights.update({name: torch.zeros(2)}))
    with pytest.warns(cdkit.CdkitWarning, match=r"does not use \S*post_layernorm\.scale of its"):
        cdkit.load_model(folder)


def test_another_shape_is_named(folder: Path) -> None:
    name = f"{LAYER}input_layernorm.weight"

    def cut(weights: dict[str, torch.Tensor]) -> None:
        weights[name] = weights[name][:3].clone()

    reweighted(folder, cut)
    told = r"layers\.1\.input_layernorm\.weight \(\[3\] in the files, \[128\] by config\.json\)"
    with pytest.raises(cdkit.CdkitError, match=told):
        cdkit.load_model(folder)


@pytest.mark.parametrize("size", [0, 50, 2000])
def test_damaged_files_of_the_older_format(folder: Path, size: int) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[:size])
    with pytest.raises(cdkit.CdkitError, match="cannot load the model"):
        cdkit.load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": 3}', '{"model_type": "none"}'])
def test_a_config_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, "utf-8")
    with pytest.raises(cdkit.CdkitError, match="cannot load the model"):
        cdkit.load_model(folder)


def encoded(folder: Path) -> dict[str, torch.Tensor]:
    _, processor = cdkit.load_model(folder)
    image = Image.radial_gradient("L").convert("RGB")
    text = ["USER: <image>\nis there a cat ? ASSISTANT:", "USER: <image>\nis it ? ASSISTANT:"]
    made = processor(images=[[image], [image]], text=text, return_tensors="pt", padding=True)
    return dict(made)


FILLED = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")


@pytest.mark.parametrize("lacking", [(name,) for name in FILLED] + [FILLED])
def test_a_processor_is_filled_from_the_model(folder: Path, lacking: tuple[str, ...]) -> None:
    wanted = encoded(folder)

    def drop(settings: dict[str, Any]) -> None:
        for name in lacking:
            del settings[name]

    edited(folder / "processor_config.json", drop)
    found = encoded(folder)
    assert found.keys() == wanted.keys()
    assert all(found[name].equal(wanted[name]) for name in wanted)


def test_a_processor_without_a_padding_token(folder: Path) -> None:
    wanted = encoded(folder)
    edited(folder / "tokenizer_config.json", lambda settings: settings.pop("pad_token"))
    found = encoded(folder)
    assert found["attention_mask"].equal(wanted["attention_mask"])
    kept = found["attention_mask"].bool()
    assert found["input_ids"][kept].equal(wanted["input_ids"][kept])


def test_a_processor_that_reads_no_images(folder: Path) -> None:
    (folder / "processor_config.json").unlink()
    with pytest.raises(cdkit.CdkitError, match=r"preprocessor_config\.json"):
        cdkit.load_model(folder)


FOREIGN: dict[str, tuple[str, Change]] = {
    "model": (
        "config.json",
        lambda c: c.update(
            model_type="foreign",
            auto_map={
                "AutoConfig": "code.Foreign",
                "AutoModelForImageTextToText": "code.Foreign",
            },
        ),
    ),
    "processor": (
        "processor_config.json",
        lambda c: c.update(processor_class="No", auto_map={"AutoProcessor": "code.Foreign"}),
    ),
    "image processor": (
        "processor_config.json",
        lambda c: c["image_processor"].update(
            image_processor_type="No", auto_map={"AutoImageProcessor": "code.Foreign"}
        ),
    ),
    "tokenizer": (
        "tokenizer_config.json",
        lambda c: c.update(
            tokenizer_class="No", auto_map={"AutoTokenizer": [None, "code.Foreign"]}
        ),
    ),
}


@pytest.mark.parametrize("part", FOREIGN)
def test_code_in_a_checkpoint_is_never_run(
    folder: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("asked on stdin")

    monkeypatch.setattr("builtins.input", asked)
    file, change = FOREIGN[part]
    edited(folder / file, change)
    ran = folder / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\n", "utf-8")
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "code.py", folder / "custom_generate" / "generate.py")
    try:
        cdkit.load_model(folder)
    except cdkit.CdkitError as error:
        assert "code of its own" in str(error)
    else:
        assert part == "tokenizer"  # transformers reads its files without the class
    assert not ran.exists()
