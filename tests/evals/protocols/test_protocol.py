"""A protocol: each field's check, what replaces what, sections, records and their differences."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.protocols.protocol import SETTINGS, CodeSource, Protocol, protocol_of
from cdkit.evals.protocols.protocol_records import differences
from cdkit.evals.protocols.protocol_settings import MODE_KEYS
from cdkit.evals.protocols.read import CONFIGS, read_protocol

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
COUNTS = st.integers(1, 10**6)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "question_suffix": TEXTS | st.just(""),
    "caption_prompt": TEXTS,
    "max_new_tokens": COUNTS,
    "unfinished_sentence": st.sampled_from(["kept", "dropped"]),
    "parser": TEXTS,
    "scorer": TEXTS,
    "image_count": COUNTS,
    "image_preprocessing": st.sampled_from(["crop", "pad", "squash"]),
    "system": TEXTS | st.just(""),
}
SAMPLING = {
    "temperature": st.floats(0.01, 10),
    "top_k": COUNTS,
    "top_p": st.floats(0.01, 1.0),
}


@st.composite
def some_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Settings that go together, in plain data."""
    found = draw(st.fixed_dictionaries({}, optional=VALUES))
    if "image_count" in found and draw(st.booleans()):
        found["image_seed"] = draw(st.integers(0, 2**32))
    mode = draw(st.sampled_from([None, "greedy", "sample", "beam"]))
    if mode is not None:
        found["mode"] = mode
    if mode == "sample":
        found |= draw(st.fixed_dictionaries({}, optional=SAMPLING))
    if mode == "beam" and draw(st.booleans()):
        found["beams"] = draw(st.integers(2, 1000))
    return found


@settings(max_examples=30)
@given(some_settings(), some_settings())
def test_a_record_read_back_is_the_same(base: dict[str, Any], more: dict[str, Any]) -> None:
    protocol = Protocol("p", **base, models={"llava": more}, methods={"vcd": {"beta": 0.2}})
    record = json.loads(json.dumps(protocol.record()))
    assert record == protocol.record()
    again = protocol_of(record, "the record")
    assert again == protocol
    assert differences(record, again.record()) == []


@settings(max_examples=30)
@given(some_settings(), some_settings())
def test_a_section_wins_where_it_speaks(base: dict[str, Any], more: dict[str, Any]) -> None:
    protocol = Protocol("p", **base, benchmarks={"pope": more})
    here = protocol.at(benchmark="pope")
    assert protocol.at(benchmark="chair").settings() == protocol.settings()
    assert not here.benchmarks and not here.models
    for name in SETTINGS:
        value = getattr(here, name)
        if name in more:
            assert value == more[name]
        elif name in base and value is None:  # of a mode that is left
            assert name in (*MODE_KEYS["sample"], *MODE_KEYS["beam"])
            assert more.get("mode", base.get("mode")) != base.get("mode")
        else:
            assert value == base.get(name)


@settings(max_examples=30)
@given(some_settings(), some_settings())
def test_replaced_settings_hold_for_every_model(base: dict[str, Any], more: dict[str, Any]) -> None:
    protocol = Protocol("p", models={"llava": base}, source=CodeSource("a/b", "0" * 7, {}))
    if "image_seed" in more or ("mode" in base and "mode" not in more and "temperature" in more):
        return
    replaced = protocol.replace(**more)
    assert more.items() <= replaced.at(model="llava").settings().items()
    assert more.items() <= replaced.settings().items()
    assert Protocol("p").replace() == Protocol("p")


@settings(max_examples=30)
@given(some_settings(), some_settings())
def test_differences_name_each_setting_that_differs(a: dict[str, Any], b: dict[str, Any]) -> None:
    records = Protocol("one", **a).record(), Protocol("two", summary="other", **b).record()
    found = differences(*records)
    named = [sentence.split(" is ")[0] for sentence in found]
    assert named == sorted(name for name in SETTINGS if a.get(name) != b.get(name))
    assert len(differences(*reversed(records))) == len(found)


