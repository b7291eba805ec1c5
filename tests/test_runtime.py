import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from coursekit import runtime


def test_mode_follows_the_variable_then_the_device(monkeypatch):
    for name in ("fast", "full"):
        monkeypatch.setenv("COURSEKIT_MODE", name)
        assert runtime.mode() == name
    for unset in (None, ""):
        monkeypatch.delenv("COURSEKIT_MODE") if unset is None else monkeypatch.setenv("COURSEKIT_MODE", unset)
        for cuda, expected in ((True, "full"), (False, "fast")):
            monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
            assert runtime.mode() == expected


def test_wrong_mode_lists_the_right_ones(monkeypatch):
    monkeypatch.setenv("COURSEKIT_MODE", "quick")
    with pytest.raises(ValueError, match=r"'quick'.*'fast', 'full'"):
        runtime.mode()


def test_device_is_cuda_or_cpu(monkeypatch):
    for cuda, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert runtime.device().type == expected


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002 - the global state is what is tested


def test_seed_fixes_every_generator():
    generator = runtime.seed_everything(7)
    first = (*draws(), torch.rand((), generator=generator).item())
    generator = runtime.seed_everything(7)
    assert (*draws(), torch.rand((), generator=generator).item()) == first
    runtime.seed_everything(8)
    assert all(a != b for a, b in zip(draws(), first[:3], strict=True))


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (2**32, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)])
def test_bad_seed(seed, error):
    with pytest.raises(error, match="seed"):
        runtime.seed_everything(seed)


class Draws(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor([index, *draws()], dtype=torch.float64)


def test_seed_reaches_the_workers_of_a_loader():
    def rows(seed):
        return torch.cat(list(DataLoader(Draws(), 2, shuffle=True, num_workers=2, generator=runtime.seed_everything(seed))))

    assert torch.equal(rows(3), rows(3))
    assert not torch.equal(rows(3), rows(4))
    for kind in rows(3).T[1:]:  # Python's, NumPy's and torch's draws differ between workers
        assert len(kind.unique()) == 8


def test_progress_is_silent_where_it_must_be_and_counts(monkeypatch, capsys):
    monkeypatch.setenv("COURSEKIT_QUIET", "1")
    assert list(runtime.progress(range(3), "counting")) == [0, 1, 2]
    with runtime.progress_bar(3, "by hand") as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")


def test_progress_is_silent_in_a_file_and_shows_in_a_notebook(monkeypatch, capsys):
    monkeypatch.delenv("COURSEKIT_QUIET", raising=False)
    assert list(runtime.progress(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(runtime, "_in_kernel", lambda: True)
    assert list(runtime.progress(range(3), "counting")) == [0, 1, 2]
    shown = capsys.readouterr()
    assert "counting" in shown.err + shown.out
