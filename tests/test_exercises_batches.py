"""Notebook 03's exercises on data, 1.1 and 2.1: the right answer is taken, and the usual wrong ones get the hint that helps."""

import pytest
import torch
from answers import assert_hint_and_reference
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

from coursekit.data import split
from coursekit.exercises.segmentation import EXERCISES, check


def split_of_torch(dataset, fractions, seed):
    return random_split(dataset, fractions, generator=torch.Generator().manual_seed(seed))


def loader_of_torch(part, batch_size, shuffle, generator):
    return DataLoader(part, batch_size, shuffle=shuffle, generator=generator)


@pytest.mark.parametrize(("name", "function"), [("1.1", split_of_torch), ("2.1", loader_of_torch)])
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


def fixed_fractions(dataset, fractions, seed):
    return split_of_torch(dataset, (0.6, 0.2, 0.2), seed)


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


WRONG = [
    ("1.1", unshuffled, "draw the order|shuffle before you cut"),
    ("1.1", unseeded, r"torch\.Generator\(\)\.manual_seed\(seed\)"),
    ("1.1", one_seed_for_all, "by the seed that you are given"),
    ("1.1", loses_the_rest, "rounding leaves over"),
    ("1.1", overlapping, "where the next begins"),
    ("1.1", drawn_three_times, "where the next begins"),
    ("1.1", halves, "60, 20 and 20 %"),
    ("1.1", fixed_fractions, "the fractions are an argument"),
    ("1.1", lambda *arguments: [part.indices for part in split_of_torch(*arguments)], r"Subset\(dataset, indices\)"),
    ("1.1", lambda *arguments: split_of_torch(*arguments)[:2], "found 2 values.*, expected 3"),
    ("2.1", never_shuffled, "one order, kept, is no shuffling"),
    ("2.1", always_shuffled, "not the whole data set's"),
    ("2.1", drops_the_last, "the last batch smaller"),
    ("2.1", no_generator, "hand the generator on"),
    ("2.1", whole_data_set, "not the whole data set's"),
    ("2.1", one_order_kept, "one order, kept, is no shuffling"),
    ("2.1", masks_out_of_step, "the same order"),
    ("2.1", lambda part, batch_size, shuffle, generator: tensors(part), "return a DataLoader, not TensorDataset"),
    ("2.1", lambda part, *_: iter(DataLoader(tensors(part), 8)), "spent after one epoch"),
    ("2.1", lambda part, *_: DataLoader(torch.stack([image for image, _ in part]), 8), "each batch is"),
    ("2.1", lambda *_: None, "return a DataLoader, not NoneType"),
    ("2.1", no_batches, r"images \(B, 3, S, S\)"),
]


@pytest.mark.parametrize(("name", "function", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(name, function, hint, capsys):
    assert_hint_and_reference(check, EXERCISES, name, function, hint, capsys)


def test_the_split_to_go_on_with_is_the_one_that_the_records_use():
    assert EXERCISES["1.1"].reference is split
