"""What the checks of all notebooks share: calling the reader's function, and telling a known mistake from any other.

A known mistake is a row of a table: the hint, and what the mistake gives. Another device is played by torch's "meta" device,
which computes shapes only but refuses to mix with the CPU as a GPU does.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import coursekit
from coursekit.checks import CheckFailed, check_close, check_equal, check_true

OURS = tuple(str(Path(str(file)).parent) for file in (coursekit.__file__, torch.__file__))
ON_DEVICE = (
    "all you make must be on the device of x: torch.randn_like(x) draws there, torch.arange and torch.zeros need device=, "
    "in the diffusion notebooks schedule.at(values, t, x) brings the numbers there"
)
IN_PLACE = "x += y, x[…] = y and methods that end in _ write into what was given, which the caller still needs: make a new tensor"
ROUNDED = "right but for rounding: something became float32 on the way (keep x.dtype), or a small number was added"
DEF_LINE = "leave the def line as it was handed out, with the same arguments in the same order"
ADVICE = {   # in the error message: what helps
    r"[Mm]eta tensor|aten::": "stay on the device of x: .cpu(), .item(), .numpy() and if on a tensor's values leave it",
    r"same device|on device|meta device|device meta|different device|device type": ON_DEVICE,
    r"bitwise_": "& and | want true and false: a comparison, or masks.bool()",
    r"dtype|scalar type|not implemented for '": "the check gives float64: make new tensors with dtype=x.dtype or torch.zeros_like(x)",
    r"must match the|shape mismatch|broadcast|cannot be multiplied|entries; the batch": (
        "print the shapes; one number for each item of a batch, (B,), multiplies (B, C, H, W) as (B, 1, 1, 1): "
        "x.reshape(-1, 1, 1, 1), in the diffusion notebooks schedule.at"
    ),
    r"Dimension out of range|must be a 3D": "where the docstring has ... stands any number of axes: flatten(1), @, dim=-1",
    r"must lie in [01] … \d+, got": "times are counted from 1 to T: range(T, 0, -1) goes back from T to 1; ᾱ_0 needs lowest=0",
    r"'NoneType' object": "something is None: a function without return, or the .grad of what never said requires_grad_()",
    r"require grad": "call .requires_grad_() on the input before the network sees it",
}


def randn(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal numbers in float64, the same in every call."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ask(claim: str, function: Callable[..., Any], *args: Any) -> Any:
    """What the reader's function gives for copies of ``args``.

    Raises ``NotImplementedError`` where it was not attempted, and ``CheckFailed`` where it takes other arguments, ends in an
    error, which is told with its line and a hint, or changes an argument.
    """
    given = [arg if isinstance(arg, torch.Generator) else copy.deepcopy(arg) for arg in args]
    _check_signature(claim, function, len(args))
    try:
        result = function(*given)
    except (Exception, SystemExit) as error:   # a function that ends the program would take the notebook's cell with it
        if isinstance(error, NotImplementedError) and not any(re.search(sign, str(error)) for sign in ADVICE):
            raise
        hint = next((text for sign, text in ADVICE.items() if re.search(sign, str(error))), "")
        hint = hint and f"\n  look at: {hint}"
        raise CheckFailed(f"✗ {claim}\n  {_place(error)} {type(error).__name__}: {error}{hint}") from error
    kept = all(_untouched(_tensors(old), _tensors(new)) for old, new in zip(args, given, strict=True))
    check_true(f"{claim}: the arguments are left as they were", kept, hint=IN_PLACE)
    return result


def recognise(
    claim: str, found: Any, right: Tensor, hint: str, mistakes: Mapping[str, Tensor] | None = None, tolerance: float | None = None
) -> None:
    """``check_close`` for an answer of any type, with the hint of the first mistake that ``found`` is, or else ``hint``.

    A mistake that gives the right answer here, as a fixed 0.5 does where the threshold is 0.5, tells nothing. Raises ``CheckFailed``.
    """
    answer = numbers(claim, found)
    told = {text: torch.as_tensor(wrong) for text, wrong in (mistakes or {}).items()}
    same = [text for text, wrong in told.items() if _alike(answer, wrong) and not _alike(right, wrong)]
    if same:
        hint = same[0]
    elif _alike(answer, right):
        hint = ROUNDED
    elif answer.isnan().any() and not right.isnan().any():
        hint += "\n  NaN comes of 0/0, of ∞ − ∞, and of the root or logarithm of a negative number"
    check_equal(f"{claim}: device of the result", answer.device.type, right.device.type, hint=ON_DEVICE)
    check_close(claim, answer, right, tolerance=tolerance, hint=hint)


def compare(
    claim: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    right: Tensor,
    hint: str,
    mistakes: Mapping[str, Tensor] | None = None,
    tolerance: float | None = None,
) -> None:
    """``recognise`` what the function gives for ``args``. Raises as ``ask`` and ``recognise`` do."""
    recognise(claim, ask(claim, function, *args), right, hint, mistakes, tolerance)


def numbers(claim: str, found: Any) -> Tensor:
    """An answer as a tensor of real numbers. Raises ``CheckFailed`` for anything else."""
    try:
        tensor = torch.as_tensor(found, dtype=torch.float64 if isinstance(found, float) else None).detach()
    except Exception as error:   # whatever it is, it can say what it likes when asked for its numbers
        raise CheckFailed(f"✗ {claim}\n  found {_kind(found)}, expected numbers") from error
    plain = not (tensor.is_complex() or tensor.is_meta) and tensor.layout == torch.strided
    check_true(f"{claim}: real numbers", plain, hint="an ordinary tensor of real numbers, on the device of the arguments")
    return tensor


def several(claim: str, found: Any, count: int, hint: str) -> tuple[Any, ...]:
    """The ``count`` results of a function that returns so many. Raises ``CheckFailed`` for anything else."""
    if not (isinstance(found, tuple | list) and len(found) == count):
        raise CheckFailed(f"✗ {claim}\n  found {_kind(found)}, expected {count} results\n  look at: {hint}")
    return tuple(found)


def steady(claim: str, function: Callable[..., Any], *args: Any) -> None:
    """Claim that two calls with the same numbers give the same answer. Raises ``CheckFailed`` for noise of the function's own."""
    first, again = (ask(claim, function, *args) for _ in range(2))
    for one, other in zip(*((r if isinstance(r, tuple | list) else (r,)) for r in (first, again)), strict=True):
        one, other = numbers(claim, one), numbers(claim, other)
        same = one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
        check_true(f"{claim}: called twice, the same answer", same, hint="use the noise that is given, and draw none of your own")


