"""What cdkit runs on each image-text type of transformers: models/every_type.toml, as a table."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files

from rich.table import Table
from rich.text import Text

KINDS: Mapping[str, str] = {
    "inputs": "no_image, ICD",
    "pixels": "VCD, RITUAL",
    "attention": "PAI, IMCCD",
    "positions": "CMAC",
    "layers": "DoLa, DeCo",
}
"""What a method changes or reads, and some that do."""
NEEDED: Mapping[str, str] = {
    "timm": "the package timm (pip install timm) and the torchvision that was built for your torch"
}
"""Package -> what to install."""
ADAPTERS = {"own": "its own", "generic": "generic", "none": "-"}


@dataclass(frozen=True)
class TypeRow:
    """One type."""

    name: str
    adapter: str
    runs: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""
    """A package without which transformers does not load the type."""

    @property
    def marks(self) -> tuple[str, ...]:
        """For each of `KINDS` "yes" or "-"."""
        return tuple("yes" if kind in self.runs else "-" for kind in KINDS)

    @property
    def why(self) -> str:
        """What must be installed, and why the others are refused, each reason once."""
        reasons = dict[str, list[str]]()
        for kind, why in self.refused.items():
            reasons.setdefault(why, []).append(kind)
        needs = [f"to be loaded it needs {NEEDED[self.needs]}"] if self.needs else []
        return "; ".join(
            needs
            + [
                why if kinds == ["all"] else f"{', '.join(kinds)}: {why}"
                for why, kinds in reasons.items()
            ]
        )


def type_rows() -> tuple[TypeRow, ...]:
    """All types, by name."""
    text = (files("cdkit.models") / "every_type.toml").read_text(encoding="utf-8")
    return tuple(
        TypeRow(
            name,
            ADAPTERS[own["adapter"]],
            tuple(own["runs"]),
            own.get("refused", {}),
            own.get("needs", ""),
        )
        for name, own in tomllib.loads(text).items()
    )


def render_types() -> Table:
    """The table for the terminal."""
    title = "transformers' image-text types, and the methods that run on each"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("type", style="bold", no_wrap=True)
    table.add_column("adapter", no_wrap=True)
    for kind in KINDS:
        table.add_column(kind, no_wrap=True)
    table.add_column("needs, or why not")
    for row in type_rows():
        table.add_row(row.name, row.adapter, *row.marks, Text(row.why))
    return table
