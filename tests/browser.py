"""A headless Chromium, driven over a pipe: no driver and no client library to install."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser():
    """The path of a browser that is installed, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab."""

    def __init__(self, pipe, session):
        self._pipe, self._session = pipe, session

    def call(self, method, **params):
        return self._pipe.call(method, params, self._session)

    def evaluate(self, expression):
        """The value of a JavaScript expression that JSON can hold."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise AssertionError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait_for(self, expression, seconds=90):
        """Wait until an expression is true; its value."""
        patient = f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.evaluate(patient):
                return value
            time.sleep(0.25)
        shown = self.evaluate("document.body.innerText")
        raise AssertionError(f"never came true: {expression}; the page shows:\n{shown}")

    def wait_for_texts(self, *texts):
        """Wait until all of the texts are to be read on the page."""
        shown = "document.body.innerText"
        self.wait_for(f"{json.dumps(texts)}.every((text) => {shown}.includes(text))")

    def open(self, url):
        self.call("Page.navigate", url="about:blank")  # or a new #fragment would be the old page
        self.call("Page.navigate", url=url)

    def point(self, x, y, *, click=False):
        """Move the mouse to a place of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def wheel(self, x, y, delta):
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)

    def screenshot(self, path):
        image = self.call("Page.captureScreenshot", format="png")["data"]
        Path(path).write_bytes(base64.b64decode(image))


class _Pipe:
    """Chromium's protocol: JSON messages that end with a zero byte."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer
        self._rest, self._number = b"", 0

    def call(self, method, params, session=None, seconds=60):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
        raise TimeoutError(method)

    def _receive(self, deadline):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reader], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                return {}
            part = os.read(self._reader, 1 << 16)
            if not part:
                raise AssertionError("the browser ended")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


def _moved(end):
    moved = fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(end)
    return moved


@contextmanager
def open_browser(folder, *, width=1400, height=900):
    """A page of a new browser, whose profile lies in a folder."""
    to_browser, from_browser = os.pipe(), os.pipe()
    theirs, ours = (to_browser[0], from_browser[1]), (from_browser[0], to_browser[1])
    options = (
        "--headless",
        "--no-sandbox",  # CI runs as root
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--force-color-profile=srgb",
        f"--user-data-dir={folder}",
        f"--window-size={width},{height}",
        "--remote-debugging-pipe",
        "about:blank",
    )
    sockets = tempfile.TemporaryDirectory(dir="/tmp")  # their paths must be short
    # Above all numbers that take part, so that neither of the two copies hits the other's source.
    theirs = tuple(_moved(end) for end in theirs)
    browser = subprocess.Popen(
        [find_browser(), *options],
        preexec_fn=lambda: [os.dup2(end, number) for number, end in enumerate(theirs, 3)],
        pass_fds=(3, 4),  # where the browser looks for the two ends
        env=os.environ | {"TMPDIR": sockets.name},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in theirs:
        os.close(end)
    try:
        pipe = _Pipe(*ours)
        target = pipe.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = pipe.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = Page(pipe, attached["sessionId"])
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        yield page
        pipe.call("Browser.close", {})
        browser.wait(20)
    finally:
        browser.kill()
        browser.wait()
        for end in ours:
            os.close(end)
        sockets.cleanup()
