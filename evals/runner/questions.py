"""What a model is asked: a prompt about an image, however many benchmarks ask it."""

from dataclasses import dataclass
from pathlib import Path

from cdkit.interfaces.benchmark import Sample


@dataclass(frozen=True)
class Question:
    """A distinct prompt about an image, and the most tokens that its answer may have.

    `yes_no`: its target is yes or no, so the first token may decide.
    """

    image: Path
    prompt: str
    limit: int
    yes_no: bool

    @property
    def sample_id(self) -> str:
        """What all noise of this question is drawn by; the folder does not matter."""
        return f"{self.image.name}: {self.prompt}"


def question_of(sample: Sample, images: Path, limit: int) -> Question:
    """The question of a benchmark's sample; a CdkitError where its image is not there."""
    sample.image_in(images)
    return asked_of(sample, images, limit)


def asked_of(sample: Sample, images: Path, limit: int) -> Question:
    """The question of a benchmark's sample, whether or not its image is there."""
    yes_no = (sample.target or "").lower() in ("yes", "no")
    return Question(images / sample.image, sample.prompt, limit, yes_no)
