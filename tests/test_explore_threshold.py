"""ThresholdExplorer: its numbers against the metrics, scikit-learn and counts by hand; and how the picture answers the controls."""

import numpy as np
import pytest
import torch
from explorers import frame_is_pure, frame_redraws_nothing, moves_and_returns
from sklearn.metrics import precision_recall_curve

from coursekit.explore import ThresholdExplorer
from coursekit.explore.threshold import COLOURS, LEVELS, STEPS, agreement, counts_above, mask_outline
from coursekit.segmentation import iou


def made(count=5, height=20, width=30, seed=0):
    """Photographs, discs as masks, and noisy probabilities; a tenth of the pixels lie exactly on a step. The last mask is empty."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, height, width, generator=generator)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    radii = torch.linspace(3, 9, count)[:, None, None]
    masks = (((y - height / 2) ** 2 + (x - width / 3) ** 2) < radii**2)[:, None].float()
    masks[-1] = 0
    probabilities = (4 * (masks - 0.5) + 3 * torch.randn(masks.shape, generator=generator)).sigmoid()
    on_a_step = torch.rand(masks.shape, generator=generator) < 0.1
    probabilities = torch.where(on_a_step, torch.tensor(STEPS)[(100 * probabilities).long()], probabilities)
    probabilities[-1] *= 0.4  # so that nothing is predicted there from 0.41 on
    return images, probabilities, masks


@pytest.fixture(scope="module")
def parts():
    return made()


@pytest.fixture(scope="module")
def explorer(parts):
    return ThresholdExplorer(*parts)


def test_every_control_changes_the_picture_and_coming_back_restores_it(explorer):
    assert repr(explorer) == "ThresholdExplorer(threshold, image)" and explorer.values == {"threshold": 0.5, "image": 0}
    moves_and_returns(explorer, "threshold", 0.51)
    moves_and_returns(explorer, "image", 1)


def test_frame_is_pure(explorer, parts):
    frame_is_pure(explorer, threshold=0.23, image=3)
    assert ThresholdExplorer(*parts).frame(image=3, threshold=0.23) == explorer.frame(threshold=0.23, image=3)


def test_the_ious_are_the_metrics_at_every_step(explorer, parts):
    _, probabilities, masks = parts
    exact = torch.stack([iou(probabilities, masks, t) for t in STEPS], 1)
    for image in range(5):
        for k in (0, 1, 35, 50, 57, 99, 100):
            shown = explorer.compute(threshold=STEPS[k], image=image)
            assert shown.image == image and shown.threshold == STEPS[k]
            assert shown.iou == exact[image, k].item() and torch.equal(shown.curve, exact[image])
            assert shown.mean_iou == pytest.approx(exact[:, k].mean().item(), abs=1e-12)
            assert torch.equal(shown.predicted, probabilities[image, 0] >= STEPS[k])


def test_precision_and_recall_are_those_of_all_pixels(explorer, parts):
    _, probabilities, masks = parts
    for threshold in STEPS:
        predicted, shown = probabilities >= threshold, explorer.compute(threshold=threshold, image=0)
        found, claimed = (predicted * masks).sum().item(), predicted.sum().item()
        assert shown.recall == pytest.approx(found / masks.sum().item(), abs=1e-12)
        assert shown.precision == pytest.approx(found / claimed if claimed else 1.0, abs=1e-12)


def test_the_curve_is_scikit_learns():
    images, probabilities, masks = made(count=3, seed=1)
    probabilities = (40 * (probabilities - 0.4)).sigmoid()  # crowded at the ends, as a trained network's
    explorer = ThresholdExplorer(images, probabilities, masks)
    precision, recall, thresholds = precision_recall_curve(masks.flatten(), probabilities.flatten())
    at = np.searchsorted(thresholds, LEVELS.numpy())
    assert np.allclose(explorer.recall, np.append(recall, 0)[at]) and np.allclose(explorer.precision, np.append(precision, 1)[at])
    for axis, drawn in zip((explorer.recall, explorer.precision), explorer.dots[2].axes.lines[0].get_data(), strict=True):
        assert np.array_equal(axis, drawn)
    assert explorer.recall.diff().abs().max() < 0.1  # with the 101 steps alone there would be a leap at either end
    assert (explorer.recall.diff() <= 0).all() and explorer.recall[0] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool])
def test_counts_by_hand(dtype):
    probabilities = torch.tensor([[0.0, 0.5, 1.0, 0.25], [0.7, 0.7, 0.1, 0.0]])
    counts = counts_above(probabilities, torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]]).to(dtype))
    where = {t: torch.searchsorted(LEVELS, torch.tensor(t)) for t in (0.0, 0.01, 0.25, 0.26, 0.5, 0.7, 0.71, 1.0)}
    background = {0.0: [2, 3], 0.01: [1, 2], 0.25: [1, 1], 0.26: [0, 1], 0.5: [0, 1], 0.7: [0, 1], 0.71: [0, 0], 1.0: [0, 0]}
    mask = {0.0: [2, 1], 0.01: [2, 1], 0.25: [2, 1], 0.26: [2, 1], 0.5: [2, 1], 0.7: [1, 1], 0.71: [1, 0], 1.0: [1, 0]}
    for t, k in where.items():
        assert LEVELS[k] == torch.tensor(t) and counts[:, :, k].tolist() == [background[t], mask[t]], t
    assert counts.shape == (2, 2, len(LEVELS)) and LEVELS[0] == 0 and LEVELS[-1] == 1 and (LEVELS.diff() >= 0).all()


def test_two_empty_masks_agree_and_the_caption_says_so(explorer):
    shown = explorer.compute(threshold=0.9, image=4)
    assert not shown.predicted.any() and shown.iou == 1.0
    assert explorer.compute(threshold=0.1, image=4).iou == 0.0
    explorer.draw(shown)
    assert "IoU 1.000 (both masks empty)" in explorer.caption.get_text()
    explorer.draw(explorer.compute(threshold=0.1, image=4))
    assert "empty" not in explorer.caption.get_text()


def test_nothing_predicted_at_all_has_precision_1():
    images, probabilities, masks = made()
    shown = ThresholdExplorer(images, probabilities * 0.9, masks).compute(threshold=1.0, image=0)
    assert (shown.precision, shown.recall, shown.iou, shown.mean_iou) == (1.0, 0.0, 0.0, 0.2)


def test_what_is_drawn_is_what_was_computed(explorer, parts):
    images, probabilities, masks = parts
    explorer.controls["threshold"].value, explorer.controls["image"].value = 0.37, 2
    shown = explorer.shown
    mean, this, trade = ([float(v[0]) for v in dot.get_data()] for dot in explorer.dots)
    assert mean == [0.37, shown.mean_iou] and this == [0.37, shown.iou] and trade == [shown.recall, shown.precision]
    assert explorer.line.get_xdata() == [0.37, 0.37]
    assert np.array_equal(explorer.curve.get_data(), [STEPS, shown.curve])
    means = explorer.dots[0].axes.lines[0].get_data()
    assert np.allclose(means, [STEPS, [iou(probabilities, masks, t).mean() for t in STEPS]])
    assert np.abs(explorer.picture.get_array() / 255 - images[2].permute(1, 2, 0).numpy()).max() < 1 / 255
    true, predicted = masks[2, 0].bool().numpy(), probabilities[2, 0].numpy() >= np.float32(0.37)
    assert np.array_equal(explorer.agreement.get_array(), agreement(images[2].permute(1, 2, 0).numpy(), true, predicted))
    for outline, mask in zip(explorer.outlines, (true, predicted), strict=True):
        drawn, expected = outline.get_segments(), mask_outline(mask)
        assert len(drawn) == len(expected) and all(np.allclose(a, b) for a, b in zip(drawn, expected, strict=True))
    numbers = f"image 2 at 0.37: IoU {shown.iou:.3f};  mean {shown.mean_iou:.3f};  "
    assert explorer.caption.get_text() == numbers + f"precision {shown.precision:.3f}, recall {shown.recall:.3f}"
    explorer.controls["threshold"].value, explorer.controls["image"].value = 0.5, 0


def test_agreement_colours_each_kind_of_pixel():
    true, predicted = np.array([[1, 1, 0, 0]], bool), np.array([[1, 0, 1, 0]], bool)
    photo = np.full((1, 4, 3), [0.2, 0.4, 0.6], np.float32)
    found, missed, alarm, rest = agreement(photo, true, predicted)[0].tolist()
    for colour, name in ((found, "found"), (missed, "missed"), (alarm, "false alarm")):
        assert colour == [int(COLOURS[name][k : k + 2], 16) for k in (1, 3, 5)]
    assert set(rest) <= {178, 179} and photo[0, 0, 0] == np.float32(0.2)  # 0.5 + 0.5·0.4, and the photograph is left as it was


def test_the_outline_goes_round_the_mask():
    mask = np.zeros((6, 9), bool)
    mask[2:4, 5:8] = True
    (line,) = mask_outline(mask)
    assert (line[0] == line[-1]).all()
    assert (line.min(0) == [4.5, 1.5]).all() and (line.max(0) == [7.5, 3.5]).all()  # x is the column, y is the row
    (frame,) = mask_outline(np.ones((4, 5), bool))
    assert (frame.min(0) == [-0.5, -0.5]).all() and (frame.max(0) == [4.5, 3.5]).all()
    assert mask_outline(np.zeros((4, 5), bool)) == []


@pytest.mark.parametrize("change", [torch.Tensor.double, torch.Tensor.requires_grad_])
def test_probabilities_as_a_network_gives_them(explorer, parts, change):
    images, probabilities, masks = parts
    other = ThresholdExplorer(images, change(probabilities.clone()), masks.to(torch.uint8))
    assert other.frame(threshold=0.3, image=1) == explorer.frame(threshold=0.3, image=1)


def test_nothing_is_drawn_anew_for_a_frame_and_torch_keeps_its_threads(explorer, monkeypatch):
    frame_redraws_nothing(explorer, monkeypatch, threshold=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 1.01}, "threshold must be one of"),
        ({"threshold": 0.505}, "threshold must be one of"),
        ({"image": 5}, "image must lie in 0 .. 4"),
        ({"images": 1}, "no control 'images'"),
    ],
)
def test_impossible_values_are_refused_by_name(explorer, values, message):
    with pytest.raises(ValueError, match=message):
        explorer.frame(**values)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images", lambda t: t[:, :1], r"images must have shape \(N, 3, H, W\) .* got \(5, 1, 20, 30\)"),
        ("images", lambda t: t[0], r"images must have shape .* got \(3, 20, 30\)"),
        ("images", lambda t: t[:1], "N ≥ 2"),
        ("images", lambda t: t[:4], r"probabilities must have shape \(4, 1, 20, 30\)"),
        ("images", lambda t: t * 255, "divide bytes by 255"),
        ("images", lambda t: t - 1, "images must be floating-point in"),
        ("images", lambda t: (t * 255).byte(), "divide bytes by 255"),
        ("images", lambda t: t * float("nan"), "look for NaN"),
        ("probabilities", lambda t: t[:, 0], r"probabilities must have shape \(5, 1, 20, 30\) .* got \(5, 20, 30\)"),
        ("probabilities", lambda t: t.logit(1e-6), "give logits through a sigmoid"),
        ("masks", lambda t: t[..., :29], r"masks must have shape \(5, 1, 20, 30\) .* got \(5, 1, 20, 29\)"),
        ("masks", lambda t: t * 255, "masks must hold 0 and 1"),
        ("masks", torch.zeros_like, "no foreground pixel"),
    ],
)
def test_impossible_arguments_are_refused(parts, name, change, message):
    arguments = dict(zip(("images", "probabilities", "masks"), parts, strict=True))
    with pytest.raises(ValueError, match=message):
        ThresholdExplorer(**{**arguments, name: change(arguments[name])})
