"""Where the files of each benchmark lie in a user's data folder (docs/data.md shows the tree)."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.mme import TASKS
from cdkit.evals.benchmarks.pope_building import PUBLISHED
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark
from cdkit.methods.presets import build
from cdkit.registry import UnknownNameError, unknown

HELP = "docs/data.md says where to get the files and how to lay them out"
PHOTOS: Mapping[str, str] = {
    "coco": "coco/val2014",
    "aokvqa": "coco/val2014",
    "gqa": "gqa/images",
}
"""The sets that POPE has questions about -> the folder of their images."""


@dataclass(frozen=True)
class DataPart:
    """A benchmark in a data folder, such as one negative sampling of POPE, and its image folder."""

    name: str
    benchmark: Benchmark
    images: Path


@dataclass(frozen=True)
class LocatedPart:
    """A part before its files are read.

    Args:
        name: The part's name.
        bench: The benchmark's registered name.
        files: Fields of the benchmark's class that are files or folders.
        images: The folder of its images.
        settings: Other fields that need another value than the default.
        published: Whether its files were published, so that they may be of a known version;
            `cdkit data micro-world` draws others.
    """

    name: str
    bench: str
    files: Mapping[str, Path]
    images: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    published: bool = True


@dataclass(frozen=True)
class FolderLayout:
    """How a benchmark lies in a data folder: what is expected, and the search for it.

    `find` raises a CdkitError where a benchmark is there in part; `only_part` is the field that
    says which part it is, so that no option may replace it; `release` is the benchmark whose
    published files it reads (see known.toml), where it is another one.
    """

    expected: tuple[str, ...]
    find: Callable[[Path], Iterator[LocatedPart]]
    only_part: str = ""
    release: str = ""


def parts_in(
    bench: str,
    folder: Path,
    *,
    only: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
) -> dict[str, DataPart]:
    """Read the parts of a benchmark in a data folder.

    Args:
        bench: A benchmark with a layout, such as "pope" (parts pope_coco_random, ...) or "chair".
        folder: The data folder.
        only: Names of the parts to read; by default all.
        options: Fields of the benchmark's class, such as `parsers` or `max_new_tokens`.

    Returns:
        Name -> part.

    Raises:
        CdkitError: The benchmark, or a part in `only`, is not in the folder, or a file is broken.
    """
    found = {part.name: part for part in located_parts(bench, folder)}
    for name in only:
        if name not in found:
            raise UnknownNameError(unknown(f"part of {bench} in {folder}", name, found))
    chosen = [part for name, part in found.items() if not only or name in only]
    return {part.name: load(part, options or {}) for part in chosen}


def located_parts(bench: str, folder: Path) -> tuple[LocatedPart, ...]:
    """As `located_in`, and a CdkitError where the benchmark is not in the folder at all."""
    found = located_in(bench, folder)
    if not found:
        raise CdkitError(
            f"there is no {bench} in {folder}: looked for {', '.join(layout_of(bench).expected)}; "
            f"{HELP}, and `cdkit data check {folder}` what is there"
        )
    return found


def located_in(bench: str, folder: Path) -> tuple[LocatedPart, ...]:
    """Find the parts of a benchmark in a data folder without reading them.

    Args:
        bench: The benchmark's name.
        folder: The data folder.

    Returns:
        The parts; empty if there are none.

    Raises:
        CdkitError: `folder` is no folder, a part is there twice, or only some of its files are.
    """
    if not folder.is_dir():
        raise CdkitError(f"{folder} is no folder: give the one that holds your data; {HELP}")
    found = tuple(layout_of(bench).find(folder))
    for name, count in Counter(part.name for part in found).items():
        if count > 1:
            paths = [path for part in found if part.name == name for path in part.files.values()]
            twice = ", ".join(map(str, paths))
            raise CdkitError(f"{name} is there more than once ({twice}): keep one")
    return found


def layout_of(bench: str) -> FolderLayout:
    """The layout of a benchmark.

    Args:
        bench: The benchmark's registered name.

    Raises:
        CdkitError: The benchmark is not registered, or has no layout.
    """
    if bench not in BENCHMARKS:
        if bench in LAYOUTS:
            raise CdkitError(f"the benchmark {bench} is not available in this installation")
        raise UnknownNameError(unknown("benchmark", bench, BENCHMARKS))
    if bench not in LAYOUTS:
        raise CdkitError(
            f"the benchmark {bench} has no layout in a data folder (these have: "
            f"{', '.join(LAYOUTS)}): name its files in an ablation's grid, or build it in Python"
        )
    return LAYOUTS[bench]


def load(part: LocatedPart, options: Mapping[str, object]) -> DataPart:
    """Read the files of a part.

    Args:
        part: The part.
        options: Fields of the benchmark's class.

    Returns:
        The part with its benchmark.

    Raises:
        CdkitError: A file is broken, or an option is not a field or is fixed by the layout.
    """
    mine = layout_of(part.bench).only_part
    if mine in options:
        raise CdkitError(
            f"{mine!r} is no option of {part.bench} in a data folder: the layout says which file "
            "belongs to which part"
        )
    values = {**part.files, **part.settings, **options}
    benchmark: Benchmark = build(BENCHMARKS[part.bench], values, part.name)
    return DataPart(part.name, benchmark, part.images)


def is_micro(folder: Path) -> bool:
    """Whether `cdkit data micro-world` wrote the folder."""
    return (folder / "placement.json").is_file() and any(folder.glob("micro_pope_*.json"))


def _pope(folder: Path) -> Iterator[LocatedPart]:
    if is_micro(folder):
        for split in PUBLISHED:
            path = folder / f"micro_pope_{split}.json"
            if path.is_file():
                name, images = f"pope_micro_{split}", folder / "images"
                yield LocatedPart(name, "pope", {"path": path}, images, published=False)
        return
    for photos, pictures in PHOTOS.items():
        # The last two are the folders of POPE's repository, so that a clone of it will do.
        places = ("", "pope", f"pope/{photos}", f"pope/output/{photos}")
        for split in PUBLISHED:
            for place in (*places, f"pope/output/seem/{photos}"):
                for stem in (f"{photos}_pope_{split}", f"{photos}_pope_seem_{split}"):
                    for suffix in (".json", ".jsonl"):
                        path = folder / place / f"{stem}{suffix}"
                        if path.is_file():
                            name = f"pope_{photos}_{split}"
                            yield LocatedPart(name, "pope", {"path": path}, folder / pictures)


def _chair(folder: Path) -> Iterator[LocatedPart]:
    if is_micro(folder):
        from cdkit.evals.microworld.text import CAPTION_PROMPT

        names = {
            "synonyms": "synonyms.txt",
            "instances": "instances.json",
            "captions": "captions.json",
            "images": "caption_images.txt",
        }
        files = _all_of("chair", folder, names)
        # A caption of this world fits into 48 tokens: the limit of the default grid, too.
        settings = {"prompt": CAPTION_PROMPT, "max_new_tokens": 48}
        yield LocatedPart("chair", "chair", files, folder / "images", settings, published=False)
        return
    truth = _first(folder, *_packed("chair/ground_truth.json"))
    annotated = {
        "instances": "coco/annotations/instances_val2014.json",
        "captions": "coco/annotations/captions_val2014.json",
    }
    if truth is not None:
        files = {"ground_truth": truth}
    elif (folder / "chair").is_dir() or _first(folder, *_packed(annotated["captions"])) is not None:
        files = _all_of("chair", folder, annotated)
    else:
        return  # the instances alone are there for other things, such as to build POPE
    for key, name in (("synonyms", "chair/synonyms.txt"), ("images", "chair/images.txt")):
        if (folder / name).is_file():
            files[key] = folder / name
    yield LocatedPart("chair", "chair", files, folder / PHOTOS["coco"])


def _mme(folder: Path) -> Iterator[LocatedPart]:
    for place in ("mme", "mme/MME_Benchmark", "mme/MME_Benchmark_release_version/MME_Benchmark"):
        there = folder / place
        if any((there / f"{task}.txt").is_file() or (there / task).is_dir() for task in TASKS):
            images, settings = there, dict[str, object]()  # the release: all in one place
            if is_micro(folder):
                images = folder / "images"
            elif (there / "images").is_dir():  # beside text files
                images = there / "images"
                if any((images / task).is_dir() for task in TASKS):
                    settings = {"subfolder": "{task}"}
            published = not is_micro(folder)
            yield LocatedPart("mme", "mme", {"folder": there}, images, settings, published)
            return


def _amber(folder: Path) -> Iterator[LocatedPart]:
    if not (folder / "amber").is_dir():
        return
    questions = _released(folder, "query/query_discriminative.json")
    truth = _released(folder, "annotations.json")
    if questions is None and _released(folder, "query/query_generative.json") is not None:
        return  # the generative part alone
    if questions is None or truth is None:
        lacking = "query_discriminative.json" if questions is None else "annotations.json"
        raise CdkitError(f"amber in {folder} is not whole: it lacks amber/{lacking}; {HELP}")
    files = {"path": questions, "annotations": truth}
    yield LocatedPart("amber", "amber", files, _amber_images(folder))


def _amber_generative(folder: Path) -> Iterator[LocatedPart]:
    questions = _released(folder, "query/query_generative.json")
    if questions is None:
        return
    files = {"path": questions}
    for key, name in (
        ("annotations", "annotations.json"),
        ("associations", "relation.json"),
        ("safe_words", "safe_words.txt"),
    ):
        path = _released(folder, name)
        if path is None:
            raise CdkitError(
                f"amber_generative in {folder} is not whole: it lacks amber/{name}; {HELP}"
            )
        files[key] = path
    yield LocatedPart("amber_generative", "amber_generative", files, _amber_images(folder))


def _released(folder: Path, name: str) -> Path | None:
    """A file of AMBER's release: in its folder `data`, or all of them in one folder."""
    return _first(folder, f"amber/data/{name}", f"amber/{name.rsplit('/', 1)[-1]}")


