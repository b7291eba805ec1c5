"""python -m coursekit.student build | grade: hand notebooks out, and grade what comes back."""

from __future__ import annotations

import argparse
import shlex
import sys
from contextlib import suppress
from pathlib import Path

from coursekit.student import StudentError
from coursekit.student.fence import MEMORY, SECONDS
from coursekit.workbook import WorkbookError, checkout


def main(arguments: list[str] | None = None) -> int:
    """Run one command. 0: all went well; 1: something has to be looked at, and was said on stderr."""
    options = _parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")   # file names may hold what the terminal cannot show, or no text at all
    try:
        root = checkout("coursekit.student.build")
        from coursekit.student.build import build  # after the parser: these load Jupyter and torch, which --help need not wait for
        from coursekit.student.grade import grade

        if options.command == "build":
            for path in build(root, options.to, options.names, options.repo, options.force):
                print(path)
            print(f"To open them: {shlex.join([sys.executable, '-m', 'jupyter', 'lab', str(options.to)])}", file=sys.stderr)
            return 0
        return grade(root, options.submissions, options.to, options.seconds, options.memory)
    except (StudentError, WorkbookError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m coursekit.student", description="Student notebooks: hand out, collect, grade.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="write student notebooks: the solutions go, the expected figures stay")
    build.add_argument("names", nargs="*", metavar="NAME", help="01 or 01_patchwise_mlp; all notebooks if none is named")
    build.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where to")
    build.add_argument("--repo", default="", metavar="OWNER/NAME", help="the repository at whose top the files will lie, for Colab badges")
    build.add_argument("--force", action="store_true", help="replace files in which somebody has worked")
    grade = commands.add_parser("grade", help="try each answer in a process of its own, with limits, and write reports")
    grade.add_argument("submissions", nargs="+", type=Path, metavar="SUBMISSION", help="an .ipynb, or a folder of them")
    grade.add_argument("--to", type=Path, metavar="FOLDER", help="where reports go (default: beside each submission)")
    grade.add_argument("--seconds", type=_positive, default=SECONDS, help=f"for each answer (default: {SECONDS:g})")
    grade.add_argument("--memory", type=_positive, default=MEMORY, metavar="GIB", help=f"for each answer (default: {MEMORY:g})")
    return parser


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < (number := float(text)) < 1e5:
            return number
    raise argparse.ArgumentTypeError(f"{text} is not a positive number below 100000")


if __name__ == "__main__":
    sys.exit(main())
