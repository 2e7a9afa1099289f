"""Pages made from what stands in the code: a template, facts, and a file of the checkout."""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined


def rendered(
    template: str, *, filters: Mapping[str, Callable[..., object]], **facts: object
) -> str:
    """Markdown by a template of evals/pages/templates, with no two empty lines together."""
    environment = Environment(
        loader=PackageLoader("cdkit.evals.pages"),
        autoescape=False,  # Markdown, of what stands in this repository
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"escaped": escaped, **filters}
    text = environment.get_template(template).render(**facts)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def escaped(text: str) -> str:
    """Plain text in Markdown, in a table too."""
    return re.sub(r"([\\`*<\[|])", r"\\\1", text)


def write(path: Path, text: str) -> None:
    """Write a page of this checkout, which must be the working folder."""
    if not path.parent.is_dir():
        sys.exit(f"error: {path} is written from the root of a checkout; {Path.cwd()} is none")
    path.write_text(text, encoding="utf-8", newline="\n")
    print(f"wrote {path}")


def without_arguments() -> None:
    """Refuse arguments: a page is not to be written by a call for help."""
    if len(sys.argv) > 1:
        module = Path(sys.argv[0]).stem
        sys.exit(f"usage: python -m cdkit.evals.{module}, from the root of a checkout")
