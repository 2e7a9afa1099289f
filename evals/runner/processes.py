"""Lightning's Trainer for a run: in this process, or in one for each device."""

import multiprocessing
import os
import pickle
import re
import signal
import socket
import sys
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from time import monotonic

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from cdkit.errors import CdkitError
from cdkit.evals.runner.chosen_model import AUTO
from cdkit.evals.runner.lightning_module import AnsweringModule, RunJob
from cdkit.evals.runner.resources import Resources
from cdkit.evals.runner.stopping import Stopped, ended_by, lost, stopping_signal
from cdkit.pretrained import device_of
from cdkit.registry import UnknownNameError

PATIENCE = timedelta(days=30)
"""How long a process waits for others to finish their share; torch's default is half an hour."""
PATIENCE_AT_END = 3.0
"""Seconds that started processes have to end by themselves."""
KINDS = ("cpu", "cuda", "mps")
"""Devices that Lightning knows by torch's name; of others it finds its own."""
KNOWN = [f"{kind.__module__}.{kind.__name__}" for kind in (CdkitError, UnknownNameError)]
"""What the user can mend, as a traceback names it."""
RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def follower(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether another process leads: this one was started beside it (torchrun, srun) or elsewhere.

    NODE_RANK is what Lightning reads where the command is started by hand on each machine.
    """
    ranks = [environment.get(name, "0") for name in (*RANKS, "NODE_RANK", "GROUP_RANK")]
    return any(rank != "0" for rank in ranks)


def started_outside(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started a process for each device already."""
    return "TORCHELASTIC_RUN_ID" in environment or "SLURM_NTASKS" in environment


def predict(job: RunJob, loggers: Sequence[Logger]) -> None:
    """Answer what is left; returns when every process has, or raises what stopped one of them."""
    if job.silence is not None:
        job.silence()  # by now Lightning is imported, which sets its own logging up
    resources = job.resources
    kind, devices, asked = _device(resources)
    many = resources.devices * resources.nodes > 1
    if many and kind == "cpu" and resources.nodes == 1:
        names = [name for _, name in socket.if_nameindex()]
        if "lo" in names:  # else gloo looks the machine's own name up, which may lead nowhere
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    start = "popen" if started_outside() else resources.start
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer = pl.Trainer(
            accelerator=kind,
            devices=devices,
            num_nodes=resources.nodes,
            strategy=DDPStrategy(start_method=start, timeout=PATIENCE) if many else "auto",
            logger=list(loggers) or False,
            use_distributed_sampler=False,  # it repeats samples to make shares equal
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=job.folder,
        )
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        raise CdkitError(
            f"{asked} --devices {resources.devices} cannot be had here: "
            f"{' '.join(str(error).split())}"
        ) from None
    module = AnsweringModule(job)
    others = set(multiprocessing.active_children())
    try:
        trainer.predict(module, return_predictions=False)
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):  # which Lightning turns into this
            raise KeyboardInterrupt from None
        raise
    except torch.OutOfMemoryError as error:
        raise CdkitError(_no_memory(job)) from error
    except ProcessRaisedException as error:
        raise _known(error, job) or error from None
    except ProcessExitedException as error:
        if by := stopping_signal(error.exit_code):
            raise Stopped(by) from None
        raise lost(_end_of(error)) from None
    except (pickle.UnpicklingError, EOFError):  # of the file in which it would have told
        raise lost(
            "a process of the run has ended and could not say why; is a disk full?"
        ) from None
    except RuntimeError as error:
        if what := _lost_process(str(error)):
            raise lost(what) from error
        raise
    finally:
        module.close()
        _end({*multiprocessing.active_children()} - others)
        signal.signal(signal.SIGINT, interrupt)
        sys.stderr.flush()


def _device(resources: Resources) -> tuple[str, int | list[int], str]:
    """Lightning's accelerator and devices, and the option that asked for them."""
    if resources.accelerator != AUTO:
        return resources.accelerator, resources.devices, f"--accelerator {resources.accelerator}"
    device = device_of(resources.device)
    kind = device.type if device.type in KINDS else AUTO
    devices: int | list[int] = resources.devices
    if device.index is not None:
        devices = [device.index]
    return kind, devices, f"--device {resources.device}"


def _end(processes: Collection[BaseProcess]) -> None:
    """End what this process has started: Python would wait for it on its way out."""
    for process in processes:
        process.terminate()
    until = monotonic() + PATIENCE_AT_END
    for process in processes:
        process.join(max(0.0, until - monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _end_of(error: ProcessExitedException) -> str:
    return f"process {error.error_index} of the run {ended_by(error.exit_code)}"


def _lost_process(message: str) -> str | None:
    """What an error says of another process that is gone; None for any other error."""
    if re.search(r"gloo|nccl|connection (closed|reset|refused)|TCPStore", message, re.IGNORECASE):
        return "another process of the run is gone, or cannot be reached"
    return None


def _known(error: ProcessRaisedException, job: RunJob) -> CdkitError | None:
    """What the user can mend, out of the traceback of another process."""
    lines = str(error).strip().splitlines()
    for line in reversed(lines):  # notes may stand below the error
        kind, _, message = line.partition(": ")
        if kind in KNOWN:
            return CdkitError(message)
        if kind.endswith("OutOfMemoryError"):
            return CdkitError(_no_memory(job))
    what = _lost_process(lines[-1])
    return lost(what) if what else None


def _no_memory(job: RunJob) -> str:
    return (
        f"the device ran out of memory with --batch-size {job.resources.batch_size}; what was "
        "answered is kept: go on with --resume and a smaller --batch-size"
    )
