"""Each printed formula fails and each corrected one holds, on the experiments of ``errata.py``; notebooks and page agree with the table."""

import html
import re
from pathlib import Path

import pytest
from errata import ERRATA
from errata_page import HANDOUTS, PAGE, page, shown_in
from markdown_it import MarkdownIt

from coursekit.checks import check_close, check_fails

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NAMES = sorted({erratum.notebook for erratum in ERRATA} - {""})


@pytest.mark.parametrize("erratum", ERRATA, ids=lambda erratum: erratum.id)
def test_printed_fails_and_right_holds(erratum):
    truth, right, printed = erratum.experiment()
    check_close(f"{erratum.id}  {erratum.right}", right, truth, tolerance=1e-9)
    check_fails(f"{erratum.id}  {erratum.printed}", truth, printed)


@pytest.mark.parametrize("erratum", [erratum for erratum in ERRATA if erratum.notebook], ids=lambda erratum: erratum.id)
def test_its_notebook_shows_it(erratum):
    text = (NOTEBOOKS / f"{erratum.notebook}.py").read_text(encoding="utf-8")
    assert f'"{erratum.id}  ' in text, "no check in the notebook names it"
    assert erratum.id in shown_in(erratum.notebook), "the notebook's table of errata leaves it out"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_shows_stands_in_the_table(name):
    text = (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
    known = {erratum.id for erratum in ERRATA if erratum.notebook}
    assert set(shown_in(name)) | set(re.findall(r'"(E\d\.\d+)  ', text)) <= known, "errata.py leaves it out"


def test_ids_are_unique():
    assert len({erratum.id for erratum in ERRATA}) == len(ERRATA)


def test_the_page_is_in_step_with_the_table():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/errata_page.py"
    assert {erratum.where[:3] for erratum in ERRATA} <= set(HANDOUTS), "the page has no section for it"


@pytest.mark.parametrize("erratum", ERRATA, ids=lambda erratum: erratum.id)
def test_github_reads_its_formulas_as_formulas(erratum):
    for text in (erratum.printed, erratum.right, erratum.effect):
        outside, formulas = text.split("$")[::2], text.split("$")[1::2]
        assert len(outside) == len(formulas) + 1, "an odd number of dollars"
        assert "|" not in text, "it ends the cell: write \\mid"
        rendered = html.unescape(MarkdownIt().render(text))
        for formula, before, after in zip(formulas, outside, outside[1:], strict=False):
            assert f"${formula}$" in rendered, "Markdown takes a part of it for its own: an underscore, a backslash before punctuation"
            assert formula == formula.strip(), "a space inside the dollars"
            assert before[-1:] in ("", " ", "(") and not after[:1].isalnum(), "neither space nor bracket before, or a letter behind"
