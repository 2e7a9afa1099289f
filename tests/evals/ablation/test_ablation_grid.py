"""Grids: what a TOML file may hold, and what is said about one that it may not."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cdkit.strategies
from cdkit.errors import CdkitError
from cdkit.evals.ablation import grid_toml, plan
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.runner.modes import DECODE, Decode
from cdkit.interfaces.vector_file import read_vectors

PRESETS = Path(cdkit.strategies.__path__[0]) / "presets"

POSITION = {"benchmark": "pope", "placement": "placement.json", "methods": ["plain"]}
SWEEP = {"benchmarks": ["pope"]}
POPE = {"type": "pope", "image_folder": "photos", "path": "questions.json"}


def table(**changes: Any) -> dict[str, Any]:
    return {"benchmarks": {"pope": dict(POPE)}, "methods": {"plain": {}, "cmac": {}}} | changes


def test_the_default_grid_is_the_two_ablations_with_controls() -> None:
    grid = grid_toml.read_grid()
    assert grid.world is not None and grid.world.images >= 150 and len(grid.seeds) == 3
    assert {"cmac_imd", "cmac_cmpc", "cmac", "vcd", "icd", "plausibility"} <= grid.methods.keys()
    assert {b.type for b in grid.benchmarks.values()} == {"pope", "chair", "mme"}
    named = {name for names in grid.tables.values() for name in names}
    assert named == grid.methods.keys()


def test_every_preset_is_in_the_methods_grid_or_left_out_with_a_reason() -> None:
    grid = grid_toml.read_grid("methods")
    there = {spec.preset for spec in grid.methods.values()} | grid.left_out.keys()
    assert there == {file.stem for file in PRESETS.glob("*.toml")}
    grouped = [name for names in grid.tables.values() for name in names]
    assert sorted(grouped) == sorted(grid.methods)


def test_the_directions_in_the_methods_grid_are_the_embedded_model_s() -> None:
    """A model that was trained anew needs new ones: the grid says how they are made."""
    model, _ = cdkit.load_model("micro")
    decoder = cdkit.adapter_for(model).decoder(model)
    grid = grid_toml.read_grid("methods")
    steered = {
        name: file for name, spec in grid.methods.items() for file in plan.method_of(spec).files
    }
    assert {"vti", "vti shuffled", "nullu", "nullu shuffled"} <= steered.keys()
    for name, file in steered.items():
        found = read_vectors(file)
        found.check(decoder, model.config.text_config.num_hidden_layers, file)
        assert found.manifest["shuffled"] == (0 if "shuffled" in name else None)


def test_the_methods_grid_decodes_in_every_mode_of_a_grid() -> None:
    grid = grid_toml.read_grid("methods")
    assert grid.decode == DECODE and len(grid.seeds) == 3
    assert {
        variant.name for variant in plan.variants(grid)
    } == grid.methods.keys()  # each runs somewhere
    assert any(not spec.decode or {*spec.decode} == {*DECODE} for spec in grid.benchmarks.values())


@pytest.mark.parametrize("name", grid_toml.packaged())
def test_quick_is_the_same_grid_but_smaller(name: str) -> None:
    grid, quick = grid_toml.read_grid(name), grid_toml.read_grid(name, quick=True)
    assert quick.methods == grid.methods
    if grid.world is not None:
        assert quick.world is not None
        assert quick.world.images < grid.world.images and quick.world.seed == grid.world.seed
    else:
        assert quick.limit is not None and grid.limit is None
    assert quick.benchmarks.keys() <= grid.benchmarks.keys()
    assert quick.decode == grid.decode and len(quick.seeds) < len(grid.seeds)


@pytest.mark.parametrize("name", grid_toml.packaged())
@pytest.mark.parametrize("quick", [False, True])
def test_a_resolved_grid_reads_back(name: str, quick: bool) -> None:
    grid = grid_toml.read_grid(name, quick=quick)
    assert grid_toml.parse(tomllib.loads(grid_toml.dumps(grid))) == grid


TEXT = st.text(st.characters(codec="utf-8"), max_size=9)
VALUES = st.one_of(
    st.integers(-9, 9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    TEXT,
)


@settings(max_examples=40)
@given(
    overrides=st.dictionaries(TEXT.filter(lambda key: key != "preset"), VALUES, max_size=4),
    seeds=st.lists(st.integers(0, 99), unique=True, min_size=1, max_size=4),
    values=st.lists(VALUES, min_size=1, max_size=4),
)
def test_any_grid_reads_back(
    overrides: dict[str, Any], seeds: list[int], values: list[Any]
) -> None:
    sweep = {"alpha": values, "benchmarks": ["pope"]}
    methods = {"plain": {}, "my method": overrides | {"preset": "cmac"}}
    grid = grid_toml.parse(table(methods=methods, seeds=seeds, sweeps={"my method": sweep}))
    assert grid_toml.parse(tomllib.loads(grid_toml.dumps(grid))) == grid


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sweep": {}}, "no key is called 'sweep'. Did you mean 'sweeps'?"),
        ({"seeds": [0, 0]}, "seeds must be different numbers, at least one"),
        ({"seeds": []}, "seeds must be different numbers, at least one"),
        ({"seeds": 3}, "seeds must be a list, got 3"),
        ({"seeds": [-1]}, "seeds must be a whole number from 0 on, got -1"),
        ({"decode": ["gredy"]}, "no decode mode is called 'gredy'. Did you mean 'greedy'?"),
        ({"temperature": 0.0}, "temperature must be a finite number > 0, got 0.0"),
        ({"resamples": 3}, "resamples must be a whole number from 100 on, got 3"),
        ({"dtype": "float8"}, "no dtype is called 'float8'"),
        ({"methods": {}}, "[methods] is empty: name at least one method"),
        ({"methods": []}, "[methods] must be a table of keys, got []"),
        ({"benchmarks": {}}, "at least one decode mode and one [benchmarks.NAME] or [bench.NAME]"),
        ({"benchmarks": {"pope": {"type": "pope"}}}, "needs the key 'image_folder'"),
        ({"world": {"image": 3}}, "[world]: no key is called 'image'. Did you mean 'images'?"),
        ({"world": {"confirmation": "yes"}}, "must be true or false, got 'yes'"),
        ({"world": {"images": 1}}, "images of [world] must be a whole number from 2 on, got 1"),
        ({"tables": {"mine": ["cmak"]}}, "no method of the grid is called 'cmak'. Did you mean"),
        ({"sweeps": {"cmak": {"benchmarks": []}}}, "no method of the grid is called 'cmak'"),
        ({"sweeps": {"cmac": {"alpha": [1.0]}}}, "[sweeps.cmac] needs the key 'benchmarks'"),
        ({"sweeps": {"cmac": {"alpha": 1.0, "benchmarks": []}}}, "alpha of [sweeps.cmac] must be"),
        ({"position": {"benchmark": "pope"}}, "[position] needs the key 'placement'"),
        ({"only": ["popes"]}, "no benchmark of the grid is called 'popes'. Did you mean 'pope'?"),
        ({"benchmarks": {"pope": POPE | {"path": "world:pope"}}}, "but the grid has no [world]"),
        ({"position": POSITION | {"placement": "world:p"}}, "[position] asks for 'world:p', but"),
        (
            {"position": POSITION | {"placement": 3}},
            "placement of [position] must be a text, got 3",
        ),
        ({"position": POSITION | {"benchmark": [1]}}, "benchmark of [position] must be a text"),
        ({"position": POSITION | {"methods": []}}, "methods of [position] is empty"),
        ({"position": POSITION | {"methods": "plain"}}, "methods of [position] must be a list"),
        ({"tables": {"mine": []}}, "mine of [tables] is empty"),
        ({"left_out": ["vcd"]}, "[left_out] must be a table of keys, got ['vcd']"),
        ({"left_out": {"vcd": ""}}, "vcd of [left_out] must be a text, got ''"),
        ({"left_out": {"cmac": "why not"}}, "cmac stands in [methods] and in [left_out]"),
        ({"sweeps": {"cmac": SWEEP | {"alpha": []}}}, "alpha of [sweeps.cmac] is empty"),
        ({"sweeps": {"cmac": SWEEP}}, "[sweeps.cmac] needs a parameter with its values"),
        (
            {"sweeps": {"cmac": {"alpha": [1.0], "benchmarks": []}}},
            "benchmarks of [sweeps.cmac] is empty",
        ),
        (
            {"decode": ["greedy"], "benchmarks": {"pope": POPE | {"decode": ["sample"]}}},
            "decode of [benchmarks.pope] narrows the grid's: no decode mode of the grid is called",
        ),
    ],
)
def test_each_fault_is_one_clear_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CdkitError) as told:
        grid_toml.parse(table(**changes))
    assert message in str(told.value)


def test_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    for text, message in (
        ("seeds = [", "is not TOML"),
        ("seed = 1", "no key is called 'seed'. Did you mean 'seeds'?"),
    ):
        file.write_text(text)
        with pytest.raises(CdkitError, match=r"grid\.toml.*" + message.replace("?", r"\?")):
            grid_toml.read_grid(file)
    with pytest.raises(CdkitError, match=r"cannot read the grid .*absent\.toml: No such file"):
        grid_toml.read_grid(tmp_path / "absent.toml")
    file.write_text("[quick]\n[methods.plain]\n")
    with pytest.raises(CdkitError, match=r"no \[quick\] section"):
        grid_toml.read_grid(file, quick=True)


def test_a_packaged_grid_by_its_name() -> None:
    assert (
        grid_toml.read_grid("default")
        == grid_toml.read_grid()
        == grid_toml.read_grid(grid_toml.CONFIGS / "default.toml")
    )
    with pytest.raises(CdkitError) as told:
        grid_toml.read_grid("method")
    assert str(told.value) == (
        "no packaged grid is called 'method'. Did you mean 'methods'? There is: cmac_chair, "
        "cmac_distortions, cmac_mme, cmac_modules, cmac_pope, default, methods. A grid of your own "
        "is a path to a .toml file"
    )


def test_methods_that_no_table_names_come_last() -> None:
    grid = grid_toml.parse(table(tables={"first": ["plain"]}))
    assert grid.sections() == {"first": ("plain",), "others": ("cmac",)}
    assert grid_toml.parse(table()).sections() == {"methods": ("plain", "cmac")}
    methods = {name: dict[str, Any]() for name in ("plain", "vcd", "cmac")}
    grid = grid_toml.parse(table(tables={"others": ["vcd"]}, methods=methods))
    assert grid.sections() == {"others": ("vcd", "plain", "cmac")}
    grid = grid_toml.parse(table(tables={"all": ["cmac", "plain"]}))
    assert grid.sections() == {"all": ("cmac", "plain")}


def test_a_benchmark_may_narrow_the_decode_modes() -> None:
    grid: Grid = grid_toml.parse(table(benchmarks={"pope": POPE | {"decode": ["greedy"]}}))
    assert grid.decodes(grid.benchmarks["pope"].decode) == (Decode("greedy"),)
    assert grid.decodes(()) == (Decode("greedy"), *(Decode("sample", seed) for seed in (0, 1, 2)))
    assert grid.decoded == {"greedy"}
