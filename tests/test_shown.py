"""What a session shows of cdkit's objects: short, and what a reader wants to know."""

import html
from typing import Any

import cdkit
from cdkit.html_table import html_table
from cdkit.interfaces.combiner import COMBINERS


def test_a_method_shows_parts_parameters_and_formulas() -> None:
    shown = repr(cdkit.load("cmac", alpha=1.5))
    assert "contrast(alpha=1.5" in shown
    assert "value_mean_mask" in shown
    assert "(1 + alpha) l - alpha l~" in shown


def test_a_name_in_another_case() -> None:
    assert cdkit.load("CMAC-IMD") == cdkit.load("cmac_imd")


def test_registries_and_completion() -> None:
    assert "contrast" in repr(COMBINERS)
    assert {"attach", "load", "load_model"} <= set(dir(cdkit))
    assert not [name for name in dir(cdkit) if name.startswith("_") and not name.endswith("__")]
    assert "importlib" not in dir(cdkit)


def test_attachments_and_traces_are_short(model: Any, processor: Any, make_inputs: Any) -> None:
    method = cdkit.load("cmac")
    trace = ("logits", "image_attention", "mask")
    with cdkit.attach(model, method, processor=processor, trace=trace) as run:
        assert ", attached" in repr(run)
        model.generate(**make_inputs("is there a cat ?"), max_new_tokens=4)
    assert "not attached" in repr(run)
    assert "steps" in repr(run.trace)
    assert "distorted" in repr(run.trace)
    assert len(repr(run.trace)) < 600


def test_a_notebook_shows_tables(model: Any, processor: Any) -> None:
    """The same in HTML, every name and formula escaped."""
    method = cdkit.load("cmac", alpha=1.5)
    shown = method._repr_html_()
    assert "<td" in shown and "value_mean_mask" in shown and "alpha=1.5" in shown
    assert method.summary in html.unescape(shown) and "(1 + alpha) l - alpha l~" in shown
    kinds = COMBINERS._repr_html_()
    assert kinds.count("<tr>") == 1 + len(COMBINERS) and "contrast" in kinds
    attached = cdkit.attach(model, method, processor=processor)._repr_html_()
    assert "not attached" in attached and shown in attached
    assert "<script>" not in html_table("<script>", ["<script>"], [["<script>"]])
