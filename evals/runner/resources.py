"""What decides only a run's speed: batch size, processes, devices."""

from dataclasses import dataclass
from typing import Literal, get_args

from cdkit.errors import CdkitError
from cdkit.evals.runner.chosen_model import AUTO
from cdkit.registry import unknown

Start = Literal["spawn", "fork"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]


@dataclass(frozen=True)
class Resources:
    """What decides only a run's speed.

    Args:
        batch_size: Questions answered together.
        devices: Processes on each machine, each with one device.
        nodes: Machines.
        accelerator: As PyTorch Lightning names it: "auto", "cpu", "gpu", "cuda" or "mps"; other
            than "auto", it is taken in place of `device`.
        device: "auto" (the accelerator there is, else the CPU), "cpu", "cuda", "cuda:1" or "mps".
        device_map: As in `from_pretrained`, such as "auto": one model on all devices of the
            machine, in one process.
        workers: Processes that load images in advance, for each device.
        start: How the processes of several devices start. "fork" is quicker, but only for a program
            that has used neither a GPU nor torch's threads yet, which do not survive it.

    Raises:
        CdkitError: A value is not allowed.
    """

    batch_size: int = 8
    devices: int = 1
    nodes: int = 1
    accelerator: str = "auto"
    workers: int = 0
    start: Start = "spawn"
    device: str = AUTO
    device_map: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "devices", "nodes"):
            if getattr(self, name) < 1:
                option = f"--{name.replace('_', '-')}"
                raise CdkitError(f"{option} is {getattr(self, name)}: give 1 or more")
        if self.workers < 0:
            raise CdkitError(f"--workers is {self.workers}: give 0 or more")
        if self.accelerator not in get_args(Accelerator):
            raise CdkitError(unknown("--accelerator", self.accelerator, get_args(Accelerator)))
        if AUTO not in (self.accelerator, self.device):
            raise CdkitError(
                f"--accelerator {self.accelerator} and --device {self.device}: give --device alone"
            )
        if ":" in self.device and self.devices * self.nodes > 1:
            raise CdkitError(
                f"--device {self.device} is one device, and {self.devices * self.nodes} processes "
                f"need one each: give --device {self.device.partition(':')[0]}"
            )
        if self.device_map is not None and (
            self.devices * self.nodes > 1 or {self.device, self.accelerator} != {AUTO}
        ):
            raise CdkitError(
                f"--device-map {self.device_map} spreads one model over devices in one process: "
                "leave out --devices, --nodes and --device"
            )
