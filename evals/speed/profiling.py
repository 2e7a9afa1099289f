"""Where the time of an answer goes: one more answer under torch's profiler, summed by kind."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from cdkit.evals.speed.bench_runners import BenchRunner
from cdkit.evals.speed.variants import VariantName

KINDS = ("linear", "attention", "element-wise", "copies", "reductions", "other")
NAMED: Mapping[str, str] = {
    "linear": "linear mm addmm mv addmv convolution _convolution conv2d mkldnn_convolution "
    "cudnn_convolution _linear_pointwise",
    "attention": "bmm baddbmm",
    "copies": "cat stack copy_ to _to_copy clone contiguous repeat repeat_interleave pad flip tril "
    "triu constant_pad_nd index index_select index_put_ _index_put_impl_ gather embedding scatter "
    "scatter_ scatter_add scatter_add_ masked_scatter masked_scatter_ masked_select nonzero",
    "reductions": "sum mean amax amin max min argmax argmin any all topk sort cumsum cummax norm "
    "linalg_vector_norm var_mean multinomial",
    "element-wise": "softmax _softmax log_softmax _log_softmax layer_norm native_layer_norm "
    "rms_norm _fused_rms_norm fill_ zero_ __and__ __or__",
}
"""Kind -> operators of it; those that torch itself calls pointwise are element-wise, too."""
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal")
"""Operators for which the host needs a number that a GPU has yet to compute."""


@functools.cache
def kind_of(operator: str) -> str:
    """What an operator, such as "aten::mm", does for its time."""
    name = operator.rsplit("::", 1)[-1]
    if "attention" in name:
        return "attention"
    for kind, names in NAMED.items():
        if name in names.split():
            return kind
    if operator.startswith("aten::") and any(map(_pointwise, (name, name.removesuffix("_")))):
        return "element-wise"
    return "other"


def _pointwise(name: str) -> bool:
    """What torch says of it; of some operators in place it says nothing."""
    packet = getattr(torch.ops.aten, name, None)
    overloads = packet.overloads() if packet else ()
    return any(torch.Tag.pointwise in getattr(packet, own).tags for own in overloads)


@dataclass(frozen=True)
class OperatorCall:
    """One call of an operator on the host, from nanosecond to nanosecond."""

    name: str
    start: int
    stop: int
    number: int = 0
    """By which a kernel knows it."""


@dataclass(frozen=True)
class Kernel:
    """Work on a GPU."""

    caller: int
    """The number of the call that launched it."""
    nanoseconds: int


@dataclass(frozen=True, eq=False)
class Profile:
    """One answer under the profiler, which makes every call a little longer."""

    seconds: float
    """The whole answer."""
    tokens: int
    """Tokens of a row; all rows of the batch are generated together."""
    calls: int
    """Operators called by Python, without those that operators call."""
    waits: int
    """How often the host waited for a number or, on a CPU, would wait for a GPU."""
    host: Mapping[str, float]
    """Kind -> seconds in operators of this kind, without those that they call."""
    device: Mapping[str, float] | None = None
    """The same of the kernels on a GPU; None on a CPU."""
    kernels: int | None = None
    """How many of them ran, copies and fills among them; None on a CPU."""

    @property
    def shares(self) -> dict[str, float]:
        """Kind -> share of the answer's time (the GPU's, if any); with `rest` they sum to 1."""
        seconds = self.host if self.device is None else self.device
        return {kind: seconds[kind] / self.seconds for kind in KINDS}

    @property
    def rest(self) -> float:
        """The share of the time in which no operator runs; on a GPU, no kernel."""
        return 1 - sum(self.shares.values())

    @property
    def python(self) -> float:
        """The share of the time that the host spends outside of operators."""
        return 1 - sum(self.host.values()) / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "calls_per_token": self.calls / self.tokens,
            "host_waits_per_token": self.waits / self.tokens,
            "host_seconds": dict(self.host),
            "device_seconds": None if self.device is None else dict(self.device),
            "shares": self.shares,
            "rest_share": self.rest,
            "python_share": self.python,
        }


def profiles(
    runners: Mapping[VariantName, BenchRunner],
    device: torch.device,
    *,
    new_tokens: int,
    advance: Callable[[], None] = lambda: None,
) -> dict[VariantName, Profile]:
    """One more answer of each, none of which is timed for anything else."""
    found = {}
    for name, runner in runners.items():
        with runner.ready():
            work = functools.partial(runner.answer, new_tokens, lambda: None)
            found[name] = profiled(work, device, tokens=new_tokens)
        advance()
    return found


def profiled(work: Callable[[], object], device: torch.device, *, tokens: int) -> Profile:
    """What `work`, which makes `tokens` tokens, does."""
    # its library reports start and stop on stderr; read when it is first used
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profiler(activities=activities) as seen:
        start = perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize(device)
        seconds = perf_counter() - start
    # torch's own events know as much and take minutes to make
    recorded: Any = seen.profiler
    return summed(recorded.kineto_results.events(), seconds=seconds, tokens=tokens, cuda=cuda)


def summed(events: Iterable[Any], *, seconds: float, tokens: int, cuda: bool) -> Profile:
    """From the profiler's raw events."""
    threads: dict[int, list[OperatorCall]] = {}
    kernels, synchronised = list[Kernel](), 0
    for event in events:
        name, start, length = event.name(), event.start_ns(), event.duration_ns()
        if event.device_type().name == "CUDA":
            kernels.append(Kernel(event.linked_correlation_id(), length))
        elif "::" in name:
            call = OperatorCall(name, start, start + length, event.correlation_id())
            threads.setdefault(event.start_thread_id(), []).append(call)
        elif name.startswith("cuda") and name.endswith("Synchronize"):
            synchronised += 1
    host, outermost, calls = Counter[str](), 0, Counter[str]()
    for own in threads.values():
        times, count = self_times(own)
        host.update(times)
        outermost += count
        calls.update(call.name.split("::")[-1] for call in own)
    kinds = {call.number: kind_of(call.name) for own in threads.values() for call in own}
    device = Counter[str]()
    for kernel in kernels:
        device[kinds.get(kernel.caller, "other")] += kernel.nanoseconds
    # one was our own, at the end
    waits = synchronised - 1 if cuda else sum(calls[name] for name in WAITING)
    return Profile(
        seconds=seconds,
        tokens=tokens,
        calls=outermost,
        waits=waits,
        host={kind: host[kind] / 1e9 for kind in KINDS},
        device={kind: device[kind] / 1e9 for kind in KINDS} if cuda else None,
        kernels=len(kernels) if cuda else None,
    )


def self_times(calls: Iterable[OperatorCall]) -> tuple[Counter[str], int]:
    """(Kind -> nanoseconds outside of inner calls, how many calls are not inside of another).

    Calls of one thread, which are nested or apart.
    """
    times, outermost = Counter[str](), 0
    around = list[OperatorCall]()
    for call in sorted(calls, key=lambda c: (c.start, -c.stop)):
        while around and around[-1].stop <= call.start:
            around.pop()
        times[kind_of(call.name)] += call.stop - call.start
        if around:
            times[kind_of(around[-1].name)] -= call.stop - call.start
        else:
            outermost += 1
        around.append(call)
    return times, outermost
