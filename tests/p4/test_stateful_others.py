"""Random operations on layers of the other kinds: the invariants hold after each."""

import pytest
from p4.stateful import check, layer_names, of_layer, operations, perform, times

KINDS = range(1, len(layer_names), 2)


@times
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("index", KINDS, ids=[layer_names[index] for index in KINDS])
def test_layers(index: int, times: int) -> None:
    check(perform(of_layer(index), times * operations(index)))
