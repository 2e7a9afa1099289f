"""A package that is not ours, installed by pip: its strategy and its preset are found by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent / "package"

PROOF = """
import torch, cdkit
from cdkit.testing import check_state_intervention, check_strategy

assert "blur" in cdkit.DISTORTIONS and "diffusion_noise" in cdkit.DISTORTIONS
assert cdkit.presets()["blurred"] == "Contrast with a blurred image"
method = cdkit.load("blurred", size=7)
(branch,) = method.branches
(blur,) = branch.distortions
assert type(blur).__module__ == "cdkit_blur.blur" and blur.size == 7, blur
assert method.to_dict()["branches"][0]["distortions"] == [{"kind": "blur", "size": 7}]
check_strategy(blur)
try:
    cdkit.load("blured")
except cdkit.CdkitError as error:
    assert "Did you mean 'blurred'?" in str(error), error
else:
    raise AssertionError("a misspelt preset was found")
model, processor = cdkit.load_model("micro")
from PIL import Image
size = model.config.vision_config.image_size
image = Image.effect_noise((size, size), 80).convert("RGB")
prompt = cdkit.adapter_for(model).prompt("is there a cat ?", images=1, processor=processor)
inputs = processor(images=[image], text=[prompt], return_tensors="pt")
with cdkit.attach(model, method, trace=("logits",)) as run:
    model.generate(**inputs, max_new_tokens=2)
original, distorted = (run.trace.steps[1].logits[n] for n in ("original", "distorted"))
assert not torch.allclose(original, distorted)
damped = cdkit.load("damped", strength=0.3)
(damp,) = damped.state_interventions
assert type(damp).__module__ == "cdkit_blur.damp" and damp.strength == 0.3, damp
check_state_intervention(damp)
with cdkit.attach(model, damped, trace=("logits",)) as run:
    model.generate(**inputs, max_new_tokens=2)
assert not torch.allclose(run.trace.steps[1].logits["original"], original)
print("the plug-in works")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package installed; built from a copy, so that the checkout stays clean."""
    import shutil

    source = tmp_path_factory.mktemp("source") / "package"
    shutil.copytree(PACKAGE, source)
    target = tmp_path_factory.mktemp("site")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run(
        [*pip, "--disable-pip-version-check", "--quiet", "--target", str(target), str(source)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert (target / "cdkit_blur" / "presets" / "blurred.toml").is_file()
    return target


def python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    own = str(Path(__file__).resolve().parents[2])  # cdkit, where it is not installed
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, paths), own])}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd="/"
    )


def test_it_is_found_and_it_works(site: Path) -> None:
    ran = python(PROOF, site)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().endswith("the plug-in works")


def test_without_it_the_name_is_unknown() -> None:
    ran = python("import cdkit; cdkit.load('blurred')")
    assert ran.returncode != 0 and "no method is called 'blurred'" in ran.stderr


def test_the_command_line_lists_it(site: Path) -> None:
    ran = python(
        "from cdkit.evals.cli import main; import sys; sys.argv[1:] = ['list']; main()", site
    )
    assert ran.returncode == 0, ran.stderr
    assert "blurred" in ran.stdout and "Contrast with a blurred image" in " ".join(
        ran.stdout.split()
    )


BROKEN = """
import sys
from concurrent.futures import ThreadPoolExecutor
import cdkit

with ThreadPoolExecutor(8) as pool:  # the first look-up of this process
    names = ["cmac", "vcd", "icd", "cmac"] * 2
    assert [m.name for m in pool.map(cdkit.load, names)] == names
assert "torn" not in cdkit.presets() and "icd" in cdkit.presets()
for name in ("lost", "torn"):
    try:
        cdkit.load(name)
    except cdkit.CdkitError as error:
        print(error)
from cdkit.evals.cli import main
try:
    cdkit.load("cmac", selector="halv")
except cdkit.CdkitError as error:
    print(error)
sys.argv[1:] = ["list", "methods"]
try:
    main()
except SystemExit:
    sys.argv[2:] = ["strategies"]
    main()
finally:
    assert "cdkit_other" not in sys.modules  # a plug-in of another kind than what is listed
"""


HALF = """
import dataclasses
import cdkit

@cdkit.DISTORTIONS.register("half")
@dataclasses.dataclass(frozen=True)
class Half(cdkit.PixelDistortion):
    def distort(self, pixels, *, generator):
        return pixels

raise RuntimeError("half way")
"""


def test_a_broken_plugin_is_named_and_the_others_work(tmp_path: Path) -> None:
    package = tmp_path / "cdkit_lost"
    (package / "presets").mkdir(parents=True)
    (package / "__init__.py").write_text("import no_such_library\n")
    (tmp_path / "cdkit_torn").mkdir()
    (tmp_path / "cdkit_torn" / "__init__.py").touch()
    (tmp_path / "cdkit_torn" / "torn.toml").write_text("this is no TOML")
    (tmp_path / "cdkit_other.py").touch()
    (tmp_path / "cdkit_half.py").write_text(HALF)
    info = tmp_path / "cdkit_lost-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cdkit-lost\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text(
        "[cdkit.presets]\nlost = cdkit_lost.presets\ntorn = cdkit_torn\n"
        "[cdkit.strategies]\nhalf = cdkit_half\n[cdkit.benchmarks]\nother = cdkit_other\n"
    )
    ran = python(BROKEN, tmp_path)
    assert ran.returncode == 0, ran.stderr
    asked = " ".join(ran.stdout.split())
    for told in (asked, ran.stderr):  # where it is asked for, and in the list
        assert "lost = cdkit_lost.presets [cdkit.presets]" in told
        assert "cdkit-lost 2.5" in told and "No module named 'no_such_library'" in told
        assert "torn.toml is not valid TOML" in told
        assert told.count("half = cdkit_half [cdkit.strategies]") == 1
        assert "(RuntimeError: half way)" in told
    assert "cmac" in ran.stdout and "Traceback" not in ran.stderr


def test_a_preset_name_that_is_taken(site: Path, tmp_path: Path) -> None:
    """Two packages with one preset name: said, never resolved by chance."""
    import shutil

    second = tmp_path / "cdkit_vcd"
    (second / "presets").mkdir(parents=True)
    (second / "__init__.py").touch()
    (second / "presets" / "__init__.py").touch()
    shutil.copy(site / "cdkit_blur" / "presets" / "blurred.toml", second / "presets" / "vcd.toml")
    info = tmp_path / "cdkit_vcd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cdkit-vcd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cdkit.presets]\nvcd = cdkit_vcd.presets\n")
    ran = python("import cdkit; cdkit.load('vcd')", tmp_path)
    assert ran.returncode != 0 and "the preset 'vcd' is there twice" in ran.stderr
