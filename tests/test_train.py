"""The trainer's flags, its draws, its steps, what it writes, and several processes that train like one."""

import io
import os
import shutil
import signal
import socket
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from test_train_restart import counted, run, start
from torch.optim.swa_utils import AveragedModel

from coursekit.data import DataError, digits
from coursekit.data.pixels import to_signed
from coursekit.diffusion import NoiseSchedule, train
from coursekit.diffusion.__main__ import main
from coursekit.diffusion.batches import Draws, Pictures
from coursekit.diffusion.pictures import png, stamps, strips
from coursekit.diffusion.process import Diffusion
from coursekit.diffusion.results import History
from coursekit.diffusion.settings import Settings, SettingsError, parse
from coursekit.diffusion.unet import DenoisingUNet
from coursekit.training import CheckpointError, Checkpoints, load_weights, save_weights, saved_settings, steps

TINY = ["--unet_dim", "8", "--batch_size", "6", "--time_steps", "5"]


def tiny(folder, **more):
    return Settings(**{"image_size": 8, "unet_dim": 8, "batch_size": 6, "time_steps": 5, "train_steps": 3, "save_folder": folder, **more})


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A folder as the handout's: 7 cats, of which each is one colour, and 3 dogs; 9×8 pixels."""
    monkeypatch.setenv("COURSEKIT_DATA", str(tmp_path / "data"))
    for name, count in {"cat": 7, "dog": 3}.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (9, 8), (30 * i, 100, 255)).save(tmp_path / "train" / name / f"{i}.png")
    return tmp_path / "train"


# --- flags --------------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_recommended_command():
    command = "--data_path d --time_steps 50 --train_steps 10000 --image_size 32 --batch_size 32 --learning_rate 1e-3 --unet_dim 16"
    recommended = parse(command.split(" "))
    assert recommended == parse(["--data_path", "d"]) == Settings(data_path="d")
    assert (recommended.data_class, str(recommended.save_folder), recommended.save_and_sample_every) == ("cat", "results", 1000)
    assert (recommended.fid, recommended.visualize, recommended.loss, recommended.load_path) == (False, False, "l1", None)
    assert parse([]).image_size == 8 and parse(["--image_size", "16"]).image_size == 16, "the digits are 8×8"


@pytest.mark.parametrize(("flag", "text", "value"), [
    ("image_size", "64", 64), ("batch_size", "7", 7), ("data_class", "wild", "wild"), ("train_steps", "5", 5), ("time_steps", "6", 6),
    ("unet_dim", "24", 24), ("learning_rate", "2e-4", 2e-4), ("save_and_sample_every", "9", 9), ("seed", "4294967295", 2**32 - 1),
    ("loss", "l2", "l2"), ("precision", "bf16", "bf16"), ("workers", "2", 2), ("tracker", "none", "none"), ("fid_samples", "10", 10),
])  # fmt: skip
def test_each_flag_in_each_spelling(flag, text, value):
    for spelling in (f"--{flag}", f"--{flag.replace('_', '-')}"):
        assert getattr(parse([spelling, text]), flag) == getattr(parse([f"{spelling}={text}"]), flag) == value


def test_paths():
    settings = parse(["--data-path", "~/d", "--save_folder=a_b-c", "--data_class", "all"])
    assert str(settings.data_path) == os.path.expanduser("~/d") and str(settings.save_folder) == "a_b-c"


@pytest.mark.parametrize("flag", ["fid", "visualize", "resume", "skip_bad"])
def test_switches(flag):
    """As a bare flag and with a value, which the handout mixes (E3.24)."""
    for text, value in ((None, True), ("True", True), ("true", True), ("False", False), ("false", False), ("0", False), ("1", True)):
        assert getattr(parse([f"--{flag}", *([text] if text else [])]), flag) is value
        assert getattr(parse([f"--{flag}", *([text] if text else []), "--seed", "1"]), flag) is value
    assert getattr(parse([]), flag) is False


