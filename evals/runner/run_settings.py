"""The settings of a run: what decides its answers, and what only decides its speed."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import cdkit
from cdkit.errors import CdkitError, check_temperature
from cdkit.evals.runner.chosen_model import AUTO, ChosenModel, check_dtype
from cdkit.evals.runner.modes import BEAM, DECODE, GREEDY, SAMPLE
from cdkit.methods.method import Method
from cdkit.methods.presets import build
from cdkit.registry import unknown

Start = Literal["spawn", "fork"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]


LARGEST_SEED = 2**63 - 1
MOST_BEAMS = 1000


@dataclass(frozen=True)
class RunSettings:
    """What decides a run's answers; a run can be resumed only with the same settings.

    Args:
        method: A preset's name or a .toml file.
        bench: "pope", "chair", "mme" or "amber".
        data: The data folder.
        model: "micro", a checkpoint's folder, or a name on the hub.
        set: Parameters of the method that differ from the preset.
        dtype: The precision of the model; "auto": the checkpoint's.
        revision: The branch, tag or commit of a model on the hub.
        load_in_4bit: Whether bitsandbytes keeps the weights in four bits.
        only: Names of the parts to ask; empty: all.
        mode: "greedy", "sample" or "beam".
        seeds: Mode "sample": each question is answered under each seed.
        temperature: Mode "sample": what logits are divided by.
        top_k: Mode "sample": keep the k most probable tokens.
        top_p: Mode "sample": keep the smallest set of tokens whose probabilities sum to this.
        beams: Mode "beam": the number of beams.
        limit: Ask only about the first so many images of each part.
        max_new_tokens: The token limit of an answer; by default the benchmark's.

    Raises:
        CdkitError: A value is not allowed, or does not belong to the mode.
    """

    method: str
    bench: str
    data: str
    model: str = "micro"
    set: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = AUTO
    revision: str | None = None
    load_in_4bit: bool = False
    only: tuple[str, ...] = ()
    mode: str = GREEDY
    seeds: tuple[int, ...] = (0,)
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    beams: int = 5
    limit: int | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in DECODE:
            raise CdkitError(unknown("--mode", self.mode, DECODE))
        check_dtype("--dtype", self.dtype)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise CdkitError(f"--seeds are whole numbers from 0 on, none twice, got {self.seeds}")
        if max(self.seeds) > LARGEST_SEED:
            raise CdkitError(f"--seeds go up to {LARGEST_SEED} (63 bits), got {max(self.seeds)}")
        check_temperature("--temperature", self.temperature)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise CdkitError(f"--top-p must be in (0, 1], got {self.top_p!r}")
        if self.beams < 2:
            raise CdkitError(f"--beams is {self.beams}: a beam search has 2 or more")
        if self.beams > MOST_BEAMS:
            raise CdkitError(
                f"--beams is {self.beams}: each is a row of the batch, so give {MOST_BEAMS} at most"
            )
        for name in ("top_k", "limit", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CdkitError(f"--{name.replace('_', '-')} is {value}: give 1 or more")
        for mode, names in MODE_OPTIONS.items():
            for name in names:
                if self.mode != mode and getattr(self, name) != DEFAULTS[name]:
                    option = f"--{name.replace('_', '-')}"
                    raise CdkitError(
                        f"{option} belongs to --mode {mode}, and the mode is {self.mode}: "
                        f"leave {option} out, or give --mode {mode}"
                    )

    @property
    def chosen(self) -> ChosenModel:
        """The model and how it is loaded."""
        return ChosenModel(self.model, self.dtype, self.revision, self.load_in_4bit)

    @property
    def draws(self) -> tuple[int | None, ...]:
        """The seeds that each question is answered under; (None,) if nothing is drawn."""
        return self.seeds if self.mode == SAMPLE else (None,)

    @property
    def shown_method(self) -> str:
        """The method as tables call it: the preset's name with what was set."""
        parameters = ", ".join(f"{key} {value}" for key, value in self.set.items())
        return f"{self.method}, {parameters}" if parameters else self.method

    def load_method(self) -> Method:
        """The method, checked against the mode."""
        method = cdkit.load(self.method, **self.set)
        # sampling is greedy search over noisy logits, so it needs both
        modes = [m for m in DECODE if m in method.modes and (m != SAMPLE or GREEDY in method.modes)]
        if self.mode not in modes:
            raise CdkitError(
                f"{self.method} is not defined for --mode {self.mode}, but for "
                f"{' and '.join(modes) or 'modes that need Python'}"
            )
        return method

    def benchmark_options(self) -> dict[str, Any]:
        """Fields of the benchmark that are not its own defaults."""
        return {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `settings_of` reads it back."""
        data = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}


DEFAULTS = {f.name: f.default for f in fields(RunSettings)}
OPTIONAL = {name: value for name, value in DEFAULTS.items() if value is not MISSING}
MODE_OPTIONS: Mapping[str, tuple[str, ...]] = {
    SAMPLE: ("seeds", "temperature", "top_k", "top_p"),
    BEAM: ("beams",),
}


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


def settings_of(data: Mapping[str, Any], where: str) -> RunSettings:
    """Settings from plain data; every key is checked."""
    lacking = [name for name in ("method", "bench", "data") if not data.get(name)]
    if lacking:
        raise CdkitError(
            f"{where}: give {' and '.join('--' + name for name in lacking)} (cdkit eval --help)"
        )
    made = build(RunSettings, data, where)
    assert isinstance(made, RunSettings)
    return made
