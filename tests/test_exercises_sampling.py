"""Notebook 05's exercises on whole samplers, 3.2, 4.1 and 4.2: right answers are taken, the usual wrong ones get the hint that helps."""

import math

import pytest
import torch
from answers import assert_hint_and_reference
from test_exercises_ddpm import own_p_step

from coursekit.diffusion import kernels
from coursekit.diffusion.process import ddim_times
from coursekit.exercises.ddpm import EXERCISES, check, ddim_sigma


@torch.no_grad()
def own_loop(diffusion, x, generator, step=own_p_step):
    """Right; at t = 1, where it is not used, no noise is drawn."""
    for t in range(diffusion.schedule.T, 0, -1):
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) if t > 1 else torch.zeros_like(x)
        x = step(diffusion, x, torch.full((len(x),), t, device=x.device), z)[0]
    return x


def own_sigma(schedule, t, s, eta):
    _, jump = kernels.forward_kernel(schedule, s, t)
    return eta * (jump * (1 - schedule.alpha_bar[s]) / (1 - schedule.alpha_bar[t])) ** 0.5


def loop_of(times=lambda T: range(T, 0, -1), z=None, t_of=None, keep=0, result=lambda x, x_T: x, start=lambda x, g: x, grad=False):
    """sample_loop with one thing changed."""

    def loop(diffusion, x, generator):
        x_T = x
        x = start(x, generator)
        with torch.set_grad_enabled(grad):
            for t in times(diffusion.schedule.T):
                fresh = z(x, generator) if z else torch.randn(x.shape, generator=generator).to(x)
                at = t_of(x, t) if t_of else torch.full((len(x),), t, device=x.device)
                x = diffusion.p_step(x, at, fresh)[keep]
        return result(x, x_T)

    return loop


def noise_drawn_once(diffusion, x, generator):
    z = torch.randn(x.shape, generator=generator).to(x)
    return own_loop(diffusion, x, generator, lambda diffusion, x, t, _: diffusion.p_step(x, t, z))


def one_t_for_all(diffusion, x, generator):
    return own_loop(diffusion, x, generator, lambda diffusion, x, t, z: own_p_step(diffusion, x, t[:1], z))


def x_is_not_kept(diffusion, x, generator):
    own_loop(diffusion, x, generator)
    return x


def x_1(diffusion, x, generator):
    states = []
    own_loop(diffusion, x, generator, lambda diffusion, x, t, z: states.append(x) or diffusion.p_step(x, t, z))
    return states[-1]


def sigma_of(formula):
    """Exercise 4.2 with another formula of ᾱ_s, ᾱ_t and η."""
    return lambda schedule, t, s, eta: formula(schedule.alpha_bar[s], schedule.alpha_bar[t], eta)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("3.2", own_loop),
        ("4.1", lambda T, steps: [T * k // steps for k in range(steps, 0, -1)]),
        ("4.1", lambda T, steps: torch.linspace(T, T / steps, steps).round().int()),
        ("4.2", own_sigma),
    ],
)
def test_other_right_answers_are_taken(name, function, capsys):
    assert check(name, function) is function
    assert capsys.readouterr().out == f"✓ Exercise {name}: right.\n"


WRONG = [
    ("3.2", loop_of(lambda T: range(T - 1, -1, -1)), "times are counted from 1 to T"),
    ("3.2", loop_of(lambda T: range(1, T + 1)), "from T, where all is noise"),
    ("3.2", loop_of(lambda T: range(T, 1, -1)), "from T, where all is noise"),
    ("3.2", loop_of(lambda T: range(T, 0, -2)), "from T, where all is noise"),
    ("3.2", loop_of(lambda T: [T]), "from T, where all is noise"),
    ("3.2", loop_of(t_of=lambda x, t: torch.tensor([t])), "print the shapes"),
    ("3.2", one_t_for_all, "one t for each image"),
    ("3.2", loop_of(start=lambda x, generator: torch.randn(x.shape, generator=generator).to(x)), "it is x_T already"),
    ("3.2", loop_of(z=lambda x, generator: torch.zeros_like(x)), "not zeros"),
    ("3.2", loop_of(z=lambda x, generator: torch.rand(x.shape, generator=generator).to(x)), "not rand"),
    ("3.2", loop_of(z=lambda x, generator: torch.randn(x.shape[1:], generator=generator).to(x)), "in the shape of x"),
    ("3.2", noise_drawn_once, "each step needs fresh noise"),
    ("3.2", loop_of(z=lambda x, generator: torch.randn_like(x)), "with the generator that is given"),
    ("3.2", loop_of(z=lambda x, generator: torch.randn(x.shape, generator=generator)), "on the device of x"),
    ("3.2", loop_of(grad=True), "gradients of T steps"),
    ("3.2", loop_of(keep=1), "not zeros|hand p_step"),
    ("3.2", x_is_not_kept, "that is x_T still"),
    ("3.2", x_1, "yours is x_1"),
    ("3.2", loop_of(result=lambda x, x_T: torch.stack([x_T, x])), "return the last x alone"),
    ("3.2", lambda diffusion, x, generator: None, "return the last x; this is NoneType"),
    ("4.1", lambda T, steps: ddim_times(T, steps)[::-1], "from noise to data t falls"),
    ("4.1", lambda T, steps: [*ddim_times(T, steps)[1:], 0], "0 is where the last step ends"),
    ("4.1", lambda T, steps: [t - 1 for t in ddim_times(T, steps)], "0 is where|counted from 1"),
    ("4.1", lambda T, steps: list(range(1, T + 1, T // steps))[::-1], "the first is T"),
    ("4.1", lambda T, steps: list(range(T, 0, -(T // steps))), "fits only where steps divides T"),
    ("4.1", lambda T, steps: [T, *range(steps - 1, 0, -1)], r"T·k/steps for k"),
    ("4.2", lambda schedule, t, s, eta: ddim_sigma(schedule, t, s, eta) ** 2, "is the root of that"),
    ("4.2", lambda schedule, t, s, eta: ddim_sigma(schedule, t, s, 1.0) * math.sqrt(eta), "not σ²"),
    ("4.2", sigma_of(lambda then, now, eta: eta * (1 - now / then).sqrt()), "first factor is missing"),
    ("4.2", lambda schedule, t, s, eta: ddim_sigma(schedule, t, t - 1, eta), "for a longer step"),
    ("4.2", sigma_of(lambda then, now, eta: eta * ((1 - then) / (1 - now) * (1 - then / now)).sqrt()), "not real"),
    ("4.2", lambda schedule, t, s, eta: eta * (schedule.beta[t] * schedule.beta[s] / schedule.beta[t]).sqrt(), "it is 0 where s = 0"),
    ("4.1", lambda T, steps: [T * k / steps for k in range(steps, 0, -1)], "whole numbers"),
    ("4.2", lambda *_: None, "found None .*return"),
    ("4.1", lambda *_: None, "found None .*return"),
]   # fmt: skip


@pytest.mark.parametrize(("name", "function", "hint"), WRONG)
def test_wrong_answers_get_a_hint_and_the_reference(name, function, hint, capsys):
    assert_hint_and_reference(check, EXERCISES, name, function, hint, capsys)
