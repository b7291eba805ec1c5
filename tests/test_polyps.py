"""Polyps from files to batches: tiny folders with every fault, the cache, the split, look-alikes, batches and augmentation."""

import multiprocessing
import os
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference
from PIL import Image
from torch.utils.data import Subset

from coursekit.data import Augment, Batches, DataError, KvasirSEG, Pairs, near_duplicates, polyps, split
from coursekit.data import cache as cache_module
from coursekit.data.augment import colour

SIZES = {"a": (40, 30), "b": (25, 50), "c": (32, 32)}  # width, height


@pytest.fixture(autouse=True)
def data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSEKIT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def root(tmp_path):
    """Three pairs of different sizes: left half of each mask black, right half white, with the noise of JPEG."""
    for folder in ("images", "masks"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"root/images/{name}.jpg")
        mask = np.zeros((height, width, 3), np.uint8)
        mask[:, width // 2 :] = 255
        Image.fromarray(mask).save(tmp_path / f"root/masks/{name}.jpg")
    return tmp_path / "root"


def write(path, array, mode=None):
    image = Image.fromarray(np.asarray(array, np.uint8))
    (image.convert(mode) if mode else image).save(path)


def forbid_decoding(monkeypatch):
    monkeypatch.setattr(polyps, "_decode", lambda *_: pytest.fail("decoded again"))


def random_pairs(count, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return Pairs(images, (images[:, :1] > 127).byte(), [f"frame-{i}" for i in range(count)])


# --- what is read ---------------------------------------------------------------------------------------------------------------------


def test_pairs_of_any_size_become_square_pairs(root):
    data = KvasirSEG(root, 16)
    assert data.names == ["a", "b", "c"] and len(data) == 3
    assert data.images.shape == (3, 3, 16, 16) and data.masks.shape == (3, 1, 16, 16)
    assert data.images.dtype == data.masks.dtype == torch.uint8 and set(data.masks.unique().tolist()) == {0, 1}
    image, mask = data[1]
    assert image.dtype == mask.dtype == torch.float32 and torch.equal(image * 255, data.images[1].float())
    assert torch.equal(mask, data.masks[1].float()) and not mask[..., :7].any() and mask[..., 9:].all()


def test_the_image_is_resized_bilinearly_with_antialiasing(root):
    data = KvasirSEG(root, 16)
    whole = torch.from_numpy(np.array(Image.open(root / "images" / "a.jpg"))).permute(2, 0, 1)
    assert (reference.resize(whole, [16, 16], antialias=True).int() - data.images[0].int()).abs().max() <= 1


def test_a_mask_is_thresholded_at_127_and_again_at_half(root):
    stripes = np.zeros((32, 32))
    stripes[:, 8:16] = 128  # two columns of 8, just above the threshold; a mean of grey values would drop them
    stripes[:, 16:24] = 127
    stripes[:, 28:] = 255
    write(root / "masks" / "c.png", stripes)
    (root / "masks" / "c.jpg").unlink()
    assert KvasirSEG(root, 8).masks[2, 0].unique(dim=0).tolist() == [[0, 0, 1, 1, 0, 0, 0, 1]]
    stripes[:, 6:8] = 255  # half of a column: the edge at its middle belongs to the polyp
    write(root / "masks" / "c.png", stripes)
    assert KvasirSEG(root, 8).masks[2, 0].unique(dim=0).tolist() == [[0, 1, 1, 1, 0, 0, 0, 1]]
    assert torch.equal(KvasirSEG(root, 32).masks[2, 0], torch.from_numpy(stripes > 127).byte()), "no change of size, no change"


@pytest.mark.parametrize("size", [9, 17, 32, 70])
def test_a_polyp_keeps_its_share(root, size):
    y, x = np.mgrid[:100, :100]
    disc = (x - 45) ** 2 + (y - 55) ** 2 < 30**2
    write(root / "images" / "c.jpg", np.repeat(255 * disc[..., None], 3, 2))
    write(root / "masks" / "c.jpg", 255 * disc)
    data = KvasirSEG(root, size)
    assert abs(data.masks[2].float().mean() - disc.mean()) < 0.2 / size
    bright = data.images[2].float().mean(0) > 127
    assert (bright != data.masks[2, 0].bool()).float().mean() < 0.2 / size, "image and mask lie upon each other"


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_images_become_rgb_and_metadata_is_passed_over(root, mode):
    (root / "images" / "c.jpg").unlink()
    Image.new(mode, (32, 32), 200).save(root / "images" / "c.png")
    (root / "images" / ".DS_Store").write_bytes(b"finder")
    (root / "masks" / "Thumbs.db").write_bytes(b"windows")
    (root / "masks" / ".ipynb_checkpoints").mkdir()
    assert (KvasirSEG(root, 8).images[-1] == (200 if mode == "L" else 255)).all()


def test_an_empty_mask_is_a_mask(root):
    write(root / "masks" / "a.jpg", np.zeros((30, 40)))
    assert KvasirSEG(root, 8).masks.sum((1, 2, 3)).tolist()[0] == 0


def test_without_a_root_the_registered_copy_is_fetched(root, monkeypatch):
    monkeypatch.setattr(polyps, "fetch", {"kvasir-seg": root}.__getitem__)
    assert KvasirSEG(size=8).names == ["a", "b", "c"]


# --- what is refused ------------------------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(folder):
    for path in folder.iterdir():
        path.unlink()


def drop(*names):
    return lambda root: [(root / name).unlink() for name in names]


def put(name, array, mode=None):
    return lambda root: write(root / name, array, mode)


FAULTS = {
    "missing mask": (drop("masks/b.jpg"), r"images/b\.jpg has no mask of that name in .*masks: add it"),
    "missing masks": (drop("masks/a.jpg", "masks/b.jpg"), r"images/a\.jpg has no mask .*\(and 1 more like it"),
    "mask without image": (drop("images/a.jpg"), r"masks/a\.jpg has no image of that name in .*images"),
    "different sizes": (put("masks/b.jpg", np.zeros((25, 50))), r"masks/b\.jpg has 50×25 pixels, its image 25×50"),
    "truncated image": (lambda root: cut(root / "images" / "c.jpg"), r"images/c\.jpg does not decode: (?i:.*truncated)"),
    "truncated mask": (lambda root: cut(root / "masks" / "a.jpg"), r"masks/a\.jpg does not decode"),
    "no image": (lambda root: (root / "images" / "b.jpg").write_text("<html>"), r"images/b\.jpg does not decode: cannot identify"),
    "empty file": (lambda root: (root / "images" / "b.jpg").write_bytes(b""), r"images/b\.jpg does not decode"),
    "same stem": (put("images/b.png", np.zeros((50, 25))), r"images/b\.png and b\.jpg differ in their endings only"),
    "CMYK": (put("images/b.jpg", np.zeros((50, 25, 3)), "CMYK"), r"images/b\.jpg is in mode CMYK.*save it as RGB"),
    "dim mask": (put("masks/b.jpg", np.ones((50, 25))), r"masks/b\.jpg has no pixel above 127, the brightest is 1:"),
    "mask at the threshold": (put("masks/b.jpg", np.full((50, 25), 127)), r"the brightest is 127:"),
    "a photograph for a mask": (put("masks/b.jpg", np.full((50, 25), 180)), r"b\.jpg is no black and white picture, 100% of"),
    "empty folder": (lambda root: [emptied(root / "images"), emptied(root / "masks")], r"root/images holds no files"),
    "no masks/": (lambda root: (root / "masks").rename(root / "labels"), r"root/masks is no folder.*must hold images/ and masks/"),
    "no images/": (lambda root: (root / "images").rename(root / "frames"), r"root/images is no folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_its_file(fault, root, data_root):
    spoil, message = FAULTS[fault]
    spoil(root)
    with pytest.raises(DataError, match=message):
        KvasirSEG(root, 8)
    assert not [path for path in data_root.rglob("*") if path.suffix == ".npy"]


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_modes_that_need_a_guess_are_refused(root, mode):
    (root / "images" / "c.jpg").unlink()
    if mode == "RGBA":
        write(root / "images" / "c.png", np.zeros((32, 32, 3)), mode)
    else:
        Image.fromarray(np.full((32, 32), 999, np.uint16)).save(root / "images" / "c.png")
    with pytest.raises(DataError, match=rf"c\.png is in mode {mode}"):
        KvasirSEG(root, 8)


@pytest.mark.parametrize("size", [0, -1, 8.0, True, "8"])
def test_an_impossible_size_is_refused(root, size):
    with pytest.raises(ValueError, match="size must be an int of at least 1"):
        KvasirSEG(root, size)
    assert KvasirSEG(root, 1).images.shape == (3, 3, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 8, 8)}, "images must be uint8"), ({"images": torch.zeros(2, 1, 8, 8).byte()}, "images must be"),
        ({"images": torch.zeros(2, 3, 8, 9).byte()}, "images must be"), ({"images": torch.zeros(3, 8, 8).byte()}, "images must be"),
        ({"masks": torch.zeros(2, 1, 8, 8)}, "masks must be uint8"), ({"masks": torch.zeros(1, 1, 8, 8).byte()}, r"shape \(2, 1, 8, 8\)"),
        ({"masks": torch.full((2, 1, 8, 8), 2).byte()}, "zeros and ones, got 2"), ({"names": ["a"]}, "got 1, 1 different"),
        ({"names": ["a", "a"]}, "2 different ones, one per image; got 2, 1 different"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_refused(change, message):
    right = {"images": torch.zeros(2, 3, 8, 8).byte(), "masks": torch.ones(2, 1, 8, 8).byte(), "names": ["a", "b"]}
    with pytest.raises(ValueError, match=message):
        Pairs(**right | change)


# --- the cache ------------------------------------------------------------------------------------------------------------------------


def test_the_second_time_nothing_is_decoded(root, monkeypatch, data_root):
    first = KvasirSEG(root, 16)
    forbid_decoding(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = KvasirSEG(root, 16)
    assert torch.equal(first.images, again.images) and torch.equal(first.masks, again.masks) and first.names == again.names
    (folder,) = [path for path in (data_root / "cache").iterdir() if path.is_dir()]
    assert {path.name for path in folder.iterdir()} == {"images.npy", "masks.npy", "sha256.json"}
    assert os.name == "nt" or folder.stat().st_mode & 0o777 == 0o755, "others may read it"
    assert sorted(path.name for path in root.iterdir()) == ["images", "masks"], "nothing is written beside the data"
    again.images.zero_()  # a copy of this process, not the file
    assert torch.equal(KvasirSEG(root, 16).images, first.images) and first.images.any()


def test_the_cache_goes_by_content_and_size(root, tmp_path):
    first = KvasirSEG(root, 16)
    assert KvasirSEG(root, 8).images.shape[-1] == 8
    stamp = (root / "images" / "a.jpg").stat()
    data = (root / "images" / "a.jpg").read_bytes()
    write(root / "images" / "a.jpg", np.zeros((30, 40, 3)))
    (root / "images" / "a.jpg").write_bytes((root / "images" / "a.jpg").read_bytes().ljust(len(data), b"\0"))
    os.utime(root / "images" / "a.jpg", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # neither time nor length tells
    assert not KvasirSEG(root, 16).images[0].any() and first.images[0].any()
    moved = root.rename(tmp_path / "elsewhere")
    (moved / "images" / "a.jpg").write_bytes(data)
    assert torch.equal(KvasirSEG(moved, 16).images, first.images)
    for folder in ("images", "masks"):
        (moved / folder / "b.jpg").rename(moved / folder / "z.jpg")
    assert KvasirSEG(moved, 16).names == ["a", "c", "z"] and torch.equal(KvasirSEG(moved, 16).images[2], first.images[1])


def test_a_cache_that_exists_may_be_read_only(root, monkeypatch):
    KvasirSEG(root, 16)
    forbid_decoding(monkeypatch)
    monkeypatch.setattr(cache_module, "FileLock", lambda path: pytest.fail("wrote a lock"))
    KvasirSEG(root, 16)


DAMAGES = {
    "flipped": lambda folder: (folder / "masks.npy").write_bytes((folder / "masks.npy").read_bytes()[:-1] + b"\7"),
    "cut": lambda folder: cut(folder / "images.npy"),
    "gone": lambda folder: (folder / "images.npy").unlink(),
    "no digests": lambda folder: (folder / "sha256.json").unlink(),
    "half digests": lambda folder: cut(folder / "sha256.json"),
    "no table": lambda folder: (folder / "sha256.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_noticed_and_made_again(damage, root, data_root, monkeypatch):
    first = KvasirSEG(root, 16)
    expected = first.images.clone(), first.masks.clone()
    del first
    (folder,) = [path for path in (data_root / "cache").iterdir() if path.is_dir()]
    DAMAGES[damage](folder)
    with pytest.warns(UserWarning, match="is damaged .*made again") as told:
        again = KvasirSEG(root, 16)
    assert told[0].filename == __file__, "the warning points at the caller"
    assert torch.equal(again.images, expected[0]) and torch.equal(again.masks, expected[1])
    forbid_decoding(monkeypatch)
    KvasirSEG(root, 16)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("saved", [1, 2])
def test_killed_while_writing_leaves_nothing_that_is_taken_for_a_cache(saved, root, data_root):
    def killed_in_the_middle():
        written = []
        right = np.save

        def save(path, array):
            right(path, array)
            written.append(path)
            if len(written) == saved:
                os.kill(os.getpid(), signal.SIGKILL)

        cache_module.np.save = save
        KvasirSEG(root, 16)

    child = multiprocessing.get_context("fork").Process(target=killed_in_the_middle)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(list((data_root / "cache").glob(".*.aside-*"))) == 1
    assert KvasirSEG(root, 16).images.shape == (3, 3, 16, 16)
    assert not list((data_root / "cache").glob(".*.aside-*")), "what the killed one left is cleared away"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_exception_while_writing_leaves_no_trace(error, root, data_root, monkeypatch):
    monkeypatch.setattr(cache_module.np, "save", lambda path, array: (_ for _ in ()).throw(error))
    with pytest.raises(error):
        KvasirSEG(root, 16)
    assert not [path for path in (data_root / "cache").iterdir() if path.is_dir()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_of_two_processes_at_once_one_decodes(root, tmp_path, monkeypatch):
    right, log = polyps._decode, tmp_path / "log"

    def logged(*arguments):
        with open(log, "a") as file:
            file.write("decoded\n")
        return right(*arguments)

    monkeypatch.setattr(polyps, "_decode", logged)
    children = [multiprocessing.get_context("fork").Process(target=KvasirSEG, args=(root, 16)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4 and log.read_text() == "decoded\n"


def test_where_nothing_can_be_written_it_works_in_memory_and_says_so(root, data_root, monkeypatch):
    expected = KvasirSEG(root, 16)
    for path in (data_root / "cache").iterdir():
        if path.is_dir():
            emptied(path)
            path.rmdir()
    with monkeypatch.context() as full:

        def disk_full(path, array):
            raise OSError(28, "No space left on device")

        full.setattr(cache_module.np, "save", disk_full)
        with pytest.warns(UserWarning, match=r"cannot be written .*No space left.*Set COURSEKIT_DATA"):
            data = KvasirSEG(root, 16)
    assert torch.equal(data.images, expected.images) and not [path for path in (data_root / "cache").iterdir() if path.is_dir()]
    data_root.joinpath("file").write_text("no folder")
    monkeypatch.setenv("COURSEKIT_DATA", str(data_root / "file"))
    with pytest.warns(UserWarning, match=r"cannot be written .*anew each time") as warned:
        assert torch.equal(KvasirSEG(root, 16).masks, expected.masks)
    assert warned[0].filename == __file__, "it points at the caller"


# --- split and look-alikes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "fractions", "sizes"),
    [(1000, (0.6, 0.2, 0.2), [600, 200, 200]), (11, (0.6, 0.2, 0.2), [7, 2, 2]), (10, (1 / 3, 1 / 3, 1 / 3), [4, 3, 3]),
     (5, (0.6, 0.2, 0.2), [3, 1, 1]), (8, (0.45, 0.55), [4, 4]), (100, (0.29, 0.71), [29, 71]), (3, (1,), [3]), (7, (0.65, 0.35), [5, 2])],
)  # fmt: skip
def test_split_is_exact_disjoint_and_whole(count, fractions, sizes):
    parts = split(random_pairs(count, 1), fractions)
    assert [len(part) for part in parts] == sizes
    assert sorted(i for part in parts for i in part.indices) == list(range(count))


def test_split_is_stable_under_the_seed_and_known_everywhere():
    data = random_pairs(20, 1)
    assert [part.indices for part in split(data)] == [part.indices for part in split(data)]
    assert split(data, seed=0)[2].indices == [1, 7, 15, 18], "the same on every machine and with every version"
    assert split(data, seed=1)[2].indices != split(data, seed=0)[2].indices


def test_a_pair_more_moves_few_and_the_order_of_files_none():
    data, more = random_pairs(100, 1), random_pairs(101, 1)
    before = {data.names[i]: part for part, subset in enumerate(split(data)) for i in subset.indices}
    after = {more.names[i]: part for part, subset in enumerate(split(more)) for i in subset.indices}
    assert sum(before[name] != after[name] for name in before) <= 2
    turned = Pairs(data.images.flip(0), data.masks.flip(0), data.names[::-1])
    assert before == {turned.names[i]: part for part, subset in enumerate(split(turned)) for i in subset.indices}


@pytest.mark.parametrize("fractions", [(0.6, 0.2), (0.6, 0.6, -0.2), (1.0, 0.0), (), (float("nan"), 1), (0.6, 0.4001)])
def test_fractions_that_are_none_are_refused(fractions):
    with pytest.raises(ValueError, match="positive and add up to 1"):
        split(random_pairs(10, 1), fractions)


def test_an_empty_part_is_refused():
    for call in (split, near_duplicates):
        for wrong, found in ((Subset(random_pairs(2, 1), [0]), "a Subset"), (5, "an? int"), (random_pairs(0), "none")):
            with pytest.raises(ValueError, match=f"dataset must hold images with their masks and names, at least one; got {found}"):
                call(wrong)
    with pytest.raises(ValueError, match=r"2 pairs split .* leave a part empty: \(1, 1, 0\)"):
        split(random_pairs(2, 1))


def scenes(count, seed=0):
    """Smooth random pictures, 64 pixels wide, brighter than black."""
    coarse = torch.rand(count, 3, 20, 20, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1) * 60 + 80


@pytest.mark.parametrize("seed", range(3))
def test_look_alikes_are_found(seed):
    images = scenes(30, seed)
    images[7] = images[3]
    images[12] = (images[5] * 0.7 + 10).roll((3, -2), (1, 2))  # darker, and moved
    images[18] = images[16]
    for x, y in ((20, 24), (40, 36)):
        images[18][:, y : y + 4, x : x + 4] = 255  # glare
    framed = torch.full((3, 80, 80), 10.0)
    framed[:, 6:70, 10:74] = images[20]
    images[25] = torch.nn.functional.interpolate(framed[None], (64, 64), mode="bilinear", antialias=True)[0]  # in a black border
    data = Pairs(images.round().byte(), torch.zeros(30, 1, 64, 64).byte(), [str(i) for i in range(30)])
    found = near_duplicates(data)
    assert {(i, j) for i, j, _ in found} == {(3, 7), (5, 12), (16, 18), (20, 25)}
    assert found[0][:2] == (3, 7) and 0 <= found[0][2] < 1e-5 and [d for *_, d in found] == sorted(d for *_, d in found)
    assert len(near_duplicates(data, threshold=2)) == 30 * 29 / 2 and near_duplicates(data, threshold=0) == []


def test_black_images_are_like_nothing_and_small_ones_refused():
    assert near_duplicates(Pairs(torch.zeros(2, 3, 32, 32).byte(), torch.zeros(2, 1, 32, 32).byte(), ["a", "b"])) == []
    with pytest.raises(ValueError, match="at least 32 pixels"):
        near_duplicates(random_pairs(2, 31))


# --- batches --------------------------------------------------------------------------------------------------------------------------


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("count", [10, 12])
def test_every_pair_comes_once_an_epoch(count, drop_last):
    data = random_pairs(count, 4)
    batches = Batches(data, 4, generator=seeded(), drop_last=drop_last)
    epochs = [list(batches) for _ in range(2)]
    sizes = [4, 4] if drop_last and count == 10 else [4, 4, count - 8]
    for epoch in epochs:
        assert [len(images) for images, _ in epoch] == sizes and len(batches) == len(sizes)
        images, masks = (torch.cat(part) for part in zip(*epoch, strict=True))
        assert images.dtype == masks.dtype == torch.float32
        came = [int((data.images.float() / 255 == image).all((1, 2, 3)).nonzero()) for image in images]
        assert len(set(came)) == len(came) == sum(sizes) and torch.equal(masks, data.masks[came].float())
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0]), "a new order each epoch"
    again = Batches(data, 4, generator=seeded(), drop_last=drop_last)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(epochs[0], again, strict=True))


def test_batches_of_a_part_in_order():
    data = random_pairs(10, 4)
    nested = Subset(Subset(data, [9, 4, 2, 0]), [3, 1, 0])
    ((images, masks),) = Batches(nested, 8, shuffle=False)
    assert torch.equal(images, data.images[[0, 4, 9]].float() / 255) and torch.equal(masks, data.masks[[0, 4, 9]].float())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"batch_size": 0}, "batch_size must be"), ({"batch_size": 2.0}, "batch_size must be"), ({"generator": None}, "need a generator"),
     ({"generator": None, "shuffle": False, "augment": Augment()}, "need a generator"),
     ({"batch_size": 11, "drop_last": True}, "make no batch of 11"),
     ({"data": Subset([1], [0])}, "must be Pairs or a Subset"), ({"data": Subset(random_pairs(3, 4), [])}, "0 pairs make no batch")],
)  # fmt: skip
def test_impossible_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batches(**{"data": random_pairs(10, 4), "batch_size": 4, "generator": seeded()} | arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_batches_on_the_gpu():
    data = random_pairs(20, 32)
    on_gpu = Batches(data, 8, generator=seeded(), device="cuda", augment=Augment())
    assert on_gpu.images.is_cuda
    for (a, b), (x, y) in zip(Batches(data, 8, generator=seeded(), augment=Augment()), on_gpu, strict=True):
        assert x.is_cuda and torch.allclose(a, x.cpu(), atol=1e-3) and (b != y.cpu()).float().mean() < 0.01


# --- augmentation ---------------------------------------------------------------------------------------------------------------------

STILL = {"flips": False, "quarter_turns": False, "degrees": 0, "scale": 1, "shift": 0}
COLOURLESS = {"brightness": 0, "contrast": 0, "saturation": 0}


def smooth(count=8, size=32, seed=0):
    coarse = torch.rand(count, 1, 5, 5, generator=seeded(seed))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


def test_nothing_asked_nothing_changed():
    images, masks = smooth().expand(-1, 3, -1, -1), (smooth() > 0.5).float()
    new, new_masks = Augment(**STILL | COLOURLESS)(images, masks, seeded())
    assert torch.allclose(new, images, atol=1e-4) and torch.equal(new_masks, masks)


@pytest.mark.parametrize("seed", range(10))
def test_image_and_mask_move_in_step(seed):
    masks = (smooth(16, seed=seed) > 0.5).float()
    images, moved = Augment(**COLOURLESS)(masks.expand(-1, 3, -1, -1), masks, seeded(seed))
    assert torch.equal((images[:, :1] >= 0.5).float(), moved) and set(moved.unique().tolist()) == {0, 1}
    changed = (moved != masks).float().mean((1, 2, 3))
    assert (changed > 0.02).float().mean() > 0.6, "most images were moved, each by itself"


def test_flips_and_turns_are_the_eight_symmetries_of_the_square():
    masks = torch.zeros(1, 1, 6, 6)
    masks[..., 0, 1] = masks[..., 0, 2] = masks[..., 2, 0] = 1
    eight = {tuple(torch.rot90(m, k, (2, 3)).flatten().tolist()) for m in (masks, masks.flip(3)) for k in range(4)}
    augment = Augment(**COLOURLESS | {"degrees": 0, "scale": 1, "shift": 0})
    many = masks.expand(800, -1, -1, -1)
    _, moved = augment(many.expand(-1, 3, -1, -1), many, seeded())
    shares = [sum(tuple(m.flatten().tolist()) == one for m in moved) / 800 for one in eight]
    assert len(eight) == 8 and sum(shares) == 1 and all(0.06 < share < 0.19 for share in shares)
    only_flips = Augment(**STILL | COLOURLESS | {"flips": True})(many.expand(-1, 3, -1, -1), many, seeded())[1]
    assert {tuple(m.flatten().tolist()) for m in only_flips} == {tuple(m.flatten().tolist()) for m in (masks, masks.flip(3))}


@pytest.mark.parametrize(
    ("asked", "low", "high"),
    [({"degrees": 20}, 0, 20), ({"scale": 1.5}, 1 / 1.5, 1.5), ({"shift": 0.25}, -0.25, 0.25)],
)  # fmt: skip
def test_ranges_are_kept_and_filled(asked, low, high):
    matrices = Augment(**STILL | COLOURLESS | asked).places(4000, seeded()).double()
    square = matrices[:, :, :2]
    degrees = torch.rad2deg(torch.atan2(square[:, 1, 0], square[:, 0, 0])).abs()
    values = {"degrees": degrees, "scale": square.det().rsqrt(), "shift": matrices[:, :, 2].flatten() / 2}
    for name, value in values.items():
        a, b = (low, high) if name in asked else (1, 1) if name == "scale" else (0, 0)
        slack = 0.01 * (b - a) + 1e-5
        assert a - 1e-5 <= value.min() <= a + slack and b - slack <= value.max() <= b + 1e-5
    if "scale" in asked:
        assert abs(values["scale"].log().mean()) < 0.02, "as often larger as smaller"


def test_a_turn_is_the_turn_it_says():
    images = smooth(1).expand(-1, 3, -1, -1)
    augment = Augment(**STILL | COLOURLESS | {"degrees": 90})
    angle = float(torch.rad2deg(torch.atan2(*augment.places(1, seeded(3))[0, :, 0].flip(0))))
    turned = augment(images, images[:, :1], seeded(3))[0]
    expected = reference.rotate(images, angle, interpolation=reference.InterpolationMode.BILINEAR)
    assert abs(angle) > 10 and torch.allclose(turned[..., 10:22, 10:22], expected[..., 10:22, 10:22], atol=1e-3)


def test_what_comes_in_from_outside_is_reflected():
    ones = torch.ones(8, 1, 16, 16)
    images, masks = Augment(**COLOURLESS | {"scale": 2, "shift": 0.5, "degrees": 180})(ones.expand(-1, 3, -1, -1), ones, seeded())
    assert masks.all() and torch.allclose(images, torch.ones(()), atol=1e-5)


def test_colours_are_torchvisions():
    images = torch.rand(6, 3, 8, 8, generator=seeded()) * 0.4 + 0.3
    factors = torch.rand(3, 6, generator=seeded(1)) * 0.4 + 0.8
    expected = []
    for image, (b, c, s) in zip(images, factors.T.tolist(), strict=True):
        changed = reference.adjust_contrast(reference.adjust_brightness(image, b), c)
        expected.append(reference.adjust_saturation(changed, s))
    assert torch.allclose(colour(images, *factors), torch.stack(expected), atol=1e-3)  # its greys have rounded weights
    clipped = colour(images, torch.full((6,), 9.0), torch.ones(6), torch.ones(6))
    assert torch.equal(clipped, torch.ones(6, 3, 8, 8))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_colour_is_drawn_for_each_image_within_its_range(name):
    one = torch.rand(1, 3, 8, 8, generator=seeded()) * 0.3 + 0.3
    many = one.expand(500, -1, -1, -1)
    new, masks = Augment(**STILL | COLOURLESS | {name: 0.3})(many, many[:, :1].round(), seeded())
    grey = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    centre = {"brightness": 0.0, "contrast": (one * grey).sum(1).mean(), "saturation": (one * grey).sum(1, keepdim=True)}[name]
    factor = ((new - centre) * (one - centre)).sum((1, 2, 3)) / ((one - centre) ** 2).sum()
    assert torch.allclose(new, (one - centre) * factor[:, None, None, None] + centre, atol=1e-4), "one factor explains all pixels"
    assert -1e-4 <= factor.min() - 0.7 < 0.01 and -0.01 < factor.max() - 1.3 <= 1e-4
    assert torch.equal(masks, many[:, :1].round())


@pytest.mark.parametrize("wrong", [{"degrees": 181}, {"degrees": -1}, {"scale": 0.9}, {"scale": 5}, {"shift": 1.1}, {"brightness": -0.1},
                                   {"contrast": 1.1}, {"saturation": 2}, {"shift": float("nan")}])  # fmt: skip
def test_impossible_ranges_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must lie in"):
        Augment(**wrong)


@pytest.mark.parametrize(("images", "masks"), [((2, 3, 8, 9), (2, 1, 8, 9)), ((2, 1, 8, 8), (2, 1, 8, 8)), ((2, 3, 8, 8), (1, 1, 8, 8))])
def test_wrong_shapes_are_refused(images, masks):
    with pytest.raises(ValueError, match="images must be"):
        Augment()(torch.zeros(images), torch.zeros(masks), seeded())


# --- the real data --------------------------------------------------------------------------------------------------------------------


def test_the_real_data():
    copy = Path(os.environ.get("COURSEKIT_REAL_DATA", "nowhere")) / "Kvasir-SEG"
    if not copy.is_dir():
        pytest.skip("set COURSEKIT_REAL_DATA to the folder that holds Kvasir-SEG")
    before = sorted(os.listdir(copy))
    data = KvasirSEG(copy, 64)
    assert len(data) == 1000 and sorted(os.listdir(copy)) == before
    shares = data.masks.float().mean((1, 2, 3))
    assert 0.003 < shares.min() < 0.01 and 0.8 < shares.max() < 0.83 and 0.11 < shares.median() < 0.12
    assert [len(part) for part in split(data)] == [600, 200, 200]
    same = [(i, j) for i, j, distance in near_duplicates(data) if distance < 0.02]
    assert len(same) >= 3, "the data set holds some frames twice"
