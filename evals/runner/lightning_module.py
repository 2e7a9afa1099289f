"""One process of a run: it loads the model, answers its share of the batches and writes them.

Lightning starts the processes and feeds the batches; no answer depends on how many there are.
"""

import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from cdkit.errors import CdkitError, PromptError
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.batches import AskedSample, BatchPlan, plan_batches, shard
from cdkit.evals.runner.checkpoint_settings import notes, recorded
from cdkit.evals.runner.fingerprints import differing
from cdkit.evals.runner.journal import (
    VERSION,
    Journal,
    JournalRow,
    JournalWriter,
    file_name,
)
from cdkit.evals.runner.loading import BatchDataset, PreparedBatch, prompt_lengths, without
from cdkit.evals.runner.modes import BEAM
from cdkit.evals.runner.progress import Stages, progress_bars
from cdkit.evals.runner.run_settings import Resources, RunSettings
from cdkit.evals.runner.stopping import GRACE_OF_STARTED, stopped_by_signals
from cdkit.interfaces.benchmark import Answer
from cdkit.methods.method import Method

STAGE = "answers"


@dataclass(frozen=True, eq=False)
class RunJob:
    """What every process of a run is given; only the first has a `journal`."""

    settings: RunSettings
    resources: Resources
    method: Method
    method_hash: str
    folder: Path
    tasks: tuple[AskedSample, ...]
    journal: Journal | None
    retry_errors: bool = False
    bar: bool = False
    silence: Callable[[], None] | None = None
    """Called first in each process: keeps libraries out of the output."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)  # in a process that was started just now
        if self.silence is not None:
            self.silence()

    @property
    def journals(self) -> Path:
        return self.folder / "journal"


@dataclass(frozen=True)
class RunPlan:
    """What the first process sends to the others."""

    journals: Path
    piece: int
    work: tuple[BatchPlan, ...]


class AnsweringModule(pl.LightningModule):
    """Answers batches in `Trainer.predict`; its results are on the disk, not in its return values.

    The model is loaded in `setup`, in the process that runs it, and is no part of the module.
    """

    def __init__(self, job: RunJob) -> None:
        super().__init__()
        self.job = job
        self.parent = os.getpid()
        self._open = ExitStack()
        # a process may have nothing to do: it has no batch twice, so the last ones are uneven
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def setup(self, stage: str) -> None:
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        if os.getpid() != self.parent:
            self._signals = ExitStack()  # until this process ends
            self._signals.enter_context(stopped_by_signals(GRACE_OF_STARTED))
        self._on_sigterm = signal.getsignal(signal.SIGTERM)
        self._began = perf_counter()
        self._engine = self._load()
        trainer = self.trainer
        made_here = self._plan() if trainer.is_global_zero else None
        plan: Any = trainer.strategy.broadcast(made_here)  # the first process's
        self._share = shard(plan.work, trainer.global_rank, trainer.world_size)
        path = plan.journals / file_name(plan.piece, trainer.global_rank)
        self._writer = JournalWriter(path, self._head(plan))
        if trainer.is_global_zero:
            for logger in trainer.loggers:  # here: a logger may live in one process alone
                facts = self.job.settings.to_dict()
                logger.log_hyperparams(facts | {"batch_size": self.job.resources.batch_size})
        self._open.callback(self._writer.close)
        self._stages = Stages()
        if self.job.bar and trainer.is_global_zero:
            self._stages = self._open.enter_context(progress_bars(Console(stderr=True)))
        self._stages.start(STAGE, sum(work.answers for work in self._share))
        self._answered = 0

    def on_predict_start(self) -> None:
        """Lightning has set a handler of its own by now, which goes on and waits for the others."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def predict_dataloader(self) -> DataLoader[PreparedBatch]:
        return DataLoader(
            BatchDataset(self._share, self._engine),
            batch_size=None,
            num_workers=self.job.resources.workers,
            collate_fn=_as_it_is,
        )

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        return batch  # the engine moves it

    def predict_step(self, ready: PreparedBatch, batch_idx: int) -> int:
        """Answer a batch under each seed; what was answered before is on the disk by then."""
        self._check_parent()
        work, engine, job = ready.work, self._engine, self.job
        inputs = engine.moved(ready.inputs)
        for seed in work.seeds:
            began = perf_counter()
            answers, errors = self._answers(ready, inputs, seed)
            share = (perf_counter() - began) / max(1, len(answers))
            at = round(perf_counter() - self._began, 3)
            rows = []
            for index in sorted(work.wanted):
                task = work.tasks[index]
                keyed: dict[str, Any] = {"data": task.data, "id": task.id, "seed": seed}
                keyed |= {"method": job.method_hash, "batch": work.name, "at": at}
                if index in errors:
                    rows.append(JournalRow(**keyed, error=errors[index]))
                else:
                    rows.append(JournalRow(**keyed, **answers[index], seconds=round(share, 6)))
            self._writer.add(rows)
            self._answered += len(rows)
            self._stages.advance(STAGE, len(rows))
        self._log()
        return len(work.seeds)

    def teardown(self, stage: str) -> None:
        """Wait for the others: also of a process that had nothing to do, whose loop never began."""
        self.close()  # on the disk before the others learn that all is answered
        self.trainer.strategy.barrier("all answered")

    def close(self) -> None:
        """Close what this process has open; Lightning does not call a module after an error."""
        self._open.close()

    def _load(self) -> AnswerEngine:
        settings = self.job.settings
        model, processor = settings.chosen.load(self.trainer.strategy.root_device)
        if self.job.bar and self.trainer.is_global_zero:
            screen = Console(stderr=True, highlight=False, soft_wrap=True)
            kept = "; settings.json and manifest.json hold it"
            for line in (
                settings.chosen.told(model),
                *notes(model, beams=settings.mode == BEAM, kept=kept),
            ):
                screen.print(line, markup=False)
        return AnswerEngine(
            model,
            processor,
            settings.temperature,
            num_beams=settings.beams,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )

    def _plan(self) -> RunPlan:
        job = self.job
        assert job.journal is not None
        check_model(job.journal, model_facts(self._engine, job.tasks))
        work = plan_batches(
            job.tasks,
            prompt_lengths(job.tasks, self._engine),
            job.resources.batch_size,
            method=job.method_hash,
            seeds=job.settings.draws,
            rows=job.journal.rows,
            retry=job.retry_errors,
        )
        return RunPlan(job.journals, job.journal.pieces + 1, tuple(work))

    def _head(self, plan: RunPlan) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "journal": VERSION,
            "piece": plan.piece,
            "rank": trainer.global_rank,
            "processes": trainer.world_size,
            "nodes": trainer.num_nodes,
            "batch_size": self.job.resources.batch_size,
            "retry_errors": self.job.retry_errors,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "threads": torch.get_num_threads(),
            "device": device_name(trainer.strategy.root_device),
            "model": model_facts(self._engine, self.job.tasks),
        }

    def _answers(
        self, ready: PreparedBatch, inputs: Mapping[str, Any], seed: int | None
    ) -> tuple[dict[int, dict[str, Any]], Mapping[int, str]]:
        """The answers by the index of their samples, and why the other samples have none."""
        if not ready.kept:
            return {}, ready.errors
        tasks = [ready.work.tasks[index] for index in ready.kept]
        try:
            made = self._engine.answers(
                self.job.method,
                inputs,
                [task.question.sample_id for task in tasks],
                limit=tasks[0].question.limit,
                seed=seed,
                beams=self.job.settings.mode == BEAM,
                record_margins=True,
            )
        except PromptError as error:  # the others are asked again, without these
            errors = {ready.kept[place]: reason for place, reason in error.reasons.items()}
            rest = without(ready, errors, self._engine)
            return self._answers(rest, self._engine.moved(rest.inputs), seed)
        found = {}
        for index, task, one in zip(ready.kept, tasks, made, strict=True):
            score = one.yes_score if task.question.yes_no else None
            answer = Answer(one.text, score, one.truncated, one.tokens)
            found[index] = {**vars(answer), "margin": one.margin}
        return found, ready.errors

    def _check_parent(self) -> None:
        """A process whose starter was killed stops: another run may go on in its folder."""
        if os.getpid() != self.parent and os.getppid() != self.parent:
            raise RuntimeError("the process that started this one has ended; so does this one")

    def _log(self) -> None:
        if self.trainer.loggers and self.trainer.is_global_zero:
            spent = perf_counter() - self._began
            facts = {"answers": self._answered, "answers_per_second": self._answered / spent}
            for logger in self.trainer.loggers:
                logger.log_metrics({f"progress/{k}": v for k, v in facts.items()}, self._answered)


