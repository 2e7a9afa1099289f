"""How a protocol meets benchmarks, prompts and images, and what is told of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.amber import AMBER
from cdkit.evals.benchmarks.chair import CHAIR, finished_sentences
from cdkit.evals.benchmarks.mme import MME
from cdkit.evals.benchmarks.pope import POPE, icd, opera
from cdkit.evals.protocols.conversation import conversation, images_text, prompt_under
from cdkit.evals.protocols.follow import apply, not_their_papers, prepare, unmatched
from cdkit.evals.protocols.model_type import model_type
from cdkit.evals.protocols.preprocessing import preprocessing_of, set_preprocessing
from cdkit.evals.protocols.protocol import Protocol
from cdkit.evals.protocols.read import read_protocol
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import Tally
from cdkit.processors import load_processor

LLAVA_V1 = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions. USER: <image>\n{} ASSISTANT:"
)
"""DAMO-NLP-SG/VCD, experiments/llava/conversation.py: llava_v1 with two separators, at d6568ff."""
OPERA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.USER: <image> {} ASSISTANT:"
)
"""shikiw/OPERA, minigpt4/models/llava.py, line 172, at 61426ef: no blank before USER."""
QUESTION = "Is there a dog in the image?"


@pytest.fixture(scope="module")
def micro() -> tuple[ModelAdapter, Any]:
    """The embedded model's adapter and processor."""
    model, processor = cdkit.load_model("micro")
    return cdkit.adapter_for(model), processor


@pytest.fixture
def pope(tmp_path: Path) -> POPE:
    row = {"question_id": 1, "image": "a.jpg", "text": QUESTION, "label": "yes"}
    (tmp_path / "pope.json").write_text(json.dumps(row))
    return POPE(tmp_path / "pope.json")


@pytest.fixture
def chair(tmp_path: Path) -> CHAIR:
    truth = {str(i): ["dog"] for i in range(1, 40)}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return CHAIR(ground_truth=tmp_path / "truth.json")


@pytest.mark.parametrize("name", ["vcd_pope", "imccd_pope"])
def test_llava_v1_is_the_authors_prompt(
    name: str, micro: tuple[ModelAdapter, Any], pope: POPE
) -> None:
    adapter, processor = micro
    protocol = read_protocol(name)
    (sample,) = apply(protocol, pope, model="llava").samples()
    here = protocol.at(model="llava", benchmark="pope")
    found = prompt_under(here, sample.prompt, adapter=adapter, processor=processor)
    assert found == LLAVA_V1.format(f"{QUESTION} Please answer this question with one word.")


@pytest.mark.parametrize("name", ["opera_chair", "pai_pope", "sid_chair"])
def test_a_conversation_is_the_authors_prompt(name: str, micro: tuple[ModelAdapter, Any]) -> None:
    adapter, processor = micro
    here = read_protocol(name).at(model="llava")
    assert prompt_under(here, QUESTION, adapter=adapter, processor=processor) == OPERA.format(
        QUESTION
    )


def test_without_a_protocol_the_prompt_is_the_adapters(micro: tuple[ModelAdapter, Any]) -> None:
    adapter, processor = micro
    plain = adapter.prompt(QUESTION, images=2, processor=processor)
    for protocol in (None, Protocol("p"), Protocol("p", system="")):
        assert plain == prompt_under(
            protocol, QUESTION, adapter=adapter, processor=processor, images=2
        )


def test_braces_of_a_question_stay(micro: tuple[ModelAdapter, Any]) -> None:
    assert (
        conversation("{images}|{question}", question="{images} {0}", images="<i>")
        == "<i>|{images} {0}"
    )
    assert images_text(*micro, 2) == "<image>\n<image>"


class Template:
    """A processor that only has a chat template."""

    image_processor = None

    def __init__(self, render: Any) -> None:
        self.chat_template, self._render = "a template", render

    def apply_chat_template(self, chat: Sequence[Mapping[str, Any]], **_: Any) -> str:
        return str(self._render(chat))


