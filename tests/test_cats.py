"""AFHQ from files to tensors: what is cropped, what is refused, what is skipped, the cache, and the scale of pixels."""

import errno
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from PIL import Image

from coursekit.data import AFHQ, DataError, cats
from coursekit.data.pixels import to_pixels, to_signed

SIZES = {"cat": [(40, 30), (25, 50)], "dog": [(32, 32)], "wild": [(64, 33), (20, 20), (21, 20)]}  # width, height


@pytest.fixture(autouse=True)
def data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSEKIT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name, sizes in SIZES.items():
        (tmp_path / "root" / name).mkdir(parents=True)
        for i, (width, height) in enumerate(sizes):
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"root/{name}/{i}.jpg")
    return tmp_path / "root"


def forbid_decoding(monkeypatch):
    monkeypatch.setattr(cats, "_decode", lambda *_: pytest.fail("decoded again"))


# --- what is read ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data_class", "names"), [
    ("cat", ["cat/0.jpg", "cat/1.jpg"]), ("dog", ["dog/0.jpg"]),
    ("all", ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "wild/0.jpg", "wild/1.jpg", "wild/2.jpg"]),
])  # fmt: skip
def test_a_class_or_all(root, data_class, names):
    data = AFHQ(root, data_class, 16)
    assert data.names == names and len(data) == len(names)
    assert data.images.shape == (len(names), 3, 16, 16) and data.images.dtype == torch.uint8
    item = data[len(names) - 1]
    assert item.dtype == torch.float32 and torch.allclose((item + 1) * 127.5, data.images[-1].float(), atol=1e-4)
    assert item.min() >= -1 and item.max() <= 1


def test_black_is_minus_one_and_white_one(root):
    (root / "cat" / "0.jpg").unlink()
    Image.fromarray(np.repeat([[[0] * 3, [255] * 3]], 2, 0).astype(np.uint8)).save(root / "cat" / "1.jpg", quality=100, subsampling=0)
    assert AFHQ(root, "cat", 2)[0].flatten().tolist() == [-1, 1] * 6


def test_the_default_is_cats_at_32(root):
    (root / "cat" / "0.jpg").unlink()
    Image.new("RGB", (40, 40)).save(root / "cat" / "1.jpg")
    assert AFHQ(root).images.shape == (1, 3, 32, 32)


def test_without_a_root_the_training_part_of_the_registered_copy(root, monkeypatch):
    (root / "train").mkdir()
    (root / "cat").rename(root / "train" / "cat")
    monkeypatch.setattr(cats, "fetch", {"afhq": root}.__getitem__)
    assert AFHQ(size=16).names == ["cat/0.jpg", "cat/1.jpg"]


