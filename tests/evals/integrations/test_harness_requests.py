"""What the lmms-eval model is made of, without lmms-eval: options, decoding, batches, answers.

test_lmms_eval.py runs it inside the installed lmms-eval.
"""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

import cdkit
from cdkit import CdkitError
from cdkit.evals.integrations.lmms_eval.options import protocol_notes, read_options
from cdkit.evals.integrations.lmms_eval.request_answers import answers, check_mode, prompt
from cdkit.evals.integrations.lmms_eval.requests import (
    Request,
    batches,
    content,
    naming_errors,
    repeats,
)
from cdkit.evals.integrations.lmms_eval.task_decoding import (
    StopsAt,
    TaskDecoding,
    check_decoding,
    cut,
    read_decoding,
)
from cdkit.evals.protocols.protocol import Protocol
from cdkit.evals.runner.answer_engine import AnswerEngine

GREEDY = TaskDecoding()


def request(
    place: int = 0,
    *,
    task: str = "pope",
    doc: int | str = 7,
    text: str = "is there a cat ?",
    length: int = 5,
    decoding: TaskDecoding = GREEDY,
    repeat: int = 0,
    visuals: Callable[[], Any] = list,
) -> Request:
    return Request(place, task, doc, repeat, text, length, decoding, visuals)


@pytest.mark.parametrize(
    ("asked", "decoding"),
    [
        ({}, TaskDecoding()),
        ({"max_new_tokens": 8, "do_sample": False, "temperature": 0.0, "top_p": None},
         TaskDecoding(limit=8)),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9, "top_k": 5}, TaskDecoding()),
        ({"temperature": 0.2, "top_p": 1.0}, TaskDecoding(temperature=0.2)),
        ({"do_sample": True, "top_p": 0.9, "top_k": 5},
         TaskDecoding(temperature=1.0, top_p=0.9, top_k=5)),
        ({"num_beams": 3, "length_penalty": 2.0, "image_aspect_ratio": "pad"},
         TaskDecoding(num_beams=3, passed=(("length_penalty", 2.0),))),
        ({"max_gen_toks": 9, "until": "Q:", "stop_sequences": ["</s>", ""]},
         TaskDecoding(limit=9, until=("Q:", "</s>"))),
        ({"until": ["\n\n", "\n"]}, TaskDecoding(until=("\n",))),
        ({"until": None}, TaskDecoding()),
    ],
)  # fmt: skip
def test_generation_kwargs(asked: dict[str, Any], decoding: TaskDecoding) -> None:
    assert read_decoding(asked) == decoding


def test_a_blank_line_may_stop() -> None:
    assert read_decoding({"until": ["\n\n"]}, stop_at_blank_line=True).until == ("\n\n",)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"temprature": 1}, "no option is called 'temprature'. Did you mean 'temperature'?"),
        ({"do_sample": True, "temperature": 0}, "do_sample=true with temperature 0: set"),
        ({"do_sample": True, "num_beams": 2}, "sampling within a beam search is not supported"),
        ({"temperature": -0.5}, "temperature must be a finite number > 0, got -0.5"),
        ({"do_sample": True, "top_p": 0}, r"top_p must lie in \(0, 1\], got 0"),
        ({"do_sample": True, "top_k": 0}, "top_k must be a whole number >= 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, got 0"),
        ({"num_beams": True}, "num_beams must be a whole number >= 1, got True"),
        ({"until": [3]}, r"until must be a string or a list of strings, got \[3\]"),
    ],
)
def test_what_would_be_passed_over_in_silence(
    asked: dict[str, Any], message: str, as_for_a_user: None
) -> None:
    with pytest.raises(CdkitError, match=message):
        read_decoding(asked)


TEXTS = st.text("ab\n", max_size=12)


@given(TEXTS, st.lists(st.text("ab\n", min_size=1, max_size=2), max_size=3))
def test_cut(text: str, until: list[str]) -> None:
    """The longest beginning without a stop string, up to where the first of them begins."""
    kept = cut(text, until)
    assert text.startswith(kept)
    assert not any(stop in kept for stop in until)
    assert kept == text or any(text[len(kept) :].startswith(stop) for stop in until)


