"""models/README.md, made from the adapters: `python -m cdkit.evals.pages.models_readme`."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cdkit
from cdkit.evals.pages import listing
from cdkit.evals.pages.generated import rendered, without_arguments, write
from cdkit.interfaces.model_adapter import GENERIC_ADAPTERS, ModelAdapter

PAGE = Path("models/README.md")
COMMAND = "python -m cdkit.evals.pages.models_readme"
PACKAGE = "cdkit.models"
LAYOUTS = f"{PACKAGE}.layouts"


@dataclass(frozen=True)
class AdapterRow:
    """An adapter, and what it takes from the layouts."""

    name: str
    about: str
    path: str
    """From the folder of models."""
    bases: tuple[type[ModelAdapter], ...]
    """Its base classes among the layouts, the nearest first."""
    functions: tuple[str, ...]
    """The functions of the layouts that its file imports, and the layout of its videos."""
    layouts: frozenset[str]
    """The modules of all of these."""


@dataclass(frozen=True)
class LayoutRow:
    """A file of the layouts, and the families that use it."""

    path: str
    about: str
    classes: tuple[tuple[str, str], ...]
    """(name, first sentence of its docstring)."""
    families: tuple[str, ...]


def page() -> str:
    """The page in Markdown: of cdkit's adapters, without those that other packages bring."""
    families = list(_adapters(cdkit.ADAPTERS))
    generics = list(_adapters(GENERIC_ADAPTERS))
    return rendered(
        "models_readme.md",
        filters={"path": lambda cls: _path(cls.__module__)},
        families=families,
        generics=generics,
        layouts=list(_layouts([*families, *generics])),
    )


def _adapters(registered: Mapping[str, type[ModelAdapter]]) -> Iterator[AdapterRow]:
    for name, adapter in registered.items():
        if not adapter.__module__.startswith(f"{PACKAGE}."):
            continue
        module = importlib.import_module(adapter.__module__)
        shared = [
            value
            for value in vars(module).values()
            if (inspect.isfunction(value) or _is_of_videos(value))
            and value.__module__.startswith(f"{LAYOUTS}.")
        ]
        bases = tuple(c for c in adapter.__mro__ if c.__module__.startswith(f"{LAYOUTS}."))
        yield AdapterRow(
            name=name,
            about=listing.first_sentence(module),
            path=_path(adapter.__module__),
            bases=bases,
            functions=tuple(sorted(part.__name__ for part in shared)),
            layouts=frozenset(item.__module__ for item in (*bases, *shared)),
        )


def _is_of_videos(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, cdkit.VideoLayout)


def _layouts(adapters: Sequence[AdapterRow]) -> Iterator[LayoutRow]:
    package = importlib.import_module(LAYOUTS)
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{LAYOUTS}.{found.name}")
        classes = [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, ModelAdapter | cdkit.VideoLayout)
            and value.__module__ == module.__name__
        ]
        yield LayoutRow(
            path=_path(module.__name__),
            about=listing.first_sentence(module),
            classes=tuple((cls.__name__, listing.first_sentence(cls)) for cls in classes),
            families=tuple(row.name for row in adapters if module.__name__ in row.layouts),
        )


def _path(module: str) -> str:
    """The path of a module's file from the folder of models."""
    return module.removeprefix(f"{PACKAGE}.").replace(".", "/") + ".py"


def main(path: Path = PAGE) -> None:
    """Write the page."""
    write(path, page())


if __name__ == "__main__":
    without_arguments()
    main()
