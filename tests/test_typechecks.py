"""What every test rests on: cdkit's signatures are checked while it runs (tests/typechecks.py)."""

import jaxtyping
import pytest
import torch

from cdkit.functional.logits import plausible

FLAT: torch.Tensor = torch.zeros(())  # `plausible` wants [..., vocab]


@pytest.mark.parametrize("good_calls", [0, 1, 7, 63])
def test_a_wrong_shape_is_seen_in_first_and_later_calls(good_calls: int) -> None:
    """Each of these tests counts from 1 again."""
    for _ in range(good_calls):
        plausible(torch.zeros(2, 3), 0.1)
    with pytest.raises(jaxtyping.TypeCheckError):
        plausible(FLAT, 0.1)


@pytest.mark.usefixtures("as_for_a_user")
def test_none_is_seen_where_a_test_is_as_a_user() -> None:
    with pytest.raises(Exception) as caught:
        plausible("no logits", 0.1)  # type: ignore[arg-type]
    assert not isinstance(caught.value, jaxtyping.TypeCheckError)
