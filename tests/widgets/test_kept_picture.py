"""The picture that stays in a saved notebook: the kernel's side."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from wire import Wire

from p4lab.training import State
from p4lab.widgets import BrowserError, directions_lab, kept_picture
from p4lab.widgets.kept_picture import LIMIT, PNG, KeptPicture

Published = list[tuple[dict[str, Any], str, bool]]


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    """What is published in a notebook: data, display id, and whether it takes the place of what was there."""
    found: Published = []

    def publish(data: dict[str, Any], *, transient: dict[str, str], update: bool) -> None:
        found.append((data, transient["display_id"], update))

    shell = SimpleNamespace(kernel=object(), display_pub=SimpleNamespace(publish=publish))
    monkeypatch.setattr(kept_picture, "get_ipython", lambda: shell)
    return found


@pytest.fixture
def picture() -> Iterator[KeptPicture]:
    widget = KeptPicture()
    yield widget
    widget.close()


def data_of(png: bytes) -> dict[str, str]:
    return {"image/png": base64.b64encode(png).decode()}


@pytest.mark.parametrize("shell", [None, SimpleNamespace()], ids=["python", "ipython"])
def test_nothing_is_published_where_no_notebook_is(
    shell: Any, picture: KeptPicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_picture, "get_ipython", lambda: shell)
    assert not picture.place()


def test_the_output_is_empty_until_a_picture_takes_its_place(picture: KeptPicture, published: Published) -> None:
    assert picture.place()
    picture.hear({"picture": 9}, [memoryview(PNG + b"1")])
    name = published[0][1]
    assert published == [({}, name, False), (data_of(PNG + b"1"), name, True)]
    assert picture.png == PNG + b"1"


def test_the_same_picture_leaves_the_notebook_as_it_is(picture: KeptPicture, published: Published) -> None:
    for png in (PNG, PNG, PNG + b"2"):
        picture.hear({"picture": len(png)}, [memoryview(png)])
    assert [data for data, *_ in published] == [data_of(PNG), data_of(PNG + b"2")]


def test_a_lab_that_is_shown_again_brings_its_picture_along(picture: KeptPicture, published: Published) -> None:
    picture.hear({"picture": len(PNG)}, [memoryview(PNG)])
    assert picture.place()
    assert published[-1] == (data_of(PNG), published[0][1], False)


@pytest.mark.parametrize("content", [b"GIF89a", PNG + bytes(LIMIT)], ids=["another file", "too large"])
def test_what_is_no_small_png_is_refused(content: bytes, picture: KeptPicture, published: Published) -> None:
    picture.hear({"picture": len(content)}, [memoryview(content)])
    assert published == []
    assert isinstance(picture.error, BrowserError)
    assert str(len(content)) in str(picture.error)


def test_the_page_is_told_what_the_run_does(picture: KeptPicture, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(picture, monkeypatch)
    picture.show(State.RUNNING)
    wire.says(hello=1)
    message, _ = wire.take()
    assert (message["state"], message["limit"]) == ("running", LIMIT)
    picture.show(State.PAUSED)
    assert wire.take()[0]["state"] == "paused"


def test_a_lab_that_is_displayed_has_its_picture_in_front(published: Published) -> None:
    lab = directions_lab(name="kept", dim=8)
    assert published == []
    bundle = lab._repr_mimebundle_()
    assert [(data, update) for data, _, update in published] == [({}, False)]
    assert "run this cell" in str(bundle)
    lab.close()
    lab._repr_mimebundle_()
    assert len(published) == 1
