"""What a harness asks, in batches: documents, their images, and a name for each in every error."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageFile

from cdkit.errors import CdkitError
from cdkit.evals.integrations.lmms_eval.task_decoding import TaskDecoding

MARK = "<image>"
"""Where a task's text says that an image stands."""
EIGHT_BITS = ("1", "CMYK", "HSV", "L", "LA", "La", "LAB", "P", "PA", "RGB", "RGBA", "RGBa",
              "RGBX", "YCbCr")  # fmt: skip
"""Pillow's modes that turn into RGB without loss of what they show."""


@dataclass(frozen=True, eq=False)
class Request:
    """A document to answer. `repeat` counts the times it was asked before, in the same call."""

    place: int
    task: str
    doc: int | str
    repeat: int
    text: str
    length: int
    """Tokens of the text: batches of like length need little padding."""
    decoding: TaskDecoding
    find_visuals: Callable[[], Any]

    @property
    def noise_id(self) -> str:
        """What the distorted branches' noise is drawn by: the same in every repeat."""
        return f"{self.task}/{self.doc}"

    @property
    def draw_id(self) -> str:
        """What sampling is drawn by: another in every repeat."""
        return f"{self.noise_id}#{self.repeat}" if self.repeat else self.noise_id

    def images(self, *, allow_truncated: bool = False) -> tuple[Image.Image, ...]:
        """The document's images in RGB, none for a text; anything else is a CdkitError.

        A truncated file too, unless it is allowed: lmms-eval sets Pillow, for the whole process,
        to fill what is missing with grey.
        """
        try:
            with _truncated_images(allow_truncated):
                return tuple(_in_rgb(visual) for visual in self.find_visuals() or ())
        except CdkitError:
            raise
        except Exception as error:  # a broken image fails in the data set's own code
            hint = "; allow_truncated_images=true fills the rest with grey"
            raise CdkitError(
                f"cannot load the images: {type(error).__name__}: {error}"
                + hint * ("truncated" in str(error))
            ) from error


def repeats(keys: Iterable[object]) -> Iterator[int]:
    """How often each key came before: 0 where it is new."""
    seen: Counter[object] = Counter()
    for key in keys:
        yield seen[key]
        seen[key] += 1


def batches(requests: Sequence[Request], size: int) -> Iterator[tuple[Request, ...]]:
    """Requests that are decoded alike, `size` at most, the longest first: memory fails early."""
    groups: dict[TaskDecoding, list[Request]] = {}
    for request in sorted(requests, key=lambda request: -request.length):
        groups.setdefault(request.decoding, []).append(request)
    for group in groups.values():
        for start in range(0, len(group), size):
            yield tuple(group[start : start + size])


@contextmanager
def naming_errors(requests: Sequence[Request]) -> Iterator[None]:
    """Errors inside name the task and the documents; they are never an answer."""
    docs: dict[str, dict[str, None]] = {}
    for request in requests:
        docs.setdefault(request.task, {})[str(request.doc)] = None
    where = "; ".join(
        f"task {task}, document{'s' * (len(ids) > 1)} {', '.join(ids)}"
        for task, ids in docs.items()
    )
    try:
        yield
    except CdkitError as error:
        raise CdkitError(f"{where}: {error}") from error
    except Exception as error:
        error.add_note(f"raised while cdkit answered {where}")
        raise


def content(text: str, images: int) -> list[dict[str, str]] | None:
    """A chat message's content with the images where the text has them; None: before the text."""
    pieces = text.split(MARK)
    marks = len(pieces) - 1
    if not marks:
        return None
    if marks != images:
        raise CdkitError(
            f"its text has a place for {marks} images ({MARK}), but it has {images}: make the "
            "task's doc_to_text and doc_to_visual agree"
        )
    made = list[dict[str, str]]()
    for index, piece in enumerate(pieces):
        made += [{"type": "image"}] * bool(index)
        made += [{"type": "text", "text": piece}] * bool(piece.strip())
    return made


def _in_rgb(visual: Any) -> Image.Image:
    if not isinstance(visual, Image.Image):
        what = "a path, so a video" if isinstance(visual, str) else f"a {type(visual).__name__}"
        raise CdkitError(
            f"cdkit's methods are about images, and the task's doc_to_visual gave {what}: only "
            "tasks whose visuals are PIL images can run"
        )
    if visual.mode not in EIGHT_BITS:
        raise CdkitError(
            f"an image has Pillow's mode {visual.mode}, which has no known white: let the task's "
            "doc_to_visual convert it to RGB"
        )
    return visual.convert("RGB")  # reads what Pillow has only opened


@contextmanager
def _truncated_images(allowed: bool) -> Iterator[None]:
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = allowed
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