def text_of(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def refuses(chat: Sequence[Mapping[str, Any]]) -> str:
    from jinja2 import TemplateError

    if chat[0]["role"] == "system":
        raise TemplateError("system role not supported")
    return text_of(chat[-1])


def drops(chat: Sequence[Mapping[str, Any]]) -> str:
    return text_of(chat[-1])


def wants_text(chat: Sequence[Mapping[str, Any]]) -> str:
    """Prints what stands there, as a template does that joins texts."""
    return "".join(
        f"<{m['role']}>" + (str(m["content"]) if m["role"] == "system" else "?") for m in chat
    )


def has_its_own(chat: Sequence[Mapping[str, Any]]) -> str:
    system = text_of(chat[0]) if chat[0]["role"] == "system" else "You are a helpful assistant."
    return f"<s>{system}</s>{text_of(chat[-1])}"


@pytest.mark.parametrize("render", [refuses, drops])
def test_a_model_without_a_system_message_is_one_error(render: Any, micro: Any) -> None:
    protocol = Protocol("p", system="Be brief.")
    with pytest.raises(CdkitError, match="protocol p: the model has no system message"):
        prepare(protocol, adapter=micro[0], processor=Template(render))
    empty = Protocol("p", system="")
    assert prompt_under(empty, "?", adapter=micro[0], processor=Template(render)) == "?"


def test_a_chat_template_gets_the_system_message_as_it_wants_it(micro: Any) -> None:
    def shown(system: str, render: Any) -> str:
        protocol = Protocol("p", system=system)
        return prompt_under(protocol, "?", adapter=micro[0], processor=Template(render))

    assert shown("Be brief.", wants_text) == "<system>Be brief.<user>?"
    assert shown("Be brief.", has_its_own) == "<s>Be brief.</s>?"
    assert shown("", has_its_own) == "<s></s>?"


def test_a_processor_without_a_chat_template_has_no_system_message(micro: Any) -> None:
    bare = Template(drops)
    bare.chat_template = ""
    with pytest.raises(CdkitError, match="give the whole conversation as a template"):
        prompt_under(Protocol("p", system="a"), "?", adapter=micro[0], processor=bare)
    template = Protocol("p", template="{images} {question}")
    assert prompt_under(template, "?", adapter=micro[0], processor=bare) == "<image> ?"


def test_pope_follows_suffix_parser_and_limit(pope: POPE) -> None:
    asked = apply(read_protocol("vcd_pope"), pope, model="llava")
    assert isinstance(asked, POPE)
    assert asked.samples()[0].prompt == f"{QUESTION} Please answer this question with one word."
    assert asked.parsers == ("vcd", "strict", "reference") and asked.max_new_tokens == 1024
    assert apply(read_protocol("vcd_pope"), pope, model="qwen_vl").samples() == pope.samples()
    assert apply(Protocol("p"), pope) == pope


@pytest.mark.parametrize(
    ("text", "by_opera", "by_icd"),
    [
        ("Yes", "yes", "yes"),
        ("NO", "no", "unknown"),
        ("No.", "no", "no"),
        ("There isn't one", "no", "unknown"),
        ("Yes. There is no cat.", "no", "yes"),
        ("a snowboard", "yes", "unknown"),
        ("yes, sir", "yes", "yes"),
        ("", "yes", "unknown"),
    ],
)
def test_parsers_of_others(text: str, by_opera: str, by_icd: str) -> None:
    assert (opera(text, "yes"), icd(text, "yes")) == (by_opera, by_icd)
    assert (opera(text, "no"), icd(text, "no")) == (by_opera, by_icd)


def test_chair_follows_prompt_images_and_scorer(chair: CHAIR, tmp_path: Path) -> None:
    protocol = read_protocol("pai_chair").replace(scorer="simple", image_count=7)
    asked = apply(protocol, chair, model="llava")
    assert {s.prompt for s in asked.samples()} == {"Please help me describe the image in detail."}
    drawn = [s.id for s in asked.samples()]
    assert len(drawn) == 7 and drawn == [s.id for s in apply(protocol, chair).samples()]
    others = [s.id for s in apply(protocol.replace(image_seed=1), chair).samples()]
    assert set(drawn) != set(others)
    (tmp_path / "list.txt").write_text("COCO_val2014_000000000003.jpg\n")
    listed = apply(Protocol("p", image_list=tmp_path / "list.txt"), chair)
    assert [s.id for s in listed.samples()] == ["3"]


def test_drawn_images_do_not_depend_on_the_order_of_the_list(chair: CHAIR, tmp_path: Path) -> None:
    names = [sample.image for sample in chair.samples()]
    for order, name in ((names, "a"), (names[::-1], "b")):
        (tmp_path / name).write_text("\n".join(order))
    protocol = Protocol("p", image_count=5, image_seed=3)
    lists = [apply(protocol.replace(image_list=str(tmp_path / n)), chair) for n in "ab"]
    assert lists[0].samples() == lists[1].samples()
    first = Protocol("p", image_count=5, image_list=tmp_path / "b")
    assert [s.image for s in apply(first, chair).samples()] == names[::-1][:5]


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        ("A dog. A cat", "A dog."),
        ("A dog. A cat.", "A dog. A cat."),
        ('He says "stop!" and', 'He says "stop!'),
        ("It is 3.5 m long. It", "It is 3.5 m long."),
        ("A dog and", ""),
        ("", ""),
        ("Is it a dog? Yes! A", "Is it a dog? Yes!"),
    ],
)
def test_an_unfinished_sentence_is_dropped(caption: str, kept: str) -> None:
    assert finished_sentences(caption) == kept


