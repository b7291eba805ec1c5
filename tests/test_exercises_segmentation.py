"""Notebook 03's exercises: the right answer is taken, and the usual wrong ones get the hint that helps."""

import pytest
import torch
import torch.nn.functional as F
from answers import assert_goes_on_quietly, assert_hint_and_reference, assert_reference_is_right

from coursekit.exercises.segmentation import EXERCISES, check
from coursekit.segmentation import dice, dice_loss, iou


def test_the_reference_is_right_and_comes_back(capsys):
    assert_reference_is_right(check, EXERCISES, capsys)


# --- other right answers ----------------------------------------------------------------------------------------------------


def dice_one_by_one(logits, masks, smoothing):
    losses = []
    for z, y in zip(logits, masks, strict=True):
        p = torch.sigmoid(z)
        losses.append(1 - (2 * (p * y).sum() + smoothing) / ((p + y).sum() + smoothing))
    return torch.stack(losses).mean()


def iou_one_by_one(probabilities, masks, threshold=0.5):
    values = []
    for p, y in zip(probabilities >= threshold, masks > 0, strict=True):
        values.append(float((p & y).sum()) / float((p | y).sum()) if (p | y).any() else 1.0)
    return torch.tensor(values)


@pytest.mark.parametrize(("name", "function"), [
    ("3.1", F.binary_cross_entropy_with_logits),
    ("3.2", dice_one_by_one), ("3.3", iou_one_by_one),
])  # fmt: skip
def test_other_right_answers_are_taken(name, function, capsys):
    assert check(name, function) is function
    assert capsys.readouterr().out == f"✓ Exercise {name}: right.\n"


# --- 3 ----------------------------------------------------------------------------------------------------------------------


def logarithm_of_a_sigmoid(logits, masks):
    p = logits.sigmoid()
    return -(masks * p.log() + (1 - masks) * (1 - p).log()).mean()


def clamped(logits, masks):
    return F.binary_cross_entropy(logits.sigmoid(), masks)


def sigmoid_before_logits(logits, masks):
    return F.binary_cross_entropy_with_logits(logits.sigmoid(), masks)


def summed(logits, masks):
    return F.binary_cross_entropy_with_logits(logits, masks, reduction="sum")


def squared_height(logits, masks):
    return summed(logits, masks) / len(logits) / logits.shape[-1] ** 2


def exponential_overflows(logits, masks):
    return ((1 + logits.exp()).log() - logits * masks).mean() + 0 * logits.mul(10).exp().mean()


def no_sigmoid(logits, masks, smoothing):
    return 1 - ((2 * (logits * masks).flatten(1).sum(1) + smoothing) / ((logits + masks).flatten(1).sum(1) + smoothing)).mean()


def two_sigmoids(logits, masks, smoothing):
    return dice_loss(logits.sigmoid(), masks, smoothing)


def pooled(logits, masks, smoothing):
    return dice_loss(logits.reshape(1, -1), masks.reshape(1, -1), smoothing)


def smoothing_below_only(logits, masks, smoothing):
    p, y = logits.sigmoid().flatten(1), masks.flatten(1)
    return (1 - 2 * (p * y).sum(1) / ((p + y).sum(1) + smoothing)).mean()


def ratio_of(ratio):
    """dice_loss with another ratio of p, y, both (B, pixels), and s."""
    return lambda logits, masks, smoothing: (1 - ratio(logits.sigmoid().flatten(1), masks.flatten(1), smoothing)).mean()


def coefficient_not_loss(logits, masks, smoothing):
    return 1 - dice_loss(logits, masks, smoothing)


def fixed_smoothing(logits, masks, smoothing):
    return dice_loss(logits, masks)


def one_for_each_image(logits, masks, smoothing):
    return torch.stack([dice_loss(z[None], y[None], smoothing) for z, y in zip(logits, masks, strict=True)])


def soft(p, masks, threshold=0.5):
    p, y = p.flatten(1), masks.flatten(1)
    return (p * y).sum(1) / (p + y - p * y).sum(1)


def pooled_iou(p, masks, threshold=0.5):
    return iou(p.reshape(1, -1), masks.reshape(1, -1), threshold)


def nan_on_empty(p, masks, threshold=0.5):
    p, y = (p >= threshold).flatten(1), masks.bool().flatten(1)
    return (p & y).sum(1) / (p | y).sum(1)


def zero_on_empty(p, masks, threshold=0.5):
    return nan_on_empty(p, masks, threshold).nan_to_num()


def counts(ratio):
    """iou of a formula of |P∩Y|, |P| and |Y|."""

    def iou(p, masks, threshold=0.5):
        p, y = (p >= threshold).flatten(1), masks.bool().flatten(1)
        return ratio((p & y).sum(1), p.sum(1), y.sum(1))

    return iou


def above_only(p, masks, threshold=0.5):
    return iou_one_by_one((p > threshold).double(), masks)


