"""python -m coursekit.workbook COMMAND: the notebooks of this checkout as files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from coursekit.workbook import WorkbookError, checkout


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 1, and a message on stderr, if something has to be put right first."""
    options = _parser().parse_args(arguments)
    try:
        root = checkout("coursekit.workbook.pages")
        from coursekit.workbook import notebooks, pages, publish  # after the parser: these load Jupyter, which --help need not wait for

        if options.command == "sync":
            for path in notebooks.sources(root):
                notebooks.sync(path)
        elif options.command == "execute":
            for path in notebooks.sources(root, options.names):
                notebooks.execute(path)
        elif options.command == "html":
            print(f"The index: {pages.write_html(root, options.to).resolve()}")
        else:
            _report(publish.publish(root, options.repository), publish.published(root), root)
    except WorkbookError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m coursekit.workbook", description="The notebooks of this checkout as files.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("sync", help="bring every .ipynb in step with its .py, whose cells are the source")
    execute = commands.add_parser("execute", help="sync, execute in fast mode, and write the outputs to the .ipynb")
    execute.add_argument("names", nargs="*", metavar="NAME", help="01 or 01_patchwise_mlp; all notebooks if none is named")
    html = commands.add_parser("html", help="execute every notebook without touching its files, and write HTML with an index")
    html.add_argument("--to", type=Path, default=Path("build"), metavar="FOLDER", help="where to (default: build)")
    publish = commands.add_parser("publish", help="stamp badges and setup cells with the repository they are published in")
    publish.add_argument("repository", nargs="?", metavar="OWNER/NAME", help='"" unsets it; left out, what pyproject.toml records')
    return parser


def _report(changed: list[Path], published: tuple[str, str], root: Path) -> None:
    """Say what was stamped, and what is left to do."""
    repository, tag = published
    print(f"Published as {repository}, tag {tag}." if repository else "No repository is set.")
    print("Changed: " + (", ".join(str(path.relative_to(root)) for path in changed) or "nothing"))
    if repository and changed:
        print(f"Now commit, then: git tag {tag} && git push origin HEAD {tag}   (badges and Colab read the tag)")


if __name__ == "__main__":
    sys.exit(main())
