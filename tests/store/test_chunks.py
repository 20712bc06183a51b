"""Chunks of what was computed, which are made again where they are damaged."""

import json

import pytest
import torch

from safe_clip.store.chunks import in_chunks, joined

SIZE = 32


def run(folder, with_tensors: bool = True, with_records: bool = True) -> list[int]:
    calls = []

    def make(batches: list[range]):
        for numbers in batches:
            calls.append(numbers.start)
            tensors = {"x": torch.tensor([float(n) for n in numbers])} if with_tensors else {}
            yield tensors, [{"n": n} for n in numbers if with_records]

    tensors, records = joined(in_chunks(folder, 2 * SIZE, make, "", SIZE, SIZE))
    if with_records:
        assert [record["n"] for record in records] == list(range(2 * SIZE))
    if with_tensors:
        assert tensors["x"].tolist() == list(range(2 * SIZE))
    return calls


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-5]),
        lambda file: file.write_bytes(b"\0" + file.read_bytes()),
        lambda file: file.unlink(),
    ],
    ids=["empty", "cut", "garbage", "gone"],
)
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_damaged_chunk_alone_is_made_again(suffix, damage, tmp_path):
    assert run(tmp_path) == [0, SIZE] and run(tmp_path) == []
    damage(tmp_path / f"{SIZE:07}.{suffix}")
    assert run(tmp_path) == [SIZE] and run(tmp_path) == []


@pytest.mark.parametrize("kinds", [(True, False), (False, True)])
def test_chunks_without_tensors_or_records_are_whole(kinds, tmp_path):
    assert run(tmp_path, *kinds) == [0, SIZE] and run(tmp_path, *kinds) == []


@pytest.mark.parametrize("with_tensors", [True, False])
def test_records_that_are_read_but_are_not_what_was_written_are_made_again(with_tensors, tmp_path, caplog):
    run(tmp_path, with_tensors)
    file = tmp_path / f"{SIZE:07}.json"
    whole = file.read_text()
    file.write_text(whole.replace(f'"n": {SIZE}', '"n": 99'))
    assert len(json.loads(file.read_text())) == SIZE
    assert run(tmp_path, with_tensors) == [SIZE] and file.read_text() == whole
    assert caplog.text.count("does not hold what was written): it is made again") == 1


def test_without_a_folder_all_is_made_and_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(None) == run(None) == [0, SIZE] and not list(tmp_path.iterdir())


def test_what_is_not_final_is_kept_for_one_call(tmp_path):
    calls = []

    def make(batches: list[range]):
        for numbers in batches:
            calls.append(numbers)
            yield {"x": torch.tensor([float(n) for n in numbers])}, []

    def kept(last: int) -> torch.Tensor:
        made = in_chunks(tmp_path, 7, make, "", 3, 2, is_final=lambda chunk: chunk[0]["x"][-1] != last)
        return joined(made)[0]["x"]

    assert torch.equal(kept(5), torch.arange(7.0))
    assert calls == [range(0, 2), range(2, 3), range(3, 5), range(5, 6), range(6, 7)]
    assert torch.equal(kept(5), torch.arange(7.0)) and calls[5:] == [range(3, 5), range(5, 6)]
    assert torch.equal(kept(-1), torch.arange(7.0)) and len(calls) == 7


class Process:
    """One of several on machines with disks of their own."""

    def __init__(self, number: int, count: int):
        self.process_index, self.num_processes = number, count
        self.local_process_index, self.is_local_main_process = 0, True
        self.is_main_process = number == 0

    def wait_for_everyone(self):
        pass


def test_machines_without_a_common_disk_make_all_chunks(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    for number in range(2):
        calls = []

        def make(batches: list[range], calls=calls):
            for numbers in batches:
                calls.append(numbers.start)
                yield {"x": torch.tensor([float(n) for n in numbers])}, []

        folder = tmp_path / f"machine {number}"
        tensors, _ = joined(in_chunks(folder, 5, make, "", 2, 2, Process(number, 2)))
        assert torch.equal(tensors["x"], torch.arange(5.0)) and calls == [[0, 4, 2], [2, 0, 4]][number]
