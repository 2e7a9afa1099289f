"""One process of a run: it loads the model, answers its share of the batches and writes them.

Lightning starts the processes and feeds the batches; no answer depends on how many there are.
"""

import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Mapping
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

from cdkit.errors import CdkitError
from cdkit.evals.runner.answer_engine import AnswerEngine, Generated
from cdkit.evals.runner.answering import Answering
from cdkit.evals.runner.batches import BatchPlan, GroupWork, plan_batches, shard
from cdkit.evals.runner.checkpoint_settings import notes, recorded
from cdkit.evals.runner.engines import Engines
from cdkit.evals.runner.fingerprints import differing
from cdkit.evals.runner.journal import VERSION, Journal, JournalRow, JournalWriter, file_name
from cdkit.evals.runner.loading import BatchDataset, BatchLoader, PreparedBatch, prompt_lengths
from cdkit.evals.runner.modes import BEAM
from cdkit.evals.runner.progress import Stages, progress_bars
from cdkit.evals.runner.refusals import refusals
from cdkit.evals.runner.resources import Resources
from cdkit.evals.runner.stopping import GRACE_OF_STARTED, stopped_by_signals
from cdkit.evals.runner.workload import Workload
from cdkit.interfaces.sample import Answer

STAGE = "answers"


@dataclass(frozen=True, eq=False)
class RunJob:
    """What every process that answers for one model is given.

    Args:
        engines: How the model is loaded, and how it decodes.
        workload: What is asked; only the first process needs its demand.
        resources: What decides the speed.
        folder: The run's folder.
        settings: Plain data for loggers.
        journal: The answers so far; None in a process that another one leads.
        base: Hash of the method without which the run has no results: where the model cannot run
            it, the run ends before its first answer. Empty where other models have results then.
        retry_errors: Whether samples that failed are tried again.
        threads: torch's threads while the run lasts; 0 leaves them as they are.
        bar: Whether to show progress.
        title: What the progress is called.
        silence: Called first in each process: keeps libraries out of the output.
    """

    engines: Engines
    workload: Workload
    resources: Resources
    folder: Path
    settings: Mapping[str, Any]
    journal: Journal | None
    base: str = ""
    retry_errors: bool = False
    threads: int = 0
    bar: bool = False
    title: str = STAGE
    silence: Callable[[], None] | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)  # in a process that was started just now
        if self.silence is not None:
            self.silence()

    @property
    def journals(self) -> Path:
        return self.folder / "journal"

    @property
    def model(self) -> str:
        """The model's name in the journal."""
        return self.engines.chosen.name


