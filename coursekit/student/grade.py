"""Grade submissions: read what students hand in, tolerantly; try each answer beside the original's cells; write reports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from coursekit.student import StudentError, report
from coursekit.student.attempt import memory_is_limited
from coursekit.student.build import Task, student_notebook
from coursekit.student.fence import BROKEN, Fence, Job
from coursekit.workbook.notebooks import code_cells, sources

LARGEST = 64 * 2**20   # bytes of a submission; those that we hand out have 2
LONGEST = 200_000      # characters of a cell that is read
AT_ONCE = 2            # attempts
MISSING = "no cell with this function was found. Take it from the notebook as it was handed out."
Submit = Callable[[Job], Future[tuple[str, str]]]


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
    """The submission in the file ``path``. Raises Unreadable for anything but a notebook of Python cells in format 4."""
    try:
        size = path.stat().st_size
        if not size:
            raise Unreadable("the file is empty. Save the notebook and hand it in again.")
        if size > LARGEST:
            raise Unreadable(f"the file has {size / 2**20:.0f} MiB, and {LARGEST >> 20} are read. Clear its outputs, save, hand it in.")
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}.") from error
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
            raise Unreadable(f"the notebook's kernel speaks {str(name)[:40]}, not Python. Choose a Python kernel, save, hand it in again.")
    submission = Submission(path, claim=str(_mapping(metadata.get("coursekit")).get("notebook", "")))
    for number, cell in enumerate(map(_mapping, content["cells"])):
        if cell.get("cell_type") == "code":
            cell_id = str(cell.get("id") or _mapping(cell.get("metadata")).get("id") or "")   # Colab moves it into the metadata
            source = cell.get("source", "")
            source = "".join(map(str, source)) if isinstance(source, list) else str(source)
            submission.cells[cell_id if cell_id and cell_id not in submission.cells else f"cell {number}"] = source[:LONGEST]
    return submission


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def recognise(submission: Submission, originals: dict[str, Original]) -> Original:
    """Which notebook it is: as it says, else as the file is called, else by the functions in it. Raises Unreadable where none tells."""
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
    """The student's cell for an exercise: the one with its id, if that still defines the function, else the first that does."""
    source = cells.get(task.stub.id, "")
    assigned = re.search(rf"^{task.name}\b[^=\n(]*=(?!=)(?! *exercises\b)", source, re.MULTILINE)
    found = [i for i, source in cells.items() if re.search(rf"^[ \t]*(async )?def {task.name}\b", source, re.MULTILINE)]
    return task.stub.id if assigned or task.stub.id in found else next(iter(found), None)


def prepare(original: Original, submission: Submission, seconds: float, memory: float) -> dict[str, Job | str]:
    """Exercise → what is to be run, or the verdict where nothing has to be."""
    answers = {task.number: find(task, submission.cells) for task in original.tasks}
    handed_out = {cell.id: cell.source.strip() for cell in original.cells}
    known, taken = set(handed_out.values()), set(answers.values())
    extras = [(s, i not in handed_out) for i, s in submission.cells.items() if i not in taken and s.strip() not in known]
    found: dict[str, Job | str] = {}
    earlier: dict[str, str] = {}
    for task in original.tasks:
        above = original.cells[: original.cells.index(task.stub)]
        always = [cell.source for cell in above if _is_first(cell)]
        before = [cell.source for cell in above if not _is_first(cell) and not cell.id.startswith("exercise-")]
        answer = answers[task.number]
        source = "" if answer is None else submission.cells[answer]
        if answer is None:
            found[task.number] = "missing"
        elif source.strip() == task.stub.source.strip():
            found[task.number] = "not attempted"
        else:
            found[task.number] = Job(task.number, task.name, source, always, before, dict(earlier), extras, seconds, memory)
        earlier[task.number] = task.name
    return found


def _is_first(cell: NotebookNode) -> bool:
    """Whether a cell sets up what all others stand on: it is tagged so, or begins with an import."""
    return bool({"setup", "parameters"} & set(cell.metadata.get("tags", []))) or cell.source.startswith(("import ", "from "))


@dataclass
class Begun:
    """A submission under way: ``problem`` is what is wrong with the whole; exercise → verdict, or the attempt that will give it."""

    path: Path
    original: Original | None
    problem: str = ""
    verdicts: dict[str, str | Future[tuple[str, str]]] = field(default_factory=dict)


def grade(root: Path, paths: Sequence[Path], to: Path | None = None, seconds: float = 20.0, memory: float = 4.0) -> int:
    """Grade all submissions among ``paths`` (files, and folders of .ipynb), write their reports, and return the exit status.

    Reports go to ``to``, or beside each submission; for more than one submission a table of all is written too.
    0: each was graded; 1: some could not be, as their reports say. Raises StudentError where there is nothing to grade."""
    built = {path.stem: student_notebook(path) for path in sources(root)}
    originals = {name: Original(name, tasks, code_cells(notebook)) for name, (notebook, tasks) in built.items()}
    files = _files(paths)
    targets, fence = report.targets(files, to), Fence()
    limits = {"seconds": seconds, "memory_gib": memory if memory_is_limited() else None}
    entries = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for begun in [_begin(path, originals, seconds, memory, lambda job: pool.submit(fence.attempt, job)) for path in files]:
                entries.append(_entry(begun) | {"limits": limits})
                report.write_report(entries[-1], targets[begun.path])
                print(f"{begun.path}: {report.score(entries[-1])}", flush=True)
        except BaseException:   # Ctrl-C above all: nothing of a student's may go on running
            pool.shutdown(wait=False, cancel_futures=True)
            fence.end()
            raise
    if len(files) > 1:
        table = (to or (paths[0] if paths[0].is_dir() else paths[0].parent)) / "grades.csv"
        report.write_table(entries, [task.id for original in originals.values() for task in original.tasks], table)
        print(f"All of them: {table}")
    return int(any(entry["problem"] or BROKEN in [e["verdict"] for e in entry["exercises"]] for entry in entries))


def _files(paths: Sequence[Path]) -> list[Path]:
    """The submissions, each once; of a folder, the notebooks in it and in the folders below."""
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.exists():
            raise StudentError(f"{path} does not exist; name submissions, or a folder of them")
        inside = sorted(p for p in path.rglob("*") if p.is_file() and ".ipynb_checkpoints" not in p.parts) if path.is_dir() else [path]
        for file in inside:
            if path.is_dir() and file.suffix.lower() != ".ipynb":
                if not re.search(r"\.report\.(md|json)$|^grades\.csv$", file.name):
                    print(f"{file}: not read, it is no .ipynb")
            else:
                found.setdefault(file.resolve(), file)
    if not found:
        raise StudentError(f"there is no .ipynb in {', '.join(map(str, paths))}")
    return list(found.values())


def _begin(path: Path, originals: dict[str, Original], seconds: float, memory: float, submit: Submit) -> Begun:
    """Read a submission and start its attempts."""
    try:
        submission = read(path)
        original = recognise(submission, originals)
    except Unreadable as error:
        return Begun(path, by_name(path, originals), problem=str(error))
    prepared = prepare(original, submission, seconds, memory)
    return Begun(path, original, verdicts={n: job if isinstance(job, str) else submit(job) for n, job in prepared.items()})


def _entry(begun: Begun) -> dict[str, Any]:
    """What the report says, when all attempts have ended."""
    original, exercises = begun.original, []
    for task in original.tasks if original else []:
        found = begun.verdicts.get(task.number, "not read")
        verdict, message = (found, MISSING if found == "missing" else "") if isinstance(found, str) else found.result()
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
