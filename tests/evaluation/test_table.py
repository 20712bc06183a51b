from safe_clip.evaluation.table import before_after_table


def test_layout_and_values():
    names = [
        "retrieval_t2i",
        "retrieval_i2t",
        *(f"redirection_{s}_{m}" for s in ("safe", "unsafe") for m in ("text", "image")),
    ]
    before = dict(zip(names, (0.91, 0.9, 0.94, 0.95, 0.034, 0.0515), strict=True))
    after = dict(zip(names, (0.7, 0.65, 1.0, 0.5, 0.281, 0.2), strict=True))
    lines = before_after_table({"test": before}, {"test": after}).splitlines()
    assert len(lines) == 4
    assert lines[1].split("  ")[-1].strip() == "unsafe image"
    assert lines[2].split() == ["test", "before", "91.0", "90.0", "94.0", "95.0", "3.4", "5.1"]
    assert lines[3].split() == ["after", "70.0", "65.0", "100.0", "50.0", "28.1", "20.0"]
    assert len({len(line) for line in lines[1:]}) == 1, "columns do not line up"
