"""Notebook 03: what a right answer to each exercise must do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Subset

from coursekit import exercises
from coursekit.checks import check_close, check_equal, check_true
from coursekit.data import Batches, Pairs, split
from coursekit.data.pairs import Pair
from coursekit.segmentation import bce_dice_loss, dice_loss, iou
from coursekit.segmentation.vit import unpatch

F64 = torch.float64


def _pairs(count: int) -> Pairs:
    """Pictures of one grey each, from which a pair can be told: image i is i/255 throughout."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 3, 4, 4)
    return Pairs(images, (images[:, :1] % 2).contiguous(), [f"{i:03d}" for i in range(count)])


def _verify_split(function: Callable[..., Any]) -> None:
    for count, sizes in ((50, [30, 10, 10]), (103, [62, 21, 20]), (7, [4, 2, 1])):
        pairs = _pairs(count)
        torch.manual_seed(1)
        parts = [list(part.indices) for part in function(pairs, (0.6, 0.2, 0.2), 3)]
        every = [int(i) for part in parts for i in part]
        hint = "cut one order into pieces: each ends where the next begins"
        check_equal(f"{count} pairs, none in two parts", len(set(every)), len(every), hint=hint)
        check_equal(f"{count} pairs, none left out", sorted(every), list(range(count)), hint="what rounding leaves over must go somewhere")
        hint = "60, 20 and 20 %, each size off by less than one pair"
        check_true(f"{count} pairs, the sizes", all(abs(len(part) - size) <= 1 for part, size in zip(parts, sizes, strict=True)), hint=hint)
    pairs = _pairs(103)
    torch.manual_seed(2)   # an answer that draws from torch's global generator differs from call to call
    first, again, other = ([list(part.indices) for part in function(pairs, (0.6, 0.2, 0.2), seed)] for seed in (3, 3, 4))
    check_true("the same seed, the same parts", first == again, hint="make a generator of your own: torch.Generator().manual_seed(seed)")
    check_true("another seed, other parts", sorted(first[2]) != sorted(other[2]), hint="draw the order by the seed that you are given")
    check_true("no part is a piece of the file list", sorted(first[2]) != list(range(103))[-len(first[2]):], hint="shuffle before you cut")


def _batches(part: Subset[Pair], batch_size: int, shuffle: bool, generator: torch.Generator) -> Batches:
    return Batches(part, batch_size, shuffle=shuffle, generator=generator)


