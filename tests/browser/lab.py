"""A JupyterLab server of its own for the tests, and a notebook opened in it.

The server's root folder, settings, workspaces and kernels are temporary: nothing in the checkout or in the reader's own
Jupyter folders is read or changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, ConsoleMessage, Page

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("page.js")

# User settings of JupyterLab, by plugin. Without windowing every cell stays attached to the page, so that widgets off the
# screen exist; without news and update checks there is no pop-up over the controls and no request to the network.
LAB_SETTINGS: dict[str, dict[str, Any]] = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "@jupyterlab/extensionmanager-extension/plugin": {"enabled": False},
}

# What JupyterLab says in the browser's console of itself, whatever the notebook does.
CONSOLE_NOISE: tuple[re.Pattern[str], ...] = ()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class LabServer:
    """A JupyterLab process below `folder`; notebooks that are to be opened go below `root`."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def log_file(self) -> Path:
        return self.folder / "jupyterlab.log"

    def log(self, start: int = 0) -> str:
        """The log from byte `start` on; kernels write theirs to it as well."""
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")

    def start(self, timeout: float = 120.0) -> None:
        """Start the server and wait until it answers. Raises RuntimeError with the log when it does not within `timeout` seconds."""
        environment = self._prepare()
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
            "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self.port}", "--ServerApp.port_retries=0",
            "--IdentityProvider.token=", "--PasswordIdentityProvider.hashed_password=",
            f"--ServerApp.root_dir={self.root}",
            "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
        ]  # fmt: skip
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=self.root, env=environment, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self.process.poll() is not None:
                raise RuntimeError(f"JupyterLab ended with status {self.process.returncode} before it answered. Its log:\n{self.log()}")
            if time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"JupyterLab did not answer at {self.url} within {timeout:.0f} s. Its log:\n{self.log()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server, which ends its kernels."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def write_notebook(self, name: str, *cells: str) -> str:
        """Write a notebook of code cells below the root and return its path there."""
        import nbformat

        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(notebook, self.root / name)
        return name

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/status", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _prepare(self) -> dict[str, str]:
        self.root.mkdir(parents=True)
        if (REPOSITORY / "notebooks").is_dir():
            clutter = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
            shutil.copytree(REPOSITORY / "notebooks", self.root / "notebooks", ignore=clutter)
        settings = self.folder / "settings"
        for plugin, values in LAB_SETTINGS.items():
            file = settings / f"{plugin}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values), encoding="utf-8")
        # The kernel named python3 is the interpreter that runs the tests, whatever kernels are registered for the user.
        kernel = self.folder / "data" / "kernels" / "python3"
        kernel.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel.joinpath("kernel.json").write_text(
            json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}), encoding="utf-8"
        )
        python_path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        return {
            **os.environ,
            "COURSEKIT_MODE": "fast",
            "PYTHONPATH": python_path,
            "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
            "JUPYTER_DATA_DIR": str(self.folder / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(settings),
            "JUPYTERLAB_WORKSPACES_DIR": str(self.folder / "workspaces"),
            "IPYTHONDIR": str(self.folder / "ipython"),
        }


class NotebookPage:
    """A notebook opened in a browser, with what went wrong in it: see `errors`."""

    def __init__(self, server: LabServer, context: BrowserContext) -> None:
        self.server = server
        self.context = context
        context.add_init_script(path=SCRIPT)
        self.page: Page = context.new_page()
        self._log_start = len(server.log().encode())
        self._console: list[str] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self._console.append(f"uncaught: {error}"))

    def _on_console(self, message: ConsoleMessage) -> None:
        text = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" and not any(pattern.search(text) for pattern in CONSOLE_NOISE):
            self._console.append(text)

    def open(self, path: str, mode: Literal["doc", "lab"] = "doc", timeout: float = 120.0) -> None:
        """Open the notebook at `path` below the server's root, alone ("doc") or in the whole Lab, and wait for its kernel."""
        self.page.goto(f"{self.server.url}/{mode}/tree/{quote(path)}?reset")
        name = Path(path).name
        self._wait(
            "name => window.coursekit?.notebook()?.context?.path?.endsWith(name) && coursekit.notebook().content?.model",
            f"{path} did not open",
            timeout,
            name,
        )
        self.page.evaluate("() => { window.progress = {phase: 'opened'}; coursekit.connect(window.progress); }")
        self._wait("() => window.progress.phase === 'ready'", f"{path} has no kernel that answers", timeout)

    def run_all(self, timeout: float = 900.0) -> None:
        """Clear all outputs, run all cells, and wait until each has finished or one has failed (`errors` says which)."""
        self.page.evaluate("() => { window.progress = {phase: 'clearing'}; coursekit.runAll(window.progress); }")
        self._wait("() => !['clearing', 'running'].includes(window.progress.phase)", "the cells have not finished", timeout)
        phase = self.page.evaluate("window.progress.phase")
        if phase != "finished":
            raise AssertionError(f"JupyterLab did not run the cells: {phase}")
        if not self.errors():
            self._wait("() => coursekit.unfinished().length === 0", "some code cells did not run", 30.0)
            self._wait("() => coursekit.unrendered() === 0", "some widgets are not shown", 30.0)
        self.settle()

    def settle(self, timeout: float = 60.0) -> None:
        """Wait until the kernel has answered everything that the page asked of it."""
        self.page.evaluate("coursekit.resetCalm()")
        self._wait("() => coursekit.isCalm()", "the kernel does not come to rest", timeout)

    def errors(self) -> list[str]:
        """Whatever went wrong so far, each with the place where it showed."""
        found: list[str] = []
        if not self.page.is_closed():
            found += [f"[cell output] {text}" for text in self.page.evaluate("coursekit.cellErrors()")]
            found += [f"[log console] {text}" for text in self.page.evaluate("coursekit.logged")]
            found += [f"[widget] {text}" for text in self.page.evaluate("coursekit.brokenWidgets()")]
        found += [f"[browser console] {text}" for text in self._console]
        log = self.server.log(self._log_start)
        if "Traceback (most recent call last)" in log:
            found.append(f"[server or kernel log] {log[log.index('Traceback (most recent call last)') :]}")
        return found

    def screenshot(self, file: Path) -> None:
        """Save what the browser shows."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=file)

    def close(self) -> None:
        """Close the page and shut down its kernel, so that one test's memory and processor time are not the next one's."""
        self.page.close()
        token = next((cookie["value"] for cookie in self.context.cookies() if cookie["name"] == "_xsrf"), "")
        sessions = f"{self.server.url}/api/sessions"
        for session in self.context.request.get(sessions).json():
            self.context.request.delete(f"{sessions}/{session['id']}", headers={"X-XSRFToken": token})
        self.context.close()

    def _wait(self, condition: str, failure: str, timeout: float, argument: object = None) -> None:
        from playwright.sync_api import TimeoutError as PlaywrightTimeout

        try:
            self.page.wait_for_function(condition, arg=argument, timeout=timeout * 1000)
        except PlaywrightTimeout:
            phase = self.page.evaluate("window.progress?.phase ?? 'page not loaded'")
            dialogs: Sequence[str] = self.page.locator(".jp-Dialog-content").all_inner_texts()
            details = [f"last step: {phase}", *(f"open dialog: {text!r}" for text in dialogs), *self.errors()]
            raise AssertionError(f"{failure} within {timeout:.0f} s\n" + "\n".join(details)) from None
