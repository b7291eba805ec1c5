"""What the checks of all notebooks share: an answer of any kind gets a report, and the advice fits the notebook and the error."""

import math
import sys

import pytest
import torch
from answers import assert_hint_and_reference
from torch import nn
from torch.distributions import Normal
from torch.utils.data import DataLoader, Subset, TensorDataset

from coursekit.exercises import ddpm, diffusion_1d, patchwise, segmentation, vae
from coursekit.segmentation import dice_loss
from coursekit.vae import gaussian_kl

# --- odd answers, to every exercise -----------------------------------------------------------------------------------------



def yields(*arguments):
    yield arguments


ODD = {
    "None": lambda *_: None,
    "text": lambda *_: "right",
    "a generator": yields,
    "nothing in it": lambda *_: torch.empty(0),
    "NaN": lambda *_: torch.tensor(float("nan")),
    "a dict": lambda *_: {},
    "complex": lambda *_: torch.tensor(1j),
    "a list of all sorts": lambda *_: [torch.ones(2), None, "x"],
    "sparse": lambda *_: torch.eye(3).to_sparse(),
    "on no device": lambda *_: torch.ones(3, device="meta"),
    "its own arguments": lambda *arguments: arguments,
    "no parameters": lambda: 1,
    "ends the program": lambda *_: sys.exit(3),
    "torch's own NotImplementedError": lambda *_: torch.ones(3, dtype=torch.long).softmax(0),
    "recursion": lambda *_: (_ for _ in ()).throw(RecursionError()),
    "no function": 5,
    "a class": dict,
}
NOTEBOOKS = (patchwise, diffusion_1d, segmentation, vae, ddpm)
ALL = [(module, name) for module in NOTEBOOKS for name in module.EXERCISES]


@pytest.mark.parametrize(("module", "name"), ALL)
def test_odd_answers_get_a_report_and_never_a_traceback(module, name, capsys):
    for kind, function in ODD.items():
        assert module.check(name, function) is module.EXERCISES[name].reference, kind
        assert capsys.readouterr().out.startswith(f"✗ Exercise {name}: not right yet."), kind


@pytest.mark.parametrize(("module", "name"), ALL)
def test_a_function_that_spoils_its_arguments_spoils_no_check(module, name, capsys):
    right = module.EXERCISES[name].reference

    def vandal(*arguments):
        result = right(*arguments)
        for argument in arguments:
            tensors = [argument] if isinstance(argument, torch.Tensor) else argument.parameters() if isinstance(argument, nn.Module) else []
            for tensor in tensors:
                tensor.data.zero_()
        return result

    module.check(name, vandal)
    assert module.check(name, right) is right
    assert capsys.readouterr().out.endswith(f"✓ Exercise {name}: right.\n")


def test_an_answer_of_nan_is_told_where_nan_comes_from(capsys):
    diffusion_1d.check("4.1", lambda schedule, x_t, t, noise: x_t / 0 * 0)
    assert "NaN comes of 0/0" in capsys.readouterr().out


