"""Records of longer runs, which the notebooks quote: each holds its command, commit, device, seed and numbers."""

from __future__ import annotations

import json
from typing import Any

from coursekit.data.sources import DataError, shipped


def results(name: str) -> dict[str, Any]:
    """What ``data/results/<name>.json`` holds. Raises ``DataError`` for a name without a record."""
    file = shipped("results") / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.json")))
        raise DataError(f"there is no record {name!r} in {file.parent}; there are {known or 'none'}")
    return json.loads(file.read_text("utf-8"))
