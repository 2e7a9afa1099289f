"""A page as a browser shows it: a phone's width, a desktop's or paper, light or dark, with scripts.

`browser.measured` lays a page out in a frame, which is enough for one that has no scripts. Here the
browser is told what to do over a pipe (`--remote-debugging-pipe`, the Chrome DevTools Protocol), so
a page that a server sends can be looked at, and waited for.
"""

import base64
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser import CHROMIUM, OPTIONS

PHONE, PAPER, DESKTOP = 390, 700, 1280
"""Widths in pixels; `PAPER` is A4 between its margins."""
PATIENCE = 90.0
"""Seconds until a page must be there."""
STICKS_OUT = """[...document.body.querySelectorAll("*")].filter(e => {
  const box = e.getBoundingClientRect();
  if (!box.width || box.right <= innerWidth + 1) return false;
  for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
    if (getComputedStyle(p).overflowX !== "visible"
        && p.getBoundingClientRect().right <= innerWidth + 1) return false;
  return true;
}).map(e => e.tagName + "." + e.className)"""
"""Elements that stand wholly or partly beyond the right edge, and in nothing that scrolls or cuts
what is too wide."""


class LivePage:
    """A tab of a browser.

    Args:
        send: Where messages to the browser are written.
        answers: Where its messages are read.
    """

    def __init__(self, send: int, answers: int) -> None:
        self._send, self._answers, self._buffer = send, answers, b""
        self._number, self._session = 0, None
        self.errors: list[str] = []
        """What the page's scripts threw, and what its console said as an error."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and wait for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result
            self._note(found)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser is gone"
            self._buffer += read
        whole, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(whole)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        about = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(about["exceptionDetails"]))
        elif event["method"] == "Runtime.consoleAPICalled" and about["type"] == "error":
            self.errors.append(json.dumps(about["args"]))
        elif event["method"] == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(json.dumps(about["entry"]))

    def open(self, url: str, ready: str = "true") -> None:
        """Go to an address, and wait until a JavaScript expression is true there."""
        self.call("Page.navigate", url=url)
        self.wait_for(f"document.readyState === 'complete' && ({ready})")

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        assert self.becomes(expression), f"never true: {expression}; errors: {self.errors}"

    def becomes(self, expression: str, seconds: float = PATIENCE) -> bool:
        """Whether a JavaScript expression is true before so many seconds are over."""
        end = time.time() + seconds
        while not self.value(expression):
            if time.time() > end:
                return False
            time.sleep(0.2)
        return True

    def lay_out(self, width: int, *, paper: bool = False, dark: bool = False) -> None:
        """Take a width, as a screen or as paper, in light or dark colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call(
            "Emulation.setEmulatedMedia", media="print" if paper else "screen", features=[scheme]
        )

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def sticks_out(self) -> list[str]:
        """The elements that are too wide for the page."""
        found: list[str] = self.value(STICKS_OUT)
        return found

    def print_to_pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF")["data"])

    def picture(self) -> bytes:
        """The whole page as PNG, for eyes."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        return base64.b64decode(data)


@contextmanager
def live_page(tmp_path: Path) -> Iterator[LivePage]:
    """A browser with an empty page, until the block ends."""
    (theirs_in, send), (answers, theirs_out) = os.pipe(), os.pipe()
    # the browser reads from 3 and writes to 4, so nothing else of ours may stand there
    source, sink = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out))

    def connect() -> None:
        os.dup2(source, 3)
        os.dup2(sink, 4)

    browser = subprocess.Popen(
        [
            str(CHROMIUM), *OPTIONS, f"--user-data-dir={tmp_path / 'live'}",
            "--remote-debugging-pipe",
        ],
        preexec_fn=connect, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for end in (theirs_in, theirs_out, source, sink):
            os.close(end)
        page = LivePage(send, answers)
        yield page
        page.call("Browser.close")
    finally:
        browser.terminate()
        browser.wait(timeout=30)
        os.close(send)
        os.close(answers)
