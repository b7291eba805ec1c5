"""Each printed formula fails and each corrected one holds, on the experiments of ``errata.py``."""

from pathlib import Path

import pytest
from errata import ERRATA

from coursekit.checks import check_close, check_fails

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.mark.parametrize("erratum", ERRATA, ids=lambda erratum: erratum.id)
def test_printed_fails_and_right_holds(erratum):
    truth, right, printed = erratum.experiment()
    check_close(f"{erratum.id}  {erratum.right}", right, truth, tolerance=1e-9)
    check_fails(f"{erratum.id}  {erratum.printed}", truth, printed)


@pytest.mark.parametrize("erratum", ERRATA, ids=lambda erratum: erratum.id)
def test_its_notebook_shows_it(erratum):
    text = (NOTEBOOKS / f"{erratum.notebook}.py").read_text(encoding="utf-8")
    assert f'"{erratum.id}  ' in text, "no check in the notebook names it"
    assert f"| {erratum.id} |" in text, "the notebook's table of errata leaves it out"


def test_ids_are_unique():
    assert len({erratum.id for erratum in ERRATA}) == len(ERRATA)
