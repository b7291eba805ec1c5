"""Run a notebook's checks for ten seeds, so that no verdict hangs on one.

    python tests/ten_seeds.py notebooks/02_diffusion_1d.py

Executes the cells in fast mode once for each of the seeds 1 … 10 in the place of the notebook's own, lets every claim go
on whatever its verdict, and records for each bounded claim the range of what was found, in data/results/ten_seeds.json.
Prints the claims that failed for some seed. To be run by hand when a threshold is fixed; not a part of CI.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ |= {"COURSEKIT_MODE": "fast", "COURSEKIT_QUIET": "1", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}

import matplotlib.pyplot as plt
import torch

from coursekit import checks

ROOT = Path(__file__).resolve().parents[1]
SEEDS = range(1, 11)
Numbers = dict[str, list[float]]
Seeds = dict[str, list[int]]


def run(path: Path, seed: int) -> tuple[Numbers, Seeds]:
    """Execute all code cells with ``seed``: what each claim found, and those that failed."""
    source = path.read_text(encoding="utf-8")
    found: Numbers = defaultdict(list)
    failed: Seeds = defaultdict(list)
    os.chdir(path.parent)

    def note(claim: str, bound: str, holds: bool, message: str, hint: str) -> None:
        name = f"{claim}  ({bound})"
        if number := re.fullmatch(r"found ([-+\d.e]+)", message):
            found[name].append(float(number[1]))
        if not holds:
            failed[name].append(seed)

    checks._verdict, checks._say = note, lambda line: None
    seeded, count = re.subn(r"seed_everything\(\d+\)", f"seed_everything({seed})", source)
    assert count == 1, "the notebook must call seed_everything(…) exactly once"
    cells = re.split(r"(?m)^# %%(.*)$", seeded)
    names: dict[str, object] = {"__name__": "__main__"}
    for head, body in zip(cells[1::2], cells[2::2], strict=True):
        if "[markdown]" in head:
            continue
        try:
            exec(compile(body, body.strip()[:60], "exec"), names)
        except checks.CheckFailed as failure:   # of check_fails and check_raises, which give no number
            failed[str(failure).splitlines()[0]].append(seed)
        plt.close("all")
    return found, failed


def main(path: Path) -> None:
    found: Numbers = defaultdict(list)
    failed: Seeds = defaultdict(list)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:   # a seed on each core
        for seed, (numbers, seeds) in zip(SEEDS, pool.map(partial(run, path), SEEDS), strict=True):
            print(f"seed {seed} of {len(SEEDS)} done", flush=True)
            for name, values in numbers.items():
                found[name] += values
            for name, at in seeds.items():
                failed[name] += at
    ranges = {name: [min(values), max(values)] for name, values in found.items() if min(values) != max(values)}
    file = ROOT / "data" / "results" / "ten_seeds.json"
    records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    records[path.stem] = {
        "command": f"python tests/ten_seeds.py notebooks/{path.name}",
        "seeds": [SEEDS[0], SEEDS[-1]],
        "device": "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "failed": failed,
        "found": ranges,
    }
    file.write_text(json.dumps(dict(sorted(records.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, seeds in failed.items():
        print(f"fails for {seeds}: {name}")
    print(f"{path.stem}: {len(ranges)} claims that depend on the seed, {len(failed)} of all fail for some seed; recorded in {file.name}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())
