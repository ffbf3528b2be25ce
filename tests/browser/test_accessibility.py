"""Labs for people who cannot use a mouse, or cannot see much: contrast, names and roles (axe-core), and keys."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from accessibility import violations
from live_notebook import Notebook, start_lab

QUICK = ("06_densities_2d", "05_race")
OTHERS = ("00_start_here", "02_parameter_space", "11_alanine_dipeptide", "14_images")
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
FOCUS = "() => document.querySelector('.p4-lab').focus()"
ACTIVE = "() => document.activeElement?.closest('.p4-item')?.dataset.name"


def turn_all(notebook: Notebook) -> Any:
    """Turn to each page of the lab, one after the other."""
    for tab in notebook.page.locator(".p4-tab").all():
        tab.click()
        yield tab.inner_text()


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)])
def test_every_page_passes_the_rules_and_keys_reach_everything(notebook: Notebook, name: str) -> None:
    start_lab(notebook, f"{name}.ipynb", whole=False)
    wrong = {}
    for theme in THEMES:
        notebook.set_theme(theme)
        for title in turn_all(notebook):
            notebook.page.wait_for_timeout(200)
            wrong |= dict.fromkeys(f"{theme}, {title}: {text}" for text in violations(notebook.page))
    assert not wrong, "\n".join(wrong)

    notebook.page.evaluate(FOCUS)
    notebook.page.keyboard.press("Space")
    notebook.wait_for_state("running")
    notebook.wait_for_count(">=", 3)
    notebook.page.evaluate(FOCUS)
    notebook.page.keyboard.press("Space")
    notebook.wait_for_state("paused")
    last = int(notebook.ask("lab.player.engine.step"))
    notebook.wait_for_count("===", last)
    notebook.page.evaluate(FOCUS)
    notebook.page.keyboard.press("ArrowRight")
    notebook.wait_for_count("===", last + 1)
    for _ in range(2):  # the last moment that was recorded may be the present
        notebook.page.keyboard.press("ArrowLeft")
    notebook.wait_for_count("<", last + 1)

    reached = set()
    notebook.page.evaluate(FOCUS)
    for _ in range(120):
        notebook.page.keyboard.press("Tab")
        reached.add(notebook.page.evaluate(ACTIVE))
    assert {"start", "step", "restart", "scrub", "page:side", "page:below"} <= reached
    notebook.check_clean()
