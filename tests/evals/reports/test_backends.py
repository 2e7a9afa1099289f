"""A report is drawn whatever backend the environment names, and pyplot keeps its own."""

import os
import subprocess
import sys

import pytest

DRAWN = """
import os
from cdkit.evals.reports.figures import drawing, new_figure, svg
from cdkit.evals.reports import plots, scatter
from cdkit.evals.speed import plot
with drawing():
    figure, axes = new_figure(2)
    axes.plot([1, 2])
    assert len(svg(figure)) > 5000
import matplotlib
print(matplotlib.get_backend(auto_select=False), os.environ.get("MPLBACKEND"))
import pytorch_lightning

"""


ABSENT = "module://no_such_package.backend"


@pytest.mark.parametrize(
    ("backend", "kept"), [(ABSENT, ABSENT), ("nonsense", "None"), ("svg", "svg")]
)
def test_figures_whatever_the_backend(backend: str, kept: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", DRAWN],
        env=os.environ | {"MPLBACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[1] == kept and ran.stdout.split()[0] in (kept, "None", "agg")
