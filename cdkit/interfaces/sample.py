"""One question of a benchmark, and one answer to it."""

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from cdkit.errors import CdkitError
from cdkit.interfaces.answer_text import UNFINISHED, proper_answer


@dataclass(frozen=True)
class Sample:
    """One question.

    Raises:
        CdkitError: If the id or the group is empty, or the image is outside the image folder.
    """

    id: str
    """The question's name, unique in the benchmark."""
    image: str
    """The path of the image inside the image folder."""
    prompt: str
    """The question as it is asked, without a chat template."""
    group: str
    """The name of the image as the unit of resampling."""
    target: str | None = None
    """The right answer; None where the benchmark has none."""

    def __post_init__(self) -> None:
        if not self.id or not self.group:
            raise CdkitError(f"a sample needs an id and a group, not {self.id!r}, {self.group!r}")
        if _outside(self.image):
            raise CdkitError(
                f"the image name {self.image!r} is not inside the image folder: "
                "use a file name or a relative path without '..'"
            )

    def image_in(self, folder: Path) -> Path:
        """Find the image file.

        Args:
            folder: The image folder.

        Returns:
            The path of the file.

        Raises:
            CdkitError: If there is no such file, or it is a link to a place outside the folder.
        """
        path = folder / self.image
        if not path.is_file():
            raise CdkitError(f"sample {self.id} needs the image {path}, which is no file")
        try:
            check_inside(path, folder)
        except CdkitError as error:
            raise CdkitError(f"sample {self.id} needs the image {error}") from None
        return path


@dataclass(frozen=True)
class Answer:
    """A model's answer to one sample.

    Raises:
        CdkitError: If the yes score is NaN.
    """

    text: str
    """The answer."""
    yes_score: float | None = None
    """logsumexp(yes variants) - logsumexp(no variants) of the first step's combined logits, BEFORE
    the plausibility constraint; None where the run did not record it."""
    truncated: bool = False
    """Whether the token limit ended the answer."""
    tokens: int = 0
    """How many tokens were generated."""

    def __post_init__(self) -> None:
        if self.yes_score is not None and math.isnan(self.yes_score):
            raise CdkitError("a yes score is NaN: the model's logits were not finite")

    def read(self) -> "Answer":
        """The answer proper, as benchmarks count it: without a thought and a template's marks.

        Where a thought is cut off, or nothing follows it, it is `unfinished`.
        """
        found = proper_answer(self.text)
        return self if found == self.text else dataclasses.replace(self, text=found)

    @property
    def unfinished(self) -> bool:
        """Of an answer as `read` gives it: whether it is a thought without an answer after it."""
        return self.text == UNFINISHED


@functools.lru_cache(maxsize=4096)  # an image's questions stand together: parsed once
def _outside(image: str) -> bool:
    """Whether an image name leads out of the image folder, on any system, or to no file in it."""
    posix, windows = PurePosixPath(image), PureWindowsPath(image)
    anchored = posix.is_absolute() or bool(windows.anchor)
    return not posix.parts or anchored or ".." in windows.parts or "\0" in image


def check_inside(path: Path, folder: Path) -> None:
    """The one rule about links: a file is used where no link leads out of its folder.

    The folder may be a link itself.

    Args:
        path: A file in `folder`, or below.
        folder: The folder of a benchmark's images.

    Raises:
        CdkitError: The file, or a folder on its way, is a link to something outside.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CdkitError(
            f"{path}, which is a link out of its folder: put the file there, or make the whole "
            f"folder {folder} a link"
        )
