"""What a model is asked: a prompt about an image, however many benchmarks ask it."""

from dataclasses import dataclass, field
from pathlib import Path

from PIL.Image import Image

from cdkit.errors import CdkitError
from cdkit.evals.runner.pictures import load_picture
from cdkit.interfaces.benchmark import Benchmark
from cdkit.interfaces.sample import Sample, check_inside


@dataclass(frozen=True)
class Question:
    """A prompt about an image; benchmarks that ask the same share it.

    Args:
        image: The image file.
        prompt: The question without a chat template.
        limit: Most tokens of the answer.
        yes_no: Whether the right answer is yes or no, so that the first token may decide.
        folder: The folder that the image must not lead out of by a link; None: any.
    """

    image: Path
    prompt: str
    limit: int
    yes_no: bool
    folder: Path | None = field(default=None, compare=False)

    @property
    def sample_id(self) -> str:
        """The name by which noise of this question is drawn; the folder does not matter."""
        return f"{self.image.name}: {self.prompt}"

    def picture(self) -> Image:
        """The image, whole and in RGB; a CdkitError where it cannot be read or is a link away."""
        if self.folder is not None:
            try:
                check_inside(self.image, self.folder)
            except CdkitError as error:
                raise CdkitError(f"cannot use the image {error}") from None
        return load_picture(self.image)


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
    return Question(images / sample.image, sample.prompt, limit, yes_no, images)


def asked_samples(benchmark: Benchmark, limit: int | None) -> list[Sample]:
    """All samples; with `limit` those of the first so many images."""
    samples = benchmark.samples()
    kept = set(list(dict.fromkeys(sample.group for sample in samples))[:limit])
    return [sample for sample in samples if sample.group in kept]
