"""Numbers in prose come from records: the running time that each notebook states lies above the one recorded for it."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stated_time_is_the_recorded_one(path):
    record = json.loads((ROOT / "data" / "results" / "run_times.json").read_text())[path.stem]
    assert record["mode"] == "fast" and not record["cuda"], "the record is not of fast mode on a CPU: run make notebooks"
    stated = re.search(r"Running: under (\d+) seconds on two CPU cores", path.read_text())
    assert stated, "the first cell does not say how long the notebook runs"
    assert record["seconds"] < int(stated[1])
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if f"(notebooks/{path.stem}.ipynb)" in line)
    assert f"under {stated[1]} s" in row
