"""PaliGemma: a SigLIP tower and a Gemma that reads the whole prompt both ways."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from cdkit import ADAPTERS, SeesAhead
from cdkit.models.layouts.standard import StandardAdapter, groups_of, joined_entries, one_entry_each


@ADAPTERS.register("paligemma")
class PaliGemma(StandardAdapter):
    """PaliGemmaForConditionalGeneration: the image's patches, `<bos>`, a short task, a newline.

    Image tokens attend to the question, so branches share nothing of a prompt. PaliGemma 2's
    decoder caps its attention logits: methods act on the capped ones.
    """

    example: ClassVar[str] = "google/paligemma-3b-mix-224"
    square_grid: ClassVar[bool] = True
    causal_prefix: ClassVar[bool] = False
    sees_ahead: ClassVar[SeesAhead] = "in prompts"
    required: ClassVar[tuple[str, ...]] = ("token_type_ids",)
    caps_logits: ClassVar[bool] = True
    image_first: ClassVar[bool] = True
    placeholder: ClassVar[str] = "<image>"
    fallback: ClassVar[str] = "{images}answer en {question}"

    def check_images(self, model: Any) -> None:
        pass  # every image is one square of the same size

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        vision = model.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        return groups_of(ids == model.config.image_token_id, patches)

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        return one_entry_each(given)

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return joined_entries(images, given)