def elsewhere(function: Callable[..., Any], *args: Any) -> None:
    """Run the function on arguments that live on the meta device; raises ``CheckFailed`` for a mix of devices."""
    result = ask("on another device", function, *args)
    found = [getattr(value, "device", "no tensor") for value in (result if isinstance(result, tuple) else (result,))]
    check_equal("device of the result", [str(device) for device in found], ["meta"] * len(found), hint=ON_DEVICE)


def _check_signature(claim: str, function: Callable[..., Any], count: int) -> None:
    try:
        inspect.signature(function).bind(*range(count))
    except ValueError:   # some of torch's own functions do not tell
        pass
    except TypeError as error:
        what = f"it is called with {count} arguments, but {error}" if callable(function) else f"found {_kind(function)}, no function"
        raise CheckFailed(f"✗ {claim}\n  {what}\n  look at: {DEF_LINE}") from error


def _place(error: BaseException) -> str:
    """Which line of the reader's function the error came through: the first that is not in this package or in torch."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename.startswith(OURS):
        trace = trace.tb_next
    line = f"line {trace.tb_lineno - trace.tb_frame.f_code.co_firstlineno + 1} of " if trace else ""
    return f"{line}your function ended in"


def _tensors(value: Any) -> dict[str, Tensor]:
    """What could be written into: the tensor, a module's weights and its schedule, a schedule's arrays."""
    if isinstance(value, Tensor):
        return {"": value}
    if isinstance(value, nn.Module):
        return value.state_dict() | _tensors(vars(value).get("schedule"))
    return {name: v for name, v in getattr(value, "__dict__", {}).items() if isinstance(v, Tensor)}


def _untouched(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> bool:
    return all(v.shape == new[k].shape and (v.is_meta or torch.equal(v, new[k])) for k, v in old.items() if k in new)


def _kind(value: Any) -> str:
    if value is None:
        return "None (does your function end in return?)"
    if inspect.isgenerator(value):
        return "a generator (return, not yield)"
    return f"{len(value)} values of type {type(value).__name__}" if isinstance(value, tuple | list) else f"type {type(value).__name__}"


def _alike(found: Tensor, wrong: Tensor) -> bool:
    return found.shape == wrong.shape and torch.allclose(found.cpu().double(), wrong.double(), atol=1e-7, equal_nan=True)
