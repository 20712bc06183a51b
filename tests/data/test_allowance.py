"""The one policy of what is no bad luck any more."""

import pytest

from safe_clip import UserError
from safe_clip.data.allowance import check_bad_share


@pytest.mark.parametrize(("bad", "count", "most"), [(0, 0, 0.0), (0, 9, 0.0), (1, 4, 0.25), (3, 4, 1.0)])
def test_a_share_that_may_be_left_out_is(bad, count, most):
    check_bad_share(bad, count, most, "some rows cannot be used", ".")


@pytest.mark.parametrize(
    ("bad", "count", "most", "why"),
    [
        (1, 9, 0.0, "more than --max_bad_fraction 0 allows"),
        (2, 7, 0.25, "more than --max_bad_fraction 0.25 allows"),
        (4, 4, 1.0, "and none is left"),
        (4, 4, 0.0, "and none is left"),
    ],
)
def test_more_is_refused_and_so_is_all(bad, count, most, why):
    with pytest.raises(UserError) as error:
        check_bad_share(bad, count, most, "some rows cannot be used", "; a file lists them.")
    assert str(error.value) == f"some rows cannot be used, {why}; a file lists them."
