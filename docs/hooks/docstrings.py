"""What docstrings of p4lab have beyond Google's sections: one "Example", several errors in a line, "Cost", "Source"."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)
SEVERAL = re.compile(r"^ +(?:\w+Error, )+\w+Error:", re.MULTILINE)
RETURNS = re.compile(r"^( *Returns:\n +)(?=\S)", re.MULTILINE)
LABEL = re.compile(r"^(Cost|Source|Shape)\b([^:\n]*):(?=\s)", re.MULTILINE)


class Labels(griffe.Extension):
    """Says it in griffe's words, and sets those that open a paragraph about costs or sources in bold."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            text = EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            text = SEVERAL.sub(lambda errors: errors[0].replace(", ", " | "), text)
            if isinstance(obj, griffe.Function) and obj.returns:  # else words before a colon would pass for the type
                text = RETURNS.sub(rf"\g<1>{obj.returns}: ", text)
            obj.docstring.value = LABEL.sub(r"**\1**\2:", text)
