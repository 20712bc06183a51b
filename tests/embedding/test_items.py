import torch

from safe_clip.embedding.items import IdentifiedItems, figure


def packed():
    """Items of rows 0, 2, 3 and 5 of six, of which the first and the third are one; row 4 could not be read."""
    row, ids = torch.tensor([0, 2, 3, 5]), torch.tensor([7, -1, 7, 4])
    return IdentifiedItems(torch.eye(4), row, ids=ids, count=6, unreadable={4: "no image"})


def test_a_figure_has_a_value_for_each_row_that_has_an_item():
    nan = torch.nan
    expected = torch.tensor([1, nan, 2, 1, nan, 3], dtype=torch.float64)
    items = packed()
    assert len(items) == 4 and items.first.tolist() == [0, 1, 3] and items.inverse.tolist() == [0, 1, 0, 2]
    values = torch.tensor([1.0, 2, 3])[items.inverse]
    torch.testing.assert_close(figure(values, items.row, 6), expected, equal_nan=True)
    some = torch.tensor([1, 3])
    expected = torch.tensor([nan, nan, 2, nan, nan, 3], dtype=torch.float64)
    torch.testing.assert_close(figure(values[some], items.row[some], 6), expected, equal_nan=True)


def test_items_move_to_other_rows_with_the_reasons_of_those_that_cannot_be_read():
    moved = packed().moved(torch.tensor([1, 2, 4, 5]), torch.tensor([0, 3, 7, 8]), 10)
    assert moved.row.tolist() == [3, 8] and moved.ids.tolist() == [-1, 4] and moved.count == 10
    assert torch.equal(moved.embeds, torch.eye(4)[[1, 3]]) and moved.unreadable == {7: "no image"}
    chosen = packed().select(torch.tensor([2, 3, 5]))
    assert chosen.row.tolist() == [0, 1, 2] and chosen.count == 3 and not chosen.unreadable
    none = packed().select(torch.tensor([1]))
    assert (
        len(none) == 0
        and none.embeds.shape == (0, 4)
        and figure(torch.empty(0), none.row, 1).isnan().tolist() == [True]
    )
