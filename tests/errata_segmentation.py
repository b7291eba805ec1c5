"""Experiments for the errata of notebook 03; their rows stand in ``errata.py``.

Truths come from what a loss must be for equal sets, from counting pixels, from torch.distributions, torch's own
transformer, and counted multiplications.
"""

from __future__ import annotations

import math

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from coursekit.segmentation import confusion_matrix, dice_loss, iou, iou_from_confusion
from coursekit.segmentation.vit import EncoderLayer

Number = float | Tensor
Outcome = tuple[Number, Number, Number]

F64 = torch.float64


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def _mask() -> Tensor:
    return _normal(1, 1, 5, 7).gt(0.5).to(F64)


def _logits(masks: Tensor) -> Tensor:
    """Logits of a perfect prediction, without doubt."""
    return torch.where(masks > 0, 1e4, -1e4).to(F64)


def smoothing_below_alone() -> Outcome:
    """The loss of an empty prediction for an empty mask, and of a perfect one for a small polyp, with ε = 1: both agree, so 0."""
    masks = torch.cat([torch.zeros(1, 1, 5, 7, dtype=F64), _mask()])
    right = torch.stack([dice_loss(_logits(y[None]), y[None], smoothing=1.0) for y in masks])
    p, y = _logits(masks).sigmoid().flatten(1), masks.flatten(1)
    return torch.zeros(2, dtype=F64), right, 1 - 2 * (p * y).sum(1) / ((p + y).sum(1) + 1)


def sigmoid_twice() -> Outcome:
    """The loss of a perfect prediction, given to smp as probabilities. Truth: equal sets cost nothing."""
    y = _mask()
    p = _logits(y).sigmoid()
    return 0.0, smp.losses.DiceLoss("binary", from_logits=False)(p, y).double(), smp.losses.DiceLoss("binary")(p, y).double()


def pooled_batch() -> Outcome:
    """A large polyp found and a small one missed: the mean of 0 and 1, pixel by pixel for each image."""
    masks = torch.zeros(2, 1, 8, 9, dtype=F64)
    masks[0, 0, :7], masks[1, 0, 3, 4] = 1, 1
    found = masks.clone()
    found[1] = 0
    losses = []
    for guess, true in zip(found.bool(), masks.bool(), strict=True):
        losses.append(1 - 2 * int((guess & true).sum()) / (int(guess.sum()) + int(true.sum())))
    printed = smp.losses.DiceLoss("binary", smooth=1e-6)(_logits(found), masks).double()
    return sum(losses) / 2, dice_loss(_logits(found), masks, smoothing=1e-12), printed


def soft_iou() -> Outcome:
    """Every pixel on its right side of ½: as sets of pixels the two masks are one."""
    y = _mask()
    p = 0.27 + 0.46 * y
    guess, true = ({tuple(i) for i in (m > 0.5).nonzero().tolist()} for m in (p, y))
    return len(guess & true) / len(guess | true), iou(p, y)[0], (p * y).sum() / (p + y - p * y).sum()


def square_images_only() -> Outcome:
    """The mean of −log p(y) over the pixels of a 12×20 image, read with N = 12 and with N = 20."""
    z = _normal(12, 20)
    y = _normal(12, 20, seed=1).gt(0).to(F64)
    total = -Bernoulli(logits=z).log_prob(y).sum()
    truth = torch.stack([-Bernoulli(logits=zi).log_prob(yi).mean() for zi, yi in zip(z, y, strict=True)]).mean()
    return truth.expand(2), F.binary_cross_entropy_with_logits(z, y).expand(2), torch.stack([total / 12**2, total / 20**2])


def clamped_logarithm() -> Outcome:
    """Loss and gradient at the logit −200 of a foreground pixel: log(1 + e^200) and σ(−200) − 1."""
    one = torch.ones(1, dtype=F64)
    results = []
    for loss in (lambda z: F.binary_cross_entropy_with_logits(z, one), lambda z: F.binary_cross_entropy(z.sigmoid(), one)):
        z = torch.full((1,), -200.0, dtype=F64, requires_grad=True)
        value = loss(z)
        value.backward()
        assert z.grad is not None
        results.append(torch.stack([value.detach(), z.grad[0]]))
    truth = torch.tensor([200 + math.log1p(math.exp(-200)), -1 / (1 + math.exp(-200))], dtype=F64)
    return truth, results[0], results[1]


def keys_for_values() -> Outcome:
    """Attention of seven tokens with values of three channels and keys of four, one token at a time from the definition."""
    y, w_q, w_k, w_v = _normal(7, 5), _normal(5, 4, seed=1), _normal(5, 4, seed=2), _normal(5, 3, seed=3)
    rows = []
    for token in y:
        scores = torch.stack([(token @ w_q) @ (other @ w_k) / 2 for other in y]).exp()
        rows.append(torch.stack([score / scores.sum() * (other @ w_v) for score, other in zip(scores, y, strict=True)]).sum(0))
    weights = (y @ w_q @ (y @ w_k).mT / 2).softmax(-1)
    return torch.stack(rows), weights @ (y @ w_v), weights @ (y @ w_k)


