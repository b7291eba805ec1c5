import math

import pytest
import torch

from coursekit.checks import (
    CheckFailed,
    check,
    check_close,
    check_equal,
    check_fails,
    check_moments,
    check_raises,
    check_true,
    silent,
)

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (1e-13, {"at_most": 1e-12}),
        (torch.tensor([0.75]), {"at_least": 0.75}),
        (0.5, {"at_least": 0.0, "at_most": 1.0}),
        (INF, {"at_least": 1}),
    ],
)
def test_check_accepts_and_prints_the_bound_not_the_value(value, bounds, capsys):
    check("1.1  claim", value, **bounds)
    line = capsys.readouterr().out
    assert line.startswith("✓ 1.1  claim  (") and "e-13" not in line and line.count("\n") == 1


@pytest.mark.parametrize("value", [2.0, NAN, INF, -INF])
def test_check_refuses_values_outside_and_nan(value):
    with pytest.raises(CheckFailed, match="claim"):
        check("claim", value, at_least=0.0, at_most=1.0)


def test_check_teaches():
    with pytest.raises(CheckFailed, match=r"≤ 1\b[^\0]*found 2[^\0]*look at: the sign"):
        check("claim", 2.0, at_most=1.0, hint="the sign")


def test_check_wants_a_bound_and_one_number():
    with pytest.raises(ValueError, match="nothing to check"):
        check("claim", 1.0)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        check("claim", torch.ones(2), at_most=1)


def test_close_default_tolerances():
    check_close("float64", torch.tensor(1.0, dtype=torch.float64), 1.0 + 5e-11)
    with pytest.raises(CheckFailed):
        check_close("float64", torch.tensor(1.0, dtype=torch.float64), torch.tensor(1.0 + 2e-10, dtype=torch.float64))
    check_close("float32", torch.tensor(1.0), torch.tensor(1.000005))
    with pytest.raises(CheckFailed):
        check_close("float32", torch.tensor(1.0), torch.tensor(1.00002))
    check_close("scale", torch.tensor(1e6), torch.tensor(1e6 + 5))
    check_close("integers", torch.tensor([1, 2]), torch.tensor([1, 2]))
    check_close("truth values", torch.tensor([True, False]), torch.tensor([True, False]))
    check_close("the same infinity", torch.tensor([INF, 1.0, -INF]), torch.tensor([INF, 1.000005, -INF]))


@pytest.mark.parametrize(
    ("actual", "expected"),
    [(torch.ones(3), torch.ones(1, 3)), (torch.tensor(NAN), torch.tensor(NAN)), (torch.tensor(INF), torch.tensor(1.0)), (0.0, NAN),
     (torch.tensor([INF, 5.0]), torch.tensor([INF, 1.0])), (torch.tensor([0.0, 1.0]), torch.tensor([INF, 1.0])),
     (torch.tensor([-INF, 1.0]), torch.tensor([INF, 1.0])), (torch.tensor([True, False]), torch.tensor([True, True]))],
)
def test_close_refuses_shapes_and_nonfinite(actual, expected):
    with pytest.raises(CheckFailed):
        check_close("claim", actual, expected)


def test_close_says_where():
    wrong = torch.zeros(3, 4)
    wrong[2, 1] = 5
    with pytest.raises(CheckFailed, match=r"index \(2, 1\): found 5, expected 0"):
        check_close("claim", wrong, torch.zeros(3, 4))


def test_equal_and_true():
    check_equal("shape", (1, 2), (1, 2))
    check_true("statement", torch.tensor(True))
    with pytest.raises(CheckFailed, match=r"found \(1, 3\), expected \(1, 2\)"):
        check_equal("shape", (1, 3), (1, 2))
    with pytest.raises(CheckFailed):
        check_true("statement", False)


def test_moments_hold_for_ten_seeds_and_bite():
    for seed in range(10):
        x = 2 + 3 * torch.randn(20_000, generator=torch.Generator().manual_seed(seed))
        check_moments("normal", x, mean=2, variance=9)
        for mean, variance in ((2.15, 9), (2, 9.8), (2, 8.2)):
            with pytest.raises(CheckFailed):
                check_moments("normal", x, mean=mean, variance=variance)
    with pytest.raises(ValueError, match="100"):
        check_moments("few", torch.zeros(5), mean=0, variance=0)
    with pytest.raises(CheckFailed):
        check_moments("nan", torch.full((200,), NAN), mean=0, variance=1)


