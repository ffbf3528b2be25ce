"""The README's code runs, and its links lead somewhere."""

import re
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_trains_inverts_and_folds() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    layer, z = names["layer"], names["z"]
    assert abs(z.std().item() - 1) < 0.05  # the data have a half
    assert names["merges"].attempts == 25
    torch.testing.assert_close(layer(names["x"]), layer(layer.inverse(layer(names["x"]))), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(names["linear"](names["x"]), layer(names["x"]), atol=1e-5, rtol=1e-5)


def test_what_it_links_to_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
