"""`cdkit list`: what there is, one line each, and its papers."""

import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import cdkit


@dataclass(frozen=True)
class Entry:
    """A name, one line about it, and its BibTeX where it comes from a paper."""

    name: str
    summary: str
    bibtex: str = ""


def entries(topic: str) -> tuple[Entry, ...]:
    """All of one topic, by name."""
    if topic == "methods":
        return tuple(Entry(name, text, _papers(name)) for name, text in cdkit.presets().items())
    return tuple(
        Entry(name, first_sentence(kind), textwrap.dedent(getattr(kind, "bibtex", "")).strip())
        for registry in TOPICS[topic]
        for name, kind in registry.items()
    )


TOPICS: Mapping[str, tuple[Mapping[str, type], ...]] = {
    "methods": (),
    "strategies": (cdkit.DISTORTIONS, cdkit.INTERVENTIONS, cdkit.COMBINERS, cdkit.READOUTS),
    "calibrators": (cdkit.CALIBRATORS,),
    "models": (cdkit.ADAPTERS,),
    "benchmarks": (cdkit.BENCHMARKS,),
}


EMBEDDED = "The embedded model, micro, is a LLaVA checkpoint: the adapter llava."


def first_sentence(kind: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    text = inspect.getdoc(kind) or ""
    return " ".join(text.split("\n\n")[0].split())


def _papers(preset: str) -> str:
    """The papers of a preset's parts, each once; a part with nothing to do is none of them."""
    parts = [part for _, part in cdkit.load(preset).parts() if not getattr(part, "idle", False)]
    texts = [getattr(part, "bibtex", "") for part in parts]
    return "\n\n".join(dict.fromkeys(textwrap.dedent(text).strip() for text in texts if text))
