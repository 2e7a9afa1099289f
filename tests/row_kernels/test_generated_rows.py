"""The kernels for generated rows: computed by Triton's interpreter, and compiled for GPUs.

The files it names run in processes of their own: Triton decides when it is imported whether it
interprets, and other tests import it, too.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cdkit.row_kernels import choice
from cdkit.row_kernels.choice import find_kernels
from cdkit.row_kernels.generated_rows import splits_for

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed; it has wheels for Linux on x86-64 and ARM",
)


def run_files(interpret: str, *given: str, cache: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *given],
        env=os.environ | {"TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(cache)},
        cwd=HERE,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout and "skipped" not in run.stdout


@needs_triton
def test_interpreted(tmp_path: Path) -> None:
    run_files("1", "interpreted_rows.py", "interpreted_answers.py", cache=tmp_path)


@needs_triton
@pytest.mark.slow  # the interpreted kernels are quick
def test_compiled(tmp_path: Path) -> None:
    run_files("0", "compiled_rows.py", cache=tmp_path)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("interpret", "file"), [("1", "interpreted_answers.py"), ("0", "compiled_rows.py")]
)
def test_the_rest(interpret: str, file: str, tmp_path: Path) -> None:
    run_files(interpret, file, "-m", "slow", cache=tmp_path)


def test_nothing_of_triton_is_imported_without_cuda() -> None:
    code = (
        "import sys, torch\n"
        "from cdkit.row_kernels.choice import find_kernels\n"
        "assert 'triton' not in sys.modules\n"
        "assert find_kernels(torch.device('cpu'), torch.float32, [64]) is None\n"
        "assert 'triton' not in sys.modules\n"
        "import cdkit.attachment\n"  # transformers imports Triton itself, where it is installed
        "assert 'cdkit.row_kernels.triton_rows' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_where_no_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other devices, other dtypes, heads too large or not known, and machines without Triton."""
    assert find_kernels(torch.device("cpu"), torch.float32, [64]) is None
    monkeypatch.setattr(choice, "DEVICES", ("cpu",))
    assert find_kernels(torch.device("cpu"), torch.float64, [64]) is None
    for heads in [512], [64, 512], []:
        assert find_kernels(torch.device("cpu"), torch.float32, heads) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_kernels(torch.device("cpu"), torch.float32, [64]) is None


def test_splits() -> None:
    assert splits_for(rows=64, columns=640, most=264) == 5
    assert splits_for(rows=1024, columns=640, most=264) == 1  # enough rows to fill the device
    assert splits_for(rows=2, columns=640, most=264) == 10  # no split without a tile
    assert splits_for(rows=1, columns=10**6, most=10**6) == 64
