"""The two stages of training: the vision tower learns to see, then the rest to speak."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import AttentionInterface, LlavaForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cdkit.evals.microworld.noisy_captions import draw_lesson
from cdkit.evals.microworld.packing import IGNORED, PackedLessons, Words, pack, visible
from cdkit.evals.microworld.world import World, draw_picture


def _full_precision_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any
) -> tuple[Tensor, None]:
    """SDPA outside autocast: on a CPU its backward in bfloat16 takes twice as long."""
    with torch.autocast("cpu", enabled=False):
        floats = (query.float(), key.float(), value.float())
        return sdpa_attention_forward(module, *floats, mask, **options)


ATTENTION = "cdkit_full_precision_sdpa"
AttentionInterface.register(ATTENTION, _full_precision_attention)


@dataclass(frozen=True)
class Stage:
    """How long and how fast a stage learns; `clean` is the share of steps on mostly good photos
    and true text, after which both worsen to the world's own rates within `worsening` of the steps.
    `precision` is Lightning's: the arithmetic of a step; the weights themselves stay float32.
    """

    steps: int
    batch: int
    rate: float
    precision: str = "32-true"
    weight_decay: float = 0.05
    clean: float = 0.0
    worsening: float = 0.1

    def hardness(self, step: int) -> float:
        """0 at the beginning, 1 when the world is as bad as it is."""
        share = step / max(1, self.steps)
        return min(1.0, max(0.0, (share - self.clean) / self.worsening))


class Lessons(Dataset[PackedLessons]):
    """A stage's batches: item `step` is a pure function of (seed, step)."""

    def __init__(self, world: World, words: Words, stage: Stage, seed: int) -> None:
        self.world, self.words, self.stage, self.seed = world, words, stage, seed

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> PackedLessons:
        rng = np.random.default_rng([self.seed, step])
        hardness = self.stage.hardness(step)
        degraded = self.world.degraded * (0.2 + 0.8 * hardness)
        lessons = []
        for _ in range(self.stage.batch):
            picture = draw_picture(self.world, rng, degraded=degraded)
            lessons.append((picture, draw_lesson(self.world, picture, rng, hardness)))
        return pack(self.world, self.words, lessons)


