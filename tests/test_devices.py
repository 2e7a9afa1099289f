"""Where a model goes: one rule for every way to load one, on a machine with or without a GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from evals.command_line import refused, run
from PIL import Image

import cdkit
from cdkit.evals.integrations.lmms_eval.options import read_options
from cdkit.evals.runner.chosen_model import ChosenModel
from cdkit.evals.runner.processes import _device
from cdkit.evals.runner.resources import Resources
from cdkit.pretrained import device_of

POPE = [
    {"question_id": 1, "image": "photo.png", "text": "is there a cat ?", "label": "yes"},
    {"question_id": 2, "image": "photo.png", "text": "is there a dog ?", "label": "no"},
]
GRID = """
decode = ["greedy"]
check = 0
resamples = 100
[gallery]
samples = 0
[methods.plain]
[benchmarks.pope]
type = "pope"
image_folder = FOLDER
path = QUESTIONS
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    image.save(tmp_path / "photo.png")
    (tmp_path / "pope.json").write_text("\n".join(map(json.dumps, POPE)), "utf-8")
    folder, questions = (json.dumps(str(p)) for p in (tmp_path, tmp_path / "pope.json"))
    text = GRID.replace("FOLDER", folder).replace("QUESTIONS", questions)
    (tmp_path / "grid.toml").write_text(text, "utf-8")
    return tmp_path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `cdkit.load_model` was asked for; the model stays on the CPU."""
    asked: list[dict[str, Any]] = []
    load = cdkit.load_model

    def stand_in(name: str, **options: Any) -> Any:
        asked.append(options)
        asked[-1]["device"] = device_of(options["device"])
        return load(name, dtype=options["dtype"])

    monkeypatch.setattr(cdkit, "load_model", stand_in)
    return asked


def ask(command: str, folder: Path) -> list[str | Path]:
    if command == "ablate":
        return ["ablate", folder / "grid.toml", "--output", folder / "runs"]
    if command == "bench":
        small = ("--rounds", "1", "--new-tokens", "2", "--text-tokens", "4", "--method", "vcd")
        return ["bench", *small, "--variant", "cdkit"]
    picture = folder / "photo.png"
    return ["generate", "--prompt", "is there a cat ?", "--image", picture, "--method", "plain"]


@pytest.mark.parametrize(
    ("command", "options", "seen", "device"),
    [
        ("generate", [], ("cuda",), "cuda"),
        ("generate", [], (), "cpu"),
        ("generate", ["--device", "cpu", "--dtype", "float64"], ("cuda",), "cpu"),
        ("bench", ["--device", "cpu", "--dtype", "float64"], ("cuda",), "cpu"),
        ("bench", [], (), "cpu"),
        ("ablate", ["--device", "cpu", "--dtype", "float64"], ("cuda",), "cpu"),
    ],
)
def test_a_command_takes_the_accelerator_there_is(
    command: str,
    options: list[str],
    seen: tuple[str, ...],
    device: str,
    folder: Path,
    loads: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in seen)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in seen)
    result = run(*ask(command, folder), *options)
    assert result.exit_code == 0, result.output
    dtype = "float64" if options else "float32"
    told = [line for line in result.stderr.splitlines() if line.startswith("model: ")]
    assert told == [f"model: micro on cpu in {dtype}"]  # where the stand-in put it
    assert [each["device"] for each in loads] == [torch.device(device)]
    assert [each["dtype"] for each in loads] == ["float64" if options else "auto"]


def test_an_evaluation_takes_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert _device(Resources()) == ("cuda", 1, "--device auto")
    assert _device(Resources(devices=2, device="cuda"))[:2] == ("cuda", 2)
    assert _device(Resources(device="cuda:1"))[:2] == ("cuda", [1])
    assert _device(Resources(device="cpu", devices=3))[:2] == ("cpu", 3)
    assert _device(Resources(accelerator="cpu"))[:2] == ("cpu", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert _device(Resources()) == ("mps", 1, "--device auto")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(cdkit.CdkitError, match="cuda:1 is one device, and 2 processes need one"):
        Resources(device="cuda:1", devices=2)
    with pytest.raises(cdkit.CdkitError, match="give --device alone"):
        Resources(device="cuda", accelerator="cpu")
    with pytest.raises(cdkit.CdkitError, match="torch sees cuda, cpu; give auto or one of them"):
        _device(Resources(device="cuda:2"))


def test_a_stand_in_device() -> None:
    """All of the model goes where it is told to, and nothing of it stays behind."""
    model, _ = cdkit.load_model("micro", device="meta", dtype=torch.float16)
    tensors = [*model.parameters(), *model.buffers()]
    assert {t.device.type for t in tensors} == {"meta"}
    assert model.dtype == torch.float16


@pytest.mark.parametrize("command", ["generate", "ablate", "bench"])
@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_a_device_that_is_none(name: str, command: str, folder: Path) -> None:
    told = refused(*ask(command, folder), "--device", name)
    assert f"no device is called {name!r}: give auto, cpu, cuda" in told


@pytest.mark.parametrize("command", ["generate", "ablate", "bench"])
def test_a_device_that_is_not_there(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = refused(*ask(command, folder), "--device", "cuda")
    assert "device 'cuda' is not there: torch sees cpu; give auto or one of them" in told


def test_a_bench_goes_to_the_accelerator_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shape: those of random weights are made there."""
    built: list[torch.device] = []

    def stop(settings: object, dtype: object, device: torch.device) -> None:
        built.append(device)
        raise cdkit.CdkitError("as far as this test goes")

    monkeypatch.setattr("cdkit.evals.speed.bench_run.build", stop)
    monkeypatch.setattr("cdkit.evals.speed.bench_run.machine", lambda device, dtype: {})
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for shape in ("micro", "0.5b", "7b"):
        assert "as far as" in refused("bench", "--shape", shape, "--threads", "1")
    assert built == [torch.device("mps")] * 3


