"""How well a mask fits: IoU and Dice of each image, and the confusion matrix of many.

Counts are exact, and ratios of counts are float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def iou(probabilities: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of each image, (B,), in [0, 1]: |P∩Y|/|P∪Y| with P the pixels of probability ≥ ``threshold``.

    ``probabilities`` (B, …) in [0, 1], not logits; ``masks`` of the same shape, each entry 0 or 1, of any type.
    Two empty masks agree: an empty prediction for an empty mask counts 1.
    Raises ``ValueError`` for other shapes, an empty batch, or numbers outside these ranges.
    Source: Basel, problem set 6, exercise 5, where the threshold is missing.
    """
    overlap, predicted, true = _counts(probabilities, masks, threshold)
    return _ratio(overlap, predicted + true - overlap)


def dice(probabilities: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Dice coefficient of each image, (B,), in [0, 1]: 2|P∩Y|/(|P| + |Y|), which is 2J/(1 + J) for an IoU of J.

    Arguments, the empty case and errors as for ``iou``.
    """
    overlap, predicted, true = _counts(probabilities, masks, threshold)
    return _ratio(2 * overlap, predicted + true)


def confusion_matrix(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64: entry [i, j] counts the pixels of class i that were predicted as j. Add those of batches up.

    ``predicted`` and ``target``: integers in 0 … classes−1, one shape. Raises ``ValueError`` for anything else.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"predicted and target must share a shape, got {tuple(predicted.shape)} and {tuple(target.shape)}")
    for name, labels in (("predicted", predicted), ("target", target)):
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"{name} must hold class numbers of an integer type, got {labels.dtype}; take the argmax first")
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"{name} must lie in 0 … {classes - 1}, got {int(labels.min())} … {int(labels.max())}")
    pairs = target.long() * classes + predicted.long()
    return torch.bincount(pairs.flatten(), minlength=classes**2).reshape(classes, classes)


def iou_from_confusion(matrix: Tensor) -> Tensor:
    """IoU of each class over all images, (classes,), float64: the diagonal over row sum + column sum − diagonal.

    NaN for a class that is neither there nor predicted: leave it out of a mean with ``nanmean``.
    Raises ``ValueError`` where ``matrix`` is not square. Source: Bologna, notes, 5.1, with the sum over images.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix must have shape (classes, classes), got {tuple(matrix.shape)}")
    right = matrix.diagonal()
    return right.double() / (matrix.sum(0) + matrix.sum(1) - right)


def _counts(probabilities: Tensor, masks: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """For each image |P∩Y|, |P| and |Y|, each (B,) int64."""
    shapes = tuple(probabilities.shape), tuple(masks.shape)
    if shapes[0] != shapes[1] or probabilities.ndim < 2 or not probabilities.numel():
        raise ValueError(f"probabilities and masks must share a shape (B, …), not empty; got {shapes[0]} and {shapes[1]}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold:g}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]; give logits through a sigmoid first, and look for NaN")
    if not ((masks == 0) | (masks == 1)).all():
        raise ValueError("masks must hold 0 and 1 alone; threshold them first")
    p, y = (probabilities >= threshold).flatten(1), masks.bool().flatten(1)
    return (p & y).sum(1), p.sum(1), y.sum(1)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below == 0, 1.0, above.double() / below)