@given(TEXTS, TEXTS)
def test_a_row_ends_where_its_text_is_cut(first: str, second: str) -> None:
    ids = [[9] + [ord(letter) for letter in text.ljust(12, "b")] for text in (first, second)]
    stops = StopsAt(["aa"], 1, lambda row: "".join(map(chr, row)))
    expected = ["aa" in text.ljust(12, "b") for text in (first, second)]
    assert stops(torch.tensor(ids), None).tolist() == expected


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), max_size=12), st.integers(1, 5))
def test_batches(asked: list[tuple[int, int]], size: int) -> None:
    """Every request once; decoded alike, the longest first, as full as they can be."""
    requests = [
        request(i, length=length, decoding=TaskDecoding(limit=limit))
        for i, (length, limit) in enumerate(asked)
    ]
    made = list(batches(requests, size))
    assert sorted(r.place for batch in made for r in batch) == list(range(len(asked)))
    for limit in {limit for _, limit in asked}:
        own = [batch for batch in made if batch[0].decoding.limit == limit]
        assert all(r.decoding.limit == limit for batch in own for r in batch)
        assert [len(batch) for batch in own[:-1]] == [size] * (len(own) - 1)
        assert 1 <= len(own[-1]) <= size
        lengths = [r.length for batch in own for r in batch]
        assert lengths == sorted(lengths, reverse=True)


def test_repeats_share_the_noise_and_not_the_draw() -> None:
    assert list(repeats("aba")) == [0, 0, 1]
    first, second = request(repeat=0), request(repeat=1)
    assert first.noise_id == second.noise_id == first.draw_id == "pope/7"
    assert second.draw_id == "pope/7#1"


def test_errors_name_task_and_documents() -> None:
    asked = [request(doc=3), request(doc=3, repeat=1), request(doc=4), request(task="mme", doc="x")]
    with (
        pytest.raises(CdkitError, match=r"^task pope, documents 3, 4; task mme, document x: bad$"),
        naming_errors(asked),
    ):
        raise CdkitError("bad")
    with pytest.raises(ZeroDivisionError) as caught, naming_errors(asked[:1]):
        raise ZeroDivisionError
    assert caught.value.__notes__ == ["raised while cdkit answered task pope, document 3"]


def test_images_come_in_rgb() -> None:
    grey, clear = Image.new("L", (2, 2)), Image.new("RGBA", (2, 2))
    found = request(visuals=lambda: [grey, clear]).images()
    assert [image.mode for image in found] == ["RGB", "RGB"]
    assert request(visuals=lambda: None).images() == ()


@pytest.mark.parametrize(
    ("visual", "message"),
    [
        ("film.mp4", "doc_to_visual gave a path, so a video: only tasks whose visuals are PIL"),
        ({"array": []}, "doc_to_visual gave a dict: only tasks"),
        ([Image.new("L", (2, 2))], "doc_to_visual gave a list: only tasks"),
        (Image.new("I;16", (2, 2)), "mode I;16, which has no known white"),
    ],
)
def test_visuals_that_are_no_images(visual: Any, message: str) -> None:
    with pytest.raises(CdkitError, match=message):
        request(visuals=lambda: [visual]).images()


def test_a_document_that_cannot_be_loaded() -> None:
    def fails() -> Any:
        raise KeyError("image")

    with pytest.raises(CdkitError, match=r"cannot load the images: KeyError: 'image'$"):
        request(visuals=fails).images()


def test_truncated_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's switch, which lmms-eval sets for the whole process, holds only where allowed."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    file = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(file, "PNG")
    torn = request(visuals=lambda: [Image.open(io.BytesIO(file.getvalue()[:400]))])
    with pytest.raises(CdkitError, match=r"truncated.*; allow_truncated_images=true fills"):
        torn.images()
    (image,) = torn.images(allow_truncated=True)
    assert image.size == (32, 32)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_images_stand_where_the_text_marks_them() -> None:
    image = {"type": "image"}
    assert content("no mark", 2) is None
    assert content("is <image> like <image>", 2) == [
        {"type": "text", "text": "is "}, image, {"type": "text", "text": " like "}, image,
    ]  # fmt: skip
    with pytest.raises(CdkitError, match=r"a place for 1 images \(<image>\), but it has 0"):
        content("<image> what?", 0)


