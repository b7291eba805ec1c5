"""What a reader of an explorer waits for: from a key press on a slider to the changed picture, in Chromium. By hand; not a part of CI.

    python tests/benchmarks/browser.py

Runs tests/browser/test_explorers.py, which presses keys on every slider, and writes one entry an explorer into
data/results/browser_latency.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

from measuring import keep, processor
from recording import ROOT


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()   # --help does nothing else, and an argument is refused
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "tests/browser/test_explorers.py", f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=True)
        properties = {entry.attrib["name"]: entry.attrib["value"] for entry in ElementTree.parse(report).iter("property")}
    sliders: dict[str, dict[str, list[float]]] = {}
    for name, value in properties.items():
        if found := re.fullmatch(r"latency_ms (\w+) (.+)", name):
            sliders.setdefault(found[1], {})[found[2]] = json.loads(value)
    if not sliders:
        raise SystemExit("no explorer was timed: the tests were skipped, or their report has changed")
    for explorer, samples in sliders.items():
        medians = {slider: median(values) for slider, values in samples.items()}
        common = {"command": "python tests/benchmarks/browser.py", "device": processor(), "n": min(map(len, samples.values()))}
        keep("browser_latency", explorer, {**common, "milliseconds": medians, "worst": max(max(values) for values in samples.values())})
        print(f"{explorer}: " + ", ".join(f"{slider} {value:.0f} ms" for slider, value in medians.items()))


if __name__ == "__main__":
    main()
