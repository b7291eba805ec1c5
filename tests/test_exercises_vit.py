"""Notebook 03's exercises on the transformer, 8.1 and 8.2: the usual wrong answers get the hint that helps."""

import pytest
import torch
import torch.nn.functional as F
from answers import assert_hint_and_reference

from coursekit.exercises.segmentation import EXERCISES, check


def unpatch_by_fold(tokens, patch_size, height):
    size = height * patch_size, tokens.shape[1] // height * patch_size
    return F.fold(tokens.mT, size, patch_size, stride=patch_size)


def attention_in_loops(q, k, v):
    scores = torch.einsum("...id,...jd->...ij", q, k) / q.shape[-1] ** 0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


@pytest.mark.parametrize(("name", "function"), [("8.1", unpatch_by_fold), ("8.2", attention_in_loops)])
def test_other_right_answers_are_taken(name, function, capsys):
    assert check(name, function) is function
    assert capsys.readouterr().out == f"✓ Exercise {name}: right.\n"


def channels_last(tokens, patch_size, height):
    x = tokens.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, (height, -1))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def columns_first(tokens, patch_size, height):
    x = tokens.unflatten(2, (-1, patch_size, patch_size)).unflatten(1, (height, -1))
    return x.permute(0, 3, 1, 5, 2, 4).flatten(4, 5).flatten(2, 3)


def patches_down_first(tokens, patch_size, height):
    return unpatch_by_fold(tokens.unflatten(1, (-1, height)).transpose(1, 2).flatten(1, 2), patch_size, height)


def filled_on_the_cpu(tokens, patch_size, height):
    x = unpatch_by_fold(tokens, patch_size, height)
    return torch.zeros(x.shape, dtype=x.dtype) + x


def only_reshaped(tokens, patch_size, height):
    channels = tokens.shape[2] // patch_size**2
    return tokens.reshape(len(tokens), channels, height * patch_size, -1)


def square_only(tokens, patch_size, height):
    return unpatch_by_fold(tokens, patch_size, round(tokens.shape[1] ** 0.5))


def unscaled(q, k, v):
    return (q @ k.mT).softmax(-1) @ v


def divided_by_d(q, k, v):
    return (q @ k.mT / q.shape[-1]).softmax(-1) @ v


def wrong_axis(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-2) @ v


def keys_for_values(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ k


def exponentials_by_hand(q, k, v):
    weights = (q @ k.mT / q.shape[-1] ** 0.5).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


WRONG = [
    ("8.1", channels_last, "has the channels last"),
    ("8.1", columns_first, "columns before the rows"),
    ("8.1", only_reshaped, "row by row, first"),
    ("8.1", patches_down_first, "yours go down first"),
    ("8.1", lambda tokens, patch_size, height: unpatch_by_fold(tokens, patch_size, height).flip(3), r"w = N/h"),
    ("8.1", filled_on_the_cpu, "on the device of x"),
    ("8.1", square_only, "RuntimeError|w = N/h"),
    ("8.2", unscaled, "too sure"),
    ("8.2", divided_by_d, "not by d"),
    ("8.2", wrong_axis, "each row adds up to 1"),
    ("8.2", keys_for_values, "yours multiplies the keys"),
    ("8.2", lambda q, k, v: (q @ k.mT / q.shape[-2] ** 0.5).softmax(-1) @ v, "not the number of tokens"),
    ("8.2", lambda q, k, v: (q @ k.mT / v.shape[-1] ** 0.5).softmax(-1) @ v, "yours is that of v"),
    ("8.2", lambda q, k, v: q @ k.mT / q.shape[-1] ** 0.5 @ v, "the softmax is missing"),
    ("8.2", lambda q, k, v: (k @ q.mT / q.shape[-1] ** 0.5).softmax(-1) @ v, "not the other way round"),
    ("8.2", lambda q, k, v: (q @ k.mT).softmax(-1) / q.shape[-1] ** 0.5 @ v, "before the softmax"),
    ("8.2", lambda q, k, v: -(q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v, "divide by the root of the last size"),
    ("8.2", exponentials_by_hand, "exp overflows"),
]


@pytest.mark.parametrize(("name", "function", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(name, function, hint, capsys):
    assert_hint_and_reference(check, EXERCISES, name, function, hint, capsys)
