"""What docs/own_strategy.md promises by its title; tests/test_docs.py runs the page."""

import ast
import re
from pathlib import Path

import cdkit.testing

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_strategy.md"


def test_the_strategy_has_twenty_lines_with_its_imports() -> None:
    text = PAGE.read_text(encoding="utf-8")
    first = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]
    (cls,) = (node for node in ast.parse(first).body if isinstance(node, ast.ClassDef))
    assert "DISTORTIONS.register" in ast.unparse(cls.decorator_list[0])
    assert len([line for line in first.splitlines() if line.strip()]) <= 20


def test_every_check_is_on_the_page() -> None:
    checks = [name for name in vars(cdkit.testing) if name.startswith("check_")]
    own = [name for name in checks if name not in ("check_segment", "check_value")]
    public = [name for name in own if name != "check_mask_ignores_constants"]
    assert len(public) >= 8
    for name in public:
        assert f"`{name}(" in PAGE.read_text(encoding="utf-8"), name
