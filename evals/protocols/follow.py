"""A protocol beside what it meets: what is checked before a run, and what a report must say."""

from collections.abc import Mapping, Sequence
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.pages.methods_page import CONTROL
from cdkit.evals.protocols.conversation import prompt_under
from cdkit.evals.protocols.preprocessing import IN_WORDS, preprocessing_of, set_preprocessing
from cdkit.evals.protocols.protocol import Protocol
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark
from cdkit.interfaces.model_adapter import ModelAdapter
from cdkit.methods.method import Method


def apply(protocol: Protocol, benchmark: Benchmark, *, model: str | None = None) -> Benchmark:
    """A benchmark as a protocol asks it.

    Args:
        protocol: The protocol, with its sections.
        benchmark: The benchmark.
        model: The type of the model (`config.model_type`).

    Returns:
        The benchmark with the settings that it follows.

    Raises:
        CdkitError: It cannot follow a setting.
    """
    name = BENCHMARKS.name_of(type(benchmark))
    settings = protocol.at(model=model, benchmark=name).settings("benchmark")
    try:
        return benchmark.under(settings)
    except CdkitError as error:
        raise CdkitError(f"protocol {protocol.name}: {error}") from None


def prepare(
    protocol: Protocol, *, adapter: ModelAdapter, processor: Any, model: str | None = None
) -> tuple[str, ...]:
    """Check that a model can be asked as a protocol says, and set its image processor.

    Args:
        protocol: The protocol, with its sections.
        adapter: The model's adapter.
        processor: The model's processor; its image processor is set where it can be.
        model: The type of the model (`config.model_type`).

    Returns:
        A sentence for each thing that cannot be matched on this model.

    Raises:
        CdkitError: The model has no system message, or takes no other conversation.
    """
    here = protocol.at(model=model)
    try:
        prompt_under(here, "?", adapter=adapter, processor=processor)
    except CdkitError as error:
        raise CdkitError(f"protocol {protocol.name}: {error}") from None
    if here.image_preprocessing is None:
        return ()
    try:
        set_preprocessing(processor, here.image_preprocessing)
    except CdkitError:
        return (_images_differ(here.image_preprocessing, processor),)
    return ()


def unmatched(
    protocol: Protocol,
    *,
    processor: Any = None,
    benchmark: Benchmark | None = None,
    model: str | None = None,
) -> list[str]:
    """What of a protocol a run cannot match, for its report.

    Args:
        protocol: The protocol, with its sections.
        processor: The model's processor, after `prepare`; None: nothing is said of images.
        benchmark: The benchmark, as `apply` returns it; None: nothing is said of its files.
        model: The type of the model (`config.model_type`).

    Returns:
        Sentences; empty where all is matched as far as is known.
    """
    name = None if benchmark is None else BENCHMARKS.name_of(type(benchmark))
    here = protocol.at(model=model, benchmark=name)
    found = list(protocol.unmatched.values())
    wanted = here.image_preprocessing
    if processor is not None and wanted is not None and preprocessing_of(processor) != wanted:
        found.append(_images_differ(wanted, processor))
    if benchmark is not None and here.image_count is not None:
        count = len({sample.group for sample in benchmark.samples()})
        if count != here.image_count:
            found.append(
                f"{protocol.name} asks about {here.image_count} images, this run about {count}."
            )
    return found


def _images_differ(wanted: str, processor: Any) -> str:
    now = preprocessing_of(processor)
    kind = type(processor.image_processor).__name__
    how = IN_WORDS[now] if now is not None else "images are made in a way of its own"
    return f"The authors' images: {IN_WORDS[wanted]}. Here, by {kind}: {how}."


def not_their_papers(protocol: Protocol, methods: Mapping[str, Method]) -> str | None:
    """One sentence about methods that run under the protocol of another paper.

    Args:
        protocol: The protocol.
        methods: What tables call a method -> the method. Controls and the plain model have no
            paper, and nothing is said of them.

    Returns:
        The sentence; None where each method is of the protocol's paper, or it names none.
    """
    if not protocol.paper:
        return None
    strangers = [
        name
        for name, method in methods.items()
        if method.name not in protocol.paper and not _has_no_paper(method)
    ]
    if not strangers:
        return None
    verb = "is" if len(strangers) == 1 else "are"
    whose = "its own paper's" if len(strangers) == 1 else "their own papers'"
    unset = [n for n in strangers if methods[n].name not in protocol.methods]
    return (
        f"{_listed(strangers)} {verb} run under {protocol.name}, the protocol of "
        f"{_listed(protocol.paper)}, and not under {whose}: numbers of the papers are not to be "
        "expected" + (f" (parameters of {_listed(unset)} as in the preset)" if unset else "")
    )


def _has_no_paper(method: Method) -> bool:
    return method.is_identity or method.summary.startswith(CONTROL)


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
