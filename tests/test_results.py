"""What a run says of its time, and of the samples and pictures that it measures with."""

import weakref
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from coursekit.diffusion import results
from coursekit.diffusion.batches import Pictures
from coursekit.diffusion.settings import Settings


def test_the_rate_and_the_time_left(tmp_path, monkeypatch):
    seconds = [100.0]
    monkeypatch.setattr(results, "time", SimpleNamespace(perf_counter=lambda: seconds[0]))
    clock = results.Clock(2, Settings(train_steps=246, batch_size=30, save_folder=tmp_path), MagicMock())
    assert clock.lap() == "" and not list(tmp_path.iterdir()), "nothing was done yet"
    for _ in range(4):
        clock.tick(0.5)
    clock.bar.update.assert_called_with(1)
    seconds[0] += 10
    assert clock.lap() == "12 pictures/s, 10.0 min left"
    clock.tick(0.5)
    seconds[0] += 5
    assert clock.lap() == "6 pictures/s, 19.9 min left"
    assert (tmp_path / "times.csv").read_text() == "step,steps,seconds\n6,4,10.000\n7,1,5.000\n"


@pytest.mark.parametrize(("count", "asked"), [(64, [64]), (130, [64, 64, 2])])
def test_samples_are_drawn_64_at_a_time(count, asked, monkeypatch):
    monkeypatch.setenv("COURSEKIT_MODE", "full")
    monkeypatch.setattr("coursekit.fid.inception_features", lambda images, device="cpu": images.flatten(1)[:, :4])
    drawn = []

    def sample(size, generator):
        drawn.append(size)
        return torch.rand(size, 3, 8, 8, generator=generator)

    pictures = Pictures("", torch.arange(8 * 192).reshape(8, 3, 8, 8).remainder(251).byte(), None, True)
    measure = results.measure_of(Settings(fid_samples=count), pictures, torch.device("cpu"), lambda _: None)
    row = measure(MagicMock(sample=sample))
    assert drawn == asked and row["n_generated"] == count and row["fid"] > 0


def test_the_features_of_the_pictures_are_kept_and_no_others(monkeypatch):
    monkeypatch.setenv("COURSEKIT_MODE", "full")
    made = []

    def features(images, device="cpu"):
        found = images.flatten(1)[:, :4].clone()
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr("coursekit.fid.inception_features", features)
    pictures = Pictures("", torch.arange(300 * 192).reshape(300, 3, 8, 8).remainder(251).byte(), None, True)
    measure = results.measure_of(Settings(fid_samples=300), pictures, torch.device("cpu"), lambda _: None)
    for _ in range(3):
        measure(MagicMock(sample=lambda size, _: torch.rand(size, 3, 8, 8)))
    assert len(made) == 1 + 2 + 3 * 2, "one to try, the pictures' once, the samples' at each checkpoint"
    assert sum(found() is not None for found in made) == 2
