"""Former module names keep importing, with a DeprecationWarning that names the new place.

Plug-ins imported interfaces from the modules that defined them. `import cdkit` installs a finder
that Python tries after all others, so it costs nothing where a module is found.
"""

import importlib
import pkgutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED: Mapping[str, tuple[str, ...]] = {
    "adapter": (
        "interfaces.model_adapter",
        "interfaces.adapter_lookup",
        "interfaces.chat_prompt",
        "probing.rotary",
    ),
    "benchmark": ("interfaces.benchmark", "interfaces.sample", "interfaces.tally"),
    "calibrator": ("interfaces.position_calibrator",),
    "combiner": ("interfaces.combiner", "interfaces.readout", "interfaces.constraint"),
    "config": ("methods.presets", "methods.plain_data", "methods.overrides"),
    "depth": ("interfaces.depth",),
    "logits": ("functional.logits",),
    "loop": ("interfaces.decoding_loop",),
    "method": (
        "methods.method",
        "methods.branch",
        "methods.part_kinds",
    ),
    "noise": ("functional.noise",),
    "part": ("interfaces.part",),
    "rotary": ("functional.rope", "probing.rotary"),
    "schedule": ("interfaces.schedule",),
    "segment": ("interfaces.segment",),
    "strategy": ("interfaces.distortion", "interfaces.intervention"),
    "trace": ("generation.trace",),
}
"""Former module of cdkit -> the modules that hold what it held."""
RENAMED: Mapping[str, str] = {
    "Decoding": "DecodingContext",
    "Found": "Hypothesis",
    "layers_that_turn": "layers_that_rotate",
    "Touch": "Modified",
}
"""Former name in one of these modules -> its present name."""
PLUG_INS = ("cdkit.models", "cdkit.strategies")
"""Folders whose modules now lie in a folder of theirs."""


class _OldNames(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        places: tuple[str, ...] = ()
        if package == "cdkit" and name in MOVED:
            places = tuple(f"cdkit.{place}" for place in MOVED[name])
        elif package in PLUG_INS:
            places = _within(package, name, path or ())
        return ModuleSpec(fullname, _Alias(places)) if places else None


def _within(package: str, name: str, path: Sequence[str]) -> tuple[str, ...]:
    """The module of that name in a folder of the package."""
    for folder in pkgutil.iter_modules(path):
        inside = [f"{parent}/{folder.name}" for parent in path]
        if folder.ispkg and any(module.name == name for module in pkgutil.iter_modules(inside)):
            return (f"{package}.{folder.name}.{name}",)
    return ()


class _Alias(Loader):
    """Loads a module whose attributes are those of the modules in `places`."""

    def __init__(self, places: tuple[str, ...]) -> None:
        self._places = places

    def exec_module(self, module: ModuleType) -> None:
        homes = [importlib.import_module(place) for place in self._places]
        homes.append(importlib.import_module("cdkit"))
        where = " and ".join(self._places)
        warnings.warn(
            f"{module.__name__} is now {where}; public names are best imported from cdkit itself",
            DeprecationWarning,
            stacklevel=2,
        )

        def attribute(name: str) -> Any:
            for home in homes:
                for known in (name, RENAMED.get(name, name)):
                    if not name.startswith("__") and hasattr(home, known):
                        return getattr(home, known)
            raise AttributeError(f"module {module.__name__!r}, now {where}, has no {name!r}")

        vars(module)["__getattr__"] = attribute


def install() -> None:
    """Let Python's import system find the former names, once."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.append(_OldNames())
