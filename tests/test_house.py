"""The plan of the package, as its docstring draws it: each room on its floor, imports that point down, and short files."""

import ast
import re
from pathlib import Path

import pytest

import coursekit

PACKAGE = Path(coursekit.__file__).parent
FLOORS = {
    room: int(number)
    for number, rooms in re.findall(r"Floor (\d): (.*?)\.(?:\s|$)", coursekit.__doc__, re.DOTALL)
    for room in re.findall(r"``(\w+)``", rooms)
}
NEIGHBOURS = {("diffusion", "fid"), ("student", "workbook")}   # the only imports on one floor
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The rooms that a file imports from, wherever in it the import stands."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("coursekit.")}


def test_the_plan_has_every_room_and_no_other():
    assert set(FLOORS) == {room_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down_and_files_are_short(path):
    room = room_of(path)
    up = {other for other in imported(path) - {room} if FLOORS[other] >= FLOORS[room] and (room, other) not in NEIGHBOURS}
    assert not up, f"{room}, on floor {FLOORS[room]}, imports from {up}"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 300


def test_no_exception_is_left_over():
    assert {(room_of(path), other) for path in FILES for other in imported(path)} >= NEIGHBOURS
