"""The table of refused arguments in docs/concepts.md is that of the code.

`python tests/generation/test_refused_table.py` writes it anew.
"""

from pathlib import Path

from cdkit.generation.call_compatibility import OVERRIDDEN, REFUSED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts.md"


def tables() -> dict[str, str]:
    """The name of a table on the page -> its text."""
    reasons: dict[str, list[str]] = {}
    for name, (_, why) in REFUSED.items():
        reasons.setdefault(why, []).append(f"`{name}`")
    refused = [f"| {', '.join(names)} | {why} |" for why, names in reasons.items()]
    overridden = [f"| `{name}` | `{instead}` |" for name, (_, instead) in OVERRIDDEN.items()]
    return {
        "refused": "\n".join(["| argument | why |", "|---|---|", *refused]),
        "overridden": "\n".join(["| setting | used instead |", "|---|---|", *overridden]),
    }


def written(page: str) -> str:
    for name, table in tables().items():
        begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
        before, rest = page.split(begin)
        _, after = rest.split(end.lstrip("\n"), 1)
        page = f"{before}{begin}\n{table}\n{end}{after}"
    return page


def test_the_page_has_the_tables() -> None:
    assert written(PAGE.read_text()) == PAGE.read_text()


def test_what_is_tested_is_on_the_page() -> None:
    from .test_refusals import GENERATE

    page = PAGE.read_text()
    for _, asked, _why in GENERATE:
        name = next(iter(asked))
        assert f"`{name}`" in page, name


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
