"""Formulas of pages and docstrings as MathML, made when the site is built: no script and no font from elsewhere.

It knows the part of TeX that p4lab's docstrings use. A command that it does not know is an error, so that a formula
is either set or reported, never shown half.
"""

import re
from html import escape
from typing import Any
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from mkdocs.plugins import event_priority

LETTERS = {
    "alpha": "α", "beta": "β", "delta": "δ", "epsilon": "ϵ", "eta": "η", "theta": "θ", "lambda": "λ", "mu": "μ",
    "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "varphi": "φ", "psi": "ψ", "omega": "ω", "ell": "ℓ",
    "Delta": "Δ", "Lambda": "Λ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω",
    "partial": "∂", "top": "⊤", "nabla": "∇", "dots": "…",
}  # fmt: skip
OPERATORS = {
    "leftarrow": "←", "mapsto": "↦", "sim": "∼", "approx": "≈", "propto": "∝", "in": "∈", "le": "≤", "ge": "≥",
    "odot": "⊙", "otimes": "⊗", "times": "×", "cdot": "⋅", "cdots": "⋯", "pm": "±", "bmod": "mod", "mid": "∣",
}  # fmt: skip
LARGE = {"sum": "∑", "prod": "∏", "int": "∫"}
FUNCTIONS = {"log", "ln", "exp", "det", "sin", "cos", "sinh", "cosh", "arctan"}
LIMITS = {"min", "max", "arg"}
SPACES = {",": 0.17, ";": 0.28, " ": 0.25, "quad": 1.0, "qquad": 2.0}
ACCENTS = {"hat": "^", "bar": "¯", "tilde": "~"}
DELIMITERS = {"|": "‖", "{": "{", "}": "}", "lceil": "⌈", "rceil": "⌉"}
OPENING, CLOSING = "([{⌈", ")]}⌉"
MATRICES = {"pmatrix": ("(", ")"), "cases": ("{", "")}
BLACKBOARD = {"E": "𝔼", "P": "ℙ", "R": "ℝ"}
TOKEN = re.compile(r"\\text\{[^}]*\}|\\[a-zA-Z]+|\\.|\d+(?:\.\d+)?|\s+|.", re.DOTALL)
THIN = '<mspace width="0.17em"/>'


class FormulaError(ValueError):
    """A formula holds something that cannot be set."""


