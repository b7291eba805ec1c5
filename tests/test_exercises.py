"""Every exercise of every notebook is complete, and notebook 01's answers get what they deserve."""

import math
import re
from pathlib import Path

import jupytext
import pytest
import torch
import torch.nn.functional as F
from answers import assert_goes_on_quietly, assert_hint_and_reference, assert_reference_is_right
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from coursekit import patchwise
from coursekit.exercises import Exercise, ddpm, diffusion_1d, judge, segmentation, vae
from coursekit.exercises import patchwise as exercises
from coursekit.exercises.patchwise import EXERCISES, check

NOTEBOOKS = {
    "01_patchwise_mlp": exercises, "02_diffusion_1d": diffusion_1d, "03_segmentation": segmentation, "04_vae": vae, "05_ddpm": ddpm,
}   # fmt: skip
NAMED = r"\*\*Exercise ([\d.]+)\*\*"
HINT = re.compile(r"^<details><summary>Hint (\d)(?: for ([\d.]+))?</summary>(.+)</details>$", re.MULTILINE)


# --- the text ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_each_exercise_has_difficulty_minutes_points_hints_and_a_check(name):
    cells = jupytext.read(Path(__file__).parents[1] / "notebooks" / f"{name}.py").cells
    told = {k: cell.source for cell in cells if cell.cell_type == "markdown" for k in re.findall(NAMED, cell.source)}
    tried = [k for cell in cells if "### BEGIN SOLUTION" in cell.source for k in re.findall(r'exercises\.check\("([\d.]+)"', cell.source)]
    assert sorted(told) == sorted(tried) == sorted(NOTEBOOKS[name].EXERCISES)
    for k, text in told.items():
        assert re.search(NAMED.replace(r"([\d.]+)", re.escape(k)) + r" \((easy|medium|hard), \d+ minutes?, \d+ points?\)", text), k
        alone = len(re.findall(NAMED, text)) == 1
        hints = [(n, hint) for n, owner, hint in HINT.findall(text) if owner == ("" if alone else k)]
        assert [n for n, _ in hints] in (["1", "2"], ["1", "2", "3"]), k
        assert hints[0][1].endswith(("?", "?</code>")), f"{k}: the first hint asks"
        for _, hint in hints:   # HTML, in which neither Markdown nor formulas are read
            plain = re.sub(r"</?code>", "", hint)
            assert not re.search(r"[$`<]|&(?!amp;|lt;|gt;)", plain), hint
            assert hint.count("<code>") == hint.count("</code>")
        assert text.count("<details>") == len(HINT.findall(text)), k


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_solutions_of_the_notebook_are_right(name, capsys):
    names = {"torch": torch, "nn": nn, "F": F, "math": math, "DataLoader": DataLoader, "TensorDataset": TensorDataset}
    names["exercises"] = NOTEBOOKS[name]
    for cell in jupytext.read(Path(__file__).parents[1] / "notebooks" / f"{name}.py").cells:
        if "### BEGIN SOLUTION" in cell.source:
            exec(cell.source, names)
    assert capsys.readouterr().out == "".join(f"✓ Exercise {k}: right.\n" for k in NOTEBOOKS[name].EXERCISES)


# --- notebook 01 ------------------------------------------------------------------------------------------------------------


def test_the_reference_is_right_and_comes_back(capsys):
    assert_reference_is_right(check, EXERCISES, capsys)


def untouched(*_):
    raise NotImplementedError


def patches_in_loops(x, k):
    corners = [(i, j) for i in range(x.shape[2] - k + 1) for j in range(x.shape[3] - k + 1)]
    return torch.stack([x[:, :, i : i + k, j : j + k].flatten(1) for i, j in corners], 1)


def short_patches(x, k):
    corners = [(i, j) for i in range(x.shape[2] - k + 1) for j in range(x.shape[3] - k + 1)]
    return torch.stack([x[:, :, i : i + k - 1, j : j + k - 1].flatten(1) for i, j in corners], 1)


def columns_outside(x, k):
    corners = [(i, j) for j in range(x.shape[3] - k + 1) for i in range(x.shape[2] - k + 1)]
    return torch.stack([x[:, :, i : i + k, j : j + k].flatten(1) for i, j in corners], 1)


