"""Notebook 03's exercises: the right answer is taken, and the usual wrong ones get the hint that helps."""

import pytest
import torch
import torch.nn.functional as F
from answers import assert_goes_on_quietly, assert_hint_and_reference, assert_reference_is_right
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

from coursekit.data import split
from coursekit.exercises.segmentation import EXERCISES, check
from coursekit.segmentation import dice, dice_loss, iou


def test_the_reference_is_right_and_comes_back(capsys):
    assert_reference_is_right(check, EXERCISES, capsys)


# --- other right answers ----------------------------------------------------------------------------------------------------


def split_of_torch(dataset, fractions, seed):
    return random_split(dataset, fractions, generator=torch.Generator().manual_seed(seed))


def loader_of_torch(part, batch_size, shuffle, generator):
    return DataLoader(part, batch_size, shuffle=shuffle, generator=generator)


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


def unpatch_by_fold(tokens, patch_size, height):
    size = height * patch_size, tokens.shape[1] // height * patch_size
    return F.fold(tokens.mT, size, patch_size, stride=patch_size)


@pytest.mark.parametrize(("name", "function"), [
    ("1.1", split_of_torch), ("2.1", loader_of_torch), ("3.1", F.binary_cross_entropy_with_logits),
    ("3.2", dice_one_by_one), ("3.3", iou_one_by_one), ("8.1", unpatch_by_fold),
])  # fmt: skip
def test_other_right_answers_are_taken(name, function, capsys):
    assert check(name, function) is function
    assert capsys.readouterr().out == f"✓ Exercise {name}: right.\n"


# --- 1.1 --------------------------------------------------------------------------------------------------------------------


def cut(dataset, order, *ends):
    return [Subset(dataset, order[a:b]) for a, b in zip((0, *ends), (*ends, len(order)), strict=True)]


def order_of(dataset, seed):
    return torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()


def unshuffled(dataset, fractions, seed):
    return cut(dataset, list(range(len(dataset))), round(0.6 * len(dataset)), round(0.8 * len(dataset)))


def unseeded(dataset, fractions, seed):
    return cut(dataset, torch.randperm(len(dataset)).tolist(), round(0.6 * len(dataset)), round(0.8 * len(dataset)))


def one_seed_for_all(dataset, fractions, seed):
    return split_of_torch(dataset, fractions, 0)


def loses_the_rest(dataset, fractions, seed):
    order, sizes = order_of(dataset, seed), [int(f * len(dataset)) for f in fractions]
    starts = (0, sizes[0], sizes[0] + sizes[1])
    return [Subset(dataset, order[start:][:size]) for start, size in zip(starts, sizes, strict=True)]


def overlapping(dataset, fractions, seed):
    order, first, second = order_of(dataset, seed), int(0.6 * len(dataset)), int(0.8 * len(dataset))
    return [Subset(dataset, part) for part in (order[:first], order[first - 1 : second], order[second:])]


def drawn_three_times(dataset, fractions, seed):
    generator, n = torch.Generator().manual_seed(seed), len(dataset)
    return [Subset(dataset, torch.randperm(n, generator=generator)[: int(f * n)].tolist()) for f in fractions]


