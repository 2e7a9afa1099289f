"""`cdkit.explain` and `run.show`: their numbers are those of an independent computation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.explanation.explained import COMBINED, PLAIN, ExplainedAnswer, most_telling
from cdkit.explanation.summary import why
from cdkit.methods.branch import ORIGINAL

MakeInputs = Callable[..., dict[str, Tensor]]
QUESTION = "is there a cat ?"
TOKENS = 4


@pytest.fixture(scope="module")
def found(model: Any, processor: Any, make_inputs: MakeInputs) -> cdkit.Explanation:
    return cdkit.explain(
        model,
        make_inputs(QUESTION),
        ["cmac", "vcd", "icd"],
        processor=processor,
        max_new_tokens=TOKENS,
    )


def named(found: cdkit.Explanation, name: str) -> ExplainedAnswer:
    return next(answer for answer in found.answers if answer.name == name)


def traced(model: Any, processor: Any, inputs: Any, name: str) -> tuple[list[int], Any]:
    with cdkit.attach(
        model, cdkit.load(name), processor=processor, trace=("logits", "image_attention", "mask")
    ) as run:
        ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist(), run.trace


@pytest.mark.parametrize("name", ["cmac", "vcd", "icd"])
def test_probabilities_are_the_softmax_of_the_logits(
    found: cdkit.Explanation, model: Any, processor: Any, make_inputs: MakeInputs, name: str
) -> None:
    inputs, answer = make_inputs(QUESTION), named(found, name)
    tokens, trace = traced(model, processor, inputs, name)
    assert [step.token for step in answer.steps] == tokens
    assert answer.columns == (PLAIN, "original", "distorted", COMBINED)
    for number, step in enumerate(answer.steps):
        logits = {**trace.steps[number].logits, COMBINED: trace.steps[number].combined}
        whole = torch.cat((inputs["input_ids"], torch.tensor([tokens[:number]]).long()), dim=1)
        with torch.no_grad():
            stock = model(input_ids=whole, pixel_values=inputs["pixel_values"]).logits[:, -1]
        logits[PLAIN] = stock
        for column, own in logits.items():
            exact = torch.exp(own[0].double() - own[0].double().logsumexp(-1))
            shown = {one.token: one.probabilities[column] for one in step.candidates}
            for token, probability in shown.items():
                assert probability == pytest.approx(float(exact[token]), abs=1e-9)
            best = set(exact.topk(5).indices[exact.topk(5).values > 0].tolist())
            assert best <= shown.keys() and step.favourites[column] == int(exact.argmax())
        gone = trace.steps[number].combined[0].isneginf()
        assert sum(step.removed.values()) == int(gone.sum())
        for one in step.candidates:
            assert bool(one.removed_by) == bool(gone[one.token])
        mass = trace.steps[number].logits["original"][0].double().softmax(-1)[gone].sum()
        assert step.removed_mass == pytest.approx(float(mass), abs=1e-9)


def test_changed_tokens_are_those_that_plain_would_not_choose(
    found: cdkit.Explanation,
) -> None:
    everywhere = [answer.changed for answer in found.answers]
    assert everywhere[0] == () and any(everywhere)
    for answer in found.answers[1:]:
        for number, step in enumerate(answer.steps):
            assert (number in answer.changed) == (step.token != step.favourites[PLAIN])


def test_attention_is_that_of_the_trace(
    found: cdkit.Explanation, model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    _, trace = traced(model, processor, make_inputs(QUESTION), "cmac")
    maps = named(found, "cmac").maps
    assert maps.keys() == {"original", "distorted"} and found.layers == (0, 1, 2)
    assert maps["original"].mask is None
    for number, step in enumerate(trace.steps):
        for layer in found.layers:
            for branch in maps:
                own = step.image_attention[branch][layer][0].mean(dim=0)
                shown = torch.from_numpy(maps[branch].attention[number, layer])
                torch.testing.assert_close(shown, own.float(), rtol=0, atol=1e-6)
            mask = step.mask["distorted"][layer][0, :, -1].float().mean(dim=0)
            assert maps["distorted"].mask is not None
            assert torch.from_numpy(maps["distorted"].mask[number, layer]).equal(mask)


def test_positions_are_those_of_the_formula(found: cdkit.Explanation) -> None:
    """gamma 2: an image token is one half of a position behind the one before it."""
    (line,) = named(found, "cmac").positions
    count = len(line.ordinary)
    after = line.ordinary[-1]  # text tokens from the last image token to the prompt's last one
    assert count == 9 and line.layer is None and line.axis == ""
    for i in range(count):
        assert line.ordinary[i] == after + (count - 1 - i)
        assert line.calibrated[i] == after + (count - 1 - i) / 2
    assert not named(found, "vcd").positions


def test_pixels_and_prompts_are_what_branches_get(
    found: cdkit.Explanation, make_inputs: MakeInputs, processor: Any
) -> None:
    (view,) = found.views
    assert view.grid is not None and view.grid.tokens.shape == (3, 3)
    assert view.distorted.keys() == {("vcd", "distorted")}
    noisy = view.distorted["vcd", "distorted"]
    assert noisy.shape == view.pixels.shape == (12, 12, 3) and (noisy != view.pixels).any()
    mean, std = (
        torch.tensor(own)[:, None, None]
        for own in (processor.image_processor.image_mean, processor.image_processor.image_std)
    )
    exact = (make_inputs(QUESTION)["pixel_values"][0] * std + mean).permute(1, 2, 0) * 255
    assert (torch.from_numpy(view.pixels) - exact).abs().max() < 0.51
    (given,) = named(found, "icd").given
    assert given.changes == ("the prompt",) and given.prompt is not None
    added = "".join(text for what, text in given.prompt if what == "added")
    assert added.split()[:4] == ["you", "are", "a", "confused"]
    assert "[image: 9 tokens]" in "".join(text for _, text in given.prompt)
    assert [own.has_pixels for own in named(found, "vcd").given] == [True]
    assert named(found, "vcd").given[0].words.startswith("The image noised by 500 of 1000 steps")
    assert "in the cells that above_mean chooses" in named(found, "cmac").given[0].words
    assert named(found, "cmac").given[0].changes == (
        "the values that text takes from image tokens",
    )


def test_tables_hold_the_same_numbers(found: cdkit.Explanation) -> None:
    tables = found.tables()
    assert [row["token"] for row in tables["tokens"] if row["method"] == "cmac"] == [
        step.token for step in named(found, "cmac").steps
    ]
    for row in tables["candidates"]:
        step = named(found, row["method"]).steps[row["step"]]
        assert row["probability"] == step.candidate(row["token"]).probabilities[row["column"]]
    for row in tables["attention"]:
        own = named(found, row["method"]).maps[row["branch"]].attention
        assert row["share"] == pytest.approx(float(own[row["step"], row["layer"]].sum()))
    assert len(tables["positions"]) == 9


def test_the_sentences_say_what_the_numbers_say(found: cdkit.Explanation) -> None:
    words = found.sentences()
    assert len(words) == 3
    for answer, paragraph in zip(found.answers[1:], words, strict=True):
        count = len(answer.changed)
        begin = f"{answer.name} changed {count or 'none'} of {TOKENS} tokens"
        assert paragraph.startswith(begin), paragraph
        if count:
            step = answer.steps[answer.changed[0]]
            old = step.candidate(step.favourites[PLAIN])
            assert f"plain gave “{old.text.strip()}” {old.probabilities[PLAIN]:.2f}" in paragraph


# ---- run.show ------------------------------------------------------------------------------------


def test_show_has_the_numbers_of_each_prompt(
    model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(QUESTION, "<image> w3 <image> w4 in the image ?")
    with cdkit.attach(
        model, cdkit.load("cmac"), processor=processor,
        trace=("logits", "image_attention", "mask", "inputs"),
    ) as run:  # fmt: skip
        ids = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    for row, images in enumerate((1, 2)):
        shown = run.show(row=row)
        (answer,) = shown.answers
        assert [step.token for step in answer.steps] == ids[row, -3:].tolist()
        assert answer.columns == ("original", "distorted", COMBINED) and answer.base == "original"
        exact = run.trace.steps[1].logits["distorted"][row].double().softmax(-1)
        for one in answer.steps[1].candidates:
            assert one.probabilities["distorted"] == pytest.approx(float(exact[one.token]))
        assert len(shown.views) == images
        assert [view.first for view in shown.views] == [0, 9][:images]
        assert answer.maps["original"].attention.shape == (3, 3, 9 * images)
    assert run.show()._repr_html_().startswith("<iframe srcdoc=")
    assert run.show()._repr_png_().startswith(b"\x89PNG")


def test_show_knows_the_prompt_of_each_of_several_answers(
    model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(QUESTION, "<image> w3 <image> w4 in the image ?")
    with cdkit.attach(
        model, cdkit.load("cmac"), processor=processor,
        trace=("logits", "image_attention", "inputs"),
    ) as run:  # fmt: skip
        model.generate(**inputs, max_new_tokens=1, do_sample=True, num_return_sequences=2)
    assert [len(run.show(row=row).views) for row in range(4)] == [1, 1, 2, 2]
    shares = [run.show(row=row).answers[0].maps["original"].attention.shape[-1] for row in (1, 2)]
    assert shares == [9, 18]


def test_show_with_logits_alone_says_what_is_missing(
    model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    with cdkit.attach(model, cdkit.load("vcd"), processor=processor, trace=("logits",)) as run:
        model.generate(**make_inputs(QUESTION), max_new_tokens=2, do_sample=False)
    shown = run.show()
    assert not shown.views and "Not recorded, so not shown: image_attention" in shown.notes[-1]
    assert "token" in shown.to_html()


@pytest.mark.parametrize(
    ("trace", "options", "words"),
    [
        ((), {}, r"show needs the logits of each step: attach with trace=\('logits'"),
        (("logits",), None, "there is no answer to show: call model.generate in the block first"),
        (("logits",), {"num_beams": 2}, "the call has 2 rows for 1 answers, as a beam search has"),
    ],
)
def test_what_show_refuses(
    model: Any, make_inputs: MakeInputs, trace: tuple[str, ...], options: Any, words: str
) -> None:
    with cdkit.attach(model, cdkit.load("vcd"), trace=trace) as run:
        if options is not None:
            model.generate(**make_inputs(QUESTION), max_new_tokens=2, do_sample=False, **options)
    with pytest.raises(cdkit.CdkitError, match=words):
        run.show()


@pytest.mark.usefixtures("as_for_a_user")
def test_a_row_that_is_not_there(model: Any, make_inputs: MakeInputs) -> None:
    with cdkit.attach(model, cdkit.load("vcd"), trace=("logits",)) as run:
        model.generate(**make_inputs(QUESTION), max_new_tokens=1)
    for row, given in ((1, "1"), (-1, "-1"), (0.5, "0.5"), ("0", "'0'"), (True, "True")):
        with pytest.raises(cdkit.CdkitError, match=rf"row must be in 0 \.\. 0, .* got {given}"):
            run.show(row=row)  # type: ignore[arg-type]


# ---- other ways to decode, and bad input ---------------------------------------------------------


def test_beams_are_explained_along_their_answer(
    model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(QUESTION)
    found = cdkit.explain(model, inputs, "vcd", processor=processor, max_new_tokens=3, beams=3)
    with cdkit.attach(model, cdkit.load("vcd"), processor=processor):
        ids = model.generate(**inputs, max_new_tokens=3, num_beams=3, do_sample=False)
    answer = named(found, "vcd")
    assert [step.token for step in answer.steps] == ids[0, -3:].tolist()
    assert "beam search with 3 beams" in found.how and "best of a beam search" in answer.notes[0]


def test_samples_are_those_of_the_seed(model: Any, processor: Any, make_inputs: MakeInputs) -> None:
    def run(seed: int) -> list[list[int]]:
        found = cdkit.explain(
            model, make_inputs(QUESTION), "vcd", processor=processor, max_new_tokens=6,
            temperature=5.0, seed=seed,
        )  # fmt: skip
        return [[step.token for step in answer.steps] for answer in found.answers]

    state = torch.random.get_rng_state()
    first = run(0)
    assert first == run(0) != run(1)
    assert torch.random.get_rng_state().equal(state)


def test_draws_are_not_called_changed_tokens(
    model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    found = cdkit.explain(
        model, make_inputs(QUESTION), "vcd", processor=processor, max_new_tokens=6, temperature=5.0
    )
    answer = named(found, "vcd")
    assert any(step.token != step.favourites[answer.last] for step in answer.steps)
    (words,) = found.sentences()
    count = len(answer.changed) or "none"
    assert words.startswith(f"vcd changed the most probable token at {count} of 6 tokens: ")


def test_a_contrast_of_weight_0_pushes_nothing(found: cdkit.Explanation) -> None:
    answer = named(found, "vcd")
    old, new = answer.steps[0].candidates[:2]
    ways = {PLAIN: (0.6, 0.3), "original": (0.3, 0.6), "distorted": (0.6, 0.3)}

    def words(after: tuple[float, float]) -> str:
        each = [
            replace(one, probabilities={n: p[i] for n, p in (ways | {COMBINED: after}).items()},
                    removed_by="")
            for i, one in enumerate((old, new))
        ]  # fmt: skip
        favourites = {PLAIN: old.token, "original": new.token, COMBINED: new.token}
        step = replace(answer.steps[0], candidates=tuple(each), favourites=favourites)
        return why(replace(answer, steps=(step,)), 0)

    assert "pushes" not in words((0.3, 0.6)) and "that alone changes the choice" in words(
        (0.3, 0.6)
    )
    assert "so the contrast pushes towards" in words((0.1, 0.8))


def test_a_loop_has_the_plain_numbers_along_its_answer(
    model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    found = cdkit.explain(
        model, make_inputs(QUESTION), "opera", processor=processor, max_new_tokens=3, beams=2
    )
    answer = named(found, "opera")
    assert answer.columns == (PLAIN,) and len(answer.steps) == 3
    assert "no step has numbers of its own" in found.sentences()[0]
    page = found.to_html()
    assert "no step has numbers of its own" in page and "plain: attention" in page
    plain = named(found, PLAIN)
    first = replace(answer.steps[0], token=answer.steps[0].token + 1)
    other = replace(plain, steps=(plain.steps[0], first))
    parts = replace(found, answers=(other, answer)).sentences()[0]
    assert (
        "opera answered with 3 tokens. It parts from the plain model's answer at token 2" in parts
    )
    short = replace(found, answers=(replace(plain, steps=answer.steps[:2]), answer))
    assert "at token 3" in short.sentences()[0] and "where that has ended" in short.sentences()[0]
    assert most_telling(short.answers) == (1, 2)
    same = replace(found, answers=(replace(plain, steps=answer.steps), answer))
    assert "and they are those of the plain model's answer" in same.sentences()[0]


def test_plain_alone(model: Any, processor: Any, make_inputs: MakeInputs) -> None:
    found = cdkit.explain(model, make_inputs(QUESTION), [], processor=processor, max_new_tokens=2)
    assert [answer.name for answer in found.answers] == [PLAIN] and found.sentences() == []
    assert "One answer of the plain model" in found.to_html()


@pytest.mark.parametrize("name", ["plausibility", "cmac_cmpc", "dola", "pai", "m3id"])
def test_methods_of_other_kinds(
    model: Any, processor: Any, make_inputs: MakeInputs, name: str
) -> None:
    """Without branches, with readouts, with interventions, with a schedule."""
    method = cdkit.load(name)
    found = cdkit.explain(
        model, make_inputs(QUESTION), method, processor=processor, max_new_tokens=2
    )
    answer = named(found, name)
    assert len(answer.steps) == 2 and not answer.refused
    assert len(found.sentences()[0]) > 40 and answer.parts
    page = found.to_html()
    assert f"What {name} did to one answer" in page
    alone = answer.columns == (PLAIN, ORIGINAL)  # then its numbers stand under its name
    assert (f'<th scope="col">{name}</th>' in page) == alone
    assert (", without the method and with it" in page) == alone == (name == "cmac_cmpc")


def test_an_answer_without_words(
    make_model: Callable[..., Any], processor: Any, make_inputs: MakeInputs
) -> None:
    model = make_model()
    inputs = make_inputs(QUESTION)
    first = int(model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1])
    model.generation_config.eos_token_id = first
    found = cdkit.explain(model, inputs, "plausibility", processor=processor)
    assert [len(answer.steps) for answer in found.answers] == [1, 1]
    assert found.answers[0].steps[0].token == first


def test_a_prompt_without_image(model: Any, processor: Any) -> None:
    inputs = dict(processor(text=["is there a cat ?"], return_tensors="pt"))
    found = cdkit.explain(
        model, inputs, ["plausibility", "vcd"], processor=processor, max_new_tokens=2
    )
    assert "prompt 0 has no image" in named(found, "vcd").refused
    assert not found.views and "has no image" in found.notes[0]
    assert "✕ Not run: prompt 0 has no image" in found.to_html()


@pytest.mark.usefixtures("as_for_a_user")
def test_bad_input(model: Any, processor: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(QUESTION)

    def refused(words: str, *methods: Any, given: Any = inputs, **more: Any) -> None:
        more = {"max_new_tokens": 1, "processor": processor} | more
        with pytest.raises(cdkit.CdkitError, match=words):
            cdkit.explain(model, given, *methods, **more)

    refused("explain shows one answer, but inputs has 2", given=make_inputs(QUESTION, QUESTION))
    refused("inputs must be what the processor returns", given={})
    refused(r"layer 7 is not there: the decoder's layers with attention are 0 to 2", layers=[0, 7])
    refused("layers must name one layer at least", layers=[])
    refused(r"layers is a list of numbers, such as \[0, 3\], got 1", layers=1)
    for name in ("max_new_tokens", "beams", "top"):
        for wrong in (0, 1.5, "1", True):
            refused(rf"{name} must be a whole number of 1 or more, got {wrong!r}", **{name: wrong})
    refused("seed must be a whole number, got 'a'", seed="a")
    refused("options has do_sample, which explain decides", options={"do_sample": True})
    refused("give one of them", beams=2, temperature=1.0)
    refused("Did you mean 'cmac'", "cmacc")
    for methods in (3, [3], {"a": 3}):
        refused("methods are names of presets or cdkit.Method, got 3", methods)
    refused("two methods are called 'vcd': give each once, or name them", ["vcd", "vcd"])
    refused("needs a processor|processor", "icd", processor=None)


def test_names_in_a_mapping_any_seed_and_options(model: Any, make_inputs: MakeInputs) -> None:
    found = cdkit.explain(
        model, make_inputs(QUESTION), {"mine": "vcd"}, max_new_tokens=1, seed=2**70,
        options={"repetition_penalty": 1.5},
    )  # fmt: skip
    assert [answer.name for answer in found.answers] == [PLAIN, "mine"]
    assert found.how.endswith("; generate was also given repetition_penalty")


def test_without_a_processor_tokens_are_numbers(model: Any, make_inputs: MakeInputs) -> None:
    found = cdkit.explain(model, make_inputs(QUESTION), "vcd", max_new_tokens=1)
    step = found.answers[0].steps[0]
    assert step.text == f"token {step.token}" and "Colours are stretched" in found.notes[0]


def test_it_is_public_and_leaves_the_model_as_it_was(
    model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    assert {"explain", "Explanation"} <= set(dir(cdkit))
    before = dict(vars(model))
    cdkit.explain(model, make_inputs(QUESTION), processor=processor, max_new_tokens=1)
    assert vars(model) == before