@pytest.mark.parametrize(("flag", "value", "right"), [
    ("image_size", "abc", "a whole number, 8 or more, in multiples of 8; got 'abc'"), ("image_size", "32.0", "a whole number"),
    ("image_size", "20", "in multiples of 8"), ("unet_dim", "12", "in multiples of 8"), ("batch_size", "0", "a whole number, 1 or more"),
    ("batch_size", "-3", "a whole number, 1 or more; got '-3'"), ("train_steps", "1e4", "a whole number"),
    ("time_steps", "0", "1 or more"), ("learning_rate", "0", "a number above 0"), ("learning_rate", "nan", "a number above 0"),
    ("learning_rate", "inf", "a number above 0"), ("learning_rate", "fast", "a number above 0; got 'fast'"),
    ("save_and_sample_every", "0", "1 or more"), ("data_class", "cats", "one of all, cat, dog, wild; got 'cats'"),
    ("fid", "maybe", "True or False"),
    ("loss", "L3", "one of l1, l2"), ("precision", "fp8", "one of auto, no, fp16, bf16"), ("workers", "-1", "0 or more"),
    ("seed", "-1", "0 or more"), ("seed", str(2**32), "below 2**32"), ("save_folder", " ", "a path"), ("fid_samples", "3", "4 or more"),
    ("tracker", "paper", "a tracker that Accelerate knows"),
])  # fmt: skip
def test_a_wrong_value_is_answered_with_the_right_ones(flag, value, right, capsys):
    assert main([f"--{flag}={value}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"--{flag} must be ") and right in said and "--help" in said


@pytest.mark.parametrize(("arguments", "said"), [
    (["--train_step", "5"], "--train_step is no flag; did you mean --train_steps?"),
    (["--imagesize=5"], "--imagesize=5 is no flag; did you mean --image_size?"),
    (["--bogus"], "--bogus is no flag. The flags are"),
    (["--qqq"], "--qqq is no flag. The flags are --data_path, --data_class"),
    (["7"], "7 is no flag"), (["--batch_size"], "expected one argument"),
])  # fmt: skip
def test_an_unknown_flag(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_values_in_python_are_checked_as_well():
    assert Settings(image_size="16").image_size == 16 and Settings(fid=True).fid is True
    for wrong in ({"batch_size": 2.5}, {"batch_size": True}, {"fid": 3}, {"learning_rate": None}):
        with pytest.raises(ValueError, match=f"--{next(iter(wrong))} must be"):
            Settings(**wrong)


def test_a_save_folder_that_cannot_be_one(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["--save_folder", str(tmp_path / "file")]) == 1
    assert f"--save_folder {tmp_path}/file cannot be made: File exists" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and all(f"--{name} " in said for name in Settings.__dataclass_fields__)


# --- weights --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of three steps, and what it said."""
    folder = tmp_path_factory.mktemp("trained")
    assert run(folder / "run", *TINY, "--train_steps", "3", "--save_and_sample_every", "2", "--visualize", log=folder / "log") == 0
    return folder / "run"


def test_weights_say_what_they_are(trained):
    saved = saved_settings(trained / "model.safetensors")
    assert saved == {"image_size": 8, "unet_dim": 8, "time_steps": 5, "channels": 1, "step": 3, "loss": "l1", "seed": 3}
    assert parse(["--load_path", str(trained)]) == parse(["--load_path", str(trained / "model.safetensors"), "--unet_dim", "8"])
    assert parse(["--load_path", str(trained)]).time_steps == 5


def test_loaded_weights_draw_the_same_samples(trained, tmp_path):
    """CMU, homework 2, chapter 5: a loaded model reproduces the samples for a seed."""
    unet = DenoisingUNet(8, channels=1)
    load_weights(unet, trained / "model.safetensors")
    process = Diffusion(unet, image_size=8, channels=1, schedule=NoiseSchedule.cosine(5))
    assert train.sample_grid(process, 3) == (trained / "samples" / "step-00000003.png").read_bytes()
    assert train.sample_grid(process, 4) != train.sample_grid(process, 3)
    before = sorted(path.name for path in trained.iterdir())
    assert main(["--load_path", str(trained), "--visualize", "--seed", "3", "--save_folder", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples"], "nothing was trained"
    for name in ("forward", "backward", "drawn"):
        assert (tmp_path / "samples" / f"{name}.png").read_bytes() == (trained / "samples" / f"{name}.png").read_bytes()
    assert sorted(path.name for path in trained.iterdir()) == before


def test_training_may_start_from_weights(trained, tmp_path):
    assert run(tmp_path, *TINY, "--load_path", str(trained), "--train_steps", "1") == 0
    from_noise, from_weights = ((folder / "losses_by_step.csv").read_text().splitlines()[1] for folder in (trained, tmp_path))
    assert from_noise != from_weights and from_noise.startswith("1,") and from_weights.startswith("1,")


def test_weights_that_cannot_be_used(trained, tmp_path, capsys):
    def said(*arguments, status=2):
        assert main([*arguments, "--visualize", "--save_folder", str(tmp_path / "out")]) == status
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    for name in ("model.pt", "model.pth", "model.ckpt"):
        assert "is a pickle" in said("--load_path", name)
    assert "cannot be read" in said("--load_path", str(tmp_path / "model.safetensors"), status=1)
    assert "--unet_dim is 16, but" in said("--load_path", str(trained), "--unet_dim", "16")
    assert "--time_steps is 6, but" in said("--load_path", str(trained), "--time-steps=6")
    checkpoint = trained / "checkpoints" / "step-00000003.safetensors"
    assert "and no network" in said("--load_path", str(checkpoint))
    save_weights(torch.nn.Linear(1, 1), tmp_path / "other.safetensors")
    assert "holds nothing and no network" in said("--load_path", str(tmp_path / "other.safetensors"))
    shutil.copy(trained / "model.safetensors", tmp_path / "cut.safetensors")
    os.truncate(tmp_path / "cut.safetensors", 5000)
    assert "is damaged, or no safetensors file" in said("--load_path", str(tmp_path / "cut.safetensors"), status=1)


def test_weights_for_other_pictures(trained, faces, tmp_path, capsys):
    for more in ([], ["--visualize"]):
        assert main(["--load_path", str(trained), *more, "--data_path", str(faces), "--save_folder", str(tmp_path / "out")]) == 2
        assert "was trained on pictures with channels: 1; these have 3" in capsys.readouterr().err


# --- pictures and draws ---------------------------------------------------------------------------------------------------


def test_pictures(faces, tmp_path, capsys):
    cats = Pictures.load(Settings(data_path=faces, image_size=8))
    assert cats.images.shape == (7, 3, 8, 8) and cats.images.dtype == torch.uint8 and cats.mirror and cats.labels is None
    assert len(Pictures.load(Settings(data_path=faces, image_size=8, data_class="dog")).images) == 3
    with pytest.raises(SettingsError, match="--data_class dog needs --data_path"):
        Pictures.load(Settings(image_size=8, data_class="dog"))
    own = Pictures.load(Settings(image_size=8))
    assert own.images.shape == (1797, 1, 8, 8) and not own.mirror, "a mirrored digit is no digit"
    torch.testing.assert_close(to_signed(own.images), 2 * digits()[0] - 1, atol=1 / 255 + 1e-6, rtol=0)
    assert torch.equal(own.labels, digits()[1])
    assert Pictures.load(Settings(image_size=16)).images.shape == (1797, 1, 16, 16)
    assert own.identity() != cats.identity() != Pictures("", 255 - cats.images, None, True).identity()
    many = Pictures("", cats.images.repeat(300, 1, 1, 1), None, True)
    for place in (*range(7), len(many.images) - 1):
        other = many.images.clone()
        other[place, 1, 2, 3] += 1
        assert Pictures("", other, None, True).identity() != many.identity(), "one picture is another"
    (faces / "cat" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        Pictures.load(Settings(data_path=faces, image_size=8))
    assert main(["--data_path", str(faces), "--image_size", "8", "--save_folder", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert not (tmp_path / "out").exists() and "broken.png" in told
    assert told.endswith("skip_bad=True\nThe flags for what is read: --data_path, --data_class and --skip_bad\n")
    with pytest.warns(UserWarning, match=r"broken\.png"):
        assert len(Pictures.load(Settings(data_path=faces, image_size=8, skip_bad=True)).images) == 7


def made(count=10, mirror=True, share=slice(0, 4), **more):
    """Draws over ``count`` pictures that are their own number, brighter on the right."""
    columns = torch.tensor([0, 0, 0, 100], dtype=torch.uint8).repeat(1, 1, 4, 1)
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None] + columns
    process = Diffusion(torch.nn.Identity(), image_size=4, channels=1, schedule=NoiseSchedule.cosine(50))
    return Draws(Pictures("", images, None, mirror), process, Settings(batch_size=4, **more), share)


def same_batch(one, other):
    assert one[0] == other[0]
    for a, b in zip(one[1:], other[1:], strict=True):
        assert torch.equal(a, b)


def test_draws_go_round_the_pictures_without_repetition():
    draws = made()
    seen = [place for _ in range(10) for place in draws.next()[0]]
    rounds = [seen[10 * i : 10 * (i + 1)] for i in range(4)]
    assert all(sorted(each) == list(range(10)) for each in rounds) and rounds[0] != rounds[1]
    assert made(seed=1).next()[0] != made().next()[0] == made().next()[0]
    assert len(made(count=3).next()[0]) == 4, "a batch larger than the data goes round within"


def test_draws_are_what_they_say():
    draws, mirrored, times = made(), 0, []
    for _ in range(250):
        places, x_0, t, noise = draws.next()
        grey = (x_0 + 1) * 127.5
        right, left = (grey[:, 0, 0, i].round().int() - torch.tensor(places) for i in (3, 0))
        assert sorted({*right.tolist(), *left.tolist()}) == [0, 100] and noise.shape == x_0.shape == (4, 1, 4, 4)
        mirrored += int((left == 100).sum())
        times += t.tolist()
    assert 420 < mirrored < 580, "half of 1,000, five standard deviations either way"
    assert min(times) == 1 and max(times) == 50
    unmirrored = made(mirror=False)
    assert all((unmirrored.next()[1][:, 0, 0, 3] > unmirrored.next()[1][:, 0, 0, 0]).all() for _ in range(10))


def test_shares_of_the_processes_are_the_batch():
    alone, first, second = made(), made(share=slice(0, 2)), made(share=slice(2, 4))
    for _ in range(5):
        whole, a, b = alone.next(), first.next(), second.next()
        assert whole[0] == a[0] == b[0]
        for i in (1, 2, 3):
            assert torch.equal(whole[i], torch.cat([a[i], b[i]]))


@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (0, 2), (3, 3)])
def test_the_state_of_draws(before, after):
    """That after the last batch handed out, however far ahead the thread is."""
    whole, interrupted, resumed = made(), made(workers=before), made(workers=after, seed=9)
    expected = [whole.next() for _ in range(12)]
    for i in range(5):
        same_batch(interrupted.next(), expected[i])
    for _ in range(2 * bool(after)):
        resumed.next()
    resumed.load_state_dict(interrupted.state_dict())
    for i in range(5, 12):
        same_batch(resumed.next(), expected[i])


def test_an_error_in_the_thread_is_not_lost():
    draws = made(workers=2)
    draws.pictures = None
    with pytest.raises(AttributeError, match="images"):
        draws.next()


# --- steps ----------------------------------------------------------------------------------------------------------------


def test_steps_are_algorithm_1(tmp_path):
    """Weights, average and losses of three steps, bit for bit those of a loop of a dozen lines."""
    settings = tiny(tmp_path, seed=5, save_and_sample_every=2, loss="l2", learning_rate=1e-2)
    train.train(settings)
    unet = train.network(settings, 1)
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), train.network(settings, 1).parameters(), strict=True))
    average, optimizer = AveragedModel(unet), torch.optim.Adam(unet.parameters(), 1e-2)
    process = Diffusion(unet, image_size=8, channels=1, schedule=NoiseSchedule.cosine(5), loss="l2")
    draws, losses = Draws(Pictures.load(settings), process, settings, slice(0, 6)), []
    for step in (1, 2, 3):
        loss = process.p_loss(*draws.next()[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.module.parameters(), unet.parameters(), strict=True):
                slow.copy_(fast if step == 1 else slow.lerp(fast, 1 - (1 + step) / (10 + step)))
        losses.append(loss.item())
    found = DenoisingUNet(8, channels=1)
    load_weights(found, tmp_path / "model.safetensors")
    for name, weight in average.module.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, rtol=1e-6, atol=1e-7)
    by_step = (tmp_path / "losses_by_step.csv").read_text().splitlines()[1:]
    assert [float(line.split(",")[1]) for line in by_step] == pytest.approx(losses, rel=1e-5)
    table = [line.split(",") for line in (tmp_path / "losses.csv").read_text().splitlines()]
    assert table[0] == ["step", "loss"] and [row[0] for row in table[1:]] == ["2", "3"]
    assert [float(row[1]) for row in table[1:]] == pytest.approx([(losses[0] + losses[1]) / 2, losses[2]], rel=1e-5)
    assert len((tmp_path / "times.csv").read_text().splitlines()) == 1 + 2


def test_the_average_forgets_its_start_and_settles():
    assert [round(train.ema_decay(step), 3) for step in (1, 100, 10_000, 10**6)] == [0.182, 0.918, 0.999, 0.999]


def test_history():
    history = History()
    history.losses += [1.0, 2.0, 6.0]
    assert history.add_row(2, {"n": 5}) == {"step": 2, "loss": 1.5, "n": 5}
    assert history.add_row(3, {"kid": -0.25}) == {"step": 3, "loss": 6.0, "kid": -0.25}
    assert history.table() == "step,loss,n,kid\n2,1.5,5,\n3,6,,-0.25\n" and history.by_step() == "step,loss\n1,1\n2,2\n3,6\n"
    history.losses.append(9.0)
    assert history.add_row(1_000_500, {"n": 1_234_567}) and history.table().endswith("\n1000500,9,1234567,\n")
    copy = History()
    copy.load_state_dict(history.state_dict())
    assert (copy.rows, copy.losses) == (history.rows, history.losses)


def test_what_a_run_says(trained):
    said = (trained.parent / "log").read_text()
    assert "no data_path: scikit-learn's digits: 1797 pictures of 8×8, channels: 1; on 1 × cpu, mixed precision: no" in said
    assert "steps 1 to 3; a line here, a checkpoint and samples every 2\n" in said
    assert "step 2 of 3: loss 0.8" in said and "step 3 of 3: loss 0." in said and "pictures/s, 0.0 min left" in said
    assert "forward.png: t = 1, 2, 3, 4, 5\n" in said and "backward.png: t = 5, 4, 3, 2, 1\n" in said
    with Image.open(trained / "samples" / "forward.png") as strip:
        assert strip.size == (5 * 100 + 4, 8 * 100 + 4), "five times of eight pictures"


def test_the_bar_has_the_steps_that_are_left(tmp_path, monkeypatch):
    totals, bar = [], train.progress_bar
    monkeypatch.setattr(train, "progress_bar", lambda total, *more, **options: totals.append(total) or bar(total, *more, **options))
    train.train(tiny(tmp_path))
    train.train(tiny(tmp_path, train_steps=5, resume=True))
    assert totals == [3, 2]


@pytest.mark.filterwarnings("ignore:.*no supported trackers")
def test_tracker(tmp_path, monkeypatch):
    """What Accelerate's tracker is told; which trackers there are is Accelerate's business."""
    told = []

    def init(self, name, config):
        told.append((name, config["unet_dim"]))
        self.trackers = [MagicMock(finish=lambda: told.append("end"))]

    monkeypatch.setattr(train.Accelerator, "init_trackers", init)
    monkeypatch.setattr(train.Accelerator, "log", lambda self, values, step: told.append((step, sorted(values))))
    settings = tiny(tmp_path)
    object.__setattr__(settings, "tracker", "tensorboard")
    train.train(settings)
    assert told == [("coursekit", "8"), (1, ["loss"]), (2, ["loss"]), (3, ["loss"]), (3, ["loss", "step"]), "end"]
    told.clear()
    with pytest.raises(CheckpointError):
        train.train(settings)
    assert not told, "a run that is refused tells a tracker nothing"
    monkeypatch.setattr(train._Run, "step", lambda self, step: 1 / 0)
    object.__setattr__(settings, "save_folder", tmp_path / "other")
    with pytest.raises(ZeroDivisionError):
        train.train(settings)
    assert told == [("coursekit", "8"), "end"], "what a tracker holds back is written in any case"


@pytest.mark.parametrize(("cuda", "bf16", "asked", "got"), [
    (False, True, "auto", "no"), (False, True, "bf16", "bf16"), (False, True, "fp16", "needs a GPU"), (True, True, "auto", "bf16"),
    (True, False, "auto", "fp16"), (True, False, "bf16", "take fp16"), (True, False, "no", "no"), (True, True, "fp16", "fp16"),
])  # fmt: skip
def test_precision(monkeypatch, cuda, bf16, asked, got):
    """A T4 only emulates bf16, which is_bf16_supported counts unless told otherwise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a T4")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    asked_of = {}
    monkeypatch.setattr(train, "Accelerator", lambda **options: asked_of.update(options) or MagicMock(num_processes=1))
    if " " in got:
        with pytest.raises(ValueError, match=got):
            train._accelerator(Settings(precision=asked))
    else:
        train._accelerator(Settings(precision=asked))
        assert asked_of["mixed_precision"] == got and asked_of["cpu"] is not cuda


def test_a_bf16_run(tmp_path):
    assert run(tmp_path, "--precision", "bf16", "--train_steps", "2", log=tmp_path / "log") == 0
    assert "mixed precision: bf16" in (tmp_path / "log").read_text()
    assert 0.5 < float((tmp_path / "losses.csv").read_text().splitlines()[1].split(",")[1]) < 1


RECOMMENDED = ["--time_steps", "50", "--image_size", "32", "--batch_size", "32", "--learning_rate", "1e-3", "--unet_dim", "16", "--fid"]


def recommended(data, folder, steps):
    """CMU, homework 2, chapter 5: the handout's recommended command, but for the number of steps."""
    torch.manual_seed(0)
    arguments = [*RECOMMENDED, "--data_path", str(data), "--save_folder", str(folder), "--train_steps", str(steps)]
    settings = parse([*arguments, "--save_and_sample_every", "1", "--fid_samples", "8", "--visualize"])
    assert settings == Settings(data_path=data, save_folder=folder, train_steps=steps, save_and_sample_every=1, fid=True, fid_samples=8,
                                visualize=True)  # fmt: skip
    train.train(settings)
    assert read((folder / "samples" / f"step-{steps:08}.png").read_bytes()).size == (4 * 100 + 4, 4 * 100 + 4)
    return np.genfromtxt(folder / "losses.csv", delimiter=",", names=True)


def test_the_recommended_command(tmp_path):
    """On a folder of photographs that are larger than it asks for, and not square."""
    (tmp_path / "data" / "cat").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(draw.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(tmp_path / "data" / "cat" / f"{number}.png")
    rows = recommended(tmp_path / "data", tmp_path / "run", 2)
    assert len(rows) == 2 and (rows["n_real"] == 40).all() and np.isfinite(rows["feature_frechet"]).all()


@pytest.mark.skipif("COURSEKIT_REAL_DATA" not in os.environ, reason="real data sets are not here")
def test_the_recommended_command_on_real_cats(tmp_path):
    cats = sorted((Path(os.environ["COURSEKIT_REAL_DATA"]) / "afhq-64" / "train" / "cat").iterdir())[:200]
    (tmp_path / "data" / "cat").mkdir(parents=True)
    for cat in cats:
        (tmp_path / "data" / "cat" / cat.name).symlink_to(cat)
    rows = recommended(tmp_path / "data", tmp_path / "run", 2)
    assert (rows["n_real"] == 200).all() and rows["loss"][1] < rows["loss"][0]


# --- several processes ----------------------------------------------------------------------------------------------------


def world(folder, size, *more, log, in_last=lambda: None):
    """The command in ``size`` processes on this machine, as torchrun and accelerate launch start it; their exit states.

    ``in_last`` prepares what is to go wrong in the last of them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def place(rank):
        common = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        mine = common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "True"}
        return lambda: (os.environ.update(mine), in_last() if rank == size - 1 else None)

    processes = [start(folder, *more, before=place(rank), log=log) for rank in range(size)]
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def test_two_processes_train_like_one(tmp_path):
    """The first 20 losses agree to 1e-4; one alone goes on with what two have begun."""
    flags = ["--batch_size", "8", "--train_steps", "20", "--save_and_sample_every", "20"]
    assert run(tmp_path / "one", *flags) == 0
    assert world(tmp_path / "two", 2, *flags, log=tmp_path / "log") == [0, 0]
    one, two = (np.loadtxt(tmp_path / name / "losses_by_step.csv", delimiter=",", skiprows=1) for name in ("one", "two"))
    assert one.shape == two.shape == (20, 2) and np.abs(one - two).max() <= 1e-4 and len({*one[:, 1]}) == 20
    said = (tmp_path / "log").read_text()
    assert said.count("20 steps are done") == 1 and "on 2 × cpu" in said, "one of them speaks"
    assert (tmp_path / "two" / "losses.csv").read_text().count("\n") == 2
    assert run(tmp_path / "two", *flags, "--train_steps", "21", "--resume") == 0
    assert world(tmp_path / "two", 2, *flags, log=tmp_path / "log") == [1, 1] and "holds a run" in (tmp_path / "log").read_text()
    with FileLock(tmp_path / "two" / ".lock"):
        assert world(tmp_path / "two", 2, *flags, "--train_steps", "22", "--resume", log=tmp_path / "log") == [1, 1]
    assert (tmp_path / "log").read_text().count("another run trains in") == 1


def test_all_stop_where_one_is_interrupted(tmp_path):
    asked = []
    run = Checkpoints(tmp_path, {})
    with pytest.raises(KeyboardInterrupt, match="after step 3 of 9"):
        for _ in steps(9, run, 5, lambda mine: asked.append(mine) or len(asked) == 3):
            pass
    assert asked == [False] * 3 and run.saved() == [0, 3]


def test_ctrl_c_in_one_process_stops_both(tmp_path):
    interrupt = lambda: counted(train.AveragedModel, "update_parameters", 3, lambda: os.kill(os.getpid(), signal.SIGINT))  # noqa: E731
    flags = ["--batch_size", "8", "--train_steps", "20", "--save_and_sample_every", "20"]
    assert world(tmp_path / "run", 2, *flags, log=tmp_path / "log", in_last=interrupt) == [130, 130]
    said = (tmp_path / "log").read_text()
    assert "stopped after step 3 of 20" in said and " -m torch.distributed.run --nproc-per-node 2 -m coursekit.diffusion --" in said
    assert Checkpoints(tmp_path / "run" / "checkpoints", {}).saved() == [0, 3]


def test_processes_must_share_the_batch(tmp_path):
    assert world(tmp_path / "run", 2, "--batch_size", "7", log=tmp_path / "log") == [2, 2]
    assert (tmp_path / "log").read_text().count("--batch_size 7 cannot be shared by 2 processes") == 1


def test_accelerates_launcher_starts_one_process_on_a_cpu(tmp_path):
    """It sets an address, and no number of processes: seen in Accelerate 1.15."""
    before = lambda: os.environ.update({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "True"})  # noqa: E731
    assert run(tmp_path, "--train_steps", "1", before=before, log=tmp_path / "log") == 0
    assert "torchrun --nproc-per-node" in (tmp_path / "log").read_text()


# --- what is seen ---------------------------------------------------------------------------------------------------------


def test_stamps():
    assert stamps(50) == [1, 13, 26, 38, 50] and stamps(100) == [1, 26, 51, 76, 100] and stamps(1) == [1] * 5 and stamps(1000)[-1] == 991


@pytest.mark.parametrize("T", [1, 2, 3, 50])
def test_strips(T):
    """Forward: x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε, one ε. Backward: from the same last ones, and back at x_0 with a network that knows it."""
    schedule, x_0 = NoiseSchedule.cosine(T), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    class Knows(torch.nn.Module):
        def forward(self, x, t):
            self.first = getattr(self, "first", x)
            a = schedule.alpha_bar[t][:, None, None, None]
            return ((x - a.sqrt() * x_0) / (1 - a).sqrt()).float()

    process = Diffusion(Knows(), image_size=8, schedule=schedule)
    forward, backward = strips(process, x_0, torch.Generator().manual_seed(1))
    assert forward.shape == backward.shape == (2, 5, 3, 8, 8) and torch.equal(forward[:, -1], backward[:, 0])
    assert T == 1 or torch.equal(process.model.first, forward[:, -1]), "the way back begins where the way there ended"
    noise = None
    for i, t in enumerate(stamps(T)):
        a = schedule.alpha_bar[t]
        again = (forward[:, i] - a.sqrt() * x_0) / (1 - a).sqrt()
        noise = again if noise is None else noise
        torch.testing.assert_close(again, noise, rtol=1e-3, atol=1e-3)
        spread = ((backward[:, 4 - i] - a.sqrt() * x_0) / (1 - a).sqrt()).std()
        assert 0.85 < spread < 1.15, "x_t of the way back has the noise of t"
    assert 0.85 < noise.std() < 1.15


def test_png():
    """Rows and columns in order, −1 black, 1 white, RGB; large pictures keep their size, small ones are enlarged smoothly."""
    rows, columns = 2, 3
    grey = torch.linspace(-1, 1, 6).reshape(rows, columns, 1, 1, 1).expand(-1, -1, 3, 128, 128)
    found = np.asarray(read(png(grey)))
    assert found.shape == (rows * 132 + 4, columns * 132 + 4, 3)
    assert all((white == 255).all() for white in (found[:4], found[:, 132:136], found[132:136])), "between two pictures it is white"
    assert [[int(found[4 + 132 * i, 4 + 132 * j, 0]) for j in range(3)] for i in range(2)] == [[0, 51, 102], [153, 204, 255]]
    coloured = torch.stack([torch.full((8, 8), value) for value in (1.0, -1.0, 0.0)])[None, None]
    assert np.asarray(read(png(coloured)))[50, 50].tolist() == [255, 0, 128]
    step = torch.cat([torch.full((1, 1, 1, 8, 4), -0.9), torch.full((1, 1, 1, 8, 4), 0.9)], -1) * 1.2   # beyond −1 and 1: clamped
    line = np.asarray(read(png(step)))[50, 4:100, 0].astype(int)
    assert len(line) == 96 and len({*line}) > 8 and line[0] < 5 and line[-1] > 250, "in between, not in blocks"


def read(data):
    return Image.open(io.BytesIO(data))


def test_distances_are_named_after_their_features(tmp_path, monkeypatch):
    """Fast mode, and pictures that are not RGB: features of our own, and never "fid"."""
    monkeypatch.setenv("COURSEKIT_MODE", "full")
    calls = []
    monkeypatch.setattr("coursekit.fid.inception_features", lambda *_: calls.append(1))
    monkeypatch.setattr(Pictures, "load", classmethod(lambda cls, settings: Pictures("40 digits", *few(40), False)))
    train.train(tiny(tmp_path, fid=True, fid_samples=6, train_steps=2, save_and_sample_every=1))
    names, *rows = [line.split(",") for line in (tmp_path / "losses.csv").read_text().splitlines()]
    assert names[:5] == ["step", "loss", "n_real", "n_generated", "n_floor"]
    assert names[5:] == ["feature_frechet", "feature_kernel", "feature_floor_frechet", "feature_floor_kernel"]
    assert [row[2:5] for row in rows] == [["40", "6", "6"]] * 2 and not calls
    assert rows[0][7:] == rows[1][7:] and float(rows[0][5]) > float(rows[0][7]) > 0, "the floor is the pictures' own"


def few(count):
    images, labels = digits()
    return (images[:count] * 255).byte(), labels[:count]


@pytest.mark.parametrize("reachable", [True, False])
def test_fid_is_inceptions(faces, tmp_path, monkeypatch, reachable, capsys):
    seen = []

    def inception(images, device="cpu"):
        if not reachable:
            raise DataError("Inception's weights could not be had")
        seen.append(len(images))
        return torch.stack([images.float().mean((1, 2, 3)), images.float().std((1, 2, 3))], 1)

    monkeypatch.setenv("COURSEKIT_MODE", "full")
    monkeypatch.setattr("coursekit.fid.inception_features", inception)
    train.train(tiny(tmp_path / "run", data_path=faces, fid=True, fid_samples=5, train_steps=2, save_and_sample_every=1))
    names = (tmp_path / "run" / "losses.csv").read_text().splitlines()[0].split(",")[5:]
    own = ["feature_frechet", "feature_kernel", "feature_floor_frechet", "feature_floor_kernel"]
    assert names == (["fid", "kid", "fid_floor", "kid_floor"] if reachable else own)
    said = capsys.readouterr()
    if reachable:
        assert seen == [1, 7, 5, 5], "the pictures' features are computed once"
        assert "fid and kid" in said.out and "of 5 samples, against the pictures at 8 pixels" in said.out
    else:
        assert "could not be had" in said.out and "feature_frechet" in said.out


def test_too_few_pictures_to_measure_by_are_refused_at_the_start(faces, tmp_path, capsys):
    flags = ["--data_path", str(faces), "--data_class", "dog", "--image_size", "8", "--save_folder", str(tmp_path / "run"), *TINY]
    assert main([*flags, "--train_steps", "1", "--fid"]) == 2
    assert "--fid needs four pictures at least, found 3: leave it out, or add some\n" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*flags, "--train_steps", "1"]) == 0
    assert main([*flags, "--load_path", str(tmp_path / "run"), "--visualize", "--fid"]) == 0, "nothing is trained or measured"
    Image.new("RGB", (9, 8), "red").save(faces / "dog" / "fourth.png")
    assert main([*flags[:-len(TINY) - 1], str(tmp_path / "four"), *TINY, "--train_steps", "1", "--fid", "--fid_samples", "4"]) == 0


def test_a_folder_that_holds_another_run_raises_before_anything_is_loaded(trained, monkeypatch):
    monkeypatch.setattr(Pictures, "load", lambda _: pytest.fail("pictures were loaded"))
    with pytest.raises(CheckpointError, match="Nothing was changed"):
        train.train(tiny(trained))
