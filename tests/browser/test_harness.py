"""The harness itself: it passes a sound explorer and sees each fault that it is there to see."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .explorer import explorers
from .lab import LabServer, NotebookPage

# A small explorer with `{body}` as what happens when a control moves.
SCRATCH = """
import io
import ipywidgets as widgets
from PIL import Image, ImageDraw

class Scratch(widgets.VBox):
    def __init__(self):
        self.row = widgets.IntSlider(description="Row", min=0, max=9, value=9)
        self.column = widgets.FloatSlider(description="Column", min=0, max=1)
        self.size = widgets.SelectionSlider(description="Size", options=[5, 10, 20])
        self.colour = widgets.Dropdown(description="Colour", options=["white", "orange", "skyblue"])
        self.filled = widgets.Checkbox(description="Filled")
        controls = self.row, self.column, self.size, self.colour, self.filled
        self.picture = widgets.Image(format="png")
        super().__init__([widgets.HBox(controls[:2]), *controls[2:], self.picture])
        self.add_class("coursekit-explorer")
        self.draw()
        for control in controls:
            control.observe(self.moved, "value")

    def draw(self):
        image = Image.new("RGB", (200, 200), "black")
        x, y, size = 180 * self.column.value, 20 * self.row.value, self.size.value
        fill = self.colour.value if self.filled.value else None
        ImageDraw.Draw(image).rectangle((x, y, x + size, y + size), fill=fill, outline=self.colour.value)
        buffer = io.BytesIO()
        image.save(buffer, "png")
        self.picture.value = buffer.getvalue()

    def moved(self, change):
        {body}

explorer = Scratch()
explorer
"""


@pytest.fixture
def scratch(lab_server: LabServer, open_notebook: Callable[..., NotebookPage]) -> Callable[..., NotebookPage]:
    """Opens and runs a notebook with the explorer whose callback is the given statement, and further cells."""

    def make(body: str, mode: str = "doc", *cells: str) -> NotebookPage:
        path = lab_server.write_notebook("scratch.ipynb", SCRATCH.replace("{body}", body), *cells)
        page = open_notebook(path, mode)
        page.run_all()
        return page

    return make


@pytest.mark.browser
@pytest.mark.parametrize("mode", ["doc", "lab"])
def test_sound_explorer_passes(scratch: Callable[..., NotebookPage], mode: str) -> None:
    page = scratch("self.draw()", mode)
    (explorer,) = explorers(page)
    assert [control.label for control in explorer.controls] == ["Row", "Column", "Size", "Colour", "Filled"]
    assert [control.kind for control in explorer.controls] == ["slider"] * 3 + ["dropdown", "checkbox"]
    explorer.drive()
    latency = explorer.latency(explorer.controls[0], presses=20)
    assert len(latency.samples) == 20
    assert all(sample > 0 for sample in latency.samples)
    assert page.errors() == []


@pytest.mark.browser
def test_callback_that_raises_is_seen(scratch: Callable[..., NotebookPage]) -> None:
    page = scratch("self.draw(); raise RuntimeError('broken callback')")
    assert page.errors() == []
    (explorer,) = explorers(page)
    with pytest.raises(AssertionError, match=r"an arrow key on 'Row' caused an error[\s\S]*RuntimeError: broken callback"):
        explorer.drive()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "an arrow key on 'Row' did not change the picture"),
        ("self.picture.value = bytes(self.picture.value) + b' '", "an arrow key on 'Row' redrew the same picture"),
    ],
    ids=["no redraw", "same picture"],
)
def test_picture_that_does_not_change_is_seen(scratch: Callable[..., NotebookPage], body: str, message: str) -> None:
    page = scratch(body)
    (explorer,) = explorers(page)
    with pytest.raises(AssertionError, match=message):
        explorer.drive(timeout=2)
    assert page.errors() == []


@pytest.mark.browser
def test_control_of_an_unknown_kind_is_seen(scratch: Callable[..., NotebookPage]) -> None:
    page = scratch("self.draw()", "doc", "explorer.children += (widgets.ToggleButtons(options=['a', 'b']),)")
    with pytest.raises(AssertionError, match=r"2 controls that .* cannot drive"):
        list(explorers(page))


@pytest.mark.browser
def test_widget_that_cannot_be_shown_is_seen(scratch: Callable[..., NotebookPage]) -> None:
    page = scratch("self.draw()", "doc", "widgets.HTML(_view_name='Missing')")
    assert {error.split("]")[0] for error in page.errors()} == {"[widget", "[browser console"}


@pytest.mark.browser
def test_cell_that_raises_is_seen(lab_server: LabServer, open_notebook: Callable[..., NotebookPage]) -> None:
    page = open_notebook(lab_server.write_notebook("raises.ipynb", "1 / 0", "'never reached'"))
    page.run_all()
    (error,) = page.errors()
    assert error.startswith("[cell output] cell 0:")
    assert "ZeroDivisionError" in error