@dataclass(frozen=True)
class RunPlan:
    """What the first process sends to the others."""

    journals: Path
    piece: int
    work: tuple[BatchPlan, ...]
    facts: Mapping[str, Any]
    """Of the model, for the heads of the journals."""
    refused: Mapping[str, str]
    """Hash of a method that the model cannot run -> why."""


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
        if self.job.threads:
            self._open.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(self.job.threads)
        self._engine = self._load()
        self._answering = Answering(self._engine, self.job.workload.variants)
        trainer = self.trainer
        made_here = self._plan() if trainer.is_global_zero else None
        plan: Any = trainer.strategy.broadcast(made_here)  # the first process's
        self._share = shard(plan.work, trainer.global_rank, trainer.world_size)
        path = plan.journals / file_name(plan.piece, trainer.global_rank)
        self._writer = JournalWriter(path, self._head(plan))
        if trainer.is_global_zero:
            for logger in trainer.loggers:  # here: a logger may live in one process alone
                facts = dict(self.job.settings)
                logger.log_hyperparams(facts | {"batch_size": self.job.resources.batch_size})
        self._open.callback(self._writer.close)
        self._stages = Stages()
        if self.job.bar and trainer.is_global_zero:
            self._stages = self._open.enter_context(progress_bars(Console(stderr=True)))
        self._stages.start(self.job.title, sum(work.answers for work in self._share))
        self._answered = 0

    def on_predict_start(self) -> None:
        """Lightning has set a handler of its own by now, which goes on and waits for the others."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def predict_dataloader(self) -> DataLoader[PreparedBatch]:
        return BatchLoader(
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
        """Answer a batch group by group; what was answered before is on the disk by then."""
        self._check_parent()
        inputs = self._engine.moved(ready.inputs)
        for plan in ready.work.groups:
            began = self._clock()
            made = self._made(plan, ready, inputs)
            share = (self._clock() - began) / max(1, len(made))
            rows = [self._row(plan, place, ready, made, share) for place in sorted(plan.wanted)]
            self._writer.add(rows)
            self._answered += len(rows)
            self._stages.advance(self.job.title, len(rows))
        self._log()
        return len(ready.work.groups)

    def _clock(self) -> float:
        """Seconds, as they would be if the encoder ran for each method and each batch."""
        return perf_counter() + self._engine.seconds_saved

    def _made(
        self, plan: GroupWork, ready: PreparedBatch, inputs: Mapping[str, Any]
    ) -> dict[tuple[int, int], Generated | CdkitError]:
        if not ready.kept:
            return {}
        questions = [ready.work.questions[index] for index in ready.kept]
        made = self._answering.answers(plan.group, questions, inputs)
        return {(ready.kept[i], j): one for (i, j), one in made.items()}

    def _row(
        self,
        plan: GroupWork,
        place: tuple[int, int],
        ready: PreparedBatch,
        made: Mapping[tuple[int, int], Generated | CdkitError],
        seconds: float,
    ) -> JournalRow:
        index, entry = place
        method, decode = plan.group.asked[entry]
        keyed: dict[str, Any] = {
            "model": self.job.model,
            "question": ready.work.keys[index],
            "method": method,
            "mode": decode.mode,
            "seed": decode.seed,
            "batch": ready.work.name,
            "at": round(perf_counter() - self._began, 3),
        }
        if index in ready.errors:
            return JournalRow(**keyed, error=ready.errors[index])
        one = made[place]
        if isinstance(one, CdkitError):
            return JournalRow(**keyed, error=str(one))
        score = one.yes_score if ready.work.questions[index].yes_no else None
        answer = Answer(one.text, score, one.truncated, one.tokens)
        return JournalRow(
            **keyed,
            **vars(answer),
            margin=one.margin,
            seconds=round(seconds, 6),
            shared=len({name for name, _ in plan.group.asked}) > 1,
        )

    def teardown(self, stage: str) -> None:
        """Wait for the others: also of a process that had nothing to do, whose loop never began."""
        self.close()  # on the disk before the others learn that all is answered
        self.trainer.strategy.barrier("all answered")

    def close(self) -> None:
        """Close what this process has open; Lightning does not call a module after an error."""
        self._open.close()

    def _load(self) -> AnswerEngine:
        engines = self.job.engines
        engine = engines.at(self.trainer.strategy.root_device)
        if self.job.bar and self.trainer.is_global_zero:
            screen = Console(stderr=True, highlight=False, soft_wrap=True)
            kept = "; settings.json and manifest.json hold it, and answers have no margins"
            beams = any(
                decode.mode == BEAM
                for asked in self.job.workload.demand.values()
                for decodes in asked.values()
                for decode in decodes
            )
            for line in (
                engines.chosen.told(engine.model),
                *notes(engine.model, beams=beams, kept=kept),
            ):
                screen.print(line, markup=False)
        return engine

    def _plan(self) -> RunPlan:
        job, engine = self.job, self._engine
        assert job.journal is not None
        facts = model_facts(engine, job.workload) | {"unmatched": list(job.engines.unmatched)}
        check_model(job.journal, job.model, facts)
        refused = refusals(self._answering, job.workload)
        if job.base in refused:
            raise cannot_run(job.model, job.workload.methods[job.base].name, refused[job.base])
        work = plan_batches(
            job.workload,
            prompt_lengths(list(job.workload.demand), engine),
            job.resources.batch_size,
            model=job.model,
            rows=job.journal.rows,
            first_step=job.workload.first_token and not engine.adjusts_logits,
            without=refused,
            retry=job.retry_errors,
        )
        return RunPlan(job.journals, job.journal.pieces + 1, tuple(work), facts, refused)

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
            "model": {"name": self.job.model, **plan.facts},
            "refused": dict(plan.refused),
        }

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


def cannot_run(model: str, base: str, why: str) -> CdkitError:
    """The error of a run that could show nothing."""
    return CdkitError(f"{model} cannot run {base}, which every difference is taken to: {why}")


def device_name(device: torch.device) -> str:
    """With the card's name: another card rounds otherwise."""
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"{device}{name}"


def model_facts(engine: AnswerEngine, workload: Workload) -> dict[str, Any]:
    """What a manifest records of the model and of the prompt."""
    model, first = engine.model, next(iter(workload.demand))
    return {
        "type": model.config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "revision": getattr(model.config, "_commit_hash", None),
        "prompt": engine.prompt(first.prompt),
        "padding": engine.processor.tokenizer.padding_side,
        "yes_tokens": list(engine.yes_ids),
        "no_tokens": list(engine.no_ids),
        "image_processor": type(getattr(engine.processor, "image_processor", None)).__name__,
        "generation": recorded(model.generation_config),
    }


def check_model(journal: Journal, name: str, facts: Mapping[str, Any]) -> None:
    """Raise where the model is not as the pieces before had it."""
    for head in journal.heads:
        if head["model"].get("name") != name:
            continue
        # a piece of before a fact was recorded says nothing of it
        known = {name: value for name, value in facts.items() if name in head["model"]}
        recorded_then = {key: value for key, value in head["model"].items() if key != "name"}
        for key, (was, now) in differing(recorded_then, known).items():
            raise CdkitError(
                f"the run was begun with a model whose {key} was {was!r}, and now is {now!r}: "
                "load the same (as with --dtype), or begin anew under another --name"
            )


def _as_it_is(batch: Any) -> Any:
    return batch
