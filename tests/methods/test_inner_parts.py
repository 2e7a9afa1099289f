"""Parts that are parameters of other parts; the constraint; and configurations written before."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.methods.branch import Branch
from cdkit.methods.method import Method
from cdkit.methods.part_kinds import describe
from cdkit.methods.plain_data import parse_method

SELECTED = """
[combiner]
kind = "contrast"
[constraint]
kind = "plausibility"
[[branches]]
distortions = [{ kind = "value_mean_mask", selector = { kind = "top_share", share = 0.2 } }]
"""


def selector_of(method: cdkit.Method) -> dict[str, Any]:
    (distortion,) = method.branches[0].distortions
    told: dict[str, Any] = describe(distortion)["selector"]
    return told


def test_a_selector_from_a_file() -> None:
    method = parse_method(tomllib.loads(SELECTED))
    assert selector_of(method) == {"kind": "top_share", "share": 0.2, "scope": "call"}
    assert parse_method(method.to_dict()) == method and hash(method)


def test_places_of_inner_parts() -> None:
    places = [place for place, _ in cdkit.load("cmac").parts()]
    assert places == [
        "combiner",
        "constraint",
        "calibrator",
        "distorted.value_mean_mask",
        "distorted.value_mean_mask.selector",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "scope",
        "selector.scope",
        "above_mean.scope",
        "selector.above_mean.scope",
        "value_mean_mask.selector.scope",
        "distorted.value_mean_mask.selector.scope",
        "distorted.value_mean_mask.scope",
        "distorted.scope",
    ],
)
def test_names_of_an_inner_parameter(name: str) -> None:
    assert selector_of(cdkit.load("cmac", **{name: "row"}))["scope"] == "row"


def test_another_selector() -> None:
    for given in ("random_cells", {"kind": "random_cells"}, cdkit.SELECTORS["random_cells"]()):
        method = cdkit.load("cmac", selector=given)
        assert selector_of(method) == {"kind": "random_cells", "scope": "call"}
    assert replace(method, name="", summary="", source="") == replace(
        cdkit.load("random_mask"), name="", summary="", source=""
    )
    both = cdkit.load("cmac", selector="random_cells", scope="row", value_mean="scalar")
    assert selector_of(both)["scope"] == "row"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"selector": "strong"}, "selector: no cell selector is called 'strong'"),
        (
            {"selector": {"kind": "top_share", "shares": 1}},
            "is called 'shares'. Did you mean 'share'",
        ),
        ({"selector": {"scope": "row"}}, "selector must be a table with a kind, got {'scope'"),
        ({"selector": 3}, "selector must be a table with a kind, got 3"),
        (
            {"distorted.selector.stop": 3},
            "of cmac is called 'distorted.selector.stop'",
        ),
        ({"constraint": "x"}, "no parameter of cmac is called 'constraint'"),
    ],
)
def test_what_is_no_selector(given: dict[str, Any], message: str) -> None:
    with pytest.raises(cdkit.CdkitError) as error:
        cdkit.load("cmac", **given)
    assert message in str(error.value)


# ---- configurations written before selectors and constraints -------------------------------------


def parsed(text: str) -> tuple[Method, list[str]]:
    with pytest.warns(cdkit.CdkitWarning) as told:
        method = parse_method(tomllib.loads(text), source="mine")
    return method, [str(warning.message) for warning in told]


def test_a_scope_of_the_distortion() -> None:
    method, told = parsed(
        """
constraint = "none"
[combiner]
kind = "contrast"
[[branches]]
distortions = [{ kind = "attention_mask", scope = "head" }]
"""
    )
    assert selector_of(method) == {"kind": "above_mean", "scope": "head"}
    assert told == [
        "mine, branch 1, attention_mask: scope belongs to the selector now: write "
        "selector = { kind = 'above_mean', scope = 'head' }"
    ]


def test_a_distortion_that_became_a_selector() -> None:
    method, told = parsed(
        """
