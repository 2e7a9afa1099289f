"""`cdkit list`, and the facts behind it: each stands in one place and is there at all."""

import dataclasses
import io
import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
from rich.console import Console
from typer.testing import CliRunner

import cdkit
from cdkit.evals import cli
from cdkit.evals.pages import listing
from cdkit.interfaces.part import Part
from cdkit.methods.part_kinds import REGISTRIES
from cdkit.methods.plain_data import parse_method

TOPICS = [topic.value for topic in cli.Topic]


def run(*arguments: str, width: int = 150) -> str:
    result = CliRunner().invoke(cli.app, ["list", *arguments], env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.output
    return result.stdout


def ours() -> list[tuple[str, type[Part]]]:
    """Each registered part of cdkit's own; other test files register some of theirs."""
    return [
        (name, cls)
        for registry in REGISTRIES.values()
        for name, cls in registry.items()
        if cls.__module__.startswith("cdkit.")
    ]


def fields_of(bibtex: str) -> dict[str, str]:
    """The fields of one BibTeX entry; an AssertionError where it is not well formed."""
    text = bibtex.strip()
    head = re.match(r"@(\w+)\{([^\s,{}]+),", text)
    assert head, f"no @kind{{key, at the start: {text[:40]!r}"
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign == "{") - (sign == "}")
        assert depth > 0 or at < head.start(2) or at == len(text) - 1, f"closes too early: {text}"
    assert depth == 0, f"braces are not balanced: {text}"
    found = re.findall(r"(\w+)\s*=\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text[head.end() :])
    return {"key": head[2], **{name.lower(): value for name, value in found}}


def test_a_line_each() -> None:
    told = run("methods")
    names = [line.split()[0] for line in told.splitlines() if line.strip()]
    assert set(names) == {"methods", *cdkit.presets()}
    assert "@" not in told


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_lists_something(topic: str) -> None:
    told = run(topic)
    assert len(told.strip().splitlines()) >= 2
    assert all(entry.name in told for entry in listing.entries(topic))


def test_the_embedded_model_is_named() -> None:
    assert "micro, is a LLaVA checkpoint" in run("models")


def test_brackets_are_no_markup() -> None:
    assert listing.first_sentence(Bracketed) == "Cells with [logits > their mean] are cut."
    for topic in ("methods", "strategies"):
        told = [entry.summary for entry in listing.entries(topic)]
        shown = run(topic)
        assert all(word in shown for summary in told for word in summary.split())


class Bracketed:
    """Cells with [logits > their
    mean] are cut.

    Nothing of this is shown.
    """


@pytest.mark.parametrize("width", [100, 160])
def test_cite_tells_all_of_a_method(width: int) -> None:
    told = run("methods", "--cite", width=width)
    assert max(map(len, told.splitlines())) <= width
    words = " ".join(told.split())
    for entry in listing.entries("methods"):
        assert all(" ".join(text.split()) in words for text in (entry.summary, entry.source))
        for part in entry.parts:
            assert f"{part.place}: {part.kind}" in told
            assert part.formula in words and part.source in words
            assert all(f"{name} = {value}" in words for name, value in part.parameters)
        for paper in entry.papers:
            assert told.count(paper) == 1  # each once, and in lines that can be copied


def test_cite_tells_all_of_a_class() -> None:
    told = run("strategies", "--cite", width=160)
    words = " ".join(told.split())
    for name, cls in ours():
        if issubclass(cls, cdkit.PositionCalibrator):
            continue  # a topic of its own
        assert name in told and cls.formula in words and cls.source in words
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            assert f"{field.name} = " in words
    assert "contrast" in told and "kind logit combiner" in words
    assert "gamma = 2.0" in run("calibrators", "--cite")


def test_cite_prints_each_paper_once_for_all_topics() -> None:
    told = run("--cite")
    keys = re.findall(r"^@\w+\{(\S+),", told, re.MULTILINE)
    assert len(keys) == len(set(keys))
    papers = {key for topic in TOPICS for key in map(listing.cite_key, papers_of(topic))}
    assert set(keys) == papers


def papers_of(topic: str) -> tuple[str, ...]:
    return listing.papers(listing.entries(topic))


def test_a_part_with_nothing_to_do_is_not_told() -> None:
    told = {entry.name: entry for entry in listing.entries("methods")}
    assert not told["plain"].parts and not told["plain"].papers
    assert [part.kind for part in told["cmac_cmpc"].parts] == ["scaled_positions"]
    assert [part.place for part in told["vcd"].parts] == [
        "combiner",
        "constraint",
        "branch distorted",
    ]
    unread = listing.method_entry(cdkit.load("vcd", alpha=0.0))
    assert [part.place for part in unread.parts] == ["constraint"]
    free = listing.method_entry(cdkit.load("vcd", beta=0.0))  # no constraint, but a contrast
    assert [part.kind for part in free.parts] == ["contrast", "diffusion_noise"]


def test_a_branch_that_nobody_reads_is_not_told() -> None:
    data = cdkit.load("vcd").to_dict()
    data["branches"] += [{**cdkit.load("icd").to_dict()["branches"][0], "name": "unread"}]
    data["combiner"]["alphas"] = [["unread", 0.0]]
    entry = listing.method_entry(parse_method(data))
    assert entry.branches == ("distorted",)
    assert [part.kind for part in entry.parts] == ["contrast", "plausibility", "diffusion_noise"]


@dataclass(frozen=True)
class Odd(Part):
    """A part with values of every type."""

    formula: ClassVar[str] = "x [bold] y"

    needed: int
    flag: bool = True
    text: str = 'two "words"'
    pairs: tuple[tuple[str, float], ...] = (("a", 1.0),)
    made: tuple[int, ...] = dataclasses.field(default_factory=lambda: (1, 2))
    nothing: float | None = None


def test_values_of_every_type() -> None:
    values = {"flag": "true", "text": r'"two \"words\""', "pairs": "[[a, 1.0]]", "made": "[1, 2]"}
    values["nothing"] = "none"
    facts = listing.class_entry("odd", Odd, "oddity").parts[0]
    assert dict(facts.parameters) == {"needed": "(to be given)", **values}
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(listing.render("odds", [listing.class_entry("odd", Odd, "oddity")], cite=True))
    assert "x [bold] y" in console.export_text()


@pytest.mark.parametrize(("name", "cls"), ours())
def test_each_part_tells_its_facts(name: str, cls: type[Part]) -> None:
    control = not cls.bibtex and not cls.source
    assert cls.formula or control, f"{name} comes from somewhere, so it needs a formula"
    assert cls.source or not cls.bibtex, f"{name} has a paper, so it needs a source"
    assert listing.first_sentence(cls), f"{name} needs a docstring"
    for text in (cls.formula, cls.source):
        assert "\n" not in text and text == text.strip(), f"{name}: one line, no blanks around it"
        assert "`" not in text, f"{name}: plain text, no Markdown"


@pytest.mark.parametrize("name", cdkit.presets())
def test_each_preset_tells_its_facts(name: str) -> None:
    method = cdkit.load(name)
    for key, text in (("summary", method.summary), ("source", method.source)):
        assert text, f"the preset {name} has no {key}"
        assert "\n" not in text and not text.endswith("."), f"{name}: {key} is a line without a dot"


def test_formulas_name_only_what_there_is() -> None:
    """A parameter renamed in the class would leave a formula that speaks of nothing."""
    for name, cls in ours():
        words = set(re.findall(r"\b[a-z]{2,}_[a-z_]{2,}", cls.formula)) - {"log_softmax"}
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        assert words <= known, f"{name}: its formula names {', '.join(words - known)}"


def test_papers_parse_and_keys_are_unique() -> None:
    papers = list(dict.fromkeys(paper for topic in TOPICS for paper in papers_of(topic)))
    keys = [fields_of(paper)["key"] for paper in papers]
    assert len(set(keys)) == len(keys), f"two papers, or two texts of one, share a key: {keys}"
    assert keys == [listing.cite_key(paper) for paper in papers]
    for paper in papers:
        assert {"title", "author", "year"} <= set(fields_of(paper)), paper


@pytest.mark.parametrize(
    "broken", ["@misc{a, title = {b}", "@misc{a, title = b}}", "misc{a, }", "@misc{, title = {b}}"]
)
def test_a_broken_paper_is_seen(broken: str) -> None:
    with pytest.raises(AssertionError):
        fields_of(broken)