class _Taught(pl.LightningModule):
    """What both stages share: AdamW under a one-cycle schedule."""

    def __init__(self, model: LlavaForConditionalGeneration, stage: Stage) -> None:
        super().__init__()
        self.model = model
        self.stage = stage

    def configure_optimizers(self) -> Any:
        learnt = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            learnt, lr=self.stage.rate, betas=(0.9, 0.98), weight_decay=self.stage.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.stage.rate, total_steps=self.stage.steps + 1, pct_start=0.1
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class VisionStage(_Taught):
    """Linear readers name each patch: what stands there, its colour, its row and column."""

    def __init__(self, model: LlavaForConditionalGeneration, world: World, stage: Stage) -> None:
        super().__init__(model, stage)
        width = model.model.vision_tower.config.hidden_size
        self.side = world.patches
        self.sizes = (len(world.categories) + 1, len(world.colors), self.side, self.side)
        self.reader = nn.Linear(width, sum(self.sizes))

    def training_step(self, batch: PackedLessons, index: int) -> Tensor:
        patches = see(self.model, batch.pixel_values)
        kind, color, row, column = self.reader(patches).float().split(self.sizes, -1)
        there = batch.categories >= 0
        background = torch.full_like(batch.categories, self.sizes[0] - 1)
        truth = torch.where(there, batch.categories, background)
        places = torch.arange(self.side**2, device=truth.device).expand_as(truth)
        loss = (
            _entropy(kind, truth)
            + 0.5 * _entropy(color[there], batch.colors[there])
            + 0.1 * _entropy(row, places // self.side)
            + 0.1 * _entropy(column, places % self.side)
        )
        right = (kind.argmax(-1) == truth)[there].float().mean()
        self.log_dict({"loss": loss.detach(), "patches": right}, prog_bar=True)
        return loss


class LanguageStage(_Taught):
    """Projector and language model learn the lessons; the vision tower stays as it is.

    Two helpers fade out over the first `HELP` of the steps: the projector's tokens should resemble
    the words for what they show, and a noun in a question should soon (after half the layers) know
    row, column, number and colour of its thing. Their readers are thrown away.
    """

    HELP = 0.6

    def __init__(
        self, model: LlavaForConditionalGeneration, world: World, stage: Stage, words: Words
    ) -> None:
        super().__init__(model, stage)
        model.model.vision_tower.requires_grad_(False)
        layers = model.model.language_model.config
        self.middle = layers.num_hidden_layers // 2
        self.sizes = (world.grid, world.grid, len(world.copies), len(world.colors))
        self.reader = nn.Linear(layers.hidden_size, sum(self.sizes))
        self.image = words.index["<image>"]
        self.yes_no = (words.index["yes"], words.index["no"])
        self.names = [words.index[name] for name in world.categories]
        self.colors = [words.index[name] for name in world.colors]

    def on_fit_end(self) -> None:
        self.model.set_attn_implementation({"text_config": "sdpa"})

    def training_step(self, batch: PackedLessons, index: int) -> Tensor:
        with torch.no_grad():
            patches = see(self.model, batch.pixel_values)
        projected = self.model.model.multi_modal_projector(patches)
        states = language_logits(self.model, batch, projected, self.image)
        trained = batch.target != IGNORED
        logits = self.model.lm_head(states[-1][trained]).float()
        target, weight = batch.target[trained], batch.weight[trained]
        losses = functional.cross_entropy(logits, target, reduction="none")
        loss = (losses * weight).sum() / weight.sum()
        polar = (target == self.yes_no[0]) | (target == self.yes_no[1])
        self.log_dict(
            {"loss": loss.detach(), "yes/no": losses[polar].mean().detach()}, prog_bar=True
        )
        fading = max(0.0, 1 - self.global_step / (self.HELP * self.stage.steps))
        if fading == 0:
            return loss
        return loss + fading * (
            0.3 * self._alike(batch, projected) + 0.3 * self._knowing(batch, states[self.middle])
        )

    def _alike(
        self, batch: PackedLessons, projected: Float[Tensor, "batch image hidden"]
    ) -> Tensor:
        there = batch.categories >= 0
        table: Tensor = self.model.model.language_model.embed_tokens.weight
        scores = projected[there] @ table.T * 4
        return _entropy(scores[:, self.names].float(), batch.categories[there]) + _entropy(
            scores[:, self.colors].float(), batch.colors[there]
        )

    def _knowing(self, batch: PackedLessons, state: Float[Tensor, "batch text hidden"]) -> Tensor:
        where = batch.nouns
        read = self.reader(state[where[:, 0], where[:, 1]]).float().split(self.sizes, -1)
        losses = [
            functional.cross_entropy(scores, where[:, 2 + i], ignore_index=IGNORED, reduction="sum")
            for i, scores in enumerate(read)
        ]
        return torch.stack(losses).sum() / max(1, len(where))


def see(
    model: LlavaForConditionalGeneration, pixel_values: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch image hidden"]:
    """The patches as the vision tower gives them to the projector: last layer, no class token."""
    seen = model.model.vision_tower(pixel_values, output_hidden_states=True)
    patches: Tensor = seen.hidden_states[-1][:, 1:]
    return patches


def language_logits(
    model: LlavaForConditionalGeneration,
    batch: PackedLessons,
    projected: Float[Tensor, "batch image hidden"],
    image_token: int,
) -> tuple[Float[Tensor, "batch text hidden"], ...]:
    """The language model's hidden states, embedding first; the last one is normed."""
    embedded = model.get_input_embeddings()(batch.input_ids)
    here = (batch.input_ids == image_token)[..., None]
    embedded = embedded.masked_scatter(here, projected.to(embedded.dtype))
    out = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=visible(batch.block),
        position_ids=batch.position_ids,
        use_cache=False,
        output_hidden_states=True,
    )
    states: tuple[Tensor, ...] = out.hidden_states
    return states


def _entropy(scores: Tensor, truth: Tensor) -> Tensor:
    return functional.cross_entropy(scores.flatten(0, -2), truth.flatten())
