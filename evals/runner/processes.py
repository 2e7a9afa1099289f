"""Lightning's Trainer for a run: in this process, or in one for each device."""

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from torch.multiprocessing.spawn import ProcessRaisedException

from cdkit.errors import CdkitError
from cdkit.evals.runner.chosen_model import AUTO
from cdkit.evals.runner.lightning_module import AnsweringModule, RunJob
from cdkit.evals.runner.run_settings import Resources
from cdkit.pretrained import device_of

PATIENCE = timedelta(days=30)
"""How long a process waits for others to finish their share; torch's default is half an hour."""
KINDS = ("cpu", "cuda", "mps")
"""Devices that Lightning knows by torch's name; of others it finds its own."""
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
    finally:
        module.close()
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


def _known(error: ProcessRaisedException, job: RunJob) -> CdkitError | None:
    """What the user can mend, out of the traceback of another process."""
    last = str(error).strip().splitlines()[-1]
    kind, _, message = last.partition(": ")
    if kind == f"{CdkitError.__module__}.{CdkitError.__name__}":
        return CdkitError(message)
    if kind.endswith("OutOfMemoryError"):
        return CdkitError(_no_memory(job))
    return None


def _no_memory(job: RunJob) -> str:
    return (
        f"the device ran out of memory with --batch-size {job.resources.batch_size}; what was "
        "answered is kept: go on with --resume and a smaller --batch-size"
    )