@pytest.mark.parametrize("printed", [1.2, NAN, INF, torch.ones(2)])
def test_fails_passes_on_what_is_wrong(printed, capsys):
    check_fails("printed form", torch.tensor(1.0), printed)
    assert capsys.readouterr().out == "✓ printed form: fails, as it should\n"


@pytest.mark.parametrize(("truth", "printed"), [(1.0, 1.001), (NAN, 1.0), (1e6, 1e6 + 10)])
def test_fails_refuses_what_is_right(truth, printed):
    with pytest.raises(CheckFailed):
        check_fails("printed form", truth, printed)


def test_raises():
    check_raises("division", ZeroDivisionError, lambda: 1 / 0)
    with pytest.raises(CheckFailed, match="it returned 1"):
        check_raises("nothing", ValueError, lambda: 1)
    with pytest.raises(ZeroDivisionError):
        check_raises("another error", ValueError, lambda: 1 / 0)


def test_silent_prints_nothing_and_still_fails(capsys):
    with silent():
        check_true("quiet", True)
        check_fails("quiet", 1.0, 2.0)
        with pytest.raises(CheckFailed):
            check_true("quiet", False)
    assert capsys.readouterr().out == ""
    check_true("loud", True)
    assert capsys.readouterr().out == "✓ loud\n"


def test_python_floats_are_not_rounded_to_float32():
    with pytest.raises(CheckFailed):
        check_close("claim", 1.0 + 1e-8, 1.0)


def test_what_cannot_be_compared_is_refused():
    for call, message in (
        (lambda: check_close("c", torch.tensor(1 + 2j), torch.tensor(1 + 5j)), "complex"),
        (lambda: check_close("c", torch.ones(0), torch.ones(0)), "nothing to check"),
        (lambda: check_equal("c", torch.ones(2), torch.ones(2)), "use check_close"),
        (lambda: check_true("c", torch.tensor([True, False])), r"\.all\(\)"),
        (lambda: check_moments("c", torch.zeros(200), mean=0, variance=-1), "variance -1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_moments_use_four_standard_errors_and_no_more():
    """±1 with equal shares has fourth moment 1 = variance²: the standard error of its variance is 0, so nothing else passes."""
    signs = torch.tensor([1.0, -1.0]).repeat(5_000)
    check_moments("signs", signs, mean=0, variance=1)
    with pytest.raises(CheckFailed):
        check_moments("signs", signs, mean=0, variance=1.001)
    for shift, holds in ((3.9, True), (4.1, False)):
        shifted = signs + shift / 100  # a standard error of the mean is 1/100
        if holds:
            check_moments("shifted", shifted - 0, mean=0, variance=(shifted**2).mean())
        else:
            with pytest.raises(CheckFailed):
                check_moments("shifted", shifted, mean=0, variance=(shifted**2).mean())


def test_bounds_are_inclusive_and_where_they_are_said_to_be():
    check("c", 1.0, at_most=1.0)
    check_close("c", 1.5, 1.0, tolerance=0.5)
    check_close("below 1 the tolerance is absolute", torch.tensor(0.010009), torch.tensor(0.01))
    constant = torch.full((100,), 2.0)   # no spread: only its own mean and the variance 0 are within four standard errors
    check_moments("constant", constant, mean=2, variance=0)
    spread = torch.tensor([1.0, -1.0, 2.0, -2.0]).repeat(2_500)   # second moment 2.5, fourth 8.5: a standard error of the variance is .015
    check_moments("spread", spread, mean=0, variance=2.5 + 3.9 * 0.015)
    check_fails("below 1 the distance is absolute", 0.5, 0.515)
    for wrong in (
        lambda: check_close("c", torch.tensor(1.000015), torch.tensor(1.0)),
        lambda: check_moments("spread", spread, mean=0, variance=2.5 + 4.1 * 0.015),
        lambda: check_fails("off by just the bound", 1.0, 1.5, by=0.5),
        lambda: check_fails("empty", torch.ones(0), torch.ones(0)),
    ):
        with pytest.raises(CheckFailed):
            wrong()
    with pytest.raises(ValueError, match="99 samples"):
        check_moments("few", constant[:99], mean=2, variance=0)


@pytest.mark.parametrize(("length", "shown"), [(198, repr("x" * 198)), (199, repr("x" * 199)[:200] + " …")])
def test_long_things_are_cut_in_messages(length, shown):
    with pytest.raises(CheckFailed) as failed:
        check_raises("claim", ValueError, lambda: "x" * length)
    assert str(failed.value).endswith(f"it returned {shown}")
