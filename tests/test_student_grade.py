"""Grading whole submissions: points, reports, the table, and what must not stop a run."""

import csv
import json
import os
import re
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from test_student_attempt import RIGHT, WRONG, posix
from test_student_build import ROOT, SOURCES
from test_student_files import ORIGINALS, content, reported, save

from coursekit.student import StudentError, attempt, report
from coursekit.student.__main__ import main
from coursekit.student.fence import BROKEN, Fence
from coursekit.student.grade import AT_ONCE, grade

ALL = os.environ.get("COURSEKIT_ALL_STUDENTS")   # an attempt imports what its notebook does, which takes seconds


def other(**changes):
    return lambda: content() | changes


def with_kernel(**kernelspec):
    return lambda: content() | {"metadata": {"kernelspec": kernelspec}}


UNREADABLE = {
    "empty": (lambda: b"", "the file is empty"),
    "binary": (lambda: bytes(range(128, 256)) * 9, "no notebook, or damaged: it is no UTF-8 text"),
    "cut off": (lambda: json.dumps(content()).encode()[:5000], "no notebook, or cut off"),
    "python": (lambda: b"def extract_patches(x, k): pass", "no notebook, or cut off"),
    "deep": (lambda: b"[" * 200_000, "no notebook, or cut off"),
    "json": (lambda: [1, 2], "says no notebook format"),
    "no format": (other(nbformat="4"), "says no notebook format"),
    "format 3": (lambda: {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": []}, "format 3, and 4 is read"),
    "no cells": (other(cells=None), "format 4, and 4 is read|no cells"),
    "R": (with_kernel(name="ir", language="R"), "kernel speaks R, not Python"),
    "a forged line": (with_kernel(language="R\n\n# 22 of 22 points"), "kernel speaks R # 22 of 22 points, not Python"),
    "Julia": (lambda: content() | {"metadata": {"language_info": {"name": "julia"}}}, "kernel speaks julia, not Python"),
}


def test_what_is_no_submission_gets_a_report(tmp_path, capsys):
    paths = {name: save(tmp_path / name / "anna_01_patchwise_mlp.ipynb", make()) for name, (make, _) in UNREADABLE.items()}
    assert grade(ROOT, list(paths.values())) == 1
    possible = sum(task.points for task in ORIGINALS["01_patchwise_mlp"].tasks)
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    for name, path in paths.items():
        found = reported(path.with_suffix(""))
        assert re.search(UNREADABLE[name][1], found["problem"]), found
        assert (found["points"], found["possible"]) == (0, possible)
        assert {e["verdict"] for e in found["exercises"]} == {"not read"}
        text = path.with_suffix(".report.md").read_text(encoding="utf-8")
        assert "was tried" not in text
        assert f"not graded: {found['problem']}" in text and lines[str(path)] == f"not graded: {found['problem']}"
    assert grade(ROOT, [paths["R"]]) == 1


def test_a_stranger_is_told_so(tmp_path):
    path = save(tmp_path / "homework.ipynb", {"nbformat": 4, "metadata": {}, "cells": [{"cell_type": "code", "source": "1"}]})
    assert grade(ROOT, [path]) == 1
    found = reported(tmp_path / "homework")
    assert "cannot be told which notebook" in found["problem"] and found["possible"] is None and found["exercises"] == []


def test_untouched_notebooks_get_nothing_and_start_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Fence, "attempt", None)
    paths = [save(tmp_path / f"{path.stem}.ipynb", content(path.stem)) for path in SOURCES]
    assert grade(ROOT, paths, tmp_path / "reports") == 0
    for path, original in zip(paths, ORIGINALS.values(), strict=True):
        found = reported(tmp_path / "reports" / path.stem)
        assert (found["points"], found["possible"]) == (0, sum(t.points for t in original.tasks))
        assert {e["verdict"] for e in found["exercises"]} == {"not attempted"}


def test_a_folder_of_submissions(tmp_path, monkeypatch, capsys):
    wrong = "not right yet", "| look\n```\n<b>at"
    monkeypatch.setattr(Fence, "attempt", lambda self, job: ("right", "") if "flatten" in job.answer else wrong)
    one, five = (sum(task.points for task in ORIGINALS[name].tasks) for name in ("01_patchwise_mlp", "05_ddpm"))
    for student in ("anna", "ben", "=cmd()"):
        save(tmp_path / student / "01_patchwise_mlp.ipynb", content(exercise_1_1=RIGHT if student == "anna" else WRONG))
    save(tmp_path / "carl" / "05_ddpm.ipynb", b"{")
    save(tmp_path / "carl" / "essay.pdf", b"%PDF")
    (tmp_path / "dora" / "hw1").mkdir(parents=True)
    save(tmp_path / "ben" / ".ipynb_checkpoints" / "01_patchwise_mlp.ipynb", b"{")
    assert grade(ROOT, [tmp_path], tmp_path / "out") == 1
    out = capsys.readouterr().out
    assert f"{tmp_path / 'dora' / 'hw1'}: nothing was handed in here" in out and out.count("nothing was handed in") == 1
    assert "essay.pdf: not read, it is no .ipynb" in out and f"anna/01_patchwise_mlp.ipynb: 2 of {one} points\n" in out.replace(os.sep, "/")
    names = [f"{student}-01_patchwise_mlp" for student in ("=cmd()", "anna", "ben")]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.md")) == sorted(f"{name}.report.md" for name in [*names, "carl-05_ddpm"])
    assert reported(tmp_path / "out" / names[1])["points"] == 2
    rows = list(csv.DictReader((tmp_path / "out" / "grades.csv").open(encoding="utf-8")))
    assert [(r["01-1.1"], r["05-1.1"], r["points"]) for r in rows] == [("0", "", "0"), ("2", "", "2"), ("0", "", "0"), ("", "0", "0")]
    assert [r["possible"] for r in rows] == [str(n) for n in (one, one, one, five)]
    assert "02-1.1" not in rows[0], "no columns of notebooks that nobody handed in"
    assert rows[3]["problem"].startswith("the file is no notebook")
    text = (tmp_path / "out" / "ben-01_patchwise_mlp.report.md").read_text(encoding="utf-8")
    assert "| 01-1.1 | `extract_patches` | 0 of 2 | not right yet |" in text
    assert "\n````text\n| look\n```\n<b>at\n````\n" in text
    assert grade(ROOT, [tmp_path / "anna"]) == 0 and (tmp_path / "anna" / "01_patchwise_mlp.report.json").exists()


def test_reports_of_one_name_are_told_apart(tmp_path):
    ways = ["a/x", "b/X", "a/hw 1/x", "b/hw 1/x", "b/hw 1-x", "B/x", ".", "a/._x"]
    names = ["a-x", "b-X", "a-hw 1-x", "b-hw 1-x", "b-hw 1-x-2", "B-x-2", "submission", "a-_x"]
    files = [tmp_path / f"{way}.ipynb" for way in ways]
    assert [t.name for t in report.targets(files, tmp_path / "out", tmp_path).values()] == names
    files = [tmp_path / "x.ipynb", tmp_path / "x.json", tmp_path / "x", tmp_path / "a" / "x.ipynb"]
    assert list(report.targets(files, None, tmp_path).values()) == [tmp_path / n for n in ("x", "x-2", "x-3", "a/x")]


def test_reports_and_table_say_whose_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(Fence, "attempt", None)
    files = [save(tmp_path / student / "hw1" / "01_patchwise_mlp.ipynb", content()) for student in ("anna", "ben`\n#")]
    for paths in (files, [tmp_path / "anna", tmp_path / "ben`\n#"], [tmp_path]):   # however they are named
        out = tmp_path.parent / f"{tmp_path.name}-out"
        assert grade(ROOT, paths, out) == 0
        rows = list(csv.DictReader((out / "grades.csv").open(encoding="utf-8", newline="")))
        assert [row["report"] for row in rows] == [str(out / f"{s}-hw1-01_patchwise_mlp.report.md") for s in ("anna", "ben`\n#")]
        headings = [Path(row["report"]).read_text(encoding="utf-8").splitlines()[0] for row in rows]
        assert re.match(r"# `.*anna.hw1.01_patchwise_mlp.ipynb`, 01_patchwise_mlp: 0 of", headings[0]) and "ben #" in headings[1]


def test_one_report_that_cannot_be_written_costs_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Fence, "attempt", lambda self, job: ("right", ""))
    files = [save(tmp_path / "in" / f"{name}_01_patchwise_mlp.ipynb", content(exercise_1_1=RIGHT)) for name in "abc"]
    blocked = tmp_path / "out" / "b_01_patchwise_mlp.report.md"
    blocked.mkdir(parents=True)
    assert grade(ROOT, [tmp_path / "in"], tmp_path / "out") == 1
    assert f"{blocked} could not be written: " in capsys.readouterr().err
    rows = list(csv.DictReader((tmp_path / "out" / "grades.csv").open(encoding="utf-8")))
    assert [row["points"] for row in rows] == ["2"] * 3
    assert {p.name[0] for p in (tmp_path / "out").glob("*.report.md") if p.is_file()} == {"a", "c"}
    (tmp_path / "in" / "grades.csv").mkdir()
    assert grade(ROOT, files) == 1 and "grades.csv could not be written: " in capsys.readouterr().err


