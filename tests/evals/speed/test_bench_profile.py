"""Where the time of an answer goes: calls summed by kind, and what is shown of it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cdkit.evals import cli
from cdkit.evals.speed.profiling import (
    KINDS,
    OperatorCall,
    Profile,
    kind_of,
    profiled,
    self_times,
    summed,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("linear", "aten::linear aten::mm aten::addmm aten::mkldnn_convolution"),
        ("linear", "mkldnn::_linear_pointwise"),
        ("attention", "aten::_scaled_dot_product_flash_attention_for_cpu aten::bmm aten::baddbmm"),
        ("attention", "aten::_flash_attention_forward"),
        ("element-wise", "aten::_softmax aten::mul aten::div_ aten::silu aten::rsqrt aten::where"),
        ("element-wise", "aten::masked_fill_ aten::isneginf aten::bitwise_and aten::fill_"),
        ("copies", "aten::cat aten::copy_ aten::_to_copy aten::index aten::embedding aten::clone"),
        ("reductions", "aten::sum aten::mean aten::amax aten::max aten::argmax aten::any"),
        ("other", "aten::view aten::as_strided aten::empty aten::item somebody::silu"),
    ],
)
def test_kinds_of_operators(kind: str, names: str) -> None:
    assert {kind_of(name) for name in names.split()} == {kind}


def test_inner_calls_are_not_counted_twice() -> None:
    times, outermost = self_times(
        [
            OperatorCall("aten::linear", 0, 100),
            OperatorCall("aten::t", 5, 15),
            OperatorCall("aten::mm", 20, 90),
            OperatorCall("aten::empty", 25, 30),
            OperatorCall("aten::mul", 100, 130),
        ]
    )
    assert times == {"linear": 20 + 65, "other": 10 + 5, "element-wise": 30}
    assert outermost == 2


@st.composite
def nested(draw: st.DrawFn) -> list[OperatorCall]:
    """Calls within calls, one after the other."""
    names, calls = st.sampled_from(["aten::mm", "aten::cat", "aten::view", "aten::add"]), []

    def inside(start: int, stop: int, depth: int) -> None:
        while start < stop and draw(st.booleans()):
            start = draw(st.integers(start, stop - 1))
            end = draw(st.integers(start + 1, stop))
            calls.append(OperatorCall(draw(names), start, end))
            if depth < 3:
                inside(start, end, depth + 1)
            start = end

    inside(0, 40, 0)
    return draw(st.permutations(calls))


@given(nested())
def test_times_add_up_to_the_time_in_which_something_runs(calls: list[OperatorCall]) -> None:
    times, outermost = self_times(calls)
    assert sum(times.values()) == len({t for c in calls for t in range(c.start, c.stop)})
    assert all(seconds >= 0 for seconds in times.values()) and outermost <= len(calls)


def event(name: str, start: int, length: int, **told: Any) -> Any:
    """A raw event, as torch's profiler hands it out."""
    of = {"device": "CPU", "number": 0, "caller": 0, "thread": 1} | told
    return SimpleNamespace(
        name=lambda: name,
        start_ns=lambda: start,
        duration_ns=lambda: length,
        device_type=lambda: SimpleNamespace(name=of["device"]),
        correlation_id=lambda: of["number"],
        linked_correlation_id=lambda: of["caller"],
        start_thread_id=lambda: of["thread"],
    )


HOST = [
    event("aten::linear", 0, 300, number=1),
    event("aten::mm", 100, 100, number=2),
    event("cudaLaunchKernel", 120, 50, number=9),
    event("aten::softmax", 400, 100, number=3),
    event("aten::item", 600, 100, number=4),
    event("aten::_local_scalar_dense", 620, 50, number=5),
    event("generate", 0, 900, number=6),
    event("aten::add", 0, 200, thread=2),
]


def test_on_a_cpu() -> None:
    told = summed(HOST, seconds=1e-6, tokens=2, cuda=False)
    assert told.host == pytest.approx(
        {
            "linear": 300e-9,
            "attention": 0,
            "element-wise": 300e-9,
            "copies": 0,
            "reductions": 0,
            "other": 100e-9,
        }
    )
    assert (told.calls, told.waits, told.device, told.kernels) == (4, 1, None, None)
    assert told.rest == told.python == pytest.approx(0.3)
    assert told.to_dict()["calls_per_token"] == 2


