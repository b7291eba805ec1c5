"""python tests/errata_page.py: write docs/errata.md from the table that the tests run on."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from errata import ERRATA, Erratum

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "errata.md"
HANDOUTS = {
    "000": ("Basel, *Pattern Recognition*, problem set 6 with solutions",
            r"Its $\varepsilon_t$ in exercises 2 to 4 is the noise of one step."),
    "001": ("Rice, *Deep Learning for Vision & Language*, slides", ""),
    "002": ("Bologna, *Machine Learning for Computer Vision*, notes",
            r"The notes write $\alpha_t$ for what is $\bar\alpha_t$ here, and $1-\beta_t$ for $\alpha_t$. Covered: attention (3), "
            "segmentation (parts of 5), entropy (8.1), diffusion (8.3.1 to 8.3.4)."),
    "003": ("CMU, *10-423/623*, homework 2 with answers", "Covered: parts 4 and 5, on diffusion."),
    "004": ("Sharif, *Deep Learning*, homework 4",
            r"Its $a_t$ is $\sqrt{\bar\alpha_t}$ here, and its $\sigma_t$ is $\sqrt{1-\bar\alpha_t}$. Covered: 1.3, 2(c) to 2(f)."),
}  # fmt: skip
HEAD = r"""# Errata of the handouts

For readers who work with the five handouts that this workbook grew out of. We learnt from all of them, and checked what they say
by running it; most of it holds. Listed here is what does not, or not as it stands. The handouts reached us as machine
transcriptions, so a slip may have come in on the way: please read "printed" as "in the copy that we have". Where a handout has
the same formula right in another place, the table often says so.

Each line names what shows it: a notebook and its section, where a check prints the same number (search for `E0.6`, say), or
"test". For each one, with or without a notebook, an experiment finds the truth without the formula and holds both forms
against it:

```
.venv/bin/python -m pytest "tests/test_errata.py::test_printed_fails_and_right_holds[E0.6]"
```

**A**: gives wrong results when copied into code. **B**: inconsistent on paper. **C**: may mislead, or leaves something out.
Formulas are in the notebooks' notation: $\alpha_t = 1-\beta_t$ for one step, $\bar\alpha_t$ for the product of all so far. Only the
topics of the workbook are covered; a formula that is not listed was not necessarily checked. An erratum that is
not listed leaves a gap in the numbering.

This page is made by `python tests/errata_page.py` from [tests/errata.py](../tests/errata.py); a test keeps the two in step.
"""
COLUMNS = "| | where | printed | right | what goes wrong otherwise | shown in |\n|---|---|---|---|---|---|\n"


def shown_in(notebook: str) -> dict[str, str]:
    """The sections that show each erratum, from the notebook's own table: E0.20 → "4" or "2, 6"."""
    text = (ROOT / "notebooks" / f"{notebook}.py").read_text(encoding="utf-8")
    return dict(re.findall(r"^# \| (E\d\.\d+) \|.*\| ([\d, ]+) \|$", text, re.MULTILINE))


def page() -> str:
    """The text of docs/errata.md."""
    parts = [HEAD]
    for handout, (title, note) in HANDOUTS.items():
        mine = sorted((e for e in ERRATA if e.where.startswith(handout)), key=lambda e: int(e.id.split(".")[1]))
        parts.append(f"\n## E{int(handout)} · {title}\n\n" + (f"{note}\n\n" if note else "") + COLUMNS + "".join(map(_row, mine)))
    return "".join(parts)


def _row(erratum: Erratum) -> str:
    place = "test"
    if erratum.notebook:
        place = f"[{erratum.notebook[:2]}](../notebooks/{erratum.notebook}.ipynb), {shown_in(erratum.notebook)[erratum.id]}"
    cells = (f"{erratum.id} {erratum.severity}", erratum.where.split(", ", 1)[1], erratum.printed, erratum.right, erratum.effect, place)
    return "| " + " | ".join(cells) + " |\n"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()   # --help does nothing else, and an argument is refused
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{len(ERRATA)} errata: {PAGE.relative_to(ROOT)}")
