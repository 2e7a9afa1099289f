"""A still picture of an explanation: for notebooks that are printed, and for what shows no HTML."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cdkit.explanation.explained import ExplainedPrompt, most_telling
from cdkit.explanation.sprites import ATTENTION, MASK, STRONGEST
from cdkit.explanation.summary import column_name, quoted, sentences

WIDTH, MARGIN, LINE = 1000, 28, 27
INK, SOFT, BAR, CARD = (27, 31, 38), (92, 99, 112), (143, 180, 232), (245, 246, 248)
SIDE = 300
"""Pixels of a picture under attention."""
ROWS = 6


def draw(found: ExplainedPrompt) -> bytes:
    """The sentences, the candidates of the most telling token, and its attention, as a PNG."""
    canvas = Image.new("RGB", (WIDTH, 4000), "white")
    pen, body, small = ImageDraw.Draw(canvas), _font(19), _font(15)
    y = MARGIN
    for paragraph in sentences(found) or ["The plain model's answer."]:
        y = _text(pen, paragraph, y, body, INK) + 8
    for answer in found.answers:
        y = _text(pen, f"{answer.name}: {answer.text or '(nothing)'}", y, body, SOFT) + 4
    number, at = most_telling(found.answers)
    answer = found.answers[number]
    if answer.steps:
        y = _table(pen, answer, at, y + 14, body, small)
        y = _maps(canvas, pen, found, answer, at, y + 14, small)
    canvas = canvas.crop((0, 0, WIDTH, y + MARGIN))
    with io.BytesIO() as file:
        canvas.save(file, "PNG", optimize=True)
        return file.getvalue()


def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError):  # a Pillow without FreeType has one size
        return ImageFont.load_default()


def _text(pen: Any, text: str, y: int, font: Any, colour: tuple[int, int, int]) -> int:
    """The text in lines that fit; returns where the next line begins."""
    line = ""
    for word in [*text.split(), None]:
        longer = f"{line} {word}".strip()
        if word is None or (line and pen.textlength(longer, font=font) > WIDTH - 2 * MARGIN):
            pen.text((MARGIN, y), line, fill=colour, font=font)
            y, line = y + LINE, word or ""
        else:
            line = longer
    return y


def _table(pen: Any, answer: Any, at: int, y: int, body: Any, small: Any) -> int:
    step = answer.steps[at]
    columns = [*answer.columns[:3], *answer.columns[3:][-1:]]
    wide = (WIDTH - 2 * MARGIN) // (len(columns) + 1)
    head = f"{answer.name}, token {at + 1} of {len(answer.steps)}"
    pen.text((MARGIN, y), head, fill=INK, font=body)
    y += LINE + 4
    for i, name in enumerate(columns):
        pen.text((MARGIN + (i + 1) * wide, y), column_name(answer, name), fill=SOFT, font=small)
    y += LINE - 4
    for one in step.shown(columns, ROWS):
        mark = " > chosen" if one.token == step.token else " x removed" if one.removed_by else ""
        pen.text((MARGIN, y), quoted(one.text) + mark, fill=INK, font=small)
        for i, name in enumerate(columns):
            left, p = MARGIN + (i + 1) * wide, one.probabilities[name]
            pen.text((left, y), f"{p:.3f}", fill=INK, font=small)
            pen.rectangle((left, y + 19, left + max(1, int(p * (wide - 24))), y + 22), fill=BAR)
        y += LINE
    return y


def _maps(
    canvas: Image.Image, pen: Any, found: ExplainedPrompt, answer: Any, at: int, y: int, font: Any
) -> int:
    """Attention and masks over the first picture that has places for its tokens."""
    view = next((own for own in found.views if own.grid is not None), None)
    grid = None if view is None else view.grid
    if view is None or grid is None or not answer.maps:
        return y
    asked: Sequence[int] = found.shown_layers or found.layers
    layer = asked[len(asked) // 2]
    index = found.layers.index(layer)
    cells = grid.tokens.numpy() + view.first
    x = MARGIN
    for branch, maps in answer.maps.items():
        sheets = [("attention", maps.attention, ATTENTION)]
        if maps.mask is not None:
            sheets.append(("mask", maps.mask, MASK))
        for kind, values, colour in sheets:
            if x + SIDE > WIDTH:
                break
            own = values[at, index]
            if kind == "attention":
                own = np.sqrt(own / max(float(own.max()), 1e-12))
            shown = _over(view.pixels, own[cells], grid.box, colour)
            canvas.paste(shown, (x, y + LINE))
            pen.text(
                (x, y),
                f"{column_name(answer, branch)}: {kind}, layer {layer}",
                fill=SOFT,
                font=font,
            )
            x += SIDE + 16
    return y + LINE + SIDE


def _over(pixels: Any, weights: Any, box: Any, colour: tuple[int, int, int]) -> Image.Image:
    """A grey picture with weights over it, in a square."""
    grey = Image.fromarray(pixels).convert("L").point(lambda v: 100 + 0.6 * v)
    size = np.array(grey.size) * SIDE / max(grey.size)
    small = grey.resize((max(1, round(size[0])), max(1, round(size[1])))).convert("RGB")
    top, left, bottom, right = box
    area = (
        round(left * small.width),
        round(top * small.height),
        round(right * small.width),
        round(bottom * small.height),
    )
    opacity = Image.fromarray((np.clip(weights, 0, 1) * 255 * STRONGEST).astype(np.uint8), "L")
    opacity = opacity.resize((area[2] - area[0], area[3] - area[1]), Image.Resampling.NEAREST)
    small.paste(Image.new("RGB", opacity.size, colour), area[:2], opacity)
    return small
