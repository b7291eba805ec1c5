"""LatentExplorer: what it shows, against a direct search through the training images; and how the picture answers the sliders."""

import math

import numpy as np
import pytest
import torch
from explorers import frame_is_pure, frame_redraws_nothing, moves_and_returns

from coursekit.data import digits
from coursekit.explore import LatentExplorer
from coursekit.explore.latent import MOST_POINTS, MOST_SLIDERS, NEIGHBOURS, PRIOR_95
from coursekit.vae import VAE, Autoencoder, LinearVAE


def made(latent=2, count=300, likelihood="bernoulli", seed=0, spread=3.0):
    """An untrained model whose encoded means spread over some units, with real digits."""
    torch.manual_seed(seed)
    images, labels = (part[:count] for part in digits())
    vae = VAE(8, latent, 4, likelihood)
    with torch.no_grad():
        means = vae.encode(images)[0]
        vae.encoder[-1].bias[:latent] -= means.mean(0)
        vae.encoder[-1].weight[:latent] *= spread / means.std(0)[:, None]
        vae.encoder[-1].bias[:latent] *= spread / means.std(0)
    return vae, images, labels


@pytest.fixture(scope="module")
def parts():
    return made(spread=1.0)


@pytest.fixture(scope="module")
def explorer(parts):
    return LatentExplorer(*parts)


def test_every_slider_changes_the_picture_and_coming_back_restores_it(explorer):
    assert repr(explorer) == "LatentExplorer(z1, z2)" and explorer.values == {"z1": 0.0, "z2": 0.0}
    for name in ("z1", "z2"):
        moves_and_returns(explorer, name, 1.3)


def test_frame_is_pure(explorer, parts):
    frame_is_pure(explorer, z1=-1.1, z2=0.7)
    assert LatentExplorer(*parts).frame(z2=0.7, z1=-1.1) == explorer.frame(z1=-1.1, z2=0.7)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_numbers_are_the_models_and_a_direct_searchs(likelihood):
    vae, images, labels = made(likelihood=likelihood)
    explorer = LatentExplorer(vae, images, labels)
    for z1, z2 in ((0.0, 0.0), (-2.5, 1.0), (3.0, -3.0)):
        explorer.controls["z1"].value, explorer.controls["z2"].value = z1, z2
        shown = explorer.shown
        with torch.no_grad():
            logits = vae.decode(torch.tensor([[z1, z2]]))[0, 0]
        decoded = torch.sigmoid(logits) if likelihood == "bernoulli" else logits
        assert torch.allclose(shown.decoded, decoded, atol=1e-6) and shown.z.tolist() == pytest.approx([z1, z2])
        distances = (images[:, 0].double() - decoded.double()).square().sum((1, 2)).sqrt()
        nearest = distances.argsort()[:NEIGHBOURS]
        assert torch.equal(shown.nearest, nearest) and torch.allclose(shown.distances.double(), distances[nearest], atol=1e-5)


def test_what_is_drawn_is_what_was_computed(explorer, parts):
    vae, images, labels = parts
    explorer.controls["z1"].value, explorer.controls["z2"].value = 0.9, -1.4
    shown, means = explorer.shown, vae.encode(images)[0].detach()
    assert np.allclose(explorer.point.get_data(), [[0.9], [-1.4]])
    assert np.allclose(np.transpose(explorer.rings.get_data()), means[shown.nearest], atol=1e-5)
    titles = [f"{labels[i]}, at {d:.2f}" for i, d in zip(shown.nearest, shown.distances, strict=True)]
    assert [title.get_text() for title in explorer.titles] == titles
    assert explorer.caption.get_text() == "z = (+0.9, −1.4)"
    for picture, image in zip(explorer.pictures, [shown.decoded, *images[shown.nearest, 0]], strict=True):
        drawn = torch.from_numpy(picture.get_array()).float()
        mean = torch.nn.functional.adaptive_avg_pool2d(drawn[None], 8)[0]
        assert np.corrcoef(mean.flatten(), image.flatten())[0, 1] > 0.97  # enlarged smoothly, not turned or mixed up
        assert picture.get_clim() == (0, 1)
    explorer.controls["z1"].value, explorer.controls["z2"].value = 0.0, 0.0


def test_an_image_of_the_set_is_its_own_neighbour(parts):
    vae, images, labels = parts
    explorer = LatentExplorer(vae, images.clone(), labels)
    with torch.no_grad():
        explorer.images[17, 0] = explorer.vae.picture(torch.tensor([[1.0, -0.5]]))[0, 0]
        explorer.norms[17] = explorer.flat[17].square().sum()
    shown = explorer.compute(z2=-0.5, z1=1.0)  # by name, in any order
    assert shown.nearest[0] == 17 and shown.distances[0] < 1e-6 and (shown.distances.diff() >= 0).all()