class Formula:
    """A parser that turns TeX into MathML, atom by atom."""

    def __init__(self, tex: str) -> None:
        self.tex = tex
        self.tokens = [token for token in TOKEN.findall(tex) if not token.isspace()]
        self.at = 0

    def fail(self, what: str) -> FormulaError:
        """Return the error of something in this formula."""
        return FormulaError(f"{what} in the formula {self.tex!r}: mend it, or teach docs/hooks/formulas.py")

    def peek(self) -> str:
        """Return the next token, or nothing at the end."""
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        """Return the next token, and go on."""
        token = self.peek()
        if not token:
            raise self.fail("something is missing at the end")
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        """Go on behind a token that has to be there."""
        if (found := self.take()) != token:
            raise self.fail(f"{found!r} stands where {token!r} was expected")

    def group(self) -> str:
        """Return what belongs to a command: something in braces, or one token."""
        if self.peek() == "{":
            self.take()
            inside = self.row("}")
            self.expect("}")
            return inside
        token = self.peek()
        if token.isdigit() and len(token) > 1:  # \tfrac12
            self.tokens[self.at : self.at + 1] = list(token)
        return self.atom(self.take())[0]

    def name(self) -> str:
        """Return the letters in braces, as they stand."""
        self.expect("{")
        letters = ""
        while (token := self.take()) != "}":
            letters += token
        return letters

    def row(self, *ends: str) -> str:
        """Return everything up to one of these tokens as one row."""
        parts: list[str] = []
        before = "open"
        while (token := self.peek()) and token not in ends:
            self.take()
            if token in "+-" and before in ("open", "operator"):
                part, kind = f'<mo form="prefix">{"−" if token == "-" else "+"}</mo>', "open"
            else:
                part, kind = self.atom(token)
            part = self.scripts(part, kind)
            if kind == "function":
                if before in ("letter", "close"):
                    parts.append(THIN)
                following = self.peek()
                if following and following not in "([|}&)],;" and following not in ("\\left", "\\|", "\\,", "\\\\"):
                    part += THIN
            parts.append(part)
            if kind != "space":
                before = kind
        return parts[0] if len(parts) == 1 else f"<mrow>{''.join(parts)}</mrow>"

    def scripts(self, base: str, kind: str) -> str:
        """Return the base with what is written below and above it."""
        below, above = "", ""
        while self.peek() in ("_", "^", "'"):
            sign = self.take()
            if sign == "_":
                below = self.group()
            else:
                above += "<mo>′</mo>" if sign == "'" else self.group()
        if not below and not above:
            return base
        above = f"<mrow>{above}</mrow>" if above else ""
        under = kind == "large" or (kind == "function" and any(f">{name}<" in base for name in LIMITS))
        low, high = ("munder", "mover") if under else ("msub", "msup")
        if below and above:
            both = "munderover" if under else "msubsup"
            return f"<{both}>{base}{below}{above}</{both}>"
        return f"<{low}>{base}{below}</{low}>" if below else f"<{high}>{base}{above}</{high}>"

    def atom(self, token: str) -> tuple[str, str]:
        """Return the MathML of what begins with a token that was taken, and its kind."""
        if token.startswith("\\"):
            return self.command(token[1:])
        if token == "{":
            inside = self.row("}")
            self.expect("}")
            return inside, "letter"
        if token[0].isdigit():
            return f"<mn>{token}</mn>", "letter"
        if token.isalpha():
            return f"<mi>{token}</mi>", "letter"
        if token == "|":
            return '<mo stretchy="false" lspace="0" rspace="0">|</mo>', "letter"
        if token in "([":
            return f'<mo stretchy="false" form="prefix">{token}</mo>', "open"
        if token in ")]":
            return f'<mo stretchy="false" form="postfix">{token}</mo>', "close"
        if token in ",;":
            return f'<mo separator="true">{token}</mo>', "operator"
        if token in "/.":
            return f'<mo lspace="0" rspace="0">{token}</mo>', "letter"
        if token in "=+-<>*:!":
            return f"<mo>{escape({'-': '−', '*': '∗'}.get(token, token))}</mo>", "operator"
        raise self.fail(f"{token!r} is not known")

    def command(self, name: str) -> tuple[str, str]:
        """Return the MathML of a command and what belongs to it, and its kind."""
        if name in LETTERS:
            return f"<mi>{LETTERS[name]}</mi>", "letter"
        if name in OPERATORS:
            return f"<mo>{OPERATORS[name]}</mo>", "operator"
        if name in LARGE:
            return f"<mo>{LARGE[name]}</mo>", "large" if name != "int" else "letter"
        if name in FUNCTIONS or name in LIMITS:
            return f"<mi>{name}</mi>", "function"
        if name in SPACES:
            return f'<mspace width="{SPACES[name]}em"/>', "space"
        if name in ACCENTS:
            return f'<mover accent="true">{self.group()}<mo stretchy="false">{ACCENTS[name]}</mo></mover>', "letter"
        if name in DELIMITERS:
            sign = DELIMITERS[name]
            kind = "open" if sign in OPENING else "close" if sign in CLOSING else "letter"
            return f'<mo stretchy="false" lspace="0" rspace="0">{sign}</mo>', kind
        if name in ("mathrm", "operatorname"):
            return f'<mi mathvariant="normal">{self.name()}</mi>', "function" if name == "operatorname" else "letter"
        if name == "mathbb":
            return f"<mi>{BLACKBOARD[self.name()]}</mi>", "letter"
        if name.startswith("text{"):
            return f"<mtext>{escape(name[5:-1]).replace(' ', '&nbsp;')}</mtext>", "letter"
        if name == "sqrt":
            return f"<msqrt>{self.group()}</msqrt>", "letter"
        if name in ("frac", "tfrac"):
            fraction = f"<mfrac>{self.group()}{self.group()}</mfrac>"
            small = f'<mstyle displaystyle="false" scriptlevel="0">{fraction}</mstyle>'
            return small if name == "tfrac" else fraction, "letter"
        if name == "binom":
            over = f'<mfrac linethickness="0">{self.group()}{self.group()}</mfrac>'
            return f"<mrow><mo>(</mo>{over}<mo>)</mo></mrow>", "letter"
        if name in ("big", "Big"):
            size, sign = {"big": 1.2, "Big": 1.8}[name], self.delimiter()
            kind = "open" if sign in OPENING else "close"
            return f'<mo minsize="{size}em" maxsize="{size}em">{sign}</mo>', kind
        if name == "left":
            opening = self.delimiter()
            inside = self.row("\\right")
            self.expect("\\right")
            stretchy = '<mo stretchy="true" form="{}">{}</mo>'
            ends = stretchy.format("prefix", opening), stretchy.format("postfix", self.delimiter())
            return f"<mrow>{ends[0]}{inside}{ends[1]}</mrow>", "close"
        if name == "begin":
            return self.matrix(self.name()), "close"
        raise self.fail(f"\\{name} is not known")

    def delimiter(self) -> str:
        """Return the sign that stands for a bracket; nothing for a point."""
        token = self.take()
        return DELIMITERS.get(token[1:], "") if token.startswith("\\") else token.replace(".", "")

    def matrix(self, kind: str) -> str:
        """Return what stands between \\begin and \\end."""
        if kind not in MATRICES:
            raise self.fail(f"\\begin{{{kind}}} is not known")
        opening, closing = MATRICES[kind]
        rows: list[list[str]] = [[]]
        while True:
            rows[-1].append(self.row("&", "\\\\", "\\end"))
            token = self.take()
            if token == "\\end":
                break
            if token == "\\\\":
                rows.append([])
        self.name()
        align = ' columnalign="left"' if kind == "cases" else ""
        cells = "".join(f"<mtr>{''.join(f'<mtd{align}>{cell}</mtd>' for cell in row)}</mtr>" for row in rows)
        return f"<mrow><mo>{opening}</mo><mtable>{cells}</mtable><mo>{closing}</mo></mrow>"

    def pieces(self) -> list[str]:
        """Return the formula as rows that may stand side by side or below each other: it breaks at a wide space."""
        rows = [self.row("\\qquad", "\\\\")]
        while self.peek():
            self.take()
            rows.append(self.row("\\qquad", "\\\\"))
        return [row for row in rows if row != "<mrow></mrow>"]


