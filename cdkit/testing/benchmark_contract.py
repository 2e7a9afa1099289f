"""What a benchmark promises; see `cdkit.testing`."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdkit.errors import CdkitError
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark, sha256
from cdkit.interfaces.sample import Answer, Sample
from cdkit.interfaces.tally import Tally
from cdkit.probing.promises import require
from cdkit.testing.values import check_value

NOTHING, GARBAGE = "", "\0 <unk>\t%s {} \\n \u202e"
LONG = "yes, \u65e0 \U0001f600 e\u0301 no. " * 300
KINDS: Mapping[str, Callable[[Sample], Answer]] = {
    "the targets": lambda sample: Answer(sample.target or "yes"),
    "empty answers": lambda sample: Answer(NOTHING),
    "garbage": lambda sample: Answer(GARBAGE, tokens=7),
    "very long answers": lambda sample: Answer(LONG, truncated=True, tokens=10**6),
    "scored answers": lambda sample: Answer("no", yes_score=len(sample.prompt) % 7 - 3.5),
}
"""What a model might say to every question."""


def check_benchmark(benchmark: Any, *, images: Path | None = None) -> None:
    """Check the promises of a benchmark that was built from its files.

    Args:
        benchmark: An instance of a registered subclass of `cdkit.Benchmark`.
        images: The folder of its image files; with it each sample's image must be a file there.

    Raises:
        AssertionError: Where a promise is broken.
    """
    require(
        isinstance(benchmark, Benchmark),
        benchmark,
        "it subclasses cdkit.Benchmark",
        todo="write class Name(cdkit.Benchmark)",
    )
    check_value(benchmark)
    registered = type(benchmark) in BENCHMARKS.values()
    require(
        registered,
        benchmark,
        "it is registered by @BENCHMARKS.register(name)",
        todo="put the decorator above the class",
    )
    limit = benchmark.max_new_tokens
    require(
        isinstance(limit, int) and limit > 0,
        benchmark,
        "max_new_tokens is 1 or more",
        limit,
        todo="set it to the most tokens that an answer may need",
    )
    _check_samples(benchmark, images)
    _check_files(benchmark)
    for kind, say in KINDS.items():
        _check_count(benchmark, kind, [say(sample) for sample in benchmark.samples()])
    _check_who_is_answered(benchmark)
    _check_rightness(benchmark)


def _check_samples(benchmark: Benchmark, images: Path | None) -> None:
    samples = benchmark.samples()
    tuples = isinstance(samples, tuple) and all(isinstance(s, Sample) for s in samples)
    require(
        tuples,
        benchmark,
        "samples() is a tuple of cdkit.interfaces.benchmark.Sample",
        type(samples),
        todo="return a tuple of Sample, made once",
    )
    require(
        bool(samples),
        benchmark,
        "it has a sample",
        todo="read the questions from its files; an empty file is an error",
    )
    require(
        benchmark.samples() == samples,
        benchmark,
        "samples() gives the same each time",
        todo="build the samples once, in __post_init__ say, in a fixed order",
    )
    ids = [sample.id for sample in samples]
    twice = (
        sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else ""
    )
    require(
        not twice,
        benchmark,
        "no two samples have the same id",
        twice,
        todo="number the questions, or put the image and the question into the id",
    )
    silent = [sample.id for sample in samples if not sample.prompt.strip()]
    require(
        not silent,
        benchmark,
        "every sample has a prompt",
        silent,
        todo="give each sample the question that the model gets",
    )
    groups: dict[str, set[str]] = {}
    for sample in samples:
        groups.setdefault(sample.image, set()).add(sample.group)
    split = {image: sorted(names) for image, names in groups.items() if len(names) > 1}
    require(
        not split,
        benchmark,
        "the questions about an image are one group",
        split,
        todo="give the samples of one image one group, the image's name",
    )
    if images is not None:
        lost = [sample.image for sample in samples if not (images / sample.image).is_file()]
        require(
            not lost,
            benchmark,
            f"every image is a file in {images}",
            lost[:3],
            todo="check the names of the images, and the folder that was passed",
        )


def _check_files(benchmark: Benchmark) -> None:
    sources = benchmark.sources()
    require(
        bool(sources),
        benchmark,
        "sources() names the files that it read",
        todo="return each file that it read, with its digest",
    )
    for name, digest in sources.items():
        hexadecimal = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) is not None
        require(
            hexadecimal,
            benchmark,
            "sources() maps paths to SHA-256 in hex",
            digest,
            todo="use hashlib.sha256(...).hexdigest()",
        )
        require(
            Path(name).is_file(),
            benchmark,
            "the paths in sources() are files",
            name,
            todo="return the path that was opened",
        )
        same = sha256(Path(name).read_bytes()) == digest
        require(
            same,
            benchmark,
            "sources() has the SHA-256 of the file as it is",
            name,
            todo="take the digest of the bytes that were read",
        )
    plain = benchmark.describe()
    try:
        again = json.loads(json.dumps(plain, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(
            f"{benchmark!r}: describe() is plain JSON: text, numbers, lists, objects. "
            f"Got: {error}. "
            "What to do: return a dict of such values, a path as text"
        ) from error
    require(
        again == plain,
        benchmark,
        "describe() is the same after a trip through JSON",
        plain,
        todo="use lists for tuples and text for keys",
    )


def _check_who_is_answered(benchmark: Benchmark) -> None:
    answers = {sample.id: Answer("yes") for sample in benchmark.samples()}
    one = next(iter(answers))
    some = {name: answer for name, answer in answers.items() if name != one}
    stranger = "".join(answers) + "?"
    for given, fault in ((some, "missing"), (answers | {stranger: Answer("yes")}, "needless")):
        try:
            benchmark.tally(given)
        except CdkitError:
            continue
        raise AssertionError(
            f"{benchmark!r}: tally refuses a {fault} answer with a CdkitError. What to do: compare "
            "the ids of the answers with those of samples(), and name those that differ"
        )
    order = dict(sorted(answers.items(), reverse=True))
    same = benchmark.tally(order).values() == benchmark.tally(answers).values()
    require(
        same,
        benchmark,
        "the order of the answers does not matter",
        todo="look answers up by their sample's id",
    )


def _check_count(benchmark: Benchmark, kind: str, answers: Sequence[Answer]) -> None:
    given = list(answers)
    tally = benchmark.count(given)
    require(
        isinstance(tally, Tally),
        benchmark,
        "count returns a Tally",
        type(tally),
        todo="return the Tally that it makes",
    )
    require(
        given == list(answers),
        benchmark,
        "count writes nothing into what it is passed",
        todo="make new lists and dicts",
    )
    values = tally.values()
    require(
        bool(values),
        benchmark,
        "it has a metric",
        todo="return at least one name and number in values()",
    )
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    require(
        not bad,
        benchmark,
        f"metrics of {kind} are finite",
        bad,
        todo="say what a metric is where nothing counts: 0, not a division by 0",
    )
    again = benchmark.count(given).values()
    require(
        again == values,
        benchmark,
        "count is pure: equal answers, equal metrics",
        (kind, again),
        todo="compute from the answers alone, without a counter or random numbers",
    )
    require(
        tally.samples == benchmark.samples(),
        benchmark,
        "the tally has the samples, in order",
        todo="pass benchmark.samples() on to the Tally",
    )
    for metric, name in tally.binary.items():
        known = metric in tally.metrics and name in tally.columns
        require(
            known,
            benchmark,
            "binary maps a metric to its column",
            (metric, name),
            todo="return names of values(), and of columns that count makes",
        )
        column = tally.columns[name]
        require(
            bool(np.isin(column, (0, 1)).all()),
            benchmark,
            f"the column {name} is 0 or 1",
            todo="mark right answers by 1 and wrong ones by 0",
        )
    _check_weights(benchmark, tally, values)


def _check_weights(benchmark: Benchmark, tally: Tally, values: Mapping[str, float]) -> None:
    """Check metrics as the bootstrap computes them: other weights, several resamples at once."""
    count = len(tally.images)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=2)
    lonely = np.eye(1, count) * count
    weights = np.concatenate((np.ones((1, count)), drawn, lonely))
    table = tally.at(weights)
    shapes = {name: value.shape for name, value in table.items() if value.shape != (4,)}
    require(
        not shapes,
        benchmark,
        "a metric has one value for each resample",
        shapes,
        todo="compute with the weights along their first axis",
    )
    bad = [name for name, value in table.items() if not np.isfinite(value).all()]
    require(
        not bad,
        benchmark,
        "metrics are finite under any weights of the images",
        bad,
        todo="divide by the weighted count only where it is above 0",
    )
    for row, weight in enumerate(weights):
        alone = {name: float(value[0]) for name, value in tally.at(weight[None]).items()}
        for name, value in table.items():
            close = math.isclose(alone[name], value[row], rel_tol=1e-9, abs_tol=1e-9)
            require(
                close,
                benchmark,
                "a resample depends on no other one",
                name,
                todo="compute each resample from its row of weights alone",
            )
    for name, whole in values.items():
        close = math.isclose(whole, table[name][0], rel_tol=1e-9, abs_tol=1e-9)
        require(
            close,
            benchmark,
            "at weight one the metrics are values()",
            name,
            todo="weight each image's share, and divide by the sum of the weights",
        )


def _check_rightness(benchmark: Benchmark) -> None:
    """Check that the targets count as right answers, where every sample has one."""
    samples = benchmark.samples()
    if any(sample.target is None for sample in samples):
        return
    right = benchmark.count([KINDS["the targets"](sample) for sample in samples])
    wrong = benchmark.count([KINDS["garbage"](sample) for sample in samples])
    for name in right.binary:
        best, worst = right.values()[name], wrong.values()[name]
        require(
            best in (0, 1),
            benchmark,
            "the targets are right answers, all of them",
            name,
            todo="let targets() be the answers that count as right",
        )
        require(
            best != worst,
            benchmark,
            "garbage is no right answer",
            name,
            todo="count an answer that cannot be read as unknown, and so as wrong",
        )
