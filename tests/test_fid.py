"""Distances against closed forms, sqrtm, double loops and clean-fid's own; the small feature network; Inception's path with a stand-in."""

import hashlib
import inspect
import io
import warnings
from http.client import IncompleteRead
from itertools import pairwise, product
from urllib.error import URLError

import cleanfid.fid
import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch import nn

from coursekit import fid
from coursekit.data import DataError, digits
from coursekit.fid import FeatureNet, compare, feature_statistics, frechet_distance, inception_features, kernel_distance, train_features

F64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=seeded(seed))


def spread(n, d, seed=0, power=1.0):
    """Features whose variances fall over two to four orders of magnitude, as Inception's do."""
    return normal(n, d, seed=seed) * torch.arange(1, d + 1, dtype=F64) ** (-power / 2)


def distance(x, y):
    return frechet_distance(*feature_statistics(x), *feature_statistics(y))


# --- statistics and the Fréchet distance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1), (2, 5), (40, 7)])
@pytest.mark.parametrize("kind", [lambda x: x, lambda x: x.float(), lambda x: x.numpy(), lambda x: x.clone().requires_grad_()])
def test_statistics_are_numpys(shape, kind):
    x = normal(*shape)
    mean, cov = feature_statistics(kind(x))
    assert mean.dtype == cov.dtype == F64 and cov.shape == (shape[1], shape[1]) and not cov.requires_grad
    assert np.allclose(mean, x.numpy().mean(0), atol=1e-6) and np.allclose(cov, np.cov(x.numpy(), rowvar=False), atol=1e-6)


def test_shift_scaling_rotation_and_symmetry():
    x = spread(300, 12) + 3
    assert distance(x, x) < 1e-12
    assert distance(x, x + normal(12, seed=1)) == pytest.approx(normal(12, seed=1).square().sum().item(), rel=1e-9)
    mean, cov = feature_statistics(x)
    for a in (0.5, 3.0, -2.0):
        expected = (abs(a) - 1) ** 2 * cov.trace() + (a - 1) ** 2 * mean.square().sum()   # a < 0 turns the mean, not the covariance
        assert distance(x, a * x) == pytest.approx(expected.item(), rel=1e-9)
    y = spread(200, 12, seed=2) @ normal(12, 12, seed=3)
    rotation = torch.linalg.qr(normal(12, 12, seed=4))[0]
    assert distance(x @ rotation, y @ rotation) == pytest.approx(distance(x, y), rel=1e-9)
    assert distance(y, x) == pytest.approx(distance(x, y), rel=1e-9) and distance(x, y) > 1


def test_diagonal_covariances_have_a_closed_form():
    a, b = torch.tensor([4.0, 9, 0, 1]), torch.tensor([1.0, 0, 25, 16])
    assert frechet_distance(torch.zeros(4), a.diag(), torch.zeros(4), b.diag()) == pytest.approx(1 + 9 + 25 + 9, rel=1e-12)
    assert frechet_distance([1.0], [[4.0]], [3.0], [[9.0]]) == pytest.approx(4 + 1)
    assert frechet_distance(np.zeros(2), np.zeros((2, 2)), np.ones(2), np.zeros((2, 2))) == 2, "two points"


@pytest.mark.parametrize(("n", "m", "d"), [(500, 700, 64), (500, 400, 1), (300, 90, 64)])
def test_equals_sqrtm_and_clean_fids_own(n, m, d):
    x, y = spread(n, d), spread(m, d, seed=1) * 1.3 + 0.1
    (m_1, s_1), (m_2, s_2) = feature_statistics(x), feature_statistics(y)
    root = scipy.linalg.sqrtm((s_1 @ s_2).numpy())
    expected = (m_1 - m_2).square().sum().item() + s_1.trace().item() + s_2.trace().item() - 2 * np.trace(root).real
    assert distance(x, y) == pytest.approx(expected, rel=1e-6)
    if d > 1 and "disp" in inspect.signature(scipy.linalg.sqrtm).parameters:   # clean-fid needs it; SciPy 1.18 has it no more
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            assert distance(x, y) == pytest.approx(cleanfid.fid.frechet_distance(*(s.numpy() for s in (m_1, s_1, m_2, s_2))), rel=1e-6)


