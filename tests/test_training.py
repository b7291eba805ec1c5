"""Runs that are killed, interrupted, damaged and refused: none may lose a step that was saved, or go on from a wrong one."""

import errno
import io
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn
from torch.optim.swa_utils import AveragedModel

from coursekit import files, training
from coursekit.training import CheckpointError, Checkpoints, NonFinite, check_finite, load_weights, save_weights, saved_settings, steps

if not hasattr(os, "fork"):
    pytest.skip("kills training in forked processes, which Windows lacks", allow_module_level=True)
FORK = multiprocessing.get_context("fork")   # a child that need not import torch again
TOTAL, EVERY = 11, 3


@pytest.fixture(autouse=True)
def generators_as_before():
    """The global generators are as they were, afterwards."""
    state = training._GlobalGenerators().state_dict()
    yield
    training._GlobalGenerators().load_state_dict(state)


class Net(nn.Sequential):
    def __init__(self, width=5):
        super().__init__(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.Dropout(0.3), nn.Flatten(), nn.Linear(4 * width, 1))


def parts(seed=0, width=5):
    torch.manual_seed(seed)
    model = Net(width).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    return {
        "model": model, "ema": AveragedModel(model), "optimizer": optimizer,
        "schedule": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, 20), "scaler": torch.amp.GradScaler("cpu"),
        "generator": torch.Generator().manual_seed(seed), "history": [], "best": {},
    }  # fmt: skip


def one_step(p, step):
    """Draws from every generator there is."""
    x = torch.randn(30, 2, 4, 4, generator=torch.Generator().manual_seed(9)).contiguous(memory_format=torch.channels_last)
    index = torch.randperm(30, generator=p["generator"])[:8]
    noise = torch.rand(8, 1) + random.random() + float(np.random.rand())  # noqa: NPY002
    loss = (p["model"](x[index]) - noise).square().mean()
    check_finite(loss, step)
    p["optimizer"].zero_grad()
    p["scaler"].scale(loss).backward()
    p["scaler"].step(p["optimizer"])
    p["scaler"].update()
    p["schedule"].step()
    p["ema"].update_parameters(p["model"])
    p["history"].append((step, loss.item()))
    p["best"][step] = loss.detach()


