from __future__ import annotations

import pytest

from vjepa.errors import UserError
from vjepa.records import TokenGrid

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("grid", [TokenGrid(2, 3, 4), (2, 3, 4), [2, 3, 4]])
def test_three_numbers_are_a_grid(grid: object) -> None:
    assert TokenGrid.of(grid) == TokenGrid(2, 3, 4)  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", [(2, 3), (2, 3, 4, 5), (2, 0, 4), (2, 3, 4.0), "234", 8])
def test_anything_else_is_one_line(grid: object) -> None:
    with pytest.raises(UserError, match=r"grid: .* is not \(time slots, rows, columns\)") as caught:
        TokenGrid.of(grid)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
