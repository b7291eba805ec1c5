"""Notebook 03: move the threshold that turns probabilities into a mask, and watch the mask, its IoU, precision and recall."""

from __future__ import annotations

from dataclasses import dataclass

import contourpy
import ipywidgets as widgets
import matplotlib
import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.patches import Patch
from torch import Tensor

from coursekit.explore.base import Explorer, row_figure
from coursekit.figures import BLUE, ORANGE, PURPLE, SKY, STYLE, VERMILION, as_picture, show_image
from coursekit.runtime import one_thread
from coursekit.segmentation import iou

STEPS = tuple(k / 100 for k in range(101))
# A trained network's probabilities crowd at 0 and 1, so between the first two steps much of the precision-recall curve is passed.
LEVELS = torch.tensor(sorted({*STEPS, *torch.linspace(-15, 15, 301, dtype=torch.float64).sigmoid().tolist()}))
AT_STEPS = torch.searchsorted(LEVELS, torch.tensor(STEPS))
COLOURS = {"found": BLUE, "false alarm": ORANGE, "missed": PURPLE}


def counts_above(probabilities: Tensor, masks: Tensor) -> Tensor:
    """(2, N, L): how many background and how many mask pixels of each image have a probability ≥ each of the L ``LEVELS``.

    ``probabilities`` (N, …) in [0, 1], ``masks`` of the same shape in {0, 1}. One pass over the pixels, however many levels.
    """
    count, levels = len(masks), len(LEVELS)
    counts = torch.zeros(2, count, levels, dtype=torch.int64)
    for i, (p, mask) in enumerate(zip(probabilities, masks, strict=True)):
        passed = torch.bucketize(p.flatten(), LEVELS, right=True) - 1   # the highest level that is ≤ p
        histogram = torch.bincount(passed + levels * mask.flatten().long(), minlength=2 * levels)
        counts[:, i] = histogram.reshape(2, levels)
    return counts.flip(-1).cumsum(-1).flip(-1)


@dataclass(frozen=True, eq=False)
class ThresholdView:
    """One image at one threshold: its predicted mask (H, W) bool, its IoU at all ``STEPS`` (101,) and at this one; the mean IoU of all
    images; precision and recall of all their pixels."""

    image: int
    threshold: float
    predicted: Tensor
    curve: Tensor
    iou: float
    mean_iou: float
    precision: float
    recall: float


