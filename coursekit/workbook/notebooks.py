"""Pairs of .py and .ipynb: keep them in step and execute them.

The .py (percent format) is the source of every cell; the .ipynb adds outputs, execution counts and cell ids.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import io
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import jupytext
import nbformat
import torch
from jupyter_client.manager import AsyncKernelManager
from jupytext.combine import map_outputs_to_inputs
from jupytext.config import load_jupytext_config
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode
from nbval.kernel import CURRENT_ENV_KERNEL_NAME, NbvalKernelspecManager
from PIL import Image, ImageChops, ImageStat

from coursekit.files import write_whole
from coursekit.workbook import WorkbookError

METADATA = {
    "accelerator": "GPU",
    "colab": {"gpuType": "T4", "provenance": []},
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_TIMEOUT = 900  # seconds
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def sources(root: Path, names: Iterable[str] = ()) -> list[Path]:
    """The notebooks' .py files in order; with ``names`` ("01", "01_patchwise_mlp", a path), only those.

    Raises ``WorkbookError`` for a name that is no notebook, and where there is none at all.
    """
    found = sorted((root / "notebooks").glob("[0-9][0-9]_*.py"))
    if not found:
        raise WorkbookError(f"{root / 'notebooks'} holds no NN_name.py notebook")
    wanted = [Path(name).stem for name in names]
    for name in wanted:
        if not any(name in (path.stem, path.stem[:2]) for path in found):
            raise WorkbookError(f"{name!r} is no notebook; there are: {', '.join(path.stem for path in found)}")
    return [path for path in found if not wanted or path.stem in wanted or path.stem[:2] in wanted]


def read_source(path: Path) -> NotebookNode:
    """The notebook that a .py in percent format stands for, without outputs; cell ids are made from the cells' sources."""
    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent", config=load_jupytext_config(str(path)))
    taken: set[str] = set()
    for cell in notebook.cells:
        cell.metadata = NotebookNode({key: cell.metadata[key] for key in ("tags", "alt") if key in cell.metadata})
        cell.id = _fresh_id(cell.source, taken)
        taken.add(cell.id)
    return nbformat.from_dict({"cells": notebook.cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5})


def _fresh_id(source: str, taken: set[str]) -> str:
    """An id that depends on the source only, so that making a notebook anew gives the same file."""
    candidate = hashlib.sha256(source.encode()).hexdigest()[:8]
    while candidate in taken:
        candidate = hashlib.sha256(candidate.encode()).hexdigest()[:8]
    return candidate


def source_text(notebook: NotebookNode, path: Path) -> str:
    """The text of the .py at ``path`` that stands for ``notebook``."""
    return jupytext.writes(notebook, fmt="py:percent", config=load_jupytext_config(str(path)))


def in_step(path: Path) -> NotebookNode:
    """The .py at ``path`` with the ids, and for unchanged cells the outputs, of the .ipynb beside it, if there is one."""
    notebook, stored_path = read_source(path), path.with_suffix(".ipynb")
    if not stored_path.exists():
        return notebook
    stored = nbformat.read(stored_path, as_version=4).cells
    matches = [None if j is None else stored[j] for j in map_outputs_to_inputs(notebook.cells, stored)]
    taken = {match.id for match in matches if match is not None and "id" in match}
    for cell, match in zip(notebook.cells, matches, strict=True):
        cell.id = match.id if match is not None and "id" in match else _fresh_id(cell.source, taken)   # one saved by Colab has no ids
        taken.add(cell.id)
        if match is not None and cell.cell_type == "code" and cell.source == match.source:   # an edited cell's old output would be a lie
            cell.outputs, cell.execution_count = match.outputs, match.execution_count
    return notebook


def write_if_changed(path: Path, text: str) -> bool:
    """Write ``text``, unless the file holds it already; say whether it was written."""
    if path.exists() and path.read_bytes() == text.encode():
        return False
    write_whole(path.resolve(), text.encode())
    return True


def notebook_text(notebook: NotebookNode) -> str:
    """The text of the .ipynb file."""
    return nbformat.writes(notebook) + "\n"


def sync(path: Path) -> NotebookNode:
    """Bring the .ipynb in step with the .py at ``path`` (cells edited in the .ipynb alone are lost), and the .py's header in order."""
    notebook = in_step(path)
    written = [write_if_changed(path, source_text(notebook, path))]
    written += [write_if_changed(path.with_suffix(".ipynb"), notebook_text(notebook))]
    print(f"{path.stem}: {'brought in step' if any(written) else 'in step already'}")
    return notebook


