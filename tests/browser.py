"""A page in a headless browser: how wide it is, what sticks out, what did not load."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a browser: apt install chromium (Debian)"
)
MEASURE = """<!doctype html><body>
<iframe id="page" width="{width}" height="900" srcdoc="{page}"></iframe>
<script>onload = () => {{
  const root = document.getElementById("page").contentDocument;
  const pictures = [...root.images];
  const out = [...root.body.querySelectorAll("*")].filter(e =>
    e.getBoundingClientRect().right > {width} + 1 && !e.closest(".wide") && !e.closest("pre"));
  const brief = [...root.querySelectorAll(".brief")]
    .map(table => table.scrollWidth - table.parentNode.clientWidth);
  document.body.innerText = "measured " + JSON.stringify({{
    width: root.documentElement.scrollWidth,
    out: out.map(e => e.tagName + "." + e.className),
    brief: Math.max(...brief),
    pictures: pictures.length,
    broken: pictures.filter(picture => !picture.naturalWidth).length,
    panels: [...root.querySelectorAll(".layers svg")].filter(e => e.clientWidth > 30).length,
  }});
}}</script>"""


def browse(tmp_path: Path, text: str, *how: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    return subprocess.run(
        [str(CHROMIUM), *OPTIONS, f"--user-data-dir={tmp_path / 'own'}", *how, path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


def measured(tmp_path: Path, page: str, width: int) -> dict[str, object]:
    text = MEASURE.format(width=width, page=html.escape(page, quote=True))
    done = browse(tmp_path, text, "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    found = re.search(r"measured (\{.*?\})", html.unescape(done.stdout))
    assert found is not None, done.stdout[-500:]
    shown: dict[str, object] = json.loads(found[1])
    return shown
