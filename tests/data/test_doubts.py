"""Judges that do not know what the unsafe side is about."""

import json

import pytest
from datasets import Dataset, load_from_disk

from safe_clip import UserError
from safe_clip.cli import audit
from safe_clip.data.audit import run as audit_run


class Knows:
    """Calls unsafe what speaks of one of some words."""

    def __init__(self, *words: str):
        self.words = words
        self.name = self.fingerprint = f"knows {words}"

    def score(self, items) -> list[tuple[float, float]]:
        return [(float(any(word in item for word in self.words)), 0.0) for item in items]


def rows_of(**kinds: int) -> dict[str, list]:
    unsafe = [(kind, f"a {kind} {n}") for kind, count in kinds.items() for n in range(count)]
    safe = [f"a dog {n}" for n in range(len(unsafe))]
    return {"safe_caption": safe, "unsafe_caption": [u for _, u in unsafe], "category": [k for k, _ in unsafe]}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run(rows: dict[str, list], *words: str, flags: tuple[str, ...] = ()) -> tuple[dict, str, str]:
        monkeypatch.setattr(audit_run, "open_classifiers", lambda names, *_: [Knows(*words) for _ in names])
        Dataset.from_dict(rows).to_json(tmp_path / "rows.jsonl")
        command = [f"{tmp_path}/rows.jsonl", "--text_classifier", "judge", f"--output_dir={tmp_path}/audit"]
        try:
            audit.main([*command, f"--write={tmp_path}/new", *flags])
        finally:
            found = json.loads((tmp_path / "audit" / "audit.json").read_text())
            said[:] = [found, (tmp_path / "audit" / "report.html").read_text(), capsys.readouterr().out]

    said = run.said = []
    return run


def test_labels_of_judges_that_know_nothing_of_it_are_refused(run, tmp_path):
    rows = rows_of(knife=30)
    with pytest.raises(
        UserError, match=r"call 0 of 30 items in unsafe_caption of train.*insist on these labels with --force"
    ):
        run(rows, "nude")
    found, page, out = run.said
    assert not (tmp_path / "new").exists()
    (doubt,) = found["doubts"]
    assert "most likely do not know what it is about" in doubt and doubt in page and doubt in out
    run(rows, "nude", flags=("--force",))
    assert load_from_disk(tmp_path / "new")["train"]["unsafe_caption_is_safe"][:] == [True] * 30


def test_of_several_kinds_each_must_be_known(run, tmp_path):
    rows = rows_of(knife=40, bottle=40)
    with pytest.raises(UserError, match="call 0 of 40 items in .* of the category 'bottle' unsafe"):
        run(rows, "knife")
    run(rows, "knife", "bottle")
    assert run.said[0]["doubts"] == []
    assert load_from_disk(tmp_path / "new")["train"]["unsafe_caption_is_safe"][:] == [False] * 80


@pytest.mark.parametrize(
    ("known", "count", "refused"),
    [(0, 4, False), (0, 5, True), (1, 19, False), (1, 20, False), (1, 21, True), (2, 40, False), (2, 41, True)],
)
def test_where_the_line_is_drawn(known, count, refused, run, tmp_path):
    rows = rows_of(knife=count)
    rows["unsafe_caption"][:known] = [f"a gun {n}" for n in range(known)]
    rows["category"] = ["things"] * count
    if refused:
        with pytest.raises(UserError, match=f"call {known} of {count} items"):
            run(rows, "gun")
    else:
        run(rows, "gun")
        assert "looks safe to these classifiers" in run.said[0]["doubts"][0] and (tmp_path / "new").exists()
