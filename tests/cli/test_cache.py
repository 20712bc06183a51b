"""What is kept, listed and removed by `safe-clip cache`."""

import json
import os
import time

import datasets
import pytest
import torch
from datasets import Dataset, Features, Value

from safe_clip import UserError, load_quadruplets
from safe_clip.cli.cache import main
from safe_clip.store.chunks import in_chunks
from safe_clip.store.folders import KINDS, entries, folder_of
from safe_clip.store.tables import kept_table

DAY = 86400
FOREIGN = (
    "hub/safe_clip/embeddings/notes.txt",
    "hub/safe_clip/other/0123456789abcdef/file",
    "data/generator/default-fingerprint=0123456789abcdef/dataset_info.json",
    "data/generator/default-0123456789abcdef/rows.arrow",
    "data/safe_clip/fetched/mine.png",
    "data/safe_clip/readme",
    "data/links/mine/file",
    "data/mended/mine.tar",
    "data/json/0123456789abcdef/rows.arrow",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "data"))
    return tmp_path


def write(path, size: int, days: float = 0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - days * DAY - 60,) * 2)
    return path


def run(capsys, *flags: object) -> str:
    main([str(flag) for flag in flags])
    return capsys.readouterr().out


@pytest.fixture
def kept(cache):
    """Two folders of embeddings, an image, and links to a file that is not in the cache."""
    write(folder_of("embeddings") / "0123456789abcdef/0000000.safetensors", 1500, days=40)
    write(folder_of("embeddings") / "0123456789abcdef/0000256.safetensors", 500, days=10.5)
    write(folder_of("embeddings") / "00000000000000ff/0000000.safetensors", 1_000_000, days=1.5)
    write(folder_of("fetched") / f"{'0f' * 32}.png", 7, days=100)
    own = write(cache / "own.csv", 10)
    link = folder_of("links") / "0123456789abcdef/own.csv"
    link.parent.mkdir(parents=True)
    link.symlink_to(own)
    for name in FOREIGN:
        write(cache / name, 3, days=1000)


def test_kinds_are_listed_with_number_size_and_ages(kept, cache, capsys):
    lines = [line.split("  ") for line in run(capsys).splitlines()]
    words = [[word.strip() for word in line if word] for line in lines]
    assert words[0] == ["kind", "entries", "size", "oldest", "newest", "folder"]
    assert words[1] == ["embeddings", "2", "1.0 MB", "10 days", "1 day", str(cache / "hub/safe_clip/embeddings")]
    assert words[2] == ["fetched", "1", "7 B", "100 days", "100 days", str(cache / "data/safe_clip/fetched")]
    assert words[3][:2] == ["links", "1"] and words[3][5] == str(cache / "data/links")
    assert words[4][:3] == ["all", "4", "1.0 MB"] and len(words) == 5
    assert [entry.size for entry in entries("embeddings", folder_of("embeddings"))] == [1_000_000, 2000]


def test_only_what_is_named_and_old_enough_is_removed(kept, cache, capsys):
    def there() -> list[str]:
        return [path.name for path in sorted(folder_of("embeddings").iterdir())]

    assert run(capsys, "--empty", "fetched", "pixels", "--older_than", 101) == "There was nothing to remove.\n"
    assert run(capsys, "--empty", "embeddings", "--older_than", 10) == "embeddings: 1 removed, 2.0 kB.\n"
    assert there() == ["00000000000000ff", "notes.txt"]
    assert run(capsys, "--older_than", 30).splitlines()[1].split()[:2] == ["fetched", "1"]
    assert "fetched: 1 removed, 7 B.\nlinks: 1 removed" in run(capsys, "--empty")
    assert run(capsys) == "Nothing is kept.\n" and there() == ["notes.txt"]
    assert (cache / "own.csv").stat().st_size == 10
    for name in FOREIGN:
        assert (cache / name).stat().st_size == 3


