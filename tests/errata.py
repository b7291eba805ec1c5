r"""The errata of the handouts, in one table: what is printed, what is right, and an experiment that tells them apart.

``experiment()`` returns (truth, right, printed): the truth found without the formula, and what each form gives.
A printed form that cannot even be run is given as NaN. Severity: A gives wrong results when copied into code,
B is wrong or inconsistent on paper, C misleads or leaves something out. ``notebook`` is empty where only the test shows it.
The texts are Markdown with formulas between dollars: ``errata_page.py`` makes docs/errata.md of them. In a formula no | and
no backslash before a punctuation mark, which GitHub takes for its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import errata_ddpm as on_05
import errata_diffusion as on_02
import errata_patchwise as on_01
import errata_segmentation as on_03
import errata_symbols as on_symbols
import errata_trainer as on_05_trainer
import errata_vae as on_04
from torch import Tensor

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


_01 = "01_patchwise_mlp"
ERRATA = [
    Erratum("E0.1", "000, exercise 1", "patch `x[i:i+k-1, j:j+k-1]`",
            "`x[i:i+k, j:j+k]`, where the end of a slice is left out, as in Python", "patches come out one pixel too small", "A", _01,
            on_01.patch_slices),
    Erratum("E0.2", "000, exercise 1, question 1", "rows of $W_1$ are impulse responses of a convolution",
            "they are the kernels of a cross-correlation, which is what `nn.Conv2d` computes; its impulse response is the flipped row",
            "a library that flips gives another picture", "C", _01, on_01.flipped_kernel),
    Erratum("E0.3", "000, exercise 1, solution 1", r"$\tilde W[l, m] = W_1[d, lk+m]$ with an “appropriate” vec",
            "row by row; the usual vec stacks columns", "transposed kernels", "B", _01, on_01.order_of_pixels),
    Erratum("E0.4", "000, exercise 1, solution 3", r"each layer is a $1\times1$ convolution followed by $\sigma$",
            r"$\sigma$, then the $1\times1$ convolution; none after the last", "another network: the last layer's values are cut off", "B",
            _01, on_01.place_of_activation),
    Erratum("E1.1", "001, FCN slide", "`nn.Linear(4096, 1000) == nn.Conv2D(4096, 1000, 1)`",
            "`nn.Conv2d` with copied weights, on inputs of shape (B, 4096, 1, 1)",
            "no class of that name; without copying, other weights; a (B, 4096) input is refused", "A", _01, on_01.linear_as_conv),
]  # fmt: skip
_02 = "02_diffusion_1d"
ERRATA += [
    Erratum("E0.5", "000, exercise 2, question 2", r"$\mathrm{Var}(x_t \mid x_0) = 1-\bar\alpha_T$", r"$1-\bar\alpha_t$",
            r"full noise at every $t$", "A", _02, on_02.last_index),
    Erratum("E0.6", "000, exercise 3, solutions 2 and 3",
            r"$\mathrm{Cov}(x_{t-1}, x_t \mid x_0) = \sqrt{\bar\alpha_t} (1-\bar\alpha_{t-1})$",
            r"$\sqrt{\alpha_t} (1-\bar\alpha_{t-1})$, as the step before it gives and the final formula uses",
            "a covariance that is too small and, in the first line of the mean, another posterior mean", "A", _02, on_02.barred_covariance),
    Erratum("E0.7", "000, exercise 3", "the posterior's mean; of its variance nothing is said",
            r"variance $(1-\bar\alpha_{t-1})(1-\alpha_t)/(1-\bar\alpha_t)$", "a sampler needs it: without it, no noise is added", "C", _02,
            on_02.no_variance),
    Erratum("E0.8", "000, exercise 4, objective 2", r"$x_{t-1}$ as $x_t$ minus the estimated noise",
            r"$(x_t - \sqrt{\beta_t} \varepsilon_t)/\sqrt{\alpha_t}$", "far off even with the true noise", "A", _02,
            on_02.unscaled_difference),
    Erratum("E0.9", "000, exercise 4", r"weight $\sqrt{\beta_t}$, right for one-step noise; elsewhere networks predict the total noise",
            r"with total noise: $\beta_t/\sqrt{1-\bar\alpha_t}$",
            "mixed up, it runs without complaint, and the samples collapse on one mode", "A", _02, on_02.one_step_weight),
    Erratum("E0.10", "000, exercise 4, solution 3", r"both losses give the same $\theta$", r"at one $t$, or for models without restriction",
            r"parameters that several $t$ share have another optimum", "C", _02, on_02.shared_theta),
    Erratum("E1.9", "001, algorithm 2, where it is repeated",
            r"$\frac{1}{\sqrt{\bar\alpha_t}}\left(x_t - \frac{1-\bar\alpha_t}{\sqrt{1-\bar\alpha_t}} \varepsilon\right) + \sigma_t z$",
            r"$\frac{1}{\sqrt{\alpha_t}}\left(x_t - \frac{1-\alpha_t}{\sqrt{1-\bar\alpha_t}} \varepsilon\right) + \sigma_t z$",
            r"each step jumps to $\hat x_0$; samples collapse on one mode; the first slide has it right", "A", _02, on_02.bars_everywhere),
    Erratum("E1.10", "001, algorithm 2", r"$\sigma_t$ is not defined", r"$\sigma_t^2 = \beta_t$ or $\tilde\beta_t$",
            "left out, the samples collapse", "C", _02, on_02.sigma_left_out),
    Erratum("E1.11", "001, excerpt on Imagen", r"$z_t = \alpha_t x + \sigma_t \varepsilon$, quoted beside slides with another $\alpha_t$",
            r"this $\alpha_t$ is those slides' $\sqrt{\bar\alpha_t}$", "the variance is not kept", "B", "", on_symbols.signal_as_amplitude),
    Erratum("E2.59", "002, 8.3.1", r"$\beta_t \lt 1$, so $\bar\alpha_t \to 0$", r"only if $\sum \beta_t = \infty$",
            r"sampling may start from another law than $x_T$ has", "C", _02, on_02.small_beta_product),
    Erratum("E2.60", "002, 8.3.2", r"$\mathcal N(\mu, \sigma_t I)$ and $1/(2\sigma_t)$, beside $\mu + \sigma_t\varepsilon$ in 8.3.4",
            r"$\sigma_t^2$ and $1/(2\sigma_t^2)$", "other weights in the loss; taken as a standard deviation, samples too narrow", "A", _02,
            on_02.variance_as_std),
    Erratum("E2.61", "002, theorem 8.3.4", r"$x_0 = x_t/\sqrt{\bar\alpha_t} + \varepsilon_t \sqrt{1-\bar\alpha_t}/\sqrt{\bar\alpha_t}$",
            "a minus", r"$x_0$ far off", "A", _02, on_02.plus_for_minus),
    Erratum("E2.62", "002, theorem 8.3.4 and sampling in 8.3.4", r"$\sqrt{1-\bar\alpha_{t-1}}$ below $\beta_t$ in the mean",
            r"$\sqrt{1-\bar\alpha_t}$", r"another mean; at $t = 1$ a division by zero", "A", _02, on_02.early_index),
    Erratum("E2.63", "002, sampling in 8.3.4, last step", r"$x_1/\sqrt{1-\beta_t}$", r"$x_1/\sqrt{1-\beta_1}$",
            r"with the $\beta_t$ of another step, the picture comes out scaled", "B", _02, on_symbols.index_of_the_last_step),
    Erratum("E2.64", "002, 8.3.2, three times", r"weight $\beta_t^2/(\bar\alpha_{t-1}(1-\beta_t))$ in the loss",
            r"$\beta_t^2/((1-\bar\alpha_t)(1-\beta_t))$", "off by powers of ten at both ends", "A", _02, on_02.weight_of_the_loss),
    Erratum("E2.76", "002, sampling in 8.3.4",
            r"$x_{t-1} = \mu_t + \sigma_t \varepsilon_t$, where $\mu_t$ holds the predicted $\varepsilon_t$",
            r"two symbols: the noise that is added is fresh", "taken literally, another variance", "B", "", on_symbols.noise_used_again),
    Erratum("E3.8", "003, solution 4.1", r"denominators $q(x_t \mid x_{t+1})$",
            r"$q(x_t \mid x_{t-1})$, with $q(x_T \mid x_{T-1})$ in the last term; equation 8 itself is right",
            "another number than the ELBO", "A", _02, on_02.elbo_terms),
    Erratum("E3.9", "003, solution 4.2", r"$L_t$ is to be minimised", "maximised: it enters the ELBO with a plus", "the ELBO falls", "B",
            _02, on_symbols.raised_term),
    Erratum("E3.10", "003, question and solution 4.2", r"$L_t$ is a negative divergence, hence $\le 0$",
            "it may be positive; for one $x_0$ it is best at the posterior",
            "another optimum: $x_t$ and $x_{t+1}$ are not independent given $x_{t-1}$", "C", _02, on_02.positive_term),
    Erratum("E3.11", "003, equation 9", r"$\alpha_t \gt 0$", r"$0 \lt \alpha_t \lt 1$", "a negative variance is not ruled out", "B", _02,
            on_02.condition_on_alpha),
    Erratum("E3.12", "003, solution 4.3", r"one $\varepsilon$ for all steps", r"a fresh $\varepsilon_t$ in each",
            "a variance that is many times too large", "A", _02, on_02.same_noise),
    Erratum("E3.13", "003, solution 4.4", r"$\sqrt{\sqrt{\alpha_t - \alpha_t\alpha_{t-1}}^2} + \sqrt{(1-\alpha_t)^2} \varepsilon$",
            r"$\sqrt{1 - \alpha_t\alpha_{t-1}} \varepsilon$, as in the next line", "another spread", "B", _02, on_02.merged_roots),
    Erratum("E3.14", "003, solution 4.5", r"constant time, with $\bar\alpha_\tau$ a product of $\tau$ factors",
            r"with a table of $\bar\alpha$", r"time grows with $\tau$", "C", _02, on_symbols.table_of_products),
    Erratum("E3.15", "003, solution 4.6, line 4", r"one $q(x_t)$ too many in the denominator", "without it, as in the last line",
            "not a density", "B", _02, on_02.extra_marginal),
    Erratum("E3.16", "003, equation 14", r"$1-\alpha_t I$", r"$(1-\alpha_t) I$", "read literally, a covariance of 1 between any two pixels",
            "B", _02, on_symbols.bracket_left_out),
    Erratum("E3.17", "003, equation 15", r"$\sqrt{1-\alpha_t} \varepsilon$", r"$\sqrt{1-\bar\alpha_t} \varepsilon$", "too little noise",
            "A", _02, on_02.missing_bar),
    Erratum("E3.18", "003, equation 16", r"$\alpha_t$ clipped, $\bar\alpha_t = f(t)/f(0)$",
            r"$\bar\alpha_t$ the product of the clipped $\alpha$", r"$\hat x_0$ is divided by almost nothing at $t = T$; clamping hides it",
            "A", _02, on_02.unclipped_cumulative),
    Erratum("E3.19", "003, equation 16", r"$\cos(u)^2$", r"$\cos^2(u)$", r"$\bar\alpha$ turns negative if it is read as $\cos(u^2)$", "B",
            _02, on_02.square_of_the_angle),
    Erratum("E3.20", "003, equation 18", r"$\sqrt{\alpha_t(1-\bar\alpha_{t-1})}$",
            r"$\sqrt{\alpha_t} (1-\bar\alpha_{t-1})$, as in algorithm 2", "sampling diverges", "A", _02, on_02.long_root),
    Erratum("E3.22", "003, text before algorithm 1", r"the network for $\mu_\theta$ “only takes” $x_t$",
            r"$x_t$ and $t$, as the formulas have it", r"one answer for all $t$", "B", "", on_symbols.time_left_out),
    Erratum("E4.5", "004, 2(c)", r"$\mathbb E[\varepsilon_s \mid z_s] = 0$", "not zero; the Markov property gives the result directly",
            "the right result, by two errors that cancel", "C", _02, on_02.noise_given_position),
    Erratum("E4.6", "004, 2(c)", r"$\sigma_t\varepsilon_t = a_{t\mid s}\sigma_s\varepsilon_s + \sigma_{t\mid s}\varepsilon_t$",
            r"two symbols: total noise on the left, fresh noise on the right", "taken literally, another variance", "B", _02,
            on_02.one_symbol),
    Erratum("E4.7", "004, 2(d)", "the relation of variances is cited from (b)", "it is in (c)", "(b) holds for jumps without it as well",
            "B", _02, on_02.untied_variance),
    Erratum("E4.8", "004, 2(f), line 1", r"$a_{t\mid s}^2 \sigma_s^2 z_t / \sigma_t^2$", r"$a_{t\mid s} \sigma_s^2 z_t / \sigma_t^2$",
            r"$z_t$ does not cancel, as the next line needs", "B", _02, on_02.squared_ratio),
]  # fmt: skip
_03 = "03_segmentation"
ERRATA += [
    Erratum("E0.11", "000, exercise 5", r"Dice $2\sum yp/(\sum(y+p) + \epsilon)$", r"$(2\sum yp + \epsilon)/(\sum(y+p) + \epsilon)$",
            "an empty mask found empty costs 1, without gradient, and a perfect mask is not free", "A", _03, on_03.smoothing_below_alone),
    Erratum("E0.12", "000, exercise 5, task 3", "a sigmoid first, then smp's `DiceLoss('binary')`", "logits, or `from_logits=False`",
            "smp applies the sigmoid again: a small polyp found perfectly costs more than 0.5", "A", _03, on_03.sigmoid_twice),
    Erratum("E0.13", "000, exercise 5", "the loss of one image “can be used for multiple”, with smp",
            "the mean over images; smp sums over the batch", "a small polyp that is missed hardly counts beside a large one", "C", _03,
            on_03.pooled_batch),
    Erratum("E0.14", "000, exercise 5", "IoU of the sigmoid's output", "threshold first, then count; say what two empty masks give",
            "about 0.4 with every pixel on its right side", "A", _03, on_03.soft_iou),
    Erratum("E0.15", "000, exercise 5", "$1/N^2$ in the cross-entropy", "$1/(HW)$", "another loss for images that are not square", "B", _03,
            on_03.square_images_only),
    Erratum("E0.16", "000, exercise 5", "`BCELoss` after a sigmoid", "`BCEWithLogitsLoss`",
            "clamped at 100, and no gradient where it is needed most", "C", _03, on_03.clamped_logarithm),
    Erratum("E2.15", "002, 3.1.1", "$V = Y W_K$, $q = x_1 W_X$", "$V = Y W_V$, $q = x_1 W_Q$", "values of another size than stated", "A",
            _03, on_03.keys_for_values),
    Erratum("E2.17", "002, 3.1.3", r"pre-norm as $\mathrm{MHSA}_H(\mathrm{LN}(h_j))$",
            r"$\mathrm{MHSA}_{\mathrm{LN}(H)}(\mathrm{LN}(h_j))$", "keys and values skip the norm: not the layer that libraries have", "A",
            _03, on_03.keys_not_normalised),
    Erratum("E2.18", "002, 3.1.4", r"scores set to $-\infty$, *or* weights set to 0", r"$-\infty$; or set to 0 and divided by what is left",
            "weights do not sum to 1, and the future is felt through the denominator", "A", "", on_03.zeroed_weights),
    Erratum("E2.19", "002, 3.2", "the work depends heavily on the length, because attention is quadratic",
            r"$12Nd^2 + 2N^2d$: mostly linear until $N \approx 6d$", "only 4 % of ViT-B/16's work is quadratic", "C", _03,
            on_03.quadratic_share),
    Erratum("E2.32", "002, 5.1", r"$\mathrm{IoU}_c$ with sums over $i = 1, \dots, C$", "over all images", "only the first $C$ images count",
            "A", _03, on_03.sum_over_classes),
    Erratum("E2.34", "002, 5.1.4", r"$3\times3$ input and kernel, stride 2: output $5\times5$", r"$7\times7$; $5\times5$ with padding 1",
            "maps whose sizes do not fit", "A", "", on_03.size_without_padding),
]  # fmt: skip
_04 = "04_vae"
ERRATA += [
    Erratum("E1.2", "001, VAE slides and code", r"slide $\lVert x-\hat x\rVert^2 + \mathrm{KL}$, code `F.mse_loss` $+ w \mathrm{KL}$",
            "equal up to the factor $1/D$ if $w = 1/D$", "KL weighs $D$ times as much; the codes collapse", "A", _04,
            on_04.sum_against_mean),
    Erratum("E1.3", "001, VAE slides", r"$\mathcal N(\mu, \sigma)$ beside $\mathcal N(\mu, \sigma^2)$", r"$\mathcal N(\mu, \sigma^2)$",
            "another KL", "B", _04, on_04.std_as_variance),
    Erratum("E1.4", "001, VAE code", "`'KLD': -kld_loss`", "`+kld_loss`", "a negative divergence in the log; training is not touched", "B",
            _04, on_04.negative_log),
    Erratum("E1.5", "001, KLDivLoss slide", "default `reduction='mean'`", "`reduction='batchmean'`", "too small by the number of classes",
            "A", _04, on_04.default_reduction),
    Erratum("E1.6", "001, KLDivLoss slide", r"`KLDivLoss(input, target)` beside $D_{\mathrm{KL}}(P \Vert Q)$",
            r"input $\log Q$, target $P$", r"in the order of the formula it is $D_{\mathrm{KL}}(Q \Vert P)$", "A", _04,
            on_04.swapped_arguments),
    Erratum("E1.7", "001, KLDivLoss slide", "`target * (target.log() - input)`", "`xlogy`, so that 0 log 0 = 0", "NaN where a target is 0",
            "B", _04, on_04.zero_target),
    Erratum("E1.8", "001, latent-space slide", "the KL makes draws from the prior very likely hit a code",
            "only if the *aggregate* posterior fills the prior", "samples from where nothing was encoded", "C", _04, on_04.unfilled_prior),
    Erratum("E2.49", "002, 8.1", r"entropies 0.28 and $\log 2$ side by side", "0.286 bits and 1 bit, or 0.199 and 0.693 nats",
            "bits compared with nats", "B", "", on_04.bits_among_nats),
    Erratum("E4.1", "004, 1.3(b)", r"$\sum_i \max_q \mathrm{ELBO} = \max_\phi \sum_i \mathrm{ELBO}$",
            r"$\ge$; equal if $g_\phi$ reaches every optimum", "an amortisation gap is overlooked", "C", _04, on_04.amortised),
]  # fmt: skip
_05 = "05_ddpm"
ERRATA += [
    Erratum("E2.65", "002, DDIM in 8.3.4", r"$\sqrt{1-\bar\alpha_{t-1}-\bar\alpha_t^2}$ in the mean",
            r"$\sqrt{1-\bar\alpha_{t-1}-\sigma_t^2}$", "no real root at small $t$, another variance at large", "A", _05,
            on_05.squared_signal_for_variance),
    Erratum("E2.66", "002, DDIM in 8.3.4", r"$q(x_T \mid x_0) = \mathcal N(0, I)$",
            r"$\mathcal N(\sqrt{\bar\alpha_T} x_0, (1-\bar\alpha_T) I)$", r"no $x_t$ has the mean that it should have", "B", _05,
            on_05.standard_normal_end),
    Erratum("E2.67", "002, DDIM in 8.3.4", r"$\hat x_0 = (x_t - \sqrt{\bar\alpha_{t-1}} \varepsilon)/\sqrt{\bar\alpha_t}$",
            r"$(x_t - \sqrt{1-\bar\alpha_t} \varepsilon)/\sqrt{\bar\alpha_t}$, from the formula that is quoted below it",
            r"$\hat x_0$ far off", "A", _05, on_05.signal_for_noise),
    Erratum("E2.68", "002, DDIM in 8.3.4", r"$x_{t-1} = \mu + \Sigma \varepsilon$",
            r"$\mu + \Sigma^{1/2} \varepsilon$, that is $\sigma_t \varepsilon$", "too little noise", "A", _05, on_05.variance_for_std),
    Erratum("E2.69", "002, accelerated sampling in 8.3.4", r"$k$ steps at once with the $\sigma_t$ of one, and $x_0$",
            r"$\sigma$ with $\bar\alpha_{t-k}$ for $\bar\alpha_{t-1}$, and $\hat x_0$", r"too little noise at $\eta = 1$", "C", _05,
            on_05.sigma_of_one_step),
    Erratum("E2.75", "002, 8.3.3", r"attention after flattening to $C$ one-dimensional activations", r"to $HW$ tokens of $C$ numbers each",
            "channels would look at channels, instead of places at places", "B", "", on_03.channels_for_places),
    Erratum("E3.21", "003, text before algorithm 1, and algorithm 1", "the KL boils down to the L1 loss",
            r"to L2, whose best answer is the mean of $\varepsilon$; L1 learns its median",
            "modes get other weights; fine as a choice, if it is said", "C", _05, on_05.mean_for_median),
    Erratum("E3.24", "003, table 1 and command line", "`--fid` as a flag, and `--fid False`", "an option that takes a value or none",
            "the value is refused; or `False` counts as true", "A", _05, on_05_trainer.flag_and_value),
    Erratum("E3.25", "003, command line and table 1", "`wget … -0`, an address broken in two; $T = 300$, and 50",
            "`-O`, one address, one $T$", "no data; a model for another $T$", "B", _05, on_05_trainer.command_that_does_not_run),
]  # fmt: skip