def halves(dataset, fractions, seed):
    return cut(dataset, order_of(dataset, seed), len(dataset) // 2, 3 * len(dataset) // 4)


# --- 2.1 --------------------------------------------------------------------------------------------------------------------


def tensors(part):
    return TensorDataset(*(torch.stack(values) for values in zip(*part, strict=True)))


def never_shuffled(part, batch_size, shuffle, generator):
    return DataLoader(tensors(part), batch_size)


def always_shuffled(part, batch_size, shuffle, generator):
    return DataLoader(tensors(part), batch_size, shuffle=True, generator=generator)


def drops_the_last(part, batch_size, shuffle, generator):
    return DataLoader(tensors(part), batch_size, shuffle=shuffle, generator=generator, drop_last=True)


def no_generator(part, batch_size, shuffle, generator):
    return DataLoader(tensors(part), batch_size, shuffle=shuffle)


def whole_data_set(part, batch_size, shuffle, generator):
    return DataLoader(tensors(Subset(part.dataset, range(len(part)))), batch_size, shuffle=shuffle, generator=generator)


def one_order_kept(part, batch_size, shuffle, generator):
    return list(DataLoader(tensors(part), batch_size, shuffle=shuffle, generator=generator))


def masks_out_of_step(part, batch_size, shuffle, generator):
    images, masks = tensors(part).tensors
    return DataLoader(TensorDataset(images, masks.flip(0)), batch_size, shuffle=shuffle, generator=generator)


def no_batches(part, batch_size, shuffle, generator):
    return DataLoader(tensors(part), shuffle=shuffle, generator=generator)


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


def above_only(p, masks, threshold=0.5):
    return iou_one_by_one((p > threshold).double(), masks)


def always_a_half(p, masks, threshold=0.5):
    return iou(p, masks)


# --- 8 ----------------------------------------------------------------------------------------------------------------------


def channels_last(tokens, patch_size, height):
    x = tokens.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, (height, -1))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def columns_first(tokens, patch_size, height):
    x = tokens.unflatten(2, (-1, patch_size, patch_size)).unflatten(1, (height, -1))
    return x.permute(0, 3, 1, 5, 2, 4).flatten(4, 5).flatten(2, 3)


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
    ("1.1", unshuffled, "draw the order|shuffle before you cut"),
    ("1.1", unseeded, r"torch\.Generator\(\)\.manual_seed\(seed\)"),
    ("1.1", one_seed_for_all, "by the seed that you are given"),
    ("1.1", loses_the_rest, "rounding leaves over"),
    ("1.1", overlapping, "where the next begins"),
    ("1.1", drawn_three_times, "where the next begins"),
    ("1.1", halves, "60, 20 and 20 %"),
    ("2.1", never_shuffled, "one order, kept, is no shuffling"),
    ("2.1", always_shuffled, "shuffle=shuffle"),
    ("2.1", drops_the_last, "the last batch smaller"),
    ("2.1", no_generator, "hand the generator on"),
    ("2.1", whole_data_set, "not the whole data set's"),
    ("2.1", one_order_kept, "one order, kept, is no shuffling"),
    ("2.1", masks_out_of_step, "the same order"),
    ("2.1", no_batches, r"images \(B, 3, S, S\)"),
    ("3.1", logarithm_of_a_sigmoid, "its logarithm is lost"),
    ("3.1", clamped, "or clamped"),
    ("3.1", sigmoid_before_logits, "no sigmoid stands before it"),
    ("3.1", summed, "the mean over all pixels"),
    ("3.1", squared_height, "the mean over all pixels"),
    ("3.1", exponential_overflows, "its logarithm is lost"),
    ("3.2", no_sigmoid, "one sigmoid"),
    ("3.2", two_sigmoids, "one sigmoid"),
    ("3.2", pooled, "each image"),
    ("3.2", smoothing_below_only, "above and below"),
    ("3.2", coefficient_not_loss, "1 − "),
    ("3.2", fixed_smoothing, r"\+ s\)"),
    ("3.2", one_for_each_image, "then their mean|found shape"),
    ("3.3", soft, "threshold first"),
    ("3.3", pooled_iou, r"one value for each image"),
    ("3.3", nan_on_empty, "count it 1"),
    ("3.3", zero_on_empty, "count it 1"),
    ("3.3", above_only, "not >"),
    ("3.3", always_a_half, "p ≥ threshold"),
    ("3.3", dice, "P∪Y"),
    ("8.1", channels_last, "channels, then rows"),
    ("8.1", columns_first, "channels, then rows"),
    ("8.1", only_reshaped, "row by row"),
    ("8.1", square_only, "RuntimeError|w = N/h"),
    ("8.2", unscaled, "root of the last size"),
    ("8.2", divided_by_d, "root of the last size"),
    ("8.2", wrong_axis, "over the keys"),
    ("8.2", keys_for_values, "multiply the values"),
    ("8.2", exponentials_by_hand, "exp overflows"),
    ("3.2", lambda *_: None, "TypeError|RuntimeError"),
]


@pytest.mark.parametrize(("name", "function", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(name, function, hint, capsys):
    assert_hint_and_reference(check, EXERCISES, name, function, hint, capsys)


def test_unattempted_goes_on_quietly(capsys):
    assert_goes_on_quietly(check, EXERCISES, "8.2", capsys)


def test_the_split_to_go_on_with_is_the_one_that_the_records_use():
    assert EXERCISES["1.1"].reference is split