def _amber_images(folder: Path) -> Path:
    return folder / ("amber/images" if (folder / "amber/images").is_dir() else "amber/image")


def _hallusionbench(folder: Path) -> Iterator[LocatedPart]:
    path = _first(folder, "hallusionbench/HallusionBench.json")
    if path is not None:
        images = path.parent / "hallusion_bench"
        if not images.is_dir():  # unpacked without its own folder
            images = path.parent
        yield LocatedPart("hallusionbench", "hallusionbench", {"path": path}, images)


def _scienceqa(folder: Path) -> Iterator[LocatedPart]:
    for place in ("scienceqa", "scienceqa/data/scienceqa"):  # the second: a clone of the repository
        path, splits = folder / place / "problems.json", folder / place / "pid_splits.json"
        if not path.is_file():
            continue
        if not splits.is_file():
            raise CdkitError(
                f"scienceqa in {folder} is not whole: it lacks {place}/pid_splits.json; {HELP}"
            )
        images = folder / place / "images"
        if not images.is_dir():  # the splits' folders beside the problems
            images = folder / place
        yield LocatedPart("scienceqa", "scienceqa", {"path": path, "splits": splits}, images)
        return


LAYOUTS: Mapping[str, FolderLayout] = {
    "pope": FolderLayout(
        (
            "pope/{coco,aokvqa,gqa}/{coco,aokvqa,gqa}_pope_{random,popular,adversarial}.json",
            "the same names in pope/ or in the folder itself",
        ),
        _pope,
        only_part="path",
    ),
    "chair": FolderLayout(
        (
            "coco/annotations/instances_val2014.json with captions_val2014.json (or "
            "chair/ground_truth.json)",
        ),
        _chair,
    ),
    "mme": FolderLayout(("mme/TASK/ or mme/TASK.txt (existence, count, ...)",), _mme, "folder"),
    "amber": FolderLayout(
        ("amber/data/query/query_discriminative.json with amber/data/annotations.json",),
        _amber,
        only_part="path",
    ),
    "amber_generative": FolderLayout(
        (
            "amber/data/query/query_generative.json with annotations.json, relation.json and "
            "safe_words.txt in amber/data",
        ),
        _amber_generative,
        only_part="path",
        release="amber",
    ),
    "hallusionbench": FolderLayout(
        ("hallusionbench/HallusionBench.json",), _hallusionbench, only_part="path"
    ),
    "scienceqa": FolderLayout(
        ("scienceqa/pid_splits.json with the release's file of questions",),
        _scienceqa,
        only_part="path",
    ),
}


def _first(folder: Path, *names: str) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _packed(name: str) -> tuple[str, str]:
    return name, f"{name}.gz"


def _all_of(bench: str, folder: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """The files by the names of their fields; one that is lacking, plain or gzipped, raises."""
    found: dict[str, Path] = {}
    for key, name in names.items():
        path = _first(folder, *_packed(name))
        if path is None:
            raise CdkitError(f"{bench} in {folder} is not whole: it lacks {name}; {HELP}")
        found[key] = path
    return found