def always_a_half(p, masks, threshold=0.5):
    return iou(p, masks)


WRONG = [
    ("3.1", logarithm_of_a_sigmoid, "its logarithm is lost"),
    ("3.1", clamped, "or clamped"),
    ("3.1", sigmoid_before_logits, "before it: yours has two"),
    ("3.1", summed, "not their sum"),
    ("3.1", squared_height, "N² is for square images"),
    ("3.1", lambda logits, masks: summed(logits, masks) / len(logits), "divided by the images only"),
    ("3.1", lambda logits, masks: -F.binary_cross_entropy_with_logits(logits, masks), "the sign is turned"),
    ("3.1", lambda logits, masks: F.softplus(logits).mean(), "z y is missing"),
    ("3.1", lambda logits, masks: F.binary_cross_entropy_with_logits(masks, logits), "exchanged"),
    ("3.1", lambda logits, masks: F.binary_cross_entropy_with_logits(logits, 1 - masks), "which pixels are polyp"),
    ("3.1", lambda logits, masks: -(masks * logits.unsqueeze(0).log_softmax(0)).mean(), "softmax over one class"),
    ("3.1", lambda logits, masks: F.binary_cross_entropy_with_logits(logits, masks) / torch.tensor(2.0).double().log(), "not 2"),
    ("3.1", lambda logits, masks: F.mse_loss(logits.sigmoid(), masks), "the mean over all pixels of max"),
    ("3.1", exponential_overflows, "its logarithm is lost"),
    ("3.2", no_sigmoid, "the logits become probabilities first"),
    ("3.2", two_sigmoids, "yours has two"),
    ("3.2", pooled, "hides a missed small one"),
    ("3.2", smoothing_below_only, "the smoothing stands above and below"),
    ("3.2", coefficient_not_loss, "a loss falls"),
    ("3.2", fixed_smoothing, "the smoothing is an argument"),
    ("3.2", one_for_each_image, "one number: the mean over the images"),
    ("3.2", ratio_of(lambda p, y, s: (2 * (p * y).sum(1) + s) / (p**2 + y**2 + 0 * s).sum(1).add(s)), "not squared below"),
    ("3.2", ratio_of(lambda p, y, s: ((p * y).sum(1) + s) / ((p + y).sum(1) + s)), "the 2 is missing"),
    ("3.2", ratio_of(lambda p, y, s: ((p * y).sum(1) + s) / ((p + y - p * y).sum(1) + s)), "that is the IoU"),
    ("3.2", ratio_of(lambda p, y, s: (2 * ((p >= 0.5) * y).sum(1) + s) / (((p >= 0.5) + y).sum(1) + s)), "no threshold in a loss"),
    ("3.2", ratio_of(lambda p, y, s: (2 * y.sum(1) + s) / ((1 + y).sum(1) + s)), "softmax over one class"),
    ("3.2", ratio_of(lambda p, y, s: (2 * (p * y).sum(1) + 2 * s) / ((p + y).sum(1) + s)), r"1 − \(2Σpy \+ s\)"),
    ("3.2", lambda logits, masks, smoothing: -coefficient_not_loss(logits, masks, smoothing), "plus 1"),
    ("3.2", lambda logits, masks, smoothing: one_for_each_image(logits, masks, smoothing).sum(), "not their sum"),
    ("3.3", soft, "sums of probabilities are no IoU"),
    ("3.3", pooled_iou, r"counts the whole batch together"),
    ("3.3", nan_on_empty, "count it 1"),
    ("3.3", zero_on_empty, "; not 0"),
    ("3.3", lambda p, masks, threshold: iou(p.sigmoid(), masks, threshold), "p are probabilities already"),
    ("3.3", lambda p, masks, threshold: iou(p, masks, threshold).mean(), "not their mean"),
    ("3.3", lambda p, masks, threshold: pooled_iou(p, masks, threshold)[0], "one for the whole batch|not their mean"),
    ("3.3", lambda p, masks, threshold: ((p >= threshold) == (masks > 0)).flatten(1).double().mean(1), "share of pixels that are right"),
    ("3.3", counts(lambda both, p, y: both / (p + y - (p + y - both))), "is .P∩Y. itself"),
    ("3.3", counts(lambda both, p, y: both / (p + y)), "counted twice"),
    ("3.3", counts(lambda both, p, y: both / p), "with P the pixels of p ≥ threshold"),
    ("3.3", above_only, "not >"),
    ("3.3", always_a_half, "the threshold is an argument"),
    ("3.3", dice, "that is Dice"),
    ("3.2", lambda *_: None, "found None .*return"),
]


@pytest.mark.parametrize(("name", "function", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(name, function, hint, capsys):
    assert_hint_and_reference(check, EXERCISES, name, function, hint, capsys)


def test_unattempted_goes_on_quietly(capsys):
    assert_goes_on_quietly(check, EXERCISES, "8.2", capsys)
