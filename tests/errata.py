"""The errata of the handouts, in one table: what is printed, what is right, and an experiment that tells them apart.

Handouts: 000 Basel, problem set 6 · 001 Rice, slides · 002 Bologna, notes · 003 CMU, homework 2 · 004 Sharif, homework 4.
``experiment()`` returns (truth, right, printed): the truth found without the formula, and what each form gives.
A printed form that cannot even be run is given as NaN. Severity: A gives wrong results when copied into code,
B is wrong or inconsistent on paper, C misleads or leaves something out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import errata_ddpm as on_05
import errata_diffusion as on_02
import errata_segmentation as on_03
import errata_trainer as on_05_trainer
import errata_vae as on_04
import torch
import torch.nn.functional as F
from scipy.signal import convolve2d
from torch import Tensor, nn

Number = float | Tensor


@dataclass(frozen=True)
class Erratum:
    id: str
    where: str
    printed: str
    right: str
    effect: str
    severity: str
    notebook: str
    experiment: Callable[[], tuple[Number, Number, Number]]


def _image_and_row() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, 12, generator=generator, dtype=torch.float64), torch.randn(9, generator=generator, dtype=torch.float64)


def _by_hand(image: Tensor, row: Tensor) -> Tensor:
    """The shared linear layer as its definition says: one dot product a patch, patches read row by row."""
    return torch.stack([torch.stack([image[i : i + 3, j : j + 3].flatten() @ row for j in range(10)]) for i in range(7)])


def patch_slices() -> tuple[Number, Number, Number]:
    image, _ = _image_and_row()
    truth = torch.stack([torch.stack([image[2 + a, 3 + b] for b in range(3)]) for a in range(3)])
    return truth, image[2 : 2 + 3, 3 : 3 + 3], image[2 : 2 + 3 - 1, 3 : 3 + 3 - 1]


def flipped_kernel() -> tuple[Number, Number, Number]:
    image, row = _image_and_row()
    square = row.reshape(3, 3)
    flipping = torch.tensor(convolve2d(image.numpy(), square.numpy(), mode="valid"))
    return _by_hand(image, row), F.conv2d(image[None, None], square[None, None])[0, 0], flipping


def order_of_pixels() -> tuple[Number, Number, Number]:
    image, row = _image_and_row()
    patches = image.unfold(0, 3, 1).unfold(1, 3, 1)
    kernel = row.reshape(3, 3)[None, None]
    return F.conv2d(image[None, None], kernel)[0, 0], patches.flatten(2) @ row, patches.transpose(2, 3).flatten(2) @ row


def place_of_activation() -> tuple[Number, Number, Number]:
    torch.manual_seed(0)
    first, second, x = nn.Linear(9, 5).double(), nn.Linear(5, 2).double(), _image_and_row()[0]
    truth = second(torch.relu(first(x[2:5, 3:6].flatten())))
    conv_1, conv_2 = first.weight.reshape(5, 1, 3, 3), second.weight[:, :, None, None]
    z = F.conv2d(x[None, None], conv_1, first.bias)
    right = F.conv2d(torch.relu(z), conv_2, second.bias)
    printed = torch.relu(F.conv2d(z, conv_2, second.bias))
    return truth.detach(), right[0, :, 2, 3].detach(), printed[0, :, 2, 3].detach()


def linear_as_conv() -> tuple[Number, Number, Number]:
    torch.manual_seed(0)
    linear, x = nn.Linear(16, 5).double(), torch.randn(2, 16, dtype=torch.float64)
    conv = nn.Conv2d(16, 5, kernel_size=1).double()
    assert not hasattr(nn, "Conv2D") and linear != conv
    printed = conv(x[:, :, None, None]).flatten(1).detach()  # the nearest thing that runs: other weights
    conv.load_state_dict({"weight": linear.weight[:, :, None, None], "bias": linear.bias})
    return linear(x).detach(), conv(x[:, :, None, None]).flatten(1).detach(), printed


_01 = "01_patchwise_mlp"
ERRATA = [
    Erratum(
        "E0.1",
        "000, exercise 1",
        "patch x[i:i+k-1, j:j+k-1]",
        "x[i:i+k, j:j+k] with half-open slices",
        "patches one pixel too small",
        "A",
        _01,
        patch_slices,
    ),
    Erratum(
        "E0.2",
        "000, exercise 1.1",
        "rows of W₁ are impulse responses of a convolution",
        "cross-correlation; the impulse response is the flipped row",
        "a library that flips gives another image",
        "C",
        _01,
        flipped_kernel,
    ),
    Erratum(
        "E0.3",
        "000, solution 1.1",
        "W̃[l,m] = W₁[d, lk+m] with an “appropriate” vec",
        "row by row; the usual vec stacks columns",
        "transposed kernels",
        "B",
        _01,
        order_of_pixels,
    ),
    Erratum(
        "E0.4",
        "000, solution 1.3",
        "1×1 convolution followed by σ",
        "σ, then the 1×1 convolution; none after the last",
        "another network",
        "B",
        _01,
        place_of_activation,
    ),
    Erratum(
        "E1.1",
        "001, FCN slide",
        "nn.Linear(4096, 1000) == nn.Conv2D(4096, 1000, 1)",
        "nn.Conv2d with copied weights, on (B, 4096, 1, 1)",
        "no such class; uncopied weights; wrong shape",
        "A",
        _01,
        linear_as_conv,
    ),
]
_02 = "02_diffusion_1d"
ERRATA += [
    Erratum("E0.5", "000, exercise 2.2", "Var(x_t | x_0) = 1 − ᾱ_T",
            "1 − ᾱ_t", "full noise at every t", "A", _02, on_02.last_index),
    Erratum("E0.6", "000, solution 3.2, 3.3", "Cov(x_{t−1}, x_t | x_0) = √ᾱ_t (1 − ᾱ_{t−1})",
            "√α_t (1 − ᾱ_{t−1})", "too small, and so a wrong posterior mean", "A", _02, on_02.barred_covariance),
    Erratum("E0.7", "000, exercise 3", "the posterior's mean only",
            "its variance (1−ᾱ_{t−1})(1−α_t)/(1−ᾱ_t) as well", "a sampler without noise", "C", _02, on_02.no_variance),
    Erratum("E0.8", "000, exercise 4", "x_{t−1} as x_t minus the noise",
            "(x_t − √β_t ε_t)/√α_t", "wrong even with the true noise", "A", _02, on_02.unscaled_difference),
    Erratum("E0.9", "000, exercise 4", "weight √β_t with a network for total noise",
            "β_t/√(1−ᾱ_t)", "samples collapse on one mode", "A", _02, on_02.one_step_weight),
    Erratum("E0.10", "000, exercise 4.3", "both losses give the same θ",
            "at one t, or for unrestricted models", "another optimum for shared parameters", "C", _02, on_02.shared_theta),
    Erratum("E1.9", "001, algorithm 2, repeated slide", "bars on every α",
            "(x_t − (1−α_t)/√(1−ᾱ_t) ε)/√α_t + σ_t z", "jumps to x̂_0; collapses on one mode", "A", _02, on_02.bars_everywhere),
    Erratum("E1.10", "001, algorithm 2", "σ_t undefined",
            "σ_t² = β_t or β̃_t", "without it samples collapse", "C", _02, on_02.sigma_left_out),
    Erratum("E2.59", "002, 8.3.1", "β_t < 1, so ᾱ_t → 0",
            "only if Σ β_t = ∞", "sampling starts from the wrong law", "C", _02, on_02.small_beta_product),
    Erratum("E2.60", "002, 8.3.2", "N(μ, σ_t), 1/(2σ_t)",
            "σ_t², 1/(2σ_t²)", "wrong loss weights; samples too narrow", "A", _02, on_02.variance_as_std),
    Erratum("E2.61", "002, theorem 8.3.4", "x_0 = x_t/√ᾱ_t + √(1−ᾱ_t)/√ᾱ_t ε",
            "a minus", "x_0 far off", "A", _02, on_02.plus_for_minus),
    Erratum("E2.62", "002, theorem 8.3.4 and 8.3.4", "√(1−ᾱ_{t−1}) in the mean",
            "√(1−ᾱ_t)", "wrong mean; division by zero at t = 1", "A", _02, on_02.early_index),
    Erratum("E2.64", "002, 8.3.2", "loss weight β²/(ᾱ_{t−1} α_t)",
            "β²/((1−ᾱ_t) α_t)", "off by powers of ten at both ends", "A", _02, on_02.weight_of_the_loss),
    Erratum("E3.8", "003, solution 4.1", "denominators q(x_t | x_{t+1})",
            "q(x_t | x_{t−1}), with q(x_T | x_{T−1}) in C", "not the ELBO", "A", _02, on_02.elbo_terms),
    Erratum("E3.10", "003, question 4.2", "L_t is a negative KL, hence ≤ 0",
            "it may be positive; best at the reverse kernel", "wrong optimum", "C", _02, on_02.positive_term),
    Erratum("E3.11", "003, equation 9", "α_t > 0",
            "0 < α_t < 1", "negative variance", "B", _02, on_02.condition_on_alpha),
    Erratum("E3.12", "003, solution 4.3", "the same ε at each step",
            "a fresh ε_t", "variance many times too large", "A", _02, on_02.same_noise),
    Erratum("E3.13", "003, solution 4.4", "√(√(α_t − α_t α_{t−1})²) + √((1−α_t)²)",
            "√(1 − α_t α_{t−1})", "wrong spread", "B", _02, on_02.merged_roots),
    Erratum("E3.15", "003, solution 4.6, line 4", "an extra q(x_t) in the denominator",
            "drop it", "not a density", "B", _02, on_02.extra_marginal),
    Erratum("E3.17", "003, equation 15", "√(1−α_t) ε",
            "√(1−ᾱ_t) ε", "too little noise", "A", _02, on_02.missing_bar),
    Erratum("E3.18", "003, equation 16", "α clipped, ᾱ = f(t)/f(0)",
            "ᾱ the product of the clipped α", "x̂_0 divided by nothing at t = T", "A", _02, on_02.unclipped_cumulative),
    Erratum("E3.19", "003, equation 16", "cos(·)²",
            "cos²(·)", "negative ᾱ if read as cos(u²)", "B", _02, on_02.square_of_the_angle),
    Erratum("E3.20", "003, equation 18", "√(α_t (1−ᾱ_{t−1}))",
            "√α_t (1−ᾱ_{t−1})", "sampling diverges", "A", _02, on_02.long_root),
    Erratum("E4.5", "004, Q2(c)", "E[ε_s | z_s] = 0",
            "not zero; use the Markov kernel", "right result by cancelling errors", "C", _02, on_02.noise_given_position),
    Erratum("E4.6", "004, Q2(c)", "one ε_t for total and fresh noise",
            "two symbols", "wrong variance if taken literally", "B", _02, on_02.one_symbol),
    Erratum("E4.7", "004, Q2(d)", "the variance relation from (b)",
            "from (c)", "(b) holds for jumps without it", "B", _02, on_02.untied_variance),
    Erratum("E4.8", "004, Q2(f), line 1", "a²_{t|s} σ_s²/σ_t² z_t",
            "a_{t|s} σ_s²/σ_t² z_t", "z_t does not cancel", "B", _02, on_02.squared_ratio),
]  # fmt: skip
_03 = "03_segmentation"
ERRATA += [
    Erratum("E0.11", "000, exercise 5", "2Σyp/(Σ(y+p) + ε)", "(2Σyp + ε)/(Σ(y+p) + ε)",
            "an empty mask found empty costs 1, without gradient; perfect is not 0", "A", _03, on_03.smoothing_below_alone),
    Erratum("E0.12", "000, exercise 5, task 3", "a sigmoid, then smp's DiceLoss('binary')", "logits, or from_logits=False",
            "the sigmoid twice: a perfect prediction of a small polyp costs about 0.8", "A", _03, on_03.sigmoid_twice),
    Erratum("E0.13", "000, exercise 5", "one image's Dice “for multiple images” by smp", "the mean over images; smp pools the batch",
            "a missed small polyp hardly counts", "C", _03, on_03.pooled_batch),
    Erratum("E0.14", "000, exercise 5", "IoU of probabilities", "threshold, then count; empty/empty defined",
            "0.4 where every pixel is right", "A", _03, on_03.soft_iou),
    Erratum("E0.15", "000, exercise 5", "1/N² in the BCE", "1/(HW)",
            "another loss for images that are not square", "B", _03, on_03.square_images_only),
    Erratum("E0.16", "000, exercise 5", "BCELoss after a sigmoid", "BCEWithLogitsLoss",
            "clamped at 100, gradient 0 where it is needed most", "C", _03, on_03.clamped_logarithm),
    Erratum("E2.15", "002, 3.1.1", "V = Y W_K, q = x₁ W_X", "V = Y W_V, q = x₁ W_Q",
            "wrong matrices, wrong shape", "A", _03, on_03.keys_for_values),
    Erratum("E2.17", "002, 3.1.3", "MHSA_H(LN(h_j))", "MHSA_{LN(H)}(LN(h_j))",
            "another layer than everybody's pre-norm", "A", _03, on_03.keys_not_normalised),
    Erratum("E2.19", "002, 3.2", "FLOPs depend heavily on the length, which enters squared", "12Nd² + 2N²d: linear until N ≈ 6d",
            "4 % of ViT-B/16's work is quadratic", "C", _03, on_03.quadratic_share),
    Erratum("E2.32", "002, 5.1", "IoU_c summed over i = 1 … C", "over all images",
            "only the first C images count", "A", _03, on_03.sum_over_classes),
]  # fmt: skip
_04 = "04_vae"
ERRATA += [
    Erratum("E1.2", "001, VAE slides and code", "slide ‖x − x̂‖² + KL, code F.mse_loss + w·KL",
            "equal up to 1/D for w = 1/D only", "another weight by the factor D; codes collapse", "A", _04, on_04.sum_against_mean),
    Erratum("E1.3", "001, VAE slides", "N(μ, σ) beside N(μ, σ²)",
            "N(μ, σ²)", "another KL", "B", _04, on_04.std_as_variance),
    Erratum("E1.4", "001, VAE code", "'KLD': −kld_loss",
            "+kld_loss", "logs a negative divergence", "B", _04, on_04.negative_log),
    Erratum("E1.5", "001, KLDivLoss slide", "default reduction='mean'",
            "reduction='batchmean'", "too small by the number of classes", "A", _04, on_04.default_reduction),
    Erratum("E1.6", "001, KLDivLoss slide", "KLDivLoss(input, target) beside KL(P‖Q)",
            "input = log Q, target = P", "KL(Q‖P) instead", "A", _04, on_04.swapped_arguments),
    Erratum("E1.7", "001, KLDivLoss slide", "target·(log target − input)",
            "xlogy", "NaN where a target is 0", "B", _04, on_04.zero_target),
    Erratum("E1.8", "001, latent-space slide", "the KL makes prior draws very likely hit a code",
            "only if the aggregate posterior fills the prior", "samples from where nothing was encoded", "C", _04, on_04.unfilled_prior),
    Erratum("E4.1", "004, Q1.3 (b)", "Σ max_q ELBO = max_φ Σ ELBO",
            "≥; equal if g_φ reaches every optimum", "an amortisation gap overlooked", "C", _04, on_04.amortised),
]  # fmt: skip
_05 = "05_ddpm"
ERRATA += [
    Erratum("E2.65", "002, 8.3.4 (DDIM)", "√(1−ᾱ_{t−1}−ᾱ_t²) in the mean",
            "√(1−ᾱ_{t−1}−σ_t²)", "NaN early on, a wrong variance later", "A", _05, on_05.squared_signal_for_variance),
    Erratum("E2.66", "002, 8.3.4 (DDIM)", "q(x_T | x_0) = N(0, I)",
            "N(√ᾱ_T x_0, (1−ᾱ_T) I)", "no x_t has the mean that it should", "B", _05, on_05.standard_normal_end),
    Erratum("E2.67", "002, 8.3.4 (DDIM)", "x̂_0 = (x_t − √ᾱ_{t−1} ε)/√ᾱ_t",
            "(x_t − √(1−ᾱ_t) ε)/√ᾱ_t", "x̂_0 far off", "A", _05, on_05.signal_for_noise),
    Erratum("E2.68", "002, 8.3.4 (DDIM)", "x_{t−1} = μ + Σ ε",
            "μ + Σ^{1/2} ε, that is σ_t ε", "too little noise", "A", _05, on_05.variance_for_std),
    Erratum("E2.69", "002, 8.3.4 (DDIM)", "k steps at once with σ_t of one step, and x_0",
            "σ with ᾱ_{t−k} for ᾱ_{t−1}, and x̂_0", "too little noise at η = 1", "C", _05, on_05.sigma_of_one_step),
    Erratum("E3.21", "003, chapter 5 and algorithm 1", "the KL, and so the L1 loss",
            "the KL gives L2, the mean of ε; L1 learns its median", "modes get other weights", "C", _05, on_05.mean_for_median),
    Erratum("E3.24", "003, table 1 and command line", "--fid as a flag, and --fid False",
            "a switch that takes a value or none", "the value is refused; or False counts as True", "A", _05, on_05_trainer.flag_and_value),
    Erratum("E3.25", "003, command line and table 1", "wget … -0, the address broken in two; T = 300, and 50",
            "-O, one address, one T", "no data; a model for another T", "B", _05, on_05_trainer.command_that_does_not_run),
]  # fmt: skip
