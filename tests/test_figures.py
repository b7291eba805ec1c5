import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from coursekit import figures


def test_pictures():
    assert figures.as_picture(torch.full((3, 2, 5), 2.0)).shape == (2, 5, 3)
    assert figures.as_picture(torch.full((3, 2, 5), 2.0)).max() == 1
    assert figures.as_picture(torch.rand(1, 2, 5)).shape == figures.as_picture(np.random.default_rng(0).random((2, 5))).shape == (2, 5)
    with pytest.raises(ValueError, match=r"got \(2, 4, 4\)"):
        figures.as_picture(torch.rand(2, 4, 4))


def test_signed_images_have_zero_in_the_middle_and_no_axes():
    figure = figures.show_images([torch.tensor([[-1.0, 0.5]]), torch.zeros(2, 2)], ["a", "b"], signed=True)
    for axes in figure.axes:
        low, high = axes.images[0].get_clim()
        assert low == -high < 0 and not axes.axison
    plt.close(figure)


def test_one_style():
    with matplotlib.rc_context():
        figures.use_style()
        assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == list(figures.COLOURS)
