"""Start an attempt, wait for its verdict no longer than allowed, and end it with all that it has started."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import coursekit

START = 300.0   # seconds for imports and for what the notebook itself computes: a busy machine can be slow
SECONDS = 20.0  # for an answer, unless told otherwise
MEMORY = 4.0    # GiB, likewise
BROKEN = "could not be tried"   # the verdict where the fault is not the student's


@dataclass(frozen=True)
class Job:
    """An answer to try.

    ``always``: the notebook's first cells, executed whole. ``before``: its other cells above the exercise; of these, only the
    statements that the answer needs are. ``earlier``: number → name of the exercises above, which the package's own functions
    stand in for. ``above``, ``below``: the student's other cells above and below the answer, and whether they are new, that is,
    not handed out and then edited. ``seconds``, ``memory`` (GiB).
    """

    number: str
    name: str
    answer: str
    always: list[str]
    before: list[str]
    earlier: dict[str, str]
    above: list[tuple[str, bool]]
    below: list[tuple[str, bool]]
    seconds: float = SECONDS
    memory: float = MEMORY


class Fence:
    """Runs attempts, from several threads if need be; ``end`` ends those under way."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()

    def attempt(self, job: Job) -> tuple[str, str]:
        """The verdict on an answer, and the message for its student. A verdict without a message says all."""
        word = secrets.token_hex(16)
        folders, file = tempfile.TemporaryDirectory(ignore_cleanup_errors=True), tempfile.TemporaryFile
        with folders as folder, file() as stdin, file() as stderr:
            stdin.write(json.dumps(asdict(job) | {"word": word}).encode())
            stdin.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-m", "coursekit.student.attempt"], cwd=folder, env=_environment(folder),
                stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True,
            )  # fmt: skip
            self._running.add(process)
            lines: queue.SimpleQueue[Any] = queue.SimpleQueue()
            threading.Thread(target=_listen, args=(process.stdout, word.encode(), lines.put), daemon=True).start()
            try:
                return _await_verdict(process, lines, job, stderr)
            finally:
                _kill(process)
                self._running.discard(process)

    def end(self) -> None:
        """Kill the attempts under way; their verdicts say so."""
        for process in list(self._running):
            _kill(process)


def _environment(folder: str) -> dict[str, str]:
    """As notebooks are executed to be compared; on one thread, since two attempts share the machine, and never on a GPU."""
    root = str(Path(coursekit.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    settings = {"COURSEKIT_MODE": "fast", "COURSEKIT_QUIET": "1", "MPLBACKEND": "agg", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return os.environ | settings | {"PYTHONPATH": path, "TMPDIR": folder, "PYTHONDONTWRITEBYTECODE": "1"}


def _listen(pipe: IO[bytes], word: bytes, tell: Callable[[Any], None]) -> None:
    """Tell each line that begins with the secret word, then None; whatever else comes over the pipe is dropped."""
    with pipe:
        for line in iter(lambda: pipe.readline(100_000), b""):
            if line.startswith(word):
                tell(json.loads(line[len(word) :]))
        tell(None)


def _await_verdict(process: subprocess.Popen[bytes], lines: queue.SimpleQueue[Any], job: Job, stderr: IO[bytes]) -> tuple[str, str]:
    limits = {"start": START, "reading": job.seconds, "context": START, "answer": job.seconds}
    phase = "start"
    while True:
        try:
            line = lines.get(timeout=limits[phase])
        except queue.Empty:
            if phase in ("start", "context"):
                return BROKEN, f"the notebook's own cells took longer than {START:g} s. Grade again on a machine that is less busy."
            return "stopped", f"your code ran for longer than {job.seconds:g} s. Is there a loop that does not end?"
        if line is None:
            break
        if line[0] == "verdict":
            return line[1], line[2]
        phase = line[0]
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    if phase in ("start", "context"):
        stderr.seek(0)
        tail = stderr.read()[-2000:].decode("utf-8", "replace").strip()
        return BROKEN, f"the notebook's own cells did not run to their end; this is not the student's fault.\n{tail}"
    code = process.returncode
    how = "fell silent" if code is None else f"ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
    return "stopped", f"the process that ran your code {how} before all was checked. Does it end Python, or need too much memory?"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it has started, which is in its process group unless it took pains to leave it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
