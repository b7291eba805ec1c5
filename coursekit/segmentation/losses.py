"""Losses for masks, on logits: the sigmoid is inside. Given probabilities, they would apply it a second time.

Both compute in float32 where the logits are half precision, as under autocast, and in float64 where they are float64.
A NaN among the logits gives a NaN loss, for the training loop to see.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTHING = 1e-6


def dice_loss(logits: Tensor, masks: Tensor, smoothing: float = SMOOTHING) -> Tensor:
    """Soft Dice loss, the mean over images of 1 − (2Σpy + s)/(Σp + Σy + s), with p = σ(logits). A scalar in [0, 1].

    ``logits`` (B, …), any numbers; ``masks`` of the same shape, of any type, in [0, 1]. The sums run over each image apart,
    so that a small polyp counts as much as a large one. The smoothing s > 0 stands above and below: an empty mask that is
    predicted empty costs 0, and so does every perfect prediction. An empty mask is felt once Σp comes near s: with the
    default hardly ever, with s = 1 from the start.
    Raises ``ValueError`` for other shapes, an empty batch, masks outside [0, 1] and s ≤ 0.
    Source: Basel, problem set 6, exercise 5, where s is missing above; Milletari, Navab and Ahmadi 2016.
    """
    if not 0 < smoothing < math.inf:
        raise ValueError(f"smoothing must be a positive number, got {smoothing:g}")
    return _soft_dice(*_checked(logits, masks), smoothing)


def bce_dice_loss(logits: Tensor, masks: Tensor, dice_weight: float) -> Tensor:
    """Binary cross-entropy, mean over all pixels and images, in nats, plus ``dice_weight`` times ``dice_loss``. A scalar.

    Shapes, ranges and errors as for ``dice_loss``; ``ValueError`` as well where ``dice_weight``, the λ of the handout, is
    negative or not finite. The cross-entropy of a logit z is max(z, 0) − zy + log(1 + exp(−|z|)), which no z overflows.
    Source: Basel, problem set 6, exercise 5.
    """
    if not 0 <= dice_weight < math.inf:
        raise ValueError(f"dice_weight must be a number ≥ 0, got {dice_weight:g}")
    logits, masks = _checked(logits, masks)
    return F.binary_cross_entropy_with_logits(logits, masks) + dice_weight * _soft_dice(logits, masks, SMOOTHING)


def _soft_dice(logits: Tensor, masks: Tensor, smoothing: float) -> Tensor:
    p, y = logits.sigmoid().flatten(1), masks.flatten(1)
    overlap, total = (p * y).sum(1), p.sum(1) + y.sum(1)
    return (1 - (2 * overlap + smoothing) / (total + smoothing)).mean()


def _checked(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one type, at least float32."""
    if logits.shape != masks.shape or logits.ndim < 2 or not logits.numel():
        raise ValueError(f"logits and masks must share a shape (B, …), not empty; got {tuple(logits.shape)} and {tuple(masks.shape)}")
    if not ((masks >= 0) & (masks <= 1)).all():   # NaN is outside too
        low, high = masks.min().item(), masks.max().item()
        raise ValueError(f"masks must lie in [0, 1], got {low:g} … {high:g}; divide 8-bit masks by 255")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), masks.to(dtype)
