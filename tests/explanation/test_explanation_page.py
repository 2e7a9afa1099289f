"""The page of an explanation: what it loads (nothing), how large it is, how it reads."""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import browse, in_a_browser, measured
from PIL import Image
from torch import Tensor

import cdkit
from cdkit.explanation import html_page, sprites
from cdkit.explanation.explained import (
    AttentionMaps,
    Candidate,
    ExplainedAnswer,
    ExplainedStep,
    PictureView,
)
from cdkit.interfaces.token_grid import frame_grid

SCRIPT = "<script>alert('x')</script>"
MIB = 2**20


@pytest.fixture(scope="module")
def found(
    model: Any, processor: Any, make_inputs: Callable[..., dict[str, Tensor]]
) -> cdkit.Explanation:
    inputs = make_inputs("<image> w3 <image> is there a cat ?")
    return cdkit.explain(
        model, inputs, ["cmac", "vcd", "icd"], processor=processor, max_new_tokens=3
    )


@pytest.fixture(scope="module")
def page(found: cdkit.Explanation) -> str:
    return found.to_html()


def large(steps: int, layers: int, side: int) -> cdkit.Explanation:
    """As of a 7B model: random attention over a grid, 5 columns of 12 candidates."""
    rng = np.random.default_rng(0)
    columns = ("plain", "original", "distorted", "other", "combined")
    candidates = tuple(
        Candidate(i, f" word{i}", {c: 0.07 for c in columns}, "constraint" if i > 8 else "")
        for i in range(12)
    )
    step = ExplainedStep(
        0, " word0", candidates, dict.fromkeys(columns, 1), {"constraint": 31_000}, 0.1, None
    )

    def answer(name: str, branches: tuple[str, ...]) -> ExplainedAnswer:
        maps = {
            branch: AttentionMaps(
                rng.gamma(0.3, size=(steps, layers, side**2)).astype(np.float32),
                (rng.random((steps, layers, side**2)) < 0.4).astype(np.float32) if i else None,
            )
            for i, branch in enumerate(branches)
        }
        return ExplainedAnswer(
            name, "a method", "words", columns, branches[1:], (step,) * steps, maps, (), (), (), ()
        )

    pixels = rng.integers(0, 255, (336, 336, 3), dtype=np.uint8)
    view = PictureView(
        "", 0, frame_grid(side, side, first=0), 0, pixels, {("cmac", "distorted"): pixels}
    )
    return cdkit.Explanation(
        model="llava", prompt="Describe.", how="greedy",
        answers=(answer("plain", ("original",)), answer("cmac", ("original", "distorted"))),
        layers=tuple(range(layers)), shown_layers=None, views=(view,), notes=(),
    )  # fmt: skip


def without_data(page: str) -> str:
    return re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "data:", page)


def test_it_loads_nothing(page: str) -> None:
    bare = without_data(page)
    assert "http:" not in bare and "https:" not in bare and "//" not in bare
    assert "@import" not in bare and "@font-face" not in bare and "fetch(" not in bare
    assert set(re.findall(r"url\(([^)]*)\)", bare)) == {"data:"}
    assert not re.findall(r"(?:src|href|srcset|action)\s*=", bare)


def test_what_a_model_says_is_escaped(found: cdkit.Explanation) -> None:
    answer = found.answers[1]
    step = answer.steps[0]
    hostile = tuple(
        Candidate(one.token, SCRIPT, one.probabilities, one.removed_by) for one in step.candidates
    )
    bad = ExplainedStep(**{**vars(step), "candidates": hostile, "text": SCRIPT})
    changed = ExplainedAnswer(
        **{**vars(answer), "steps": (bad,), "summary": SCRIPT, "name": SCRIPT, "text": SCRIPT}
    )
    page = cdkit.Explanation(
        **{**vars(found), "answers": (changed,), "prompt": SCRIPT, "model": SCRIPT}
    ).to_html()
    assert "alert('x')" not in page and page.count("&lt;script&gt;") > 5
    assert page.count("<script>") == 1  # the arrow keys


@pytest.mark.parametrize("side", [24, pytest.param(54, marks=pytest.mark.slow)])
def test_64_tokens_are_less_than_3_mb(side: int) -> None:
    """576 image tokens as LLaVA-1.5 has them, and 2916, in 32 layers."""
    text = large(64, 32, side).to_html()
    assert len(text.encode()) < 3 * MIB
    assert "of 32 layers are drawn" in text


def test_layers_that_were_asked_for_are_drawn(found: cdkit.Explanation) -> None:
    asked = cdkit.Explanation(**{**vars(found), "shown_layers": (0, 2)})
    page = asked.to_html()
    assert page.count('class="layer"') == 2 and "layers are drawn" in page


def test_a_sheet_has_each_step_and_layer_in_its_place() -> None:
    values = np.zeros((2, 3, 4), dtype=np.float32)
    values[1, 2] = [0.0, 0.25, 0.5, 1.0]
    values[0, 0] = [0.0, 0.0, 0.02, 0.08]
    cells = np.array([[3, 2], [1, 0]])
    for mask, top, half in ((True, [1.0, 0.5], 0.25), (False, [1.0, 0.5**0.5], 0.5)):
        sheet = sprites.sprite(values, cells, mask=mask)
        opened = Image.open(io.BytesIO(sheet.png)).convert("RGBA")
        alpha = np.asarray(opened)[..., 3] / 255 / sprites.STRONGEST
        assert alpha.shape == (4, 6) and (sheet.steps, sheet.layers) == (2, 3)
        wanted = np.array([top, [half, 0]])
        assert np.abs(alpha[2:, 4:] - wanted).max() < 0.04
        assert not alpha[2:, :4].any() and not alpha[:2, 2:].any()
        first = alpha[:2, :2]
        assert abs(first[0, 0] - (0.08 if mask else 1.0)) < 0.04


