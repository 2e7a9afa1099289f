"""State interventions under every decode mode, beside other parts, in both engines."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from parity.against import assert_close, generate
from parity.tiny import IMAGE, WordTokenizer, batch, sample, tiny
from torch import Tensor

import cdkit
from cdkit.interfaces.cache_names import CACHE
from cdkit.methods.method import Method
from cdkit.methods.plain_data import parse_method

SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 6, seed=52), sample(0, 4, seed=53, bos=False))
PLAIN = cdkit.load("plain").combiner


@dataclass(frozen=True)
class Push(cdkit.StateIntervention):
    """Adds a vector to every state that it may change."""

    site: ClassVar[cdkit.Site] = "layer"
    switch: ClassVar[str] = "by"

    by: float = 0.5
    rows: cdkit.EditedRows = "every"
    layers: cdkit.Depth = cdkit.EVERY_LAYER
    branches: tuple[str, ...] = ("original",)

    def constants(self, model: cdkit.ModelFacts) -> Mapping[str, Tensor]:
        random = torch.Generator().manual_seed(model.depth)
        whole = torch.randn(model.depth, model.hidden_size, generator=random)
        return {"push": whole[list(model.layers)]}

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return states.states + self.by * states.constants["push"]


@dataclass(frozen=True)
class PushFeedForward(Push):
    """The same at the feed-forward network."""

    site: ClassVar[cdkit.Site] = "mlp"


@dataclass(frozen=True)
class ScaleHeads(cdkit.StateIntervention):
    """Scales the heads, each by another factor."""

    site: ClassVar[cdkit.Site] = "heads"

    rows: cdkit.EditedRows = "predicting"
    branches: tuple[str, ...] = ("original",)

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        heads = states.states.shape[2]
        return states.states * torch.linspace(0.5, 1.5, heads).to(states.states)[:, None]


@dataclass(frozen=True)
class Remember(cdkit.StateIntervention):
    """Adds what the prompt's last token was in another branch."""

    site: ClassVar[cdkit.Site] = "layer"
    reads: ClassVar[frozenset[cdkit.StateReading]] = frozenset({"prompt_states"})

    of: str = "distorted"
    rows: cdkit.EditedRows = "generated"
    branches: tuple[str, ...] = ("original",)

    @property
    def prompt_branches(self) -> tuple[str, ...]:
        return (self.of,)

    def prepare(self, prompt: cdkit.PromptStates) -> Mapping[str, Tensor]:
        return {"last": prompt.states[self.of]}

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return states.states + 0.5 * states.prepared["last"][:, None]


@dataclass(frozen=True)
class LookBack(cdkit.StateIntervention):
    """Mixes the image's mean feature in, by how much the heads attend to the image."""

    site: ClassVar[cdkit.Site] = "mlp"
    reads: ClassVar[frozenset[cdkit.StateReading]] = frozenset(
        {"image_features", "image_attention", "module_input", "layer_logits"}
    )

    rows: cdkit.EditedRows = "predicting"
    branches: tuple[str, ...] = ("original",)

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        assert states.image_features is not None and states.image_valid is not None
        assert states.image_weights is not None and states.layer_logits is not None
        assert states.module_input is not None
        count = states.image_valid.sum(-1)[:, None, None]
        mean = states.image_features.sum(1, keepdim=True) / count
        mass = states.image_weights.sum(-1).mean(-1)[:, None, None]
        sure = states.layer_logits.softmax(-1).amax(-1)[:, None, None]
        added = mass * mean + sure * states.module_input
        return states.states + added.to(states.states.dtype)


def alone(*parts: cdkit.StateIntervention) -> Method:
    return Method("alone", PLAIN, state_interventions=parts)


def beside(name: str, *parts: cdkit.StateIntervention) -> Method:
    return replace(cdkit.load(name), state_interventions=parts)