@pytest.mark.parametrize("module", NOTEBOOKS)
def test_a_check_takes_no_random_numbers_from_the_notebook(module, capsys):
    """Else what follows would depend on how far the reader has got."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    for name, exercise in module.EXERCISES.items():
        torch.manual_seed(0)
        module.check(name, exercise.reference)
        assert torch.equal(torch.rand(3), expected), name


# --- advice ------------------------------------------------------------------------------------------------------------------


def single(function):
    """The function in float32, and its answer as float64 again."""
    return lambda *arguments: function(*(x.float() if isinstance(x, torch.Tensor) else x for x in arguments)).double()


def cosine_in_float32(T, s=0.008):
    f = torch.cos(torch.pi / 2 * (torch.arange(T + 1) / T + s) / (1 + s)).square()
    return torch.cat([torch.ones(1), (f[1:] / f[:-1]).clamp(min=0.001)]).double()


def logarithm_with_a_little_more(logits, masks):
    p = logits.sigmoid()
    return -(masks * (p + 1e-8).log() + (1 - masks) * (1 - p + 1e-8).log()).mean()


def float_masks(p, masks, threshold):
    predicted, true = (p >= threshold).flatten(1), masks.flatten(1)
    return (predicted & true).sum(1) / (predicted | true).sum(1)


def sums_over_three_axes(logits, masks, smoothing):
    p, axes = logits.sigmoid(), (1, 2, 3)
    return (1 - (2 * (p * masks).sum(axes) + smoothing) / ((p + masks).sum(axes) + smoothing)).mean()


def one_batch_axis(q, k, v):
    return torch.bmm(torch.bmm(q, k.mT).div(q.shape[-1] ** 0.5).softmax(-1), v)


def numbers_of_images_times_images(logits, masks, smoothing):
    return dice_loss(logits * torch.ones(len(logits) + 11), masks, smoothing)


def made_on_the_cpu(tokens, patch_size, height):
    return segmentation.EXERCISES["8.1"].reference(tokens, patch_size, height) + torch.zeros(2, 1, 1, 1)


def noise_on_the_cpu(model, x, samples):
    mean, log_var = model.encode(x)
    noise = torch.randn(samples, *mean.shape, dtype=x.dtype)
    z = mean + (log_var / 2).exp() * noise
    ratios = torch.stack([model.log_likelihood(x, one) for one in z]) + 0.5 * (noise.square() + log_var - z.square()).sum(2)
    return ratios.logsumexp(0) - math.log(samples)


def bound_by_distributions(model, x, samples):
    """Right, though a law of torch.distributions looks at values, of which the meta device has none."""
    mean, log_var = model.encode(x)
    q = Normal(mean, (log_var / 2).exp())
    z = q.sample((samples,))
    ratios = (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(2) + torch.stack([model.log_likelihood(x, one) for one in z])
    return ratios.logsumexp(0) - math.log(samples)


ADVICE = [
    (diffusion_1d, "6.2", cosine_in_float32, "look at: right but for rounding: something became float32"),
    (vae, "2.2", single(gaussian_kl), "look at: right but for rounding: something became float32"),
    (segmentation, "3.1", logarithm_with_a_little_more, "look at: right but for rounding(.|\n)*a small number was added"),
    (segmentation, "3.3", float_masks, r"bitwise_(.|\n)*look at: & and \| want true and false"),
    (segmentation, "3.2", sums_over_three_axes, r"look at: .*any number of axes: flatten\(1\)"),
    (segmentation, "8.2", one_batch_axis, r"look at: .*any number of axes: flatten\(1\), @"),
    (segmentation, "3.2", numbers_of_images_times_images, r"reshape\(-1, 1, 1, 1\), in the diffusion notebooks schedule\.at"),
    (segmentation, "8.1", made_on_the_cpu, r"on the device of x.*, in the diffusion notebooks schedule\.at"),
    (vae, "6.1", noise_on_the_cpu, "on another device(.|\n)*on the device of x"),
]


@pytest.mark.parametrize(("module", "name", "function", "hint"), ADVICE)
def test_the_advice_fits_the_notebook_and_the_error(module, name, function, hint, capsys):
    assert_hint_and_reference(module.check, module.EXERCISES, name, function, hint, capsys)


def test_a_call_within_the_function_that_went_wrong_is_not_blamed_on_the_def_line(capsys):
    segmentation.check("3.1", lambda logits, masks: (lambda one: one)(logits, masks))
    out = capsys.readouterr().out
    assert "takes 1 positional argument but 2 were given" in out and "def line" not in out


def test_a_bound_by_laws_of_torch_is_taken(capsys):
    assert vae.check("6.1", bound_by_distributions) is bound_by_distributions


@pytest.mark.parametrize(("change", "told"), [
    (lambda images, masks: (images.flatten(1), masks), r"found {((48,), (1, 4, 4))}, expected {((3, 4, 4), (1, 4, 4))}"),
    (lambda images, masks: (images[:29], masks[:29]), "found [8, 8, 8, 5], expected [8, 8, 8, 6]"),
])  # fmt: skip
def test_batches_of_other_shapes_are_told_shortly(change, told, capsys):
    def loader(part: Subset, batch_size, shuffle, generator):
        tensors = change(*(torch.stack(values) for values in zip(*part, strict=True)))
        return DataLoader(TensorDataset(*tensors), batch_size, shuffle=shuffle, generator=generator)

    segmentation.check("2.1", loader)
    out = capsys.readouterr().out
    assert told in out and out.count("48,") <= 1 and "images (B, 3, S, S)" in out
