"""docs/examples/gradio_demo.py, as a user starts it: its page in a browser, and its answers."""

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import in_a_browser
from live_page import DESKTOP, PAPER, PHONE, live_page
from PIL import Image

DEMO = Path(__file__).resolve().parents[2] / "docs" / "examples" / "gradio_demo.py"
PORT = 17860
CALL = """
import json, sys
from gradio_client import Client, handle_file
url, picture, *methods = sys.argv[1:]
client = Client(url, verbose=False)
found = client.predict(handle_file(picture), "is there a cat ?", methods, api_name="/answers")
print(json.dumps(found["data"]))
"""

pytestmark = [
    pytest.mark.slow,  # Gradio takes seconds to import, and the server to start
    pytest.mark.skipif(
        importlib.util.find_spec("gradio") is None, reason="needs gradio: pip install '.[demo]'"
    ),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo, running."""
    log = tmp_path_factory.mktemp("demo") / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        server = subprocess.Popen(
            [sys.executable, str(DEMO)], stdout=file, stderr=file,
            env={**os.environ, "GRADIO_SERVER_PORT": str(PORT), "GRADIO_ANALYTICS_ENABLED": "0"},
        )  # fmt: skip
        try:
            for _ in range(120):
                assert server.poll() is None, log.read_text(encoding="utf-8")
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=5).close()
                    break
                except OSError:
                    time.sleep(1)
            yield f"http://127.0.0.1:{PORT}/"
        finally:
            server.terminate()
            server.wait(timeout=30)


def test_the_answers_stand_side_by_side(url: str, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    ran = subprocess.run(
        [sys.executable, "-c", CALL, url, str(tmp_path / "photo.png"), "plain", "cmac", "opera"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(ran.stdout.splitlines()[-1])
    assert [method for method, _ in rows] == ["plain", "cmac", "opera"]
    said = dict(rows)
    assert said["plain"].lower().startswith(("yes", "no"))
    assert said["opera"].startswith("refused: ") and "beam" in said["opera"]


FILLED = "document.body.innerText.includes('Submit')"
ASK = "[...document.querySelectorAll('button')].find(e => e.innerText === 'Submit').click()"
ANSWERED = "/plain\\s+a photo.*vcd\\s+a photo.*cmac\\s+a photo/s.test(document.body.innerText)"
CUT_OFF = """[...document.querySelectorAll('.block *')].filter(e => !e.children.length
  && e.textContent.startsWith('a photo') && e.clientWidth
  && e.getBoundingClientRect().right > e.closest('.block').getBoundingClientRect().right + 1).length
"""


@in_a_browser
def test_the_page_opens_and_answers(url: str, tmp_path: Path) -> None:
    """The question is asked; on a desktop, a phone and paper no part is cut off."""
    with live_page(tmp_path) as page:
        page.lay_out(DESKTOP)
        page.open(url, FILLED)
        text = page.value("document.body.innerText")
        for word in ("Contrastive decoding: micro", "Question", "Methods", "cmac"):
            assert word in text
        for _ in range(4):  # a click is lost while the page's scripts still start
            page.value(ASK)
            if page.becomes(ANSWERED, 20):
                break
        for width in (DESKTOP, PHONE, PAPER):
            page.lay_out(width, paper=width == PAPER)
            assert page.becomes(ANSWERED) and page.value(CUT_OFF) == 0
            assert page.sticks_out() == [] and page.errors == []
            assert page.value("document.documentElement.scrollWidth") == width
        assert page.print_to_pdf().startswith(b"%PDF")


def test_it_is_as_short_as_it_says() -> None:
    lines = DEMO.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= 32