def test_the_scatter_holds_the_encoded_means_by_label(explorer, parts):
    vae, images, labels = parts
    means = vae.encode(images)[0].detach().numpy()
    axes = explorer.point.axes
    classes = {line.get_marker(): np.transpose(line.get_data()) for line in axes.lines if str(line.get_marker()).startswith("$")}
    assert set(classes) == {f"${k}$" for k in range(10)}
    for k in range(10):
        assert np.allclose(classes[f"${k}$"], means[labels.numpy() == k], atol=1e-5)
    (circle,) = axes.patches
    assert circle.radius == PRIOR_95 and math.exp(-(circle.radius**2) / 2) == pytest.approx(0.05)


@pytest.mark.parametrize("latent", [3, 9])
def test_of_many_latents_those_that_vary_most_have_sliders(latent):
    vae, images, labels = made(latent)
    with torch.no_grad():
        vae.encoder[-1].weight[:latent] *= 1 + torch.arange(latent).flip(0)[:, None].roll(2, 0)  # the third varies most, the second least
    explorer = LatentExplorer(vae, images, labels)
    variances = vae.encode(images)[0].var(0)
    best = variances.argsort(descending=True)
    assert list(explorer.controls) == [f"z{k + 1}" for k in sorted(best[:MOST_SLIDERS].tolist())]
    assert (explorer.across, explorer.up) == tuple(sorted(best[:2].tolist()))
    last = explorer.dimensions[-1]
    shown = explorer.compute(**{**explorer.values, f"z{last + 1}": 2.5})
    assert shown.z.shape == (latent,) and shown.z[last] == 2.5 and shown.z.abs().sum() == 2.5
    explorer.frame(**{f"z{explorer.up + 1}": 1.5})
    assert explorer.point.get_data() == ([0.0], [1.5])
    assert explorer.point.axes.get_ylabel() == f"z{explorer.up + 1}" and explorer.point.axes.get_xlabel() == f"z{explorer.across + 1}"


def test_sliders_reach_the_means(explorer):
    assert (explorer.controls["z1"].min, explorer.controls["z1"].max) == (-3, 3) or explorer.means.abs().max() > 3
    vae, images, labels = made(spread=10.0)
    wide = LatentExplorer(vae, images, labels)
    limit = wide.controls["z2"].max
    assert limit == -wide.controls["z2"].min == math.ceil(wide.means.abs().max()) > 10
    assert wide.point.axes.get_xlim() == (-limit, limit)
    narrow = LatentExplorer(*made(spread=0.1))
    assert narrow.controls["z1"].max == 3 == -narrow.controls["z1"].min


def test_training_on_does_not_change_it():
    vae, images, labels = made()
    explorer = LatentExplorer(vae, images, labels)
    before = explorer.frame(z1=1.0)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
    assert explorer.frame(z1=1.0) == before


def test_without_labels_in_float64_and_with_more_images_than_points():
    vae, images, _ = made(count=300)
    many = images.repeat(5, 1, 1, 1).double()
    explorer = LatentExplorer(vae.double(), many)
    points = max(explorer.point.axes.lines, key=lambda line: len(line.get_xdata()))
    assert MOST_POINTS / 2 < len(points.get_xdata()) <= MOST_POINTS < len(explorer.means) == 1500
    assert explorer.titles[0].get_text() == f"{explorer.shown.distances[0]:.2f}"


def test_nothing_is_drawn_anew_for_a_frame_and_torch_keeps_its_threads(explorer, monkeypatch):
    frame_redraws_nothing(explorer, monkeypatch, z1=2.0)


@pytest.mark.parametrize(
    ("values", "message"), [({"z1": 99.0}, "z1 must lie in -"), ({"z3": 0.0}, "no control 'z3'; its controls are z1, z2")]
)
def test_impossible_values_are_refused_by_name(explorer, values, message):
    with pytest.raises(ValueError, match=message):
        explorer.frame(**values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae": VAE(8, 1, 4)}, "at least two latents, got 1 latent"),
        ({"vae": Autoencoder(8, 2, 4)}, "vae must be a coursekit.vae.VAE .* got Autoencoder"),
        ({"vae": LinearVAE(64, 2)}, "got LinearVAE"),
        ({"vae": VAE(28, 2, 4)}, r"images must be .* \(N, 1, 28, 28\)"),
        ({"images": torch.zeros(300, 8, 8)}, r"images must be .* got torch.float32 of shape \(300, 8, 8\)"),
        ({"images": torch.zeros(3, 1, 8, 8), "labels": None}, "N ≥ 4"),
        ({"images": torch.zeros(300, 1, 8, 8, dtype=torch.uint8)}, "floating-point .* got torch.uint8"),
        ({"images": torch.full((300, 1, 8, 8), math.nan)}, "NaN or infinity"),
        ({"labels": torch.zeros(299).long()}, r"labels must be 300 integers.* \(299,\)"),
        ({"labels": torch.zeros(300)}, "labels must be 300 integers, one an image, got torch.float32"),
    ],
)
def test_impossible_arguments_are_refused(parts, change, message):
    arguments = {**dict(zip(("vae", "images", "labels"), parts, strict=True)), **change}
    with pytest.raises(ValueError, match=message):
        LatentExplorer(**arguments)


def test_four_images_are_enough(parts):
    vae, images, labels = parts
    assert sorted(LatentExplorer(vae, images[:4], labels[:4]).shown.nearest.tolist()) == [0, 1, 2, 3]
