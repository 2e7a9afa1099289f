"""May these runs be compared? What must be equal is checked; other differences are listed."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.comparison.run_names import NamedRuns, in_all, not_compared
from cdkit.evals.protocols.protocol_records import applied, differences
from cdkit.evals.reports.results import MODES
from cdkit.evals.runner.fingerprints import changed_files, differing
from cdkit.evals.runner.finished import FinishedRun
from cdkit.evals.runner.modes import BEAM, SAMPLE
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark

DECODING: Mapping[str, tuple[str, ...]] = {
    SAMPLE: ("temperature", "top_k", "top_p"),
    BEAM: ("num_beams",),
}
"""Decode mode -> settings of a run that belong to it: must be equal."""
OTHERWISE = ("model.dtype", "model.padding", "seeds.noise_of_branches", "versions", "platform")
"""Keys of a manifest that may differ, and a note says so; those of `PIECES` beside them."""
PIECES = ("batch_size", "processes", "nodes", "devices")
"""Keys of a manifest's pieces (one for each start of a run) that may differ."""
SHOWN = 40  # of a value in a note, characters


def check(runs: NamedRuns, *, across_models: bool = False) -> tuple[str, ...]:
    """Notes on what differs besides the method; a CdkitError where a comparison would mislead.

    Each run is held against the first. Equal must be: the decode mode and its settings, the model
    (by the hashes of its files, else name and revision) and the prompt, and of each benchmark its
    files by SHA-256, its samples, settings, token limit, and the parsers and their versions, and
    the settings of two protocols that apply to the model and to the benchmark. With
    `across_models` the model, and the prompt that its template makes, may differ; a note says so.
    Notes are there for all else, such as dtype, batch size and versions, for parts that not all
    runs have, and for seeds that differ.
    """
    base, *others = runs
    notes: list[str] = []
    for other in others:
        notes += _pair(runs, base, other, across_models=across_models)
    notes += not_compared({name: run.parts for name, run in runs.items()}, "benchmark")
    return tuple(dict.fromkeys(notes))


def shared(runs: NamedRuns) -> tuple[str, ...]:
    """The names of the parts that every run has, in the base's order."""
    return in_all({name: run.parts for name, run in runs.items()})


def same_seeds(runs: NamedRuns) -> bool:
    """Whether all runs met the same random numbers."""
    first, *others = runs.values()
    return all(
        first.parts[part].answers.keys() == run.parts[part].answers.keys()
        for run in others
        for part in shared(runs)
    )


def model_of(run: FinishedRun) -> str:
    """What a run's manifest calls its model."""
    return str(_table(run, "model").get("name"))


def _pair(runs: NamedRuns, base: str, other: str, *, across_models: bool) -> Iterator[str]:
    """The notes on one run beside the base."""
    a, b = runs[base], runs[other]

    def refuse(what: str, mend: str) -> CdkitError:
        return CdkitError(f"{base} and {other} cannot be compared: {what}; {mend}")

    if a.mode != b.mode:
        modes = " and ".join(MODES.get(run.mode, run.mode) for run in (a, b))
        raise refuse(f"their decode modes are {modes}", "run both in one mode")
    for key in (*DECODING.get(a.mode, ()), "first_token"):
        mine, theirs = (_table(run, "settings").get(key) for run in (a, b))
        if mine != theirs:
            raise refuse(
                f"{key} is {_shown(mine)} in one, {_shown(theirs)} in the other",
                "run both with the same settings",
            )
    others = _other_files(a, b)
    same_model = not others
    if not same_model and not across_models:
        raise refuse(
            f"their models are {_model(a)} and {_model(b)}{_in(others)}",
            "add --across-models to compare models on purpose",
        )
    if not same_model:
        yield f"models differ: {base} is of {_model(a)}, {other} of {_model(b)}"
    around: list[str] = []
    for part in shared({base: a, other: b}):
        kind = BENCHMARKS.name_of(type(a.parts[part].benchmark))
        refused, named = _protocols(a, b, kind, across_models=not same_model)
        if refused:
            raise refuse(
                f"of {part} their protocols differ: {'; '.join(refused)}",
                "run both under one protocol",
            )
        around += named
    yield from (f"protocols of {base} and {other}: {text}" for text in dict.fromkeys(around))
    prompts = [_template(run) for run in (a, b)]
    if prompts[0] != prompts[1]:
        if same_model:
            text = " and ".join(map(_shown, prompts))
            why = f" (protocols: {'; '.join(dict.fromkeys(around))})" if around else ""
            raise refuse(f"their prompts are {text}{why}", "run both with one prompt")
        yield f"prompts differ, as the models' templates do: {base}, {other}"
    for part in shared({base: a, other: b}):
        mine_too, theirs_too = a.parts[part], b.parts[part]
        if found := "; ".join(_differences(mine_too.benchmark, theirs_too.benchmark)):
            raise refuse(f"of {part} {found}", "run both on the same files, settings and versions")
        yield from _seeds(part, (base, tuple(mine_too.answers)), (other, tuple(theirs_too.answers)))
    ours, yours = circumstances(a), circumstances(b)
    for key in dict.fromkeys([*ours, *yours]):
        if ours.get(key) != yours.get(key):
            yield f"{key}: {base} {_shown(ours.get(key))}, {other} {_shown(yours.get(key))}"


UNSEEN = "image_preprocessing"
"""The setting of a protocol whose effect no other record of a run shows."""


