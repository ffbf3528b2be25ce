"""Random operations on flows: the invariants hold after each."""

import pytest
from p4.interrupts import FLOWS, Subject
from p4.stateful import FLOW_OPERATIONS, check, of_flow, perform, times


@times
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("subject", FLOWS, ids=lambda s: s.name)
def test_flows(subject: Subject, times: int) -> None:
    check(perform(of_flow(subject), times * FLOW_OPERATIONS))