def test_what_could_not_be_tried_shows_in_the_exit_status(tmp_path, monkeypatch):
    monkeypatch.setattr(Fence, "attempt", lambda self, job: (BROKEN, "why"))
    assert grade(ROOT, [save(tmp_path / "x.ipynb", content(exercise_1_1=RIGHT))]) == 1 and reported(tmp_path / "x")["problem"] == ""


def test_a_submission_named_twice_is_graded_once(tmp_path, capsys):
    file = save(tmp_path / "x.ipynb", content())
    assert grade(ROOT, [tmp_path, file, tmp_path / ".." / tmp_path.name / "x.ipynb"]) == 0
    assert capsys.readouterr().out.count(" points\n") == 1 and not (tmp_path / "grades.csv").exists()
    assert grade(ROOT, [tmp_path]) == 0 and "not read" not in capsys.readouterr().out, "its own reports are passed over"


def test_an_interruption_ends_what_is_under_way(tmp_path, monkeypatch):
    def interrupt(begun):
        raise KeyboardInterrupt

    begun, ended = [], threading.Event()
    monkeypatch.setattr(Fence, "attempt", lambda self, job: (begun.append(job), ended.wait(9)))
    monkeypatch.setattr(Fence, "end", lambda self: ended.set())
    monkeypatch.setattr("coursekit.student.grade._entry", interrupt)
    with pytest.raises(KeyboardInterrupt):
        grade(ROOT, [save(tmp_path / "x.ipynb", content("01_patchwise_mlp", "all"))])
    assert ended.is_set() and len(begun) <= AT_ONCE < len(ORIGINALS["01_patchwise_mlp"].tasks)