@pytest.mark.parametrize("power", [0, 1, 2])
@pytest.mark.parametrize(("n", "m"), [(40, 25), (25, 40), (300, 25), (25, 300), (2, 2), (300, 400)])
def test_fewer_images_than_features(n, m, power):
    """tr (Σ₁Σ₂)^½ is the nuclear norm of the Gram matrix of the centred features: no covariance, and no rounding to speak of."""
    x, y = spread(n, 100, 1, power) + 1, spread(m, 100, 2, power)
    centred = (x - x.mean(0)) @ (y - y.mean(0)).T / ((n - 1) * (m - 1)) ** 0.5
    variances = x.var(0).sum() + y.var(0).sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + variances - 2 * torch.linalg.svdvals(centred).sum()
    assert distance(x, y) == pytest.approx(expected.item(), rel=1e-8)
    assert distance(x, x) < 1e-9 * variances


def test_the_distance_is_never_negative_and_large_numbers_are_no_trouble():
    for seed in range(20):
        x = spread(30, 40, seed)
        assert distance(x, x.flip(0)) >= 0
    x, y = spread(200, 20), spread(200, 20, 1)
    assert distance(1e8 * x, 1e8 * y) == pytest.approx(1e16 * distance(x, y), rel=1e-9)
    assert distance(1e-8 * x, 1e-8 * y) == pytest.approx(1e-16 * distance(x, y), rel=1e-9)


@pytest.mark.parametrize("n", [100, 512, 10_000])
def test_two_samples_of_one_gaussian_are_apart_by_their_size(n):
    """To first order in 1/n the means are 2D/n apart, and the covariances ¼ ‖S₁ − S₂‖² = D(D+1)/2n; ten seeds stayed within 6 %."""
    seen = [distance(normal(n, 64, seed=seed), normal(n, 64, seed=seed + 1)) for seed in (0, 2, 4)]
    assert sum(seen) / 3 == pytest.approx((2 * 64 + 64 * 65 / 2) / n, rel=0.1)


SIGMA = torch.eye(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feature_statistics(torch.zeros(1, 3)), r"features must have shape \(N, D\), at least two rows, got \(1, 3\)"),
        (lambda: feature_statistics(torch.zeros(4)), "features must have shape"),
        (lambda: feature_statistics(torch.tensor([[1.0], [np.nan]])), "features holds numbers that are not finite"),
        (lambda: frechet_distance(torch.zeros(3), SIGMA, torch.zeros(2), torch.eye(2)), "as many features, got 3 and 2"),
        (lambda: frechet_distance(torch.zeros(2), SIGMA, torch.zeros(3), SIGMA), r"mean_1 and cov_1 .* got \(2,\) and \(3, 3\)"),
        (lambda: frechet_distance(torch.zeros(3), SIGMA, torch.zeros(3, 1), SIGMA), "mean_2 and cov_2"),
        (lambda: frechet_distance(torch.zeros(3), SIGMA, torch.zeros(3), SIGMA * np.inf), "cov_2 holds numbers"),
        (lambda: frechet_distance(torch.zeros(3), SIGMA, torch.zeros(3), SIGMA.roll(1, 0)), "cov_2 is no covariance: it is not symm"),
        (lambda: frechet_distance(torch.zeros(3), -SIGMA, torch.zeros(3), SIGMA), "cov_1 is no covariance: it has the eigenvalue -1"),
        (lambda: frechet_distance([0, 0], [[1, 0], [0, 1]], [0, 0], [[1, 2], [2, 1]]), "cov_2 .* the eigenvalue -1"),
        (lambda: frechet_distance([0, 0], 1e-16 * np.eye(2), [0, 0], 1e-16 * np.array([[1, 2], [2, 1]])), "cov_2 .* the eigenvalue -1e-16"),
        (lambda: frechet_distance([0, 0], [[1, 0.5], [0.501, 1]], [0, 0], np.eye(2)), "cov_1 is no covariance: it is not symm"),
        (lambda: kernel_distance(torch.zeros(3, 2), torch.zeros(1, 2)), "features_2 must have shape"),
        (lambda: kernel_distance(torch.zeros(3, 2), torch.zeros(3, 1)), "as many features, got 2 and 1"),
    ],
)
def test_what_has_no_distance_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rounding_is_no_fault_of_a_covariance():
    cov = torch.diag(torch.tensor([1.0, -1e-9], dtype=F64))
    assert frechet_distance([0, 0], cov, [0, 0], torch.eye(2)) == pytest.approx(1, abs=1e-6)
    nearly = torch.tensor([[2.0, 1.0], [1.0 + 1e-7, 2.0]], dtype=F64)
    assert frechet_distance([0, 0], nearly, [0, 0], nearly) < 1e-6
    x, y = spread(40, 60), spread(25, 60, 1)   # in float32 their covariances, of rank 39 and 24, have negative eigenvalues
    coarse = [part.float() for part in (*feature_statistics(x), *feature_statistics(y))]
    assert torch.linalg.eigvalsh(coarse[1].double())[0] < 0 and frechet_distance(*coarse) == pytest.approx(distance(x, y), rel=1e-3)
    mean_1, cov_1, mean_2, cov_2 = (part.double() for part in coarse)
    for unit in (2.0**-20, 2.0**20):   # what is taken for rounding goes with the unit of the features
        scaled = frechet_distance(unit * mean_1, unit**2 * cov_1, unit * mean_2, unit**2 * cov_2)
        assert scaled == pytest.approx(unit**2 * frechet_distance(*coarse), rel=1e-9)


