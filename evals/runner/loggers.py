"""TensorBoard and Weights & Biases by Lightning's loggers: optional, and missed in one line."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from cdkit.errors import CdkitError
from cdkit.evals.runner.fingerprints import short_hash
from cdkit.registry import unknown

LOGGERS = ("tensorboard", "wandb")


def check_loggers(names: Sequence[str]) -> None:
    """Raise for an unknown name, and where a package is not installed."""
    for name in names:
        if name not in LOGGERS:
            raise CdkitError(unknown("logger", name, LOGGERS))
        if find_spec(name) is None:
            raise CdkitError(
                f"--loggers {name} needs the package {name}: pip install 'cdkit[{name}]', or "
                "leave it out"
            )


def make_loggers(names: Sequence[str], folder: Path) -> list[Logger]:
    """One of each, writing into the run's folder."""
    check_loggers(names)
    found: list[Logger] = []
    for name in names:
        if name == "tensorboard":
            logger: Logger = TensorBoardLogger(folder, name="tensorboard", version="")
        else:
            # the same run wherever it goes on: after a kill, and after the processes have joined
            run = short_hash(str(folder.resolve()))
            logger = WandbLogger(name=folder.name, save_dir=folder, id=run, resume="allow")
        found.append(logger)
    return found


def log_metrics(loggers: Sequence[Logger], scores: Sequence[Mapping[str, Any]], step: int) -> None:
    """The mean of each metric at the end, as PART/METRIC; where several methods or models ran, the
    names of what there is more than one of stand before it.
    """
    several = [key for key in ("model", "method", "mode") if len({s[key] for s in scores}) > 1]
    flat = {
        "/".join([*(str(score[key]) for key in several), str(score["part"]), name]): value
        for score in scores
        for name, value in score["mean"].items()
    }
    for logger in loggers:
        logger.log_metrics(flat, step)
        logger.finalize("success")
