"""Environments with Colab's versions. `python tests/colab/build_env.py` builds the one that is kept, and prints its interpreter."""
from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def python313() -> str | None:
    """A Python 3.13 that runs: COURSEKIT_PYTHON313, else python3.13 on PATH; None if there is none."""
    for candidate in (os.environ.get("COURSEKIT_PYTHON313"), shutil.which("python3.13")):
        if candidate and _version(candidate) == "3.13":   # pyenv's shims stand on PATH and may still refuse to run
            return candidate
    return None


def _version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def colab_environment(python: str) -> Path:
    """The interpreter of a virtual environment with what requirements.txt lists.

    COURSEKIT_COLAB_ENV names one that exists; else it is build/colab-env, built with `python` when requirements.txt has changed."""
    if existing := os.environ.get("COURSEKIT_COLAB_ENV"):
        return _interpreter(Path(existing))
    folder = ROOT / "build" / "colab-env"
    stamp, wanted = folder / "requirements.sha256", hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        print(f"Building {folder}: torch and other libraries, several GB, a few minutes.", file=sys.stderr)
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([_interpreter(folder), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return _interpreter(folder)


def layer_on(base: Path, folder: Path) -> Path:
    """The interpreter of a new virtual environment that sees the packages of `base`'s; pip installs into it and leaves those alone."""
    subprocess.run([base, "-m", "venv", str(folder)], check=True)
    (folder / site_packages(folder) / "base.pth").write_text(str(base.parents[1] / site_packages(base.parents[1])), encoding="utf-8")
    return _interpreter(folder)


def site_packages(environment: Path) -> Path:
    """Where a virtual environment keeps its packages, relative to it."""
    return next(environment.glob("lib/python3.*/site-packages")).relative_to(environment)


def _interpreter(environment: Path) -> Path:
    python = environment.absolute() / "bin" / "python"   # not resolved: it is a link, and its place is what makes it a virtual environment
    if not python.exists():
        raise FileNotFoundError(f"{python} does not exist; COURSEKIT_COLAB_ENV has to name a virtual environment")
    return python


if __name__ == "__main__":
    found = python313()
    if found is None:
        sys.exit("No Python 3.13 found; install one, or name it in COURSEKIT_PYTHON313")
    print(colab_environment(found))
