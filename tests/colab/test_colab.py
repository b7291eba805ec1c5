"""The rehearsal: published notebooks, each alone in a folder as Colab opens it, on the versions of Colab's image."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
from build_env import colab_environment, layer_on, python313
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from coursekit.workbook.notebooks import code_cells, sources
from coursekit.workbook.publish import publish, published, setup_cell

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("torch", "torchvision", "numpy", "matplotlib", "ipywidgets", "ipython")
ADDED = ("coursekit", "segmentation-models-pytorch", "clean-fid")
PYTHON = python313()
pytestmark = [
    pytest.mark.colab,
    pytest.mark.skipif(PYTHON is None, reason="needs Python 3.13 as python3.13 or in COURSEKIT_PYTHON313"),
]


class Student(NamedTuple):
    """Someone who opens a notebook in Colab: an interpreter and the variables that a kernel starts with."""

    python: Path
    variables: dict[str, str]

    def run(self, *command: str, cwd: Path) -> str:
        """The output of `python *command`; where it fails, the test does, and shows the output."""
        result = subprocess.run([self.python, *command], cwd=cwd, env=self.variables, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def versions(self, cwd: Path) -> dict[str, str]:
        """The version of each installed distribution, by its normal name."""
        listed = json.loads(self.run("-m", "pip", "list", "--format=json", cwd=cwd))
        return {entry["name"].lower().replace("_", "-"): entry["version"] for entry in listed}

    def execute(self, notebook: NotebookNode, folder: Path) -> NotebookNode:
        """Execute in `folder`, with this environment's kernel. Raises CellExecutionError for the first error."""
        client = NotebookClient(notebook, kernel_name="student", timeout=900, resources={"metadata": {"path": str(folder)}})
        return client.execute(env=self.variables)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("colab")


@pytest.fixture(scope="module")
def project(workplace: Path) -> Path:
    """A copy of this project, published as example/coursekit and pushed, with its tag, to a bare repository."""
    copy = workplace / "project"
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(list_files, cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    publish(copy, "example/coursekit")
    identity = ["-c", "user.name=example", "-c", "user.email=example@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "published"], ["tag", published(copy)[1]],
                    ["clone", "-q", "--bare", ".", str(workplace / "remote" / "example" / "coursekit")]):  # fmt: skip
        subprocess.run(["git", *command], cwd=copy, check=True)
    return copy


@pytest.fixture(scope="module")
def newcomer(workplace: Path) -> Student:
    """Colab's image before anything is installed, with a google.colab that is imported at the start, and a github.com that is ours."""
    assert PYTHON is not None
    stand_in = workplace / "stand_in"
    (stand_in / "google" / "colab").mkdir(parents=True)
    (stand_in / "google" / "colab" / "__init__.py").touch()
    (stand_in / "sitecustomize.py").write_text("import google.colab\n", encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("COURSEKIT", "GIT_", "MPLBACKEND", "VIRTUAL_ENV"))}
    remote = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{workplace}/remote/.insteadOf", "GIT_CONFIG_VALUE_0": "https://github.com/"}
    mode = {"COURSEKIT_MODE": "fast", "COURSEKIT_QUIET": "1"}
    python = layer_on(colab_environment(PYTHON), workplace / "environment")
    return Student(python, kept | remote | mode | {"PYTHONPATH": str(stand_in)})


@pytest.fixture
def empty(tmp_path: Path, newcomer: Student, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder; the kernel "student" is the newcomer's."""
    command = [str(newcomer.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = tmp_path / "jupyter" / "kernels" / "student"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "student", "language": "python"}), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    folder = tmp_path / "content"
    folder.mkdir()
    return folder


# The order of these tests matters: the first starts before coursekit is installed, the second installs it, the others use it.


def test_unset_notebook_says_what_to_do(newcomer: Student, empty: Path) -> None:
    notebook = new_notebook(cells=[new_code_cell(setup_cell("", "v0")), new_code_cell("print('went on')")])
    with pytest.raises(CellExecutionError) as error:
        newcomer.execute(notebook, empty)
    assert error.value.ename == "ModuleNotFoundError"
    assert "coursekit is not installed" in error.value.evalue and "make publish REPO=owner/name" in error.value.evalue
    assert notebook.cells[1].execution_count is None


@pytest.fixture(scope="module")
def installed(newcomer: Student, project: Path, workplace: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The versions before and after the published setup cell, run by itself in an empty folder, twice."""
    folder = workplace / "first"
    folder.mkdir()
    before = newcomer.versions(folder)
    cell = setup_cell(*published(project))
    newcomer.run("-c", f"import sys; assert 'google.colab' in sys.modules\n{cell}\nimport coursekit", cwd=folder)
    assert newcomer.run("-c", cell, cwd=folder) == ""   # the second time there is nothing to do or to say
    return before, newcomer.versions(folder)


def test_setup_cell_installs_and_replaces_nothing(installed: tuple[dict[str, str], dict[str, str]]) -> None:
    before, after = installed
    assert not set(ADDED) & set(before) and set(ADDED) <= set(after)
    assert {name: after[name] for name in SHIPPED} == {name: before[name] for name in SHIPPED}
    assert {name: version for name, version in before.items() if after.get(name) != version} == {}   # nor anything else that was there


@pytest.fixture(scope="module")
def tester(installed: tuple[dict[str, str], dict[str, str]], newcomer: Student, workplace: Path) -> Student:
    """The newcomer after `pip install nbval`, which replaces nothing that Colab ships."""
    _, versions = installed
    newcomer.run("-m", "pip", "install", "--quiet", "nbval", *(f"{name}=={versions[name]}" for name in SHIPPED), cwd=workplace)
    return newcomer


@pytest.mark.parametrize("name", [path.stem for path in sources(ROOT)])
def test_notebook_agrees_alone_in_a_folder(name: str, project: Path, tester: Student, tmp_path: Path) -> None:
    """Alone but for the conftest.py that gives nbval its limits, and takes anything on stderr for a fault."""
    for file in (f"{name}.ipynb", "conftest.py"):
        shutil.copy(project / "notebooks" / file, tmp_path)
    cells = code_cells(nbformat.read(tmp_path / f"{name}.ipynb", as_version=4))
    assert "example/coursekit" in cells[0].source
    report = tester.run("-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", f"{name}.ipynb", cwd=tmp_path)
    assert f"{len(cells)} passed" in report
