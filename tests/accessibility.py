"""What axe-core says of a lab: contrast, names, roles and the order of focus, by the rules of WCAG 2.1 A and AA."""

from pathlib import Path
from typing import Any

AXE = Path(__file__).resolve().parents[1] / "node_modules" / "axe-core" / "axe.min.js"
RUN = """async () => {
    const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"];
    // Its own rules for whole pages are JupyterLab's business.
    const rules = Object.fromEntries(["region", "heading-order"].map((name) => [name, { enabled: false }]));
    const { violations } = await axe.run(".p4-lab", { runOnly: { type: "tag", values: tags }, rules });
    return violations.flatMap(({ id, help, nodes }) => nodes.map(({ html, any }) => (
        `${id}: ${help}: ${html.slice(0, 160)} ${any.map(({ message }) => message).join("; ")}`)));
}"""


def violations(page: Any) -> list[str]:
    """Return what is wrong with the labs on a page."""
    if not page.evaluate("() => 'axe' in window"):
        assert AXE.exists(), "axe-core is not there: make test installs it with the other tools"
        page.evaluate(AXE.read_text(encoding="utf-8"))
    return list(page.evaluate(RUN))