def test_options() -> None:
    """As lmms-eval hands them over: numbers and booleans read, lists left as text."""
    options = read_options(
        {"pretrained": "micro", "method": "dola", "batch_size": "4", "device": 0, "beta": 0.2,
         "bucket": "[0.25, 0.5]", "max_batch_size": None}
    )  # fmt: skip
    assert options.method == cdkit.load("dola", beta=0.2, bucket=[0.25, 0.5])
    assert (options.batch_size, options.device, options.seed) == (4, "0", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": None}, "the model argument method is missing: give it, such as pretrained="),
        ({"pretrained": ""}, "the model argument pretrained is missing"),
        ({"alhpa": 1.0}, "Did you mean 'alpha'"),
        ({"alpha": " "}, "the model argument alpha is empty"),
        ({"batch_size": "auto"}, "batch_size must be a whole number >= 1, got 'auto'"),
        ({"max_batch_size": 8}, "max_batch_size belongs to batch_size=auto"),
        ({"seed": -1.0}, "seed must be a whole number >= 0, got -1.0"),
        ({"stop_at_blank_line": "yes"}, "stop_at_blank_line must be true or false, got 'yes'"),
        ({"device": "cpu", "device_map": "auto"}, "device=cpu and device_map=auto: give one"),
    ],
)
def test_options_that_cannot_be(changes: dict[str, Any], message: str, as_for_a_user: None) -> None:
    with pytest.raises(CdkitError, match=message):
        read_options({"pretrained": "micro", "method": "cmac"} | changes)


@pytest.fixture(scope="module")
def engine() -> AnswerEngine:
    return AnswerEngine(*cdkit.load_model("micro"))


def pictures(count: int) -> list[tuple[Image.Image, ...]]:
    return [(Image.effect_noise((64, 64), 20 * i).convert("RGB"),) for i in range(1, count + 1)]


def asked(engine: AnswerEngine, count: int, **decoding: Any) -> list[Request]:
    texts = ("is there a cat in the image ?", "Please describe this image in detail.")
    how = replace(TaskDecoding(limit=12), **decoding)
    return [request(i, doc=i, text=texts[i % 2], decoding=how) for i in range(count)]


@pytest.mark.parametrize("decoding", [{}, {"temperature": 0.9, "top_k": 20}, {"num_beams": 2}])
def test_an_answer_does_not_depend_on_its_batch(
    engine: AnswerEngine, decoding: dict[str, Any]
) -> None:
    method, requests, images = cdkit.load("cmac"), asked(engine, 4, **decoding), pictures(4)
    together = answers(engine, method, requests, images, 0)
    alone = [answers(engine, method, [r], [i], 0)[0] for r, i in zip(requests, images, strict=True)]
    assert together == alone
    assert len({said.text for said in together}) > 1
    plain = answers(engine, cdkit.load("plain"), requests, images, 0)
    assert plain != together


def test_a_stop_string_cuts_the_answer_and_ends_it(engine: AnswerEngine) -> None:
    method, images = cdkit.load("plain"), pictures(2)
    whole = answers(engine, method, asked(engine, 2), images, 0)
    assert " photo" in whole[1].text and " photo" not in whole[0].text
    short = answers(engine, method, asked(engine, 2, until=(" photo",)), images, 0)
    assert short[0] == whole[0]
    assert short[1].text == whole[1].text.split(" photo")[0].strip()
    assert short[1].tokens < whole[1].tokens


def test_repeats_are_drawn_anew(engine: AnswerEngine) -> None:
    how = TaskDecoding(limit=12, temperature=2.0)
    twice = [request(i, text="Please describe this image in detail.", decoding=how, repeat=i)
             for i in range(2)]  # fmt: skip
    first, second = answers(engine, cdkit.load("plain"), twice, pictures(1) * 2, 0)
    assert first != second


def test_a_document_without_an_image(engine: AnswerEngine) -> None:
    text = [request(decoding=TaskDecoding(limit=2))]
    (said,) = answers(engine, cdkit.load("plain"), text, [()], 0)
    assert said.tokens
    with pytest.raises(CdkitError, match="has no image, and cmac is about the image"):
        answers(engine, cdkit.load("cmac"), text, [()], 0)


def test_a_method_with_its_own_loop_keeps_to_its_modes() -> None:
    check_mode(cdkit.load("opera"), TaskDecoding(num_beams=2))
    with pytest.raises(CdkitError, match="opera is defined for beam search, but the task asks for"):
        check_mode(cdkit.load("opera"), GREEDY)


