"""Loggers: what they are given, and what is said where their package is missing."""

import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evals.eval_run import draw, parts_of, settings
from pytorch_lightning.loggers import Logger

from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid_run import RunOptions, run_grid
from cdkit.evals.runner import loggers
from cdkit.evals.runner.loggers import check_loggers
from cdkit.evals.runner.resources import Resources


class Noted(Logger):
    """Stands for a package that is not installed here, such as wandb."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[int, dict[str, Any]]] = []
        self.facts: dict[str, Any] = {}
        self.ended: list[str] = []

    @property
    def name(self) -> str:
        return "noted"

    @property
    def version(self) -> str:
        return "1"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert step is not None
        self.metrics.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.facts |= params

    def finalize(self, status: str) -> None:
        self.ended.append(status)


def answered(folder: Path, names: tuple[str, ...]) -> None:
    parts = parts_of(draw(folder / "world", images=1))[:1]
    resources = Resources(batch_size=2, accelerator="cpu")
    options = RunOptions(loggers=names)
    run_grid(settings(), resources, folder / "run", options, parts=parts)


def test_progress_and_metrics_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = Noted()
    asked: dict[str, Any] = {}

    def wandb(**given: Any) -> Noted:
        asked.update(given)
        return noted

    monkeypatch.setattr(loggers, "WandbLogger", wandb)
    monkeypatch.setattr(loggers, "check_loggers", lambda names: None)
    answered(tmp_path, ("wandb",))
    steps = [step for step, metrics in noted.metrics if "progress/answers" in metrics]
    assert steps == [2, 4, 6]
    last = noted.metrics[-1][1]
    assert 0 <= last["pope_random/accuracy"] <= 1
    assert noted.facts["methods.cmac.preset"] == "cmac" and noted.facts["batch_size"] == 2
    assert noted.ended[-1] == "success"
    assert asked["resume"] == "allow" and asked["name"] == "run" and len(asked["id"]) == 16


def events(path: Path) -> Iterator[bytes]:
    """The records of a TensorBoard file: length, its check sum, the record, its check sum."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + length]
        at += length + 16


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the optional extra cdkit[tensorboard]")
    answered(tmp_path, ("tensorboard",))
    files = list((tmp_path / "run" / "tensorboard").rglob("events.out.*"))
    found = b"".join(record for file in files for record in events(file))
    assert b"progress/answers" in found and b"pope_random/accuracy" in found


def test_a_package_that_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(CdkitError) as caught:
            check_loggers([name])
        assert str(caught.value) == (
            f"--loggers {name} needs the package {name}: pip install 'cdkit[{name}]', or leave it "
            "out"
        )
    assert importlib.util.find_spec("torch") is not None
