"""What a protocol says: all around a method that moves its numbers, and where each value stands."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, final, get_args, get_type_hints

import cdkit
from cdkit.errors import CdkitError, check_temperature, check_text
from cdkit.evals.protocols.protocol_records import differences as differences  # stood here
from cdkit.evals.protocols.protocol_settings import (
    EXCLUDED,
    MODE_KEYS,
    MOST_BEAMS,
    Preprocessing,
    UnfinishedSentence,
)
from cdkit.evals.runner.modes import DECODE
from cdkit.methods.plain_data import build
from cdkit.registry import UnknownNameError, unknown

BENCHMARK, MODEL, DECODING = ({"of": name} for name in ("benchmark", "model", "decoding"))
"""What follows a setting: the benchmark, the model with its processor, or the decode loop."""


@final
@dataclass(frozen=True)
class CodeSource:
    """Where a protocol's values stand in somebody's code.

    Args:
        repository: OWNER/NAME.
        commit: The commit, as hexadecimal digits.
        fields: Field -> `FILE:LINE`, with several places parted by ", ". A field of a section has a
            dotted name, such as "models.instructblip.max_new_tokens".

    Raises:
        CdkitError: The repository, the commit or a place has another form.
    """

    repository: str = ""
    commit: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.repository or self.commit or self.fields):
            return
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repository):
            raise CdkitError(f"source.repository is OWNER/NAME, got {self.repository!r}")
        if not re.fullmatch(r"[0-9a-f]{7,40}", self.commit):
            raise CdkitError(
                f"source.commit is 7 to 40 hexadecimal digits of a commit, got {self.commit!r}"
            )
        for name, places in _table("source.fields", self.fields).items():
            for place in str(places).split(", "):
                if not re.fullmatch(r"[^\s,]+:\d+(-\d+)?", place):
                    raise CdkitError(
                        f"source.fields.{name} is FILE:LINE or FILE:FIRST-LAST, several parted by "
                        f"', ', got {places!r}"
                    )


@final
@dataclass(frozen=True)
class Protocol:
    """All around a method that moves a number. A setting that is None is left as it is without.

    Args:
        name: What tables call it.
        summary: One line about it.
        paper: The presets whose paper this is.
        question_suffix: Text behind each question; "" for none. It begins with a blank if one is to
            stand between.
        caption_prompt: What a model is asked for a caption.
        max_new_tokens: The token limit of an answer.
        unfinished_sentence: What happens to the last sentence of an answer that the token limit cut
            off: "kept" or "dropped".
        parser: The name of the benchmark's parser by which the plain metrics are made.
        scorer: The name of the benchmark's scorer.
        image_list: A file that lists the images to ask about, one a line.
        image_count: Ask about so many images alone.
        image_seed: The images are shuffled under this seed before `image_count` are taken; None
            takes the first ones.
        system: The system message; None for the one of the chat template, "" for an empty one.
        template: The whole conversation, in place of the chat template: a text with `{images}` and
            `{question}`, where each image stands as the model's processor needs it.
        image_preprocessing: "crop", "pad" or "squash".
        mode: "greedy", "sample" or "beam".
        temperature: Mode "sample": what logits are divided by.
        top_k: Mode "sample": keep the k most probable tokens.
        top_p: Mode "sample": keep the smallest set of tokens whose probabilities sum to this.
        beams: Mode "beam": the number of beams.
        methods: Preset -> its parameters under this protocol.
        models: Type of a model (`config.model_type`) -> settings that are others for it.
        benchmarks: Name of a benchmark -> settings that are others for it.
        unmatched: Setting or other topic -> a sentence: what the authors do and cdkit does not.
        source: Where each value stands.

    Raises:
        CdkitError: A value is not allowed, or two exclude each other.
    """

    name: str
    summary: str = ""
    paper: tuple[str, ...] = ()
    question_suffix: str | None = field(default=None, metadata=BENCHMARK)
    caption_prompt: str | None = field(default=None, metadata=BENCHMARK)
    max_new_tokens: int | None = field(default=None, metadata=BENCHMARK)
    unfinished_sentence: str | None = field(default=None, metadata=BENCHMARK)
    parser: str | None = field(default=None, metadata=BENCHMARK)
    scorer: str | None = field(default=None, metadata=BENCHMARK)
    image_list: Path | None = field(default=None, metadata=BENCHMARK)
    image_count: int | None = field(default=None, metadata=BENCHMARK)
    image_seed: int | None = field(default=None, metadata=BENCHMARK)
    system: str | None = field(default=None, metadata=MODEL)
    template: str | None = field(default=None, metadata=MODEL)
    image_preprocessing: str | None = field(default=None, metadata=MODEL)
    mode: str | None = field(default=None, metadata=DECODING)
    temperature: float | None = field(default=None, metadata=DECODING)
    top_k: int | None = field(default=None, metadata=DECODING)
    top_p: float | None = field(default=None, metadata=DECODING)
    beams: int | None = field(default=None, metadata=DECODING)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    benchmarks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unmatched: Mapping[str, str] = field(default_factory=dict)
    source: CodeSource = field(default_factory=CodeSource)

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise CdkitError(f"the name of a protocol is a text, got {self.name!r}")
        _check_types(self)
        _check_texts(self)
        _check_numbers(self)
        _check_decoding(self)
        for preset, parameters in _table("methods", self.methods).items():
            table = _table(f"methods.{preset}", parameters)
            _check_method(preset, json.dumps(table, sort_keys=True, default=str))
        for name in ("models", "benchmarks"):
            for key, section in _table(name, getattr(self, name)).items():
                where = f"[{name}.{key}]"
                try:
                    self._without_sections()._laid_over(_table(where, section), where)
                except CdkitError as error:
                    raise CdkitError(_under(where, error)) from None
        for name, sentence in _table("unmatched", self.unmatched).items():
            _check_sentence(name, sentence)

    def replace(self, **changes: Any) -> "Protocol":
        """The protocol with other settings, as options of a command give them.

        Where the decode mode becomes another, settings of the former mode are dropped. A value that
        was replaced has no source any more. Settings that stand in a section are replaced there
        too; one that stands in sections of benchmarks alone is replaced there alone, since others
        may be unable to follow it.

        Args:
            **changes: Setting -> value, in plain data; None sets nothing.

        Raises:
            UnknownNameError: No setting is called so.
            CdkitError: A value is not allowed.
        """
        changes = {key: value for key, value in changes.items() if value is not None}
        if not changes:
            return self
        replaced = {*changes, *(key for name in changes for key in EXCLUDED.get(name, ()))}
        within = {key: changes.pop(key) for key in list(changes) if self._of_benchmarks(key)}

        def kept(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
            return {
                name: {key: value for key, value in section.items() if key not in replaced}
                for name, section in sections.items()
            }

        made = self._without_sections()._laid_over(changes, f"the protocol {self.name}")
        left = {
            name: places
            for name, places in self.source.fields.items()
            if name.rsplit(".", 1)[-1] not in replaced
        }
        benchmarks = kept(self.benchmarks)
        for name, section in self.benchmarks.items():
            benchmarks[name] |= {key: value for key, value in within.items() if key in section}
        return dataclasses.replace(
            made,
            models=kept(self.models),
            benchmarks=benchmarks,
            source=dataclasses.replace(self.source, fields=left),
        )

    def _of_benchmarks(self, name: str) -> bool:
        """Whether a setting that not every benchmark follows stands in their sections alone."""
        if SETTINGS.get(name) != "benchmark" or name == "max_new_tokens":
            return False
        elsewhere = [getattr(self, name), *(section.get(name) for section in self.models.values())]
        inside = any(name in section for section in self.benchmarks.values())
        return inside and all(value is None for value in elsewhere)

    def at(self, *, model: str | None = None, benchmark: str | None = None) -> "Protocol":
        """The protocol as it is for one model and one benchmark: without sections.

        Args:
            model: The type of the model (`config.model_type`); None: what is true of all.
            benchmark: The name of the benchmark; None: what is true of all.

        Returns:
            The protocol with the sections of both laid over it, the benchmark's last.
        """
        made = self._without_sections()
        made = made._laid_over(self.models.get(model or "", {}), f"[models.{model}]")
        return made._laid_over(
            self.benchmarks.get(benchmark or "", {}), f"[benchmarks.{benchmark}]"
        )

    def settings(self, of: str | None = None) -> dict[str, Any]:
        """The settings that have a value.

        Args:
            of: "benchmark", "model" or "decoding": those that it follows; None: all.

        Returns:
            Setting -> value.
        """
        return {
            name: getattr(self, name)
            for name, of_setting in SETTINGS.items()
            if of in (None, of_setting) and getattr(self, name) is not None
        }

    def parameters(self, preset: str) -> dict[str, Any]:
        """Parameters of a method under this protocol; empty where it says none."""
        return dict(self.methods.get(preset, {}))

    def record(self) -> dict[str, Any]:
        """The whole protocol as plain data; a list of images by its name and its hash."""
        return {
            name: value
            for name, value in _plain(self).items()
            if value not in (None, "", {}, []) or name in self.settings()
        }

    def _without_sections(self) -> "Protocol":
        return dataclasses.replace(self, models={}, benchmarks={})

    def _laid_over(self, section: Mapping[str, Any], where: str) -> "Protocol":
        known = [*SETTINGS, "methods"]
        for key in section:
            if key not in known:
                raise UnknownNameError(unknown(f"setting of {where}", key, known))
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {key: None for name in section for key in EXCLUDED.get(name, ())}
        if section.get("mode") == self.mode:
            values |= {key: getattr(self, key) for key in EXCLUDED["mode"]}
        values |= section
        values["methods"] = {**self.methods}
        for preset, parameters in _table("methods", section.get("methods", {})).items():
            table = _table(f"methods.{preset}", parameters)
            values["methods"][preset] = {**self.methods.get(preset, {}), **table}
        made = build(Protocol, values, where)
        assert isinstance(made, Protocol)
        return made


SETTINGS: Final[Mapping[str, str]] = {
    f.name: f.metadata["of"] for f in fields(Protocol) if "of" in f.metadata
}
"""Each setting, and what follows it: "benchmark", "model" or "decoding"."""


def protocol_of(data: Mapping[str, Any], where: str) -> Protocol:
    """A protocol from plain data, as a TOML file holds it, or `Protocol.record` writes it.

    Args:
        data: The tables.
        where: What messages call the place where they stand.

    Raises:
        UnknownNameError: A key is unknown.
        CdkitError: A value is not allowed.
    """
    values = dict(data)
    values = _with_file_names(values)
    for name in ("methods", "models", "benchmarks"):
        for key, section in _table(name, values.get(name, {})).items():
            _table(f"[{name}.{key}]", section)
            if name != "methods":
                values[name] = {**values[name], key: _with_file_names(section)}
    for name, sentence in _table("unmatched", values.get("unmatched", {})).items():
        _check_sentence(name, sentence)
    if "source" in values:
        table = _table(f"{where}, [source]", values["source"])
        places = _table("source.fields", table.get("fields", {}))
        if wrong := [name for name, place in places.items() if not isinstance(place, str)]:
            raise CdkitError(f"source.fields.{wrong[0]} is FILE:LINE, got {places[wrong[0]]!r}")
        values["source"] = build(CodeSource, table, f"{where}, [source]")
    made = build(Protocol, values, where)
    assert isinstance(made, Protocol)
    return made


def _with_file_names(table: Mapping[str, Any]) -> dict[str, Any]:
    """Where a list of images is one of a record, its file's name."""
    listed = table.get("image_list")
    return {**table, "image_list": listed.get("file")} if isinstance(listed, Mapping) else {**table}


