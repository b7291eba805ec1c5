import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from coursekit.data import Pairs, SyntheticPolyps, synthetic
from coursekit.data.synthetic import Draws, bell, blur, cosine, rotate, smoothstep


@pytest.fixture(scope="module")
def frames():
    return SyntheticPolyps(320, 64)


def draws(size=64, seed=0):
    return Draws(seed, range(16), size)


def test_interface():
    dataset = SyntheticPolyps(3, 48)
    assert isinstance(dataset, Pairs) and len(dataset) == 3 and len(set(dataset.names)) == 3
    assert dataset.images.shape == (3, 3, 48, 48) and dataset.images.dtype == torch.uint8
    assert dataset.masks.shape == (3, 1, 48, 48) and dataset.masks.dtype == torch.uint8
    image, mask = dataset[2]
    assert torch.equal(image, dataset.images[2] / 255) and torch.equal(mask, dataset.masks[2].float())


def test_a_longer_data_set_begins_with_the_shorter_one(frames):
    for count in (1, 16, 19):
        shorter = SyntheticPolyps(count, 64)
        assert torch.equal(shorter.images, frames.images[:count]) and torch.equal(shorter.masks, frames.masks[:count])
        assert shorter.names == frames.names[:count]


def test_every_frame_is_another_and_so_is_every_seed(frames):
    assert len(torch.unique(frames.images.flatten(1), dim=0)) == len(frames)
    other = SyntheticPolyps(16, 64, seed=1)
    assert not torch.equal(other.images, frames.images[:16]) and not torch.equal(other.masks, frames.masks[:16])
    assert other.names[0] != frames.names[0]


def test_another_size_shows_the_same_scenes(frames):
    larger = SyntheticPolyps(32, 128)
    mask, halved = frames.masks[:32] > 0, F.avg_pool2d(larger.masks.float(), 2) >= 0.5
    iou = (mask & halved).sum((1, 2, 3)) / (mask | halved).sum((1, 2, 3))
    assert iou.mean() > 0.9
    pooled = [F.avg_pool2d(images.float(), side).flatten() for images, side in ((frames.images[:32], 8), (larger.images, 16))]
    assert torch.corrcoef(torch.stack(pooled))[0, 1] > 0.99


def test_areas_are_those_of_real_polyps(frames):
    area = frames.masks.float().mean((1, 2, 3))
    assert area.min() >= 0.005 and area.max() <= 0.6 + 1 / 64**2
    quantiles = area.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    assert quantiles == pytest.approx([0.059, 0.114, 0.21], rel=0.25)     # Kvasir-SEG's, measured at 128 px


@pytest.mark.parametrize("area", [0.005, 0.13, 0.6])
def test_the_area_is_exact_also_where_the_border_cuts(area, monkeypatch):
    monkeypatch.setattr(synthetic, "_AREA", (area, area, area))
    masks = SyntheticPolyps(64, 64, seed=3).masks
    assert (masks.sum((1, 2, 3)) == math.ceil(area * 64**2)).all()


