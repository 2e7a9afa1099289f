"""A configuration of which a part would do nothing is refused; what noise two parts share."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.functional.noise import purpose_of
from cdkit.methods.branch import Branch
from cdkit.methods.method import Method
from cdkit.strategies.combiners.layer_contrast import LayerContrast
from cdkit.strategies.combiners.sharpen import Sharpen
from cdkit.strategies.distortions.diffusion_noise import DiffusionNoise
from cdkit.strategies.distortions.no_image import NoImage
from cdkit.strategies.distortions.random_transform import RandomTransform
from cdkit.strategies.distortions.token_pruning import TokenPruning
from cdkit.strategies.interventions.image_amplification import ImageAmplification
from cdkit.strategies.readouts.premature_layers import PrematureLayers

NOISE = Branch("noise", (DiffusionNoise(),))
BLIND = Branch("blind", (NoImage(),))
CONTRAST = cdkit.load("vcd").combiner
MakeInputs = Callable[..., dict[str, Tensor]]

REFUSED: dict[str, Callable[[], object]] = {
    "layer_contrast needs other logits, but x has no branch and no readout": (
        lambda: Method("x", LayerContrast())
    ),
    "sharpen reads no other logits, so 'noise' of x would do nothing": (
        lambda: Method("x", Sharpen(), branches=(NOISE,))
    ),
    "sharpen reads no other logits, so 'readout' of x would do nothing": (
        lambda: Method("x", Sharpen(), readout=PrematureLayers())
    ),
    "no_image takes the image out, so diffusion_noise would do nothing": (
        lambda: Branch("x", (NoImage(), DiffusionNoise()))
    ),
    "no_image takes the image out, so token_pruning would do nothing": (
        lambda: Branch("x", (TokenPruning(), NoImage()))
    ),
    "image_amplification acts on no branch that sees the image: name some of original$": (
        lambda: Method(
            "x",
            CONTRAST,
            branches=(BLIND,),
            interventions=(ImageAmplification(branches=("blind",)),),
        )
    ),
    "image_amplification acts on no branch": (
        lambda: Method("x", CONTRAST, (NOISE,), interventions=(ImageAmplification(branches=()),))
    ),
}


@dataclass(frozen=True)
class ItsOwnLogits(cdkit.LogitCombiner):
    """Needs no branch, whatever its parameter is called."""

    stateful: ClassVar[bool] = False

    alpha: float = 1.0

    @property
    def is_identity(self) -> bool:
        return self.alpha == 1

    def uses(self, name: str) -> bool:
        return False

    def combine(
        self, original: Tensor, others: Mapping[str, Tensor], *, step: int, state: cdkit.State
    ) -> tuple[Tensor, cdkit.State]:
        return self.alpha * original, state


def test_no_parameter_is_known_by_its_name() -> None:
    """Whether a combiner needs a branch is what it says of itself, as `switch` and `uses`."""
    for alpha in (0.5, 1.0):
        method = Method("x", ItsOwnLogits(alpha))
        assert method.is_identity == (alpha == 1)
    with pytest.raises(cdkit.CdkitError, match="ItsOwnLogits reads no other logits, so 'noise'"):
        Method("x", ItsOwnLogits(), branches=(NOISE,))


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=message):
        REFUSED[message]()


def test_names_of_layers(model: Any) -> None:
    """They are known where the depth is: when the method meets its model."""
    branch = Branch("layer_0", (DiffusionNoise(),))
    clash = Method("x", LayerContrast(), (branch,), readout=PrematureLayers())
    unknown = Method(
        "x",
        replace(CONTRAST, alphas=(("layer_9", 1.0),)),  # type: ignore[type-var]
        readout=PrematureLayers(),
    )
    for method, told in (
        (clash, "branch 'layer_0' of x is called like a layer that is read out"),
        (unknown, "alphas names 'layer_9', but x has layer_0"),
    ):
        with pytest.raises(cdkit.CdkitError, match=told), cdkit.attach(model, method):
            pass


@pytest.mark.parametrize(("alpha", "read"), [(0.0, False), (0.6, True)])
def test_a_readout_that_nobody_reads_is_not_run(alpha: float, read: bool, model: Any) -> None:
    layers = model.model.language_model.layers
    before = [len(layer._forward_hooks) for layer in layers]  # transformers leaves some of its own
    with cdkit.attach(model, cdkit.load("deco", alpha=alpha)):
        now = [len(layer._forward_hooks) for layer in layers]
        assert any(n > b for n, b in zip(now, before, strict=True)) == read


@pytest.mark.parametrize("kind", [DiffusionNoise, RandomTransform])
def test_two_of_a_kind_draw_alike_unless_told(
    kind: type, model: Any, processor: Any, make_inputs: MakeInputs
) -> None:
    assert purpose_of(kind()) == kind.__name__  # the numbers that there were before `draw`
    same = {}
    for draw in (0, 1):
        branches = (Branch("a", (kind(),)), Branch("b", (kind(draw=draw),)))
        method = Method("x", CONTRAST, branches)
        with cdkit.attach(model, method, processor=processor, trace=("logits",)) as run:
            model.generate(**make_inputs("w1"), max_new_tokens=1)
        logits = run.trace.steps[0].logits
        same[draw] = torch.allclose(logits["a"], logits["b"], rtol=0, atol=1e-9)
    assert same == {0: True, 1: False}
    with pytest.raises(cdkit.CdkitError, match="draw must be 0 or more, got -1"):
        kind(draw=-1)


def test_colours_are_those_of_the_processor(
    model: Any, processor: Any, make_inputs: MakeInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a transform would take the colours of another processor's pixels for its own."""
    method = Method(
        "x", CONTRAST, (Branch("a", (RandomTransform(transforms=("colour_jitter",)),)),)
    )
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)
    monkeypatch.setattr(processor.image_processor, "image_mean", list(mean))
    monkeypatch.setattr(processor.image_processor, "image_std", list(std))
    told = RandomTransform(transforms=("colour_jitter",), mean=mean, std=std)
    logits = []
    for distortion, given in ((None, processor), (told, None), (None, None)):
        own = method if distortion is None else Method("x", CONTRAST, (Branch("a", (distortion,)),))
        with cdkit.attach(model, own, processor=given, trace=("logits",)) as run:
            model.generate(**make_inputs("w1"), max_new_tokens=1)
        logits.append(run.trace.steps[0].logits["a"])
    assert logits[0].equal(logits[1]) and not torch.allclose(logits[0], logits[2])


LISTS = {
    "Method('x', Contrast(alphas=[('noise', 1.0)]), (Branch('noise', (DiffusionNoise(),)),))": (
        "x cannot be hashed"
    ),
    "TokenPruning(layers=[0.0, 1.0])": "layers must be two shares of the depth, got [0.0, 1.0]",
}


def test_lists_where_tuples_belong() -> None:
    """In a process of its own: here, jaxtyping's hook would be quicker."""
    code = """
from cdkit import Branch, CdkitError, Method
from cdkit.strategies.combiners.contrast import Contrast
from cdkit.strategies.distortions.diffusion_noise import DiffusionNoise
from cdkit.strategies.distortions.token_pruning import TokenPruning
"""
    for call in LISTS:
        code += f"""
try:
    {call}
except CdkitError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for line, told in zip(done.stdout.splitlines(), LISTS.values(), strict=True):
        assert line.startswith(told)
