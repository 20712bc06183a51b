"""Pieces of what was generated, which are made again where they are damaged."""

import pytest
import torch

from safe_clip.generation.store import PIECE, in_pieces


def run(folder, with_tensors: bool = True) -> tuple:
    calls = []

    def make(numbers: range):
        calls.append(numbers.start)
        tensors = {"x": torch.tensor([float(n) for n in numbers])} if with_tensors else {}
        return tensors, [{"n": n} for n in numbers]

    tensors, records = in_pieces(folder, 2 * PIECE, make, "")
    assert [record["n"] for record in records] == list(range(2 * PIECE))
    if with_tensors:
        assert tensors["x"].tolist() == list(range(2 * PIECE))
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
def test_a_damaged_piece_alone_is_made_again(suffix, damage, tmp_path):
    assert run(tmp_path) == [0, PIECE] and run(tmp_path) == []
    damage(tmp_path / f"{PIECE:07}.{suffix}")
    assert run(tmp_path) == [PIECE] and run(tmp_path) == []


def test_pieces_without_tensors_are_whole(tmp_path):
    assert run(tmp_path, with_tensors=False) == [0, PIECE] and run(tmp_path, with_tensors=False) == []