def test_a_run_without_a_protocol_differs_in_all_that_is_set() -> None:
    found = differences({}, Protocol("p", mode="greedy", methods={"vcd": {"beta": 0.2}}).record())
    assert found == [
        "methods.vcd.beta is not set in one and 0.2 in the other",
        "mode is not set in one and 'greedy' in the other",
    ]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"name": ""}, "the name of a protocol is a text"),
        ({"summary": 3}, "summary must be of type str"),
        ({"paper": ["opra"]}, "Did you mean 'opera'"),
        ({"paper": "vcd"}, "paper must be a list"),
        ({"question_suffix": 3}, "question_suffix must be of type str, got 3"),
        ({"question_suffix": "\ud800"}, "question_suffix is no text"),
        ({"caption_prompt": " "}, "caption_prompt is empty"),
        ({"parser": ""}, "parser is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: give 1 or more"),
        ({"max_new_tokens": True}, "max_new_tokens must be of type int, got True"),
        ({"unfinished_sentence": "droped"}, "Did you mean 'dropped'"),
        ({"image_preprocessing": "crops"}, "Did you mean 'crop'"),
        ({"image_count": 0}, "image_count is 0: give 1 or more"),
        ({"image_seed": 1}, "image_seed says how image_count images are drawn: give both"),
        ({"image_seed": -1, "image_count": 2}, "image_seed is -1: give 0 or more"),
        ({"system": "a", "template": "{images}{question}"}, "exclude each other"),
        ({"template": "{question}"}, "template must hold"),
        ({"template": "{images}{question}{question}"}, "template must hold"),
        ({"template": "{images}{images}{question}"}, "template must hold"),
        ({"mode": "sampel"}, "Did you mean 'sample'"),
        ({"temperature": 1.0}, "temperature belongs to mode = 'sample', and the mode is None"),
        ({"mode": "beam", "top_p": 0.5}, "top_p belongs to mode = 'sample'"),
        ({"mode": "sample", "beams": 5}, "beams belongs to mode = 'beam'"),
        ({"mode": "sample", "temperature": 0.0}, "temperature must be a finite number > 0"),
        ({"mode": "sample", "top_p": 1.5}, "top_p must be in"),
        ({"mode": "sample", "top_k": 0}, "top_k is 0"),
        ({"mode": "beam", "beams": 1}, "beams is 1: a beam search has 2 to 1000"),
        ({"methods": {"opra": {}}}, "Did you mean 'opera'"),
        ({"methods": {"vcd": {"alhpa": 1.0}}}, "Did you mean 'alpha'"),
        ({"methods": {"vcd": 3}}, "[methods.vcd] must be a table"),
        ({"models": {"llava": {"parsr": "vcd"}}}, "Did you mean 'parser'"),
        ({"models": {"llava": {"max_new_tokens": 0}}}, "[models.llava]"),
        ({"benchmarks": {"pope": {"models": {}}}}, "no setting of [benchmarks.pope]"),
        ({"unmatched": {"images": ""}}, "unmatched.images is a sentence"),
    ],
)
def test_what_is_not_allowed_is_one_error(values: dict[str, Any], told: str) -> None:
    with pytest.raises(CdkitError) as caught:
        protocol_of({"name": "p"} | values, "the file")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (("VCD", "0" * 40, {}), "source.repository is OWNER/NAME"),
        (("a/b", "main", {}), "source.commit is 7 to 40 hexadecimal digits"),
        (("a/b", "0" * 7, {"mode": "a.py"}), "source.fields.mode is FILE:LINE"),
        (("a/b", "0" * 7, {"mode": "a.py:1,b.py:2"}), "source.fields.mode is FILE:LINE"),
    ],
)
def test_a_source_names_lines(values: tuple[Any, ...], told: str) -> None:
    with pytest.raises(CdkitError, match="source") as caught:
        CodeSource(*values)
    assert told in str(caught.value)
    assert CodeSource("a/b", "0" * 7, {"mode": "a.py:1-3, b/c.py:2"}).fields


def test_a_replaced_value_has_no_source_any_more() -> None:
    source = CodeSource(
        "a/b", "0" * 7, {"mode": "a:1", "parser": "a:2", "models.llava.parser": "a:3"}
    )
    protocol = Protocol("p", mode="greedy", parser="vcd", source=source)
    assert [*protocol.replace(parser="icd").source.fields] == ["mode"]


def test_what_excludes_each_other_gives_way_to_the_new() -> None:
    protocol = Protocol("p", system="a", mode="sample", temperature=0.5, top_p=0.5)
    template = protocol.replace(template="{images}{question}")
    assert template.system is None and template.replace(system="b").template is None
    assert protocol.replace(mode="beam", beams=3).settings("decoding") == {
        "mode": "beam",
        "beams": 3,
    }
    assert protocol.replace(mode="sample", top_p=0.9).temperature == 0.5
    inside = Protocol("p", models={"llava": {"system": "a"}}).replace(template="{images}{question}")
    assert inside.at(model="llava").system is None


def test_methods_parameters_are_merged_one_by_one() -> None:
    protocol = Protocol(
        "p",
        methods={"vcd": {"alpha": 1.0, "beta": 0.2}},
        models={"instructblip": {"methods": {"vcd": {"beta": 0.3}}}},
    )
    assert protocol.parameters("vcd") == {"alpha": 1.0, "beta": 0.2}
    assert protocol.at(model="instructblip").parameters("vcd") == {"alpha": 1.0, "beta": 0.3}
    assert protocol.parameters("sid") == {}


def test_a_list_of_images_is_recorded_by_its_content(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "list.txt").write_text("1.jpg\n")
    records = [Protocol("p", image_list=tmp_path / f / "list.txt").record() for f in ("a", "b")]
    assert records[0] == records[1] and str(tmp_path) not in json.dumps(records)
    (tmp_path / "b" / "list.txt").write_text("2.jpg\n")
    other = Protocol("p", image_list=tmp_path / "b" / "list.txt").record()
    (told,) = differences(records[0], other)
    assert told.startswith("image_list is '")


def test_a_list_in_a_section_is_recorded_by_its_content_too(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("1.jpg\n")
    protocol = Protocol("p", models={"llava": {"image_list": str(tmp_path / "list.txt")}})
    record = json.loads(json.dumps(protocol.record()))
    assert str(tmp_path) not in json.dumps(record)
    assert record["models"]["llava"]["image_list"]["file"] == "list.txt"
    again = protocol_of(record, "the record")
    assert again.at(model="llava").image_list == Path("list.txt")
    (tmp_path / "list.txt").write_text("2.jpg\n")
    (told,) = differences(record, protocol.record())
    assert told.startswith("models.llava.image_list is '")
    assert str(CONFIGS.parent) not in json.dumps(read_protocol("opera_chair").record())


def test_every_setting_says_who_follows_it() -> None:
    assert set(SETTINGS.values()) == {"benchmark", "model", "decoding"}
    about = {"name", "summary", "paper", "methods", "models", "benchmarks", "unmatched", "source"}
    assert {f.name for f in fields(Protocol)} - about == set(SETTINGS)
