"""Grade submissions: read what students hand in, tolerantly; try each answer beside the original's cells; write reports."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from coursekit.student import StudentError, make_folder, report
from coursekit.student.attempt import has_check, memory_is_limited
from coursekit.student.build import Task, student_notebook
from coursekit.student.fence import BROKEN, MEMORY, SECONDS, Fence, Job
from coursekit.workbook.notebooks import code_cells, sources

LARGEST = 64 * 2**20   # bytes of a submission; those that we hand out have 2
LONGEST = 200_000      # characters of a cell that is read
AT_ONCE = 2            # attempts
MISSING = "no cell with this function was found. Take it from the notebook as it was handed out."
TOO_LONG = f"your cell has {LONGEST} characters or more, too many to be read. Keep the function, and put what is long into another cell."
RENAMED = "your cell no longer defines {}. Give the function this name again."
Verdict = tuple[str, str]   # and the message for the student
Submit = Callable[[Job], Future[Verdict]]


class Unreadable(Exception):
    """A submission that cannot be graded; the message says why, and what its student should do."""


@dataclass
class Submission:
    """The code cells of what was handed in, id → source in order (a cell without id gets one), and which notebook it says it is."""

    path: Path
    cells: dict[str, str] = field(default_factory=dict)
    claim: str = ""


@dataclass(frozen=True)
class Original:
    """A notebook as it was handed out."""

    name: str
    tasks: list[Task]
    cells: list[NotebookNode]


def read(path: Path) -> Submission:
    """The submission in the file ``path``. Raises ``Unreadable`` for anything but a notebook of Python cells in format 4."""
    try:
        size = path.stat().st_size
        if not size:
            raise Unreadable("the file is empty. Save the notebook and hand it in again.")
        if size > LARGEST:
            raise Unreadable(f"the file has {size / 2**20:.0f} MiB, and {LARGEST >> 20} are read. Clear its outputs, save, hand it in.")
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise Unreadable("the file is no notebook, or damaged: it is no UTF-8 text. Hand in the .ipynb file itself, complete.") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the file is no notebook, or cut off: {error}. Hand in the .ipynb file itself, complete.") from error
    if not isinstance(content, dict) or not isinstance(content.get("nbformat"), int):
        raise Unreadable("the file is no notebook: it says no notebook format. Hand in the .ipynb file itself.")
    if content["nbformat"] != 4 or not isinstance(content.get("cells"), list):
        found = f"the notebook has format {content['nbformat']}, and 4 is read"
        raise Unreadable(f"{found}. Open it in a current Jupyter, save, hand it in again.")
    metadata = _mapping(content.get("metadata"))
    kernel, language = _mapping(metadata.get("kernelspec")), _mapping(metadata.get("language_info"))
    for name in (kernel.get("language"), language.get("name")):
        if name is not None and not str(name).lower().startswith(("python", "ipython")):
            spoken = " ".join(str(name).split())[:40]   # on one line: it may hold what would look like a line of the report's own
            raise Unreadable(f"the notebook's kernel speaks {spoken}, not Python. Choose a Python kernel, save, hand it in again.")
    submission = Submission(path, claim=str(_mapping(metadata.get("coursekit")).get("notebook", "")))
    for number, cell in enumerate(map(_mapping, content["cells"])):
        if cell.get("cell_type") == "code":
            cell_id = str(cell.get("id") or _mapping(cell.get("metadata")).get("id") or "")   # Colab moves it into the metadata
            source = cell.get("source") or ""
            source = ("".join(map(str, source)) if isinstance(source, list) else str(source)).replace("\r\n", "\n")
            submission.cells[cell_id if cell_id and cell_id not in submission.cells else f"cell {number}"] = source[:LONGEST]
    return submission


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def recognise(submission: Submission, originals: dict[str, Original]) -> Original:
    """Which notebook it is: as it says, else as the file is called, else by the functions in it. Raises ``Unreadable`` where none tells."""
    if submission.claim in originals:
        return originals[submission.claim]
    if named := by_name(submission.path, originals):
        return named
    counts = {name: sum(find(task, submission.cells) is not None for task in o.tasks) for name, o in originals.items()}
    best = [name for name, count in counts.items() if count == max(counts.values()) > 0]
    if len(best) != 1:
        raise Unreadable(f"it cannot be told which notebook this is. Name the file as it was handed out: {', '.join(originals)}.")
    return originals[best[0]]


def by_name(path: Path, originals: dict[str, Original]) -> Original | None:
    """The notebook after which the file is called, whatever stands before or after its name."""
    return next((original for name, original in originals.items() if name in path.name), None)


def find(task: Task, cells: dict[str, str]) -> str | None:
    """The student's cell for an exercise, among those that define its function: one at the margin, and not as it was handed out, if any is.

    Of these the last that stands in or above the last of the exercise's checks, whose verdict is the notebook's last word; with
    none there, the one with the exercise's id, else the first.
    """
    definition = rf"^([ \t]*)(?:(?:async[ \t]+)?def[ \t]+{task.name}\b|{task.name}[ \t]*=[ \t]*lambda\b)"
    found = {i: min(map(len, m)) for i, source in cells.items() if (m := re.findall(definition, source, re.MULTILINE))}
    own, stub = task.stub.id, task.stub.source.strip()
    if re.search(rf"^{task.name}\b[^=\n(]*=(?!=)(?! *exercises\b)", cells.get(own, ""), re.MULTILINE):
        found[own] = 0
    place = {i: number for number, i in enumerate(cells, 1)}
    last = max((place[i] for i, source in cells.items() if source.strip() != stub and has_check(source, task.number)), default=0)
    return min(found, key=lambda i: (found[i] > 0, cells[i].strip() == stub, -place[i] if place[i] <= last else 0, i != own), default=None)


def prepare(original: Original, submission: Submission, seconds: float, memory: float) -> dict[str, Job | Verdict]:
    """Exercise → what is to be run, or the verdict where nothing has to be."""
    handed_out = {cell.id: cell.source.strip() for cell in original.cells}
    cells, known = submission.cells, set(handed_out.values())
    written = [(source, i not in handed_out) for i, source in cells.items()]
    found: dict[str, Job | Verdict] = {}
    earlier: dict[str, str] = {}
    for task in original.tasks:
        answer = find(task, cells)
        if answer is None:
            found[task.number] = "missing", RENAMED.format(task.name) if task.stub.id in cells else MISSING
        elif cells[answer].strip() == task.stub.source.strip():
            found[task.number] = "not attempted", ""
        elif len(cells[answer]) == LONGEST:
            found[task.number] = "not right yet", TOO_LONG
        else:
            first = original.cells[: original.cells.index(task.stub)]
            always = [cell.source for cell in first if _is_first(cell)]
            before = [cell.source for cell in first if not _is_first(cell) and not cell.id.startswith("exercise-")]
            at = list(cells).index(answer)
            above, below = ([cell for cell in part if cell[0].strip() not in known] for part in (written[:at], written[at + 1 :]))
            found[task.number] = Job(
                task.number, task.name, cells[answer], always, before, dict(earlier), above, below, seconds, memory
            )  # fmt: skip
        earlier[task.number] = task.name
    return found


def _is_first(cell: NotebookNode) -> bool:
    """Whether a cell sets up what all others stand on: it is tagged so, or begins with an import."""
    return bool({"setup", "parameters"} & set(cell.metadata.get("tags", []))) or cell.source.startswith(("import ", "from "))


@dataclass
class Begun:
    """A submission under way: ``problem`` is what is wrong with the whole; exercise → what was found, or the attempt that will say."""

    path: Path
    original: Original | None
    problem: str = ""
    verdicts: dict[str, Verdict | Future[Verdict]] = field(default_factory=dict)


def grade(root: Path, paths: Sequence[Path], to: Path | None = None, seconds: float = SECONDS, memory: float = MEMORY) -> int:
    """Grade all submissions among ``paths`` (files, and folders of .ipynb), write their reports, and return the exit status.

    Reports go to ``to``, or beside each submission; for more than one submission a table of all is written too.
    0: each was graded; 1: some could not be, as their reports say. Raises ``StudentError`` where there is nothing to grade.
    """
    built = {path.stem: student_notebook(path) for path in sources(root)}
    originals = {name: Original(name, tasks, code_cells(notebook)) for name, (notebook, tasks) in built.items()}
    files = _files(paths)
    if to:
        make_folder(to)
    top = os.path.commonpath([os.path.abspath(path if path.is_dir() else path.parent) for path in paths])
    targets, fence = report.targets(files, to, Path(top)), Fence()
    limits = {"seconds": seconds, "memory_gib": memory if memory_is_limited() else None}
    entries, unwritten = [], 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for begun in [_begin(path, originals, seconds, memory, lambda job: pool.submit(fence.attempt, job)) for path in files]:
                entry = _entry(begun) | {"limits": limits, "report": str(report.named(targets[begun.path], "md"))}
                entries.append(entry)
                print(f"{begun.path}: {report.score(entry)}", flush=True)
                unwritten += _failed(report.write_report, entry, targets[begun.path])
        except BaseException:   # Ctrl-C above all: nothing of a student's may go on running
            pool.shutdown(wait=False, cancel_futures=True)
            fence.end()
            raise
    if len(files) > 1:
        table = (to or (paths[0] if paths[0].is_dir() else paths[0].parent)) / "grades.csv"
        ids = [task.id for original in originals.values() for task in original.tasks]
        if _failed(report.write_table, entries, ids, table):
            unwritten += 1
        else:
            print(f"All of them: {table}")
    return int(unwritten > 0 or any(e["problem"] or BROKEN in [x["verdict"] for x in e["exercises"]] for e in entries))


def _failed(write: Callable[..., None], *arguments: Any) -> bool:
    """Write, or say on stderr what could not be written: that is no reason to lose the others."""
    try:
        write(*arguments)
    except OSError as error:
        print(error, file=sys.stderr)
        return True
    return False


def _files(paths: Sequence[Path]) -> list[Path]:
    """The submissions, each once; of a folder, the notebooks in it and in the folders below."""
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise StudentError(f"{path} does not exist; name submissions, or a folder of them")
        for file in _inside(path) if path.is_dir() else [path]:
            if file.is_dir():
                print(f"{file}: nothing was handed in here, the folder is empty")
            elif path.is_dir() and file.suffix.lower() != ".ipynb":
                if not re.search(r"\.report\.(md|json)$|^grades\.csv$", file.name):
                    print(f"{file}: not read, it is no .ipynb")
            else:
                found.setdefault(file.resolve(), file)
    if not found:
        raise StudentError(f"there is no .ipynb in {', '.join(map(str, paths))}")
    return list(found.values())


def _inside(folder: Path) -> list[Path]:
    """All files in ``folder`` and below, links that lead nowhere too, and the empty folders.

    Raises ``StudentError`` for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise StudentError(f"{error.filename} cannot be read: {error.strerror}; make it readable, or name the others only") from error

    found = (Path(place, name) for place, below, names in os.walk(folder, onerror=refuse) for name in names or ([] if below else [""]))
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def _begin(path: Path, originals: dict[str, Original], seconds: float, memory: float, submit: Submit) -> Begun:
    """Read a submission and start its attempts."""
    try:
        submission = read(path)
        original = recognise(submission, originals)
    except Unreadable as error:
        return Begun(path, by_name(path, originals), problem=str(error))
    prepared = prepare(original, submission, seconds, memory)
    return Begun(path, original, verdicts={n: submit(job) if isinstance(job, Job) else job for n, job in prepared.items()})


def _entry(begun: Begun) -> dict[str, Any]:
    """What the report says, when all attempts have ended."""
    original, exercises = begun.original, []
    for task in original.tasks if original else []:
        found = begun.verdicts.get(task.number, ("not read", ""))
        verdict, message = found if isinstance(found, tuple) else found.result()
        worth = {"points": task.points if verdict == "right" else 0, "possible": task.points}
        exercises.append({"id": task.id, "function": task.name, **worth, "verdict": verdict, "message": message})
    return {
        "submission": str(begun.path),
        "notebook": original.name if original else None,
        "problem": begun.problem,
        "points": sum(e["points"] for e in exercises),
        "possible": sum(e["possible"] for e in exercises) if original else None,
        "exercises": exercises,
    }
