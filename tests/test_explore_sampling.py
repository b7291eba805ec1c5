"""SamplingExplorer: what it shows is what was stored, at the right time; and how the picture answers its controls."""

import io
import math

import numpy as np
import pytest
import torch
from explorers import frame_is_pure, moves_and_returns, three_threads
from PIL import Image

from coursekit.diffusion import NoiseSchedule
from coursekit.diffusion.process import Diffusion
from coursekit.explore import SamplingExplorer
from coursekit.explore.sampling import SHOWN, enlarged


class PointMass(torch.nn.Module):
    """The exact noise where all data is one picture, a gradient from dark to light."""

    def __init__(self, schedule, channels=3, side=8):
        super().__init__()
        self.schedule = schedule
        self.target = torch.linspace(-0.8, 0.8, side).expand(channels, side, side)

    def forward(self, x, t):
        signal = self.schedule.at(self.schedule.alpha_bar, t, x)
        return (x - signal.sqrt() * self.target) / (1 - signal).sqrt()


class Half(torch.nn.Module):
    """Takes half of what it sees for noise, so that every trajectory goes its own way."""

    def forward(self, x, t):
        return x / 2


SCHEDULE = NoiseSchedule.cosine(10)


def stored(channels=3, count=3, steps=None, model=None, seed=0):
    diffusion = Diffusion(model or Half(), image_size=8, channels=channels, schedule=SCHEDULE)
    generator = torch.Generator().manual_seed(seed)
    x_T = torch.randn(count, channels, 8, 8, generator=generator)
    if steps:
        return diffusion.ddim_sample(x_T, steps, keep=True)
    return diffusion.p_sample_loop(x_T, generator, keep=True)


@pytest.fixture(scope="module")
def parts():
    return stored()


@pytest.fixture(scope="module")
def explorer(parts):
    return SamplingExplorer(*parts, SCHEDULE, seeds=[7, 3, 11])


def test_every_control_changes_the_picture_and_coming_back_restores_it(explorer):
    assert repr(explorer) == "SamplingExplorer(step, seed)" and explorer.values == {"step": 0, "seed": 7}
    moves_and_returns(explorer, "step", 4)
    moves_and_returns(explorer, "seed", 11)


def test_frame_is_pure(explorer, parts):
    frame_is_pure(explorer, step=6, seed=3)
    assert SamplingExplorer(*parts, SCHEDULE, seeds=[7, 3, 11]).frame(seed=3, step=6) == explorer.frame(step=6, seed=3)


def test_the_view_is_what_was_stored(explorer, parts):
    states, predictions = parts
    for step in range(11):
        for k, seed in enumerate((7, 3, 11)):
            shown = explorer.compute(step=step, seed=seed)
            assert (shown.t, shown.seed) == (10 - step, seed) and shown.alpha_bar == SCHEDULE.alpha_bar[10 - step].item()
            assert torch.equal(shown.x_t, states[step, k])
            assert torch.equal(shown.x_0, predictions[step, k] if step < 10 else states[10, k])
            expected = [(image - states[10, k]).square().mean().sqrt().item() for image in (*predictions[:, k], states[10, k])]
            assert shown.distances.tolist() == pytest.approx(expected, abs=1e-6) and shown.distances[-1] == 0


def test_what_is_drawn_is_what_was_computed(explorer, parts):
    explorer.controls["step"].value, explorer.controls["seed"].value = 7, 3
    shown = explorer.shown
    assert [picture.get_array().shape for picture in explorer.pictures] == [(SHOWN, SHOWN, 3)] * 2
    for picture, image in zip(explorer.pictures, (parts[0][7, 1], parts[1][7, 1]), strict=True):
        assert np.array_equal(picture.get_array(), enlarged(image))
    assert explorer.dots[0].get_data() == ([3], [shown.alpha_bar])
    assert explorer.dots[1].get_data() == ([3], [pytest.approx(shown.distances[7].item())])
    times, distances = explorer.curve.get_data()
    assert list(times) == list(range(10, -1, -1)) and np.array_equal(distances, shown.distances.numpy())
    assert explorer.caption.get_text() == f"seed 3, t = 3: ᾱ = {shown.alpha_bar:.4f}, distance from the end {shown.distances[7]:.3f}"
    (known,) = (line for line in explorer.curve.axes.lines if line.get_label() == "ᾱ$_t$")
    assert np.array_equal(known.get_ydata(), SCHEDULE.alpha_bar.numpy()) and list(known.get_xdata()) == list(range(11))
    explorer.controls["step"].value, explorer.controls["seed"].value = 0, 7


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_enlarged_smoothly_and_keep_their_range(channels):
    ramp = torch.linspace(-1, 1, 8).expand(channels, 8, 8).clone()
    large = enlarged(ramp)
    assert large.dtype == np.uint8 and large.shape == (SHOWN, SHOWN, 3)
    assert large[:, 0].max() <= 2 and large[:, -1].min() >= 253 and np.abs(np.diff(large[0, :, 0].astype(int))).max() < 8   # no steps of 36
    assert np.array_equal(enlarged(5 * torch.sign(ramp)), enlarged(torch.sign(ramp)))   # beyond [-1, 1]: its ends
    assert abs(int(enlarged(torch.zeros(channels, 8, 8))[9, 9, 0]) - 128) <= 1
    if channels == 3:
        red = torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 8, 8)
        assert enlarged(red)[5, 5].tolist() == [255, 0, 0]


