"""The trainer, killed, interrupted, short of room and misled: what it has made in the end is what a run nobody disturbed makes."""

import errno
import json
import os
import random
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from filelock import FileLock
from safetensors import safe_open
from test_training import FORK, generators_as_before, kill  # noqa: F401 - a fixture for every test here as well

from coursekit import files
from coursekit.diffusion import __main__ as command
from coursekit.diffusion import train
from coursekit.diffusion.settings import Settings, parse
from coursekit.training import Checkpoints

TINY = ["--unet_dim", "8", "--batch_size", "6", "--time_steps", "5", "--train_steps", "11", "--save_and_sample_every", "4", "--seed", "3"]
SHOWN = ["losses.csv", "losses_by_step.csv", "samples/step-00000004.png", "samples/step-00000008.png", "samples/step-00000011.png"]


def start(folder, *more, before=lambda: None, log=os.devnull):
    """The command in a fork, its output in ``log``; ``before`` prepares what is to go wrong."""

    def target():
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
            AcceleratorState._reset_state(reset_partial_state=True)   # a run before, in the parent, has settled devices and precision
            before()
            os._exit(command.main([*TINY, "--save_folder", str(folder), *more]))

    process = FORK.Process(target=target)
    process.start()
    return process


def run(folder, *more, before=lambda: None, log=os.devnull):
    """Its exit status, negative for a signal."""
    process = start(folder, *more, before=before, log=log)
    process.join(60)
    return process.exitcode


