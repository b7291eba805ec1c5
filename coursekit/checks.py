"""Claims that run. Each prints one line that is the same on every machine, or fails with a message that teaches.

The printed line holds the claim and its bound, never the measured value, which differs in its last digits from
machine to machine; the message of a failure holds both. A claim begins with the number of the equation it is about, or,
where there is none, of the section.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

Number = float | int | Tensor

_silent = ContextVar("silent", default=False)


class CheckFailed(AssertionError):
    """A claim that did not hold. The message says what was found, what was expected and where to look."""


@contextmanager
def silent() -> Iterator[None]:
    """Claims made in this context print nothing when they hold; when they do not, they fail as ever."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


def check(claim: str, value: Number, *, at_most: float | None = None, at_least: float | None = None, hint: str = "") -> None:
    """Claim that one number lies within bounds; NaN lies within none.

    Raises ``CheckFailed`` where it does not, ``ValueError`` where no bound or more than one number is given.
    """
    if at_most is None and at_least is None:
        raise ValueError(f"check({claim!r}) has nothing to check: give at_most, at_least or both")
    number = _one_number(claim, value)
    bounds = [f"{sign} {bound:g}" for sign, bound in (("≥", at_least), ("≤", at_most)) if bound is not None]
    holds = (at_least is None or number >= at_least) and (at_most is None or number <= at_most)
    _verdict(claim, " and ".join(bounds), holds, f"found {number:g}", hint)


def check_true(claim: str, holds: bool | Tensor, *, hint: str = "") -> None:
    """Claim that a statement is true. Raises ``CheckFailed`` where it is not, ``ValueError`` for several truth values."""
    if isinstance(holds, Tensor) and holds.numel() != 1:
        raise ValueError(f"{claim!r} is about one truth value, got shape {tuple(holds.shape)}; say .all() or .any()")
    _verdict(claim, "", bool(holds), "found that it does not hold", hint)


def check_equal(claim: str, actual: Any, expected: Any, *, hint: str = "") -> None:
    """Claim that two things that have no rounding are equal: shapes, counts, names. The line shows the value.

    Raises ``CheckFailed`` where they differ, ``ValueError`` for tensors.
    """
    if isinstance(actual, Tensor) or isinstance(expected, Tensor):
        raise ValueError(f"{claim!r} compares tensors: use check_close")
    _verdict(claim, f"= {expected}", actual == expected, f"found {actual}, expected {expected}", hint)


def check_close(claim: str, actual: Number, expected: Number, *, tolerance: float | None = None, hint: str = "") -> None:
    """Claim that two tensors of one shape agree: the largest absolute difference is at most ``tolerance``.

    Default tolerance: 1e-10 in float64 and 1e-5 in the smaller types, times the largest absolute value of
    ``expected`` that is finite, where it exceeds 1. Raises ``CheckFailed`` on a difference, another shape, or NaN on
    either side, and ``ValueError`` for complex or empty tensors.
    """
    actual, expected = _tensor(actual), _tensor(expected)
    if actual.shape != expected.shape:
        _verdict(claim, "", False, f"found shape {tuple(actual.shape)}, expected {tuple(expected.shape)}", hint)
    if not expected.numel():
        raise ValueError(f"{claim!r} compares two empty tensors, shape {tuple(expected.shape)}: there is nothing to check")
    if tolerance is None:
        exact = all(t.dtype == torch.float64 or not t.is_floating_point() for t in (actual, expected))
        sizes = expected.double().abs()
        scale = torch.where(sizes.isfinite(), sizes, 0.0).max().clamp(min=1).item()   # an absolute tolerance below 1, whatever is infinite
        bound, shown = (1e-10 if exact else 1e-5) * scale, f"to {1e-10 if exact else 1e-5:g}"
    else:
        bound, shown = tolerance, f"to {tolerance:g}"
    gap = _gap(actual, expected)
    largest = gap.max().item()
    _verdict(claim, shown, largest <= bound, _where(actual, expected, gap), hint)


