"""MME's questions as they circulate: one text file a task, or the release's folder a task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.benchmark_files import located, read_source, yes_or_no
from cdkit.interfaces.sample import Sample
from cdkit.registry import unknown

QUESTIONS = "questions_answers_YN"
PICTURES = (".jpg", ".jpeg", ".png")
"""How the release's images end, also in capitals."""
ONE_PHOTO = ("existence", "count", "position", "color")
"""Tasks about photos of COCO, one photo in several of them under one name. In the others a name
says nothing outside its task: three tasks have a `0001.png` each."""

Row = tuple[str, tuple[str, ...]]
"""`(FILE:LINE, cells)`; the cells are image, question, yes or no, and maybe an answer."""


@dataclass(frozen=True)
class MMEQuestion:
    """One row of a task, with its recorded answer, if there is one."""

    task: str
    sample: Sample
    answer: str | None
    where: str


@dataclass(frozen=True, eq=False)
class MMETask:
    """The questions of a task, and the SHA-256 of each of its files, by path."""

    sources: Mapping[str, str]
    questions: tuple[MMEQuestion, ...]


def read_tasks(
    folder: Path, wanted: Sequence[str], known: Sequence[str], subfolder: str
) -> Mapping[str, MMETask]:
    """The tasks `wanted` (all that there are, where it is empty), in the order of `known`."""
    if not folder.is_dir():
        raise CdkitError(f"{folder} is no folder: MME is a folder with TASK.txt or TASK/ for each")
    texts = {path.stem: path for path in sorted(folder.glob("[!.]*.txt"))}
    for name, path in texts.items():
        if name not in known:
            raise CdkitError(f"{path}: {unknown('MME task', name, known)}")
    # The release has other folders beside the tasks' (its eval_tool).
    folders = {name: folder / name for name in known if (folder / name).is_dir()}
    if texts and folders:
        raise CdkitError(
            f"{folder} has both {min(texts)}.txt and the folder {min(folders)}: keep either the "
            "text files or the release's folders"
        )
    there = texts or folders
    chosen = [task for task in known if task in (wanted or there)]
    lacking = [task for task in chosen if task not in there] if chosen else ["any task"]
    if lacking:
        raise CdkitError(
            f"{folder} has no file of {', '.join(lacking)}: a task is read from TASK.txt or from "
            f"the release's folder TASK, and there is {', '.join(there) or 'none'}"
        )
    if texts:
        return {task: _from_text(task, texts[task], subfolder) for task in chosen}
    return {task: _from_folder(task, folders[task]) for task in chosen}


def _from_text(task: str, path: Path, subfolder: str) -> MMETask:
    source = read_source(path)
    rows = [(where, tuple(line.split("\t"))) for where, line in source.lines()]
    place = subfolder.replace("{task}", task)
    return MMETask({str(path): source.sha256}, tuple(_questions(task, rows, place)))


def _from_folder(task: str, folder: Path) -> MMETask:
    """Images in `images`, and a file of questions for each in `questions_answers_YN`; in the
    smaller tasks both lie in the folder itself."""
    apart = (folder / QUESTIONS).is_dir()
    asked, images = (folder / QUESTIONS, folder / "images") if apart else (folder, folder)
    place = f"{task}/images" if apart else task
    pictures: dict[str, list[str]] = {}
    for name in sorted(path.name for path in images.glob("[!.]*")):
        if name.lower().endswith(PICTURES):
            pictures.setdefault(Path(name).stem, []).append(name)
    rows: list[Row] = []
    sources: dict[str, str] = {}
    for path in sorted(asked.glob("[!.]*.txt")):
        found = pictures.get(path.stem, [])
        if len(found) != 1:
            raise CdkitError(
                f"{path} asks about {path.stem}, and {images} has {', '.join(found) or 'no image'} "
                f"of this name: it needs one ({', '.join(PICTURES)})"
            )
        source = read_source(path)
        sources[str(path)] = source.sha256
        rows += [(where, (found[0], *line.split("\t"))) for where, line in source.lines()]
    if not rows:
        raise CdkitError(f"{asked} has no question: a task's folder holds a .txt for each image")
    return MMETask(sources, tuple(_questions(task, rows, place)))


def _questions(task: str, rows: Sequence[Row], place: str) -> Iterator[MMEQuestion]:
    asked: set[tuple[str, str]] = set()
    for number, (where, cells) in enumerate(rows):
        if len(cells) not in (3, 4) or not all(cell.strip() for cell in cells[:3]):
            raise CdkitError(
                f"{where} has {len(cells)} cells, or an empty one: a row is image, question, yes "
                "or no, and maybe an answer, with a tab between each"
            )
        image, question = cells[0].strip(), cells[1].strip()
        partner = rows[number ^ 1][1][0].strip() if number ^ 1 < len(rows) else None
        if partner != image:
            raise CdkitError(
                f"{where} is about {image}, the other row of its pair about "
                f"{partner or 'nothing'}: an image has two questions, one after the other"
            )
        if (image, question) in asked:
            raise CdkitError(f"{where} asks the same of {image} again: each question stands once")
        asked.add((image, question))
        target = yes_or_no(cells[2], where)
        with located(where):
            sample = Sample(
                id=f"{task}/{number + 1}",
                image="/".join(filter(None, (place, image))),
                prompt=question,
                group=image if task in ONE_PHOTO else f"{task}/{image}",
                target=target,
            )
        yield MMEQuestion(task, sample, cells[3] if len(cells) == 4 else None, where)
