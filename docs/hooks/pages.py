"""Pages that need no line in mkdocs.yml: results, limits, and guides that have none."""

import re
from pathlib import Path
from typing import Any


def title(page: Path) -> str:
    """Return the heading of a page."""
    return next(line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("# ")).removeprefix(
        "# "
    )


def on_config(config: Any) -> Any:
    """Put further guides behind the others, and results and limits before the reference."""
    docs = Path(config.docs_dir)
    (guides,) = (entry["Guides"] for entry in config.nav if "Guides" in entry)
    named = {path for guide in guides for path in guide.values()}
    more = [page for page in sorted((docs / "guides").glob("*.md")) if f"guides/{page.name}" not in named]
    guides += [{title(page): f"guides/{page.name}"} for page in more]
    late: list[Any] = []
    first = docs / "results" / "index.md"
    if first.exists():  # its links say the order
        names = dict.fromkeys(["index", *re.findall(r"\]\((\w+)\.md\)", first.read_text(encoding="utf-8"))])
        rest = [page.stem for page in sorted(first.parent.glob("*.md")) if page.stem not in names]
        pages = [first.with_name(f"{name}.md") for name in [*names, *rest]]
        late.append({"Results": [{title(page): f"results/{page.name}"} for page in pages]})
    if (docs / "limits.md").exists():
        late.append({"Limits": "limits.md"})
    config.nav[-1:-1] = late
    return config
