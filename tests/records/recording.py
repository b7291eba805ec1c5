"""How a run is kept under data/results: what it found, with its date, commit and versions."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]


def keep(name: str, key: str, record: Mapping[str, Any]) -> Path:
    """Write ``record`` as the entry ``key`` of data/results/NAME.json, beside the entries that are there."""
    file = ROOT / "data" / "results" / f"{name}.json"
    records = json.loads(file.read_text("utf-8")) if file.exists() else {}
    made = {"date": datetime.date.today().isoformat(), "commit": commit(), "python": platform.python_version(), "torch": torch.__version__}
    records[key] = {**made, **_rounded(record)}
    file.write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n", "utf-8")
    return file


def commit() -> str:
    """The commit that runs, with "-dirty" where a file other than the records differs from it."""

    def git(*words: str) -> str:
        return subprocess.check_output(["git", *words], cwd=ROOT, text=True).strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!data/results")
    return git("rev-parse", "--short", "HEAD") + "-dirty" * bool(changed)


def _rounded(node: Any) -> Any:
    if isinstance(node, float):
        return round(node, 4)
    if isinstance(node, Mapping):
        return {key: _rounded(value) for key, value in node.items()}
    return [_rounded(item) for item in node] if isinstance(node, list | tuple) else node
