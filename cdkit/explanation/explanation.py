"""One answer, explained: what `cdkit.explain` and `Attachment.show` return."""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.explanation.explained import ExplainedPrompt
from cdkit.explanation.summary import sentences
from cdkit.explanation.tables import tables

FRAME_HEIGHT = 860
"""Pixels of the page's frame in a notebook."""


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(ExplainedPrompt):
    """One answer to one prompt, under the plain model and under methods.

    In a notebook it shows the page. `tables()` has the numbers, `save` writes the page.
    """

    def __repr__(self) -> str:
        names = ", ".join(answer.name for answer in self.answers)
        return f"<Explanation of one answer under {names}: {' '.join(self.sentences())}>"

    def sentences(self) -> list[str]:
        """What the methods did to this answer, in plain words."""
        return sentences(self)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The numbers of the page, as rows that `pandas.DataFrame` takes.

        Returns:
            "tokens" has a row for each chosen token; "candidates" one for each token, candidate
            and column; "attention" one for each token, branch and layer; "positions" one for each
            image token, axis and layer.
        """
        return tables(self)

    def to_html(self) -> str:
        """The page: one HTML file that loads nothing."""
        from cdkit.explanation.html_page import render

        return render(self)

    def to_png(self) -> bytes:
        """A picture of the answers and of the most telling token, for viewers without HTML."""
        from cdkit.explanation.png_card import draw

        return draw(self)

    def save(self, path: str | Path) -> Path:
        """Write the page.

        Args:
            path: The file to write, such as "page.html".

        Returns:
            The path.
        """
        path = Path(path)
        path.write_text(self.to_html(), encoding="utf-8", newline="\n")
        return path

    def _repr_html_(self) -> str:
        page = html.escape(self.to_html(), quote=True)
        return (
            f'<iframe srcdoc="{page}" title="cdkit: one answer explained" width="100%" '
            f'height="{FRAME_HEIGHT}" style="border: 1px solid #8888; border-radius: 6px"></iframe>'
        )

    def _repr_png_(self) -> bytes:
        return self.to_png()
