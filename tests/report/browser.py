"""A headless Chromium, led by the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiohttp

CHROMIUM = shutil.which("chromium")
_QUIET = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
_START_S, _REPLY_S = 60, 60


class Browser:
    """One page of a browser: what it asked for, and what it threw.

    Attributes:
        requests: addresses that pages asked for, their own and data: addresses left out.
        blocked: those that a content security policy refused.
        dialogs: texts of alert boxes.
        errors: what scripts threw and what the console was told of as an error.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self._page = ""
        self._sent: dict[str, str] = {}
        self.requests: list[str] = []
        self.blocked: list[str] = []
        self.dialogs: list[str] = []
        self.errors: list[str] = []
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def on(cls, socket: aiohttp.ClientWebSocketResponse) -> Self:
        """A browser behind an open connection to one of its pages."""
        made = cls(socket)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await made.call(f"{domain}.enable")
        return made

    async def open(self, path: Path, *, dark: bool = False) -> None:
        """Load a page and wait until it stands."""
        self._page = path.as_uri()
        self._loaded.clear()
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[feature])
        await self.call("Page.navigate", url=self._page)
        await asyncio.wait_for(self._loaded.wait(), _REPLY_S)

    async def run(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        found = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    async def point_at(self, x: float, y: float) -> None:
        """Move the mouse there, in two steps, as plotly takes the first one for an entry."""
        for shift in (3, 0):
            await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + shift, y=y)
            await asyncio.sleep(0.2)

    async def click(self, x: float, y: float) -> None:
        """Press and release the mouse there."""
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def picture(self, path: Path) -> None:
        """What is to be seen, as PNG."""
        found = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        number = next(self._numbers)
        self._replies[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        reply = await asyncio.wait_for(self._replies[number], _REPLY_S)
        if "error" in reply:
            raise AssertionError(f"{method}: {reply['error']}")
        return dict(reply["result"])

    async def _read(self) -> None:
        async for message in self._socket:
            said = message.json()
            if "method" not in said:
                # Closing an alert box is waited for by nobody.
                if said["id"] in self._replies:
                    self._replies[said["id"]].set_result(said)
            else:
                await self._note(said["method"], said["params"])

    async def _note(self, event: str, said: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded.set()
        elif event == "Page.javascriptDialogOpening":
            self.dialogs.append(said["message"])
            await self._socket.send_json({"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}})
        elif event == "Network.requestWillBeSent":
            url = said["request"]["url"]
            if url != self._page and not url.startswith("data:"):
                self.requests.append(url)
                self._sent[said["requestId"]] = url
        elif event == "Network.loadingFailed" and said.get("blockedReason") == "csp":
            url = self._sent[said["requestId"]]
            self.requests.remove(url)
            self.blocked.append(url)
        elif event == "Runtime.exceptionThrown":
            self.errors.append(str(said["exceptionDetails"].get("exception", {}).get("description", said)))
        elif event == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(said["entry"]["text"])


@contextlib.asynccontextmanager
async def chromium(width: int = 1100, height: int = 900) -> AsyncIterator[Browser]:
    """A browser of its own, which ends with the block."""
    assert CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
        command = [CHROMIUM, *options, *_QUIET.split(), f"--window-size={width},{height}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = await _port(Path(profile) / "DevToolsActivePort", process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
                    pages = [one for one in await reply.json() if one["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield await Browser.on(socket)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


async def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    """The one the browser chose; it writes it down once it listens."""
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        text = file.read_text() if file.is_file() else ""
        if "\n" in text:
            return int(text.split("\n")[0])
        await asyncio.sleep(0.1)
    raise AssertionError(f"chromium did not start within {_START_S} s (exit status {process.poll()})")
