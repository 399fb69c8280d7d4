"""How many messages one statement writes."""

import pytest

from heimdex_status_store.recorder import MAX_BATCH_BYTES, batch_length

KIB = 1024


@pytest.mark.parametrize(
    ("sizes", "length"),
    [
        ([700] * 500, 500),
        ([128 * KIB] * 500, 64),
        ([MAX_BATCH_BYTES + 1, 1], 1),
        ([1, MAX_BATCH_BYTES], 1),
        ([MAX_BATCH_BYTES], 1),
        ([], 1),
    ],
)
def test_a_batch_ends_before_it_has_too_many_bytes(sizes: list[int], length: int) -> None:
    assert batch_length(sizes) == length
