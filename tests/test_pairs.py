"""Where the fingerprints of look-alikes end, and the last values that masks, batches and augmentation take."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_polyps import COLOURLESS, random_pairs, scenes, seeded

from coursekit.data import Augment, Batches, Pairs, near_duplicates, pairs
from coursekit.data.polyps import decode_pair


def alike(*images, threshold=0.01):
    data = Pairs(torch.stack(images).round().byte(), torch.zeros(len(images), 1, 64, 64).byte(), [str(i) for i in range(len(images))])
    return bool(near_duplicates(data, threshold))


def test_where_a_picture_begins_and_ends():
    assert pairs._lit(np.array([0, 0.1, 0.2, 1, 0.16, 0.1])) == (2, 5) and pairs._lit(np.ones(4)) == (0, 4)
    assert pairs._lit(np.zeros(7)) == (0, 7), "all of a black picture"


def test_a_border_on_one_side_is_cut_off():
    framed = scenes(1).round().byte()
    framed[..., :20] = 0
    for here in (framed, framed.transpose(2, 3).contiguous()):
        whole = here[..., 20:] if here is framed else here[:, :, 20:]
        assert (pairs._thumbnails(here) - pairs._thumbnails(whole))[:, 3:-3, 3:-3].abs().max() < 0.01


def test_fingerprints():
    glare = scenes(1).round().byte()
    glare[..., 20:40, 20:40] = 255
    assert pairs._thumbnails(glare).abs().max() == pytest.approx(0.05), "an edge counts no more than a vessel"
    rows = pairs._unit(torch.rand(3, 4, 5) + 1)
    assert torch.allclose(rows.sum(1), torch.zeros(3), atol=1e-5) and torch.allclose(rows.norm(dim=1), torch.ones(3))


def test_corners_and_text_do_not_count():
    one, inner = scenes(1)[0], slice(6, -6)
    other = torch.rand(3, 64, 64, generator=seeded()) * 200 + 50
    other[:, inner, inner] = one[:, inner, inner]
    assert alike(one, other)


def test_an_image_of_one_colour_is_like_none():
    assert not alike(torch.zeros(3, 64, 64), torch.zeros(3, 64, 64), threshold=0.99)
    assert not alike(torch.full((3, 64, 64), 100.0), torch.full((3, 64, 64), 100.0), threshold=0.99)


@pytest.mark.parametrize("axis", [1, 2])
def test_shifts_of_two_thumbnail_pixels_are_found_and_of_three_not(axis):
    one = scenes(1)[0]
    assert all(alike(one, one.roll(shift, axis)) for shift in (4, -4)) and not any(alike(one, one.roll(shift, axis)) for shift in (6, -6))


@pytest.mark.parametrize(("free", "held"), [(384, True), (383, False)])
def test_the_gpu_holds_what_takes_half_of_its_free_memory(free, held, monkeypatch):
    data = random_pairs(3, 4)   # 192 bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: f"on {device}")
    batches = Batches(data, 1, shuffle=False, device="cuda")
    assert (batches.images, batches.masks) == ("on cuda", "on cuda") if held else batches.images is data.images


def test_batches_of_one():
    assert [len(images) for images, _ in Batches(random_pairs(3, 4), 1, shuffle=False)] == [1, 1, 1]


def test_a_mask_of_128_is_one(tmp_path):
    stripes = np.zeros((8, 8), np.uint8)
    stripes[:, 2:4] = 128
    for name in ("image.png", "mask.png"):
        Image.fromarray(stripes).save(tmp_path / name)
    assert (decode_pair(tmp_path / "image.png", tmp_path / "mask.png", 8)[1][0] == stripes // 128).all()


def test_half_a_mask_pixel_is_polyp(monkeypatch):
    half = torch.tensor([[[1, 0, 1 / 8], [0, 1, 0]]])   # half a pixel to the side
    monkeypatch.setattr(Augment, "places", lambda self, count, generator: half)
    masks = (torch.arange(8.0) >= 4).float().expand(1, 1, 8, 8)
    moved = Augment(**COLOURLESS)(masks.expand(-1, 3, -1, -1), masks, seeded())[1]
    assert moved[0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("masks_dtype", [torch.float64, torch.float32, torch.uint8])
def test_float64_images_are_changed_as_float32_ones_are(masks_dtype):
    images, masks = torch.rand(4, 3, 16, 16, generator=seeded()), (torch.arange(16) > 5).float().expand(4, 1, 16, 16)
    new, moved = Augment()(images.double(), masks.to(masks_dtype), seeded(1))
    expected, expected_masks = Augment()(images, masks, seeded(1))
    assert new.dtype == torch.float64 and moved.dtype == masks_dtype
    assert torch.allclose(new.float(), expected, atol=1e-4) and torch.equal(moved.float(), expected_masks)


def test_no_brightness_above_one():
    with pytest.raises(ValueError, match="brightness must lie in"):
        Augment(brightness=1.1)
