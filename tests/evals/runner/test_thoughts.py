"""Thoughts in generated answers: kept in the text, however a tokenizer writes their marks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import cdkit
from cdkit.evals.runner.answer_engine import AnswerEngine, Generated
from cdkit.evals.runner.questions import Question
from cdkit.interfaces.sample import Answer

WORDS = ("<eos>", "<think>", "</think>", "Yes", "No", "hm", "USER:")
END = 0


class Words:
    """A tokenizer of whole words; its marks of thoughts are special tokens or not."""

    all_special_ids: Sequence[int]
    all_special_tokens: Sequence[str]

    def __init__(self, special: Sequence[int]) -> None:
        self.all_special_ids, self.all_special_tokens = special, [WORDS[i] for i in special]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        out = self.all_special_ids if skip_special_tokens else ()
        return " ".join(WORDS[i] for i in ids if i not in out)


@pytest.mark.parametrize("special", [(0,), (0, 1, 2)])
@pytest.mark.parametrize(
    ("prompt", "new", "text"),
    [
        ((6,), (1, 5, 4, 2, 3, END), "Yes"),
        ((6, 1), (5, 4, 2, 3, END), "Yes"),  # the prompt opens the thought
        ((6, 1), (5, 4, 4, 4), "<think>"),
        ((6,), (1, 4, 4, 4), "<think>"),
        ((6, 1, 2), (3, END, END), "Yes"),  # no thinking: an empty thought in the prompt
        ((6,), (3, END, END), "Yes"),
    ],
)
def test_the_answer_proper_is_found(
    special: Sequence[int], prompt: Sequence[int], new: Sequence[int], text: str
) -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=END))
    engine = AnswerEngine(model, SimpleNamespace(tokenizer=Words(special)))
    opened = engine._opens_thought(torch.tensor(prompt))
    made = engine._decoded(list(new), len(new), "<think>" * opened)
    assert Answer(made.text).read().text == text
    assert made.truncated == (END not in new)


@pytest.mark.parametrize("method", ["plain", "vcd"])
def test_the_yes_score_of_a_thought_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    model, processor = cdkit.load_model("micro")
    engine = AnswerEngine(model, processor)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    asked = [Question(tmp_path / "a.png", "is there a cat ?", 2, yes_no=True)]
    inputs = engine.inputs(asked)

    def made() -> Generated:
        names = [q.sample_id for q in asked]
        options: dict[str, Any] = {"limit": 2, "seed": None, "record_margins": True}
        (answer,) = engine.answers(cdkit.load(method), inputs, names, **options)
        return answer

    assert made().yes_score is not None
    decoded: Callable[..., Generated] = AnswerEngine._decoded
    monkeypatch.setattr(
        AnswerEngine,
        "_decoded",
        lambda self, ids, limit, before: decoded(self, ids, limit, "ok</think>"),
    )
    assert made().yes_score is None
