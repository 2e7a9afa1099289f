"""What the methods of a page are: one line, the paper, and whether it is a control."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from cdkit.evals.pages import listing
from cdkit.evals.pages.methods_page import CONTROL
from cdkit.evals.reports.results import MethodNote, Results
from cdkit.interfaces.benchmark import Benchmark
from cdkit.methods.plain_data import parse_method

NO_PAPER = "no paper"


def method_note(name: str, resolved: Mapping[str, Any]) -> MethodNote:
    """The glossary's line on a method.

    Args:
        name: What tables call it.
        resolved: `Method.to_dict()`, as manifests hold it.

    Returns:
        Where the method cannot be built here, as without another package's classes: what the
        manifest says of it, and that its papers are not known.
    """
    summary = str(resolved.get("summary", ""))
    control = summary.startswith(CONTROL)
    told = summary.removeprefix(CONTROL)
    told = told[:1].upper() + told[1:]
    try:
        entry = listing.method_entry(parse_method(resolved, source=name))
    except Exception as error:  # any class may be another package's: the page still says the rest
        words = " ".join(str(error).split())
        return MethodNote(name, told, f"not known here ({words})", control)
    # many methods share the constraint: its paper stands for what has no other
    own = [part.bibtex for part in entry.parts if part.bibtex and part.place != "constraint"]
    paper = "; ".join(map(reference, dict.fromkeys(own or entry.papers)))
    if paper and control:
        paper = f"of its parts: {paper}"
    return MethodNote(name, told, paper or NO_PAPER, control, entry.papers)


def described(
    results: Results,
    resolved: Mapping[str, Mapping[str, Any]],
    benchmarks: Iterable[Benchmark],
) -> Results:
    """The results with what their methods are, and the papers of these and of the benchmarks.

    Args:
        results: What was found.
        resolved: Name in the tables -> `Method.to_dict()`, as manifests hold it. A method without
            one, as of another program's log, has no line in the glossary.
        benchmarks: What was asked.

    Returns:
        New results.
    """
    shown = dict.fromkeys(name for table in results.tables for name in table.rows)
    notes = tuple(method_note(name, resolved[name]) for name in shown if name in resolved)
    return replace(results, methods=notes, citations=citations(notes, benchmarks))


def citations(notes: Iterable[MethodNote], benchmarks: Iterable[Benchmark]) -> tuple[str, ...]:
    """The BibTeX of all methods and benchmarks, each paper once, as `cdkit cite` prints it."""
    entries = (listing.class_entry("", type(each), "benchmark") for each in benchmarks)
    found = [paper for note in notes for paper in note.papers]
    found += [paper for entry in entries for paper in entry.papers]
    return tuple(dict.fromkeys(found))


def reference(bibtex: str) -> str:
    """Title, venue and year of a BibTeX entry, without its marks: `A title. CVPR, 2024`."""
    fields = dict(_fields(bibtex))
    eprint = f"arXiv:{fields['eprint']}" if "eprint" in fields else ""
    venue = fields.get("booktitle") or fields.get("journal") or eprint
    when = ", ".join(filter(None, (venue, fields.get("year"))))
    return ". ".join(filter(None, (fields.get("title"), when)))


def _fields(bibtex: str) -> Iterator[tuple[str, str]]:
    """Name and plain text of each field; a value in braces may hold braces."""
    for found in re.finditer(r"(\w+)\s*=\s*(?:(\{)|\"([^\"]*)\"|(\w+))", bibtex):
        value = found[3] or found[4] or ""
        if found[2]:
            depth, end = 1, found.end()
            while depth and end < len(bibtex):
                depth += {"{": 1, "}": -1}.get(bibtex[end], 0)
                end += 1
            value = bibtex[found.end() : end - 1]
        yield found[1].lower(), " ".join(re.sub(r"[{}]", "", value).replace("\\&", "&").split())