def test_the_shorter_side_becomes_the_size_antialiased_and_the_middle_stays(root):
    y, x = np.mgrid[:120, :192]
    smooth = np.stack([127 + 120 * np.sin(x / 17), 127 + 120 * np.cos(y / 13), x * 255 / 191], 2).astype(np.uint8)
    for array, name in ((smooth, "0.png"), (smooth.transpose(1, 0, 2), "1.png")):
        Image.fromarray(array).save(root / "dog" / name)
    (root / "dog" / "0.jpg").unlink()
    wide, high = AFHQ(root, "dog", 20).images.int()
    expected = reference.center_crop(reference.resize(torch.from_numpy(smooth).permute(2, 0, 1), [20], antialias=True), [20, 20]).int()
    assert (wide - expected).abs().max() <= 2 and torch.equal(high, wide.transpose(1, 2))
    stripes = np.zeros((80, 80, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(root / "dog" / "0.png")
    assert (AFHQ(root, "dog", 20).images[0].int() - 127).abs().max() < 20, "antialiased"


def test_no_change_of_size_no_change(root):
    whole = np.array(Image.open(root / "dog" / "0.jpg")).transpose(2, 0, 1)
    assert np.array_equal(AFHQ(root, "dog", 32).images[0], whole)


def test_an_orientation_tag_is_obeyed(root):
    (root / "dog" / "0.jpg").unlink()
    picture = Image.new("RGB", (16, 16))
    picture.paste((255, 255, 255), (0, 0, 16, 8))
    picture.save(root / "dog" / "0.png", exif=(exif := Image.Exif()).tobytes())
    exif[0x0112] = 6   # the stored left is the upper side
    picture.save(root / "dog" / "1.png", exif=exif.tobytes())
    upright, turned = AFHQ(root, "dog", 16).images
    assert torch.equal(turned, upright.rot90(-1, (1, 2))) and not torch.equal(turned, upright)


def test_a_folder_of_images_is_taken_for_all(root, tmp_path):
    data = AFHQ(str(root / "wild"), "all", 16)
    assert data.names == ["0.jpg", "1.jpg", "2.jpg"] and torch.equal(data.images, AFHQ(root, "wild", 16).images)
    with pytest.raises(DataError, match=r"wild has no folder cat, needed for data_class 'cat': it holds none of .* say data_class 'all'$"):
        AFHQ(root / "wild", "cat", 16)


def test_metadata_and_folders_are_passed_over(root):
    (root / "cat" / ".DS_Store").write_bytes(b"finder")
    (root / "cat" / "Thumbs.db").write_bytes(b"windows")
    (root / "cat" / ".ipynb_checkpoints").mkdir()
    assert len(AFHQ(root, "cat", 16)) == 2


# --- what is refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_class", ["cats", "", None, "Cat"])
def test_an_unknown_class_is_answered_with_the_right_ones(root, data_class):
    with pytest.raises(ValueError, match="data_class must be 'all', 'cat', 'dog' or 'wild', got"):
        AFHQ(root, data_class)


@pytest.mark.parametrize("size", [0, -1, 8.0, True])
def test_an_impossible_size_is_refused(root, size):
    with pytest.raises(ValueError, match="size must be an int of at least 1"):
        AFHQ(root, "cat", size)
    assert AFHQ(root, "cat", 1).images.shape == (2, 3, 1, 1)


def test_missing_and_empty_folders_are_named(root, tmp_path):
    with pytest.raises(DataError, match=r"nowhere is no folder. Name one with cat/, dog/ and wild/"):
        AFHQ(tmp_path / "nowhere")
    (root / "cat").rename(tmp_path / "cats")
    with pytest.raises(DataError, match=r"root has no folder cat, needed for data_class 'cat': there is dog, wild$"):
        AFHQ(root, "cat")
    (root / "wild").rename(tmp_path / "wild")
    with pytest.raises(DataError, match=r"root has no folder cat, wild, needed for data_class 'all': there is dog$"):
        AFHQ(root, "all")
    (root / "dog" / "0.jpg").unlink()
    with pytest.raises(DataError, match=r"dog holds no files: put the pictures there"):
        AFHQ(root, "dog")
    with pytest.raises(DataError, match=r"dog holds no files"):
        AFHQ(root / "dog", "all")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save(mode, size=(40, 40)):
    return lambda path: Image.new(mode, size, 1).save(path, "PNG" if mode in ("RGBA", "P") else "JPEG")


FAULTS = {
    "truncated": (cut, "does not decode: .*truncated"),
    "text": (lambda path: path.write_text("<html>"), r"does not decode: cannot identify image file '0\.jpg'"),
    "empty": (lambda path: path.write_bytes(b""), "does not decode"),
    "an offset beyond every file": (lambda path: path.write_bytes(b"II\x2b\0\x08" + bytes(10) + b"\x40"), "does not decode"),
    "greyscale": (save("L"), "is in mode L, not RGB, so its colours are not known: save it as RGB"),
    "CMYK": (save("CMYK"), "is in mode CMYK, not RGB"),
    "transparent": (save("RGBA"), "is in mode RGBA, not RGB"),
    "palette": (save("P"), "is in mode P, not RGB"),
    "narrow": (save("RGB", (15, 40)), "has 15×40 pixels, fewer than 16 on a side: leave it out, or take a smaller size"),
    "low": (save("RGB", (40, 15)), "has 40×15 pixels, fewer than 16 on a side"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_named_and_skipped_only_when_asked(fault, root, tmp_path):
    spoil, message = FAULTS[fault]
    spoil(root / "cat" / "0.jpg")
    for _ in range(2):   # decoded, and from the cache
        with pytest.raises(DataError, match=rf"(?s)1 of the 2 files in .*root cannot be used:\n  cat/0\.jpg {message}.*skip_bad=True"):
            AFHQ(root, "cat", 16)
    root = root.rename(tmp_path / "moved")
    for _ in range(2):
        told = rf"(?s)1 of the 2 files in .*moved cannot be used:\n  cat/0\.jpg {message}.*\nThey are left out"
        with pytest.warns(UserWarning, match=told) as seen:
            data = AFHQ(root, "cat", 16, skip_bad=True)
        assert seen[0].filename == __file__
        assert data.names == ["cat/1.jpg"] and len(data) == 1
        whole = torch.from_numpy(np.array(Image.open(root / "cat" / "1.jpg"))).permute(2, 0, 1)
        expected = reference.center_crop(reference.resize(whole, [16], antialias=True), [16, 16])
        assert (data.images[0].int() - expected.int()).float().abs().mean() < 8, "the picture that is left, not another"


def test_a_fault_of_the_machine_is_not_remembered_as_the_files(root, monkeypatch, data_root):
    def refuse(path, opened=Image.open):
        if path.name == "0.jpg":
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return opened(path)

    with monkeypatch.context() as full:
        full.setattr(Image, "open", refuse)
        with pytest.raises(OSError, match=r"^\[Errno 24\] Too many open files: .*cat/0\.jpg'$"):
            AFHQ(root, "cat", 16, skip_bad=True)
    assert not list(data_root.rglob("*.npy")) and len(AFHQ(root, "cat", 16)) == 2


def test_many_bad_files_are_named_together(root):
    for i in range(2, 8):
        (root / "cat" / f"{i}.jpg").write_text("no picture")
    with pytest.raises(DataError) as error:
        AFHQ(root, "cat", 16)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("6 of the 8 files") and [line.split()[0] for line in lines[1:6]] == [f"cat/{i}.jpg" for i in range(2, 7)]
    assert lines[6:] == ["  and 1 more", "Mend or remove them, or leave them out with skip_bad=True"]
    (root / "cat" / "7.jpg").unlink()
    with pytest.raises(DataError) as error:
        AFHQ(root, "cat", 16)
    assert len(str(error.value).splitlines()) == 7 and "more" not in str(error.value)
    with pytest.warns(UserWarning, match="5 of the 7 files"):
        assert AFHQ(root, "cat", 16, skip_bad=True).names == ["cat/0.jpg", "cat/1.jpg"]


def test_where_no_file_is_good_none_can_be_skipped(root, data_root):
    cut(root / "dog" / "0.jpg")
    for skip_bad in (False, True):
        with pytest.raises(DataError, match=r"(?s)1 of the 1 files in .*dog/0\.jpg does not decode.*None is left: is it the right"):
            AFHQ(root, "dog", 16, skip_bad=skip_bad)
    assert not list(data_root.rglob("*.npy"))


# --- the cache ------------------------------------------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_decoded(root, monkeypatch, data_root):
    first = AFHQ(root, "all", 16)
    forbid_decoding(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = AFHQ(root, "all", 16)
    assert torch.equal(first.images, again.images) and first.names == again.names
    (folder,) = [path for path in (data_root / "cache").iterdir() if path.is_dir()]
    assert folder.name.startswith("afhq-16-") and np.load(folder / "images.npy").shape == (6, 3, 16, 16)
    again.images.zero_()   # a copy of this process, not the file
    assert AFHQ(root, "all", 16).images.any()


def test_the_cache_goes_by_content_name_and_size(root):
    first = AFHQ(root, "cat", 16)
    assert AFHQ(root, "cat", 8).images.shape[-1] == 8
    stamp, length = (root / "cat" / "0.jpg").stat(), (root / "cat" / "0.jpg").stat().st_size
    Image.new("RGB", (40, 30)).save(root / "cat" / "0.jpg")
    (root / "cat" / "0.jpg").write_bytes((root / "cat" / "0.jpg").read_bytes().ljust(length, b"\0"))
    os.utime(root / "cat" / "0.jpg", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))   # neither time nor length tells
    assert not AFHQ(root, "cat", 16).images[0].any() and first.images[0].any()
    (root / "cat" / "0.jpg").rename(root / "cat" / "2.jpg")
    renamed = AFHQ(root, "cat", 16)
    assert renamed.names == ["cat/1.jpg", "cat/2.jpg"] and torch.equal(renamed.images[0], first.images[1]) and not renamed.images[1].any()


# --- the scale of pixels -------------------------------------------------------------------------------------------------------------


def test_pixels_there_and_back():
    pixels = torch.arange(256).to(torch.uint8).reshape(2, 2, 8, 8)
    x = to_signed(pixels)
    assert x.dtype == torch.float32 and torch.equal(to_pixels(x), pixels) and torch.equal(to_pixels(x.double()), pixels)
    assert x.flatten()[[0, 51, 255]].tolist() == pytest.approx([-1, -0.6, 1], abs=1e-7)
    assert to_pixels(torch.tensor([-1.5, -1.0, 0.0, 0.004, 0.1, 1.0, 1.02])).tolist() == [0, 0, 128, 128, 140, 255, 255]
    for wrong in (pixels.float(), pixels.int()):
        with pytest.raises(ValueError, match="pixels must be uint8, 0 … 255, got torch"):
            to_signed(wrong)


# --- the real data --------------------------------------------------------------------------------------------------------------------


def real(name):
    copy = Path(os.environ.get("COURSEKIT_REAL_DATA", "nowhere")) / name
    if not copy.is_dir():
        pytest.skip(f"set COURSEKIT_REAL_DATA to the folder that holds {name}")
    return copy


def test_the_real_cats():
    data = AFHQ(real("afhq-64") / "train", "cat", 32)
    assert data.images.shape == (5153, 3, 32, 32) and data.names[0] == "cat/flickr_cat_000002.jpg"
    assert np.allclose(data.images.float().mean((0, 2, 3)), [127.2, 116.5, 103.7], atol=0.5), "warm colours"


def test_the_original_cats():
    folder = real("afhq-512") / "val"
    large, small = AFHQ(folder, "cat", 512), AFHQ(folder, "cat", 64)
    assert large.images.shape == (33, 3, 512, 512)
    means = large.images.float().reshape(33, 3, 64, 8, 64, 8).mean((3, 5))
    assert (small.images.float() - means).abs().mean() < 3