def test_only_what_the_limit_cut_off_is_dropped(chair: CHAIR) -> None:
    asked = apply(Protocol("p", unfinished_sentence="dropped", image_count=2), chair)
    cut, whole = (Answer("A dog. A train", truncated=t) for t in (True, False))
    ids = [sample.id for sample in asked.samples()]
    assert asked.tally(dict(zip(ids, (cut, whole), strict=True))).columns["wrong"].tolist() == [
        0,
        1,
    ]
    kept = apply(Protocol("p", image_count=2), chair)
    assert kept.tally(dict(zip(ids, (cut, whole), strict=True))).columns["wrong"].tolist() == [1, 1]


def test_mme_follows_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "count.txt").write_text("a.jpg\tIs it one?\tYes\na.jpg\tIs it two?\tNo\n")
    asked = apply(read_protocol("imccd_mme"), MME(tmp_path), model="llava")
    assert [s.prompt for s in asked.samples()] == [
        f"Is it {n}? Please answer this question with one word." for n in ("one", "two")
    ]
    assert asked.max_new_tokens == 64


def test_amber_follows_suffix_and_parser(tmp_path: Path) -> None:
    query = {"id": 1, "image": "a.jpg", "query": "Is it red?"}
    truth = {"id": 1, "type": "discriminative-hallucination", "truth": "yes"}
    (tmp_path / "query.json").write_text(json.dumps([query]))
    (tmp_path / "annotations.json").write_text(json.dumps([truth]))
    protocol = Protocol("p", question_suffix=" Now.", parser="official")
    asked = apply(protocol, AMBER(tmp_path / "query.json"))
    assert [s.prompt for s in asked.samples()] == ["Is it red? Now."]
    assert asked.versions() == {"official": 1, "strict": 1}


def test_what_a_benchmark_cannot_follow_is_one_error(pope: POPE, chair: CHAIR) -> None:
    with pytest.raises(
        CdkitError, match="protocol vcd_pope: the benchmark chair cannot follow"
    ) as c:
        apply(read_protocol("vcd_pope"), chair)
    assert "question_suffix, parser" in str(c.value)
    with pytest.raises(
        CdkitError, match="cannot follow caption_prompt, unfinished_sentence, scorer"
    ):
        apply(read_protocol("pai_chair"), pope)
    with pytest.raises(CdkitError, match="Did you mean 'reference'"):
        apply(Protocol("mine", parser="referense"), pope)


@dataclass(frozen=True)
class Quiz(Benchmark):
    """A benchmark of a user's own, with a field that is a setting of protocols."""

    path: Path
    max_new_tokens: int = 8
    question_suffix: str = ""

    def samples(self) -> tuple[Sample, ...]:
        return (Sample("1", "a.png", f"?{self.question_suffix}", group="a.png", target="yes"),)

    def count(self, answers: Sequence[Answer]) -> Tally:
        return Tally(self.samples(), {"one": np.ones(1)}, {"one": lambda s: s["one"]})

    def sources(self) -> Mapping[str, str]:
        return {}


