"""matplotlib is needed for PDF files alone, and drawn whatever backend the environment names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdkit.evals.reports import pdf

DRAWN = """
import os, sys
from pathlib import Path
from cdkit.evals.reports import pdf
from cdkit.evals.reports.canvas import Canvas
canvas = Canvas(100.0, 50.0, "a line")
canvas.line([(0.0, 0.0), (9.0, 9.0)], "ink")
pdf.write(Path(sys.argv[1]), canvas)
import matplotlib
print(matplotlib.get_backend(auto_select=False), os.environ.get("MPLBACKEND"))
import pytorch_lightning

"""
WITHOUT = """
import importlib.util, sys
sys.modules["matplotlib"] = None  # an import of it raises ImportError
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "matplotlib" else found(name, *rest)
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from cdkit.evals.reports import page_files
from evals.made_results import MANIFEST, results
page_files.write(Path(sys.argv[1]), results(), MANIFEST)
print(*page_files.missing(), sep="\\n")
"""
ABSENT = "module://no_such_package.backend"


def ran(code: str, *arguments: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not pdf.available(), reason="needs matplotlib: pip install 'cdkit[plots]'")
@pytest.mark.parametrize(
    ("backend", "kept"), [(ABSENT, ABSENT), ("nonsense", "None"), ("svg", "svg")]
)
def test_figures_whatever_the_backend(backend: str, kept: str, tmp_path: Path) -> None:
    told = ran(DRAWN, tmp_path / "a.pdf", MPLBACKEND=backend).split()
    assert told[1] == kept and told[0] in (kept, "None", "agg")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_a_page_is_written_without_matplotlib(tmp_path: Path) -> None:
    """As after `pip install .`: with its figures, and a line on what is missing."""
    told = ran(WITHOUT, tmp_path, Path(__file__).parents[2], MPLBACKEND="nonsense")
    assert "figures/*.pdf were not written" in told and "pip install 'cdkit[plots]'" in told
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "pip install &#39;cdkit[plots]&#39;" in page and '<svg class="drawn"' in page
    assert [file.suffix for file in (tmp_path / "figures").iterdir()] == [".svg"] * 6
