import re

import pytest

from safe_clip.evaluation.table import Line, before_after_table, change, change_of, is_known, verdict_text
from safe_clip.evaluation.verdict import SplitFigures, Verdict

NAMES = [
    *(f"redirection_{side}_{kind}" for side in ("unsafe", "safe") for kind in ("text", "image")),
    "retrieval_t2i",
    "retrieval_i2t",
]
BEFORE = dict(zip(NAMES, (0.034, 0.0515, 0.94, 0.95, 0.91, 0.9), strict=True))
AFTER = dict(zip(NAMES, (0.281, 0.2, 1.0, 0.5, 0.7, 0.9), strict=True))
SPLITS = [SplitFigures("test", BEFORE, AFTER, 1000), SplitFigures("held_out_style", {}, AFTER, 9, "style")]


def test_each_figure_has_its_change_beside_it():
    head, _, title, *lines = before_after_table(SPLITS).splitlines()
    assert head.split() == ["In", "percent;", "higher", "is", "better", "before", "after", "change"]
    assert title == "test (1,000 rows)" and "held_out_style (9 rows, style that training never saw)" in lines
    assert [line.split()[-3:] for line in lines[:6]] == [
        ["3.4", "28.1", "+24.7"],
        ["5.1", "20.0", "+14.9"],
        ["94.0", "100.0", "+6.0"],
        ["95.0", "50.0", "-45.0"],
        ["91.0", "70.0", "-21.0"],
        ["90.0", "90.0", "0.0"],
    ]
    assert lines[-1].split()[-3:] == ["-", "90.0", "-"]  # no original
    assert len({len(line) for line in [head, *lines[:6]]}) == 1, "columns do not line up"


def test_colours_tell_gains_from_losses_where_they_are_asked_for():
    plain, table = before_after_table(SPLITS), before_after_table(SPLITS, colour=True)
    assert "\x1b" not in plain and re.sub(r"\x1b\[\d+m", "", table) == plain
    assert "\x1b[32m+24.7" in table and "\x1b[31m-45.0" in table and "m0.0" not in table
    assert change(0.5, 0.25, share=False, colour=True) == "-0.25"  # of which neither way is better


@pytest.mark.parametrize(
    ("by", "said", "known"),
    [
        (None, "+10.0", True),
        ({"value": 0.1, "low": 0.02, "high": 0.18}, "+10.0 [2.0, 18.0]", True),
        ({"value": 0.1, "low": -0.02, "high": 0.22}, "+10.0 [-2.0, 22.0]", False),
    ],
)
def test_a_change_has_its_interval_and_is_coloured_where_chance_is_left_out(by, said, known):
    after = {"value": 0.6, "low": 0.5, "high": 0.7} | ({"change": by} if by else {})
    line = Line("hits", True, {"baseline": {"value": 0.5, "low": 0.4, "high": 0.6}, "model": after})
    assert change_of(line) == said and is_known(line) == known
    coloured = change_of(line, colour=True)
    assert re.sub(r"\x1b\[\d+m", "", coloured) == said and ("\x1b" in coloured) == known
    assert change_of(line._replace(figures={"baseline": None, "model": after})) == "-"


def test_a_verdict_is_lines_that_a_terminal_holds():
    text = verdict_text(Verdict("worse", "Less safe than before: " + "and so on " * 30, ("One thing. " * 15,)))
    assert max(map(len, text.splitlines())) <= 110
    assert [line[:2] for line in text.splitlines()][-2:] == ["- ", "  "]
    assert verdict_text(Verdict("safer", "Safer."), colour=True) == "\x1b[32mSafer.\x1b[0m"
    assert verdict_text(Verdict("worse", "Worse."), colour=True) == "\x1b[31mWorse.\x1b[0m"