def train(folder, seed=0, total=TOTAL, at=lambda step, p: None, **options):
    """One process's, or one cell's, attempt at the run; what it starts from is made from ``seed``."""
    p = parts(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    for step in steps(total, Checkpoints(folder, p, {"width": (5, 5)}, **options), EVERY):
        one_step(p, step)
        at(step, p)
    return p


def flat(folder, step=TOTAL):
    """All that a checkpoint holds: its tensors bit for bit, and the rest as text."""
    path = Checkpoints(folder, {})._path(step)
    with safe_open(path, "pt") as file:
        state = file.metadata()["state"]
    tensors = safetensors.torch.load_file(path).items()
    return state, {name: (t.dtype, t.shape, t.reshape(-1).view(torch.uint8).tolist()) for name, t in tensors}


def same(folder, reference, step=TOTAL):
    assert flat(folder, step) == flat(reference, step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def child(call):
    """Run ``call`` in a fork; its exit code, negative for a signal, 3 for an exception, 0 where it ends."""

    def target():
        try:
            call()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(3)
        os._exit(0)

    process = FORK.Process(target=target)
    process.start()
    process.join(60)
    return process.exitcode


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


# --- going on -----------------------------------------------------------------------------------------------------------


def test_yields_saves_and_keeps_what_it_says(tmp_path):
    seen, held = [], []
    run = Checkpoints(tmp_path / "a" / "b", {"history": seen}, keep=2)
    for step in steps(7, run, 3):
        held.append((step, run.saved()))
        seen.append(step)
    assert held == [(1, [0]), (2, [0]), (3, [0]), (4, [0, 3]), (5, [0, 3]), (6, [0, 3]), (7, [3, 6])]
    assert run.saved() == [6, 7] and sorted(path.name for path in run.folder.iterdir()) == [
        "step-00000006.safetensors", "step-00000007.safetensors"]  # fmt: skip
    assert list(steps(7, run, 3)) == [] and list(steps(9, run, 3)) == [8, 9]
    assert seen == [1, 2, 3, 4, 5, 6, 7] and run.saved() == [7, 9]   # filled in place
    with pytest.raises(ValueError, match="holds step 9, more than the 8"):
        list(steps(8, run))
    assert Checkpoints(tmp_path, {}, keep=1).saved() == [] and Checkpoints(tmp_path, {}).resume() == 0


def test_every_is_a_hundred_and_two_are_kept(tmp_path):
    run = Checkpoints(tmp_path, {})
    assert list(steps(150, run)) == list(range(1, 151)) and run.saved() == [100, 150]
    one = Checkpoints(tmp_path / "one", {}, keep=1)
    assert len(list(steps(5, one, 1))) == 5 and one.saved() == [5]
    (tmp_path / "step-7.safetensors").touch()   # not our names
    (tmp_path / "step-00000900.safetensors.bak").touch()
    assert run.saved() == [100, 150]


def test_a_run_in_pieces_is_the_run(whole, tmp_path):
    train(tmp_path, total=4)
    p = train(tmp_path, seed=1)   # other weights, other generators: all are replaced
    same(tmp_path, whole)
    assert [step for step, _ in p["history"]] == list(range(1, TOTAL + 1)) and p["best"][2].ndim == 0
    fresh = train(tmp_path / "other", seed=1)
    assert not torch.equal(fresh["model"][0].weight, p["model"][0].weight)   # the seed does matter


def test_the_same_objects_go_on_after_an_error_in_the_middle_of_a_step(whole, tmp_path):
    for failing in (1, 2, 5, 11):   # the first and second before anything but step 0 is saved
        p, folder = parts(), tmp_path / str(failing)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        run = Checkpoints(folder, p, {"width": [5, 5]})
        with pytest.raises(ZeroDivisionError):
            for step in steps(TOTAL, run, EVERY):
                one_step(p, step)
                p["history"] += [1 / (failing - step)]
                p["history"].pop()
        assert run.saved()[-1] == (failing - 1) // EVERY * EVERY
        for step in steps(TOTAL, run, EVERY):
            one_step(p, step)
        same(folder, whole)


def killed_at_line(folder, line):
    """A run that is killed at the ``line``-th line executed in training.py, files.py or this file; counts lines where ``line`` is None."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in (training.__file__, files.__file__, __file__):
            return None
        count += event == "line"
        if count == line:
            kill()
        return trace

    sys.settrace(trace)
    try:
        train(folder, seed=random.randrange(10**6))
    finally:
        sys.settrace(None)
    return count


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_line_and_resumed_until_done(whole, tmp_path, seed):
    draw = random.Random(seed)
    train(tmp_path, total=0)   # all attempts after this begin from seed 0's weights
    lines, kills = killed_at_line(tmp_path / "count", None), 0
    while child(lambda: killed_at_line(tmp_path, draw.randrange(100, lines // 3))) == -signal.SIGKILL:
        kills += 1
        draw.random()
        assert kills < 60, "it does not get on"
    same(tmp_path, whole)
    assert kills >= 2 and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("place", ["half", "fsync", "replace", "replaced", "unlink"])
def test_killed_in_the_middle_of_writing(whole, tmp_path, monkeypatch, place):
    train(tmp_path, total=4)
    before = Checkpoints(tmp_path, {}).saved()

    class Half(io.FileIO):
        def write(self, data):
            super().write(data[: len(data) // 2])
            kill()

    replace, unlink = os.replace, Path.unlink

    def replaced(*paths):
        replace(*paths)
        kill()

    with monkeypatch.context() as patch:
        if place == "half":
            patch.setattr(files, "open", Half, raising=False)
        elif place == "unlink":
            patch.setattr(Path, "unlink", lambda path, *a, **k: (unlink(path, *a, **k), kill()))
        else:
            patch.setattr(os, place.removesuffix("d"), {"replaced": replaced}.get(place, lambda *a: kill()))
        assert child(lambda: train(tmp_path, seed=1)) == -signal.SIGKILL
    after = Checkpoints(tmp_path, {}).saved()
    assert after == {"replaced": [*before, 6], "unlink": [before[-1], 6]}.get(place, before)
    assert len(list(tmp_path.glob(".*"))) == (place in ("half", "fsync", "replace"))
    train(tmp_path, seed=2)
    same(tmp_path, whole)
    assert not list(tmp_path.glob(".*"))


def test_the_rest_of_a_killed_write_of_another_step_is_removed(tmp_path):
    run = Checkpoints(tmp_path, {})
    (tmp_path / ".step-00000005.safetensors.part").touch()
    (tmp_path / ".other.part").touch()
    run.save(7)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".other.part"]


def test_two_runs_in_one_folder_leave_each_other_what_they_write(tmp_path, monkeypatch):
    """As from two kernels of one notebook."""
    fsync, unlink = os.fsync, Path.unlink

    def meanwhile(file):
        monkeypatch.setattr(os, "fsync", fsync)
        assert child(lambda: Checkpoints(tmp_path, {}).save(5)) == 0
        fsync(file)

    monkeypatch.setattr(os, "fsync", meanwhile)
    Checkpoints(tmp_path, {}).save(7)
    assert Checkpoints(tmp_path, {}).saved() == [5, 7] and not list(tmp_path.glob(".*"))
    monkeypatch.setattr(Path, "unlink", lambda path, *a, **k: (os.remove(path), unlink(path, *a, **k)))   # the other one was quicker
    Checkpoints(tmp_path, {}).save(8)
    assert Checkpoints(tmp_path, {}).saved() == [7, 8]


# --- Ctrl-C -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_a_signal_is_held_back_until_the_step_is_saved(whole, tmp_path, number):
    handler, whole_steps = signal.getsignal(number), []

    def at(step, p):
        if step == 5:
            os.kill(os.getpid(), number)
            assert signal.getsignal(number) is not handler
            time.sleep(0.01)
        whole_steps.append(step)

    with pytest.raises(KeyboardInterrupt, match=f"stopped after step 5 of {TOTAL}, which is saved in"):
        train(tmp_path, at=at)
    assert whole_steps == [1, 2, 3, 4, 5] and Checkpoints(tmp_path, {}).saved() == [3, 5]
    assert signal.getsignal(number) is handler
    train(tmp_path, seed=1)
    same(tmp_path, whole)
    assert signal.getsignal(number) is handler


def test_a_second_ctrl_c_stops_at_once(whole, tmp_path):
    reached = []

    def at(step, p):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("first")
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
            reached.append("second")

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at=at)
    assert reached == ["first"] and Checkpoints(tmp_path, {}).saved() == [0, 3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(tmp_path, seed=1)
    same(tmp_path, whole)


def test_kill_after_ctrl_c_ends_the_process(tmp_path):
    def at(step, p):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    assert child(lambda: train(tmp_path, at=at)) == -signal.SIGTERM
    assert Checkpoints(tmp_path, {}).saved() == [0, 3]


def test_a_child_that_is_forked_in_the_loop_can_be_ended(tmp_path):
    """A pool ends its workers by SIGTERM, and waits for them."""
    states, runs = [], FORK.Event()

    def at(step, p):
        if step == 5:
            process = FORK.Process(target=lambda: (runs.set(), time.sleep(60)))
            process.start()
            runs.wait(20)
            process.terminate()
            process.join(20)
            states.append(process.exitcode)

    train(tmp_path, at=at)
    assert states == [-signal.SIGTERM]


def test_a_second_ctrl_c_while_saving_leaves_no_half_file(tmp_path, monkeypatch):
    fsync = os.fsync

    def interrupted(file):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        fsync(file)

    def at(step, p):
        if step == 2:
            monkeypatch.setattr(os, "fsync", interrupted)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at=at)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000000.safetensors"]


def test_ctrl_c_during_the_last_save_is_not_swallowed(whole, tmp_path, monkeypatch):
    handler, fsync = signal.getsignal(signal.SIGINT), os.fsync

    def interrupted(file):
        os.kill(os.getpid(), signal.SIGINT)
        fsync(file)

    def at(step, p):
        if step == TOTAL:
            monkeypatch.setattr(os, "fsync", interrupted)

    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {TOTAL} of {TOTAL}, which is saved in"):
        train(tmp_path, at=at)
    same(tmp_path, whole)
    assert signal.getsignal(signal.SIGINT) is handler and not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    asked = []
    with pytest.raises(KeyboardInterrupt, match="stopped after step 2 of 2"):   # another process was interrupted
        list(steps(2, Checkpoints(tmp_path / "b", {}), 5, lambda mine: asked.append(mine) or len(asked) == 3))


def test_in_another_thread_and_where_ctrl_c_is_ignored(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.extend(steps(4, Checkpoints(tmp_path, {}), 2)))
    thread.start()
    thread.join()
    assert found == [1, 2, 3, 4]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)   # as under nohup
    try:
        for _ in steps(6, Checkpoints(tmp_path, {}), 2):
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


SCRIPT = """
def small(folder, seed, pause):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random.seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters())
    for step in steps(40, Checkpoints(folder, {"model": model, "optimizer": optimizer}), 10):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
        time.sleep(pause)
"""
IMPORTS = "import random, sys, time, torch\nfrom coursekit.training import Checkpoints, steps"
exec(SCRIPT)


def test_interrupted_from_outside_and_gone_on_with_in_a_new_interpreter(tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    small(whole, 0, 0)  # noqa: F821 - SCRIPT's
    process = FORK.Process(target=small, args=(pieces, 0, 0.02))  # noqa: F821
    process.start()
    while process.is_alive() and 10 not in Checkpoints(pieces, {}).saved():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 1 and 10 < Checkpoints(pieces, {}).saved()[-1] < 40
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = f"{IMPORTS}\n{SCRIPT}\nsmall({str(pieces)!r}, 5, 0)"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
    assert flat(pieces, 40) == flat(whole, 40)


# --- what must be refused -----------------------------------------------------------------------------------------------


def spoil_truncated(path, data):
    path.write_bytes(data[: len(data) // 2])


def spoil_empty(path, data):
    path.write_bytes(b"")


def spoil_tensor(path, data):
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


def spoil_json(path, data):
    path.write_bytes(data.replace(rb"\"lr\": 0.", rb"\"lr\": 9.", 1))


def spoil_plain(path, data):
    safetensors.torch.save_file({"a": torch.ones(2)}, path)


def spoil_weights(path, data):
    save_weights(nn.Linear(1, 1), path)


def spoil_renamed(path, data):
    path.write_bytes((path.parent / "step-00000003.safetensors").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_truncated, "is damaged, or no safetensors file"),
        (spoil_empty, "is damaged, or no safetensors file"),
        (spoil_tensor, "is damaged"),
        (spoil_json, "is damaged"),
        (spoil_plain, r"not written by coursekit.training: its header holds \[\]"),
        (spoil_weights, "holds no run: it has been renamed"),
        (spoil_renamed, "holds 3: it has been renamed"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_older_one_offered(whole, tmp_path, spoil, message):
    train(tmp_path, total=6)
    path = tmp_path / "step-00000006.safetensors"
    data = path.read_bytes()
    spoil(path, data)
    assert path.read_bytes() != data
    spoiled, p = {file: file.read_bytes() for file in tmp_path.iterdir()}, parts(1)
    before = [weight.clone() for weight in p["model"].parameters()]
    with pytest.raises(CheckpointError, match=rf"step-00000006.*{message}.*Move it away to go on from step 3"):
        list(steps(TOTAL, Checkpoints(tmp_path, p, {"width": [5, 5]}), EVERY))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == spoiled
    assert all(torch.equal(a, b) for a, b in zip(before, p["model"].parameters(), strict=True))
    path.rename(tmp_path / "away")
    train(tmp_path, seed=1)
    same(tmp_path, whole)


def test_the_only_checkpoint_is_damaged(tmp_path):
    Checkpoints(tmp_path, {}).save(0)
    spoil_empty(tmp_path / "step-00000000.safetensors", b"")
    with pytest.raises(CheckpointError, match="Move it away to start again"):
        Checkpoints(tmp_path, {}).resume()


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({}, {"width": [5, 6], "lr": 1}, r"width is \[5, 5\] in the file, \[5, 6\] here; settings lr is nothing in the file, 1 here"),
        (parts(0, 6), {}, r"model 0.weight is \[5, 2, 3, 3\] torch.float32 in the file, \[6, 2, 3, 3\] .*; and \d+ more\. Go back"),
        ({"model": Net().double()}, {}, r"model 0.weight is \[5, 2, 3, 3\] torch.float32 in the file, \[5, 2, 3, 3\] torch.float64 here"),
        ({"optimizer": torch.optim.SGD(Net().parameters())}, {}, "parts optimizer is AdamW in the file, SGD here"),
        ({"optimizer": torch.optim.AdamW(list(Net().parameters())[:2])}, {}, "group 0 is 6 parameters in the file, 2 parameters here"),
        ({"more": []}, {}, "parts more is nothing in the file, list here"),
    ],
)
def test_another_run_is_told_what_differs(whole, change, settings, message):
    before, p = flat(whole), parts(1) | change
    weight = p["model"][0].weight.clone()
    with pytest.raises(CheckpointError, match=f"step-000000{TOTAL}.*belongs to another run: .*{message}"):
        Checkpoints(whole, p, {"width": [5, 5]} | settings).resume()
    assert flat(whole) == before and torch.equal(p["model"][0].weight, weight)


def test_five_differences_are_listed_and_the_others_counted(tmp_path):
    Checkpoints(tmp_path, {}, dict.fromkeys("abcde", 1)).save(0)
    with pytest.raises(CheckpointError, match=r"settings e is 1 in the file, nothing here. Go back"):
        Checkpoints(tmp_path, {}).resume()
    with pytest.raises(CheckpointError, match=r"settings e is 1 in the file, nothing here; and 1 more. Go back"):
        Checkpoints(tmp_path, {}, {"f": 1}).resume()


def test_no_step_is_saved_below_another(tmp_path):
    run = Checkpoints(tmp_path, {})
    run.save(5)
    run.save(5)
    with pytest.raises(CheckpointError, match="holds step 5, so not step 4: resume"):
        run.save(4)
    assert run.saved() == [5]


def test_a_full_disk(tmp_path, monkeypatch):
    train(tmp_path, total=6)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))   # really: the kernel refuses what comes after 5000 bytes
    try:
        with pytest.raises(CheckpointError, match=r"step-00000009.*could not be written: .*What was saved before is whole"):
            train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    for name in ("fsync", "replace"):

        def full(*arguments):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="No space left"):
            patch.setattr(os, name, full)
            train(tmp_path)
        assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(CheckpointError, match="could not be written"):
        Checkpoints(next(iter(before)), {}).save(0)   # the folder is a file


def test_nothing_that_is_not_finite_is_saved(tmp_path):
    def at(step, p):
        with torch.no_grad():
            p["model"][4].weight[0, 3] = {5: torch.nan}.get(step, 0.0)

    with pytest.raises(NonFinite, match=r"loss of step 6 is .*nan.*The checkpoints hold the steps before.*smaller learning rate"):
        train(tmp_path, at=at)
    assert Checkpoints(tmp_path, {}).saved() == [0, 3]
    p = parts()
    with torch.no_grad():
        p["model"][0].bias[1] = torch.inf
    with pytest.raises(NonFinite, match=r"model.0.bias is not finite at step 9, which is not saved; \[0, 3\] are"):
        Checkpoints(tmp_path, p).save(9)
    assert Checkpoints(tmp_path, {}).saved() == [0, 3]
    for bad in (float("inf"), torch.tensor([1.0, torch.nan]), torch.tensor(-torch.inf, dtype=torch.float16)):
        with pytest.raises(ArithmeticError, match=r"step 3 \(images 4, 7\) is"):
            check_finite(bad, 3, "images 4, 7")
    check_finite(1.0, 3)
    check_finite(torch.zeros(2, 2), 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: list(steps(3, Checkpoints(f, {}), 0)), ValueError, "every must be at least 1, got 0"),
        (lambda f: Checkpoints(f, {}, keep=0), ValueError, "keep must be at least 1, got 0"),
        (lambda f: Checkpoints(f, {"a": 3}), TypeError, r"parts\['a'\] is a int"),
        (lambda f: Checkpoints(f, {}, {"a": torch.ones(1)}), TypeError, "not JSON serializable"),
        (lambda f: Checkpoints(f, {"h": [1, {"a": (2, {3})}]}).save(0), TypeError, "h.1.a.1 is a set; saved are"),
        (lambda f: Checkpoints(f, {"h": [torch.ones(1).cdouble()]}).save(0), TypeError, "h.0 is a tensor of torch.complex128, which"),
        (lambda f: load_weights(nn.Linear(1, 1), f / "none"), CheckpointError, "none cannot be read"),
        (lambda f: load_weights(nn.Linear(1, 1), f), CheckpointError, "cannot be read"),
    ],
)
def test_bad_input_is_answered(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


# --- files --------------------------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back(tmp_path):
    tied = torch.randn(3, 2)
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    values = {
        "tree": {(1, "k"): -torch.inf, "a.b": tied, "a": {"b": tied.t()}, 0: (1, (2.5, None)), "0": [True, "x", [], {}], "$tuple": "no"},
        "kinds": [torch.tensor(3), torch.empty(0, 2), torch.ones(2, dtype=torch.bfloat16), torch.tensor([True]), np.float64(0.1), last],
        "ordered": OrderedDict(z=1, a=2), "counter": Counter({30: 2}), "big": [2**80, 0.1 + 0.2, torch.rand(4, 5)[1:3, ::2]],
    }  # fmt: skip
    path = tmp_path / "x"
    training._write(path, values, note={"$keys": 1})
    back, header = training._read(path)
    assert header == {"note": {"$keys": 1}} and list(back) == list(values)
    a, b = values["tree"].pop("a.b"), values["tree"].pop("a")["b"]
    assert torch.equal(back["tree"].pop("a.b"), a) and torch.equal(back["tree"].pop("a")["b"], b)
    assert back["tree"] == values["tree"] and type(back["tree"][0]) is tuple and type(back["tree"]["0"][0]) is bool
    for new, old in zip(back["kinds"], values["kinds"], strict=True):
        assert new == old if not isinstance(old, torch.Tensor) else (torch.equal(new, old) and new.dtype == old.dtype)
    assert back["kinds"][-1].stride() == last.stride()
    assert list(back["ordered"]) == ["z", "a"] and back["counter"] == {30: 2}
    assert back["big"][:2] == values["big"][:2] and torch.equal(back["big"][2], values["big"][2])
    with open(path, "r+b") as file:
        file.truncate(10)   # what was read is no view of the file
    assert torch.equal(back["kinds"][2].float(), torch.ones(2))
    square = torch.randn(2, 2, 2, 2)
    training._write(path, {"a": square, "b": square.transpose(0, 3), "c": torch.randn(3, 2, 2)})
    back = training._read(path)[0]
    assert torch.equal(back["b"], square.transpose(0, 3)) and back["a"].is_contiguous()


def test_a_run_goes_on_without_the_gpus_that_it_had(monkeypatch):
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: pytest.fail("states of GPUs that are not here"))
    here = training._GlobalGenerators()
    drawn = here.state_dict() | {"cuda": [torch.get_rng_state()] * (torch.cuda.device_count() + 1)}
    first = torch.rand(3)
    here.load_state_dict(drawn)
    assert torch.equal(torch.rand(3), first)


def test_steps_beyond_eight_digits(tmp_path):
    run = Checkpoints(tmp_path, {"history": []})
    for step in (99_999_999, 123_456_789):
        run.save(step)
    assert run.saved() == [99_999_999, 123_456_789] and run.resume() == 123_456_789


def test_a_checkpoint_is_readable_by_others(whole):
    tensors = safetensors.torch.load_file(whole / f"step-{TOTAL:08}.safetensors")
    assert {"model.0.weight", "ema.module.0.weight", "optimizer.state.0.exp_avg", "generator", "global generators.torch"} <= tensors.keys()
    assert saved_settings(whole / f"step-{TOTAL:08}.safetensors") == {"width": [5, 5]}


def test_weights(tmp_path, monkeypatch):
    model, path = parts(3)["model"].eval(), tmp_path / "new" / "net.safetensors"
    save_weights(model, str(path), {"width": 5})
    assert sorted(safetensors.torch.load_file(path)) == sorted(model.state_dict())
    other = Net(**saved_settings(path)).eval()
    load_weights(other, str(path))
    x = torch.randn(2, 2, 4, 4)
    assert torch.allclose(other(x), model(x), atol=1e-6)   # one has its channels last
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values(), strict=True))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    for wrong in (Net(6), nn.Linear(2, 2), nn.Sequential(*other, nn.Linear(1, 1))):
        with pytest.raises(CheckpointError, match=r"net.safetensors does not fit: \w+ .* here.*Construct the module from saved_settings"):
            load_weights(wrong, path)
    data = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(CheckpointError, match=r"net.safetensors could not be written"):
        save_weights(Net(7), path)
    assert path.read_bytes() == data and len(list(path.parent.iterdir())) == 1
    monkeypatch.undo()
    spoil_tensor(path, data)
    with pytest.raises(CheckpointError, match=r"net.safetensors is damaged"):
        load_weights(other, path)
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    save_weights(model, path)
    assert saved_settings(path) == {}
    Checkpoints(tmp_path, {"model": model}).save(0)
    with pytest.raises(CheckpointError, match="is a checkpoint of a whole run"):
        load_weights(model, tmp_path / "step-00000000.safetensors")