def test_a_benchmark_of_ones_own_follows_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BENCHMARKS, "name_of", lambda cls: "quiz")
    protocol = Protocol("p", question_suffix=" Now.", benchmarks={"quiz": {"max_new_tokens": 3}})
    asked = apply(protocol, Quiz(Path("quiz")))
    assert (asked.samples()[0].prompt, asked.max_new_tokens) == ("? Now.", 3)
    with pytest.raises(CdkitError, match="the benchmark quiz cannot follow scorer"):
        apply(Protocol("p", scorer="simple"), Quiz(Path("quiz")))


def picture() -> Image.Image:
    rows = np.random.default_rng(0).integers(0, 255, (40, 80, 3))
    return Image.fromarray(rows.astype(np.uint8))


@pytest.fixture
def processor(micro: tuple[ModelAdapter, Any]) -> Any:
    model, _ = cdkit.load_model("micro")
    return load_processor(cdkit.pretrained.micro_path(), model, {})


def pixels(processor: Any) -> torch.Tensor:
    found: torch.Tensor = processor.image_processor(picture(), return_tensors="pt")["pixel_values"]
    return found


def test_squares_are_made_as_the_protocol_says(processor: Any) -> None:
    before = pixels(processor)
    seen = {}
    for how in ("crop", "squash", "pad", "crop"):
        set_preprocessing(processor, how)
        assert preprocessing_of(processor) == how
        seen[how] = pixels(processor)
        assert seen[how].shape == before.shape
    assert torch.equal(seen["crop"], before)
    mean = torch.tensor(processor.image_processor.image_mean)
    # above and below a wide picture stands the mean colour, which is normalised to about zero
    assert seen["pad"][0, :, 0].abs().max() < 1 / 255 / mean.min() * 4
    assert not torch.equal(seen["squash"], before)
    with pytest.raises(CdkitError, match="Did you mean 'crop'"):
        set_preprocessing(processor, "cropp")


class Tiled:
    """An image processor that cuts images into tiles."""

    do_resize, image_grid_pinpoints, size = True, [[2, 2]], {"shortest_edge": 8}


def test_what_cannot_be_set_is_told_and_not_refused(micro: Any) -> None:
    processor = Template(drops)
    processor.image_processor = Tiled()  # type: ignore[assignment]
    protocol = Protocol("p", image_preprocessing="crop")
    (told,) = prepare(protocol, adapter=micro[0], processor=processor)
    assert told == (
        "The authors' images: the shorter side is resized and the middle is cut out. Here, by "
        "Tiled: images are made in a way of its own."
    )
    assert unmatched(protocol, processor=processor) == [told]
    with pytest.raises(CdkitError, match="cannot be set on Tiled"):
        set_preprocessing(processor, "crop")


def test_a_report_is_told_what_is_not_matched(chair: CHAIR, processor: Any, micro: Any) -> None:
    protocol = read_protocol("sid_chair").replace(scorer="simple")
    assert prepare(protocol, adapter=micro[0], processor=processor, model="llava") == ()
    asked = apply(protocol, chair, model="llava")
    found = unmatched(protocol, processor=processor, benchmark=asked, model="llava")
    assert found[:-1] == [*protocol.unmatched.values()]
    assert found[-1] == "sid_chair asks about 500 images, this run about 39."


def test_a_method_of_another_paper_is_told() -> None:
    def told(protocol: Protocol, *names: str) -> str | None:
        return not_their_papers(protocol, {name: cdkit.load(name) for name in names})

    protocol = read_protocol("vcd_pope")
    assert told(protocol, "plain", "vcd", "random_mask", "no_image", "identical") is None
    assert told(read_protocol("llava_pope"), "vcd") is None
    assert told(protocol, "sid") == (
        "sid is run under vcd_pope, the protocol of vcd, and not under its own paper's: numbers of "
        "the papers are not to be expected (parameters of sid as in the preset)"
    )
    both = told(protocol, "vcd", "sid", "pai")
    assert both is not None and both.startswith("sid and pai are run under vcd_pope")
    mine = told(read_protocol("imccd_pope"), "imccd", "icd")
    assert mine is not None and "(" not in mine  # the protocol has icd's parameters


def test_the_type_of_a_model_is_read_off_its_config(tmp_path: Path) -> None:
    assert model_type("micro") == "llava"
    assert model_type(str(tmp_path)) is None
