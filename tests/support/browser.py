"""A headless browser, for pages that draw: opened at an address, and photographed once they have drawn.

It is steered by the protocol of its developer tools, as a picture on request comes before the page is ready.
"""

import base64
import contextlib
import io
import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# WebGL by the processor, which a page has to be allowed.
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--hide-scrollbars",
    "--enable-unsafe-swiftshader",
    "--remote-debugging-port=0",
)
# Seconds between two looks, and after which a page will not draw any more.
STEP, PATIENCE = 1.0, 60


class Page:
    """A page of a browser, by the protocol of its developer tools."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.numbers = socket, itertools.count()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            # Events come in between.
            answer = json.loads(self.socket.recv(timeout=PATIENCE))
            if answer.get("id") == number:
                return answer["result"]

    def value(self, expression: str) -> Any:
        """What JavaScript makes of `expression` in the page."""
        return self.call("Runtime.evaluate", expression=expression)["result"]["value"]

    def picture(self) -> np.ndarray:
        """What the page shows, uint8 (H, W, 3)."""
        shot = self.call("Page.captureScreenshot", format="png")
        image = Image.open(io.BytesIO(base64.b64decode(shot["data"])))
        return np.asarray(image.convert("RGB"))

    def picture_when(self, drawn: Callable[[np.ndarray], bool]) -> np.ndarray:
        """The first picture that `drawn` accepts; the last one where none is accepted in time."""
        end = time.monotonic() + PATIENCE
        picture = self.picture()
        while not drawn(picture) and time.monotonic() < end:
            time.sleep(STEP)
            picture = self.picture()
        return picture


@contextlib.contextmanager
def opened(address: str, folder: Path, side: int = 512) -> Iterator[Page]:
    """A square page at `address`; the browser writes into `folder`. Skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("there is no Chromium")
    size, profile = f"--window-size={side},{side}", f"--user-data-dir={folder}"
    command = [found, *OPTIONS, size, profile, "about:blank"]
    browser = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    with connect(_page_socket(browser), max_size=None) as socket:
        page = Page(socket)
        try:
            page.call("Page.navigate", url=address)
            # Before that there is nothing to photograph, for which the browser waits in vain.
            while page.value("document.readyState") != "complete":
                time.sleep(STEP)
            yield page
        finally:
            # What was started may have been a script, whose end is not that of the browser.
            page.call("Browser.close")
    browser.communicate(timeout=PATIENCE)


def _page_socket(browser: subprocess.Popen) -> str:
    """The address at which the browser's first page listens."""
    for line in browser.stderr or ():
        said = re.search(r"DevTools listening on ws://([^/]+)/", line)
        if said:
            with urllib.request.urlopen(f"http://{said[1]}/json/list", timeout=PATIENCE) as answer:
                targets = json.load(answer)
            return next(each["webSocketDebuggerUrl"] for each in targets if each["type"] == "page")
    raise RuntimeError("the browser ended before it had a page")
