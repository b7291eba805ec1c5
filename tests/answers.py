"""What every notebook's exercises owe the reader, shared by their tests."""

import re

NOT_ATTEMPTED = (
    "– Exercise {}: not attempted; write it where NotImplementedError is raised. The notebook goes on with the package's own function.\n"
)


def assert_reference_is_right(check, exercises, capsys):
    """The package's own function passes its own exercise and comes back."""
    for name, exercise in exercises.items():
        assert check(name, exercise.reference) is exercise.reference
        assert capsys.readouterr().out == f"✓ Exercise {name}: right.\n"


def assert_hint_and_reference(check, exercises, name, function, hint, capsys):
    """A wrong answer is named, gets its hint, and the notebook goes on with the reference."""
    assert check(name, function) is exercises[name].reference
    out = capsys.readouterr().out
    assert out.startswith(f"✗ Exercise {name}") and "goes on with the package's own" in out
    assert re.search(hint, out)


def assert_goes_on_quietly(check, exercises, name, capsys):
    """An exercise that was not attempted is one line, and the notebook goes on with the reference."""

    def untouched(*_):
        raise NotImplementedError

    assert check(name, untouched) is exercises[name].reference
    assert capsys.readouterr().out == NOT_ATTEMPTED.format(name)
