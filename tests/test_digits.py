import gzip
import importlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from coursekit.data import DataError, digits, mnist

module = importlib.import_module("coursekit.data.digits")   # in the package, the name is the function's


def test_digits_are_scikit_learns():
    images, labels = digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert labels.shape == (1797,) and labels.dtype == torch.int64 and set(labels.tolist()) == set(range(10))
    assert images.min() == 0 and images.max() == 1
    raw = load_digits()
    assert np.array_equal(images[:, 0].numpy() * 16, raw.images) and labels.tolist() == raw.target.tolist()


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
LABELS = np.arange(30, dtype=np.uint8) % 10


@pytest.fixture
def small(monkeypatch):
    """A part has 30 images, and nothing is ever downloaded."""
    monkeypatch.setattr(module, "_COUNTS", {"train": 30, "t10k": 30})
    asked = []

    def refuse(url, *_):
        asked.append(url)
        raise URLError("no network here")

    monkeypatch.setattr(module, "download_url", refuse)
    return asked


def put(folder, part="t10k", images=IMAGES, labels=LABELS, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
        content = idx(array)
        (folder / f"{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("place", ["", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("part", ["train", "t10k"])
def test_mnist_from_the_files_of_the_asked_part_alone(tmp_path, small, place, packed, part):
    put(tmp_path / place, part, packed=packed)
    images, labels = mnist(part == "train", tmp_path)
    assert images.shape == (30, 1, 28, 28) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert torch.equal((images[:, 0] * 255).round().byte(), torch.from_numpy(IMAGES)) and images.max() == 1
    assert labels.tolist() == LABELS.tolist() and not small
    with pytest.raises(DataError):
        mnist(part != "train", tmp_path)


def test_the_root_may_come_from_the_environment(tmp_path, small, monkeypatch):
    put(tmp_path)
    monkeypatch.setenv("COURSEKIT_DATA", str(tmp_path))
    assert len(mnist(False)[0]) == 30


def test_the_true_counts():
    assert module._COUNTS == {"train": 60_000, "t10k": 10_000}


def test_a_failed_download_says_what_to_do(tmp_path, small):
    with pytest.raises(DataError, match=r"(?s)not be downloaded.*t10k-images-idx3-ubyte\.gz: .*no network here.*put it into .*MNIST/raw"):
        mnist(False, tmp_path)
    assert len(small) == len(module.MNIST.mirrors)


def test_a_download_is_verified_kept_and_not_repeated(tmp_path, small, monkeypatch):
    put(tmp_path / "server", packed=True)
    fetched = []

    def download(url, folder, filename, md5):
        name = url.rsplit("/", 1)[1]
        assert md5 == dict(module.MNIST.resources)[name]
        if "//bad" in url:
            raise RuntimeError("File not found or corrupted.")
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, filename).write_bytes((tmp_path / "server" / name).read_bytes())
        fetched.append(name)

    monkeypatch.setattr(module, "download_url", download)
    monkeypatch.setattr(module.MNIST, "mirrors", ["http://bad/", "http://good/"])
    for _ in range(2):
        assert len(mnist(False, tmp_path)[0]) == 30
    assert len(fetched) == 2 and sorted(p.suffix for p in (tmp_path / "MNIST/raw").iterdir()) == [".gz", ".gz"]


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("t10k-images-idx3-ubyte", lambda b: b[:-1], "found 23535 bytes .* expected 23536"),
        ("t10k-images-idx3-ubyte", lambda b: b + b"\0", "found 23537 bytes"),
        ("t10k-images-idx3-ubyte", lambda b: b"<html>" + b[6:], "begin with 3c68746d6c3e"),
        ("t10k-labels-idx1-ubyte", lambda b: b"", "found 0 bytes"),
        ("t10k-labels-idx1-ubyte", lambda b: idx(LABELS[:29]) + b"\0", "begin with 000008010000001d.*begin with 000008010000001e"),
    ],
)
def test_a_corrupt_file_is_named_and_left(tmp_path, small, name, spoil, message):
    put(tmp_path)
    spoiled = spoil((tmp_path / name).read_bytes())
    (tmp_path / name).write_bytes(spoiled)
    with pytest.raises(DataError, match=f"(?s){name}.*{message}.*Put a right copy"):
        mnist(False, tmp_path)
    assert (tmp_path / name).read_bytes() == spoiled


@pytest.mark.parametrize("spoil", [lambda b: b[:-20], lambda b: b"no gzip at all", lambda b: b[:20] + bytes([b[20] ^ 255]) + b[21:]])
def test_a_corrupt_gz_is_named(tmp_path, small, spoil):
    put(tmp_path, packed=True)
    file = tmp_path / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz (cannot be read|is not)"):
        mnist(False, tmp_path)
