import io
import sys
from types import SimpleNamespace

import pytest

from safe_clip import terminal
from safe_clip.terminal import coloured, command_line, draws_bars, in_colour, phase, progress_bar


class Screen(io.StringIO):
    """A terminal's end of a stream."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[Screen, io.StringIO], ids=["terminal", "file"])
def stream(request, monkeypatch):
    """Sets standard error when it is called, since pytest sets it between a fixture and its test."""
    monkeypatch.setattr(terminal, "SHORT", 0.0)

    def start():
        monkeypatch.setattr(sys, "stderr", request.param())
        return sys.stderr

    return start


def test_colours_are_for_terminals_alone_and_for_those_who_want_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert in_colour(Screen()) and not in_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not in_colour(Screen())
    assert coloured("+1", "loss", True) == "\x1b[31m+1\x1b[0m" and coloured("+1", "loss", False) == "+1"


def test_a_notebook_is_known_by_its_kernel_not_by_a_library_that_is_there(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    shells = [None, object(), SimpleNamespace(kernel=1)]  # plain Python, IPython on a terminal, a notebook
    monkeypatch.setitem(sys.modules, "ipykernel", SimpleNamespace())
    found = []
    for shell in shells:
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        found.append(draws_bars())
    assert found == [False, False, True]


def test_a_phase_is_one_bar_and_in_a_file_one_line(stream):
    stream = stream()
    with phase("Measuring", 30):
        for name in ("captions", "images"):
            with progress_bar(total=10, desc=name) as bar:
                bar.update(4)
                bar.update(6)
        assert list(progress_bar(range(10), desc="more")) == list(range(10))
    said = stream.getvalue()
    if stream.isatty():
        drawn = [state for state in said.replace("\n", "\r").split("\r") if state.strip()]
        assert all(state.startswith("Measuring") for state in drawn) and "30/30" in drawn[-1]
    else:
        assert said == "Measuring: 30 items.\n"


def test_a_phase_may_promise_more_or_less_than_comes(stream):
    stream = stream()
    for total, comes in ((5, 9), (9, 5)):
        with phase("Measuring", total), progress_bar(total=comes) as bar:
            bar.update(comes)
    if stream.isatty():
        assert "5/5" in stream.getvalue() and "9/9" in stream.getvalue()
    with pytest.raises(ZeroDivisionError), phase("Measuring", 3):
        _ = 1 / 0
    assert terminal._phases == []


def test_what_is_disabled_shows_nothing(stream):
    stream = stream()
    with phase("Measuring", 3, disable=True), progress_bar(total=3) as bar:
        bar.update(3)
    assert list(progress_bar(range(3), disable=True)) == [0, 1, 2]
    assert stream.getvalue() == ""


def test_a_bar_leaves_a_line_a_minute_in_a_file(monkeypatch):
    made = io.StringIO()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr(terminal, "BETWEEN", 0.0)
    with progress_bar(total=4, desc="Drawing, safe") as bar:
        bar.update(2)
        bar.update(2)
    lines = made.getvalue().splitlines()
    assert "\r" not in made.getvalue() and all(line.startswith("Drawing, safe: ") for line in lines)
    shown = [line.rpartition(": ")[2].partition(",")[0] for line in lines]
    assert shown[-2:] == ["2 of 4", "4 of 4"] and shown.count("4 of 4") == 1


@pytest.mark.parametrize(
    ("python", "on_path", "called"),
    [
        ("env/bin/python", "env/bin/safe-clip", "safe-clip"),  # of an activated environment
        ("env/bin/python", None, "env/bin/safe-clip"),
        ("env/bin/python", "other/bin/safe-clip", "env/bin/safe-clip"),
        ("bare/bin/python", None, "{}/bare/bin/python -m safe_clip"),
    ],
)
def test_commands_are_named_as_they_can_be_pasted(python, on_path, called, tmp_path, monkeypatch):
    for name in ("env/bin/safe-clip", "other/bin/safe-clip"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / python))
    monkeypatch.setenv("PATH", str(tmp_path / on_path).removesuffix("/safe-clip") if on_path else "")
    assert command_line("eval", "--model", "a b") == f"{called.format(tmp_path)} eval --model 'a b'"