class ThresholdExplorer(Explorer):
    """Threshold and image → predicted and true mask, the image's IoU, the mean IoU, and the point on the precision–recall curve.

    ``images`` (N, 3, H, W) in [0, 1], N ≥ 2; ``probabilities`` (N, 1, H, W) in [0, 1], not logits; ``masks`` (N, 1, H, W) of 0 and 1.
    A pixel is predicted where its probability is ≥ the threshold. Two empty masks have IoU 1; precision and recall are those of
    all pixels together, and the precision is 1 where nothing is predicted, as scikit-learn has it.
    Raises ``ValueError`` for other shapes or ranges, and where all masks are empty: then there is nothing to recall.
    """

    def __init__(self, images: Tensor, probabilities: Tensor, masks: Tensor) -> None:
        _check(images, probabilities, masks)
        self.images, self.probabilities, self.masks = (t.detach().cpu().float() for t in (images, probabilities, masks))
        false, found = counts_above(self.probabilities, self.masks)
        union = found[:, :1] + false   # level 0 is 0, which all pixels reach, so its counts are all of the mask's
        self.ious = torch.where(union == 0, 1.0, found.double() / union)
        false, found = false.sum(0), found.sum(0)
        self.precision = torch.where(found + false == 0, 1.0, found.double() / (found + false))
        self.recall = found.double() / found[0]
        controls = {
            "threshold": widgets.SelectionSlider(options=[(f"{t:.2f}", t) for t in STEPS], value=0.5, description="threshold"),
            "image": widgets.IntSlider(0, 0, len(self.images) - 1, description="image"),
        }
        with matplotlib.rc_context(STYLE):
            self._build()
        moving = [self.picture, *self.outlines, self.agreement, self.line, self.curve, *self.dots, self.caption]
        super().__init__(controls, self.figure, moving)

    def _build(self) -> None:
        self.figure, (photo, areas, by_threshold, trade), self.caption = row_figure(3.5, [1, 1, 1.1, 1.1])
        blank = np.zeros((*self.images.shape[2:], 3), np.uint8)
        for axes, title in ((photo, "true: blue, predicted: white"), (areas, "IoU = found / all coloured")):
            show_image(axes, self.images[0], title)
            axes.images[0].set_data(blank)
        photo.images[0].set_interpolation("bicubic")
        self.picture, self.agreement = photo.images[0], areas.images[0]
        self.outlines = [LineCollection([], colors=colour, linewidths=2) for colour in (SKY, "white")]
        for outline in self.outlines:
            photo.add_collection(outline)
        patches = [Patch(color=colour, label=name) for name, colour in COLOURS.items()]
        areas.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, handlelength=0.8, columnspacing=0.8)
        by_threshold.plot(STEPS, self.ious[:, AT_STEPS].mean(0).numpy(), color=BLUE, label=f"mean of {len(self.images)}")
        self.curve = by_threshold.plot([], [], color=VERMILION, label="this image")[0]
        self.line = by_threshold.axvline(0.5, color="0.4", linewidth=1)
        by_threshold.legend(loc="lower center")
        by_threshold.set(xlabel="threshold", title="IoU", xlim=(0, 1), ylim=(0, 1.02))
        trade.plot(self.recall.numpy(), self.precision.numpy(), color=BLUE)
        trade.set(xlabel="recall", title="precision, all pixels", xlim=(0, 1.02), ylim=(0, 1.02))
        places = ((by_threshold, BLUE), (by_threshold, VERMILION), (trade, BLUE))
        self.dots = [axes.plot([], [], "o", color=c, markeredgecolor="white", markersize=8)[0] for axes, c in places]

    @one_thread()
    def compute(self, threshold: float, image: int) -> ThresholdView:
        level = int(AT_STEPS[STEPS.index(threshold)])
        predicted = self.probabilities[image, 0] >= threshold
        mean, precision, recall = (float(t[level]) for t in (self.ious.mean(0), self.precision, self.recall))
        curve = self.ious[image, AT_STEPS]
        return ThresholdView(image, threshold, predicted, curve, float(self.ious[image, level]), mean, precision, recall)

    def draw(self, shown: ThresholdView) -> None:
        photo, true, predicted = self.images[shown.image], self.masks[shown.image, 0].bool().numpy(), shown.predicted.numpy()
        self.picture.set_data((255 * as_picture(photo)).astype(np.uint8))
        for outline, mask in zip(self.outlines, (true, predicted), strict=True):
            outline.set_segments(mask_outline(mask))
        self.agreement.set_data(agreement(as_picture(photo), true, predicted))
        self.line.set_xdata([shown.threshold] * 2)
        self.curve.set_data(STEPS, shown.curve.numpy())
        places = ((shown.threshold, shown.mean_iou), (shown.threshold, shown.iou), (shown.recall, shown.precision))
        for dot, (x, y) in zip(self.dots, places, strict=True):
            dot.set_data([x], [y])
        empty = "" if (true | predicted).any() else " (both masks empty)"
        self.caption.set_text(
            f"image {shown.image} at {shown.threshold:.2f}: IoU {shown.iou:.3f}{empty};  mean {shown.mean_iou:.3f};  "
            f"precision {shown.precision:.3f}, recall {shown.recall:.3f}"
        )


def mask_outline(mask: np.ndarray) -> list[np.ndarray]:
    """The edges of a mask (H, W) bool as polygons of (x, y) in pixels, the first pixel's centre at (0, 0); closed along the frame."""
    padded = np.pad(mask, 1).astype(np.float32)
    return [np.asarray(line) - 1 for line in contourpy.contour_generator(z=padded).lines(0.5)]


def agreement(photo: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: a photograph (H, W, 3) in [0, 1], pale and grey, with the masks' pixels coloured by ``COLOURS``."""
    picture = np.repeat(0.5 + 0.5 * photo.mean(2, keepdims=True), 3, 2)
    for name, pixels in (("found", true & predicted), ("false alarm", predicted & ~true), ("missed", true & ~predicted)):
        picture[pixels] = matplotlib.colors.to_rgb(COLOURS[name])
    return (255 * picture).astype(np.uint8)


def _check(images: Tensor, probabilities: Tensor, masks: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or len(images) < 2:
        raise ValueError(f"images must have shape (N, 3, H, W) with N ≥ 2, got {tuple(images.shape)}")
    for name, tensor in (("probabilities", probabilities), ("masks", masks)):
        if tensor.shape != (len(images), 1, *images.shape[2:]):
            raise ValueError(f"{name} must have shape {(len(images), 1, *images.shape[2:])} to fit the images, got {tuple(tensor.shape)}")
    if not images.is_floating_point() or not ((images >= 0) & (images <= 1)).all():
        raise ValueError("images must be floating-point in [0, 1]; divide bytes by 255, undo a normalisation, and look for NaN")
    iou(probabilities, masks)   # raises where probabilities or masks leave their ranges
    if not masks.any():
        raise ValueError("masks hold no foreground pixel, so recall means nothing: choose images that show something")
