"""Logs of queries: which columns, which periods, what is left out, and what is refused in a line."""

import json
from datetime import date, datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safe_clip import UserError
from safe_clip.data.query_log import WHOLE, different_texts, open_log, period_of, survey

QUERIES = ["a red square", "a blue one", "a red square", "", "a green one", "a red square"]
TIMES = ["2024-01-31T22:00:00", "2024-01-31 23:30:00-01:00", "2024-02-01", "2024-02-01", "1706832000", "2024-02-05"]
# 23:30 an hour west of Greenwich is half past midnight of the next day there; 1706832000 is 2024-02-02 00:00 UTC.
DAYS = ["2024-01-31", "2024-02-01", "2024-02-01", None, "2024-02-02", "2024-02-05"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(kind: str) -> str:
    rows = [{"n": n, "query": q, "at": t} for n, (q, t) in enumerate(zip(QUERIES, TIMES, strict=True))]
    if kind == "csv":
        lines = ["n,query,at", *(f'{row["n"]},"{row["query"]}",{row["at"]}' for row in rows)]
        Path("log.csv").write_text("\n".join(lines) + "\n")
    elif kind == "jsonl":
        Path("log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), "log.parquet")
    return f"log.{kind}"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_log_is_counted_by_period_and_text(kind):
    log = open_log(write(kind), time_column="at")
    assert (log.text, log.time, log.doubt) == ("query", "at", None)
    found = survey(log)
    assert found.periods == ["2024-01-31", "2024-02-01", "2024-02-02", "2024-02-05"]
    assert list(different_texts(log, found)) == ["a red square", "a blue one", "a green one"]
    counted = list(zip(found.text.tolist(), found.period.tolist(), found.count.tolist(), strict=True))
    assert counted == [(0, 0, 1), (0, 1, 1), (0, 3, 1), (1, 1, 1), (2, 2, 1)]
    assert found.read == 6 and found.left_out == {"empty": 1, "no_text": 0, "no_time": 0}
    assert list(different_texts(log, found, 2)) == ["a green one"]
    without = survey(open_log(f"log.{kind}"))
    assert without.periods == [WHOLE] and without.count.tolist() == [3, 1, 1]


def test_parts_of_a_log_are_one():
    Path("logs").mkdir()
    for day in (1, 2):
        Path(f"logs/0{day}.csv").write_text(f"query,at\na {day},2024-01-0{day}\nsame,2024-01-0{day}\n")
    for name in ("logs", "logs/*.csv"):
        found = survey(open_log(name, time_column="at"))
        assert found.periods == ["2024-01-01", "2024-01-02"] and len(found.first) == 3
    Path("logs/03.csv").write_text("text,at\na,2024-01-03\n")
    with pytest.raises(UserError, match=r"--text_column query: logs/03.csv has no such column"):
        open_log("logs/*.csv")


@pytest.mark.parametrize(
    ("time", "by", "expected"),
    [
        ("2024-12-30", "week", "2025-W01"),  # as ISO 8601 counts weeks
        ("2024-12-30T10:00Z", "month", "2024-12"),
        ("20240131", "day", "2024-01-31"),
        ("2024-01-31T23:30:00.123456+0530", "day", "2024-01-31"),
        ("2024-01-31T02:30:00+05:30", "day", "2024-01-30"),
        (1706832000, "day", "2024-02-02"),
        (1706832000_000.0, "day", "2024-02-02"),
        ("1706832000000000", "day", "2024-02-02"),
        (1706832000_000_000_000, "day", "2024-02-02"),
        (date(2024, 1, 31), "day", "2024-01-31"),
        (datetime(2024, 1, 31, 12, tzinfo=timezone.utc), "day", "2024-01-31"),
        ("31/01/2024", "day", None),
        ("2024-13-01", "day", None),
        ("yesterday", "day", None),
        (12, "day", None),
        (True, "day", None),
        (None, "day", None),
        (float("nan"), "day", None),
    ],
)
def test_times(time, by, expected):
    assert period_of(time, by) == expected


def test_timestamps_of_parquet():
    times = np.array(["2024-01-31T23:59:59.999999999", "2024-02-01"], dtype="datetime64[ns]")
    pq.write_table(pa.table({"text": ["a", "b"], "t": pa.array(times)}), "log.parquet")
    assert survey(open_log("log.parquet", time_column="t")).periods == ["2024-01-31", "2024-02-01"]


SECRET = "zebra crossing"


@pytest.mark.parametrize(
    ("name", "content", "flags", "said"),
    [
        (
            "log.csv",
            "id,when\n1,2\n",
            {},
            "which column holds the texts is not clear (none looks like one, of id, when)",
        ),
        ("log.csv", f"query,prompt\n{SECRET},b\n", {}, "is not clear (query, prompt, of query, prompt)"),
        (
            "log.csv",
            f"query\n{SECRET}\n",
            {"text_column": "q"},
            "--text_column q: log.csv has no such column, only query",
        ),
        ("log.csv", f"query\n{SECRET}\n", {"time_column": "t"}, "--time_column t: log.csv has no such column"),
        (
            "log.csv",
            f"query,t\n{SECRET},soon\n",
            {"time_column": "t"},
            "row 0, column 't': the time is neither ISO 8601",
        ),
        ("log.csv", f"query,t\n{SECRET},{SECRET}\n", {"time_column": "query"}, "row 0, column 'query': the time is"),
        ("log.csv", "query\n\n", {}, "holds no query"),
        ("log.csv", "", {}, "it is empty, without a line of names"),
        ("log.jsonl", "", {}, "holds no query: it is empty"),
        ("log.jsonl", f'{{"query": "a"}}\n{{"query": "{SECRET}"\n', {}, "line 2: it is no JSON object"),
        ("log.json", f'[{{"query": "{SECRET}"}}]', {}, "line 1: it is no JSON object"),
        ("log.jsonl", '{"query": 7}\n', {}, "row 0, column 'query': it holds a int and no text"),
        (
            "log.jsonl",
            f'{{"query": "{SECRET}\\u0000"}}\n',
            {},
            "row 0, column 'query': the caption was read in the wrong",
        ),
        ("log.txt", SECRET, {}, "It is a text without columns"),
        ("log.parquet", "PAR1 nothing", {}, "log.parquet could not be loaded"),
        (None, None, {}, "could not be loaded"),
    ],
)
def test_what_is_no_log_is_told_in_a_line_that_shows_nothing_of_it(name, content, flags, said):
    if name:
        Path(name).write_text(content)
    with pytest.raises(UserError) as error:
        survey(open_log(name or "logs/none.csv", **flags))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert SECRET not in str(error.value)


def test_rows_that_cannot_be_used_are_left_out_where_so_asked():
    Path("log.csv").write_text("query,t\n" + "a,2024-01-01\n" * 19 + "b,soon\n")
    log = open_log("log.csv", time_column="t")
    assert survey(log, max_bad_fraction=0.05).left_out["no_time"] == 1
    with pytest.raises(UserError, match="1 of 20 rows cannot be used .* more than --max_bad_fraction 0.01"):
        survey(log, max_bad_fraction=0.01)


def test_a_log_that_changes_meanwhile_is_told():
    Path("log.csv").write_text("query\na\nb\n")
    log = open_log("log.csv")
    found = survey(log)
    Path("log.csv").write_text("query\na\nc\n")
    with pytest.raises(UserError, match="was changed while it was read"):
        list(different_texts(log, found))


def test_a_column_that_may_hold_times_is_told_of():
    Path("log.csv").write_text("query,created_at\na,2024-01-01\n")
    assert open_log("log.csv").doubt == "created_at"
    assert open_log("log.csv", time_column="created_at").doubt is None