def column_first_patches(x, k):
    return F.unfold(x.transpose(2, 3), k).transpose(1, 2)


def patches_as(change, last=1):
    """Patches changed one by one, of corners that end ``last`` − 1 early."""

    def patches(x, k):
        corners = [(i, j) for i in range(x.shape[2] - k + last) for j in range(x.shape[3] - k + last)]
        return torch.stack([change(x[:, :, i : i + k, j : j + k]) for i, j in corners], 1)

    return patches


def changed(change):
    """linear_as_convolution with a change to what is right."""

    def convolution(layer, channels, k):
        right = patchwise.linear_as_convolution(layer, channels, k)
        with torch.no_grad():
            return change(right, layer, channels, k) or right

    return convolution


def weight_as(change):
    return lambda right, *_: setattr(right.weight, "data", change(right.weight.data))


def no_bias(right, *_):
    right.bias = None


def channels_last(right, layer, channels, k):
    right.weight.copy_(layer.weight.reshape(-1, k, k, channels).permute(0, 3, 1, 2))


def padded(right, layer, channels, k):
    right.padding = (k // 2, k // 2)


def strided(right, layer, channels, k):
    right.stride = (k, k)


def writes_into_the_layer(layer, channels, k):
    right = patchwise.linear_as_convolution(layer, channels, k)
    nn.init.zeros_(layer.bias)
    return right


def net_of(change):
    """as_convnet with its list of modules changed."""
    return lambda mlp: nn.Sequential(*change(list(patchwise.as_convnet(mlp))))


def activation_after(modules):
    return [modules[0], *(m for pair in zip(modules[2::2], modules[1::2], strict=True) for m in pair)]


def k_everywhere(mlp):
    layers = list(patchwise.as_convnet(mlp))
    for layer in layers[2::2]:
        layer.weight, layer.kernel_size = nn.Parameter(layer.weight.repeat(1, 1, 2, 2)), (2, 2)
    return nn.Sequential(*layers)


def box(function=max, images=8, everywhere=False, swap=False):
    """receptive_field, by default right but for ``function``, which takes the first and the last row or column."""

    def receptive_field(network, channels, size):
        x = torch.randn(images, channels, size, size, dtype=next(network.parameters()).dtype).requires_grad_()
        y = network(x)
        (y if everywhere else y[:, :, y.shape[2] // 2, y.shape[3] // 2]).sum().backward()
        rows, columns = x.grad.abs().sum((0, 1)).nonzero(as_tuple=True)
        height, width = (function(axis.min().item(), axis.max().item()) for axis in (rows, columns))
        return (width, height) if swap else (height, width)

    return receptive_field


def extent(first, last):
    return last - first + 1


def no_gradient_asked(network, channels, size):
    x = torch.randn(8, channels, size, size)
    network(x).sum().backward()
    return x.grad.abs().sum((0, 1)).nonzero()


@pytest.mark.parametrize(("name", "function"), [("1.1", patches_in_loops), ("4.2", box(extent))])
def test_other_right_answers_are_taken(name, function, capsys):
    assert check(name, function) is function
    assert capsys.readouterr().out == f"✓ Exercise {name}: right.\n"


WRONG = [
    ("1.1", short_patches, "end of a slice is left out"),
    ("1.1", columns_outside, "j moves fastest: i is the outer loop"),
    ("1.1", column_first_patches, "rows and columns are exchanged"),
    ("1.1", patches_as(lambda patch: patch.mT.flatten(1)), "inside a patch too"),
    ("1.1", patches_as(lambda patch: patch.movedim(1, 3).flatten(1)), "channels first"),
    ("1.1", patches_as(lambda patch: patch.flatten(1), last=0), r"range\(H−k\+1\)"),
    ("1.1", patches_as(lambda patch: patch), "the patches are left flat"),
    ("1.1", F.unfold, "transpose the last two"),
    ("1.1", lambda x, k: patches_in_loops(x, k).transpose(0, 1), "along dim=1"),
    ("1.1", lambda x, k: patches_in_loops(x, k).flip(1), r"the end is left out"),
    ("1.1", lambda *_: None, "found None .*return"),
    ("1.1", lambda x: x, r"called with 2 arguments(.|\n)*def line"),
    ("2.1", changed(weight_as(lambda weight: weight.mT)), "the kernel is transposed"),
    ("2.1", changed(weight_as(lambda weight: weight.flip(2, 3))), "the kernel is flipped"),
    ("2.1", changed(channels_last), "channels come first"),
    ("2.1", changed(no_bias), "copy the bias too: without"),
    ("2.1", changed(padded), "no padding"),
    ("2.1", changed(strided), "stride 1"),
    ("2.1", changed(weight_as(lambda weight: -weight)), "without transposing or flipping"),
    ("2.1", changed(lambda right, *_: right.float()), "the layer's dtype"),
    ("2.1", lambda layer, c, k: nn.Conv2d(c, layer.out_features, k), "the layer's dtype"),
    ("2.1", lambda *_: None, "return an nn.Conv2d; this is NoneType"),
    ("2.1", writes_into_the_layer, "make a new tensor"),
    ("4.1", net_of(lambda modules: [*modules, nn.Tanh()]), "no σ after the last layer"),
    ("4.1", net_of(lambda modules: [nn.Tanh(), *modules]), "no σ before the first layer"),
    ("4.1", net_of(activation_after), "σ comes before the 1×1"),
    ("4.1", net_of(lambda modules: modules[::2]), "σ is missing between"),
    ("4.1", net_of(lambda modules: modules[:-2]), "one convolution for each layer"),
    ("4.1", k_everywhere, "1×1 for all others"),
    ("4.1", lambda mlp: nn.Sequential(mlp), "one convolution for each layer"),
    ("4.1", lambda mlp: list(patchwise.as_convnet(mlp)), "return an nn.Sequential; this is list"),
    ("4.1", lambda mlp: 1 / 0, "line 1 of your function ended in ZeroDivisionError"),
    ("4.2", box(lambda first, last: last - first), "one more than their difference"),
    ("4.2", box(extent, everywhere=True), "one output pixel"),
    ("4.2", box(extent, swap=True), "rows are the axis before the last"),
    ("4.2", box(extent, images=1), "several random images"),
    ("4.2", box(lambda first, last: last), "gradient of ONE output pixel"),
    ("4.2", no_gradient_asked, r"requires_grad_\(\)"),
    ("4.2", lambda *_: 3, r"return two numbers, \(height, width\)"),
]   # fmt: skip


@pytest.mark.parametrize(("name", "function", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(name, function, hint, capsys):
    assert_hint_and_reference(check, EXERCISES, name, function, hint, capsys)


def test_unattempted_goes_on_quietly(capsys):
    assert_goes_on_quietly(check, EXERCISES, "4.1", capsys)


def test_unknown_exercise():
    with pytest.raises(ValueError, match=r"no exercise '9\.9' here; there are 1\.1, 2\.1, 4\.1, 4\.2"):
        check("9.9", untouched)


def test_what_a_function_changes_in_torch_is_changed_back(monkeypatch):
    """Two GPUs are pretended: where there are any, ``torch.manual_seed`` seeds them too."""
    states, before, gpus = {0: "a", 1: "b"}, torch.get_rng_state(), torch.cuda
    monkeypatch.setattr(gpus, "device_count", lambda: 2)
    monkeypatch.setattr(gpus, "is_initialized", lambda: True)
    monkeypatch.setattr(gpus, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(gpus, "set_rng_state", lambda state, device: states.update({device: state}))
    monkeypatch.setattr(gpus, "manual_seed_all", lambda seed: states.update(dict.fromkeys(states, seed)))
    seen = []

    def meddles():
        torch.manual_seed(7)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        seen.append(dict(states))

    try:
        assert judge(Exercise(meddles, lambda function: function()), meddles) == ("right", "")
        assert seen == [{0: 7, 1: 7}] and states == {0: "a", 1: "b"} and torch.equal(torch.get_rng_state(), before)
        assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)
