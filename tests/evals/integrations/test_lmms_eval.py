"""lmms-eval runs its tasks with cdkit's methods: the true package, installed by pip, from a shell.

Makes an environment, for lmms-eval brings a hundred packages: some minutes and a package index.
CDKIT_LMMS_EVAL_PYTHON names the Python of one that is there already.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "cdkit", "strategies", "models", "evals")
GREEDY = "{max_new_tokens: 24, do_sample: false, temperature: 0}"
DRAWN = """{max_new_tokens: 24, do_sample: true, temperature: 0.8, top_p: 0.9, until: [" and "]}
repeats: 2
filter_list:
  - {name: both, filter: [{function: take_first_k, k: 2}]}"""
TASKS = {"small_pope": GREEDY, "small_captions": DRAWN, "torn": GREEDY, "blind": GREEDY}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with this checkout's cdkit and lmms-eval."""
    if given := os.environ.get("CDKIT_LMMS_EVAL_PYTHON"):
        return given
    folder = tmp_path_factory.mktemp("lmms")
    source = folder / "source"  # a copy: building writes into the folder
    source.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    own = str(folder / "venv" / "bin" / "python")
    pip = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # the same build of torch as here, first: a CPU build where this is one
    subprocess.run([*pip, f"torch=={torch.__version__.partition('+')[0]}"], check=True)
    subprocess.run([*pip, f"{source}[lmms-eval]"], check=True)
    if subprocess.run([own, "-c", "import torchvision"], capture_output=True).returncode:
        # built for CUDA, beside a torch for CPUs; nothing here needs it
        subprocess.run([own, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"])
    return own


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="session")
def shell(python: str, folder: Path) -> Run:
    """Runs the environment's Python, offline, away from the checkout."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [python, *map(str, words)], cwd=folder, env=environment, text=True, capture_output=True
        )

    return run


@pytest.fixture(scope="session")
def own(shell: Run, folder: Path) -> Any:
    """Method -> task -> the answers that cdkit gives by itself; writes the tasks."""
    ran = shell(HERE / "prepare.py", folder)
    assert ran.returncode == 0, ran.stderr
    (folder / "tasks").mkdir()
    shutil.copy(HERE / "task" / "utils.py", folder / "tasks")
    text = (HERE / "task" / "small.yaml").read_text().replace("FOLDER", str(folder))
    for name, decoding in TASKS.items():
        task = text.replace("NAME", name) + f"generation_kwargs: {decoding}\n"
        (folder / "tasks" / f"{name}.yaml").write_text(task)
    return json.loads((folder / "own.json").read_text())


@pytest.fixture(scope="session")
def evaluate(shell: Run, folder: Path, own: Any) -> Callable[..., Any]:
    """(method's arguments, tasks) -> the finished process, and each task's answers by document."""

    def run(
        arguments: str, *tasks: str, batch: int = 8, verbosity: str = "DEBUG", processes: int = 1
    ) -> tuple[subprocess.CompletedProcess[str], dict[str, list[list[str]]]]:
        output = folder / f"out-{len(list(folder.glob('out-*')))}"
        several = ["accelerate.commands.launch", "--cpu", "--num_processes", processes, "-m"]
        ran = shell(
            "-m", *(several if processes > 1 else []), "lmms_eval",
            "--model", "cdkit", "--model_args", f"pretrained=micro,{arguments}",
            "--tasks", ",".join(tasks), "--include_path", folder / "tasks",
            "--batch_size", batch, "--output_path", output, "--log_samples",
            "--verbosity", verbosity,
        )  # fmt: skip
        return ran, {task: answers(output, task) for task in tasks}

    return run


def answers(output: Path, task: str) -> list[list[str]]:
    """Each document's answers, one a repeat, in the documents' order; none where no file is."""
    rows = [
        json.loads(line)
        for file in output.rglob(f"*_samples_{task}.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    said = [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    return [[text] if isinstance(text, str) else text for text in said]


@pytest.fixture(scope="session")
def of_cmac(evaluate: Callable[..., Any]) -> Any:
    ran, said = evaluate("method=cmac,seed=3", "small_pope", "small_captions")
    assert ran.returncode == 0, ran.stderr
    return said


def test_plain_is_what_cdkit_answers_by_itself(evaluate: Callable[..., Any], own: Any) -> None:
    ran, said = evaluate("method=plain,seed=3", "small_pope", "small_captions")
    assert ran.returncode == 0, ran.stderr
    assert said == own["plain"]
    assert re.search(r"\|small_pope *\|.*\|right", ran.stdout)


def test_a_method_is_too_and_differs_from_plain(of_cmac: Any, own: Any) -> None:
    assert of_cmac == own["cmac"]
    assert of_cmac != own["plain"]


def test_the_repeats_are_drawn_anew(of_cmac: Any) -> None:
    assert all(len(pair) == 2 for pair in of_cmac["small_captions"])
    assert any(first != second for first, second in of_cmac["small_captions"])


def test_neither_batch_nor_processes_change_an_answer(
    evaluate: Callable[..., Any], of_cmac: Any
) -> None:
    for asked in ({"batch": 1}, {"batch": 8, "processes": 2}):
        ran, said = evaluate("method=cmac,seed=3", "small_pope", "small_captions", **asked)
        assert ran.returncode == 0, ran.stderr
        assert said == of_cmac, asked


def test_a_parameter_and_a_seed_change_answers(evaluate: Callable[..., Any], of_cmac: Any) -> None:
    _, said = evaluate("method=cmac,alpha=0.0,beta=0.0,seed=3", "small_captions")
    assert said["small_captions"] != of_cmac["small_captions"]
    _, said = evaluate("method=cmac,seed=4", "small_captions")
    assert said["small_captions"] != of_cmac["small_captions"]


def test_a_broken_image_is_an_error_and_no_score(evaluate: Callable[..., Any]) -> None:
    ran, said = evaluate("method=cmac", "torn")
    assert ran.returncode == 1
    assert "task torn, document 2: cannot load the images: OSError: image file is trunc" in (
        ran.stderr
    )
    assert said == {"torn": []} and "|torn" not in ran.stdout
    # with its usual verbosity lmms-eval itself ends with 0: still without a score
    ran, said = evaluate("method=cmac", "torn", verbosity="INFO")
    assert "task torn, document 2: cannot load the images" in ran.stderr
    assert said == {"torn": []} and "|torn" not in ran.stdout


def test_truncated_images_may_be_allowed(evaluate: Callable[..., Any]) -> None:
    ran, said = evaluate("method=cmac,allow_truncated_images=true", "torn")
    assert ran.returncode == 0, ran.stderr
    assert len(said["torn"]) == 4


def test_a_document_without_an_image(evaluate: Callable[..., Any]) -> None:
    """Plain answers it; a method that is about the image names it."""
    ran, said = evaluate("method=plain", "blind")
    assert ran.returncode == 0, ran.stderr
    assert all(text for (text,) in said["blind"]) and len(said["blind"]) == 3
    ran, said = evaluate("method=cmac", "blind")
    assert ran.returncode == 1 and said == {"blind": []}
    assert "task blind, document 1: prompt 0 has no image, and cmac is about" in ran.stderr


def test_a_misspelt_argument(evaluate: Callable[..., Any]) -> None:
    ran, _ = evaluate("method=cmac,alhpa=1.0", "small_pope")
    assert ran.returncode == 1 and "Did you mean 'alpha'" in ran.stderr
