"""A state intervention from outside that reads the image tokens out, in every way of running it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from parity.against import assert_close, generate
from parity.stock_hooks import changed, steps
from parity.tiny import IMAGE, WordTokenizer, batch, sample, tiny
from torch import Tensor

import cdkit
from cdkit.interfaces.cache_names import CACHE
from cdkit.methods.method import Method

SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 6, seed=52), sample(0, 4, seed=53, bos=False))
"""One image, two images, and one without a first token: in a batch all are padded."""
PLAIN = cdkit.load("plain").combiner
TOP, WORDS, EVERYWHERE = 4, (7, 30), ("original", "distorted")


@dataclass(frozen=True)
class Guided(cdkit.StateIntervention):
    """Adds image features, weighted by what each image token would say next.

    The weight is how undecided it is between its best words, times how probable it finds some words
    of interest: two reductions of published methods at once.
    """

    site: ClassVar[cdkit.Site] = "mlp"
    reads: ClassVar[frozenset[cdkit.StateReading]] = frozenset({"image_readout", "image_features"})
    switch: ClassVar[str] = "by"

    by: float = 2.0
    at: float = 1.0
    rows: cdkit.EditedRows = "predicting"
    layers: cdkit.Depth = (0.3, 1.0)
    branches: tuple[str, ...] = ("original",)

    def image_layer(self, count: int) -> int:
        return round(self.at * count)

    def read_image(self, logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
        def best(piece: Tensor) -> Tensor:
            chances = piece.softmax(-1).topk(TOP).values
            return -(chances * chances.log()).sum(-1) / math.log(TOP)

        return {
            "entropy": logits.each(best),
            "words": logits.each(lambda piece: piece.softmax(-1)[:, list(WORDS)]),
        }

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        kept, features, valid = states.image_readout, states.image_features, states.readout_valid
        assert features is not None and valid is not None
        weights = kept["entropy"] * (1 + kept["words"].amax(-1)) * valid
        weights = weights / weights.sum(-1, keepdim=True)
        added = (weights[..., None] * features).sum(1, keepdim=True)
        return states.states + self.by * added.to(states.states)


def alone(*parts: cdkit.StateIntervention) -> Method:
    return Method("alone", PLAIN, state_interventions=parts)


METHODS: Mapping[str, Method] = {
    "last layer": alone(Guided()),
    "inner layer": alone(Guided(at=0.34, rows="every"), Guided(at=0.0, rows="generated", by=1.0)),
    "cmac": replace(cdkit.load("cmac"), state_interventions=(Guided(branches=EVERYWHERE),)),
    "icd": replace(cdkit.load("icd"), state_interventions=(Guided(branches=EVERYWHERE),)),
    "vista": replace(
        (vista := cdkit.load("vista", bucket=(0.3, 1.0))),
        state_interventions=(*vista.state_interventions, Guided()),
    ),
}


def weights_of(model: Any, one: Any, passed: int) -> Tensor:
    """By the stock model alone: its states, its norm, its head."""
    inputs = batch([one])
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[passed]
        decoder = model.model.language_model
        # the last of Hugging Face's states are normed already
        states = states if passed == len(decoder.layers) else decoder.norm(states)
        chances = model.lm_head(states)[0][inputs["input_ids"][0] == IMAGE].softmax(-1)
    best = chances.sort(-1, descending=True).values[:, :TOP]
    weights = -(best * best.log()).sum(-1) / math.log(TOP)
    weights = weights * (1 + torch.maximum(chances[:, WORDS[0]], chances[:, WORDS[1]]))
    shares: Tensor = weights / weights.sum()
    return shares


@pytest.mark.parametrize("passed", [1, 3])
def test_against_the_stock_model(passed: int) -> None:
    """Left-padded, at the prompt and three later steps."""
    model = tiny(2)
    ran = generate(model, alone(Guided(at=passed / 3)), SAMPLES, pad=2)
    expected = []
    for one, tokens in zip(SAMPLES, ran.tokens, strict=True):
        weights = weights_of(model, one, passed)
        with torch.no_grad():
            features = model.get_image_features(pixel_values=one.pixels).pooler_output
        added = 2.0 * (weights[:, None] * torch.cat(list(features))).sum(0)

        def guide(layer: int, states: Tensor, given: Tensor, added: Tensor = added) -> Tensor:
            if layer < 1:
                return states
            last = states.clone()
            last[:, -1] = last[:, -1] + added
            return last

        with changed(model, mlp=guide):
            expected.append(steps(model, one, tokens.tolist())["original"])
    assert_close(ran.logits, {**ran.logits, "combined": torch.stack(expected)}, within=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "inner layer",
        "cmac",
        # each goes through the model seven times
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("last layer", "icd", "vista")),
    ],
)
def test_both_engines_agree_and_a_prompt_alone_too(name: str) -> None:
    fast, plain = (
        generate(tiny(2), METHODS[name], SAMPLES, pad=2, optimize=how) for how in (True, False)
    )
    assert_close(fast.logits, plain.logits, within=1e-9)
    stock = generate(
        tiny(2), replace(METHODS[name], state_interventions=(), prompt_branches=()), SAMPLES
    )
    assert not torch.equal(fast.logits["original"], stock.logits["original"])
    one = generate(tiny(2), METHODS[name], SAMPLES[1:2])
    have = {name: own[1:2] for name, own in fast.logits.items()}
    assert_close(have, one.logits, within=1e-9)


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3},
        # two seconds each
        pytest.param({"do_sample": True, "num_beams": 2}, marks=pytest.mark.slow),
        pytest.param({"do_sample": True}, marks=pytest.mark.slow),
    ],
    ids=["beam", "beam sample", "sample"],
)
def test_decode_modes(how: dict[str, Any]) -> None:
    tokens = []
    for optimize in (True, False):
        torch.manual_seed(3)
        ran = generate(
            tiny(2), METHODS["cmac"], SAMPLES, optimize=optimize, trace=(), steps=5, **how
        )
        tokens.append(ran.tokens.tolist())
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("how", [{"cache_implementation": "static"}, {"use_cache": False}])
def test_other_caches(how: dict[str, Any]) -> None:
    grown, other = (generate(tiny(2), METHODS["last layer"], SAMPLES, **x) for x in ({}, how))
    assert_close(other.logits, grown.logits, within=1e-9)


@pytest.mark.slow  # it goes back often: four seconds
def test_a_loop_of_its_own() -> None:
    """OPERA goes back, and copies rows: what was kept goes with them."""
    method = replace(cdkit.load("opera"), state_interventions=(Guided(),))
    tokens = []
    for optimize in (True, False):
        with cdkit.attach(tiny(2), method, processor=WordTokenizer(), optimize=optimize):
            ran = tiny(2).generate(**batch(SAMPLES), num_beams=3, max_new_tokens=6)
        tokens.append(ran.tolist())
    assert tokens[0] == tokens[1]


def test_branches_share_the_prompts_beginning() -> None:
    """The image tokens are read out before; what changes predicting tokens leaves the rest."""
    with cdkit.attach(tiny(2), METHODS["cmac"], processor=WordTokenizer()), torch.no_grad():
        output = tiny(2)(**batch(SAMPLES), logits_to_keep=1)
    assert getattr(output, CACHE).state.plan.shared > 0


def test_switched_off_it_is_the_stock_model() -> None:
    with cdkit.attach(tiny(2), alone(Guided(by=0.0))):
        off = tiny(2)(**batch(SAMPLES)).logits
    assert off.equal(tiny(2)(**batch(SAMPLES)).logits)


@dataclass(frozen=True)
class TooFar(Guided):
    """Reads after a layer that there is not."""

    def image_layer(self, count: int) -> int:
        return count + 1


@dataclass(frozen=True)
class OneNumber(Guided):
    """Keeps one number of all image tokens."""

    def read_image(self, logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
        return {"mean": logits.each(lambda piece: piece.amax(-1)).mean()[None]}


@dataclass(frozen=True)
class Faulty(Guided):
    """Returns what it is given, whatever that is."""

    layer: Any = 3
    keeps: Any = None
    makes: Any = None

    def image_layer(self, count: int) -> Any:
        return self.layer

    def read_image(self, logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
        made: Mapping[str, Tensor] = (self.keeps or super().read_image)(logits)
        return made

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return super().intervene(states) if self.makes is None else self.makes


@dataclass(frozen=True)
class Shown(cdkit.ImageReadout):
    """Gives what `change` makes of the first image token's logits."""

    name: ClassVar[str] = "image"

    change: Any = None

    def layer(self, count: int) -> int:
        return count

    def read_image(self, logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
        return {"logits": logits.each(lambda piece: piece)}

    def step_logits(self, step: cdkit.ImageStep) -> Any:
        return self.change(step.kept["logits"][:, 0])


def names_by_length(logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
    return {f"of {len(logits)}": logits.each(lambda piece: piece)}


def width_by_length(logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
    return {"first": logits.each(lambda piece: piece[:, : len(logits)])}


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (Faulty(layer=1.5), "after 1.5 layers, but the decoder has 3"),
        (
            Faulty(keeps=lambda logits: [1]),
            "read_image of Faulty returned list, and must",
        ),
        (Faulty(keeps=lambda logits: {"a": [1]}), "Faulty made a a list; it must be a tensor"),
        (Faulty(keeps=width_by_length), "kept first as a tensor of .* of one prompt and a tensor"),
        (Faulty(keeps=names_by_length), "kept of [0-9]+ of one prompt and of [0-9]+ of another"),
        (Faulty(makes=3), "intervene of Faulty returned int, and must return a tensor of shape"),
        (Shown(lambda x: x[:1, :1]), r"step_logits of Shown returned shape \(1, 1\), and must"),
        (Shown(lambda x: x.mean(0)), "step_logits of Shown returned shape"),
        (Shown(lambda x: x[:, None]), "step_logits of Shown returned shape"),
        (Shown(lambda x: x.tolist()), "step_logits of Shown returned list"),
        (Shown(lambda x: x * math.nan), "are not numbers, .* what ensemble and Shown return"),
    ],
)
def test_what_a_faulty_part_returns(part: Any, why: str) -> None:
    """Never an error from within, and never another row's numbers by broadcasting."""
    method = (
        replace(cdkit.load("revisit"), readout=part) if isinstance(part, Shown) else alone(part)
    )
    with pytest.raises(cdkit.CdkitError, match=why):
        generate(tiny(2), method, SAMPLES)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One error each, before the first token."""
    model = tiny(2)
    with pytest.raises(cdkit.CdkitError, match="after 4 layers, but the decoder has 3"):
        cdkit.attach(model, alone(TooFar()))
    with pytest.raises(cdkit.CdkitError, match="prefill_chunk_size=7: Guided reads the image tok"):
        generate(model, alone(Guided()), SAMPLES, prefill_chunk_size=7)
    with pytest.raises(cdkit.CdkitError, match=r"mean of shape \(1,\) out of 16 image tokens"):
        generate(model, alone(OneNumber()), SAMPLES)
    without = [replace(SAMPLES[0], ids=(1, 5, 6), pixels=SAMPLES[0].pixels[:0])]
    with pytest.raises(cdkit.CdkitError, match="prompt 0 has no image, and alone is about"):
        with cdkit.attach(model, alone(Guided())):
            model.generate(input_ids=torch.tensor([without[0].ids]))

    def headless(*args: Any, **kwargs: Any) -> Tensor:
        raise AttributeError("'Model' has no attribute 'lm_head'")

    monkeypatch.setattr(type(cdkit.adapter_for(model)), "logits", headless)
    for method in (alone(Guided()), cdkit.load("revisit")):
        with pytest.raises(cdkit.CdkitError, match=r"which does not work on LlavaForCond.*lm_head"):
            generate(model, method, SAMPLES)
