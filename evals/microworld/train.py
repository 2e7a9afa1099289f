"""One seeded command from nothing to the embedded checkpoint (Lightning, CPU)."""

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from rich.console import Console
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration

from cdkit.evals.microworld.checkpoint import (
    build_model,
    build_tokenizer,
    check_target,
    save,
)
from cdkit.evals.microworld.packing import PackedLessons, Words
from cdkit.evals.microworld.stages import LanguageStage, Lessons, Stage, VisionStage
from cdkit.evals.microworld.text import vocabulary
from cdkit.evals.microworld.world import WORLD, World
from cdkit.evals.runner.progress import ProgressLines, Stages, draws_bars


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a checkpoint beside the world. The defaults made the shipped one."""

    seed: int = 0
    vision: Stage = field(default_factory=lambda: Stage(2500, 64, rate=2e-3, clean=0.2))
    language: Stage = field(
        default_factory=lambda: Stage(3000, 16, rate=1.5e-3, precision="bf16-mixed", clean=0.35)
    )
    threads: int = 1


RECIPE = Recipe()
QUICK = Recipe(
    vision=Stage(30, 16, rate=2e-3, clean=1.0), language=Stage(30, 8, rate=1.5e-3, clean=1.0)
)
"""A minute's smoke run: it proves the path, the model it leaves knows nothing."""


@dataclass(frozen=True)
class Training:
    """What a run left: the checkpoint, each stage's loss by step and its wall time in seconds."""

    folder: Path
    losses: dict[str, tuple[float, ...]]
    seconds: dict[str, float]


def train_micro(
    output: Path | str,
    *,
    world: World = WORLD,
    recipe: Recipe | None = None,
    quick: bool = False,
    progress: bool = True,
) -> Training:
    """Train a micro LVLM on `world` and write it to the folder `output`, replacing what is there.

    A usable checkpoint is written every 500 steps of the second stage. `quick` takes the recipe
    `QUICK`. On one machine the same recipe and library versions give the same weights bit for bit;
    another machine's arithmetic differs in the last bits, so its figures differ a little.
    """
    recipe = recipe or (QUICK if quick else RECIPE)
    torch.set_num_threads(recipe.threads)
    folder = Path(output)
    check_target(folder)
    model = build_model(world, recipe.seed)
    saving = _Saving(model, world, folder)
    stages = {"vision": teach_vision, "language": teach_language}
    losses, seconds = {}, {}
    for name, teach in stages.items():
        start = time.monotonic()
        losses[name] = teach(model, world, recipe, progress, [saving] if name == "language" else [])
        seconds[name] = time.monotonic() - start
    save(model, world, folder)
    return Training(folder, losses, seconds)


def teach_vision(
    model: LlavaForConditionalGeneration,
    world: World,
    recipe: Recipe,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> tuple[float, ...]:
    """The first stage, in place; gives the loss of each step."""
    pl.seed_everything(recipe.seed + 1, verbose=False)
    lessons = Lessons(world, words_of(world), recipe.vision, recipe.seed + 1)
    stage = VisionStage(model, world, recipe.vision)
    return _fit(stage, DataLoader(lessons, batch_size=None), progress, callbacks)


def teach_language(
    model: LlavaForConditionalGeneration,
    world: World,
    recipe: Recipe,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> tuple[float, ...]:
    """The second stage, in place; gives the loss of each step."""
    pl.seed_everything(recipe.seed + 2, verbose=False)
    words = words_of(world)
    lessons = Lessons(world, words, recipe.language, recipe.seed + 2)
    stage = LanguageStage(model, world, recipe.language, words)
    return _fit(stage, DataLoader(lessons, batch_size=None), progress, callbacks)


def words_of(world: World) -> Words:
    tokenizer = build_tokenizer(world)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    return Words(encode, vocabulary(world))


def _fit(
    taught: VisionStage | LanguageStage,
    lessons: DataLoader[PackedLessons],
    progress: bool,
    callbacks: Sequence[Callback],
) -> tuple[float, ...]:
    losses = _Losses()
    screen = Console(stderr=True)
    draws = progress and draws_bars(screen)
    shown: list[Callback] = [TQDMProgressBar(refresh_rate=10)] if draws else []
    if progress and not draws:
        shown = [_Lines(Stages(ProgressLines(screen)), type(taught).__name__)]
    precision: Any = taught.stage.precision
    taught.train()
    with warnings.catch_warnings(), _quiet():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\)")
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=taught.stage.steps,
            max_epochs=1,
            precision=precision,
            gradient_clip_val=1.0,
            callbacks=[losses, *shown, *callbacks],
            enable_progress_bar=draws,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
        )
        trainer.fit(taught, lessons)
    taught.model.train(False)
    return tuple(losses.seen)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's lines about devices, and its advertisements, stay unsaid."""
    packages = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
    loggers = [logging.getLogger(f"{package}.utilities.rank_zero") for package in packages]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


class _Lines(Callback):
    """Says now and then how many steps are done, where no bar can be drawn."""

    def __init__(self, stages: Stages, name: str) -> None:
        self._stages, self._name = stages, name

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stages.start(self._name, int(trainer.max_steps))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: PackedLessons,
        batch_idx: int,
    ) -> None:
        self._stages.advance(self._name)


class _Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: PackedLessons,
        batch_idx: int,
    ) -> None:
        self.seen.append(float(trainer.callback_metrics["loss"]))


class _Saving(Callback):
    """Leaves a usable checkpoint now and then."""

    EVERY = 500

    def __init__(self, model: LlavaForConditionalGeneration, world: World, folder: Path) -> None:
        self.model, self.world, self.folder = model, world, folder

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: PackedLessons,
        batch_idx: int,
    ) -> None:
        if trainer.global_step % self.EVERY == 0:
            save(self.model, self.world, self.folder)