def inline(tex: str) -> str:
    """Return a formula within a line.

    Raises:
        FormulaError: something in it is not known.
    """
    formula = Formula(tex)
    row = formula.row()
    return f'<math alttext="{escape(tex)}">{row}</math>'


def block(tex: str) -> str:
    """Return a formula of its own line, as `math` elements that wrap like words.

    Raises:
        FormulaError: something in it is not known.
    """
    tex = " ".join(tex.split())
    rows = "".join(f'<math display="block">{row}</math>' for row in Formula(tex).pieces())
    return f'<div class="p4-formula" role="math" aria-label="{escape(tex)}">{rows}</div>'


class Blocks(Preprocessor):
    """Sets ``.. math::`` of docstrings and ``$$`` of pages."""

    directive = re.compile(r"^( *)\.\. math:: *(.*(?:\n(?:\1 +\S.*| *$))*)", re.MULTILINE)
    dollars = re.compile(r"^\$\$(.+?)\$\$$", re.MULTILINE | re.DOTALL)

    def run(self, lines: list[str]) -> list[str]:
        """Return the lines with each formula in place of its TeX."""
        text = "\n".join(lines)
        text = self.directive.sub(lambda found: self.set(found[2], found[1]), text)
        return self.dollars.sub(lambda found: self.set(found[1], ""), text).split("\n")

    def set(self, tex: str, indent: str) -> str:
        """Return the place of a formula among paragraphs."""
        return f"\n{indent}{self.md.htmlStash.store(block(tex))}\n\n"


class Inline(InlineProcessor):
    """Sets ``:math:`...` `` of docstrings and ``$...$`` of pages."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        """Return the place of a formula in a line."""
        return self.md.htmlStash.store(inline(m[1])), m.start(0), m.end(0)


class Preprint(InlineProcessor):
    """Links ``arXiv:2010.07033``."""

    ANCESTOR_EXCLUDES = ("a",)

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element, int, int]:
        """Return the link."""
        link = Element("a", href=f"https://arxiv.org/abs/{m[1]}")
        link.text = m[0]
        return link, m.start(0), m.end(0)


class Formulas(Extension):
    """The Markdown extension of formulas and preprints."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register what this extension does: fenced code is taken out before, backticks come after."""
        md.preprocessors.register(Blocks(md), "p4-formula-blocks", 22)
        md.inlinePatterns.register(Inline(r":math:`([^`]+)`", md), "p4-formula-role", 195)
        md.inlinePatterns.register(Inline(r"(?<![\w\\$])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])", md), "p4-formula", 186)
        md.inlinePatterns.register(Preprint(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+/\d{7})", md), "p4-preprint", 50)


@event_priority(100)
def on_config(config: Any) -> Any:
    """Let pages and docstrings have formulas."""
    config.markdown_extensions.append(Formulas())
    return config
