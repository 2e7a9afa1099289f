"""`cdkit data check`: what a data folder holds, what it lacks, and what is odd about it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.data_folders import HELP
from cdkit.evals.benchmarks.mme import TASKS
from cdkit.evals.data.files_check import FEW, FileFound, ImagesFound, examine, examine_images
from cdkit.evals.data.layout import layout_of, layouts, load, located_in
from cdkit.interfaces.data_folder import LocatedPart
from cdkit.interfaces.sample import Sample

TYPO = "imange"
"""POPE's script puts "an" for every "a" of its template, and the word "image" has one."""


CATALOGUED = (
    *("path", "folder", "synonyms", "annotations", "associations", "safe_words", "splits"),
)
"""Fields of benchmarks that name files of which published versions are known (see known.toml)."""


@dataclass(frozen=True)
class PartReport:
    """One part of a benchmark. A problem would stop or spoil a run, a note would not."""

    name: str
    bench: str
    files: tuple[FileFound, ...] = ()
    questions: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)
    images: ImagesFound | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class FolderReport:
    """What was found in a folder; `absent` maps a benchmark to what its search expects."""

    folder: str
    parts: tuple[PartReport, ...]
    absent: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether everything that is there can be run."""
        return not any(part.problems for part in self.parts)


def check(folder: Path, *, decode: bool = False) -> FolderReport:
    """Everything of every known benchmark in the folder; one with none of them raises.

    `decode` reads each image in full, so that a truncated one is found too; else heads only.
    """
    parts: list[PartReport] = []
    absent: dict[str, tuple[str, ...]] = {}
    seen: dict[Path, str] = {}
    for bench, layout in layouts().items():
        try:
            found = located_in(bench, folder)
        except CdkitError as error:
            if not folder.is_dir():
                raise
            parts.append(PartReport(bench, bench, problems=(str(error),)))
            continue
        parts += [_part(part, folder, decode, seen) for part in found]
        if not found:
            absent[bench] = layout.expected
    if not parts:
        places = "; ".join(name for names in absent.values() for name in names)
        raise CdkitError(f"no benchmark is in {folder}: looked for {places}; {HELP}")
    return FolderReport(str(folder), tuple(parts), absent, tuple(_strays(folder, parts)))


def _part(part: LocatedPart, folder: Path, decode: bool, seen: dict[Path, str]) -> PartReport:
    files: list[FileFound] = []
    notes: list[str] = []
    problems: list[str] = []
    try:
        for key, path in part.files.items():
            for file in _files_of(path):
                found = examine(file, _called(file, folder))
                files.append(found)
                notes += _about_file(part, key, found)
                problems += _misplaced(part, file, found)
        samples = load(part, {}).benchmark.samples()
    except (CdkitError, OSError) as error:
        problems.append(str(error))
        return PartReport(
            part.name, part.bench, tuple(files), notes=tuple(notes), problems=tuple(problems)
        )
    images = examine_images(samples, part.images, decode=decode, seen=seen)
    place = _called(part.images, folder)
    if part.images.is_dir():
        problems += [
            f"{len(names):,} of {images.referenced:,} images in {place} are {fault} ({_few(names)})"
            for fault, names in images.wrong.items()
        ]
    else:
        problems.append(f"the folder {place} of its {images.referenced:,} images is not there")
    labels = Counter(sample.target for sample in samples if sample.target is not None)
    return PartReport(
        part.name,
        part.bench,
        tuple(files),
        len(samples),
        dict(sorted(labels.items(), reverse=True)),
        images,
        (*notes, *_about_questions(part, samples, labels)),
        tuple(problems),
    )


def _about_file(part: LocatedPart, key: str, file: FileFound) -> Iterator[str]:
    if file.oddities and file.known is None:  # some were published with them
        yield f"{file.path} has: {', '.join(file.oddities)}"
    if part.published and key in CATALOGUED and file.known is None:
        yield f"{file.path} is of no known version: sha256 {file.sha256}"


def _misplaced(part: LocatedPart, path: Path, file: FileFound) -> Iterator[str]:
    """A known file under the name of another one: "popular" that is called "random"."""
    if file.known is None:
        return
    wanted = (layout_of(part.bench).release or part.bench) == file.known.benchmark
    what = file.known.what.split(";")[0]
    if part.bench == "pope":
        wanted = wanted and f"pope_{what.replace(' ', '_')}" == part.name
    if part.bench == "mme":
        wanted = wanted and what == path.stem
    if not wanted:
        yield f"{file.path} is, by its sha256, {file.known}: give it its own name"


def _about_questions(
    part: LocatedPart, samples: Sequence[Sample], labels: Counter[str]
) -> Iterator[str]:
    if typos := sum(TYPO in sample.prompt for sample in samples):
        yield (
            f"{TYPO!r} stands for 'image' in {typos:,} questions, as in the first release: a model "
            "is asked so; later releases do not have it"
        )
    asked = Counter((sample.image, sample.prompt) for sample in samples)
    if twice := [image for (image, _), count in asked.items() if count > 1]:
        about = _few(list(dict.fromkeys(twice)))
        yield f"asked more than once: {len(twice):,} of the questions ({about})"
    if part.bench == "pope" and labels["yes"] != labels["no"]:
        yield f"labels are not balanced: {labels['yes']:,} yes, {labels['no']:,} no"
    if part.bench == "mme" and part.published:
        there = {sample.id.split("/")[0] for sample in samples}
        if lacking := [task for task in TASKS if task not in there]:
            yield f"{len(lacking)} of {len(TASKS)} tasks are not there: {', '.join(lacking)}"


def _files_of(path: Path) -> Iterator[Path]:
    """The file, or the task files of a folder of MME's; images are checked elsewhere."""
    if path.is_dir():
        yield from sorted(file for file in path.glob("*.txt") if file.stem in TASKS)
    elif path.is_file():
        yield path


def _strays(folder: Path, parts: Sequence[PartReport]) -> Iterator[str]:
    """Files that look like POPE's and that no part reads: a misspelt name would go unseen."""
    read = {folder / file.path for part in parts for file in part.files}
    found = [
        path
        for pattern in ("*pope*.json*", "pope/*.json*", "pope/*/*.json*")
        for path in sorted(folder.glob(pattern))
        if path.is_file() and "pope" in path.name and path not in read
    ]
    for path in dict.fromkeys(found):
        yield f"{_called(path, folder)} is read by no benchmark: is its name as it was published?"


def _called(path: Path, folder: Path) -> str:
    inside = path.is_relative_to(folder)
    return path.relative_to(folder).as_posix() if inside else str(path)


def _few(names: Sequence[str]) -> str:
    """The first names, none longer than a file's name should be."""
    short = [name if len(name) <= 80 else f"{name[:77]}..." for name in names[:FEW]]
    return ", ".join(short) + (", ..." if len(names) > FEW else "")
