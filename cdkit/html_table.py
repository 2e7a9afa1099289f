"""A small table in HTML: how methods, registries and attachments look in a notebook."""

import html
from collections.abc import Iterable, Sequence

CELL = "text-align: left; vertical-align: top; white-space: normal; overflow-wrap: break-word"


def html_table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table without colours or a font of its own, so that it follows the notebook's.

    Args:
        caption: What the table is about.
        heads: The head of each column.
        rows: The cells of each row, as plain text.

    Returns:
        HTML; a table that is too wide scrolls.
    """
    top = "".join(_cell("th", head, ' scope="col"') for head in heads)
    body = "".join(f"<tr>{''.join(_cell('td', cell) for cell in row)}</tr>" for row in rows)
    return (
        f'<div style="overflow-x: auto"><table><caption style="{CELL}">{html.escape(caption)}'
        f"</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(tag: str, text: str, more: str = "") -> str:
    return f'<{tag}{more} style="{CELL}">{html.escape(text)}</{tag}>'
