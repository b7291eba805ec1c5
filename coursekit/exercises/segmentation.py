"""Notebook 03: what a right answer to each exercise must do, and what the usual wrong ones give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Subset

from coursekit import exercises
from coursekit.checks import check_close, check_equal, check_true
from coursekit.data import Batches, Pairs, split
from coursekit.data.pairs import Pair
from coursekit.exercises.judging import ask, compare, elsewhere, numbers, randn, several
from coursekit.segmentation import bce_dice_loss, dice, dice_loss, iou
from coursekit.segmentation.vit import unpatch

F64 = torch.float64
ONE_CLASS = "a softmax over one class is 1 everywhere: one class takes a sigmoid"
BOTH_EMPTY = "both empty is 0/0: two masks that agree, so count it 1 (torch.where, not a smoothing)"


def _pairs(count: int) -> Pairs:
    """Pictures of one grey each, from which a pair can be told: image i is i/255 throughout."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 3, 4, 4)
    return Pairs(images, (images[:, :1] % 2).contiguous(), [f"{i:03d}" for i in range(count)])


def _verify_split(function: Callable[..., Any]) -> None:
    for count, sizes in ((50, [30, 10, 10]), (103, [62, 21, 20]), (7, [4, 2, 1])):
        pairs = _pairs(count)
        parts = _parts(function, pairs, 3)
        every = [int(i) for part in parts for i in part]
        hint = "cut one order into pieces: each ends where the next begins"
        check_equal(f"{count} pairs, none in two parts", len(set(every)), len(every), hint=hint)
        check_equal(f"{count} pairs, none left out", sorted(every), list(range(count)), hint="what rounding leaves over must go somewhere")
        hint = "60, 20 and 20 %, each size off by less than one pair"
        check_true(f"{count} pairs, the sizes", all(abs(len(part) - size) <= 1 for part, size in zip(parts, sizes, strict=True)), hint=hint)
    pairs = _pairs(103)
    torch.manual_seed(2)   # an answer that draws from torch's global generator differs from call to call
    first, again, other = (_parts(function, pairs, seed) for seed in (3, 3, 4))
    check_true("the same seed, the same parts", first == again, hint="make a generator of your own: torch.Generator().manual_seed(seed)")
    check_true("another seed, other parts", sorted(first[2]) != sorted(other[2]), hint="draw the order by the seed that you are given")
    check_true("no part is a piece of the file list", sorted(first[2]) != list(range(103))[-len(first[2]):], hint="shuffle before you cut")
    sizes = [len(part) for part in _parts(function, pairs, 3, (0.5, 0.3, 0.2))]
    hint = f"the fractions are an argument: of 103, with 0.5, 0.3 and 0.2, yours are {sizes}"
    check_true("other fractions, the sizes", all(abs(a - b) <= 1 for a, b in zip(sizes, (51, 31, 21), strict=True)), hint=hint)


def _parts(function: Callable[..., Any], pairs: Pairs, seed: int, fractions: tuple[float, ...] = (0.6, 0.2, 0.2)) -> list[list[int]]:
    claim, hint = f"{len(pairs)} pairs", "return three torch.utils.data.Subset: Subset(dataset, indices)"
    parts = several(claim, ask(claim, function, pairs, fractions, seed), 3, hint)
    check_true("parts of the data set", all(isinstance(part, Subset) for part in parts), hint=hint)
    return [[int(i) for i in part.indices] for part in parts]


def _batches(part: Subset[Pair], batch_size: int, shuffle: bool, generator: torch.Generator) -> Batches:
    return Batches(part, batch_size, shuffle=shuffle, generator=generator)


def _drawn(batches: Any) -> list[tuple[Tensor, Tensor]]:
    """One epoch, of images and masks; at most 99 batches, lest it never end."""
    hint = "return the DataLoader itself, of a TensorDataset of images and masks: each batch is (images, masks)"
    drawn = [several("a batch", batch, 2, hint) for batch in islice(iter(batches), 99)]
    return [(numbers("images", images), numbers("masks", masks)) for images, masks in drawn]


