"""Several processes: the same bytes, and what goes wrong in one of them is told here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cdkit.evals.runs.processes import follower, started_outside

from .eval_run import answer, draw, parts_of

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from cdkit.errors import CdkitError
from cdkit.evals.cli.app import quiet
from cdkit.evals.runs.run import run
from cdkit.evals.runs.settings import Resources
from evals.eval_run import draw, parts_of, settings

if __name__ == "__main__":
    quiet()
    parts = parts_of(draw(Path({world!r})))
    two = Resources(batch_size=4, devices=2, accelerator="cpu")
    try:
        run(settings(model={model!r}), two, parts, Path({folder!r}), silence=quiet)
    except CdkitError as error:
        print("told:", error)
"""


def in_two(world: Path, folder: Path, model: str = "micro") -> subprocess.CompletedProcess[str]:
    """A run in two processes, started from a script as a user's would be."""
    tests = str(Path(__file__).parents[1])
    script = folder.parent / "two.py"
    script.write_text(SCRIPT.format(tests=tests, world=str(world), folder=str(folder), model=model))
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False
    )


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    alone = answer(parts_of(draw(tmp_path / "world")), tmp_path / "alone", batch_size=4)
    ran = in_two(tmp_path / "world", tmp_path / "two")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ran.stderr == ""
    name = "predictions.jsonl"
    assert (tmp_path / "two" / name).read_bytes() == (alone.folder / name).read_bytes()
    (piece,) = json.loads((tmp_path / "two" / "manifest.json").read_text())["pieces"]
    assert piece["processes"] == len(piece["devices"]) == 2
    files = sorted((tmp_path / "two" / "journal").glob("*"))
    shares = [len(file.read_text().splitlines()) - 1 for file in files]
    assert len(shares) == 2 and min(shares) > 0


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


def test_a_launcher_is_noticed() -> None:
    assert started_outside({"TORCHELASTIC_RUN_ID": "x"}) and not started_outside({})
