"""Several methods as one: what joins, what is refused, and what comes out."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.against import assert_close, beta_of, generate
from parity.reference import apply_constraint
from parity.tiny import sample, tiny

import cdkit
from cdkit.methods.plain_data import parse_method
from cdkit.methods.presets import method_files

METHODS = {name: cdkit.load(name) for name in cdkit.presets()}
SAMPLES = (sample(3, 5, seed=31), sample(2, 4, seed=32))


def bare(method: cdkit.Method) -> cdkit.Method:
    """Without what describes it."""
    return replace(method, name="", summary="", source="")


@pytest.mark.parametrize("name", METHODS)
def test_nothing_and_a_method_are_the_method(name: str) -> None:
    own, plain = METHODS[name], METHODS["plain"]
    if own.is_identity:
        return
    for pair in ((plain, own), (own, plain)):
        made = bare(cdkit.compose(*pair))
        # where the method itself rules nothing out, both ways to say so are the same
        if own.constraint is None or own.constraint.is_identity:
            made = replace(made, constraint=own.constraint)
        live = replace(own, branches=own.branches if own.live_branches else ())
        assert made == bare(live)


def test_a_pair_is_refused_at_once_or_joins_all_parts() -> None:
    joined = 0
    pairs = itertools.permutations(METHODS.items(), 2)
    for (first, a), (second, b) in itertools.islice(pairs, 0, None, 5):  # of thousands
        try:
            made = cdkit.compose(a, b)
        except cdkit.CdkitError as error:
            assert f"cannot put {first} and {second} together: " in str(error)
            with pytest.raises(cdkit.CdkitError):
                cdkit.compose(b, a)
            continue
        joined += 1
        assert made.name == f"{first}+{second}"
        for own in (a, b):
            assert set(map(type, own.interventions)) <= set(map(type, made.interventions))
            assert set(own.state_interventions) <= set(made.state_interventions) or own.branches
            assert set(own.prompt_branches) <= set(made.prompt_branches)
            assert {d for x in own.live_branches for d in x.distortions} <= {
                d for x in made.live_branches for d in x.distortions
            }
            assert own.loop in (None, made.loop) and own.readout in (None, made.readout)
            if own.calibrator is not None and not own.calibrator.is_identity:
                assert made.calibrator == own.calibrator
            if own.constraint is not None and not own.constraint.is_identity:
                assert made.constraint == own.constraint
            for branch in own.live_branches:
                (same,) = [x for x in made.branches if x.distortions == branch.distortions][:1]
                assert made.combiner.weight(same.name) == own.combiner.weight(branch.name)
        assert parse_method(made.to_dict()) == made
    assert joined > len(METHODS)


def test_branches_of_one_name_are_refused() -> None:
    first = cdkit.load("vdd_none")
    second = cdkit.load("icd")
    both = [
        replace(method, branches=tuple(replace(b, name="text") for b in method.branches))
        for method in (replace(first, constraint=second.constraint), second)
    ]
    with pytest.raises(cdkit.CdkitError, match="both have a branch 'text'"):
        cdkit.compose(*both)


def test_two_contrasts() -> None:
    made = cdkit.load("cmac+vcd")
    assert [branch.name for branch in made.branches] == ["cmac", "vcd"]
    runs = [generate(tiny(2), method, SAMPLES) for method in (made, METHODS["cmac_vcd"])]
    assert torch.equal(runs[0].tokens, runs[1].tokens)
    have, want = ({"combined": ran.logits["combined"]} for ran in runs)
    assert_close(have, want, within=1e-9)


@pytest.mark.parametrize("name", ["vcd+flb", "flb+vcd"])
def test_a_combiner_on_what_the_other_makes(name: str) -> None:
    made = cdkit.load(name)
    ran = generate(tiny(2), made, SAMPLES)
    contrasted = 2 * ran.logits["original"] - ran.logits["distorted"]
    steps = torch.arange(contrasted.shape[1], dtype=contrasted.dtype)
    weight = 0.3 * (1 - (-0.05 * steps).exp())
    want = contrasted + weight[None, :, None] * contrasted[:, :1]
    want = apply_constraint(want, ran.logits["original"], beta_of(made))
    assert_close({"combined": ran.logits["combined"]}, {"combined": want}, within=1e-8)


@pytest.mark.parametrize("name", ["cmac+vista", "vista+cmac"])
def test_branches_are_contrasted_with_what_layers_say(name: str) -> None:
    made: Any = cdkit.load(name, bucket=(0.3, 1.0))
    assert made.combiner.uses("distorted") and made.combiner.weight("distorted") == 3.0
    assert [part.branches for part in made.state_interventions] == [("original",)]
    ran = generate(tiny(2), made, SAMPLES)
    layers = [
        x for key, x in ran.logits.items() if key not in ("original", "distorted", "combined")
    ]
    assert layers
    mixed = 0.7 * ran.logits["original"] + 0.3 * torch.stack(layers).mean(0)
    want = apply_constraint(
        4 * mixed - 3 * ran.logits["distorted"], ran.logits["original"], beta_of(made)
    )
    assert_close({"combined": ran.logits["combined"]}, {"combined": want}, within=1e-8)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cmac+bapa", r"both bring a calibrator \(scaled_positions\(gamma = 2.0.*balanced_posit"),
        ("cmac+vdd", r"both bring a constraint \(plausibility\(beta = 0.1.*beta = 0.2"),
        ("dola+deco", "by layer_contrast and by layer_correction, which do not join"),
        ("m3id+vcd", "growth of m3id would scale the alpha of vcd, too"),
        ("opera+flb", "over_trust takes tokens back"),
        ("cmac+cmac", "both are the same method"),
        ("pai+vcd+pai", "cannot put pai.vcd and pai together"),
        ("vdd+vdd_none", r"both contrast with the same branch \(no_image\)"),
        (
            "vhr+spin+vhr",
            r"cannot put vhr.spin and vhr together: both have the intervention head_r",
        ),
        ("cmac+", "NAME.NAME, got 'cmac.'"),
        ("cmac+vcdx", "no method is called 'vcdx'. Did you mean 'vcd'"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, why: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=why):
        cdkit.load(name)


def test_two_that_change_hidden_states() -> None:
    """The branch that both read runs once for the prompt; each has the effect that it has alone."""
    made = cdkit.load("vhr+vista", bucket=(0.3, 1.0))
    assert [branch.name for branch in made.prompt_branches] == ["without_image"]
    both, plain = (
        generate(tiny(2), made, SAMPLES, optimize=optimize).logits for optimize in (True, False)
    )
    assert_close(both, plain, within=1e-9)
    for alone in (cdkit.load("vhr"), cdkit.load("vista", bucket=(0.3, 1.0))):
        other = generate(tiny(2), alone, SAMPLES).logits["original"][:, 0]
        assert ((both["original"][:, 0] - other).abs().amax(-1) > 1e-3).all()


def test_a_branch_whose_states_are_read_keeps_its_name() -> None:
    steered = cdkit.load("vista")
    part: Any = steered.state_interventions[0]
    contrasted = replace(
        cdkit.load("vcd"), state_interventions=(replace(part, without="distorted"),)
    )
    with pytest.raises(cdkit.CdkitError, match="whose states visual_steering of vcd reads"):
        cdkit.compose(contrasted, METHODS["cmac"])
    noisy = replace(steered.prompt_branches[0], distortions=METHODS["vcd"].branches[0].distortions)
    other = replace(METHODS["vhr"], prompt_branches=(noisy,))
    with pytest.raises(cdkit.CdkitError, match="run a branch 'without_image' for the prompt"):
        cdkit.compose(steered, other)


def test_parameters_of_a_composed_method() -> None:
    made: Any = cdkit.load("cmac+vcd", gamma=3.0, **{"vcd.step": 100})
    assert made.calibrator.gamma == 3.0 and made.branches[1].distortions[0].step == 100


def test_a_file_that_lists_methods(tmp_path: Path) -> None:
    path = tmp_path / "two+more.toml"
    path.write_text('summary = "Ours"\ncompose = ["cmac", { method = "vcd", alpha = 0.5 }]\n')
    made = cdkit.load(path)
    assert (made.name, made.summary) == ("two+more", "Ours")
    assert bare(made) == bare(cdkit.compose(cdkit.load("cmac"), cdkit.load("vcd", alpha=0.5)))
    assert method_files(path) == (path,) and method_files("cmac+vcd") == ()
    two = path.rename(tmp_path / "two.toml")
    assert method_files(f"gift+{two}") == (two,)
    assert cdkit.load(f"gift+{two}").interventions == cdkit.load("gift").interventions
    for wrong in ("compose = []", "compose = [1]", 'compose = ["vcd"]\ncombiner = 1'):
        path.write_text(wrong)
        with pytest.raises(cdkit.CdkitError, match="compose"):
            cdkit.load(path)