def test_the_pictures_are_on_the_canvas(explorer):
    ends = [np.asarray(Image.open(io.BytesIO(explorer.frame(step=step))).convert("RGB")).astype(int) for step in (0, 10)]
    changed = (ends[0] != ends[1]).any(-1).any(0)
    width = len(changed)
    assert changed[: width // 4].mean() > 0.5 and changed[width // 3 : width // 2].mean() > 0.5   # both images, not their margins only
    assert ends[0].shape[1] == 1100


def test_an_exact_model_knows_the_end_at_every_step():
    explorer = SamplingExplorer(*stored(model=PointMass(SCHEDULE)), SCHEDULE)
    assert explorer.distances.max() < 1e-3
    explorer.controls["seed"].value = 2   # without names the trajectories are counted from 0
    assert explorer.shown.seed == 2


def test_fewer_steps_stand_at_the_times_of_ddim():
    explorer = SamplingExplorer(*stored(channels=1, steps=4), SCHEDULE)
    assert explorer.times == [10, 8, 5, 2, 0] and explorer.controls["step"].max == 4
    assert explorer.compute(step=2, seed=0).alpha_bar == SCHEDULE.alpha_bar[5].item()


def test_nothing_is_drawn_anew_for_a_frame_and_torch_keeps_its_threads(explorer, monkeypatch):
    monkeypatch.setattr(explorer._canvas, "draw", lambda: pytest.fail("the background is kept"))
    with three_threads():
        explorer.frame(step=2)


def test_far_predictions_stay_below_the_legend():
    states, predictions = stored()
    explorer = SamplingExplorer(states, 9 * predictions, SCHEDULE)
    low, high = explorer.curve.axes.get_ylim()
    assert low == 0 and high == pytest.approx(1.3 * explorer.distances.max().item()) and explorer.distances.max() > 1
    exact = SamplingExplorer(*stored(model=PointMass(SCHEDULE)), SCHEDULE)
    assert exact.curve.axes.get_ylim() == (0, 1.3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 11}, "step must lie in 0 .. 10"),
        ({"seed": 5}, r"seed must be one of \[7, 3, 11\], got 5"),
        ({"t": 1}, "no control 't'; its controls are step, seed"),
    ],
)
def test_impossible_values_are_refused_by_name(explorer, values, message):
    with pytest.raises(ValueError, match=message):
        explorer.frame(**values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": torch.zeros(11, 3, 8, 8)}, r"states must be .* got torch.float32 of shape \(11, 3, 8, 8\)"),
        ({"states": torch.zeros(11, 1, 3, 8, 8)}, "with B ≥ 2 trajectories"),
        ({"states": torch.zeros(11, 3, 2, 8, 8)}, "C 1 or 3"),
        ({"states": torch.zeros(11, 3, 3, 8, 8).long()}, "floating-point .* got torch.int64"),
        ({"states": torch.zeros(12, 3, 3, 8, 8)}, "states hold 11 steps; the schedule allows 1 … 10"),
        ({"states": torch.zeros(1, 3, 3, 8, 8)}, "states hold 0 steps"),
        ({"predictions": torch.zeros(11, 3, 3, 8, 8)}, r"predictions must have shape \(10, 3, 3, 8, 8\).* got \(11, 3, 3, 8, 8\)"),
        ({"predictions": torch.full((10, 3, 3, 8, 8), math.nan)}, "predictions hold NaN"),
        ({"states": torch.full((11, 3, 3, 8, 8), math.inf)}, "states hold NaN or infinity"),
        ({"seeds": [1, 2]}, r"seeds must be 3 different integers, one a trajectory, got \[1, 2\]"),
        ({"seeds": [1, 2, 2]}, "seeds must be 3 different"),
    ],
)
def test_impossible_arguments_are_refused(parts, change, message):
    arguments = {"states": parts[0], "predictions": parts[1], "schedule": SCHEDULE, **change}
    with pytest.raises(ValueError, match=message):
        SamplingExplorer(**arguments)


def test_two_trajectories_of_one_step_are_enough():
    states, predictions = stored(count=2, steps=1)
    assert SamplingExplorer(states, predictions, SCHEDULE).times == [10, 0]