def test_masks_are_what_is_seen(frames):
    corners = frames.masks[:, 0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert not corners.any()
    covered = (frames.images.amax(1) < 8)[:, 63 - 12 :, :12].all((1, 2))      # the box is there
    assert 0.4 < covered.float().mean() < 0.65 and not frames.masks[covered, :, 63 - 12 :, :12].any()


def test_the_image_has_an_edge_where_the_mask_has_one(frames):
    """Contrast between inside and outside, in a thin band, is stronger along the true outline than along a mirrored one."""
    grey, mask = frames.images.float().mean(1, keepdim=True), frames.masks.float()

    def contrast(mask):
        inner, outer = mask + F.max_pool2d(-mask, 5, 1, 2), F.max_pool2d(mask, 5, 1, 2) - mask
        inner = mask - (1 - F.max_pool2d(1 - mask, 5, 1, 2))
        return ((inner * grey).sum((1, 2, 3)) / inner.sum((1, 2, 3)) - (outer * grey).sum((1, 2, 3)) / outer.sum((1, 2, 3))).mean()

    assert contrast(mask) > 8 and contrast(mask) > 2 * contrast(mask.flip(3)).abs()


def test_parts_are_whole(frames):
    """A polyp is one piece, or two, and no dust: taking away what a 3×3 square does not fit into leaves most of it."""
    mask = frames.masks.float()
    opened = F.max_pool2d(1 - F.max_pool2d(1 - mask, 3, 1, 1), 3, 1, 1)
    kept = (opened * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    assert kept.mean() > 0.93 and (kept > 0.5).float().mean() > 0.97


def test_colours_are_those_of_kvasir_seg(frames):
    x = frames.images.float() / 255
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0.557, 0.322, 0.236], abs=0.05)
    assert x.std((2, 3)).mean(0).tolist() == pytest.approx([0.303, 0.210, 0.171], abs=0.04)
    assert 0.12 < (x.amax(1) < 0.12).float().mean() < 0.20                    # real: 0.159
    assert 0.004 < (x.amin(1) > 0.8).float().mean() < 0.03                    # real: 0.015


def test_no_colour_threshold_finds_the_polyp(frames):
    """The best of many global thresholds stays below IoU 0.3 (0.25 on Kvasir-SEG), so there is something to learn."""
    red, green, blue = (frames.images[:160].float() / 255).unbind(1)
    mask, total = frames.masks[:160, 0] > 0, red + green + blue + 0.01
    for feature in (red, green, red - green, red / total, total):
        for threshold in np.quantile(feature.numpy(), np.linspace(0.05, 0.95, 13)):
            for guess in (feature > threshold, feature < threshold):
                iou = (guess & mask).sum((1, 2)) / (guess | mask).sum((1, 2)).clamp(min=1)
                assert iou.mean() < 0.3


def test_the_frames_are_those_of_recorded_results(frames):
    """Mean grey and mean step between neighbours, each over one frame. A change of the renderer changes every recorded result."""
    grey = frames.images[:16].double().mean(1)
    steps = grey.diff(dim=1).abs().mean((1, 2))
    assert frames.masks[:16].sum((1, 2, 3)).tolist() == pytest.approx(
        [1195, 963, 776, 291, 588, 160, 169, 445, 341, 1437, 540, 577, 502, 219, 815, 700], abs=1
    )  # fmt: skip
    assert grey.mean((1, 2)).tolist() == pytest.approx(
        [126.7, 61.3, 97.4, 100.7, 113.3, 78.5, 87.1, 81.2, 101.0, 89.3, 110.3, 99.3, 115.1, 120.4, 83.5, 116.3], abs=0.2
    )  # fmt: skip
    assert steps.tolist() == pytest.approx(
        [9.67, 8.85, 7.0, 8.47, 8.47, 6.38, 8.6, 7.08, 6.2, 7.25, 6.92, 11.76, 9.38, 8.35, 10.47, 11.22], abs=0.03
    )  # fmt: skip


def plane(draws, a, b, c):
    """log q of the plane a·X + b·Y + c·Z = 1: its inverse depth is a·u + b·v + c."""
    return (a * draws.x + b * draws.y + c).log().expand(1, draws.size, draws.size)


@pytest.mark.parametrize(("a", "b", "c"), [(0.0, 0.0, 1.0), (0.3, -0.2, 1.5), (-0.5, 0.4, 2.0)])
def test_the_cosine_on_a_plane(a, b, c, monkeypatch):
    monkeypatch.setattr(synthetic, "_STEEPEST", 1e6)
    d = draws(256)
    rays = torch.stack(torch.broadcast_tensors(d.x, d.y, torch.ones(1, 1, 1)), -1)
    exact = (F.normalize(rays, dim=-1) @ F.normalize(torch.tensor([a, b, c]), dim=0))
    inner = (slice(None), slice(2, -2), slice(2, -2))
    assert torch.allclose(cosine(d, plane(d, a, b, c))[inner], exact[inner], atol=1e-3)