@pytest.mark.parametrize("below", [[], ["below"]])
def test_where_reports_cannot_go_is_said_first(below, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Fence, "attempt", None)
    file = save(tmp_path / "x.ipynb", content(exercise_1_1=RIGHT))
    taken = save(tmp_path / "taken", b"mine")
    assert main(["grade", str(file), "--to", str(taken.joinpath(*below))]) == 1
    assert capsys.readouterr().err.endswith(f": {taken} is a file; name another\n") and taken.read_bytes() == b"mine"
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: os.rmdir(os.sep))   # fails, as in a read-only folder
    assert main(["grade", str(file), "--to", str(tmp_path / "locked")]) == 1
    assert re.search(r"nothing can be written to .*locked: .*; name another", capsys.readouterr().err)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names that are no text")
def test_a_file_name_that_is_no_text(tmp_path, capsys):
    save(tmp_path / os.fsdecode(b"M\xfcller_01_patchwise_mlp.ipynb"), content())
    save(tmp_path / os.fsdecode(b"M\xfcller.pdf"), b"%PDF")
    assert main(["grade", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "M\\udcfcller_01_patchwise_mlp.ipynb: 0 of" in out and "M\\udcfcller.pdf: not read" in out
    assert reported(tmp_path / os.fsdecode(b"M\xfcller_01_patchwise_mlp"))["notebook"] == "01_patchwise_mlp"


def test_a_table_of_ten(tmp_path, monkeypatch):
    """Eight students, of whom each has solved one exercise more; one file that is none, and one of another notebook."""
    tasks = ORIGINALS["01_patchwise_mlp"].tasks
    monkeypatch.setattr(Fence, "attempt", lambda self, job: ("right", "") if "# solved" in job.answer else ("stopped", "x"))
    for count in range(8):
        cells = {t.stub.id.replace("-", "_"): t.stub.source + ("  # solved" if i < count else "  # tried") for i, t in enumerate(tasks)}
        save(tmp_path / f"{count}" / "01_patchwise_mlp.ipynb", content(**cells))
    save(tmp_path / "8" / "01_patchwise_mlp.ipynb", b"{")
    save(tmp_path / "9" / "04_vae.ipynb", content("04_vae"))
    assert grade(ROOT, [tmp_path], tmp_path / "out") == 1
    rows = list(csv.DictReader((tmp_path / "out" / "grades.csv").open(encoding="utf-8")))
    assert [Path(row["submission"]).parent.name for row in rows] == list("0123456789")
    assert [row["points"] for row in rows] == [str(sum(t.points for t in tasks[:count])) for count in range(8)] + ["0", "0"]
    for row in rows[:9]:
        assert sum(int(row[t.id]) for t in tasks) == int(row["points"]) and row["04-2.2"] == "", row
    assert rows[8]["problem"] and not any(row["problem"] for row in (*rows[:8], rows[9]))
    assert len(list((tmp_path / "out").glob("*.report.json"))) == 10


def test_formulas_in_the_table_are_text(tmp_path):
    entry = {"submission": "=1+1.ipynb", "notebook": None, "problem": "@x", "points": 0, "possible": None, "exercises": []}
    entry["report"] = "-r.md"
    report.write_table([entry, entry | {"submission": "+1", "problem": "\t@x"}], ["01-1.1"], tmp_path / "grades.csv")
    head, *rows = (tmp_path / "grades.csv").read_text().splitlines()
    assert head == "submission,notebook,report,points,possible,problem"
    assert rows == ["'=1+1.ipynb,,'-r.md,0,,'@x", "'+1,,'-r.md,0,,'\t@x"]


def test_the_command(tmp_path, capsys):
    assert main(["grade", str(tmp_path / "nothing.ipynb")]) == 1
    assert "nothing.ipynb does not exist" in capsys.readouterr().err
    assert main(["grade", str(tmp_path)]) == 1
    assert "no .ipynb in" in capsys.readouterr().err
    for options in (["--seconds", "0"], ["--memory", "nan"], ["--seconds", "x"], []):
        with pytest.raises(SystemExit):
            main(["grade", *options, *([str(tmp_path)] if options else [])])
        if options:
            assert f"{options[1]} is not a positive number" in capsys.readouterr().err
    with pytest.raises(StudentError):
        grade(ROOT, [])


def test_a_missing_limit_is_said(tmp_path):
    tried = {"id": "01-1.1", "function": "f", "points": 2, "possible": 2, "verdict": "right", "message": ""}
    entry = {"submission": "x", "notebook": "01_x", "problem": "", "points": 2, "possible": 2, "exercises": [tried]}
    assert "no limit of memory" in report.markdown(entry | {"limits": {"seconds": 3.0, "memory_gib": None}})
    assert "with 3 s and 2.5 GiB of memory" in report.markdown(entry | {"limits": {"seconds": 3.0, "memory_gib": 2.5}})
    assert attempt.memory_is_limited() == (sys.platform == "linux")


# --- whole submissions ---------------------------------------------------------------------------------------------------

WRONG_ANSWERS = {   # notebook → two exercises: a wrong answer as a student would write it, and its hint
    "01_patchwise_mlp": {
        "1.1": ("def extract_patches(x, k):\n    return F.unfold(x.transpose(2, 3), k).transpose(1, 2)", "j moves fastest"),
        "4.1": ("def as_convnet(mlp):\n    return nn.Sequential()", "look at"),
    },
    "02_diffusion_1d": {
        "1.1": ("def q_sample(schedule, x_0, t, noise):\n    return schedule.at(schedule.alpha_bar, t, x_0) * x_0 + noise", "look at"),
        "4.1": ("def mean_from_noise(schedule, x_t, t, noise):\n    return x_t - noise", "look at"),
    },
    "03_segmentation": {
        "3.2": ("def dice_loss(logits, masks, smoothing=1e-6):\n    return 1 - (logits.sigmoid() * masks).mean()", "look at"),
        "8.2": ("def attention(q, k, v):\n    return (q @ k.transpose(-2, -1)).softmax(-1) @ v", "look at"),
    },
    "04_vae": {
        "2.2": ("def gaussian_kl(mean, log_var):\n    return -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum()", "look at"),
        "3.1": ("def reparameterize(mean, log_var, noise):\n    return mean + log_var.exp() * noise", "standard deviation"),
    },
    "05_ddpm": {
        "1.1": ("def to_signed(pixels):\n    return pixels / 255", "0 … 1"),
        "2.1": (
            "def p_loss(diffusion, x_0, t, noise):\n    x_t = diffusion.q_sample(x_0, t, noise)\n"
            "    return (diffusion.model(x_t, t) - noise).square().mean()", "squared",
        ),
    },
}  # fmt: skip


@posix
@pytest.mark.parametrize("name", list(ORIGINALS) if ALL else ["01_patchwise_mlp"])
def test_wrong_answers_get_their_hint_and_the_others_count(name, tmp_path):
    wrong = {f"exercise_{number.replace('.', '_')}": source for number, (source, _) in WRONG_ANSWERS[name].items()}
    assert grade(ROOT, [save(tmp_path / "x.ipynb", content(name, "all", **wrong))], seconds=60) == 0
    for exercise in reported(tmp_path / "x")["exercises"]:
        number = exercise["id"].partition("-")[2]
        if number in WRONG_ANSWERS[name]:
            assert (exercise["points"], exercise["verdict"]) == (0, "not right yet")
            assert re.search(WRONG_ANSWERS[name][number][1], exercise["message"]), exercise
        else:
            assert exercise["points"] == exercise["possible"] > 0 and exercise["verdict"] == "right", exercise


HOSTILE = {
    "exercise_1_1": "def extract_patches(x, k):\n    while True: pass",
    "exercise_2_1": "import sys\nsys.exit(0)\ndef linear_as_convolution(*_): return",
    "exercise_4_1": "def as_convnet(mlp)\n    return mlp",
}


@posix
def test_a_hostile_notebook_keeps_its_other_points(tmp_path):
    written = content(solved=("exercise-4-2",), **HOSTILE)
    assert grade(ROOT, [save(tmp_path / "x.ipynb", written)], seconds=10) == 0
    found = {e["id"]: (e["points"], e["verdict"], e["message"]) for e in reported(tmp_path / "x")["exercises"]}
    assert found["01-4.2"] == (3, "right", "") and sum(points for points, *_ in found.values()) == 3
    assert found["01-1.1"][1] == "stopped" and "loop that does not end" in found["01-1.1"][2]
    assert found["01-2.1"][1] == "not right yet" and "SystemExit" in found["01-2.1"][2]
    assert found["01-4.1"][1] == "not right yet" and "SyntaxError" in found["01-4.1"][2]


@posix
@pytest.mark.skipif(not ALL, reason="COURSEKIT_ALL_STUDENTS is not set")
@pytest.mark.parametrize("name", ORIGINALS)
def test_the_solutions_get_all_points(name, tmp_path):
    assert grade(ROOT, [save(tmp_path / f"{name}.ipynb", content(name, "all"))], seconds=60) == 0
    found = reported(tmp_path / name)
    assert found["points"] == found["possible"] == sum(t.points for t in ORIGINALS[name].tasks), found