def _plain(value: Any) -> Any:
    if isinstance(value, Protocol | CodeSource):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Path):
        digest = hashlib.sha256(value.read_bytes()).hexdigest() if value.is_file() else None
        return {"file": value.name, "sha256": digest}
    if isinstance(value, Mapping):
        return {
            str(key): _plain(Path(item) if key == "image_list" and isinstance(item, str) else item)
            for key, item in value.items()
        }
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def _table(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise CdkitError(f"{where} must be a table of keys, got {value!r}")
    return value


def _check_sentence(name: str, sentence: Any) -> None:
    if not isinstance(sentence, str) or not sentence.strip():
        raise CdkitError(f"unmatched.{name} is a sentence, got {sentence!r}")


def _under(where: str, error: CdkitError) -> str:
    return str(error) if where in str(error) else f"{where}: {error}"


def _check_types(protocol: Protocol) -> None:
    hints = get_type_hints(Protocol)
    for name in SETTINGS:
        value = getattr(protocol, name)
        kinds = get_args(hints[name])  # each setting may be None
        wrong = isinstance(value, bool) and bool not in kinds
        if wrong or not isinstance(value, kinds):
            raise CdkitError(f"{name} must be of type {kinds[0].__name__}, got {value!r}")
    if not isinstance(protocol.summary, str):
        raise CdkitError(f"the summary of a protocol is a text, got {protocol.summary!r}")
    if not isinstance(protocol.paper, tuple):
        raise CdkitError(f"paper must be a list of presets, got {protocol.paper!r}")
    for preset in protocol.paper:
        _check_preset(preset)


@functools.cache  # protocols are made anew for each model and benchmark
def _check_preset(name: str) -> None:
    known = cdkit.presets()
    if name not in known:
        raise UnknownNameError(unknown("preset (key paper)", name, known))


@functools.cache
def _check_method(preset: str, parameters: str) -> None:
    cdkit.load(preset, **json.loads(parameters))


def _check_texts(protocol: Protocol) -> None:
    for name, value in protocol.settings().items():
        if isinstance(value, str):
            check_text(name, value)
    for name in ("caption_prompt", "parser", "scorer"):
        if getattr(protocol, name) is not None and not getattr(protocol, name).strip():
            raise CdkitError(f"{name} is empty: give a text, or leave it out")
    check_one_of("unfinished_sentence", protocol.unfinished_sentence, UnfinishedSentence)
    check_one_of("image_preprocessing", protocol.image_preprocessing, Preprocessing)
    if protocol.template is not None:
        check_template(protocol.template)
        if protocol.system is not None:
            raise CdkitError(
                "system and template exclude each other: write the system message into the template"
            )


def check_template(template: str) -> None:
    """Raise unless a conversation has one place for the question and one for the images."""
    rest = template.replace("{images}", "", 1).replace("{question}", "", 1)
    if template.count("{question}") != 1 or "{images}" not in template or "{images}" in rest:
        raise CdkitError(
            f"template must hold {{images}} once and {{question}} once, got {template!r}"
        )


def check_one_of(name: str, value: str | None, allowed: Any) -> None:
    if value is not None and value not in get_args(allowed):
        raise CdkitError(unknown(name, value, get_args(allowed)))


def _check_numbers(protocol: Protocol) -> None:
    for name in ("max_new_tokens", "image_count", "top_k"):
        value = getattr(protocol, name)
        if value is not None and value < 1:
            raise CdkitError(f"{name} is {value}: give 1 or more")
    if protocol.image_seed is not None:
        if protocol.image_seed < 0:
            raise CdkitError(f"image_seed is {protocol.image_seed}: give 0 or more")
        if protocol.image_count is None:
            raise CdkitError("image_seed says how image_count images are drawn: give both")
    if protocol.top_p is not None and not 0 < protocol.top_p <= 1:
        raise CdkitError(f"top_p must be in (0, 1], got {protocol.top_p!r}")
    if protocol.temperature is not None:
        check_temperature("temperature", protocol.temperature)
    if protocol.beams is not None and not 2 <= protocol.beams <= MOST_BEAMS:
        raise CdkitError(f"beams is {protocol.beams}: a beam search has 2 to {MOST_BEAMS}")


def _check_decoding(protocol: Protocol) -> None:
    if protocol.mode is not None and protocol.mode not in DECODE:
        raise CdkitError(unknown("decode mode (key mode)", protocol.mode, DECODE))
    for mode, names in MODE_KEYS.items():
        for name in names:
            if getattr(protocol, name) is not None and protocol.mode != mode:
                raise CdkitError(
                    f"{name} belongs to mode = {mode!r}, and the mode is {protocol.mode!r}: leave "
                    f"{name} out, or give that mode"
                )