constraint = "none"
[combiner]
kind = "contrast"
[[branches]]
distortions = [{ kind = "random_mask", scope = "head" }]
"""
    )
    assert method.branches == cdkit.load("random_mask", scope="head").branches
    assert "write kind = 'value_mean_mask' with selector = { kind = 'random_cells' }" in told[0]


def test_a_beta_of_the_combiner() -> None:
    branches = '[[branches]]\ndistortions = [{ kind = "identical" }]\n'
    old = '[combiner]\nkind = "contrast"\nbeta = 0.3\non_empty = "original"\n' + branches
    method, told = parsed(old)
    assert describe(method.constraint) == {
        "kind": "plausibility",
        "beta": 0.3,
        "on_empty": "original",
    }
    assert told == [
        "mine: beta, on_empty of [combiner] belongs to [constraint] now: write [constraint] with "
        "kind = 'plausibility', beta = 0.3, on_empty = 'original'"
    ]
    method, told = parsed('[combiner]\nkind = "contrast"\n' + branches)
    assert method.constraint is None and "once had one with beta = 0.1 by default" in told[0]
    with pytest.warns(cdkit.CdkitWarning, match=r"combiner\.beta is now called constraint\.beta"):
        same = cdkit.load("cmac", **{"combiner.beta": 0.3})
    assert same == cdkit.load("cmac", beta=0.3)


@pytest.mark.parametrize(
    ("constraint", "distortion", "key"),
    [
        ('"none"', "", "beta"),
        ('{ kind = "plausibility", beta = 0.1 }', "", "beta"),
        ("", 'scope = "row", selector = { kind = "above_mean", scope = "call" }', "scope"),
    ],
)
def test_what_is_said_twice_is_refused(constraint: str, distortion: str, key: str) -> None:
    text = f"constraint = {constraint}" if constraint else 'constraint = "none"'
    text += '\n[combiner]\nkind = "contrast"\n' + ("beta = 0.3\n" if constraint else "")
    inside = distortion or 'selector = "above_mean"'
    text += f'[[branches]]\ndistortions = [{{ kind = "attention_mask", {inside} }}]\n'
    with pytest.raises(cdkit.CdkitError, match=f"is called '{key}'"):
        parse_method(tomllib.loads(text))


def test_no_constraint_is_said_by_name() -> None:
    method = parse_method({"name": "x", "combiner": {"kind": "sharpen"}})
    assert method.constraint is None and method.to_dict()["constraint"] == "none"
    contrast = replace(cdkit.load("vcd"), constraint=None)
    assert parse_method(contrast.to_dict()) == contrast  # without a warning
    with pytest.raises(cdkit.CdkitError, match="constraint must be a table with a kind, got 'no'"):
        parse_method({"combiner": {"kind": "sharpen"}, "constraint": "no"})


# ---- combiners and constraints -------------------------------------------------------------------


@dataclass(frozen=True)
class Own(cdkit.LogitCombiner):
    """Its alpha and its beta mean something of its own."""

    stateful: ClassVar[bool] = False
    alpha: float = 2.0
    beta: float = 0.5

    @property
    def is_identity(self) -> bool:
        return False

    def uses(self, name: str) -> bool:
        return False

    def combine(
        self, original: Tensor, others: Mapping[str, Tensor], *, step: int, state: cdkit.State
    ) -> tuple[Tensor, cdkit.State]:
        return original * self.alpha, state


def test_a_combiner_is_not_judged_by_the_names_of_its_fields() -> None:
    logits = torch.tensor([[2.0, 1.0, -3.0]])
    method = Method("own", Own())
    assert method.combine(logits, {}, step=0, state={})[0].equal(2 * logits)
    kept = replace(method, constraint=cdkit.load("plausibility", beta=0.2).constraint)
    combined, _ = kept.combine(logits, {}, step=0, state={})
    assert combined.tolist() == [[4.0, 2.0, float("-inf")]]
    branches = (Branch("x", cdkit.load("identical").branches[0].distortions),)
    with pytest.raises(cdkit.CdkitError, match="Own reads no other logits, so 'x' of own"):
        Method("own", Own(), branches)


def test_a_constraint_alone_is_something_to_do() -> None:
    assert not cdkit.load("plausibility").is_identity
    assert cdkit.load("plausibility", beta=0.0).is_identity
    assert replace(cdkit.load("plausibility"), constraint=None).is_identity
