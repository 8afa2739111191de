"""A page in headless Chromium, by its DevTools protocol: opened at a width, light or dark, looked at and measured."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import urlopen

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
START = 30
"""Seconds that the browser may take to start."""
MOST_HEIGHT = 16000
"""Pixels of the longest picture; more of a page is left out."""
MEASURE = (Path(__file__).parent / "measure.js").read_text(encoding="utf-8")
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


def chromium() -> str | None:
    """The browser of this machine."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One tab of a browser that ends with the block it is opened in."""

    def __enter__(self) -> Browser:
        program = chromium()
        if program is None:
            raise SystemExit(f"no browser: none of {', '.join(NAMES)} is installed")
        self._home = tempfile.TemporaryDirectory(prefix="rollbook-browser-", ignore_cleanup_errors=True)
        options = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--remote-debugging-port=0"]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [program, *options, f"--user-data-dir={self._home.name}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._socket = connect(self._address(), max_size=None)
        self._sent = 0
        self._send("Page.enable")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(10)
        self._home.cleanup()

    def open(self, address: str, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Open an address at that width of the window."""
        self.resize(width, height)
        self._send(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        )
        self._send("Page.navigate", url=address)
        self._wait("Page.loadEventFired")

    def resize(self, width: int, height: int) -> None:
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def value(self, script: str) -> Any:
        """What an expression is on the page."""
        answer = self._send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "the script failed"))
        return answer["result"].get("value")

    def too_wide(self) -> tuple[list[str], list[str]]:
        """Elements that reach over the sides of the page, and boxes whose content is wider than they are."""
        found = self.value(MEASURE)
        return found["over"], found["scrolled"]

    def faint(self) -> list[str]:
        """Texts that stand out too little from what is behind them to be read easily, each with its contrast."""
        found: list[str] = self.value(CONTRAST)
        return found

    def point(self, x: float, y: float) -> None:
        """Move the pointer there."""
        self._send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, path: Path, *, height: int | None = None) -> None:
        """Write a PNG of the page down to that height; of the whole page without one."""
        size = self._send("Page.getLayoutMetrics")["cssContentSize"]
        tall = min(height or size["height"], MOST_HEIGHT)
        clip = {"x": 0, "y": 0, "width": size["width"], "height": tall, "scale": 1}
        answer = self._send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _address(self) -> str:
        """Where the tab listens."""
        file, end = Path(self._home.name) / "DevToolsActivePort", time.monotonic() + START
        while time.monotonic() < end:
            if file.exists() and (lines := file.read_text(encoding="utf-8").splitlines()):
                with urlopen(f"http://127.0.0.1:{lines[0]}/json/list") as answer:
                    tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
                if tabs:
                    return str(tabs[0]["webSocketDebuggerUrl"])
            time.sleep(0.1)
        self._process.kill()
        raise TimeoutError("the browser did not start")

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv(60))).get("id") != self._sent:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _wait(self, event: str) -> None:
        while json.loads(self._socket.recv(60)).get("method") != event:
            pass
