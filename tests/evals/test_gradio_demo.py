"""docs/examples/gradio_demo.py, as a user starts it: its page in a browser, and its answers."""

import importlib.util
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from evals.browser import CHROMIUM, OPTIONS, in_a_browser

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
            [sys.executable, str(DEMO), "--port", str(PORT)], stdout=file, stderr=file
        )
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


@in_a_browser
def test_the_page_opens(url: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [
            str(CHROMIUM), *OPTIONS, f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000",
            "--dump-dom", url,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    for word in ("Contrastive decoding: micro", "Question", "Methods", "cmac", "Submit"):
        assert word in ran.stdout
