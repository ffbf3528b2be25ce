"""A JupyterLab of its own on loopback, and a headless Chromium that looks at it."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p4lab.errors import P4Error

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM_APPS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NO_CHROMIUM = "no working Chromium was found"
HOW_TO_INSTALL = (
    "Install one (Debian: apt-get install chromium; macOS: brew install --cask chromium),",
    "or name the program of any Chrome or Chromium in P4LAB_CHROMIUM.",
)
LAB_FLAGS = (
    "--no-browser",
    "--allow-root",
    "--ip=127.0.0.1",
    "--ServerApp.port_retries=0",
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
)
QUIET = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
START_SECONDS = 60
STOP_SECONDS = 20


class BrowserSetupError(P4Error, RuntimeError):
    """Something that a browser measurement or test needs is missing, or did not start."""


# --- Chromium ---


def runs(program: str) -> bool:
    """Whether the program starts: Ubuntu's `chromium-browser` may be a mere hint to install a snap."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_chromium() -> str | None:
    """Return the path of a Chromium that starts: P4LAB_CHROMIUM if set, else the first on PATH, else a macOS app."""
    named = os.environ.get("P4LAB_CHROMIUM")
    if named:
        found = [shutil.which(named)]
    else:
        apps = [str(root) + app for app in CHROMIUM_APPS for root in ("", Path.home())]
        found = [shutil.which(name) for name in (*CHROMIUM_NAMES, *apps)]
    return next((path for path in found if path and runs(path)), None)


@contextmanager
def chromium(path: str | None = None) -> Iterator[Any]:
    """Start a headless Chromium, and end it.

    Args:
        path: the program (None: `find_chromium`).

    Yields:
        Playwright's `Browser`.

    Raises:
        BrowserSetupError: no Chromium, or no Playwright.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise BrowserSetupError(
            "the browser is driven by playwright, which is not installed: pip install 'p4lab[test]'"
        ) from error
    program = path or find_chromium()
    if program is None:
        raise BrowserSetupError("\n".join((f"{NO_CHROMIUM}.", *HOW_TO_INSTALL)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(CHROMIUM_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


# --- JupyterLab ---


@dataclass
class Server:
    """A running JupyterLab.

    Attributes:
        url: where it is.
        token: what it asks for.
        folder: the notebooks that it shows.
        settings: folder of its users' settings.
    """

    url: str
    token: str
    folder: Path
    settings: Path

    def end_kernels(self) -> None:
        """End all kernels, and with them every widget of their notebooks."""
        for session in json.loads(self._request("api/sessions")):
            self._request(f"api/sessions/{session['id']}", "DELETE")

    def _request(self, path: str, method: str = "GET", timeout: float = 30.0) -> bytes:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/{path}", headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return bytes(answer.read())

    def _wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            try:
                self._request("api/status", timeout=1.0)
                return
            except OSError:
                time.sleep(0.1)
        raise BrowserSetupError(f"JupyterLab did not start:\n{log.read_text(errors='replace')}")


@contextmanager
def jupyterlab(notebooks: Path, home: Path) -> Iterator[Server]:
    """Start a JupyterLab on copies of notebooks, with private configuration and a token, and end it with its kernels.

    Args:
        notebooks: folder to copy; the originals stay as they are.
        home: an empty folder for the copies, configuration, and log.

    Raises:
        BrowserSetupError: the server did not start; its log is in the message.
    """
    folder, settings = home / "notebooks", home / "settings"
    shutil.copytree(notebooks, folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    notifications = settings / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    notifications.parent.mkdir(parents=True)
    notifications.write_text(json.dumps(QUIET))
    port = _free_port()
    server = Server(f"http://127.0.0.1:{port}", secrets.token_hex(16), folder, settings)
    environment = {
        **os.environ,
        "JUPYTER_PLATFORM_DIRS": "1",  # without it, jupyter_core warns
        "JUPYTER_TOKEN": server.token,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    command = [sys.executable, "-m", "jupyterlab", *LAB_FLAGS, f"--port={port}", f"--ServerApp.root_dir={folder}"]
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            server._wait(process, log)
            yield server
        finally:
            _end(process)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # the server ends its kernels
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
