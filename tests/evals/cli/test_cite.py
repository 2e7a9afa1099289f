"""`cdkit cite`, and one entry of `cdkit list`: what a user asks about a method by its name."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner, Result

import cdkit
from cdkit.evals import cli


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "120"})


def test_each_paper_once_whatever_the_case() -> None:
    told = run("cite", "VCD", "cmac-imd", "vcd")
    assert told.exit_code == 0, told.output
    assert told.stdout.count("@inproceedings{leng2024vcd,") == 1
    assert told.stdout.count("@misc{li2025imccd,") == 1
    assert told.stdout.startswith("@")


def test_what_has_no_paper_is_said() -> None:
    told = run("cite", "pope", "scaled_positions", "plain")
    assert told.exit_code == 0, told.output
    assert "plain names no paper" in told.stderr
    told = run("cite", "plain")
    assert told.exit_code == 1
    assert told.stdout == ""
    assert "no paper to cite" in told.stderr


@pytest.mark.parametrize("command", ["cite", "list"])
def test_an_unknown_name(command: str) -> None:
    told = run(command, "vcdd")
    assert told.exit_code == 2
    assert "'vcdd'" in told.stderr
    assert "Did you mean" in told.stderr


def test_one_entry_is_shown_whole() -> None:
    told = run("list", "VCD")
    assert told.exit_code == 0, told.output
    assert "diffusion_noise" in told.stdout
    assert "@inproceedings{leng2024vcd," in told.stdout
    assert "cmac" not in told.stdout.split("@")[0]


def test_lists_as_data() -> None:
    told = run("list", "methods", "--json")
    listed = json.loads(told.stdout)
    assert [entry["name"] for entry in listed["methods"]] == sorted(cdkit.presets())
    (vcd,) = [entry for entry in listed["methods"] if entry["name"] == "vcd"]
    (contrast,) = [part for part in vcd["parts"] if part["kind"] == "contrast"]
    assert ["alpha", "1.0"] in contrast["parameters"]
    assert json.loads(run("list", "vcd", "--json").stdout)["methods"] == [vcd]


def test_python_runs_it() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "cdkit", "--version"], capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith("cdkit ")