def test_what_the_package_keeps_is_known_by_its_kind(cache, capsys, tmp_path):
    rows = [{"safe_caption": f"a dog {n}", "unsafe_caption": f"a gun {n}"} for n in range(4)]
    (tmp_path / "rows.csv").write_text(
        "\n".join(["safe_caption,unsafe_caption", *(",".join(row.values()) for row in rows)]) + "\n"
    )
    load_quadruplets(str(tmp_path / "rows.csv"), hold_out=False)
    for kind in ("pixels", "audit"):
        kept_table(
            lambda: ({"x": n} for n in range(3)), f"{len(kind):016}", kind, features=Features({"x": Value("int8")})
        )
    Dataset.from_generator(lambda: ({"x": n} for n in range(3)))  # of somebody else
    for kind in ("embeddings", "reference_embeddings"):
        in_chunks(
            folder_of(kind) / "0123456789abcdef",
            2,
            lambda batches: [({"x": torch.ones(len(batch))}, []) for batch in batches],
            "",
            *(2, 2),
        )
    found = {line.split()[0]: line.split()[1] for line in run(capsys).splitlines()[1:]}
    assert found == {
        "embeddings": "1",
        "reference_embeddings": "1",
        "pixels": "1",
        "audit": "1",
        "rows": "1",
        "tables": "1",
        "all": "6",
    }
    run(capsys, "--empty")
    assert run(capsys) == "Nothing is kept.\n"
    assert len(list((cache / "data/generator").glob("*/**/*.arrow"))) == 1
    again = load_quadruplets(str(tmp_path / "rows.csv"), hold_out=False)["train"]
    assert again["unsafe_caption"][:] == [row["unsafe_caption"] for row in rows]


@pytest.mark.parametrize("noted", [{}, {"kind": "reference_embeddings"}])  # which were tables once
def test_tables_of_earlier_versions_are_read_and_listed(noted, cache, capsys):
    made = []

    def generate():
        made.append(1)
        yield {"x": 7}

    def table() -> Dataset:
        return kept_table(generate, "0" * 16, "audit", 1, features=Features({"x": Value("int8")}))

    table()
    (digests,) = (cache / "data").rglob("digests.json")
    known = json.loads(digests.read_text())
    assert known.pop("kind") == "audit" and known.pop("0.0.0/dataset_info.json")
    assert known.keys() == {"0.0.0/generator-train.arrow"}
    digests.write_text(json.dumps(known | noted))
    assert table()["x"][:] == [7] and len(made) == 1
    assert run(capsys).splitlines()[1].split()[:2] == ["earlier", "1"]


def test_other_folders_are_named(cache, capsys):
    write(cache / "out/generated/0123456789abcdef/0000000.json", 20)
    write(cache / "out/generated/mine/0000000.json", 20)
    write(cache / "mine/0123456789abcdef/0000000.safetensors", 30)
    assert run(capsys) == "Nothing is kept.\n"
    flags = ("--output_dir", cache / "out", "--cache_dir", cache / "mine")
    assert [line.split()[:3] for line in run(capsys, *flags).splitlines()[1:]] == [
        ["embeddings", "1", "30"],
        ["generated", "1", "20"],
        ["all", "2", "50"],
    ]
    assert run(capsys, "--empty", "generated", *flags) == "generated: 1 removed, 20 B.\n"
    assert [path.name for path in (cache / "out/generated").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--empty", "pictures"], "--empty: it must be among 'embeddings', .* not 'pictures'"),
        (["--older_than", "soon"], "--older_than: it must be a number, not 'soon'"),
        (["--older_than", "-1"], "--older_than is -1.0; it must be 0 or more"),
        (["--emty"], r"--emty is no setting\. Did you mean 'empty'"),
        (["embeddings"], "'embeddings' belongs to no flag"),
        (["--empty", "generated"], "--empty generated: name the folder of the run with --output_dir"),
    ],
)
def test_wrong_flags_are_told_in_a_line_and_nothing_is_removed(flags, said, kept, capsys):
    with pytest.raises(UserError, match=said) as error:
        main(flags)
    assert "\n" not in str(error.value)
    assert len(list(entries("embeddings", folder_of("embeddings")))) == 2


def test_help_names_every_kind(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {kind} " in text for kind in KINDS)