def check_moments(claim: str, samples: Tensor, *, mean: Number, variance: Number, hint: str = "") -> None:
    """Claim that independent ``samples``, any shape, come from a law with this mean and variance.

    The tolerance is four standard errors, computed: √(variance/n) for the mean, and for the variance the standard
    error √((m₄ − variance²)/n) with the samples' own fourth moment m₄, so that no Gaussian is assumed.
    A true claim fails for about one seed in 8,000.
    Raises ``CheckFailed``, and ``ValueError`` for fewer than 100 samples or a negative variance.
    """
    x = samples.detach().double().flatten()
    n, mean, variance = x.numel(), _one_number(claim, mean), _one_number(claim, variance)
    if n < 100:
        raise ValueError(f"check_moments({claim!r}) has {n} samples: a standard error needs at least 100")
    if not variance >= 0:
        raise ValueError(f"check_moments({claim!r}) claims the variance {variance:g}; no law has it")
    centred = x - mean
    second, fourth = centred.square().mean().item(), centred.pow(4).mean().item()
    mean_error, variance_error = math.sqrt(variance / n), math.sqrt(max(fourth - second**2, 0.0) / n)
    gaps = (abs(centred.mean().item()), abs(second - variance))
    holds = gaps[0] <= 4 * mean_error and gaps[1] <= 4 * variance_error
    found = (
        f"found mean {x.mean().item():.5g} and variance {second:.5g} about the claimed mean; "
        f"claimed {mean:.5g} ± {4 * mean_error:.2g} and {variance:.5g} ± {4 * variance_error:.2g}"
    )
    _verdict(claim, f"within 4 standard errors, n = {n:,}", holds, found, hint)


def check_fails(claim: str, truth: Number, printed: Number, *, by: float = 1e-2, hint: str = "") -> None:
    """Claim that a formula printed wrong is wrong: somewhere it misses ``truth`` by more than ``by``.

    The distance is relative to the largest absolute value of ``truth`` where that exceeds 1. Another shape, NaN
    and infinity are failures of the printed form too. Raises ``CheckFailed`` where the two agree after all, and
    where ``truth`` itself is not finite, since then nothing is compared.
    """
    truth, printed = _tensor(truth), _tensor(printed)
    if not torch.isfinite(truth).all():
        raise CheckFailed(f"✗ {claim}\n  the right side is not finite, so it can expose nothing: {_short(truth)}")
    if truth.shape == printed.shape:
        gap = _gap(printed, truth)
        largest = gap.max().item() if gap.numel() else 0.0
        scale = max(1.0, truth.abs().max().item()) if truth.numel() else 1.0
        if largest <= by * scale:
            message = f"  expected the printed form to be off by more than {by:g}; it is off by {largest:g}, so it may be right"
            raise CheckFailed(f"✗ {claim}\n{message}" + _hint(hint))
    _say(f"{claim}: fails, as it should")


def check_raises(claim: str, error: type[Exception], call: Callable[[], Any], *, hint: str = "") -> None:
    """Claim that a call is refused with ``error``. Raises ``CheckFailed`` where it returns; other errors pass through."""
    try:
        result = call()
    except error:
        _say(f"{claim}: {error.__name__}, as it should")
        return
    raise CheckFailed(f"✗ {claim}\n  expected {error.__name__}; it returned {_short(result)}" + _hint(hint))


def _verdict(claim: str, bound: str, holds: bool, found: str, hint: str) -> None:
    line = claim + (f"  ({bound})" if bound else "")
    if not holds:
        raise CheckFailed(f"✗ {line}\n  {found}" + _hint(hint))
    _say(line)


def _say(line: str) -> None:
    if not _silent.get():
        print(f"✓ {line}")


def _hint(hint: str) -> str:
    return f"\n  look at: {hint}" if hint else ""


def _tensor(value: Any) -> Tensor:
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)   # torch would round a Python float to float32
    tensor = torch.as_tensor(value).detach()
    if tensor.is_complex():
        raise ValueError("complex numbers are not compared: check their real and imaginary parts")
    return tensor


def _one_number(claim: str, value: Number) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{claim!r} is about one number, got a tensor of shape {tuple(value.shape)}; reduce it first, say with .max()")
    return float(value)


def _gap(actual: Tensor, expected: Tensor) -> Tensor:
    """Absolute differences in float64; where either side is not finite and they are not the same infinity: inf."""
    actual, expected = actual.double().cpu(), expected.double().cpu()
    gap = (actual - expected).abs()
    gap = torch.where(actual == expected, torch.zeros_like(gap), gap)
    return torch.nan_to_num(gap, nan=math.inf, posinf=math.inf)


def _where(actual: Tensor, expected: Tensor, gap: Tensor) -> str:
    index = tuple(int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
    at = f" at index {index}" if index else ""
    return f"largest difference {gap.max().item():.3g}{at}: found {actual[index].item():.6g}, expected {expected[index].item():.6g}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + " …"
