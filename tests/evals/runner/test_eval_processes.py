"""Several processes: the same bytes, and what goes wrong in one of them is told here."""

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from evals.eval_run import answer, draw, parts_of, settings

from cdkit.evals.ablation.demand import workload
from cdkit.evals.ablation.prepared import prepare
from cdkit.evals.runner.chosen_model import ChosenModel
from cdkit.evals.runner.engines import Engines
from cdkit.evals.runner.journal import Journal
from cdkit.evals.runner.lightning_module import AnsweringModule, RunJob
from cdkit.evals.runner.processes import _lost_process, follower, started_outside
from cdkit.evals.runner.resources import Resources

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from cdkit.errors import CdkitError
from cdkit.evals.cli.app import quiet
from cdkit.evals.runner.eval_run import run_eval
from cdkit.evals.runner.resources import Resources
from evals.eval_run import draw, parts_of, settings

if __name__ == "__main__":
    quiet()
    parts = parts_of(draw(Path({world!r})))
    two = Resources(batch_size=4, devices=2, accelerator="cpu")
    try:
        run_grid(
            settings(model={model!r}), two, Path({folder!r}), RunOptions(silence=quiet), parts=parts
        )
    except CdkitError as error:
        print("told:", error)
"""


def in_two(world: Path, folder: Path, model: str = "micro") -> subprocess.CompletedProcess[str]:
    """A run in two processes, started from a script as a user's would be."""
    tests = str(Path(__file__).parents[2])
    script = folder.parent / "two.py"
    script.write_text(SCRIPT.format(tests=tests, world=str(world), folder=str(folder), model=model))
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False
    )


def shares(folder: Path) -> list[int]:
    """How many rows each process wrote."""
    files = sorted((folder / "journal").glob("[!.]*"))  # the others are locks
    return [len(file.read_text("utf-8").splitlines()) - 1 for file in files]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning leaves these set in the process that starts the others."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("environment")
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Forked, which a test can afford; the next is how a user's begin."""
    parts, name = parts_of(draw(tmp_path / "world")), "predictions.jsonl"
    alone = answer(parts, tmp_path / "alone", batch_size=4)
    two = answer(parts, tmp_path / "two", batch_size=4, devices=2, start="fork")
    assert (two.folder / name).read_bytes() == (alone.folder / name).read_bytes()
    (piece,) = json.loads((two.folder / "manifest.json").read_text())["pieces"]
    assert piece["processes"] == len(piece["devices"]) == 2
    assert len(shares(two.folder)) == 2 and min(shares(two.folder)) > 0
    more = answer(parts[:1], tmp_path / "more", batch_size=99, devices=2, start="fork")
    assert shares(more.folder) == [18, 0]  # one batch: a process had nothing to do


@pytest.mark.slow
def test_two_processes_from_a_script(tmp_path: Path) -> None:
    """Half a minute: three processes import torch. By hand, with `pytest -m slow`."""
    alone = answer(parts_of(draw(tmp_path / "world")), tmp_path / "alone", batch_size=4)
    ran = in_two(tmp_path / "world", tmp_path / "two")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ran.stderr == ""
    name = "predictions.jsonl"
    assert (tmp_path / "two" / name).read_bytes() == (alone.folder / name).read_bytes()
    assert len(shares(tmp_path / "two")) == 2


def test_what_a_process_is_handed_can_be_sent(tmp_path: Path) -> None:
    parts = parts_of(draw(tmp_path / "world"))
    asked = workload(prepare(settings(set={"alpha": 1.0}), tmp_path, "micro", parts))
    job = RunJob(
        engines=Engines(ChosenModel("micro"), {"temperature": 1.0}),
        workload=asked,
        resources=Resources(devices=2),
        folder=tmp_path,
        settings={},
        journal=Journal((), {}, 0.0, ()),
        silence=warnings.resetwarnings,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message="a mark")
        sent = pickle.loads(pickle.dumps(AnsweringModule(job)))
        assert warnings.filters == []  # it was silenced on arrival
    assert sent.job.workload.demand == asked.demand
    assert sent.job.workload.methods == asked.methods
    assert sent.parent == os.getpid()


@pytest.mark.slow
def test_an_error_in_a_process_is_one_line_here(tmp_path: Path) -> None:
    """Half a minute: three processes import torch. By hand, with `pytest -m slow`."""
    ran = in_two(tmp_path / "world", tmp_path / "two", model="no/such")
    assert ran.stdout.startswith("told: cannot load the model 'no/such'"), ran.stderr
    assert len(ran.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "follows"),
    [
        ({}, False),
        ({"RANK": "0", "NODE_RANK": "0"}, False),
        ({"RANK": "3"}, True),
        ({"NODE_RANK": "1"}, True),
        ({"SLURM_PROCID": "1"}, True),
    ],
)
def test_one_process_leads(environment: dict[str, str], follows: bool) -> None:
    assert follower(environment) is follows


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ("[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:4", "another"),
        ("NCCL error in: x.cpp:1, remote process exited or there was a network error", "another"),
        ("The client socket has timed out after 600s while trying to reach TCPStore", "another"),
        ("Connection reset by peer", "another"),
    ],
)
def test_a_lost_process_is_known_by_what_is_left_of_it(message: str, what: str) -> None:
    assert what in str(_lost_process(message))
    assert _lost_process("mat1 and mat2 shapes cannot be multiplied") is None


def test_a_launcher_is_noticed() -> None:
    assert started_outside({"TORCHELASTIC_RUN_ID": "x"}) and not started_outside({})
