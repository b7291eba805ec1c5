import io

import ipywidgets as widgets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from explorers import frame_is_pure, frame_redraws_nothing, moves_and_returns
from PIL import Image

from coursekit.explore import PatchExplorer
from coursekit.explore.patch import example_filters


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def explorer():
    return PatchExplorer()


def test_is_a_box_of_core_widgets_with_a_fixed_repr(explorer):
    assert isinstance(explorer, widgets.VBox) and isinstance(explorer.image, widgets.Image)
    assert explorer.image in explorer.children and "coursekit-explorer" in explorer._dom_classes
    assert repr(explorer) == "PatchExplorer(row, column, filter)"


def test_every_control_changes_the_picture_and_coming_back_restores_it(explorer):
    for name, value in (("row", 3), ("column", 4), ("filter", "blur")):
        moves_and_returns(explorer, name, value)


def test_frame_is_pure_and_snapshot_shows_it(explorer):
    frame_is_pure(explorer, row=1, column=2, filter="spots")
    moves_and_returns(explorer, "row", 5)  # after a frame of something else the display is as it should be


def test_moving_only_repaints_what_moves(explorer):
    a, b = (pixels(explorer.frame(row=10, column=column)) for column in (5, 60))
    changed = (a != b).any(-1)
    assert 0.005 < changed.mean() < 0.6 and not changed[:20].any()  # titles and margins stay


def test_the_pixel_is_the_convolution_everywhere(explorer):
    for name, kernel in explorer.filters.items():
        expected = F.conv2d(explorer.photo, kernel[None, None])[0, 0]
        for row, column in ((0, 0), (0, expected.shape[1] - 1), (expected.shape[0] - 1, 0), (7, 31)):
            shown = explorer.compute(row=row, column=column, filter=name)
            assert shown.pixel == pytest.approx(expected[row, column].item(), abs=1e-12)
            assert torch.equal(shown.patch, explorer.photo[0, 0, row : row + 9, column : column + 9])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rwo": 1}, "no control 'rwo'; its controls are row, column, filter"),
        ({"row": 10**4}, "row must lie in 0"),
        ({"filter": "x"}, "filter must be one of"),
        ({"row": 1.5}, "row must be an integer, got 1.5"),
        ({"row": "a"}, "row must be an integer"),
        ({"row": True}, "row must be an integer"),
    ],
)
def test_impossible_values_are_named(explorer, values, message):
    with pytest.raises(ValueError, match=message):
        explorer.frame(**values)


def test_an_image_and_filters_of_ones_own():
    image, kernel = torch.rand(1, 12, 15), torch.ones(3, 3) / 9
    own = PatchExplorer(image, {"mean": kernel})
    assert own.compute(row=2, column=3, filter="mean").pixel == pytest.approx(image[0, 2:5, 3:6].mean().item(), abs=1e-6)


def test_filters():
    filters = example_filters(7)
    for name in ("upright edges", "level edges", "diagonal edges", "spots"):
        assert filters[name].sum().item() == pytest.approx(0, abs=1e-12)
    assert filters["blur"].sum().item() == pytest.approx(1)
    assert torch.equal(filters["upright edges"].T, filters["level edges"])
    for size in (1, 4):
        with pytest.raises(ValueError, match="odd"):
            example_filters(size)


def test_nothing_is_drawn_anew_for_a_frame_and_torch_keeps_its_threads(explorer, monkeypatch):
    frame_redraws_nothing(explorer, monkeypatch, row=explorer.values["row"] + 1)


def test_what_is_drawn_is_what_was_computed(explorer):
    explorer.controls["row"].value, explorer.controls["column"].value, explorer.controls["filter"].value = 21, 47, "spots"
    shown = explorer.shown
    patch, weights, product = (picture.get_array() for picture in explorer.squares)
    for drawn, right in ((patch, shown.patch), (weights, explorer.filters["spots"]), (product, shown.product)):
        assert np.array_equal(drawn, right.numpy())
    responses = F.conv2d(explorer.photo, explorer.filters["spots"][None, None])[0, 0]
    assert np.allclose(explorer.map.get_array(), responses.numpy())
    assert [list(values) for values in explorer.dot.get_data()] == [[47], [21]]  # x is the column, y is the row
    assert all(box.get_xy() == (46.5, 20.5) for box in explorer.boxes)
    assert f"{responses[21, 47].item():+.4f}" in explorer.sum.get_text() and "(21, 47)" in explorer.sum.get_text()


@pytest.mark.parametrize(
    ("image", "filters"),
    [
        (torch.rand(12, 15), {"a": torch.ones(3, 3)}),
        (torch.rand(3, 12, 15), {"a": torch.ones(3, 3)}),
        (torch.rand(1, 12, 15), {}),
        (torch.rand(1, 12, 15), {"a": torch.ones(3, 3), "b": torch.ones(5, 5)}),
        (torch.rand(1, 12, 15), {"a": torch.ones(3, 5)}),
        (torch.rand(1, 12, 15), {"a": torch.ones(13, 13)}),
    ],
)
def test_impossible_images_and_filters(image, filters):
    with pytest.raises(ValueError, match=r"filters|fits"):
        PatchExplorer(image, filters)