def content(path):
    """All that a safetensors file holds: the order of its header is no one's promise."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata()["state"], {name: (t.dtype, t.shape, t.reshape(-1).view(torch.uint8).tolist()) for name, t in tensors.items()}


def same(folder, whole):
    for name in SHOWN:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    for name in ("model.safetensors", "checkpoints/step-00000008.safetensors", "checkpoints/step-00000011.safetensors"):
        assert content(folder / name) == content(whole / name), name
    assert not left_behind(folder)


def left_behind(folder):
    """Hidden files, but for the one that keeps a second trainer out."""
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(folder) == 0
    return folder


def counted(owner, name, at, act, monkeypatch_set=setattr):
    """Replace ``owner.name`` by itself, but for its call number ``at``, before which ``act`` happens."""
    original, calls = getattr(owner, name), []

    def patched(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            act()
        return original(*args, **kwargs)

    monkeypatch_set(owner, name, patched)


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("owner", "name", "calls"), [
    (train.AveragedModel, "update_parameters", 11),   # within a step: the weights have moved, their average has not
    (os, "replace", 19),                              # a checkpoint, a picture, a table or the weights lie beside their place
    (os, "fsync", 6),                                 # a file is being written
    (train, "png", 3),
], ids=["step", "replace", "fsync", "png"])  # fmt: skip
def test_killed_there_it_goes_on_bit_for_bit(tmp_path, whole, owner, name, calls):
    """Killed at a random call of each, then at random calls of the run that was resumed, until it gets through."""
    draw = random.Random(f"{name}")
    status, kills, at = -9, 0, draw.randint(1, calls)
    while status == -signal.SIGKILL and kills < 5:
        status = run(tmp_path, *(["--resume"] * bool(kills)), before=lambda at=at: counted(owner, name, at, kill))
        kills, at = kills + (status == -signal.SIGKILL), draw.randint(1, calls)
    if status:
        status = run(tmp_path, "--resume")
    assert status == 0 and kills >= 1
    same(tmp_path, whole)


def test_killed_at_any_time(tmp_path, whole):
    """From outside, after times that nothing in the program knows of, most of them short of a whole run."""
    begun = time.perf_counter()
    assert run(tmp_path / "timed") == 0
    length = time.perf_counter() - begun
    draw, status, kills = random.Random(0), None, 0
    for _ in range(4):
        process = start(tmp_path / "run", "--resume")
        process.join(draw.uniform(0.3, 1) * length)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        status, kills = process.exitcode, kills + (process.exitcode == -signal.SIGKILL)
        assert status in (0, -signal.SIGKILL)
    assert run(tmp_path / "run", "--resume") == 0
    same(tmp_path / "run", whole)
    same(tmp_path / "timed", whole)


def test_a_thread_that_works_ahead_changes_nothing(tmp_path, whole):
    at = lambda: counted(train.AveragedModel, "update_parameters", 7, kill)  # noqa: E731
    assert run(tmp_path, "--workers", "3", before=at) == -signal.SIGKILL
    assert run(tmp_path, "--workers", "2", "--resume") == 0
    same(tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, whole, number):
    before = lambda: counted(train.AveragedModel, "update_parameters", 6, lambda: os.kill(os.getpid(), number))  # noqa: E731
    assert run(tmp_path / "a b", before=before, log=tmp_path / "log") == 130
    assert max(Checkpoints(tmp_path / "a b" / "checkpoints", {}).saved()) == 6
    said = (tmp_path / "log").read_text()
    again = f"{shlex.quote(sys.executable)} -m coursekit.diffusion {' '.join(TINY)} --save_folder '{tmp_path}/a b' --resume"
    assert f"To go on: {again}\n" in said
    assert "Traceback" not in said and "step 6 of 11" in said
    assert run(tmp_path / "a b", "--resume") == 0
    same(tmp_path / "a b", whole)


def test_more_steps_than_at_first(tmp_path, whole):
    """8 steps and then 11 are 11 steps: the learning rate is constant."""
    assert run(tmp_path, "--train_steps", "8") == 0
    assert run(tmp_path, "--resume") == 0
    same(tmp_path, whole)
    assert run(tmp_path, "--resume", "--train_steps", "10", log=tmp_path / "log") == 2
    assert "more than the 10 asked for" in (tmp_path / "log").read_text()


def test_checkpoints_may_come_at_other_steps(tmp_path, whole):
    """How often a run is saved changes nothing of what it learns."""
    assert run(tmp_path, "--train_steps", "8", "--save_and_sample_every", "3") == 0
    assert run(tmp_path, "--resume") == 0
    assert content(tmp_path / "model.safetensors") == content(whole / "model.safetensors")
    for name in ("losses_by_step.csv", "samples/step-00000011.png"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    assert [line.split(",")[0] for line in (tmp_path / "losses.csv").read_text().splitlines()[1:]] == ["3", "6", "8", "11"]


# --- what is refused ----------------------------------------------------------------------------------------------------


def snapshot(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def copy(tmp_path, whole):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def refused(folder, *more, status=1, log, before=lambda: None):
    before_it = snapshot(folder)
    assert run(folder, *more, log=log, before=before) == status
    assert snapshot(folder) == before_it, "something was overwritten"
    said = log.read_text()
    assert "Traceback" not in said
    return said


def test_a_second_run_in_the_folder_of_a_first(copy, tmp_path):
    said = refused(copy, log=tmp_path / "log")
    assert "holds a run, saved up to step 11" in said and "--resume" in said and "--save_folder" in said
    shutil.rmtree(copy / "checkpoints")
    assert "holds model.safetensors of a run" in refused(copy, log=tmp_path / "log2")


def test_a_second_trainer_beside_a_first(copy, tmp_path, whole):
    """Nothing is changed while another process holds the folder; a killed one holds it no longer."""
    shutil.copytree(copy / "samples", tmp_path / "begun" / "samples")   # what a run that has saved nothing yet may have written
    with FileLock(copy / ".lock"), FileLock(tmp_path / "begun" / ".lock"):
        assert "another run trains in" in refused(copy, "--resume", "--train_steps", "12", log=tmp_path / "log")
        assert "another run trains in" in refused(tmp_path / "begun", log=tmp_path / "log")
        assert run(tmp_path / "drawn", "--load_path", str(copy), "--visualize") == 0, "to draw from its weights is no training"
    at = lambda: counted(train.AveragedModel, "update_parameters", 6, kill)  # noqa: E731
    assert run(tmp_path / "killed", before=at) == -signal.SIGKILL
    assert run(tmp_path / "killed", "--resume") == 0
    same(tmp_path / "killed", whole)


def test_times_add_up_to_all_steps(tmp_path):
    """However often the run was stopped or killed: the last line of a step counts."""
    stop = lambda n: lambda: counted(train.AveragedModel, "update_parameters", n, lambda: os.kill(os.getpid(), signal.SIGINT))  # noqa: E731
    assert run(tmp_path, before=stop(6)) == 130
    assert run(tmp_path, "--resume", before=lambda: counted(train._Run, "write_results", 1, kill)) == -signal.SIGKILL
    assert run(tmp_path, "--resume", before=stop(1)) == 130
    assert run(tmp_path, "--resume") == 0
    header, *lines = [line.split(",") for line in (tmp_path / "times.csv").read_text().splitlines()]
    steps_done = {int(step): int(steps) for step, steps, _ in lines}
    assert header == ["step", "steps", "seconds"] and sum(steps_done.values()) == 11
    assert steps_done == {4: 4, 6: 2, 7: 1, 8: 1, 11: 3} and all(float(seconds) > 0 for *_, seconds in lines)


def test_resume_where_nothing_is_starts(tmp_path, whole):
    assert run(tmp_path / "new", "--resume", log=tmp_path / "log") == 0
    assert "so this is the start" in (tmp_path / "log").read_text()
    same(tmp_path / "new", whole)


@pytest.mark.parametrize("damage", ["cut", "tampered", "empty", "another file"])
def test_a_damaged_checkpoint(copy, tmp_path, damage, whole):
    newest = copy / "checkpoints" / "step-00000011.safetensors"
    data = bytearray(newest.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "tampered":
        data[-100] ^= 1
    else:
        data = bytearray(b"" if damage == "empty" else b"hello")
    newest.write_bytes(data)
    said = refused(copy, "--resume", log=tmp_path / "log")
    assert str(newest) in said and "Move it away to go on from step 8" in said
    newest.unlink()
    assert run(copy, "--resume") == 0
    same(copy, whole)


@pytest.mark.parametrize(("flags", "found"), [
    (["--unet_dim", "16"], "settings unet_dim is 8 in the file, 16 here"),
    (["--learning_rate", "0.1"], "settings learning_rate is 0.001 in the file, 0.1 here"),
    (["--batch_size", "5"], "settings batch_size is 6 in the file, 5 here"),
    (["--time-steps", "6"], "settings time_steps is 5 in the file, 6 here"),
    (["--seed", "4"], "settings seed is 3 in the file, 4 here"),
    (["--loss", "l2"], "settings loss is l1 in the file, l2 here"),
    (["--image_size", "16"], "settings image_size is 8 in the file, 16 here"),
    (["--precision", "bf16"], "settings precision is no in the file, bf16 here"),
])  # fmt: skip
def test_another_run_is_not_resumed(copy, tmp_path, flags, found):
    said = refused(copy, "--resume", *flags, log=tmp_path / "log")
    assert found in said and "belongs to another run" in said and "a line here" not in said


def test_another_architecture_under_the_same_settings(copy, tmp_path):
    def widen():
        original = train.DenoisingUNet
        train.DenoisingUNet = lambda dim, channels: original(2 * dim, channels=channels)

    said = refused(copy, "--resume", log=tmp_path / "log", before=widen)
    assert "belongs to another run" in said and "step-00000011" in said


def test_other_pictures(copy, tmp_path):
    original = train.Pictures.load

    def darken():
        def load(settings):
            loaded = original(settings)
            loaded.images.sub_(loaded.images.clamp(max=1))
            return loaded

        train.Pictures.load = load

    assert "settings digest is" in refused(copy, "--resume", log=tmp_path / "log", before=darken)


def full_disk(path_part):
    """From now on no byte goes into a file whose name holds ``path_part``."""

    def patch():
        real_open = open

        class Full:
            def __init__(self, file):
                self.file = file

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, data):
                self.file.write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")

        def opened(file, kind="r", *args, **kwargs):
            made = real_open(file, kind, *args, **kwargs)
            return Full(made) if path_part in str(file) and "w" in kind else made

        files.open = opened

    return patch


@pytest.mark.parametrize("full", [".step-00000008.safetensors", ".model.safetensors", ".losses.csv", ".losses_by_step.csv", ".times.csv",
                                  ".step-00000008.png"])  # fmt: skip
def test_a_full_disk(tmp_path, whole, full):
    """What was there stays whole, the message names the file, and with room again nothing is lost."""
    armed = lambda: counted(train._Run, "write_results", 2, full_disk(full))  # noqa: E731
    assert run(tmp_path / "run", before=armed, log=tmp_path / "log") == 1
    said = (tmp_path / "log").read_text()
    assert "No space left on device" in said and full[1:] in said and "Traceback" not in said
    assert not left_behind(tmp_path / "run"), "a half-written file was left"
    assert (tmp_path / "run" / "losses.csv").read_text().startswith("step,loss\n4,")
    assert (tmp_path / "run" / "times.csv").read_text().startswith("step,steps,seconds\n4,4,")
    assert max(Checkpoints(tmp_path / "run" / "checkpoints", {}).saved()) == 4
    assert run(tmp_path / "run", "--resume") == 0
    same(tmp_path / "run", whole)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, whole):
    """In the sixth step: the checkpoint of the fourth is kept, and goes on to what an undisturbed run makes."""

    def poison():
        original, calls = train.Diffusion.p_loss, []

        def p_loss(self, *args):
            calls.append(1)
            return original(self, *args) * (float("nan") if len(calls) == 6 else 1)

        train.Diffusion.p_loss = p_loss

    assert run(tmp_path / "run", before=poison, log=tmp_path / "log") == 1
    said = (tmp_path / "log").read_text()
    assert "the loss of step 6 (pictures [" in said and "smaller learning rate" in said and "Traceback" not in said
    named = json.loads(said[said.index("(pictures [") + 10 : said.index("])") + 1])
    assert len(named) == 6 and all(0 <= place < 1797 for place in named)
    assert max(Checkpoints(tmp_path / "run" / "checkpoints", {}).saved()) == 4
    assert run(tmp_path / "run", "--resume") == 0
    same(tmp_path / "run", whole)


@pytest.mark.parametrize(("skipped", "status"), [("-" * 19, 0), ("-" * 20, 1), ("-" * 10 + "+" + "-" * 19, 0)])
def test_half_precision_that_learns_nothing_stops_the_run(tmp_path, skipped, status):
    """A scaler skips the steps whose gradients overflow. A few are its way to find its scale; twenty in a row learn nothing."""
    def overflow():
        asked = iter(skipped)

        class Skips(train.Accelerator):
            optimizer_step_was_skipped = property(lambda self: next(asked, "+") == "-")

        train.Accelerator = Skips

    assert run(tmp_path / "run", "--train_steps", "31", before=overflow, log=tmp_path / "log") == status
    said = (tmp_path / "log").read_text()
    assert ("20 steps in a row, up to 20, are not finite" in said) == bool(status) and "Traceback" not in said
    assert max(Checkpoints(tmp_path / "run" / "checkpoints", {}).saved()) == (16 if status else 31)


def test_a_run_is_not_the_same_for_another_seed(tmp_path, whole):
    """So the comparisons above can fail."""
    assert run(tmp_path, "--seed", "4") == 0
    assert (tmp_path / "losses.csv").read_bytes() != (whole / "losses.csv").read_bytes()
    assert Settings(seed=4).identity() != Settings(seed=3).identity()


@pytest.mark.parametrize("given", [["--save_folder", "resume_me"], ["--resume", "False"], ["--resume"], ["--resume", "--seed", "1"]])
def test_the_line_to_go_on_resumes(given, monkeypatch, capsys):
    def stopped(_):
        raise KeyboardInterrupt("stopped")

    monkeypatch.setattr(train, "train", stopped)
    assert command.main(given) == 130
    words = shlex.split(capsys.readouterr().err.partition(f"To go on: {shlex.quote(sys.executable)} -m coursekit.diffusion ")[2])
    assert parse(words).resume and "--resume" in words


def test_stopped_before_anything_was_saved_says_so(monkeypatch, capsys):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", stopped)
    assert command.main([]) == 130 and capsys.readouterr().err.startswith("stopped at once.\nTo go on: ")