def _grey(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return [round(255 * value) for images, _ in batches for value in images[:, 0, 0, 0].tolist()]


def _verify_loader(function: Callable[..., Any]) -> None:
    part = split(_pairs(50))[0]
    own = _grey([(part[i][0][None], part[i][1][None]) for i in range(len(part))])
    plain = function(part, 8, False, torch.Generator().manual_seed(0))
    batches = list(plain)
    shapes = [(tuple(images.shape), tuple(masks.shape)) for images, masks in batches]
    expected = [((size, 3, 4, 4), (size, 1, 4, 4)) for size in (8, 8, 8, 6)]
    check_equal("shapes of the batches", shapes, expected, hint="images (B, 3, S, S) and masks (B, 1, S, S), the last batch smaller")
    hint = "the part's pairs, not the whole data set's; shuffle=shuffle"
    check_equal("without shuffling: the part's own order", _grey(batches), own, hint=hint)
    masks = torch.cat([masks for _, masks in batches]).flatten(1)[:, 0]
    check_close("each image with its own mask", masks, torch.tensor(own) % 2 * 1.0, hint="stack images and masks in the same order")
    shuffled = function(part, 8, True, torch.Generator().manual_seed(0))
    epochs = [_grey(list(shuffled)) for _ in range(2)]
    check_true("each pair once an epoch", all(sorted(epoch) == sorted(own) for epoch in epochs), hint="no pair twice, none left out")
    hint = "shuffle=shuffle; one order, kept, is no shuffling"
    check_true("shuffled anew each epoch", epochs[0] != own and epochs[0] != epochs[1], hint=hint)
    again = _grey(list(function(part, 8, True, torch.Generator().manual_seed(0))))
    check_true("the generator decides the order", again == epochs[0], hint="hand the generator on: DataLoader(…, generator=generator)")


def _masks_and_logits() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, logits and masks: awkward shapes, a small polyp beside a large one, an empty mask found empty, sure and wrong."""
    generator = torch.Generator().manual_seed(1)
    for shape in ((1, 1, 5, 7), (3, 1, 4, 9), (2, 12)):
        logits = 3 * torch.randn(*shape, dtype=F64, generator=generator)
        yield f"shape {shape}", logits, torch.rand(*shape, dtype=F64, generator=generator).gt(0.6).to(F64)
    masks = torch.zeros(2, 1, 6, 8, dtype=F64)
    masks[0, 0, :5], masks[1, 0, 2, 3] = 1, 1
    logits = torch.full_like(masks, -9)
    logits[0, 0, :5] = 9
    yield "a large polyp found, a small one missed", logits, masks
    yield "an empty mask, found empty", torch.full((1, 1, 4, 6), -200.0, dtype=F64), torch.zeros(1, 1, 4, 6, dtype=F64)
    yield "sure and wrong, logits of ±200", torch.tensor([[-200.0, 200.0, 200.0]], dtype=F64), torch.tensor([[1.0, 0.0, 1.0]], dtype=F64)


def _bce(logits: Tensor, masks: Tensor) -> Tensor:
    return bce_dice_loss(logits, masks, 0.0)


def _verify_bce(function: Callable[..., Any]) -> None:
    for name, logits, masks in _masks_and_logits():
        hint = "the mean over all pixels of max(z, 0) − z y + log(1 + exp(−|z|)); z are logits, so no sigmoid stands before it"
        if "200" in name:
            hint = "the sigmoid rounds to 0 or 1 here and its logarithm is lost (or clamped): use max(z, 0) − z y + log(1 + exp(−|z|))"
        check_close(name, function(logits, masks), _bce(logits, masks), hint=hint)


def _verify_dice(function: Callable[..., Any]) -> None:
    for name, logits, masks in _masks_and_logits():
        for smoothing in (1e-6, 1.0):
            hint = "1 − (2Σpy + s)/(Σp + Σy + s), s above and below; p = σ(logits), one sigmoid; sums over each image's pixels (flatten(1))"
            if "found, " in name:
                hint = "one ratio for each image, then their mean: summed over the batch, the large polyp hides the missed small one"
            if "empty" in name:
                hint = "the smoothing stands above and below, so that an empty mask found empty costs 0"
            check_close(f"{name}, s = {smoothing:g}", function(logits, masks, smoothing), dice_loss(logits, masks, smoothing), hint=hint)


def _verify_iou(function: Callable[..., Any]) -> None:
    for name, logits, masks in _masks_and_logits():
        p = logits.sigmoid()
        for threshold in (0.5, 0.3):
            hint = "|P∩Y|/|P∪Y| with P the pixels of p ≥ threshold: threshold first, then count; one value for each image, (B,)"
            if "empty" in name:
                hint = "both empty is 0/0: two masks that agree, so count it 1 (torch.where, not a smoothing)"
            _check_iou(f"{name}, threshold {threshold:g}", function, p, masks, threshold, hint)
    p, y = torch.tensor([[0.25, 0.5, 0.75]], dtype=F64), torch.tensor([[0.0, 1.0, 1.0]], dtype=F64)
    _check_iou("a pixel right at the threshold", function, p, y, 0.5, "p ≥ threshold, not >")


def _check_iou(name: str, function: Callable[..., Any], p: Tensor, masks: Tensor, threshold: float, hint: str) -> None:
    """A ratio of counts is right in float32 too."""
    check_close(name, torch.as_tensor(function(p, masks, threshold)), iou(p, masks, threshold), tolerance=1e-6, hint=hint)


def _verify_unpatch(function: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    for channels, patch, rows, columns in ((1, 2, 3, 3), (3, 4, 2, 5), (2, 3, 4, 1)):
        x = torch.randn(2, channels, rows * patch, columns * patch, dtype=F64, generator=generator)
        tokens = F.unfold(x, patch, stride=patch).transpose(1, 2)
        hint = "a token runs over channels, then rows, then columns of its patch, and there are h·w patches, row by row; w = N/h"
        check_close(f"{rows}×{columns} patches of {channels}×{patch}×{patch}", function(tokens, patch, rows), x, hint=hint)
        check_close("as the package does it", function(tokens, patch, rows), unpatch(tokens, patch, rows), hint=hint)


def _verify_attention(function: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    for shape, length, width in (((1,), 1, 4), ((2, 3), 7, 4), ((5,), 6, 16)):
        q, k = 3 * torch.randn(2, *shape, length, width, dtype=F64, generator=generator)
        v = torch.randn(*shape, length, width + 1, dtype=F64, generator=generator)
        hint = "softmax(q kᵀ/√d) v: divide by the root of the last size of q, take the softmax over the keys (dim=-1), multiply the values"
        check_close(f"{length} tokens of {width} channels", function(q, k, v), F.scaled_dot_product_attention(q, k, v), hint=hint)
    q = torch.full((1, 3, 4), 40.0, dtype=F64)
    v = torch.eye(3, dtype=F64)[None]
    hint = "exp overflows: use torch.softmax, which subtracts the largest score first"
    check_close("large scores", function(q, q, v), F.scaled_dot_product_attention(q, q, v), hint=hint)


EXERCISES = {
    "1.1": exercises.Exercise(split, _verify_split),
    "2.1": exercises.Exercise(_batches, _verify_loader),
    "3.1": exercises.Exercise(_bce, _verify_bce),
    "3.2": exercises.Exercise(dice_loss, _verify_dice),
    "3.3": exercises.Exercise(iou, _verify_iou),
    "8.1": exercises.Exercise(unpatch, _verify_unpatch),
    "8.2": exercises.Exercise(F.scaled_dot_product_attention, _verify_attention),
}

check = partial(exercises.check, EXERCISES)
