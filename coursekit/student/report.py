"""What a grader found, as Markdown for the student, as JSON, and as a table of all submissions."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coursekit.student import write

Entry = dict[str, Any]


def targets(files: Sequence[Path], to: Path | None, top: Path) -> dict[Path, Path]:
    """Submission → its report's path, less ".report.md": beside it, or in ``to``, named by the way from ``top`` to it: anna-hw1-01_….

    Where two names still meet, numbers tell them apart.
    """
    found: dict[Path, Path] = {}
    taken: set[str] = set()
    for file in files:
        stem = file.stem.strip(".") or "submission"   # a file may be called "..ipynb"
        folders = Path(os.path.abspath(file)).relative_to(top).parent.parts
        name = base = to / "-".join([*folders, stem]) if to else file.parent / stem
        number = 1
        while (same := str(name.resolve()).casefold()) in taken:   # two names that differ in case only are one file on some systems
            number += 1
            name = base.with_name(f"{base.name}-{number}")
        taken.add(same)
        found[file] = name
    return found


def named(base: Path, kind: str) -> Path:
    """The path of a report, of which ``base`` is what comes before ".report.md"."""
    return base.with_name(f"{base.name}.report.{kind}")


def score(entry: Entry) -> str:
    """One line: the points, or why there are none."""
    return f"not graded: {entry['problem']}" if entry["problem"] else f"{entry['points']} of {entry['possible']} points"


def write_report(entry: Entry, base: Path) -> None:
    """Write base.report.md and base.report.json."""
    write(named(base, "json"), json.dumps(entry, indent=1, ensure_ascii=False) + "\n")
    write(named(base, "md"), markdown(entry))


def markdown(entry: Entry) -> str:
    """The report that the student reads: a table, and below it what to look at, exactly as the notebook's check would print it."""
    whose = re.sub(r"[`\s]+", " ", entry["submission"])   # a file name may hold anything
    lines = [f"# `{whose}`, {entry['notebook'] or 'a notebook that was not recognised'}: {score(entry)}", ""]
    if entry["exercises"]:
        lines += ["| exercise | function | points | found |", "|---|---|---|---|"]
    for e in entry["exercises"]:
        lines.append(f"| {e['id']} | `{e['function']}` | {e['points']} of {e['possible']} | {e['verdict']} |")
    for e in entry["exercises"]:
        if e["message"]:
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", e["message"])), default=0))   # so that no message can end it
            lines += ["", f"## {e['id']}: {e['verdict']}", "", f"{fence}text", e["message"], fence]
    if any(e["verdict"] not in ("not read", "missing", "not attempted") for e in entry["exercises"]):
        limits = entry["limits"]
        gib = limits["memory_gib"]
        memory = f"{gib:g} GiB of memory" if gib else "no limit of memory, which this system does not offer"
        lines += ["", f"Each answer was tried in a process of its own, with {limits['seconds']:g} s and {memory}."]
    return "\n".join(lines) + "\n"


def write_table(entries: Sequence[Entry], ids: Sequence[str], path: Path) -> None:
    """One row a submission: its file, notebook and report, the points of each exercise, empty where it is another's, and in all."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    used = [i for i in ids if any(e["id"] == i for entry in entries for e in entry["exercises"])]
    rows.writerow(["submission", "notebook", "report", *used, "points", "possible", "problem"])
    for entry in entries:
        each = {e["id"]: e["points"] for e in entry["exercises"]}
        first = [entry["submission"], entry["notebook"], entry["report"]]
        cells = [*first, *map(each.get, used), entry["points"], entry["possible"], entry["problem"]]
        rows.writerow([f"'{cell}" if re.match(r"[-=+@\t\r]", str(cell)) else cell for cell in cells])   # no formula of a student's
    write(path, table.getvalue())
