import time
from types import SimpleNamespace

import pytest
import torch

from coursekit.measure import median_seconds, peak_bytes

MIB = 2**20


def block(mib):
    return torch.zeros(mib, 2**18)  # float32


def test_peak_counts_what_lives_at_once():
    assert peak_bytes(lambda: block(3)) == 3 * MIB
    assert peak_bytes(lambda: [block(1), block(2)]) == 3 * MIB


def test_peak_forgets_what_was_freed():
    def one_after_another():
        for _ in range(5):
            block(2)

    assert peak_bytes(one_after_another) == 2 * MIB


def test_views_and_in_place_results_cost_nothing():
    x = block(4)
    assert peak_bytes(lambda: x.view(-1)[10:].add_(1)) == 0
    assert peak_bytes(lambda: (x * 1).view(-1)) == 4 * MIB


def test_peak_sees_what_backward_needs_and_is_repeatable():
    x = block(1).requires_grad_()
    first = peak_bytes(lambda: x.exp().exp().sum().backward())
    x.grad = None
    assert first >= 3 * MIB  # two results kept, one gradient
    assert peak_bytes(lambda: x.exp().exp().sum().backward()) == first


def test_the_peak_is_that_of_the_asked_gpu(monkeypatch):
    asked = []
    answers = {"synchronize": None, "memory_allocated": 3, "reset_peak_memory_stats": None, "max_memory_allocated": 8}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device=None, name=name, answer=answer: asked.append((name, device)) or answer)
    assert peak_bytes(lambda: None, "cuda:1") == 5
    assert {name for name, _ in asked} == set(answers) and {device for _, device in asked} == {"cuda:1"}


def test_median_seconds_tells_slow_from_quick_and_counts_calls():
    calls = {"quick": 0, "slow": 0}

    def call(name, seconds):
        calls[name] += 1
        time.sleep(seconds)

    times = median_seconds({"quick": lambda: call("quick", 0), "slow": lambda: call("slow", 0.02)}, repeats=3)
    assert calls == {"quick": 4, "slow": 4}
    assert times["slow"] > 2 * times["quick"]
    with pytest.raises(ValueError, match="repeats"):
        median_seconds({}, repeats=0)


def test_the_median_is_of_the_measured_calls_only(monkeypatch):
    """A clock that tells 1, 5 and 2 seconds after a first call that is a warm-up: the median is 2."""
    ticks = iter([0, 100, 101, 101, 106, 106, 108])
    monkeypatch.setattr("coursekit.measure.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert median_seconds({"call": lambda: None}, repeats=3) == {"call": 2}
