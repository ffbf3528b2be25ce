"""Options that are handed on: what is known is read from signatures, and the rest is refused by name."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest

from p4lab.errors import OptionError
from p4lab.options import check_known, named_options, options_of, refusing, takes_options_of


def layer(width: int, rank: int = 1, *, bias: bool = True) -> tuple[int, int, bool]:
    return width, rank, bias


@takes_options_of(layer, "bias")
def flow(width: int, depth: int = 2, **options: Any) -> tuple[int, tuple[int, int, bool]]:
    return depth, layer(width, bias=False, **options)


class Wrapper:
    @takes_options_of(layer)
    def __init__(self, depth: int, **options: Any) -> None:
        self.made = depth, layer(**options)


@pytest.mark.parametrize(
    ("function", "named", "taken"),
    [
        pytest.param(layer, {"width", "rank", "bias"}, {"width", "rank", "bias"}, id="function"),
        pytest.param(lambda x, **options: x, {"x"}, None, id="open"),
        pytest.param(flow, {"width", "depth", "rank"}, {"width", "depth", "rank"}, id="handed on"),
        pytest.param(Wrapper, {"depth", "width", "rank", "bias"}, {"depth", "width", "rank", "bias"}, id="constructor"),
        pytest.param(partial(layer, rank=3), {"width", "rank", "bias"}, {"width", "rank", "bias"}, id="partial"),
    ],
)
def test_names_are_those_of_the_signature(function, named: set[str], taken: set[str] | None) -> None:
    assert named_options(function) == named
    assert options_of(function) == taken


def test_known_options_arrive_where_they_belong() -> None:
    assert flow(3, depth=4, rank=5) == (4, (3, 5, False))
    assert Wrapper(2, width=3, bias=False).made == (2, (3, 1, False))
    assert refusing("it", layer)(3, rank=2) == (3, 2, True)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        pytest.param(lambda: flow(3, rnak=2), r"^flow has no option 'rnak' \(did you mean 'rank'\?\)", id="misspelt"),
        pytest.param(lambda: flow(3, xyz=2), r"^flow has no option 'xyz': it knows depth, rank, width$", id="unknown"),
        pytest.param(lambda: flow(3, bias=True), r"no option 'bias': it knows depth, rank, width$", id="fixed"),
        pytest.param(lambda: Wrapper(3, hiden=2), r"^Wrapper has no option 'hiden'", id="constructor"),
        pytest.param(lambda: refusing("it", layer)(3, a=1, b=2), r"^it has no option 'a', 'b'", id="two"),
        pytest.param(lambda: check_known("it", ["a"], []), r"it knows none$", id="knows nothing"),
    ],
)
def test_unknown_options_are_refused_by_name(call, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        call()


def test_who_takes_any_name_is_not_asked() -> None:
    check_known("it", ["anything"], ["a"], None)
    assert refusing("it", lambda **options: options)(anything=1) == {"anything": 1}


def test_a_signature_names_what_is_handed_on() -> None:
    assert list(inspect.signature(flow).parameters) == ["width", "depth", "rank"]
