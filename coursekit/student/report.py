"""What a grader found, as Markdown for the student, as JSON, and as a table of all submissions."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coursekit.student import write

Entry = dict[str, Any]


def targets(files: Sequence[Path], to: Path | None) -> dict[Path, Path]:
    """Submission → its report's path, less ".report.md". Where names meet, each begins with its folder's; numbers tell the rest apart."""
    bases = {file: (to or file.parent) / file.stem for file in files}
    crowded = to and max(Counter(map(_same, bases.values())).values()) > 1
    found: dict[Path, Path] = {}
    taken: set[str] = set()
    for file, base in bases.items():
        base = base.with_name(f"{file.resolve().parent.name}-{base.name}") if crowded else base
        name, number = base, 1
        while _same(name) in taken:
            number += 1
            name = base.with_name(f"{base.name}-{number}")
        taken.add(_same(name))
        found[file] = name
    return found


def _same(path: Path) -> str:
    return str(path.resolve()).casefold()   # two names that differ in case only are one file on some systems


def score(entry: Entry) -> str:
    """One line: the points, and what is wrong with the whole submission."""
    possible = "?" if entry["possible"] is None else entry["possible"]
    return f"{entry['points']} of {possible} points" + (f"; not graded: {entry['problem']}" if entry["problem"] else "")


def write_report(entry: Entry, base: Path) -> None:
    """Write base.report.md and base.report.json; folders are made."""
    base.parent.mkdir(parents=True, exist_ok=True)
    write(base.with_name(base.name + ".report.json"), json.dumps(entry, indent=1, ensure_ascii=False) + "\n")
    write(base.with_name(base.name + ".report.md"), markdown(entry))


def markdown(entry: Entry) -> str:
    """The report that the student reads: a table, and below it what to look at, exactly as the notebook's check would print it."""
    lines = [f"# {entry['notebook'] or 'A notebook that was not recognised'}: {score(entry)}", ""]
    if entry["exercises"]:
        lines += ["| exercise | function | points | found |", "|---|---|---|---|"]
    for e in entry["exercises"]:
        lines.append(f"| {e['id']} | `{e['function']}` | {e['points']} of {e['possible']} | {e['verdict']} |")
    for e in entry["exercises"]:
        if e["message"]:
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", e["message"])), default=0))   # so that no message can end it
            lines += ["", f"## {e['id']}: {e['verdict']}", "", f"{fence}text", e["message"], fence]
    limits = entry["limits"]
    memory = f"{limits['memory_gib']:g} GiB of memory" if limits["memory_gib"] else "no limit of memory, which this system does not offer"
    lines += ["", f"Each answer was tried in a process of its own, with {limits['seconds']:g} s and {memory}."]
    return "\n".join(lines) + "\n"


def write_table(entries: Sequence[Entry], ids: Sequence[str], path: Path) -> None:
    """One row a submission: its file, its notebook, the points of each exercise, empty where it is another notebook's, and in all."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    used = [i for i in ids if any(e["id"] == i for entry in entries for e in entry["exercises"])]
    rows.writerow(["submission", "notebook", *used, "points", "possible", "problem"])
    for entry in entries:
        each = {e["id"]: e["points"] for e in entry["exercises"]}
        cells = [entry["submission"], entry["notebook"], *map(each.get, used), entry["points"], entry["possible"], entry["problem"]]
        rows.writerow([f"'{cell}" if str(cell).startswith(("=", "+", "-", "@")) else cell for cell in cells])   # no formula of a student's
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, table.getvalue())
