
import pytest
import torch
import torch.nn.functional as F
from answers import assert_goes_on_quietly, assert_hint_and_reference, assert_reference_is_right
from torch import nn

from coursekit import patchwise
from coursekit.exercises.patchwise import EXERCISES, check


def test_the_reference_is_right_and_comes_back(capsys):
    assert_reference_is_right(check, EXERCISES, capsys)


def untouched(*_):
    raise NotImplementedError


def short_patches(x, k):
    corners = [(i, j) for i in range(x.shape[2] - k + 1) for j in range(x.shape[3] - k + 1)]
    return torch.stack([x[:, :, i : i + k - 1, j : j + k - 1].flatten(1) for i, j in corners], 1)


def column_first_patches(x, k):
    return F.unfold(x.transpose(2, 3), k).transpose(1, 2)


def transposed_kernel(layer, channels, k):
    convolution = patchwise.linear_as_convolution(layer, channels, k)
    convolution.weight.data = convolution.weight.data.transpose(2, 3).contiguous()
    return convolution


def no_bias(layer, channels, k):
    convolution = patchwise.linear_as_convolution(layer, channels, k)
    nn.init.zeros_(convolution.bias)
    return convolution


def activation_at_the_end(mlp):
    return nn.Sequential(*patchwise.as_convnet(mlp), nn.Tanh())


def off_by_one(network, channels, size):
    height, width = patchwise.receptive_field(network, channels, size)
    return height - 1, width - 1


def one_image(network, channels, size):
    x = torch.randn(1, channels, size, size, dtype=next(network.parameters()).dtype).requires_grad_()
    y = network(x)
    y[:, :, y.shape[2] // 2, y.shape[3] // 2].sum().backward()
    rows, columns = x.grad.abs().sum((0, 1)).nonzero(as_tuple=True)
    return (rows.max() - rows.min() + 1).item(), (columns.max() - columns.min() + 1).item()


WRONG = [
    ("1.1", short_patches, "end is left out"),
    ("1.1", column_first_patches, "j moves fastest"),
    ("2.1", transposed_kernel, "row by row"),
    ("2.1", no_bias, "copy the bias"),
    ("4.1", activation_at_the_end, "none at the end"),
    ("4.2", off_by_one, r"last − first \+ 1"),
    ("4.2", one_image, "several random images"),
    ("2.1", lambda *_: None, "return an nn.Conv2d; this is NoneType"),
    ("1.1", lambda *_: None, "return a tensor; this is NoneType"),
    ("2.1", lambda layer, c, k: nn.Conv2d(c, layer.out_features, k), "the layer's dtype"),
    ("4.1", lambda mlp: 1 / 0, "trying your function ended in ZeroDivisionError"),
]


@pytest.mark.parametrize(("name", "function", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(name, function, hint, capsys):
    assert_hint_and_reference(check, EXERCISES, name, function, hint, capsys)


def test_unattempted_goes_on_quietly(capsys):
    assert_goes_on_quietly(check, EXERCISES, "4.1", capsys)


def test_unknown_exercise():
    with pytest.raises(ValueError, match=r"no exercise '9\.9' here; there are 1\.1, 2\.1, 4\.1, 4\.2"):
        check("9.9", untouched)
