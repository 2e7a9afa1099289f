"""What a model is asked: a prompt about an image, however many benchmarks ask it."""

from dataclasses import dataclass
from pathlib import Path

from cdkit.interfaces.benchmark import Sample


@dataclass(frozen=True)
class Question:
    """A prompt about an image; benchmarks that ask the same share it.

    Args:
        image: The image file.
        prompt: The question without a chat template.
        limit: Most tokens of the answer.
        yes_no: Whether the right answer is yes or no, so that the first token may decide.
    """

    image: Path
    prompt: str
    limit: int
    yes_no: bool

    @property
    def sample_id(self) -> str:
        """The name by which noise of this question is drawn; the folder does not matter."""
        return f"{self.image.name}: {self.prompt}"


def question_of(sample: Sample, images: Path, limit: int) -> Question:
    """The question of a benchmark's sample.

    Args:
        sample: The sample.
        images: The folder of its image.
        limit: Most tokens of the answer.

    Returns:
        The question.

    Raises:
        CdkitError: The image is missing.
    """
    sample.image_in(images)
    return asked_of(sample, images, limit)


def asked_of(sample: Sample, images: Path, limit: int) -> Question:
    """The question of a benchmark's sample, whether or not its image is there."""
    yes_no = (sample.target or "").lower() in ("yes", "no")
    return Question(images / sample.image, sample.prompt, limit, yes_no)
