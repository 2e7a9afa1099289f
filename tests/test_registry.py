"""Names to classes: taken names, strangers, near names, other packages, broken files."""

import importlib
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import cdkit
from cdkit.interfaces.distortion import DistortionStrategy
from cdkit.registry import Registry, unknown


class Blur(DistortionStrategy):
    """Never used, only registered."""


class Other(DistortionStrategy):
    """Likewise."""


def make(folder: str) -> Registry[DistortionStrategy]:
    return Registry(
        DistortionStrategy,
        what="distortion strategy",
        folder=folder,
        group="cdkit.tests.nothing",
    )


@pytest.fixture
def registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Registry[DistortionStrategy]]:
    """One entry, and an empty folder to look in."""
    (tmp_path / "cdkit_empty_folder").mkdir()
    (tmp_path / "cdkit_empty_folder" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = make("cdkit_empty_folder")
    registry.register("blur")(Blur)
    yield registry
    sys.modules.pop("cdkit_empty_folder", None)


def test_a_name_finds_its_class(registry: Registry[DistortionStrategy]) -> None:
    assert registry["blur"] is Blur and list(registry) == ["blur"] and len(registry) == 1
    assert registry.name_of(Blur) == "blur"


def test_a_taken_name_is_refused(registry: Registry[DistortionStrategy]) -> None:
    with pytest.raises(ValueError, match=r"'blur' is taken by .*Blur; give .*Other another name"):
        registry.register("blur")(Other)
    assert registry["blur"] is Blur


def test_a_stranger_is_refused(registry: Registry[DistortionStrategy]) -> None:
    with pytest.raises(TypeError, match=r"builtins.int must be a subclass of .*DistortionStrategy"):
        registry.register("int")(int)
    assert "int" not in registry


def test_a_misspelt_name_gets_a_hint(registry: Registry[DistortionStrategy]) -> None:
    message = "no distortion strategy is called 'blurr'. Did you mean 'blur'? There is: blur."
    with pytest.raises(LookupError, match=f"^{re.escape(message)}$"):
        registry["blurr"]
    with pytest.raises(cdkit.CdkitError, match=f"^{re.escape(message)}$"):
        registry["blurr"]
    with pytest.raises(LookupError, match=r"is called 'xyz'\. There is: blur\."):
        registry["xyz"]
    with pytest.raises(LookupError, match="Other is not registered as a distortion strategy"):
        registry.name_of(Other)


def test_a_long_list_of_names_is_left_to_the_command_that_prints_it() -> None:
    told = unknown("entry", "name7x", [f"name{i}" for i in range(101)])
    assert told.endswith("Did you mean 'name7'? There are 101 names; `cdkit list` prints them.")


def test_files_of_the_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cdkit_some_folder"
    folder.mkdir()
    (folder / "__init__.py").write_text("found = []\n")
    (folder / "one.py").write_text("import cdkit_some_folder\ncdkit_some_folder.found.append(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = make("cdkit_some_folder")
    assert "cdkit_some_folder" not in sys.modules  # nothing is imported before a look-up
    assert "x" not in registry
    assert sys.modules["cdkit_some_folder"].found == [1]


def test_a_broken_file_is_not_an_empty_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cdkit_broken_folder"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "bad.py").write_text("raise RuntimeError('broken file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = make("cdkit_broken_folder")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken file"):
            len(registry)


@pytest.mark.parametrize(
    ("given", "near"),
    [("VCD", "vcd"), ("POPE", "pope"), ("Value_Mean", "value_mean"), ("vdc", "vcd")],
)
def test_near_names_whatever_the_case(given: str, near: str) -> None:
    names = ["vcd", "pope", "value_mean"]
    assert f"Did you mean {near!r}?" in unknown("thing", given, names)


def test_a_broken_plugin_leaves_the_others(
    registry: Registry[DistortionStrategy], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cdkit_raises.py").write_text("raise RuntimeError('two\\nlines')\n")
    (tmp_path / "cdkit_exits.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "cdkit_fine.py").write_text("loaded = 1\n")
    values = ("cdkit_raises", "cdkit_exits", "cdkit_not_there", "cdkit_fine", "cdkit_fine:gone")

    def entries(group: str, _: object) -> list[EntryPoint]:
        return [EntryPoint(f"of_{value}", value, group) for value in values]

    monkeypatch.setattr("cdkit.registry.installed_entries", entries)
    for _ in range(2):
        assert list(registry) == ["blur"] and "cdkit_fine" in sys.modules
        assert [b.entry_point.split()[0] for b in registry.broken] == [
            "of_cdkit_raises",
            "of_cdkit_exits",
            "of_cdkit_not_there",
            "of_cdkit_fine:gone",
        ]
    with pytest.raises(cdkit.CdkitError) as caught:
        registry["mine"]
    told = str(caught.value)
    assert "\n" not in told and "There is: blur. Also, the plug-in of_cdkit_raises" in told
    assert "(RuntimeError: two lines)" in told and "No module named 'cdkit_not_there'" in told
    for name in ("cdkit_raises", "cdkit_exits", "cdkit_fine"):
        sys.modules.pop(name, None)


def test_the_first_look_up_from_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cdkit_slow_folder"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "one.py").write_text(
        "import time\ntime.sleep(0.2)\nimport sys\n"
        "registry = sys.modules['cdkit_slow_folder'].registry\n"
        "assert 'x' not in registry\n"  # a look-up while it is imported
        "registry.register('slow')(sys.modules['cdkit_slow_folder'].Blur)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = make("cdkit_slow_folder")
    package = importlib.import_module("cdkit_slow_folder")
    monkeypatch.setattr(package, "registry", registry, raising=False)
    monkeypatch.setattr(package, "Blur", Blur, raising=False)
    start = threading.Barrier(8)

    def look_up(_: int) -> type:
        start.wait()
        return registry["slow"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(look_up, range(8))) == [Blur] * 8


def test_entry_points_of_the_group_are_loaded(
    registry: Registry[DistortionStrategy], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def entries(group: str, _: object) -> list[EntryPoint]:
        asked.append(group)
        return [EntryPoint("anything", "colorsys", group)]

    sys.modules.pop("colorsys", None)
    monkeypatch.setattr("cdkit.registry.installed_entries", entries)
    assert list(registry) == ["blur"]
    assert asked == ["cdkit.tests.nothing"] and "colorsys" in sys.modules


REGISTRIES: list[tuple[Registry[Any], str]] = [
    (cdkit.DISTORTIONS, "value_mean_mask"),
    (cdkit.CALIBRATORS, "scaled_positions"),
    (cdkit.COMBINERS, "contrast"),
    (cdkit.ADAPTERS, "llava"),
    (cdkit.BENCHMARKS, "pope"),
    (cdkit.INTERVENTIONS, ""),
    (cdkit.READOUTS, ""),
]


@pytest.mark.parametrize(("registry", "name"), REGISTRIES, ids=lambda x: getattr(x, "what", x))
def test_every_registry_finds_its_own(registry: Registry[Any], name: str) -> None:
    if name:
        assert registry.name_of(registry[name]) == name
    for key, cls in registry.items():
        assert issubclass(cls, registry.base) and registry.name_of(cls) == key
        first = (cls.__doc__ or "").splitlines()[0]  # what `cdkit list` shows
        assert 10 < len(first) < 200 and not first.startswith(f"{cls.__name__}("), key


@dataclass(frozen=True)
class Mine(cdkit.PixelDistortion):
    """Registered by a notebook, without any file."""

    def distort(self, pixels, *, generator):  # type: ignore[no-untyped-def]
        return pixels


def test_a_class_can_be_registered_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    len(cdkit.DISTORTIONS)
    monkeypatch.setattr(cdkit.DISTORTIONS, "_classes", dict(cdkit.DISTORTIONS))
    cdkit.DISTORTIONS.register("mine")(Mine)
    assert cdkit.DISTORTIONS["mine"] is Mine