def keys_not_normalised() -> Outcome:
    """A pre-norm layer of torch, ours with its weights, and the printed one, whose keys and values skip the norm."""
    torch.manual_seed(0)
    ours, x = EncoderLayer(8, 2, 2).to(F64), 3 + 2 * _normal(2, 5, 8)
    theirs = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, activation="gelu", batch_first=True, norm_first=True).to(F64)
    with torch.no_grad():
        mine, other = ours.attention, theirs.self_attn
        other.in_proj_weight.copy_(torch.cat([mine.query.weight, mine.key.weight, mine.value.weight]))
        other.in_proj_bias.copy_(torch.cat([mine.query.bias, mine.key.bias, mine.value.bias]))
        other.out_proj.load_state_dict(mine.output.state_dict())
        theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
        theirs.linear2.load_state_dict(ours.feed_forward[2].state_dict())
        h = x + theirs.self_attn(ours.norm_1(x), x, x, need_weights=False)[0]
        return theirs(x), ours(x), h + ours.feed_forward(ours.norm_2(h))


def quadratic_share() -> Outcome:
    """How many times the work grows when ViT-B/16 gets twice its 197 tokens, counted operation by operation; "quadratic": 4 times."""
    def counted(tokens: int) -> int:
        with torch.device("meta"):
            layer, x = nn.TransformerEncoderLayer(768, 12, 3072, norm_first=True, batch_first=True), torch.empty(1, tokens, 768)
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                layer(x)
        return counter.get_total_flops()

    def formula(n: int, d: int = 768) -> int:
        return 12 * n * d**2 + 2 * n**2 * d   # projections and feed-forward; scores and their sums

    return counted(394) / counted(197), formula(394) / formula(197), 4.0


def sum_over_classes() -> Outcome:
    """Six images of three classes, the last three wrong: IoU of each class, counted as sets of pixels of all images."""
    target = torch.arange(3).repeat(2)[:, None, None].expand(6, 2, 2)
    predicted = torch.cat([target[:3], (target[3:] + 1) % 3])
    values = []
    for c in range(3):
        true, guess = ({tuple(i) for i in (labels == c).nonzero().tolist()} for labels in (target, predicted))
        values.append(len(true & guess) / len(true | guess))
    printed = iou_from_confusion(confusion_matrix(predicted[:3], target[:3], 3))   # images i = 1 … C
    return torch.tensor(values, dtype=F64), iou_from_confusion(confusion_matrix(predicted, target, 3)), printed


def zeroed_weights() -> Outcome:
    """Five tokens that attend to themselves and the past: each row from the definition; scores −∞; weights set to 0 afterwards."""
    scores, values = _normal(5, 5), _normal(5, 3, seed=1)
    rows = []
    for i in range(5):
        past = scores[i, : i + 1].exp()
        rows.append(sum(weight / past.sum() * value for weight, value in zip(past, values[: i + 1], strict=True)))
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    return torch.stack(rows), scores.masked_fill(future, -math.inf).softmax(-1) @ values, scores.softmax(-1).masked_fill(future, 0) @ values


def size_without_padding() -> Outcome:
    """The side of what a transposed 3×3 convolution of stride 2 makes of 3×3 pixels, with padding 0 and 1: by laying stamps."""
    reached = torch.zeros(7, dtype=torch.bool)
    for i in range(3):
        reached[2 * i : 2 * i + 3] = True
    truth = torch.tensor([int(reached.sum()), int(reached.sum()) - 2], dtype=F64)   # padding cuts one pixel off each end
    one = torch.ones(1, 1, 3, 3)
    right = torch.tensor([F.conv_transpose2d(one, one, stride=2, padding=p).shape[-1] for p in (0, 1)], dtype=F64)
    return truth, right, torch.tensor([5.0, 5.0], dtype=F64)


def channels_for_places() -> Outcome:
    """Self-attention over a map of 6 channels and 2×3 pixels: pixel by pixel from the definition; tokens = pixels; tokens = channels."""
    maps, w_q, w_k, w_v = _normal(6, 2, 3), _normal(6, 6, seed=1), _normal(6, 6, seed=2), _normal(6, 6, seed=3)
    pixels = [maps[:, i, j] for i in range(2) for j in range(3)]
    rows = []
    for here in pixels:
        weights = torch.stack([(here @ w_q) @ (there @ w_k) / 6**0.5 for there in pixels]).exp()
        rows.append(sum(weight / weights.sum() * (there @ w_v) for weight, there in zip(weights, pixels, strict=True)))
    truth = torch.stack(rows).T.unflatten(1, (2, 3))

    def attend(tokens: Tensor) -> Tensor:
        return ((tokens @ w_q) @ (tokens @ w_k).mT / 6**0.5).softmax(-1) @ (tokens @ w_v)

    return truth, attend(maps.flatten(1).T).T.unflatten(1, (2, 3)), attend(maps.flatten(1)).unflatten(1, (2, 3))