def _grey(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return [round(255 * value) for images, _ in batches for value in images[:, 0, 0, 0].tolist()]


def _load(function: Callable[..., Any], part: Subset[Pair], shuffle: bool) -> list[list[tuple[Tensor, Tensor]]]:
    """The batches of two epochs."""
    loader = ask("a loader", function, part, 8, shuffle, torch.Generator().manual_seed(0))
    hint = f"return a DataLoader, not {type(loader).__name__}; a generator would be spent after one epoch"
    check_true("a loader", hasattr(type(loader), "__iter__") and not hasattr(type(loader), "__next__"), hint=hint)
    return [_drawn(loader) for _ in range(2)]


def _verify_loader(function: Callable[..., Any]) -> None:
    part = split(_pairs(50))[0]
    own = _grey([(part[i][0][None], part[i][1][None]) for i in range(len(part))])
    batches = _load(function, part, False)[0]
    hint = "images (B, 3, S, S) and masks (B, 1, S, S), the last batch smaller"
    shapes = {(tuple(images.shape[1:]), tuple(masks.shape[1:])) for images, masks in batches}
    check_equal("shapes of an image and its mask", shapes, {((3, 4, 4), (1, 4, 4))}, hint=hint)
    check_equal("sizes of the batches", [len(images) for images, _ in batches], [8, 8, 8, 6], hint=hint)
    hint = "the part's pairs, not the whole data set's; shuffle=shuffle"
    check_equal("without shuffling: the part's own order", _grey(batches), own, hint=hint)
    masks = torch.cat([masks for _, masks in batches]).flatten(1)[:, 0]
    check_close("each image with its own mask", masks, torch.tensor(own) % 2 * 1.0, hint="stack images and masks in the same order")
    epochs = [_grey(epoch) for epoch in _load(function, part, True)]
    check_true("each pair once an epoch", all(sorted(epoch) == sorted(own) for epoch in epochs), hint="no pair twice, none left out")
    hint = "shuffle=shuffle; one order, kept, is no shuffling"
    check_true("shuffled anew each epoch", epochs[0] != own and epochs[0] != epochs[1], hint=hint)
    again = _grey(_load(function, part, True)[0])
    check_true("the generator decides the order", again == epochs[0], hint="hand the generator on: DataLoader(…, generator=generator)")


def _masks_and_logits() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, logits and masks: awkward shapes, a small polyp beside a large one, an empty mask found empty, sure and wrong."""
    for shape in ((3, 1, 4, 9), (1, 1, 5, 7), (2, 12)):
        yield f"shape {shape}", 3 * randn(*shape), randn(*shape, seed=2).gt(0.25).to(F64)
    masks = torch.zeros(2, 1, 6, 8, dtype=F64)
    masks[0, 0, :5], masks[1, 0, 2, 3] = 1, 1
    logits = torch.full_like(masks, -9)
    logits[0, 0, :5] = 9
    yield "a large polyp found, a small one missed", logits, masks
    yield "an empty mask, found empty", torch.full((1, 1, 4, 6), -200.0, dtype=F64), torch.zeros(1, 1, 4, 6, dtype=F64)
    yield "sure and wrong, logits of ±200", torch.tensor([[-200.0, 200.0, 200.0]], dtype=F64), torch.tensor([[1.0, 0.0, 1.0]], dtype=F64)


def _bce(logits: Tensor, masks: Tensor) -> Tensor:
    return bce_dice_loss(logits.reshape(1, -1), masks.reshape(1, -1), 0.0)   # the mean over all there is, in any shape


def _verify_bce(function: Callable[..., Any]) -> None:
    for name, z, y in _masks_and_logits():
        terms = F.binary_cross_entropy_with_logits(z, y, reduction="none")
        lost = "the sigmoid rounds to 0 or 1 here and its logarithm is lost (or clamped): use max(z, 0) − z y + log(1 + exp(−|z|))"
        mistakes = {
            lost: F.binary_cross_entropy(z.sigmoid(), y),
            "z are logits, so no sigmoid stands before it: yours has two": _bce(z.sigmoid(), y),
            "the mean over all pixels, not their sum": terms.sum(),
            "the mean over all pixels of all images, H·W of them each; yours is divided by the images only": terms.sum() / len(z),
            "the mean over H·W pixels, which N² is for square images only": terms.sum() / len(z) / z.shape[-1] ** 2,
            "minus the log-likelihood: the sign is turned": -terms.mean(),
            "z y is missing: max(z, 0) − z y + …": F.softplus(z).mean(),
            "masks and logits are exchanged": F.binary_cross_entropy_with_logits(y, z),
            "the masks say which pixels are polyp: y is taken away from 1 here": F.binary_cross_entropy_with_logits(z, 1 - y),
            ONE_CLASS: torch.zeros((), dtype=F64),
            "logarithms to the base e, not 2": terms.mean() / math.log(2),
        }
        hint = "the mean over all pixels of max(z, 0) − z y + log(1 + exp(−|z|)); z are logits, so no sigmoid stands before it"
        compare(name, function, (z, y), _bce(z, y), lost if "200" in name else hint, mistakes)


def _wrong_dice(logits: Tensor, masks: Tensor, s: float) -> dict[str, Tensor]:
    """What the usual mistakes give for the Dice loss."""
    z, p, y = logits.flatten(1), logits.sigmoid().flatten(1), masks.flatten(1)

    def loss(p: Tensor, above: float = s, factor: float = 2, power: int = 1) -> Tensor:
        return 1 - (factor * (p * y).sum(1) + above) / ((p**power).sum(1) + (y**power).sum(1) + s)

    jaccard = 1 - ((p * y).sum(1) + s) / ((p + y - p * y).sum(1) + s)
    return {
        "no sigmoid: the logits become probabilities first": loss(z).mean(),
        "one sigmoid: yours has two": loss(p.sigmoid()).mean(),
        ONE_CLASS: loss(torch.ones_like(p)).mean(),
        "no threshold in a loss: where it is flat there is no gradient": loss((p >= 0.5).to(p)).mean(),
        "one ratio for each image, then their mean: summed over the batch, a large polyp hides a missed small one":
            dice_loss(logits.reshape(1, -1), masks.reshape(1, -1), s),
        "the smoothing stands above and below, so that an empty mask found empty costs 0": loss(p, above=0).mean(),
        "1 − the ratio: a loss falls where the masks agree": 1 - loss(p).mean(),
        "minus the ratio, plus 1: a loss of 0 says that the masks agree": loss(p).mean() - 1,
        "2Σpy stands above: the 2 is missing": loss(p, factor=1).mean(),
        "p and y are not squared below": loss(p, power=2).mean(),
        "that is the IoU; Dice has 2Σpy above and Σp + Σy below": jaccard.mean(),
        "the smoothing is an argument: + s, not 1e-6": dice_loss(logits, masks),
        "one ratio for each image, then their mean: not their sum": loss(p).sum(),
        "one number: the mean over the images": loss(p),
    }  # fmt: skip


def _verify_dice(function: Callable[..., Any]) -> None:
    for name, logits, masks in _masks_and_logits():
        for smoothing in (1.0, 1e-6):
            hint = "1 − (2Σpy + s)/(Σp + Σy + s), s above and below; p = σ(logits), one sigmoid; sums over each image's pixels (flatten(1))"
            right = dice_loss(logits, masks, smoothing)
            wrong = _wrong_dice(logits, masks, smoothing)
            compare(f"{name}, s = {smoothing:g}", function, (logits, masks, smoothing), right, hint, wrong)


def _verify_iou(function: Callable[..., Any]) -> None:
    for name, logits, masks in _masks_and_logits():
        p = logits.sigmoid()
        for threshold in (0.5, 0.3):
            hint = "|P∩Y|/|P∪Y| with P the pixels of p ≥ threshold: threshold first, then count; one value for each image, (B,)"
            if "empty" in name:
                hint = BOTH_EMPTY
            _check_iou(f"{name}, threshold {threshold:g}", function, p, masks, threshold, hint)
    p, y = torch.tensor([[0.25, 0.5, 0.75]], dtype=F64), torch.tensor([[0.0, 1.0, 1.0]], dtype=F64)
    _check_iou("a pixel right at the threshold", function, p, y, 0.5, "p ≥ threshold, not >")


def _check_iou(name: str, function: Callable[..., Any], probabilities: Tensor, masks: Tensor, threshold: float, hint: str) -> None:
    """A ratio of counts is right in float32 too."""
    right, p, y = iou(probabilities, masks, threshold), probabilities.flatten(1), masks.flatten(1)
    chosen = (p >= threshold).to(p)
    overlap, both = (chosen * y).sum(1), (chosen + y - chosen * y).sum(1)
    mistakes = {
        BOTH_EMPTY: overlap / both,
        BOTH_EMPTY + "; not 0": (overlap / both).nan_to_num(),
        "threshold first, then count: sums of probabilities are no IoU": (p * y).sum(1) / (p + y - p * y).sum(1),
        "p ≥ threshold, not >": iou((probabilities > threshold).to(p), masks),
        "the threshold is an argument: p ≥ threshold, not 0.5": iou(probabilities, masks),
        "p are probabilities already: no sigmoid, and p ≥ threshold": iou(probabilities.sigmoid(), masks, threshold),
        "that is Dice, 2|P∩Y|/(|P| + |Y|); IoU is |P∩Y|/|P∪Y|": dice(probabilities, masks, threshold),
        "|P| + |Y| − |P∪Y| is |P∩Y| itself; below stands |P∪Y| = |P| + |Y| − |P∩Y|": overlap / overlap,
        "|P∪Y| = |P| + |Y| − |P∩Y|: the overlap is counted twice": overlap / (chosen + y).sum(1),
        "that is the share of pixels that are right, which background alone makes high": (chosen == y).double().mean(1),
        "one value for each image, (B,), not their mean": right.mean(),
        "one value for each image, (B,): yours counts the whole batch together": overlap.sum()[None] / both.sum(),
        "one value for each image, (B,), and yours is one for the whole batch": overlap.sum() / both.sum(),
    }
    compare(name, function, (probabilities, masks, threshold), right, hint, mistakes, tolerance=1e-6)


def _verify_unpatch(function: Callable[..., Any]) -> None:
    for channels, patch, rows, columns in ((1, 2, 3, 3), (3, 4, 2, 5), (2, 3, 4, 1)):
        x = randn(2, channels, rows * patch, columns * patch)
        tokens = F.unfold(x, patch, stride=patch).transpose(1, 2)
        pixels = tokens.unflatten(2, (channels, patch, patch)).unflatten(1, (rows, columns))
        last = tokens.unflatten(2, (patch, patch, channels)).unflatten(1, (rows, columns)).movedim(5, 3)
        down = tokens.unflatten(2, (channels, patch, patch)).unflatten(1, (columns, rows)).transpose(1, 2)

        def placed(pixels: Tensor) -> Tensor:
            """(B, h, w, C, P, P) to (B, C, h·P, w·P)."""
            return pixels.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

        mistakes = {
            "a token runs over channels, then rows, then columns: yours has the channels last": placed(last),
            "a token runs over channels, then rows, then columns: yours has the columns before the rows": placed(pixels.mT),
            "patches lie row by row, h rows of w: yours go down first": placed(down),
            "a reshape alone leaves a patch's pixels in one row: permute to (B, C, h, P, w, P), row by row, first": tokens.reshape(x.shape),
        }
        hint = "a token runs over channels, then rows, then columns of its patch, and there are h·w patches, row by row; w = N/h"
        compare(f"{rows}×{columns} patches of {channels}×{patch}×{patch}", function, (tokens, patch, rows), x, hint, mistakes)
    elsewhere(function, tokens.to("meta"), patch, rows)


def _verify_attention(function: Callable[..., Any]) -> None:
    for shape, length, width in (((2, 3), 7, 4), ((1,), 1, 4), ((5,), 6, 16)):
        q, k = 3 * randn(2, *shape, length, width)
        v = randn(*shape, length, width + 1, seed=2)
        scores = q @ k.mT
        scaled = scores / width**0.5
        mistakes = {
            "divide by the root of d: without it the softmax is too sure": scores.softmax(-1) @ v,
            "divide by the root of d, the last size of q, not by d": (scores / width).softmax(-1) @ v,
            "d is the last size of q, and not the number of tokens": (scores / length**0.5).softmax(-1) @ v,
            "d is the last size of q; yours is that of v": (scores / (width + 1) ** 0.5).softmax(-1) @ v,
            "take the softmax over the keys, dim=-1: each row adds up to 1": scaled.softmax(-2) @ v,
            "the softmax is missing: weights are positive and add up to 1": scaled @ v,
            "the queries ask the keys, q kᵀ, not the other way round": scaled.mT.softmax(-1) @ v,
            "multiply the values, v; yours multiplies the keys": scaled.softmax(-1) @ k,
            "the scale comes before the softmax": scores.softmax(-1) / width**0.5 @ v,
        }
        hint = "softmax(q kᵀ/√d) v: divide by the root of the last size of q, take the softmax over the keys (dim=-1), multiply the values"
        right = F.scaled_dot_product_attention(q, k, v)
        compare(f"{length} tokens of {width} channels", function, (q, k, v), right, hint, mistakes)
    q = torch.full((1, 3, 4), 40.0, dtype=F64)
    v = torch.eye(3, dtype=F64)[None]
    hint = "exp overflows: use torch.softmax, which subtracts the largest score first"
    compare("large scores", function, (q, q, v), F.scaled_dot_product_attention(q, q, v), hint)


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
