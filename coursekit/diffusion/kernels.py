"""The Gaussian kernels of a diffusion, forward and backward, and the quantities that a network may predict.

``x_0``, ``x_t``, ``noise`` have shape (B, …); ``t`` is an int or a (B,) integer tensor in 1..T (see ``NoiseSchedule.times``).
Noise always means the *total* noise ε of x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε, not the noise of the last step alone.
Coefficients are computed in float64 and rounded once, to the type of the data.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from coursekit.diffusion.schedule import NoiseSchedule, Time, per_item


def forward_kernel(schedule: NoiseSchedule, s: Time, t: Time) -> tuple[Tensor, Tensor]:
    """q(x_t | x_s) = N(scale·x_s, variance) for 0 ≤ s < t: returns float64 scale √(ᾱ_t/ᾱ_s) and variance 1 − ᾱ_t/ᾱ_s.

    Two such kernels compose into one. Raises ``ValueError`` where s is not below t.
    Source: Sharif, homework 4, question 2(c); Kingma and others 2021, equation 20.
    """
    ratio = _ratio(schedule, s, t)
    return ratio.sqrt(), 1 - ratio


def q_sample(schedule: NoiseSchedule, x_0: Tensor, t: Time, noise: Tensor) -> Tensor:
    """One draw from q(x_t | x_0) = N(√ᾱ_t x_0, 1 − ᾱ_t), given standard normal noise. Ho and others 2020, equation 4."""
    _same_shape("noise", noise, x_0)
    signal, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    return schedule.at(signal, t, x_0) * x_0 + schedule.at(sigma, t, x_0) * noise


def posterior(schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor]:
    """q(x_{t−1} | x_t, x_0): its mean, shaped like x_t, and its variance β̃_t, shaped to broadcast against it.

    At t = 1 it is all at x_0. Sources: Ho and others 2020, equation 7; Basel, problem set 6, exercise 3.
    """
    return posterior_mean(schedule, x_0, x_t, t), schedule.at(_posterior_variance(schedule), t, x_t)


Form = Literal["coefficients", "conditioning", "residual"]


def posterior_mean(schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: Time, form: Form = "coefficients") -> Tensor:
    """The mean of q(x_{t−1} | x_t, x_0) in one of its three printed forms, which are equal.

    * ``"coefficients"``: (√ᾱ_{t−1} β_t x_0 + √α_t (1−ᾱ_{t−1}) x_t) / (1−ᾱ_t);
    * ``"conditioning"``: √ᾱ_{t−1} x_0 + √α_t (1−ᾱ_{t−1})/(1−ᾱ_t) · (x_t − √ᾱ_t x_0), mean plus regression on x_t;
    * ``"residual"``: (x_t − β_t/(1−ᾱ_t) · (x_t − √ᾱ_t x_0)) / √α_t.

    Raises ``ValueError`` for another form. Source: Basel, problem set 6, exercise 3.3.
    """
    _same_shape("x_0", x_0, x_t)
    alpha, beta, alpha_bar, previous = schedule.alpha, schedule.beta, schedule.alpha_bar, _previous(schedule)
    weight_x_t = alpha.sqrt() * (1 - previous) / (1 - alpha_bar)
    if form == "coefficients":
        return schedule.at(previous.sqrt() * beta / (1 - alpha_bar), t, x_t) * x_0 + schedule.at(weight_x_t, t, x_t) * x_t
    residual = x_t - schedule.at(alpha_bar.sqrt(), t, x_t) * x_0
    if form == "conditioning":
        return schedule.at(previous.sqrt(), t, x_t) * x_0 + schedule.at(weight_x_t, t, x_t) * residual
    if form == "residual":
        return (x_t - schedule.at(beta / (1 - alpha_bar), t, x_t) * residual) / schedule.at(alpha.sqrt(), t, x_t)
    raise ValueError(f"form must be 'coefficients', 'conditioning' or 'residual', got {form!r}")


def x_0_from_noise(schedule: NoiseSchedule, x_t: Tensor, t: Time, noise: Tensor) -> Tensor:
    """x_0 = (x_t − √(1−ᾱ_t) ε)/√ᾱ_t, solved from ``q_sample``."""
    _same_shape("noise", noise, x_t)
    signal, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    return (x_t - schedule.at(sigma, t, x_t) * noise) / schedule.at(signal, t, x_t)


def noise_from_x_0(schedule: NoiseSchedule, x_t: Tensor, t: Time, x_0: Tensor) -> Tensor:
    """ε = (x_t − √ᾱ_t x_0)/√(1−ᾱ_t), the inverse of ``x_0_from_noise``."""
    _same_shape("x_0", x_0, x_t)
    signal, sigma = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    return (x_t - schedule.at(signal, t, x_t) * x_0) / schedule.at(sigma, t, x_t)


def score_from_noise(schedule: NoiseSchedule, t: Time, noise: Tensor) -> Tensor:
    """∇ log q(x_t) = −ε/√(1−ᾱ_t), with E[ε | x_t] for ε; with the true ε it is the score of q(x_t | x_0)."""
    return -noise / schedule.at((1 - schedule.alpha_bar).sqrt(), t, noise)


def noise_from_score(schedule: NoiseSchedule, t: Time, score: Tensor) -> Tensor:
    """ε = −√(1−ᾱ_t) · score, the inverse of ``score_from_noise``."""
    return -score * schedule.at((1 - schedule.alpha_bar).sqrt(), t, score)


def mean_from_noise(schedule: NoiseSchedule, x_t: Tensor, t: Time, noise: Tensor) -> Tensor:
    """The posterior mean of x_{t−1} written with ε: (x_t − β_t/√(1−ᾱ_t) · ε)/√α_t. Ho and others 2020, equation 11."""
    _same_shape("noise", noise, x_t)
    weight = schedule.beta / (1 - schedule.alpha_bar).sqrt()
    return (x_t - schedule.at(weight, t, x_t) * noise) / schedule.at(schedule.alpha.sqrt(), t, x_t)


def noise_from_mean(schedule: NoiseSchedule, x_t: Tensor, t: Time, mean: Tensor) -> Tensor:
    """ε = √(1−ᾱ_t)/β_t · (x_t − √α_t · mean), the inverse of ``mean_from_noise``."""
    _same_shape("mean", mean, x_t)
    weight = (1 - schedule.alpha_bar).sqrt() / schedule.beta
    return schedule.at(weight, t, x_t) * (x_t - schedule.at(schedule.alpha.sqrt(), t, x_t) * mean)


def ancestral_step(
    schedule: NoiseSchedule, x_t: Tensor, t: Time, noise: Tensor, z: Tensor, variance: Literal["posterior", "beta"] = "posterior"
) -> Tensor:
    """One step back, x_{t−1} = mean_from_noise + σ_t z with predicted ``noise`` and fresh standard normal ``z``.

    σ_t² is β̃_t (``"posterior"``) or β_t (``"beta"``). The step to t = 0 adds no noise, whichever it is.
    Raises ``ValueError`` for another variance. Source: Ho and others 2020, algorithm 2.
    """
    _same_shape("z", z, x_t)
    if variance not in ("posterior", "beta"):
        raise ValueError(f"variance must be 'posterior' or 'beta', got {variance!r}")
    sigma = (_posterior_variance(schedule) if variance == "posterior" else schedule.beta).sqrt()
    sigma = sigma * (_previous(schedule) < 1)
    return mean_from_noise(schedule, x_t, t, noise) + schedule.at(sigma, t, x_t) * z


def ddim_step(schedule: NoiseSchedule, x_t: Tensor, t: Time, s: Time, noise: Tensor, z: Tensor, eta: float = 0.0) -> Tensor:
    """One step from t back to any earlier s: √ᾱ_s x̂_0 + √(1−ᾱ_s−σ²) ε + σ z, with x̂_0 from the predicted ``noise`` ε.

    σ = η √((1−ᾱ_s)/(1−ᾱ_t)) √(1−ᾱ_t/ᾱ_s). η = 0 is deterministic; η = 1 with s = t−1 is ``ancestral_step``.
    Raises ``ValueError`` unless 0 ≤ s < t and 0 ≤ η ≤ 1. Source: Song, Meng and Ermon 2021, equations 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in 0 … 1, got {eta:g}")
    _same_shape("z", z, x_t)
    ratio = _ratio(schedule, s, t)
    alpha_bar_s = schedule.alpha_bar[schedule.times(s, lowest=0)]
    alpha_bar_t = schedule.alpha_bar[schedule.times(t)]
    variance = eta**2 * (1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - ratio)
    direction = (1 - alpha_bar_s - variance).clamp(min=0)   # 0 up to rounding where s = 0
    signal, along, fresh = (per_item(c.sqrt(), x_t) for c in (alpha_bar_s.expand_as(ratio), direction, variance))
    return signal * x_0_from_noise(schedule, x_t, t, noise) + along * noise + fresh * z


def _previous(schedule: NoiseSchedule) -> Tensor:
    """(T+1,): ᾱ_{t−1} at place t. Place 0, which no t reaches, repeats ᾱ_0."""
    return schedule.alpha_bar[[0, *range(schedule.T)]]


def _posterior_variance(schedule: NoiseSchedule) -> Tensor:
    """(T+1,): β̃_t at place t. Place 0, which no t reaches, is NaN."""
    return (1 - _previous(schedule)) * schedule.beta / (1 - schedule.alpha_bar)


def _ratio(schedule: NoiseSchedule, s: Time, t: Time) -> Tensor:
    s, t = schedule.times(s, lowest=0), schedule.times(t)
    if not (s < t).all():
        raise ValueError(f"s must be earlier than t, got s = {s.tolist()} and t = {t.tolist()}")
    return schedule.alpha_bar[t] / schedule.alpha_bar[s]


def _same_shape(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be that of the data, {tuple(like.shape)}")