def execute(path: Path) -> None:
    """Sync, execute in fast mode, write back, and record how long it took in data/results/run_times.json.

    Raises ``WorkbookError``, and leaves the old outputs, where ``run`` does.
    """
    start = time.perf_counter()
    write_if_changed(path.with_suffix(".ipynb"), notebook_text(run(sync(path), path)))
    record = {
        "seconds": round(time.perf_counter() - start),
        "mode": "fast",
        "cores": _cores(),
        "cuda": torch.cuda.is_available(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "after_commit": _commit(path),
        "date": f"{datetime.date.today()}",
        "command": f"python -m coursekit.workbook execute {path.stem}",
    }
    records_path = path.parents[1] / "data" / "results" / "run_times.json"
    records_path.parent.mkdir(parents=True, exist_ok=True)
    records = json.loads(records_path.read_text(encoding="utf-8")) if records_path.exists() else {}
    records = dict(sorted({**records, path.stem: record}.items()))
    write_if_changed(records_path, json.dumps(records, indent=1) + "\n")
    print(f"{path.stem}: executed in {record['seconds']} s, recorded in data/results/run_times.json")


def _cores() -> int:
    """The cores that this process may use: taskset or a container may allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit(path: Path) -> str:
    """The commit that the checkout of ``path`` stands on, to which the record's own changes are still to be added."""
    answer = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=path.parent, capture_output=True, text=True, check=False)
    return answer.stdout.strip()


def run(notebook: NotebookNode, path: Path) -> NotebookNode:
    """Execute ``notebook`` in place, in fast mode and in the folder of ``path``.

    Raises ``WorkbookError``, naming the cell by nbval's number, for an error, for anything on stderr (warnings too) and for a timeout.
    """
    print(f"{path.stem}: executing", end=" ", flush=True)
    start = time.perf_counter()
    # This environment's own kernel, as nbval starts it: a kernel that happens to be called python3 may belong to another one.
    manager = AsyncKernelManager(kernel_name=CURRENT_ENV_KERNEL_NAME, kernel_spec_manager=NbvalKernelspecManager())
    client = NotebookClient(
        notebook, km=manager, timeout=CELL_TIMEOUT, allow_errors=True, store_widget_state=False, record_timing=False,
        resources={"metadata": {"path": str(path.parent)}}, extra_arguments=["--log-level=ERROR"],
    )  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}  # the kernel's default shows figures inline
    try:
        client.execute(env=environment | {"COURSEKIT_MODE": "fast", "COURSEKIT_QUIET": "1"}, cleanup_kc=True)
    except (CellControlSignal, DeadKernelError) as error:
        raise WorkbookError(f"{path.stem}: {error}") from error
    finally:
        print(f"{time.perf_counter() - start:.0f} s")
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in code_cells(notebook):
        cell.outputs = _settled(cell.outputs)
    if complaints := faults(notebook):
        raise WorkbookError("\n".join(f"{path.stem}: {complaint}" for complaint in complaints))
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells; a cell's place in this list is the number by which nbval names it."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _settled(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs that are the same after each run: streams in one piece however they arrived, and no widget ids."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if kept and output.output_type == "stream" and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
            continue
        data = output.get("data", {})
        data.pop(WIDGET_VIEW, None)
        if "image/png" in data:
            data["image/png"] = compact(data["image/png"])
        kept.append(output)
    return kept


def compact(png: str) -> str:
    """A PNG in base64 with the smallest palette that shows it to within two of 255 levels, root mean square: charts and grey pictures
    have one, photographs stay as they are. The repository keeps every version of every figure.
    """
    stored = Image.open(io.BytesIO(base64.b64decode(png)))
    if stored.mode == "P" or (stored.mode == "RGBA" and stored.getchannel("A").getextrema() != (255, 255)):
        return png
    picture = stored.convert("RGB")
    for colours in (32, 64, 128, 256):
        few = picture.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        if max(ImageStat.Stat(ImageChops.difference(picture, few.convert("RGB"))).rms) <= 2:
            file = io.BytesIO()
            few.save(file, "png", optimize=True)
            return base64.b64encode(file.getvalue()).decode()
    return png


def faults(notebook: NotebookNode) -> list[str]:
    """What an executed notebook may not hold: errors, and output on stderr."""
    found = []
    for number, cell in enumerate(code_cells(notebook)):
        for output in cell.outputs:
            if output.output_type == "error":
                trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
                found.append(f"Cell {number} ({first_line(cell)}) raised {output.ename}: {output.evalue}\n{trace}")
                return found  # what follows an error is its consequence
            if output.get("name") == "stderr":
                found.append(f"Cell {number} ({first_line(cell)}) wrote to stderr; fix the cause of:\n{output.text}")
    return found


def first_line(cell: NotebookNode) -> str:
    """What a cell is known by in a message."""
    return cell.source.partition("\n")[0]


def opening(notebook: NotebookNode) -> tuple[str, str]:
    """A notebook's title and the first sentence below it, as plain text: no links, emphasis or dollar signs."""
    lines = notebook.cells[0].source.splitlines()
    prose = "\n".join(line for line in lines[1:] if not line.startswith("[!["))
    paragraph = " ".join(prose.strip().partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0].replace(r"\times ", "×")
    return lines[0].removeprefix("# ").strip(), re.sub(r"\[([^\]]*)\]\([^)]*\)|[*`$]", r"\1", sentence)
