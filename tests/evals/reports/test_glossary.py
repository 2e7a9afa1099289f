"""The glossary and citations.bib are made from what stands in classes and presets."""

from pathlib import Path

import pytest
from evals.made_results import results

import cdkit
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.pages import listing
from cdkit.evals.reports import glossary
from cdkit.interfaces.benchmark import Benchmark

PRESETS = ("plain", "plausibility", "sharpening", "random_mask", "cmac", "vcd", "opera", "icd")


@pytest.fixture
def pope(tmp_path: Path) -> Benchmark:
    path = tmp_path / "q.json"
    path.write_text('{"question_id": 1, "image": "a.png", "text": "a cat ?", "label": "yes"}')
    return POPE(path)


@pytest.mark.parametrize(
    ("bibtex", "told"),
    [
        (
            "@inproceedings{a, title = {{VCD}: A {Title} of\n  two lines}, booktitle={CVPR}, "
            "year = {2024}}",
            "VCD: A Title of two lines. CVPR, 2024",
        ),
        ("@misc{a, title={T}, eprint={2501.01926}, year=2025}", "T. arXiv:2501.01926, 2025"),
        ('@article{a, title="Quoted", journal="A \\& B", year="2020"}', "Quoted. A & B, 2020"),
        ("@misc{a, author={Nobody}}", ""),
        ("", ""),
        ("@misc{a, title={never closed", "never close"),
    ],
)
def test_a_reference_is_read_from_bibtex(bibtex: str, told: str) -> None:
    assert glossary.reference(bibtex) == told


def test_a_preset_has_a_line_from_its_manifest() -> None:
    """Its papers are those that `cdkit cite` prints."""
    controls = set()
    for name in PRESETS:
        method = cdkit.load(name)
        note = glossary.method_note("shown", method.to_dict())
        assert note.name == "shown" and note.summary and "not known" not in note.paper
        assert note.papers == listing.method_entry(method).papers
        assert (note.paper == glossary.NO_PAPER) == (not note.papers)
        if note.papers:
            assert ". " in note.paper and note.paper[-4:].isdigit(), note.paper
        assert not note.summary.startswith("Control")
        controls |= {name} if note.control else set()
    assert {"plain", "plausibility", "sharpening", "random_mask"} <= controls
    assert not {"cmac", "vcd", "opera"} & controls


def test_a_method_of_an_absent_package_still_has_its_words() -> None:
    resolved = cdkit.load("vcd").to_dict() | {"summary": "Control: theirs"}
    resolved["combiner"] = {"kind": "of_another_package"}
    note = glossary.method_note("x", resolved)
    assert note.summary == "Theirs" and note.control and note.papers == ()
    assert "not known here (" in note.paper and "of_another_package" in note.paper


def test_citations_hold_each_paper_once_and_the_benchmarks(pope: Benchmark) -> None:
    resolved = {"plain": cdkit.load("plain").to_dict(), "=1+1": cdkit.load("cmac").to_dict()}
    found = glossary.described(results(), resolved, [pope, pope])
    assert [note.name for note in found.methods] == ["plain", "=1+1"]
    assert found.controls == {"plain"}
    assert len(set(found.citations)) == len(found.citations)
    keys = [listing.cite_key(paper) for paper in found.citations]
    assert "li2023pope" in keys and "li2025imccd" in keys
