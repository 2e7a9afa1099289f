"""InstructBLIP: a Q-Former that reads the question, in front of a Vicuna."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from cdkit import ADAPTERS
from cdkit.models.layouts.standard import StandardAdapter, groups_of, joined_entries, one_entry_each


@ADAPTERS.register("instructblip")
class InstructBlip(StandardAdapter):
    """InstructBlipForConditionalGeneration: `num_query_tokens` image tokens, then the text.

    The inner language model generates. The Q-Former reads the question as well, with another
    tokenizer, so what a method writes into the prompt is written into its text, too.
    """

    example: ClassVar[str] = "Salesforce/instructblip-vicuna-7b"
    decoder_path: ClassVar[str] = "language_model.model"
    lm_module_path: ClassVar[str] = "language_model"
    encoder_path: ClassVar[str] = ""
    encoder_text: ClassVar[str | None] = "qformer_input_ids"
    no_places: ClassVar[str] = (
        "its image tokens are queries of a Q-Former, and each of them reads the whole picture"
    )
    required: ClassVar[tuple[str, ...]] = ("qformer_input_ids",)
    image_first: ClassVar[bool] = True
    most_images: ClassVar[int | None] = 1
    fallback: ClassVar[str] = "{question}"  # the processor puts the image before it

    def check_images(self, model: Any) -> None:
        pass  # every image has the same number of tokens

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        config = model.config
        return groups_of(ids == config.image_token_id, config.num_query_tokens)

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        return one_entry_each(given)

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return joined_entries(images, given)