def test_a_singular_covariance_is_cheap_and_needs_no_eigenvectors(monkeypatch):
    monkeypatch.setattr(torch.linalg, "eigh", lambda _: pytest.fail("the eigenvectors of all features"))
    sizes, eigvalsh = [], torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda m: (sizes.append(m.shape), eigvalsh(m))[1])
    for n, m in ((40, 25), (25, 40), (300, 25), (300, 400)):
        distance(spread(n, 100), spread(m, 100, 1))
    assert sizes == [(24, 24), (24, 24), (24, 24), (100, 100)], "as many as the smaller one has images, less one"


# --- the kernel distance --------------------------------------------------------------------------------------------------------------


def test_kernel_distance_is_its_double_loop():
    x, y = normal(7, 3), normal(5, 3, seed=1) + 0.5

    def k(a, b):
        return (sum(p * q for p, q in zip(a.tolist(), b.tolist(), strict=True)) / 3 + 1) ** 3

    within_x = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    within_y = sum(k(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / (5 * 4)
    expected = within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (7 * 5)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12) and kernel_distance(y.numpy(), x) == pytest.approx(expected)


def test_kernel_distance_of_many_is_that_of_all_pairs():
    x, y = normal(1500, 4), normal(1100, 4, seed=1)
    k = [(a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    means = [(m.sum() - m.trace()) / (len(m) * (len(m) - 1)) for m in k[:2]]
    assert kernel_distance(x, y) == pytest.approx((means[0] + means[1] - 2 * k[2].mean()).item(), rel=1e-9)


def test_kernel_distance_is_clean_fids_where_that_takes_all_features():
    """Its subsets are drawn without repetition: subsets of all features are all features, in another order."""
    x, y = spread(60, 9).numpy(), 1.2 * spread(60, 9, 1).numpy() + 0.3
    assert kernel_distance(x, y) == pytest.approx(cleanfid.fid.kernel_distance(x, y, num_subsets=3, max_subset_size=60), rel=1e-10)


def test_kernel_distance_has_the_right_mean_over_all_samples_there_are():
    """Two laws on two points each, samples of two and three: summed over every outcome, and beside the discrepancy of the laws."""
    a, b = torch.tensor([[0.0, 2], [1, 1]], dtype=F64), torch.tensor([[1.0, 3], [-2, 0]], dtype=F64)
    means = [((u @ v.T / 2 + 1) ** 3).mean() for u, v in ((a, a), (b, b), (a, b))]
    outcomes = [kernel_distance(a[list(i)], b[list(j)]) for i in product((0, 1), repeat=2) for j in product((0, 1), repeat=3)]
    assert sum(outcomes) / len(outcomes) == pytest.approx((means[0] + means[1] - 2 * means[2]).item(), rel=1e-12)


def test_kernel_distance_has_no_bias_at_any_size():
    for n in (5, 20):
        same = torch.tensor([kernel_distance(normal(n, 8, seed=s), normal(2 * n, 8, seed=s + 10_000)) for s in range(400)])
        assert same.min() < 0 and abs(same.mean()) < 4 * same.std() / 20


# --- the small network ----------------------------------------------------------------------------------------------------------------


SHAPES = [(1, 8, 10, 4), (3, 32, 4, 4), (3, 64, 4, 4), (1, 28, 10, 4), (3, 3, 2, 3), (1, 9, 2, 3)]


@pytest.mark.parametrize(("channels", "size", "classes", "side"), SHAPES)
def test_network_shapes(channels, size, classes, side):
    net, x = FeatureNet(channels, size, classes), torch.rand(5, channels, size, size)
    features = net.features(x)
    assert net(x).shape == (5, classes) and features.shape == (5, 64)
    assert torch.equal(net(x), net.head(features))
    assert torch.allclose(features.mean(1), torch.zeros(5), atol=1e-5)
    assert torch.allclose(features.var(1, correction=0), torch.ones(5), atol=0.1)
    convolutions = [layer for layer in net.body if isinstance(layer, nn.Conv2d)]
    assert convolutions[-1].out_channels == 128 and next(m for m in net.body if isinstance(m, nn.Linear)).in_features == 128 * side**2
    for narrow, wide in pairwise(convolutions):
        assert wide.out_channels == 2 * narrow.out_channels or narrow.out_channels == 8
    for wrong in (x[0], x[:, :, 1:], torch.rand(5, channels + 1, size, size)):
        with pytest.raises(ValueError, match=rf"images must be \(B, {channels}, {size}, {size}\)"):
            net(wrong)


def held_out(seed):
    images, labels = digits()
    generator = seeded(seed)
    order = torch.randperm(len(images), generator=generator)
    return images[order] * 2 - 1, labels[order], generator


def test_it_recognises_held_out_digits_and_knows_how_surely():
    images, labels, generator = held_out(0)
    net = train_features(images[:1437], labels[:1437], generator=generator)
    with torch.no_grad():
        probabilities = net(images[1437:]).softmax(1)
    accuracy, confidence = (probabilities.argmax(1) == labels[1437:]).float().mean(), probabilities.amax(1).mean()
    assert not net.training and accuracy >= 0.97 and abs(confidence - accuracy) < 0.03


def oriented(count, seed=0):
    """Noise on a slope that brightens downwards."""
    images = torch.linspace(-0.5, 0.5, 8).view(1, 1, 8, 1) + 0.1 * torch.randn(count, 3, 8, 8, generator=seeded(seed))
    return ((images.clamp(-1, 1) + 1) * 127.5).byte()


def test_without_labels_it_learns_which_way_is_up():
    net = train_features(oriented(256), epochs=8, generator=seeded())
    images = oriented(50, seed=1).float() / 127.5 - 1
    with torch.no_grad():
        guesses = [net(images.rot90(turn, (2, 3))).argmax(1) for turn in range(4)]
    assert net.head.out_features == 4
    assert all((guess == turn).float().mean() > 0.95 for turn, guess in enumerate(guesses))


def test_turned():
    images = torch.rand(200, 3, 5, 5)
    turned, turns = fid._turned(images, seeded())
    assert turns.bincount().tolist() == pytest.approx([50] * 4, abs=20)
    for image, new, turn in zip(images, turned, turns.tolist(), strict=True):
        assert torch.equal(new, torch.rot90(image, turn, (1, 2)))


def test_training_hangs_on_its_generator_alone():
    images, before = oriented(100), torch.get_rng_state()
    one, same, other, floats = (
        torch.cat([p.flatten() for p in train_features(data, labels, epochs=2, generator=seeded(seed), batch_size=64).parameters()])
        for data, seed, labels in ((images, 0, None), (images, 0, None), (images, 1, None), (images.float() / 127.5 - 1, 0, None))
    )
    assert torch.equal(one, same) and torch.equal(one, floats) and not torch.allclose(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_image_comes_once_an_epoch(monkeypatch):
    seen, forward = [], FeatureNet.forward
    monkeypatch.setattr(FeatureNet, "forward", lambda net, x: (seen.append(x[:, 0, 0, 0]), forward(net, x))[1])
    images = (torch.arange(70) / 100).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    for epochs in (1, 2):
        seen.clear()
        train_features(images, torch.arange(70) % 3, epochs=epochs, generator=seeded(), batch_size=32)
        assert [len(batch) for batch in seen] == [32, 32, 6] * epochs
    for epoch in (torch.cat(seen[:3]), torch.cat(seen[3:])):
        assert torch.equal(epoch.sort().values, images[:, 0, 0, 0]) and not torch.equal(epoch, images[:, 0, 0, 0])


def test_the_learning_rate_rises_and_falls_over_the_run(monkeypatch):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda adam, *args: (rates.append(adam.param_groups[0]["lr"]), step(adam, *args))[1])
    train_features(torch.zeros(70, 1, 4, 4), torch.arange(70) % 3, epochs=7, generator=seeded(), batch_size=32)
    assert len(rates) == 21 and rates[0] == pytest.approx(3e-3 / 25) and rates[-1] == pytest.approx(3e-3 / 25e4)
    assert 0.9 * 3e-3 < max(rates) <= 3e-3


IMAGES = torch.zeros(6, 1, 8, 8)


@pytest.mark.parametrize(
    ("images", "labels", "epochs", "message"),
    [
        (IMAGES[0], None, 1, r"images must have shape \(N, C, S, S\), got \(1, 8, 8\)"),
        (IMAGES[:, :, 1:], None, 1, "images must have shape"), (IMAGES[:0], None, 1, "images must have shape"),
        (IMAGES + 1.01, None, 1, r"images must be uint8, or float in -1 … 1, got torch.float32 in 1.01 … 1.01"),
        (IMAGES.long(), None, 1, "got torch.int64"), (IMAGES * np.nan, None, 1, "float in -1 … 1"),
        (IMAGES, torch.arange(5), 1, r"labels must be 6 integers from 0, one per image; got torch.int64 \(5,\)"),
        (IMAGES, torch.arange(6.0), 1, "labels must be"), (IMAGES, torch.arange(6) - 1, 1, "labels must be"),
        (IMAGES, None, 0, "epochs must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_refused(images, labels, epochs, message):
    with pytest.raises(ValueError, match=message):
        train_features(images, labels, epochs=epochs, generator=seeded())


# --- the comparison -------------------------------------------------------------------------------------------------------------------


def flat(images):
    return images.flatten(1)[:, :6]


def random_images(count, seed=0, size=4):
    return torch.randint(256, (count, 3, size, size), generator=seeded(seed), dtype=torch.uint8)


def test_a_comparison_states_its_sizes_and_its_floor():
    real, generated = random_images(700), random_images(90, 1)
    result = compare(real, generated, flat)
    x, y = (flat(images.float() / 127.5 - 1) for images in (real, generated))
    assert {key: result[key] for key in ("n_real", "n_generated", "n_floor")} == {"n_real": 700, "n_generated": 90, "n_floor": 90}
    assert result["frechet"] == pytest.approx(distance(x, y), rel=1e-6)
    assert result["kernel"] == pytest.approx(kernel_distance(x, y), rel=1e-4)
    draws = seeded()
    orders = [torch.randperm(700, generator=draws) for _ in range(8)]
    splits = [(x[order[90:]], x[order[:90]]) for order in orders]
    assert result["floor_frechet"] == pytest.approx(sum(distance(*split) for split in splits) / 8, rel=1e-6)
    assert result["floor_kernel"] == pytest.approx(sum(kernel_distance(*split) for split in splits) / 8, rel=1e-4)
    assert set(result) == {"n_real", "n_generated", "n_floor", "frechet", "kernel", "floor_frechet", "floor_kernel"}
    assert compare(real.float() / 127.5 - 1, generated, flat) == result


@pytest.mark.parametrize(("n_real", "n_generated", "n_floor"), [(10, 2, 2), (10, 8, 5), (11, 9, 5), (4, 9, 2)])
def test_the_floor_is_of_as_many_images_as_can_be(n_real, n_generated, n_floor):
    assert compare(random_images(n_real), random_images(n_generated, 1), flat)["n_floor"] == n_floor


def test_features_see_float_batches_without_gradients():
    seen = []

    def features(batch):
        seen.append((len(batch), batch.dtype, float(batch.min()) >= -1, float(batch.max()) <= 1, torch.is_grad_enabled()))
        return flat(batch)

    compare(random_images(300), random_images(5, 1), features)
    assert seen == [(256, torch.float32, True, True, False), (44, torch.float32, True, True, False), (5, torch.float32, True, True, False)]


def test_the_more_noise_the_further():
    images, labels, generator = held_out(1)
    net = train_features(images, labels, epochs=2, generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    results = [compare(images[:1200], (images[1200:] + sigma * noise[1200:]).clamp(-1, 1), net.features) for sigma in (0, 0.6, 1.2)]
    assert 0.5 < results[0]["frechet"] / results[0]["floor_frechet"] < 2, "unchanged, they are at the floor"
    assert 2 * results[0]["frechet"] < results[1]["frechet"] and 1.5 * results[1]["frechet"] < results[2]["frechet"]
    assert 3 * abs(results[0]["kernel"]) < results[1]["kernel"] < results[2]["kernel"]


@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (random_images(3), random_images(3), "four real images and two generated ones are the least, got 3 and 3"),
        (random_images(4), random_images(1), "got 4 and 1"), (random_images(4)[0], random_images(4), "real must have shape"),
        (random_images(4), random_images(4).float(), "generated must be uint8, or float in -1 … 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(real, generated, message):
    with pytest.raises(ValueError, match=message):
        compare(real, generated, flat)


# --- Inception ------------------------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """In Inception's place: the first 2048 numbers of what it is shown."""

    def forward(self, x):
        return x.flatten(1)[:, :2048]


class StandIn(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = Layers()

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def stand_in():
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(StandIn(), torch.zeros(1, 3, 299, 299)), file)
    return file.getvalue()


@pytest.fixture
def weights(tmp_path, monkeypatch, stand_in):
    """Where the weights belong; what is served for a download; nothing comes from the network."""
    monkeypatch.setenv("COURSEKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(fid, "_SHA256", hashlib.sha256(stand_in).hexdigest())
    monkeypatch.setattr(fid.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(stand_in))
    return tmp_path / "data" / "inception-2015-12-05.pt"


def test_inception_sees_what_clean_fid_shows_it(weights):
    images = random_images(33, size=10)
    features = inception_features(images)
    assert features.shape == (33, 2048) and features.dtype == torch.float32
    for image, found in zip(images[::16], features[::16], strict=True):
        channel = Image.fromarray(image[0].numpy().astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
        expected = (np.asarray(channel).clip(0, 255) - 128) / 128
        assert np.allclose(found, expected.ravel()[:2048], atol=1e-5)
    floats = images.float() / 127.5 - 1
    assert torch.equal(inception_features(floats[:3], "cpu"), features[:3])
    assert torch.equal(inception_features((floats[:3] + 0.49 / 127.5).clamp(max=1)), features[:3]), "rounded to whole grey values"
    assert not torch.equal(inception_features((floats[:3] + 0.52 / 127.5).clamp(max=1)), features[:3])
    with pytest.raises(ValueError, match="3 channels, got 1"):
        inception_features(images[:, :1])


def test_the_weights_are_fetched_once(weights, monkeypatch, stand_in):
    inception_features(random_images(1))
    assert weights.read_bytes() == stand_in and list(weights.parent.iterdir()) == [weights]
    monkeypatch.setattr(fid.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked again"))
    fid._inception.cache_clear()
    inception_features(random_images(1))


def test_without_a_network_it_says_what_to_do(weights, monkeypatch):
    def refuse(url, timeout):
        raise URLError("no network here")

    monkeypatch.setattr(fid.urllib.request, "urlopen", refuse)
    with pytest.raises(DataError, match=r"(?s)https://.*no network here.*Put that file at .*inception-2015-12-05\.pt.*train_features"):
        inception_features(random_images(2))
    assert not list(weights.parent.iterdir())


def test_an_interrupted_download_leaves_nothing(weights, monkeypatch, stand_in):
    class Breaks(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise TimeoutError("silence")
            return super().read(100)

    monkeypatch.setattr(fid.urllib.request, "urlopen", lambda url, timeout: Breaks(stand_in))
    with pytest.raises(DataError, match="silence"):
        inception_features(random_images(2))
    assert not list(weights.parent.iterdir())


class BrokenOff(io.BytesIO):
    def read(self, size=-1):
        if found := super().read(size):
            return found
        raise IncompleteRead(b"", 1)


def test_a_download_that_breaks_off_is_told(weights, monkeypatch, stand_in):
    monkeypatch.setattr(fid.urllib.request, "urlopen", lambda url, timeout: BrokenOff(stand_in[:-1]))
    with pytest.raises(DataError, match=r"could not be had from https://.*IncompleteRead.*Put that file"):
        inception_features(random_images(1))
    assert not list(weights.parent.iterdir())


def test_a_download_cut_short_is_not_kept(weights, monkeypatch, stand_in):
    with monkeypatch.context() as short:
        short.setattr(fid.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(stand_in[:-1]))
        with pytest.raises(DataError, match=r"could not be had from https://.*what arrived .*digest is [0-9a-f]{64}, not .*Put that file"):
            inception_features(random_images(1))
        assert not list(weights.parent.iterdir())
    assert inception_features(random_images(1)).shape == (1, 2048)


def test_other_weights_are_refused_and_left(weights, stand_in):
    weights.parent.mkdir(parents=True)
    weights.write_bytes(stand_in[:-1])
    with pytest.raises(DataError, match=r"inception-2015-12-05\.pt is not Inception's: its digest is [0-9a-f]{64}, not .* Remove it"):
        inception_features(random_images(2))
    assert weights.read_bytes() == stand_in[:-1]