def test_on_a_gpu_shares_are_those_of_kernels() -> None:
    """No GPU here: events as its profiler gives them stand for one."""
    device = {"device": "CUDA"}
    kernels = [
        event("gemm", 500, 400, caller=2, **device),
        event("softmax_warp_forward", 1000, 100, caller=3, **device),
        event("captured in a graph", 1200, 50, caller=77, **device),
    ]
    waits = [event(f"cuda{what}Synchronize", 900, 10) for what in ("Stream", "Stream", "Device")]
    told = summed([*HOST, *kernels, *waits], seconds=1e-6, tokens=2, cuda=True)
    assert told.device is not None and told.device == pytest.approx(
        {kind: 0 for kind in KINDS} | {"linear": 400e-9, "element-wise": 100e-9, "other": 50e-9}
    )
    assert told.shares["linear"] == pytest.approx(0.4)
    assert told.rest == pytest.approx(0.45) and told.python == pytest.approx(0.3)
    assert told.kernels == 3
    assert told.waits == 2, "the last one is the bench's own"


def test_work_under_the_profiler() -> None:
    x = torch.rand(200, 200)

    def work() -> None:
        for _ in range(20):
            torch.nn.functional.linear(x, x)
        float(torch.cat([x, x]).sum())

    told = profiled(work, CPU, tokens=1)
    assert 0 < sum(told.host.values()) < told.seconds
    assert told.shares["linear"] == max(told.shares.values())
    assert told.host["copies"] > 0 and told.host["reductions"] > 0 == told.host["attention"]
    assert told.waits == 1 and told.calls == 20 + 1 + 1 + 1


def test_python_is_what_no_operator_accounts_for() -> None:
    def work() -> None:
        sum(range(300_000))
        torch.ones(1)

    told: Profile = profiled(work, CPU, tokens=1)
    assert told.python > 0.5 and sum(told.shares.values()) + told.rest == pytest.approx(1)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, str, str]]:
    def run(*more: str) -> tuple[Any, str, str]:
        folder = tmp_path_factory.mktemp("bench")
        quick = "--rounds 1 --new-tokens 3 --threads 1 --text-tokens 6 --batch 2 --method cmac"
        asked = ["bench", *quick.split(), "--variant", "cdkit", *more, "--out", str(folder)]
        result = CliRunner().invoke(cli.app, asked, env={"COLUMNS": "170"})
        assert result.exit_code == 0, result.output
        told = json.loads((folder / "bench.json").read_text())
        return told, result.stdout, Path(folder / "bench.md").read_text(encoding="utf-8")

    return run


def test_a_bench_with_a_profile(bench: Callable[..., tuple[Any, str, str]]) -> None:
    told, screen, page = bench("--profile")
    assert told["settings"]["profile"] is True
    for row in told["sections"][0]["rows"]:
        own = row["profile"]
        assert sum(own["shares"].values()) + own["rest_share"] == pytest.approx(1)
        assert tuple(own["shares"]) == tuple(own["host_seconds"]) == KINDS
        assert own["device_seconds"] is None and own["host_waits_per_token"] >= 1
        assert own["calls_per_token"] > 50 and 0 < own["python_share"] < 1
    heads = ["variant", "method", *KINDS, "nothing", "calls", "waits"]
    assert "| " + " | ".join(heads) + " |" in page
    (line,) = (line for line in screen.splitlines() if "element-wise" in line and "calls" in line)
    assert line.split() == heads
    assert "Profile: shares" in page and "Profile: shares" in screen


def test_a_bench_without(bench: Callable[..., tuple[Any, str, str]]) -> None:
    told, screen, page = bench()
    assert [row["profile"] for row in told["sections"][0]["rows"]] == [None, None]
    assert "element-wise" not in screen + page and "Profile" not in screen + page
    for row in told["sections"][0]["rows"]:
        (whole,) = row["raw_seconds"]["whole_answer"]
        assert row["tokens_per_second"]["value"] == pytest.approx(2 * 3 / whole)
    (heads,) = (line for line in page.splitlines() if line.startswith("| variant"))
    assert heads.endswith("| peak memory | tokens/s | operators a token |")
