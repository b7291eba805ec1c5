"""What README.md says of numbers is what the records and the notebooks say."""

import json
import re

import pytest
from readme_page import BETWEEN, ROOT, SHOWN, picture, tables

README = (ROOT / "README.md").read_text("utf-8")
ROWS = re.findall(r"^\| \[.*?\]\(notebooks/(\w+)\.ipynb\) \|.*\| (\d+) \| under (\d+) s \|$", README, re.MULTILINE)


def test_the_tables_are_in_step_with_the_records():
    assert BETWEEN.search(README)[0] == f"<!-- results -->\n{tables()}<!-- /results -->", "run: python tests/readme_page.py"


def test_there_is_a_row_a_notebook():
    assert [name for name, *_ in ROWS] == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize(("name", "exercises", "bound"), ROWS)
def test_exercises_and_times(name, exercises, bound):
    source = (ROOT / "notebooks" / f"{name}.py").read_text("utf-8")
    assert len(re.findall(r"\*\*Exercise [\d.]+\*\*", source)) == int(exercises)
    assert json.loads((ROOT / "data" / "results" / "run_times.json").read_text("utf-8"))[name]["seconds"] <= int(bound)


def test_the_picture_is_made_of_the_notebooks_that_it_names():
    assert (ROOT / "docs" / "explorers.png").is_file() and "(docs/explorers.png)" in README
    assert picture().height > 300 * len(SHOWN), "a snapshot of each"


def test_it_stays_short():
    assert len(README.splitlines()) < 150