def _protocols(
    a: FinishedRun, b: FinishedRun, benchmark: str, *, across_models: bool
) -> tuple[list[str], list[str]]:
    """What differs between two runs' protocols on a benchmark: (refused, named).

    Parameters of methods are what a comparison is about. Where one run has no protocol, its
    settings are compared by their effects: prompts, decoding, and the benchmark's settings. Of
    another model's prompt `across_models` allows what its template makes.
    """
    records = [
        applied(_table(run, "protocol"), model=str(_table(run, "model").get("type")), on=benchmark)
        for run in (a, b)
    ]
    apart = differences(*records)
    if across_models:
        return [], apart
    of_methods = [text for text in apart if text.startswith("methods")]
    others = [text for text in apart if text not in of_methods]
    if all(records) or any(text.startswith(f"{UNSEEN} ") for text in others):
        return others, of_methods
    return [], apart


def _table(run: FinishedRun, key: str) -> Mapping[str, object]:
    """A table of the manifest; empty where there is none."""
    value = run.manifest.get(key)
    return value if isinstance(value, Mapping) else {}


def _other_files(a: FinishedRun, b: FinishedRun) -> tuple[str, ...]:
    """In what two models differ: files by their hashes, else the name and the revision."""
    files = [_table(run, "model").get("files") for run in (a, b)]
    before, now = (dict(each) if isinstance(each, Mapping) else {} for each in files)
    if before and now:
        return changed_files(before, now)
    models = [{k: _table(run, "model").get(k) for k in ("name", "revision")} for run in (a, b)]
    return tuple(differing(*models))


def _in(others: tuple[str, ...]) -> str:
    """The files that differ, where files do."""
    return "" if "name" in others else f", which differ in {', '.join(others)}"


def _model(run: FinishedRun) -> str:
    """The model in words that tell two apart."""
    model = _table(run, "model")
    files = model.get("files")
    weights = (".safetensors", ".bin")
    hashes = (
        [str(h)[:8] for name, h in files.items() if str(name).endswith(weights)]
        if isinstance(files, Mapping)
        else []
    )
    which = ", ".join(hashes) or model.get("revision")
    return f"{model_of(run)} ({which})" if which else model_of(run)


def _template(run: FinishedRun) -> str:
    """The prompt around a question: a manifest has it around the first question of its parts."""
    prompt = str(_table(run, "model").get("prompt"))
    for part in run.parts.values():
        question = part.benchmark.samples()[0].prompt
        if question in prompt:
            return prompt.replace(question, "QUESTION")
    return prompt


def circumstances(run: FinishedRun) -> dict[str, object]:
    """How a run was made, as far as it should change no answer but by rounding."""
    flat = _flat(run.manifest)
    found = {
        key: value
        for key, value in flat.items()
        if any(f"{key}.".startswith(f"{known}.") for known in OTHERWISE)
    }
    pieces = run.manifest.get("pieces")
    for key in PIECES:
        values = (
            [p.get(key) for p in pieces if isinstance(p, Mapping)]
            if isinstance(pieces, list)
            else []
        )
        text = ", ".join(dict.fromkeys(_shown(value) for value in values))
        found[key] = text
    return found


def _differences(a: Benchmark, b: Benchmark) -> Iterator[str]:
    """What of two benchmarks decides the numbers and is not equal."""
    kinds = [BENCHMARKS.name_of(type(each)) for each in (a, b)]
    if kinds[0] != kinds[1]:
        yield f"the benchmarks are {kinds[0]} and {kinds[1]}"
        return
    hashes = [sorted(each.sources().values()) for each in (a, b)]
    if hashes[0] != hashes[1]:
        only = [sorted(set(one) - set(two)) for one, two in (hashes, hashes[::-1])]
        text = " and ".join(", ".join(h[:8] for h in each) or "none" for each in only)
        yield f"the files differ (SHA-256 {text})"
    settings = [_settings(each) for each in (a, b)]
    for name, value in settings[0].items():
        if value != settings[1][name]:
            yield f"{name} is {_shown(value)} in one, {_shown(settings[1][name])} in the other"
    if a.versions() != b.versions():
        text = " and ".join(_shown(dict(each.versions())) for each in (a, b))
        yield f"the parsers' versions are {text}"
    if a.samples() != b.samples():
        counts = " and ".join(str(len(each.samples())) for each in (a, b))
        yield f"the samples differ ({counts})"


def _settings(benchmark: Benchmark) -> dict[str, object]:
    """The fields that are no paths: files are compared by their hashes, wherever they lie."""
    fields = dataclasses.fields(benchmark)  # type: ignore[arg-type]
    values = {field.name: getattr(benchmark, field.name) for field in fields}
    return {name: value for name, value in values.items() if not isinstance(value, Path)}


Seeds = tuple[int | None, ...]


def _seeds(part: str, base: tuple[str, Seeds], other: tuple[str, Seeds]) -> Iterator[str]:
    """A note where seeds differ; a CdkitError where they cannot be paired."""
    (one, mine), (two, theirs) = base, other
    if set(mine) == set(theirs):
        return
    count = max(len(mine), len(theirs))
    if not {len(mine), len(theirs)} <= {1, count}:
        raise CdkitError(
            f"{one} has {len(mine)} seeds of {part} and {two} has {len(theirs)}: runs are paired "
            "seed by seed, so use as many in both, or one in one of them"
        )
    yield (
        f"seeds of {part} differ: {one} {_listed(mine)}, {two} {_listed(theirs)}; their random "
        "numbers are not shared, which makes differences noisier"
    )


def _listed(seeds: Seeds) -> str:
    return ", ".join("none" if seed is None else str(seed) for seed in seeds)


def _flat(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested tables as one, with dotted keys."""
    found: dict[str, object] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            found |= _flat(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = item
    return found


def _shown(value: object) -> str:
    """A value of a manifest in a line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(value) if isinstance(value, str) and len(text) <= SHOWN else text[:SHOWN]
