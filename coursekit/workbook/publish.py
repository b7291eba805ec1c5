"""Where the project is published: one line of pyproject.toml, from which badges and setup cells are stamped."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from coursekit.workbook import WorkbookError
from coursekit.workbook.notebooks import notebook_text, opening, read_source, source_text, sources, write_if_changed

BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
NAME = r"[A-Za-z0-9]([A-Za-z0-9-]{0,37}[A-Za-z0-9])?/(?!\.{1,2}$)[A-Za-z0-9_.-]{1,100}"  # as GitHub allows them
README_BADGES = re.compile(r"(<!-- badges -->\n).*?(<!-- /badges -->)", re.DOTALL)
REPOSITORY_LINE = re.compile(r'(^\[tool\.coursekit\]$(?:\n(?!\[).*)*?\nrepository *= *)"[^"\n]*"', re.MULTILINE)

# At most ten lines in each of the two forms: it stands at the top of every notebook. The pins go on pip's own command line, so that pip
# fails rather than replace a library that the running kernel may already have loaded.
FIND = """\
from pathlib import Path

sys.path += [str(f) for f in (Path("coursekit").resolve(), Path.cwd(), *Path.cwd().parents) if (f / "coursekit/__init__.py").is_file()]
"""
INSTALL = """\
import subprocess
import sys
from importlib import metadata, util
FINDif getattr(util.find_spec("coursekit"), "origin", None) is None:  # on Colab: install it, keep Colab's versions
    pins = [f"{p}=={metadata.version(p)}" for p in ("torch", "torchvision", "numpy", "ipywidgets", "IPython") if util.find_spec(p)]
    source = "coursekit @ git+https://github.com/REPOSITORY@TAG"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", source, *pins])"""
REFUSE = """\
import sys
from importlib import util
FINDif getattr(util.find_spec("coursekit"), "origin", None) is None:
    raise ModuleNotFoundError("coursekit is not installed. In a checkout, run: pip install -e .\\n"
                              "To open notebooks without one, publish them first: make publish REPO=owner/name")"""


def setup_cell(repository: str, tag: str) -> str:
    """The source of the setup cell: nothing to do where coursekit can be imported; else a checkout above; else pip, or a clear refusal."""
    form = INSTALL if repository else REFUSE
    return form.replace("FIND", FIND).replace("REPOSITORY", repository).replace("TAG", tag)


def badge(repository: str, tag: str, name: str) -> str:
    """The Colab badge of the notebook ``name``, as a line of Markdown; empty where no repository is set."""
    return f"{BADGE}({colab_url(repository, tag, name)})" if repository else ""


def colab_url(repository: str, tag: str, name: str) -> str:
    """Where Colab opens the notebook ``name``; empty where no repository is set."""
    return f"https://colab.research.google.com/github/{repository}/blob/{tag}/notebooks/{name}.ipynb" if repository else ""


def published(root: Path) -> tuple[str, str]:
    """The repository ("owner/name", or "" while it is unset) and the tag ("v" and the version) that pyproject.toml asks for.

    Raises ``WorkbookError`` where it has no ``repository`` under [tool.coursekit].
    """
    path = root / "pyproject.toml"
    settings = tomllib.loads(path.read_text(encoding="utf-8"))
    repository = settings.get("tool", {}).get("coursekit", {}).get("repository")
    if repository is None:
        raise WorkbookError(f'{path}: has no line repository = "..." under [tool.coursekit]; add one, with "" while unpublished')
    return repository, "v" + settings["project"]["version"]


def publish(root: Path, repository: str | None = None) -> list[Path]:
    """Record ``repository`` ("" unsets it, None keeps what is recorded), stamp notebooks and README, and return the files that changed.

    Raises ``WorkbookError``, with nothing written, for a malformed name, a notebook without title or setup cell, a README without markers.
    """
    recorded, tag = published(root)
    repository = recorded if repository is None else repository
    if repository and (not re.fullmatch(NAME, repository) or repository.endswith(".git")):
        raise WorkbookError(f"REPO={repository} is no repository's name; write owner/name, as in octocat/workbook (no https://, no .git)")
    pyproject = root / "pyproject.toml"
    text, count = REPOSITORY_LINE.subn(rf'\g<1>"{repository}"', pyproject.read_text(encoding="utf-8"))
    if count != 1:
        raise WorkbookError(f'{pyproject}: found {count} lines repository = "{recorded}" below a line [tool.coursekit]; write one')
    texts = {pyproject: text, root / "README.md": _stamped_readme(root, repository, tag)}
    for path in sources(root):
        texts |= {path: source_text(_stamped(read_source(path), path, repository, tag), path)}
        stored = path.with_suffix(".ipynb")
        if stored.exists():
            texts |= {stored: notebook_text(_stamped(nbformat.read(stored, as_version=4), stored, repository, tag))}
    return [path for path, text in texts.items() if write_if_changed(path, text)]


def _stamped(notebook: NotebookNode, path: Path, repository: str, tag: str) -> NotebookNode:
    """``notebook`` with its badge and its setup cell in order; ids, outputs and counts stay."""
    title, setup = _title(notebook, path), _setup(notebook, path)
    first, *rest = title.source.split("\n")
    line = badge(repository, tag, path.stem)
    title.source = "\n".join([first, *([line] if line else []), *(line for line in rest if not line.startswith(BADGE))])
    setup.source = setup_cell(repository, tag)
    return notebook


def _title(notebook: NotebookNode, path: Path) -> NotebookNode:
    if not notebook.cells or notebook.cells[0].cell_type != "markdown" or not notebook.cells[0].source.startswith("# "):
        raise WorkbookError(f"{path}: the first cell is not Markdown that begins with a '# ' title, below which the badge goes")
    return notebook.cells[0]


def _setup(notebook: NotebookNode, path: Path) -> NotebookNode:
    tagged = [cell for cell in notebook.cells if "setup" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise WorkbookError(f'{path}: expected one setup cell, # %% tags=["setup"], found {len(tagged)}')
    return tagged[0]


def _stamped_readme(root: Path, repository: str, tag: str) -> str:
    """README.md with one line per notebook between its badge markers, none while no repository is set."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if len(README_BADGES.findall(text)) != 1:
        raise WorkbookError(f"{path}: expected one pair of lines <!-- badges --> and <!-- /badges -->, between which the badges go")
    lines = [f"* {opening(read_source(source))[0]} {badge(repository, tag, source.stem)}\n" for source in sources(root) if repository]
    return README_BADGES.sub(lambda found: found[1] + "".join(lines) + found[2], text)


def disagreements(root: Path) -> list[str]:
    """Each notebook file and README whose badge or setup cell is not what pyproject.toml's repository and version ask for."""
    repository, tag = published(root)
    wanted = f"pyproject.toml asks for (repository {repository!r}, {tag}); run: make publish"
    found = []
    for path in (file for source in sources(root) for file in (source, source.with_suffix(".ipynb"))):
        if not path.exists():
            continue
        notebook = read_source(path) if path.suffix == ".py" else nbformat.read(path, as_version=4)
        title, setup = _title(notebook, path).source, _setup(notebook, path).source
        _stamped(notebook, path, repository, tag)
        if title != _title(notebook, path).source:
            found.append(f"{path.name}: the badge is not what {wanted}")
        if setup != _setup(notebook, path).source:
            found.append(f"{path.name}: the setup cell is not what {wanted}")
    if _stamped_readme(root, repository, tag) != (root / "README.md").read_text(encoding="utf-8"):
        found.append(f"README.md: the badges are not what {wanted}")
    return found
