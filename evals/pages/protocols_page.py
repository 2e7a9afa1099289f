"""docs/protocols.md, made from the packaged ones: `python -m cdkit.evals.pages.protocols_page`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.evals.pages.generated import rendered, without_arguments, write
from cdkit.evals.protocols.protocol import SETTINGS, Protocol
from cdkit.evals.protocols.read import packaged, read_protocol

PAGE = Path("docs/protocols.md")
COMMAND = "python -m cdkit.evals.pages.protocols_page"
EVERY = "all"
ABOUT: Mapping[str, str] = {
    "question_suffix": 'text behind each question; `""` for none',
    "caption_prompt": "what a model is asked for a caption",
    "max_new_tokens": "the token limit of an answer",
    "unfinished_sentence": "the last sentence of an answer that the token limit cut off: `kept` or "
    "`dropped`",
    "parser": "the benchmark's parser by which the plain metrics are made",
    "scorer": "the benchmark's scorer",
    "image_list": "a file that lists the images, one a line; beside the protocol's file",
    "image_count": "ask about so many images at most",
    "image_seed": "sort the images by name and shuffle them under this seed before the first "
    "`image_count` are taken",
    "system": 'the system message; `""` for an empty one',
    "template": "the whole conversation in place of the chat template, with `{images}` and "
    "`{question}`",
    "image_preprocessing": "`crop` (shorter side resized, middle cut out), `pad` (padded to a "
    "square) or `squash` (both sides resized)",
    "mode": "`greedy`, `sample` or `beam`",
    "temperature": "mode `sample`: what logits are divided by",
    "top_k": "mode `sample`: keep the k most probable tokens",
    "top_p": "mode `sample`: keep the smallest set of tokens whose probabilities sum to this",
    "beams": "mode `beam`: the number of beams",
}
"""What each setting means, in a line."""


@dataclass(frozen=True)
class SettingRow:
    """A value of a protocol."""

    setting: str
    models: str
    """The type of the models that it is for."""
    value: str
    places: tuple[tuple[str, str], ...]
    """(FILE:LINE, address) of each place where it stands."""


@dataclass(frozen=True)
class ShownProtocol:
    """A protocol as the page has it."""

    protocol: Protocol
    rows: tuple[SettingRow, ...]


def page() -> str:
    """The page in Markdown."""
    shown = [ShownProtocol(p, tuple(rows(p))) for p in map(read_protocol, packaged())]
    return rendered(
        "protocols.md", filters={"source": source}, protocols=shown, settings=SETTINGS, about=ABOUT
    )


def rows(protocol: Protocol) -> Iterator[SettingRow]:
    """All values of a protocol, of all models first."""
    yield from _rows(protocol, EVERY, "", protocol.settings(), protocol.methods)
    for model, section in protocol.models.items():
        settings = {key: value for key, value in section.items() if key != "methods"}
        prefix = f"models.{model}."
        yield from _rows(protocol, f"`{model}`", prefix, settings, section.get("methods", {}))
    for benchmark, section in protocol.benchmarks.items():
        of = f"the benchmark `{benchmark}`"
        yield from _rows(protocol, of, f"benchmarks.{benchmark}.", section, {})


def _rows(
    protocol: Protocol,
    models: str,
    prefix: str,
    settings: Mapping[str, Any],
    methods: Mapping[str, Mapping[str, Any]],
) -> Iterator[SettingRow]:
    for name, given in settings.items():
        value = Path(given).name if name == "image_list" else given
        yield SettingRow(f"`{name}`", models, code(value), places(protocol, f"{prefix}{name}"))
    for preset, table in methods.items():
        numbers = ", ".join(f"{key} = {_value(value)}" for key, value in table.items())
        at = places(protocol, f"{prefix}methods.{preset}")
        yield SettingRow(f"[{preset}](methods.md#{preset})", models, code(numbers), at)


def places(protocol: Protocol, name: str) -> tuple[tuple[str, str], ...]:
    """Where a value stands, with addresses."""
    found = protocol.source.fields.get(name, "")
    root = f"https://github.com/{protocol.source.repository}/blob/{protocol.source.commit}"
    return tuple((place, f"{root}/{_anchor(place)}") for place in found.split(", ") if place)


def _anchor(place: str) -> str:
    file, _, lines = place.rpartition(":")
    first, _, last = lines.partition("-")
    return f"{file}#L{first}" + (f"-L{last}" if last else "")


def source(protocol: Protocol) -> str:
    """The repository with its commit, as a link."""
    where = protocol.source
    address = f"https://github.com/{where.repository}/tree/{where.commit}"
    return f"[{where.repository} {where.commit[:7]}]({address})"


def code(value: object) -> str:
    """A value in Markdown, with its blanks."""
    return f"`{_value(value)}`".replace("|", "\\|")


def _value(value: object) -> str:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str):
        return value if value and value == value.strip() else f'"{value}"'.replace("\n", "\\n")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(path: Path = PAGE) -> None:
    """Write the page."""
    write(path, page())


if __name__ == "__main__":
    without_arguments()
    main()
