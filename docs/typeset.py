"""Formulas of the site as MathML, which browsers show by themselves: a page loads no script.

MkDocs calls it while it builds (`hooks` in mkdocs.yml); GitHub typesets the same text by itself.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(text: str, **_: Any) -> str:
    """Typeset the formulas of a page.

    Args:
        text: The page's HTML, in which arithmatex has marked the formulas.

    Returns:
        The HTML with MathML in their place.
    """
    return FORMULA.sub(_typeset, text)


def _typeset(found: re.Match[str]) -> str:
    tex = html.unescape(found["tex"])
    if found["tag"] == "div":  # one that is wider than a phone scrolls by itself
        return f'<div class="formula">{convert(tex, display="block")}</div>'
    return str(convert(tex, display="inline"))