def test_a_device_and_a_map_exclude_each_other() -> None:
    with pytest.raises(cdkit.CdkitError, match="device=cpu and device_map=auto: give one of them"):
        cdkit.load_model("micro", device="cpu", device_map="auto")


def test_options_reach_from_pretrained(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def stop(path: object, **options: Any) -> None:
        given.update(options)
        raise OSError("as far as this test goes")

    monkeypatch.setattr("cdkit.pretrained.AutoModelForImageTextToText.from_pretrained", stop)
    wanted: dict[str, Any] = {
        "quantization_config": object(),
        "attn_implementation": "eager",
        "revision": "v1",
    }
    with pytest.raises(cdkit.CdkitError, match="as far as"):
        cdkit.load_model("some/model", device="cpu", **wanted)
    assert given.items() >= wanted.items()
    assert given["device_map"] == {"": torch.device("cpu")}  # quantised weights never move
    assert given["trust_remote_code"] is False
    with pytest.raises(cdkit.CdkitError, match="revision='v1' belongs to a model on the hub"):
        cdkit.load_model("micro", revision="v1")


def test_four_bits(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = refused(*ask("generate", folder), "--load-in-4bit")
    assert "--load-in-4bit needs the package bitsandbytes, which is not installed" in told
    given: dict[str, Any] = {}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(cdkit, "load_model", lambda name, **options: (given.update(options), name))
    monkeypatch.setattr(ChosenModel, "_four_bit", lambda self: self.dtype)
    ChosenModel("some/model", "bfloat16", load_in_4bit=True).load("cpu")
    assert given == {"dtype": "bfloat16", "device": "cpu", "quantization_config": "bfloat16"}


def test_a_harness_passes_them_on() -> None:
    chosen = read_options(
        {"pretrained": "some/model", "method": "plain", "revision": 7, "load_in_4bit": True}
    ).chosen
    assert chosen == ChosenModel("some/model", revision="7", load_in_4bit=True)
    with pytest.raises(cdkit.CdkitError, match="no dtype is called 'float8'"):
        read_options({"pretrained": "micro", "method": "plain", "dtype": "float8"})