def test_a_jump_is_not_a_black_line():
    d = draws()
    log_q = torch.where(d.x > 0, 1.0, 0.0).expand(1, 64, 64)
    assert cosine(d, log_q).min() > 0.4


def test_noise_has_variance_one_and_no_grid():
    d = draws(96)
    values = torch.cat([d.noise(12) for _ in range(40)])
    assert values.mean().abs() < 0.02
    assert values.var() == pytest.approx(1, abs=0.03)
    assert (values.var(0) - 1).abs().max() < 0.35                      # 640 frames: σ of a variance is 0.056
    assert draws().noise(5).shape == (16, 64, 64)
    assert torch.allclose(draws(32).noise(5), F.avg_pool2d(draws(64).noise(5)[:, None], 2)[:, 0], atol=0.06)


def test_noise_is_as_fine_as_asked():
    def roughness(cells):
        values = torch.cat([draws(128, seed).noise(cells) for seed in range(4)])
        return values.diff(dim=2).square().mean().sqrt() * 64

    assert roughness(16) / roughness(4) == pytest.approx(4, rel=0.1)


def test_draws():
    uniform = torch.cat([Draws(seed, range(100), 32).uniform(2, 5) for seed in range(10)])
    assert uniform.shape == (1000, 1, 1) and 2 <= uniform.min() < 2.05 and 4.95 < uniform.max() <= 5
    assert Draws(0, range(1000), 32).chance(0.2).mean() == pytest.approx(0.2, abs=0.05)
    normal = Draws(0, range(1000), 32).normal()
    assert normal.mean().abs() < 0.15 and normal.std() == pytest.approx(1, abs=0.1)


def test_shapes_of_kernels():
    x = torch.linspace(0, 5, 101)
    assert (bell(x**2) - (-x**2).exp()).abs().max() < 0.09 and not bell(torch.tensor(4.0)) and bell(torch.tensor(0.0)) == 1
    assert smoothstep(torch.tensor([-1.0, 0, 0.25, 0.5, 1, 2])).tolist() == [0, 0, 0.15625, 0.5, 1, 1]
    d = draws()
    dx, dy = rotate(d, torch.tensor([[[3.0]]]), torch.tensor([[[4.0]]]))
    assert torch.allclose((dx**2 + dy**2).sqrt(), torch.tensor(5.0)) and dx.std() > 1


def test_blur_spreads_a_point_by_sigma():
    image = torch.zeros(2, 3, 65, 65)
    image[:, :, 32, 32] = 1
    sigma = torch.tensor([1.5, 4.0]).view(2, 1, 1)
    blurred = blur(image, sigma)
    place = torch.arange(65) - 32.0
    assert torch.allclose(blurred.sum((2, 3)), torch.ones(2, 3), atol=1e-4)
    for axis in (2, 3):
        assert torch.allclose((blurred.sum(axis) * place**2).sum(2).sqrt(), sigma.view(2, 1).expand(2, 3), rtol=1e-3)
    assert torch.allclose(blur(torch.ones(1, 3, 9, 9), torch.ones(1, 1, 1)), torch.ones(1, 3, 9, 9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be an int of at least 1, got 0"),
        ({"count": 2.5}, "count must be an int of at least 1, got 2.5"),
        ({"count": 2, "size": 31}, "size must be an int of at least 32, got 31"),
        ({"count": 2, "seed": -1}, "seed must be an int of at least 0, got -1"),
    ],
)
def test_bad_input_is_answered(arguments, message):
    with pytest.raises(ValueError, match=message):
        SyntheticPolyps(**arguments)


def test_the_smallest_sizes_work():
    dataset = SyntheticPolyps(1, 32)
    image, mask = dataset[0]
    assert image.shape == (3, 32, 32) and 0 < mask.mean() < 1
