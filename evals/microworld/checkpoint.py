"""The untrained micro LVLM, a true `LlavaForConditionalGeneration` with processor; its files."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cdkit.errors import CdkitError
from cdkit.evals.microworld.text import SPECIAL, vocabulary
from cdkit.evals.microworld.world import World

PAD, BOS, EOS, UNK, IMAGE = SPECIAL

# LLaVA-1.5's template; a system message stands before the first turn, as in its training.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ part['text'] + ' ' }}{% endfor %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Word-level, any case; colons vanish, so that "USER:" is the word "user"."""
    words = vocabulary(world)
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNK))
    core.normalizer = normalizers.Sequence([normalizers.Replace(":", " "), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))]
    )
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # joins "cat ," to "cat,"
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=1024,
    )


def build_processor(world: World) -> LlavaProcessor:
    """Images to `size x size` pixels in -1..1; needs PIL and numpy only, no torchvision."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": world.size},
        crop_size={"height": world.size, "width": world.size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=images,
        tokenizer=build_tokenizer(world),
        patch_size=world.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(world: World, seed: int) -> LlavaForConditionalGeneration:
    """The model before training, initialised by fan-in.

    The usual `initializer_range` of .02 leaves attention uniform at a width of 128, and nothing is
    learnt in minutes; with a standard deviation of fan-in ** -.5 it is.
    """
    words = vocabulary(world)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=world.size,
        patch_size=world.patch,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=words.index(PAD),
        bos_token_id=words.index(BOS),
        eos_token_id=words.index(EOS),
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.index(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=world.patches**2,
        tie_word_embeddings=True,
        dtype="float32",
    )
    model = LlavaForConditionalGeneration(config)
    _initialise(model, seed)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=words.index(BOS),
        eos_token_id=words.index(EOS),
        pad_token_id=words.index(PAD),
        max_new_tokens=64,
    )
    return model


@torch.no_grad()
def _initialise(model: LlavaForConditionalGeneration, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.zero_()
        elif weight.ndim == 1 and "class_embedding" not in name:
            weight.fill_(1)  # the norms
        else:
            std = 0.06 if "embed_tokens" in name else 0.2
            if "embedding" not in name and "embed_tokens" not in name:
                std = weight[0].numel() ** -0.5
            if "patch_embedding" in name:
                std = weight[0].numel() ** -0.5
            if name.endswith(
                ("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")
            ):
                std *= 0.7  # what is added to the residual stream
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    layers = model.model.language_model.layers
    for layer in layers[:2]:
        # Half the heads begin by matching like with like: a word finds the patches that mean it.
        rows = layer.self_attn.q_proj.weight.shape[0] // 2
        layer.self_attn.k_proj.weight[:rows] = layer.self_attn.q_proj.weight[:rows]


FILES = frozenset(
    (
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    )
)
"""What `save` writes."""


def check_target(folder: Path) -> None:
    """Raise where `save` could not write, or would replace anything but an earlier checkpoint."""
    if folder.is_symlink() and not folder.exists():
        raise CdkitError(f"{folder} is a link to nothing: name a folder for the checkpoint")
    parent = folder.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=parent):
            pass  # it can be written to: better known before half an hour of training
    except OSError as error:
        raise CdkitError(f"cannot write to {parent}: {error.strerror}") from None
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CdkitError(f"{folder} is a file: name a folder for the checkpoint")
    strangers = sorted({path.name for path in folder.iterdir()} - FILES)
    if strangers:
        raise CdkitError(
            f"{folder} holds {strangers[0]}, which is no part of a checkpoint: name a new folder, "
            "or the folder of an earlier checkpoint, which is replaced"
        )


def save(model: LlavaForConditionalGeneration, world: World, folder: Path) -> None:
    """Write model and processor for `from_pretrained(folder)`; replaces the folder in one step.

    A folder that holds anything but an earlier checkpoint is refused.

    The weights are stored in half precision. The config keeps `float32`, so that they are loaded
    as float32: arithmetic in half precision would be slow on a CPU.
    """
    folder = folder.resolve()
    check_target(folder)
    with _beside(folder) as fresh, _beside(folder) as old:
        state = {name: value.half() for name, value in model.state_dict().items()}
        model.save_pretrained(fresh, state_dict=state)
        build_processor(world).save_pretrained(fresh)
        fresh.chmod(0o755)  # a temporary folder is private, and so are safetensors' files
        for path in fresh.iterdir():
            path.chmod(0o644)
        if not folder.exists():
            os.replace(fresh, folder)
            return
        os.replace(folder, old / "replaced")
        try:
            os.replace(fresh, folder)
        except BaseException:
            os.replace(old / "replaced", folder)
            raise


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A temporary folder on the same disk, so that a move is one step; gone after the block."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