def test_prompts(engine: AnswerEngine) -> None:
    ordinary = engine.prompt("what?", 1)
    assert prompt(engine, "what?", 1) == prompt(engine, "<image>\nwhat?", 1) == ordinary
    two = prompt(engine, "is <image> like <image> ?", 2)
    assert two.count("<image>") == 2 and "is" in two and "like" in two
    bare = AnswerEngine(engine.model, type("Bare", (), {"chat_template": None})())
    with pytest.raises(CdkitError, match="no chat template: only tasks with the images before"):
        prompt(bare, "is <image> like <image> ?", 2)


def test_a_protocol_gives_the_prompt_and_the_parameters_of_methods(engine: AnswerEngine) -> None:
    given = {"pretrained": "micro", "method": "vcd", "protocol": "vcd_pope"}
    options = read_options(given)
    assert options.method == cdkit.load("vcd", alpha=1.0, beta=0.2, step=500)
    stronger = cdkit.load("vcd", alpha=3.0, beta=0.2, step=500)
    assert read_options({**given, "alpha": 3.0}).method == stronger
    assert options.model_type == engine.model.config.model_type
    system = read_options({**given, "system": "'be brief, please'"})
    assert system.model_protocol is not None and system.model_protocol.system == "be brief, please"
    under = replace(engine, protocol=Protocol("p", template="{images} ask: {question} say:"))
    assert prompt(under, "what?", 1) == "<image> ask: what? say:"
    assert prompt(under, "<image>\nwhat?", 1) == prompt(under, "what?", 1)
    with pytest.raises(CdkitError, match="and template is set, which has the images before"):
        prompt(under, "is <image> like <image> ?", 2)
    with pytest.raises(CdkitError, match="<image>"):
        prompt(engine, "is <image> there ?", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "vcd_pop"}, "Did you mean 'vcd_pope'"),
        ({"protocol": 3}, "the model argument protocol must be text, got 3"),
        ({"template": "no place"}, "template must hold"),
        ({"system": "a", "template": "{images}{question}"}, "system and template exclude"),
        ({"image_preprocessing": "cropp"}, "Did you mean 'crop'"),
        ({"question_suffix": " Briefly."}, "question_suffix"),
    ],
)
def test_protocols_that_cannot_be(
    changes: dict[str, Any], message: str, as_for_a_user: None
) -> None:
    with pytest.raises(CdkitError, match=message):
        read_options({"pretrained": "micro", "method": "cmac"} | changes)


def test_what_a_protocol_leaves_to_the_task_is_said(engine: AnswerEngine) -> None:
    given = {"pretrained": "micro", "method": "cmac", "protocol": "vcd_pope"}
    notes = protocol_notes(read_options(given), engine.processor)
    assert any("the task decides question_suffix, max_new_tokens, parser" in note for note in notes)
    assert any(note.startswith("cmac is run under vcd_pope, the protocol of vcd") for note in notes)
    assert (
        protocol_notes(read_options({"pretrained": "micro", "method": "cmac"}), engine.processor)
        == []
    )


DRAWN = Protocol("drawn", mode="sample", temperature=1.0, top_p=1.0)


@pytest.mark.parametrize(
    ("protocol", "decoding", "options"),
    [
        (DRAWN, TaskDecoding(temperature=1.0), ""),
        (Protocol("p", mode="greedy"), GREEDY, ""),
        (Protocol("p", mode="beam"), TaskDecoding(num_beams=3), ""),
        (Protocol("p"), TaskDecoding(num_beams=3), ""),
        (DRAWN, GREEDY, "do_sample=True,temperature=1.0,num_beams=1"),
        (DRAWN, TaskDecoding(temperature=1.0, top_p=0.9), "do_sample=True,temperature=1.0"),
        (Protocol("p", mode="greedy"), TaskDecoding(temperature=0.2), "do_sample=False,num"),
        (Protocol("p", mode="beam", beams=5), GREEDY, "do_sample=False,num_beams=5"),
    ],
)
def test_a_protocol_decodes_as_the_task_or_says_how(
    protocol: Protocol, decoding: TaskDecoding, options: str, as_for_a_user: None
) -> None:
    if not options:
        check_decoding(protocol, decoding)
        return
    with pytest.raises(CdkitError, match=f"and the task by .*: add --gen_kwargs {options}"):
        check_decoding(protocol, decoding)