def device_name(device: torch.device) -> str:
    """With the card's name: another card rounds otherwise."""
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"{device}{name}"


def model_facts(engine: AnswerEngine, tasks: Sequence[AskedSample]) -> dict[str, Any]:
    """What a manifest records of the model and of the prompt."""
    model = engine.model
    return {
        "type": model.config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "revision": getattr(model.config, "_commit_hash", None),
        "prompt": engine.prompt(tasks[0].question.prompt),
        "padding": engine.processor.tokenizer.padding_side,
        "yes_tokens": list(engine.yes_ids),
        "no_tokens": list(engine.no_ids),
        "image_processor": type(getattr(engine.processor, "image_processor", None)).__name__,
        "generation": recorded(model.generation_config),
    }


def check_model(journal: Journal, facts: Mapping[str, Any]) -> None:
    """Raise where the model is not as the pieces before had it."""
    for head in journal.heads:
        # a piece of before a fact was recorded says nothing of it
        known = {name: value for name, value in facts.items() if name in head["model"]}
        for name, (was, now) in differing(head["model"], known).items():
            raise CdkitError(
                f"the run was begun with a model whose {name} was {was!r}, and now is {now!r}: "
                "load the same (as with --dtype), or begin anew under another --name"
            )


def _as_it_is(batch: Any) -> Any:
    return batch
