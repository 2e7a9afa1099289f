"""The notebooks, run by a Jupyter kernel and written as HTML, on a desktop, a phone and paper.

`test_notebooks.py` runs the same cells without Jupyter and in a moment, and `test_shown.py` has the
tables that objects show.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from browser import in_a_browser
from live_page import DESKTOP, PAPER, PHONE, LivePage, live_page

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NEEDED = ("ipykernel", "nbconvert", "pandas")
lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,  # a kernel for each notebook, which imports torch
    pytest.mark.skipif(bool(lacking), reason="needs Jupyter's kernel: pip install '.[notebooks]'"),
]


@pytest.fixture(scope="module", params=sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook as a page, which loads nothing from elsewhere."""
    folder, notebook = tmp_path_factory.mktemp("notebook"), request.param
    ran = subprocess.run(
        [
            sys.executable, "-m", "nbconvert", "--to", "html", "--execute",
            "--HTMLExporter.mathjax_url=", "--HTMLExporter.require_js_url=",
            "--output-dir", str(folder), str(notebook),
        ],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    return folder / f"{notebook.stem}.html"


def of_outputs(kind: str) -> str:
    """How many outputs hold such an element."""
    return f"document.querySelectorAll('.jp-OutputArea-output {kind}').length"


def check_outputs(page: LivePage, stem: str) -> None:
    """Our objects are pictures and tables, not text in angle brackets."""
    assert page.value("[...document.images].filter(e => !e.naturalWidth).length") == 0
    text = page.value("document.body.innerText")
    assert "Traceback" not in text and "IProgress" not in text
    for shown in ("<Method", "<Explanation", "<registry"):
        assert shown not in text
    if stem.startswith("1_"):
        assert page.value(of_outputs("img")) >= 1 and page.value(of_outputs("table")) >= 1
        inner = "document.querySelector('iframe').contentDocument"
        wide = f"{inner}.documentElement"
        assert "How cmac chose the token" in page.value(f"{inner}.body.innerText")
        assert page.value(f"{wide}.scrollWidth - {wide}.clientWidth") <= 1
    else:
        assert page.value(of_outputs("table")) >= 1


@in_a_browser
def test_it_shows_what_it_computed_at_every_width(page: Path, tmp_path: Path) -> None:
    with live_page(tmp_path) as live:
        for width in (DESKTOP, PHONE, PAPER):
            live.lay_out(width, paper=width == PAPER)
            live.open(page.as_uri())
            check_outputs(live, page.stem)
            assert live.sticks_out() == [] and live.errors == []
            assert live.value("document.documentElement.scrollWidth") == width
        assert live.print_to_pdf().startswith(b"%PDF")


@in_a_browser
def test_what_sticks_out_or_fails_is_seen(page: Path, tmp_path: Path) -> None:
    spoilt = page.read_text(encoding="utf-8").replace(
        "</body>",
        '<p id="wide" class="wide" style="width: 3000px">x</p><script>throw 1</script></body>',
    )
    (tmp_path / "spoilt.html").write_text(spoilt, encoding="utf-8")
    with live_page(tmp_path) as live:
        live.lay_out(PHONE)
        live.open((tmp_path / "spoilt.html").as_uri())
        assert "P.wide" in live.sticks_out() and live.errors
