"""The notebooks as files: in step, executed, described, published; and that each gate which says so can fail."""

from __future__ import annotations

import base64
import io
import random
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image, ImageChops, ImageDraw, ImageStat

from coursekit.workbook import WorkbookError, notebooks, pages
from coursekit.workbook.notebooks import code_cells, read_source, source_text, sources
from coursekit.workbook.pages import PLACEHOLDER
from coursekit.workbook.publish import disagreements, publish, published, setup_cell

ROOT = Path(__file__).resolve().parents[1]
SHOWS_A_FIGURE = re.compile(r"plt\.show\(|\bfigures\.show|\.snapshot\(")
UNSTABLE = {
    "an absolute path": re.compile(r"(?:^|[\s'\"(=])(?:/[\w.-]+/|[A-Z]:\\)", re.MULTILINE),
    "a warning": re.compile(r"\b\w*Warning\b"),
    "a traceback": re.compile(r"Traceback \(most recent call"),
    "an address in memory": re.compile(r"\bat 0x[0-9a-f]+"),
}


# The gates: each takes a notebook and returns what is wrong with it.


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def texts(cell: NotebookNode) -> list[str]:
    """What a cell printed or returned, as text."""
    data = [output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return [text for text in data if text]


def unexecuted(notebook: NotebookNode) -> list[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts {counts}; run: make notebooks"]


def widget_state(notebook: NotebookNode) -> list[str]:
    return ["metadata.widgets"] if "widgets" in notebook.metadata else []


def unstable(notebook: NotebookNode) -> list[str]:
    found = notebooks.faults(notebook)
    for number, cell in enumerate(code_cells(notebook)):
        found += [f"Cell {number} holds {what}" for what, pattern in UNSTABLE.items() if any(map(pattern.search, texts(cell)))]
    return found


def unguarded(notebook: NotebookNode) -> list[str]:
    """A cell whose output nbval ignores needs a next one whose output it compares; a figure's own text says nothing."""
    cells, found = code_cells(notebook), []
    for number, cell in enumerate(cells):
        following = cells[number + 1 : number + 2]
        compared = any("nbval-ignore-output" not in tags(c) and not all(t.startswith("<Figure") for t in texts(c)) for c in following)
        if "nbval-ignore-output" in tags(cell) and not compared:
            found.append(f"Cell {number} is ignored by nbval, and the next is not compared or has no text")
    return found


def undescribed(notebook: NotebookNode) -> list[str]:
    found = pages.undescribed(notebook)
    for number, cell in enumerate(code_cells(notebook)):
        if SHOWS_A_FIGURE.search(cell.source) and not str(cell.metadata.get("alt", "")).strip():
            found.append(f"Cell {number} shows a figure and has no alt text")
    return found


def wrong_setup(notebook: NotebookNode) -> list[str]:
    found = [cell.source for cell in notebook.cells if "setup" in tags(cell)]
    return [] if found == [setup_cell(*published(ROOT))] and len(found[0].splitlines()) <= 10 else ["the setup cell; run: make publish"]


def stray_mode(notebook: NotebookNode) -> list[str]:
    asking = [(n, cell) for n, cell in enumerate(code_cells(notebook)) if re.search(r"\bmode\(\)", cell.source)]
    return [f"Cell {n} asks for the mode" for n, cell in asking if "parameters" not in tags(cell)]


def misnumbered(notebook: NotebookNode) -> list[str]:
    """A claim's number is that of a section or an equation of its notebook; those of errata are test_errata's."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    known = {*re.findall(r"\\tag\{([\d.]+)\}", prose), *re.findall(r"(?m)^## (\d+)  ", prose)}
    claims = [claim for cell in code_cells(notebook) for text in texts(cell) for claim in re.findall(r"(?m)^✓ (\d[\d.]*)  (.*)", text)]
    return [f"{number} of “{claim}” is no section and no equation" for number, claim in claims if number not in known]


GATES = [unexecuted, widget_state, unstable, unguarded, undescribed, wrong_setup, stray_mode, misnumbered]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("source", sources(ROOT), ids=lambda path: path.stem)
def test_notebook_passes(source: Path, gate: Callable[[NotebookNode], list[str]]) -> None:
    assert gate(nbformat.read(source.with_suffix(".ipynb"), as_version=4)) == []


@pytest.mark.parametrize("source", sources(ROOT), ids=lambda path: path.stem)
def test_pair_is_in_step(source: Path) -> None:
    stored, text = nbformat.read(source.with_suffix(".ipynb"), as_version=4), source.read_text(encoding="utf-8")
    assert source_text(stored, source) == text
    parts = [[(cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells] for notebook in (stored, read_source(source))]
    assert parts[0] == parts[1]


@pytest.mark.parametrize("source", sources(ROOT), ids=lambda path: path.stem)
def test_notebook_chooses_its_threads(source: Path) -> None:
    """On two busy cores torch's default, two threads that wait for each other by spinning, takes many times as long as one."""
    assert re.search(r"^torch\.set_num_threads\((1|settings\[\"threads\"\])\)", source.read_text(encoding="utf-8"), re.MULTILINE)


def test_badges_and_setup_cells_agree_with_pyproject() -> None:
    assert disagreements(ROOT) == []


# Each gate, on a tiny notebook that passes all of them, and on the same one doctored.


def good() -> NotebookNode:
    image = new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 640x480 with 1 Axes>"})
    cells = [
        new_markdown_cell("# Title\n\nFirst sentence. Second.\n\n## 1  One\n\n$$1 + 1 = 2 \\tag{1.1}$$"),
        new_code_cell(setup_cell(*published(ROOT)), metadata={"tags": ["setup"]}),
        new_code_cell("steps = {'fast': 1, 'full': 2}[mode()]", metadata={"tags": ["parameters"]}),
        new_code_cell("print(seconds)", metadata={"tags": ["nbval-ignore-output"]}, outputs=[new_output("stream", text="3 / 4 s\n")]),
        new_code_cell("print(1 + 1)", outputs=[new_output("stream", text="2\n✓ 1  two  (= 2)\n✓ 1.1  two  (= 2)\n")]),
        new_code_cell("plt.show()", metadata={"alt": 'A "line" & <more>'}, outputs=[image]),
    ]
    for count, cell in enumerate(cells[1:], start=1):
        cell.execution_count = count
    return new_notebook(cells=cells)


def says(text: str, name: str = "stdout") -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[4].outputs.append(new_output("stream", name=name, text=text))


def put(cell: int, key: str, value: object) -> Callable[[NotebookNode], None]:
    return lambda notebook: notebook.cells[cell].update({key: value})


def sees_only_a_figure(notebook: NotebookNode) -> None:
    del notebook.cells[4]


DOCTORED = [
    (unexecuted, put(3, "execution_count", None)),
    (unexecuted, put(3, "execution_count", 7)),
    (widget_state, lambda notebook: notebook.metadata.update(widgets={})),
    (unstable, says("saved to /home/someone/file")),
    (unstable, says("C:\\Users\\someone")),
    (unstable, says("x.py:3: UserWarning: hm")),
    (unstable, says("Traceback (most recent call last)")),
    (unstable, says("<Thing at 0x7f12ab>")),
    (unstable, says("anything", name="stderr")),
    (unstable, put(4, "outputs", [new_output("error", ename="E", evalue="", traceback=[])])),
    (unguarded, put(4, "outputs", [])),
    (unguarded, put(4, "metadata", {"tags": ["nbval-ignore-output"]})),
    (unguarded, sees_only_a_figure),
    (undescribed, put(5, "metadata", {})),
    (undescribed, put(5, "metadata", {"alt": PLACEHOLDER})),
    (undescribed, put(4, "source", "explorer.snapshot(row=1)")),
    (wrong_setup, put(1, "source", "import coursekit")),
    (wrong_setup, put(1, "metadata", {})),
    (misnumbered, says("✓ 1.2  one and one  (= 2)\n")),
    (misnumbered, says("✓ 0  one and one  (= 2)\n")),
    (stray_mode, put(4, "source", "if runtime.mode() == 'fast': pass")),
]


@pytest.mark.parametrize("gate", GATES)
def test_gate_passes_a_good_notebook(gate: Callable[[NotebookNode], list[str]]) -> None:
    assert gate(good()) == []


@pytest.mark.parametrize(("gate", "doctor"), DOCTORED)
def test_gate_refuses_a_doctored_notebook(gate: Callable[[NotebookNode], list[str]], doctor: Callable[[NotebookNode], None]) -> None:
    notebook = good()
    doctor(notebook)
    assert gate(notebook) != []


# sync and execute


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A project of one notebook, in step, whose cells all have outputs."""
    stamped = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    unnamed = re.sub(r'(?m)^repository = ".*"$', 'repository = ""', stamped)   # whether or not this checkout has been published
    (tmp_path / "pyproject.toml").write_text(unnamed, encoding="utf-8")
    (tmp_path / "README.md").write_text("# R\n\n<!-- badges -->\n<!-- /badges -->\n", encoding="utf-8")
    path = tmp_path / "notebooks" / "01_tiny.py"
    path.parent.mkdir()
    path.write_text(source_text(good(), path), encoding="utf-8")
    notebook = notebooks.sync(path)
    for old, new in zip(good().cells, notebook.cells, strict=True):
        new.update({key: old[key] for key in ("outputs", "execution_count") if key in old})
    path.with_suffix(".ipynb").write_text(notebooks.notebook_text(notebook), encoding="utf-8")
    return path


def test_sync_is_idempotent_and_makes_the_same_notebook_anew(tiny: Path) -> None:
    stored = tiny.with_suffix(".ipynb")
    before = tiny.read_bytes(), stored.read_bytes()
    notebooks.sync(tiny)
    assert (tiny.read_bytes(), stored.read_bytes()) == before
    ids = [cell.id for cell in nbformat.read(stored, as_version=4).cells]
    stored.unlink()
    assert [cell.id for cell in notebooks.sync(tiny).cells] == ids


def test_sync_keeps_ids_and_the_outputs_of_unchanged_cells_only(tiny: Path) -> None:
    before = nbformat.read(tiny.with_suffix(".ipynb"), as_version=4).cells
    tiny.write_text(
        tiny.read_text(encoding="utf-8")
        .replace("print(1 + 1)", "print(1 + 2)")
        .replace("# %% [markdown]", "# %%\nnew = 1\n\n# %% [markdown]")
    )
    added, *after = notebooks.sync(tiny).cells
    assert added.source == "new = 1" and added.id not in [cell.id for cell in before]
    assert [cell.id for cell in after] == [cell.id for cell in before]
    assert [cell.get("outputs") for cell in after] == [[] if cell.source == "print(1 + 1)" else cell.get("outputs") for cell in before]
    assert after[4].execution_count is None


def test_sync_takes_a_notebook_that_colab_saved(tiny: Path) -> None:
    """Older format, no ids, widgets without state (which breaks GitHub's view), ids of Colab's own in the cells' metadata."""
    stored = tiny.with_suffix(".ipynb")
    saved = nbformat.read(stored, as_version=4)
    outputs = [cell.get("outputs") for cell in saved.cells]
    saved.nbformat_minor = 0
    saved.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    for cell in saved.cells:
        cell.metadata["outputId"] = cell.pop("id")
    stored.write_text(notebooks.notebook_text(saved), encoding="utf-8")
    notebooks.sync(tiny)
    fresh = nbformat.read(stored, as_version=4)
    assert widget_state(fresh) == [] and [cell.get("outputs") for cell in fresh.cells] == outputs
    assert len({cell.id for cell in fresh.cells}) == len(outputs) and all("outputId" not in cell.metadata for cell in fresh.cells)


def test_metadata_is_what_colab_and_jupyter_need(tiny: Path) -> None:
    metadata = nbformat.read(tiny.with_suffix(".ipynb"), as_version=4).metadata
    assert metadata.accelerator == "GPU" and metadata.colab.gpuType == "T4" and metadata.kernelspec.name == "python3"


def test_names_select_notebooks_and_a_wrong_one_is_refused(tiny: Path) -> None:
    root = tiny.parents[1]
    assert sources(root, ["01"]) == sources(root, ["01_tiny"]) == sources(root, ["notebooks/01_tiny.ipynb"]) == [tiny]
    with pytest.raises(WorkbookError, match="'02' is no notebook; there are: 01_tiny"):
        sources(root, ["02"])


def executed(tiny: Path, *cells: str) -> NotebookNode:
    tiny.write_text("".join(f"# %%\n{cell}\n\n" for cell in cells), encoding="utf-8")
    notebooks.execute(tiny)
    return nbformat.read(tiny.with_suffix(".ipynb"), as_version=4)


def test_execute_stores_counts_and_outputs_that_repeat(tiny: Path) -> None:
    widget = "import sys\nfrom ipywidgets import IntSlider\nIntSlider(3)"
    mode = "import os\nprint(os.environ['COURSEKIT_MODE'])\nsys.stdout.flush()\n"
    mode += "print(os.environ['COURSEKIT_QUIET'], os.path.basename(os.getcwd()))"
    first, second = code_cells(executed(tiny, widget, mode))
    assert [first.execution_count, second.execution_count] == [1, 2]
    assert list(first.outputs[0].data) == ["text/plain"]
    assert [output.text for output in second.outputs] == ["fast\n1 notebooks\n"]
    assert "execution" not in first.metadata and "widgets" not in nbformat.read(tiny.with_suffix(".ipynb"), as_version=4).metadata


@pytest.mark.parametrize(("source", "complaint"), [
    ("a = 1\n1 / 0", r"01_tiny: Cell 1 \(a = 1\) raised ZeroDivisionError"),
    ("import warnings\nwarnings.warn('hm')", r"01_tiny: Cell 1 \(import warnings\) wrote to stderr[\s\S]*UserWarning: hm"),
])  # fmt: skip
def test_execute_refuses_errors_and_warnings(tiny: Path, source: str, complaint: str) -> None:
    with pytest.raises(WorkbookError, match=complaint):
        executed(tiny, "print(1)", source)
    stored = nbformat.read(tiny.with_suffix(".ipynb"), as_version=4)
    assert all(not cell.outputs for cell in code_cells(stored))


def test_pictures_are_kept_small() -> None:
    """A chart gets a palette and looks the same; a picture of many colours, or one that is compact already, stays as it is."""
    drawn = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(drawn).line([(0, 0), (299, 150)], "navy", 3)
    noise = Image.frombytes("RGB", (60, 60), random.Random(0).randbytes(60 * 60 * 3))
    for picture, kept in ((drawn, False), (noise, True), (drawn.convert("RGBA"), False), (Image.new("RGBA", (9, 9)), True)):
        file = io.BytesIO()
        picture.save(file, "png")
        before = base64.b64encode(file.getvalue()).decode()
        after = notebooks.compact(before)
        assert (after == before) is kept and notebooks.compact(after) == after
        seen = Image.open(io.BytesIO(base64.b64decode(after)))
        difference = ImageChops.difference(seen.convert("RGB"), picture.convert("RGB"))
        assert max(ImageStat.Stat(difference).rms) <= 2 and seen.mode == (picture.mode if kept else "P")


# HTML


def test_alt_text_reaches_the_html() -> None:
    page = pages.to_html(good(), "01_tiny")
    images = re.findall(r"<img[^>]*?\balt='([^']*)'", page)
    assert images == ['A "line" &amp; &lt;more&gt;']
    assert PLACEHOLDER not in page and "require.min.js" not in page


@pytest.mark.parametrize("doctor", [put(5, "metadata", {}), put(5, "metadata", {"alt": " "}), put(5, "metadata", {"alt": PLACEHOLDER})])
def test_html_refuses_an_undescribed_image(doctor: Callable[[NotebookNode], None]) -> None:
    notebook = good()
    doctor(notebook)
    with pytest.raises(WorkbookError, match=r"01_tiny: Cell 4 \(plt.show\(\)\)"):
        pages.to_html(notebook, "01_tiny")


def test_html_refuses_an_undescribed_image_in_markdown() -> None:
    notebook = good()
    notebook.cells.append(new_markdown_cell('Look:\n<img src="x.png">'))
    with pytest.raises(WorkbookError, match="01_tiny: an image without alt text in the cell that begins\nLook:"):
        pages.to_html(notebook, "01_tiny")


def test_pages_lead_to_each_other() -> None:
    notebook = good()
    notebook.cells[0].source = "# Title\n\n## First part\n\n## Second part"
    names = [("00_a", "A <1>"), ("01_tiny", "Tiny"), ("02_c", "C")]
    page = pages.to_html(notebook, "01_tiny", names, "https://colab/x")
    for top in re.findall(r'<nav aria-label="(?:top|bottom)">(.*?)</nav>', page):
        links = re.findall(r'<a href="([^"]*)">(.*?)</a>', top)
        there = [("00_a.html", "← A &lt;1&gt;"), ("02_c.html", "C →"), ("https://colab/x", "Open in Colab")]
        assert links[:4] == [("index.html", "All notebooks"), *there]
        assert [title for _, title in links[4:]] == ["First part", "Second part"]
        assert all(f'id="{anchor[1:]}"' in page for anchor, _ in links[4:]), "a link into the page leads nowhere"
    first, last = (pages.to_html(good(), name, names) for name in ("00_a", "02_c"))
    assert "Tiny →" in first and "←" not in first.partition("</nav>")[0] and "← Tiny" in last and "→" not in last.partition("</nav>")[0]
    assert "prefers-color-scheme: dark" in page and "--jp-layout-color0: #111;" in page


def test_an_explorer_without_a_kernel_says_so() -> None:
    notebook = good()
    notebook.cells.append(new_code_cell("x", outputs=[new_output("execute_result", {"text/plain": "PatchExplorer(row, column)"})]))
    page = pages.to_html(notebook, "01_tiny", colab="https://colab/x")
    assert 'PatchExplorer, with controls for row, column: run this notebook <a href="https://colab/x">in Colab</a>' in page
    assert "run this notebook in JupyterLab or Colab" in pages.to_html(notebook, "01_tiny")
    assert "text/html" not in notebook.cells[-1].outputs[0].data, "the notebook itself stays as it is"


def test_opening_is_plain_text() -> None:
    cell = new_markdown_cell("# 01 · Title\n[![Open in Colab](a)](b)\n\nTake *a* [link](url) of $k\\times k$\nand go. No more.")
    assert notebooks.opening(new_notebook(cells=[cell])) == ("01 · Title", "Take a link of k×k and go.")


def test_html_has_an_index_and_leaves_the_notebooks_alone(tiny: Path, tmp_path: Path) -> None:
    tiny.write_text(
        tiny.read_text(encoding="utf-8").replace("[mode()]", "['fast']").replace("print(seconds)", "print(3)").replace("plt.show()", "")
    )
    before = {path: path.read_bytes() for path in tiny.parent.iterdir()}
    index = pages.write_html(tmp_path, tmp_path / "build")
    assert '<a href="01_tiny.html">Title</a><p>First sentence.</p>' in index.read_text(encoding="utf-8")
    page = (tmp_path / "build" / "01_tiny.html").read_text(encoding="utf-8")
    assert "First sentence. Second." in page
    assert not re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']?(?:https?:)?//""", page), "the page needs a network"
    script = re.search(r'<script src="(mathjax/[^"?]+)', page)
    assert script and (tmp_path / "build" / script[1]).is_file(), "formulas need MathJax beside the page"
    assert {path: path.read_bytes() for path in tiny.parent.iterdir()} == before


# the setup cell


@pytest.mark.parametrize("repository", ["", "octocat/workbook"])
@pytest.mark.parametrize("where", ["notebooks", "notebooks/deeper", "", ".."], ids=["notebooks", "subfolder", "checkout", "beside it"])
def test_setup_cell_finds_a_checkout(tmp_path: Path, where: str, repository: str) -> None:
    """Without any installed package (-S), in a folder called coursekit, as a clone is: beside it, it looks like a package."""
    package = tmp_path / "coursekit" / "coursekit" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    (tmp_path / "coursekit" / "notebooks" / "deeper").mkdir(parents=True)
    code = setup_cell(repository, "v1") + "\nimport coursekit; print(coursekit.__file__)"
    command = [sys.executable, "-I", "-S", "-c", code]
    result = subprocess.run(command, cwd=tmp_path / "coursekit" / where, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(package)


@pytest.mark.parametrize("impostor", [False, True], ids=["nothing there", "an empty folder of that name"])
def test_setup_cell_says_what_to_do_where_there_is_no_checkout(tmp_path: Path, impostor: bool) -> None:
    if impostor:
        (tmp_path / "coursekit").mkdir()
    command = [sys.executable, "-I", "-S", "-c", setup_cell("", "v1")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "pip install -e" in result.stderr and "make publish REPO=owner/name" in result.stderr


# publish


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what publishing changes in this project, unset."""
    for path in [ROOT / "pyproject.toml", ROOT / "README.md", *(ROOT / "notebooks").glob("[0-9][0-9]_*")]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    publish(tmp_path, "")
    return tmp_path


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_publish_sets_and_unsets(project: Path) -> None:
    before = contents(project)
    assert set(publish(project, "example/coursekit")) == set(before)
    repository, tag = published(project)
    assert repository == "example/coursekit" and disagreements(project) == []
    for source in sources(project):
        url = f"https://colab.research.google.com/github/example/coursekit/blob/{tag}/notebooks/{source.stem}.ipynb)"
        assert all(url in path.read_text(encoding="utf-8") for path in (source, source.with_suffix(".ipynb"), project / "README.md"))
        assert f"github.com/example/coursekit@{tag}" in source.read_text(encoding="utf-8")
        assert read_source(source).cells[0].source.split("\n")[1].endswith(url)
    publish(project, "")
    assert contents(project) == before


def test_publish_restamps_after_a_version_bump(project: Path) -> None:
    publish(project, "example/coursekit")
    pyproject = project / "pyproject.toml"
    version = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["version"]
    pyproject.write_text(pyproject.read_text(encoding="utf-8").replace(f'version = "{version}"', 'version = "97.1.2"'))
    assert len(disagreements(project)) == 4 * len(sources(project)) + 1
    publish(project)
    assert disagreements(project) == [] and "coursekit@v97.1.2" in sources(project)[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(("pattern", "old", "new", "complaint"), [
    ("notebooks/*.py", "blob/v", "blob/w", "01_.*.py: the badge"),
    ("notebooks/*.ipynb", "blob/v", "blob/w", "01_.*.ipynb: the badge"),
    ("notebooks/*.py", "git+https", "git+http", "01_.*.py: the setup cell"),
    ("notebooks/*.ipynb", "git+https", "git+http", "01_.*.ipynb: the setup cell"),
    ("README.md", "blob/v", "blob/w", "README.md: the badges"),
    ("pyproject.toml", 'repository = "example/coursekit"', 'repository = ""', "01_.*.py: the badge"),
])  # fmt: skip
def test_a_hand_edited_stamp_is_found(project: Path, pattern: str, old: str, new: str, complaint: str) -> None:
    publish(project, "example/coursekit")
    path = sorted(project.glob(pattern))[0]
    assert old in path.read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    assert any(re.match(complaint, line) for line in disagreements(project))


@pytest.mark.parametrize("name", ["coursekit", "https://github.com/a/b", "a/b/c", "a/b.git", "a b/c", "a/"])
def test_publish_refuses_a_malformed_name(tiny: Path, name: str) -> None:
    before = contents(tiny.parents[1])
    with pytest.raises(WorkbookError, match="write owner/name"):
        publish(tiny.parents[1], name)
    assert contents(tiny.parents[1]) == before


@pytest.mark.parametrize(("file", "old", "complaint"), [
    ("README.md", "<!-- /badges -->", "README.md: expected one pair of lines"),
    ("notebooks/01_tiny.py", 'tags=["setup"]', "01_tiny.py: expected one setup cell"),
    ("notebooks/01_tiny.py", "# # Title", "01_tiny.py: the first cell is not Markdown"),
    ("pyproject.toml", "[tool.coursekit]", "pyproject.toml: has no"),
    ("pyproject.toml", 'repository = ""', "pyproject.toml: has no"),
])  # fmt: skip
def test_publish_refuses_a_project_without_its_places(tiny: Path, file: str, old: str, complaint: str) -> None:
    root = tiny.parents[1]
    whole = (root / file).read_text(encoding="utf-8")
    assert old in whole
    (root / file).write_text(whole.replace(old, ""), encoding="utf-8")
    before = contents(root)
    with pytest.raises(WorkbookError, match=complaint):
        publish(root, "example/coursekit")
    assert contents(root) == before


# environment.yml


def environment_faults(environment: str, pyproject: str) -> list[str]:
    """Where the conda environment says something else than pyproject.toml."""
    wanted, project = yaml.safe_load(environment), tomllib.loads(pyproject)["project"]
    plain = [entry for entry in wanted["dependencies"] if isinstance(entry, str)]
    pip = next((entry["pip"] for entry in wanted["dependencies"] if isinstance(entry, dict)), [])
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", pip[0]) if len(pip) == 1 else None
    found = []
    if "python" + project["requires-python"] not in plain:
        found.append("python")
    if extras is None or not set(extras[1].split(",")) <= set(project["optional-dependencies"]):
        found.append("pip")
    if wanted["channels"] != ["conda-forge", "nodefaults"]:
        found.append("channels")
    return found


@pytest.mark.parametrize(("old", "new", "fault"), [
    ("", "", None), ("python>=3.11", "python>=3.9", "python"), ("[lab,", "[labs,", "pip"), ("-e .", "coursekit", "pip"),
    ("nodefaults", "defaults", "channels"),
])  # fmt: skip
def test_environment_is_in_step_with_pyproject(old: str, new: str, fault: str | None) -> None:
    environment = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert old in environment
    found = environment_faults(environment.replace(old, new), (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert found == ([fault] if fault else [])