EVERYWHERE = ("original", "distorted")
METHODS: Mapping[str, Method] = {
    "layer": alone(Push()),
    "text": alone(Push(rows="text"), PushFeedForward(layers=(0.3, 0.7))),
    "heads": alone(ScaleHeads()),
    "generated": alone(Push(rows="generated")),
    "cmac": beside("cmac", PushFeedForward(rows="predicting", branches=EVERYWHERE), ScaleHeads()),
    "vcd": beside("vcd", Push(branches=("distorted",)), Remember()),
    "two prompts": beside("icd", Push(rows="text", branches=EVERYWHERE), Remember()),
    "image": beside("cmac", LookBack(branches=EVERYWHERE)),
    "vista": cdkit.load("vista", bucket=(0.3, 1.0)),
    "deco": replace(
        cdkit.load("deco", bucket=(0.3, 1.0)), state_interventions=(Push(rows="predicting"),)
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_both_engines_agree(name: str) -> None:
    """A padded batch: logits of every branch, at the prompt and later tokens."""
    fast, plain = (
        generate(tiny(2), METHODS[name], SAMPLES, pad=2, optimize=how) for how in (True, False)
    )
    assert torch.equal(fast.tokens, plain.tokens)
    assert_close(fast.logits, plain.logits, within=1e-9)


@pytest.mark.parametrize("name", ["cmac", "two prompts", "image", "vista"])
def test_a_prompt_alone_is_as_in_the_batch(name: str) -> None:
    together = generate(tiny(2), METHODS[name], SAMPLES, pad=2)
    for row, one in enumerate(SAMPLES):
        alone = generate(tiny(2), METHODS[name], [one])
        have = {name: own[row : row + 1] for name, own in together.logits.items()}
        assert_close(have, alone.logits, within=1e-9)


@pytest.mark.parametrize(
    "how",
    [{"num_beams": 3}, {"do_sample": True}, {"do_sample": True, "num_beams": 2}],
    ids=["beam", "sample", "beam sample"],
)
@pytest.mark.parametrize("name", ["cmac", "vista", "image"])
def test_decode_modes(name: str, how: dict[str, Any]) -> None:
    """Both engines choose the same tokens, of the same random numbers; beams keep their memory."""
    tokens = []
    for optimize in (True, False):
        torch.manual_seed(3)
        ran = generate(
            tiny(2), METHODS[name], SAMPLES, pad=2, optimize=optimize, trace=(), steps=5, **how
        )
        tokens.append(ran.tokens.tolist())
    assert tokens[0] == tokens[1]


def test_a_loop_of_its_own() -> None:
    """OPERA goes back, and copies rows: what was prepared goes with them."""
    steered = cdkit.load("vista", bucket=(0.3, 1.0))
    method = replace(
        cdkit.load("opera"),
        state_interventions=(*steered.state_interventions, Push(rows="generated")),
        prompt_branches=steered.prompt_branches,
    )
    model, tokens = tiny(2), []
    for optimize in (True, False):
        with cdkit.attach(model, method, processor=WordTokenizer(), optimize=optimize):
            tokens.append(model.generate(**batch(SAMPLES), num_beams=3, max_new_tokens=6).tolist())
    assert tokens[0] == tokens[1]
    with cdkit.attach(model, cdkit.load("opera")):
        other = model.generate(**batch(SAMPLES), num_beams=3, max_new_tokens=6)
    assert other.tolist() != tokens[0]


@pytest.mark.parametrize("name", ["layer", "text", "generated"])
def test_pieces(name: str) -> None:
    """A prompt in chunks, or no cache: the same tokens are changed."""
    whole = generate(tiny(2), METHODS[name], SAMPLES, pad=1)
    pieces: tuple[dict[str, Any], ...] = ({"prefill_chunk_size": 7}, {"use_cache": False})
    for how in pieces:
        split = generate(tiny(2), METHODS[name], SAMPLES, pad=1, **how)
        have = {"combined": split.logits["combined"][:, -4:]}  # the chunks before have none
        assert_close(have, {"combined": whole.logits["combined"]}, within=1e-9)


def test_without_a_cache_what_was_prepared_stays() -> None:
    whole = generate(tiny(2), METHODS["vista"], SAMPLES)
    again = generate(tiny(2), METHODS["vista"], SAMPLES, use_cache=False)
    assert_close(again.logits, whole.logits, within=1e-9)


def test_a_static_cache() -> None:
    for name in ("cmac", "vista"):
        grown = generate(tiny(2), METHODS[name], SAMPLES)
        fixed = generate(tiny(2), METHODS[name], SAMPLES, cache_implementation="static")
        assert_close(fixed.logits, grown.logits, within=1e-9)


def test_compiled_steps_run_uncompiled_and_say_so() -> None:
    from transformers import CompileConfig

    with pytest.warns(cdkit.CdkitWarning, match="Push changes hidden states between the modules"):
        generate(
            tiny(2),
            METHODS["layer"],
            SAMPLES[:1],
            steps=2,
            cache_implementation="static",
            compile_config=CompileConfig(),
        )


@torch.no_grad()
def test_a_plain_call_and_its_hidden_states() -> None:
    """A user's hooks and `output_hidden_states` see what the method left."""
    model, inputs = tiny(2), batch(SAMPLES[:1])
    stock = model(**inputs, output_hidden_states=True)
    method = alone(Push(rows="text", layers=(0.3, 0.7)))
    for optimize in (True, False):
        with cdkit.attach(model, method, optimize=optimize):
            seen: list[Tensor] = []
            layer = model.model.language_model.layers[1]
            handle = layer.register_forward_hook(
                lambda module, given, output, seen=seen: seen.append(output)
            )
            pushed = model(**inputs, output_hidden_states=True)
            handle.remove()
        moved = pushed.hidden_states[2] - stock.hidden_states[2]
        text = inputs["input_ids"][0] != IMAGE
        assert seen[0].equal(pushed.hidden_states[2])
        assert moved[0][~text].eq(0).all() and moved[0][text].ne(0).any(-1).all()
        assert not pushed.logits.equal(stock.logits)
    assert model(**inputs).logits.equal(stock.logits)


def hooks_of(model: Any) -> list[tuple[int, int]]:
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


def test_off_it_is_the_stock_model_and_it_leaves_no_hook() -> None:
    model, inputs = tiny(2), batch(SAMPLES, pad=2)
    given: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}
    given |= {"return_dict_in_generate": True}
    stock, before = model.generate(**inputs, **given), hooks_of(model)
    off = cdkit.load("vista", strength=0.0, gamma=0.0)
    assert off.live_state_interventions == ()
    for method, optimize in ((off, True), (off, False), (alone(Push(by=0.0)), True)):
        with cdkit.attach(model, method, optimize=optimize):
            ran = model.generate(**inputs, **given)
            # the plain algorithm reads out layers, used or not
            assert hooks_of(model) == before or not optimize
        for own, wanted in zip(ran.logits, stock.logits, strict=True):
            assert own.equal(wanted)
    with cdkit.attach(model, METHODS["image"]):
        assert hooks_of(model) != before
    assert hooks_of(model) == before
    again = model.generate(**inputs, **given)
    assert all(a.equal(b) for a, b in zip(again.logits, stock.logits, strict=True))


def test_branches_share_the_prompts_beginning_where_nothing_changes_it() -> None:
    shared = {}
    for rows in ("every", "predicting"):
        part = Push(rows=rows, branches=EVERYWHERE)
        method = beside("cmac", part)
        with cdkit.attach(tiny(2), method, processor=WordTokenizer()) as run:
            inputs = batch(SAMPLES)
            with torch.no_grad():
                output = tiny(2)(**inputs, logits_to_keep=1)
            shared[rows] = getattr(output, CACHE).state.plan.shared
        assert run.method is method
    assert shared["every"] == 0 < shared["predicting"]


REFUSED: Mapping[str, tuple[Any, str]] = {
    "a loop that may put several tokens into a call": (
        lambda: beside("opera", LookBack()),
        "over_trust may put several tokens of an answer into one call of the decoder, and LookBack",
    ),
    "no branch": (
        lambda: alone(Push(branches=())),
        "Push acts on no branch, but alone has original",
    ),
    "a branch that is not there": (
        lambda: alone(Push(branches=("text",))),
        "Push acts on branch 'text', but alone has original",
    ),
    "states of a branch that is not there": (
        lambda: alone(Remember("text")),
        "Remember reads the prompt's states in branch 'text', but alone has original: give it "
        r"that branch in \[\[prompt_branches\]\]",
    ),
    "a prompt branch for nothing": (
        lambda: replace(cdkit.load("vista"), state_interventions=(Push(),)),
        "no state intervention of vista reads the states of prompt branch 'without_image'",
    ),
    "the image of a branch that has none": (
        lambda: beside("no_image", LookBack(branches=EVERYWHERE)),
        "LookBack reads the image, which branch 'distorted' does not see",
    ),
    "no layer": (
        lambda: cdkit.load("vista", layers=(0.5, 0.5)),
        r"layers must be two shares of the depth, 0 <= first < last <= 1, got \[0.5, 0.5\]",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_a_method_refuses(why: str) -> None:
    make, message = REFUSED[why]
    with pytest.raises(cdkit.CdkitError, match=message):
        make()


@dataclass(frozen=True)
class Constant(Push):
    """Has constants for one layer, whatever the model."""

    def constants(self, model: cdkit.ModelFacts) -> Mapping[str, Tensor]:
        return {"push": torch.zeros(1, model.hidden_size)}


@dataclass(frozen=True)
class OfOtherModel(Push):
    """Has a file of another model."""

    def constants(self, model: cdkit.ModelFacts) -> Mapping[str, Tensor]:
        raise cdkit.CdkitError(f"the file is of another model than {model.model_type}")


def test_what_attach_refuses() -> None:
    model, before = tiny(2), hooks_of(tiny(2))
    with pytest.raises(cdkit.CdkitError, match="first axis must be the 3 layers in which it acts"):
        cdkit.attach(model, alone(Constant()))
    with pytest.raises(cdkit.CdkitError, match="the file is of another model than llava"):
        cdkit.attach(model, alone(OfOtherModel()))
    assert hooks_of(model) == before


def test_what_a_call_refuses() -> None:
    for part, why in (
        (LookBack(), "LookBack reads the image tokens' embeddings"),
        (ReadsHeads(), "ReadsHeads depends on all text rows"),
    ):
        with pytest.raises(cdkit.CdkitError, match=f"prefill_chunk_size=7: {why}"):
            generate(tiny(2), alone(part), SAMPLES, prefill_chunk_size=7)
    with pytest.raises(cdkit.CdkitError, match="visual_steering reads the states of the prompt"):
        generate(tiny(2), METHODS["vista"], SAMPLES, prefill_chunk_size=7)
    with pytest.raises(cdkit.CdkitError, match="alone cannot run with use_cache=False: ReadsHeads"):
        generate(tiny(2), alone(ReadsHeads()), SAMPLES, use_cache=False)
    ends = [sample(3, 0, seed=5)]
    with pytest.raises(cdkit.CdkitError, match="prompt 0 ends with an image"):
        generate(tiny(2), alone(ReadsHeads()), ends)


@dataclass(frozen=True)
class ReadsHeads(ScaleHeads):
    """Reads the attention as well."""

    reads: ClassVar[frozenset[cdkit.StateReading]] = frozenset({"image_attention"})


def test_a_method_with_them_is_written_and_read() -> None:
    method = cdkit.load("vista", strength=0.3, **{"combiner.gamma": 0.2})
    assert parse_method(method.to_dict()) == method
    (part,) = method.state_interventions
    assert part.strength == 0.3 and method.prompt_branches[0].name == "without_image"  # type: ignore[attr-defined]
    assert dict(method.parts())["state_interventions.visual_steering"] is part