def test_the_page_holds_these_sheets(found: cdkit.Explanation, page: str) -> None:
    """Two pictures; attention of both branches and a mask for cmac."""
    layers, panels, note = html_page.drawn(found)
    assert layers == (0, 1, 2) and not note
    shown = [(panel.title, panel.kind, panel.view) for panel in panels[1]]
    assert shown == [
        (branch, kind, view)
        for branch, kind in (
            ("original", "attention"), ("distorted", "attention"), ("distorted", "mask"),
        )
        for view in (0, 1)
    ]  # fmt: skip
    style = str(panels[1][4].style)
    (data,) = re.findall(r"base64,([^)]*)\)", style)
    alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))[..., 3]
    mask = found.answers[1].maps["distorted"].mask
    assert mask is not None
    cell = alpha[3 * 1 + 2, 3 * 2 + 1] / 255 / sprites.STRONGEST  # step 1, layer 2, token (2, 1)
    assert abs(cell - mask[1, 2, 7]) < 0.04
    assert style in page


def test_probabilities_stand_in_the_page(found: cdkit.Explanation, page: str) -> None:
    for number, answer in enumerate(found.answers):
        for at, step in enumerate(answer.steps):
            (panel,) = re.findall(rf'id="a{number}s{at}">(.*?)</section>', page, re.DOTALL)
            chosen = step.candidate(step.token)
            for column in answer.columns:
                assert f"<td>{chosen.probabilities[column]:.3f}<i" in panel
            assert panel.count("► chosen") == 1


def test_the_still_picture(found: cdkit.Explanation) -> None:
    image = Image.open(io.BytesIO(found.to_png()))
    assert image.width == 1000 and 300 < image.height < 3000
    assert len(np.unique(np.asarray(image.resize((80, 80)).convert("L")))) > 20


# ---- in a browser --------------------------------------------------------------------------------


@in_a_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(page: str, tmp_path: Path, width: int) -> None:
    shown = measured(tmp_path, page, width)
    assert shown["out"] == [] and shown["width"] == width


def dump(tmp_path: Path, page: str, question: str) -> str:
    """What a page says to a question in its own language, in a document of its own."""
    asked = page.replace(
        "</body>", f"<script>document.title = 'said ' + JSON.stringify({question})</script></body>"
    )
    done = browse(tmp_path, asked, "--dump-dom")
    (said,) = re.findall(r"<title>said (.*?)</title>", done.stdout)
    return str(said)


VISIBLE = "[...document.querySelectorAll('.step')].filter(e => e.offsetParent).map(e => e.id)"


@in_a_browser
def test_one_token_is_shown_without_the_script(page: str, tmp_path: Path) -> None:
    quiet = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    first = re.findall(r'id="a(\d+)t(\d+)" class="[^"]*" checked', page)
    assert len(first) == 1
    assert dump(tmp_path, quiet, VISIBLE) == f'["a{first[0][0]}s{first[0][1]}"]'
    moved = quiet.replace(' checked><label for="a', '><label for="a').replace(
        'id="a2t1" class="t1 a2"', 'id="a2t1" class="t1 a2" checked'
    )
    assert dump(tmp_path, moved, VISIBLE) == '["a2s1"]'


@in_a_browser
def test_arrow_keys_move_over_tokens_and_layers(page: str, tmp_path: Path) -> None:
    keys = """(() => {
      document.getElementById('a0t0').checked = true;
      for (const key of ['ArrowRight', 'ArrowRight', 'ArrowLeft', 'ArrowDown'])
        dispatchEvent(new KeyboardEvent('keydown', {key}));
      return [...document.querySelectorAll('input:checked')].map(e => e.id);
    })()"""
    assert dump(tmp_path, page, keys) == '["a0t1","l2"]'


@in_a_browser
def test_arrow_keys_that_have_nothing_to_move_scroll(tmp_path: Path) -> None:
    """No layer was traced. A prompt of any length leaves the answers on the screen."""
    bare = large(1, 1, 1)
    bare = replace(
        bare,
        answers=tuple(replace(answer, maps={}) for answer in bare.answers),
        layers=(),
        prompt="cat " * 4000,
    )
    asked = """(() => {
      const key = new KeyboardEvent('keydown', {key: 'ArrowDown', cancelable: true});
      return [dispatchEvent(key), document.querySelector('.prompt').offsetHeight < 400];
    })()"""
    page = bare.to_html()
    assert dump(tmp_path, page, asked) == "[true,true]" and "↑ ↓" not in page


@in_a_browser
def test_it_prints(page: str, tmp_path: Path) -> None:
    browse(tmp_path, page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    data = (tmp_path / "page.pdf").read_bytes()
    assert data.startswith(b"%PDF") and re.findall(rb"/Type\s*/Page\b", data)
    shown = measured(tmp_path, page.replace("@media print", "@media all"), 700)
    assert shown["out"] == [] and shown["width"] == 700


def test_a_large_explanation_is_of_torch_numbers() -> None:
    """The grid's cells are those of the picture, row by row."""
    grid = large(1, 1, 3).views[0].grid
    assert grid is not None and grid.tokens.equal(torch.arange(9).view(3, 3))
