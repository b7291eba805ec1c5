"""What every explorer must do, whatever it shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from coursekit.explore.base import Explorer


def moves_and_returns(explorer: Explorer, name: str, value: Any) -> None:
    """The control changes the picture, and moved back it restores it."""
    picture, before = explorer.image.value, explorer.controls[name].value
    explorer.controls[name].value = value
    assert explorer.image.value != picture, f"{name} = {value!r} changes nothing"
    explorer.controls[name].value = before
    assert explorer.image.value == picture, f"{name} moved back to {before!r} shows something else"


def frame_is_pure(explorer: Explorer, **values: Any) -> None:
    """Other values give another picture, the same one each time, and what is displayed stays, before and after."""
    picture, before = explorer.image.value, explorer.values
    other = explorer.frame(**values)
    assert other != picture and explorer.snapshot(**values).data == other == explorer.frame(**values)
    nothing_is_cut_off(explorer)
    assert explorer.frame() == picture == explorer.image.value and explorer.values == before


def nothing_is_cut_off(explorer: Explorer) -> None:
    """Titles, labels and captions lie within the picture, as it was last drawn."""
    figure = explorer._canvas.figure
    texts = [*figure.texts, *(axes.title for axes in figure.axes)]
    texts += [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axes.axison]
    for text in filter(lambda text: text.get_visible() and text.get_text().strip(), texts):
        left, low, right, high = text.get_window_extent().extents
        inside = left >= 0 and low >= 0 and right <= figure.bbox.width and high <= figure.bbox.height
        assert inside, f"{text.get_text()!r} lies at {(left, low, right, high)} in a picture of {figure.bbox.size}"


def frame_redraws_nothing(explorer: Explorer, monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """A frame costs only what moves: the background is kept. And torch has as many threads after it as before."""
    monkeypatch.setattr(explorer._canvas, "draw", lambda: pytest.fail("the background is kept"))
    with three_threads():
        explorer.frame(**values)


@contextmanager
def three_threads() -> Iterator[None]:
    """Other than the one that tests have, so that what leaves one behind is seen."""
    torch.set_num_threads(3)
    try:
        yield
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
