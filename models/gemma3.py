"""Gemma 3: a SigLIP tower, pooled; its images' tokens attend to each other both ways."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from cdkit import ADAPTERS, CdkitError, SeesAhead
from cdkit.models.layouts.standard import StandardAdapter, joined_entries, one_entry_each, runs


@ADAPTERS.register("gemma3")
class Gemma3(StandardAdapter):
    """Gemma3ForConditionalGeneration: 256 tokens between a begin and an end mark for each image.

    Each crop of pan-and-scan is an image. Most layers attend to a sliding window of tokens, and use
    other rotary frequencies than the rest: for methods that change the attention, prompt and answer
    must fit into the window.
    """

    example: ClassVar[str] = "google/gemma-3-4b-it"
    square_grid: ClassVar[bool] = True
    sees_ahead: ClassVar[SeesAhead] = "in images"
    required: ClassVar[tuple[str, ...]] = ("token_type_ids",)
    placeholder: ClassVar[str] = "<start_of_image>"
    fallback: ClassVar[str] = (
        "<start_of_turn>user\n{images}{question}<end_of_turn>\n<start_of_turn>model\n"
    )

    def check(self, model: Any) -> None:
        if not hasattr(model, "generate"):  # ShieldGemma2ForImageClassification
            raise CdkitError(
                f"{type(model).__name__} gives the probabilities of yes and no, and generates no "
                "text; attach to model.model, and call model.model.generate"
            )
        super().check(model)

    def check_images(self, model: Any) -> None:
        pass  # marks stand between images

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return runs(ids == model.config.image_token_id)

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        return one_entry_each(given)

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return joined_entries(images, given)


@ADAPTERS.register("shieldgemma2")
class ShieldGemma2(Gemma3):
    """ShieldGemma 2: a Gemma 3 that answers yes or no about a policy.

    AutoModelForImageTextToText loads it as Gemma3ForConditionalGeneration, which generates text;
    ShieldGemma2ForImageClassification has that model inside, and is refused.
    """

    example: ClassVar[str] = "google/shieldgemma-2-4b-it"
