"""Turn Qwen-VL as it was published into a folder that `from_pretrained` loads."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cdkit import CdkitError

from .configuration import QwenVLConfig
from .image_processor import QwenVLImageProcessor
from .modeling import QwenVLForConditionalGeneration
from .processing import BASE_TEMPLATE, CHAT_TEMPLATE, QwenVLProcessor
from .published import read_config, read_generation
from .tokenizer import IMAGE_START, SPECIAL, build_tokenizer, read_ranks
from .weight_files import shapes, tensors, weight_files
from .weights import BUFFERS, Rule, rules

SHOWN = 5
"""Names an error lists of each kind of fault."""


def convert(
    folder: str | Path, out: str | Path, *, progress: Callable[[str], object] | None = None
) -> Path:
    """Write the model, its processor and its generation settings to `out`, which must be empty.

    `folder` is a copy of Qwen/Qwen-VL or Qwen/Qwen-VL-Chat: config.json, qwen.tiktoken, weights.
    Every tensor is accounted for before anything is written; then one file after the other is
    read and written, config.json last. `progress` is called with each weight file's name.
    """
    folder, out = Path(folder), Path(out)
    config = read_config(folder / "config.json")
    ranks = read_ranks(folder / "qwen.tiktoken")
    _check_ids(config, first_special=len(ranks))
    generation, chats = read_generation(folder / "generation_config.json", first_special=len(ranks))
    files = weight_files(folder)
    plan = rules(config)
    _check_weights(config, plan, [shapes(file) for file in files])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CdkitError(f"{out} exists and is not an empty folder; name another one")
    out.mkdir(parents=True, exist_ok=True)
    _write_weights(files, plan, out, progress or (lambda name: None))
    _processor(
        config,
        build_tokenizer(ranks, limit=config.text_config.max_position_embeddings),
        CHAT_TEMPLATE if chats else BASE_TEMPLATE,
    ).save_pretrained(out)
    generation.save_pretrained(out)
    config.architectures = [QwenVLForConditionalGeneration.__name__]
    config.save_pretrained(out)
    return out


def _processor(
    config: QwenVLConfig, tokenizer: PreTrainedTokenizerFast, template: str
) -> QwenVLProcessor:
    side = config.vision_config.image_size
    return QwenVLProcessor(  # type: ignore[no-any-return]
        QwenVLImageProcessor(size={"height": side, "width": side}),
        tokenizer,
        chat_template=template,
        image_seq_length=config.vision_config.num_queries,
    )


def _check_ids(config: QwenVLConfig, *, first_special: int) -> None:
    """The vocabulary file must put the image's tokens where the configuration says."""
    wanted = config.image_start_token_id
    found = first_special + SPECIAL.index(IMAGE_START)
    if found != wanted:
        raise CdkitError(
            f"qwen.tiktoken puts {IMAGE_START} at id {found}, config.json at {wanted}: the two are "
            "not of one checkpoint, or a file is cut short"
        )
    if first_special + len(SPECIAL) > config.text_config.vocab_size:
        raise CdkitError(
            f"the tokenizer has {first_special + len(SPECIAL)} tokens and the model embeds "
            f"{config.text_config.vocab_size}"
        )


def _check_weights(
    config: QwenVLConfig,
    plan: Mapping[str, Rule],
    found: Sequence[Mapping[str, tuple[int, ...]]],
) -> None:
    """Every tensor of the plan once, in its shape, and no other; all faults in one error."""
    counts = Counter(key for file in found for key in file if not BUFFERS.fullmatch(key))
    with torch.device("meta"):
        model = QwenVLForConditionalGeneration(config)
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    odd = [
        f"{key} {list(shape)}"
        for file in found
        for key, shape in file.items()
        if key in plan and not plan[key].fits(shape, wanted)
    ]
    faults = {
        "unknown": [key for key in counts if key not in plan],
        "missing": [key for key in plan if key not in counts],
        "there twice": [key for key, count in counts.items() if count > 1],
        "of another shape": odd,
    }
    listed = [f"{len(keys)} {what} ({_some(keys)})" for what, keys in faults.items() if keys]
    if listed:
        raise CdkitError(
            f"the weights are not those of a Qwen-VL with this config.json: {'; '.join(listed)}"
        )


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:SHOWN]) + (", ..." if len(first) > SHOWN else "")


def _write_weights(
    files: Sequence[Path], plan: Mapping[str, Rule], out: Path, progress: Callable[[str], object]
) -> None:
    """A safetensors file for each file read, and their index."""
    places: dict[str, str] = {}
    size = 0
    for number, file in enumerate(files, 1):
        progress(file.name)
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        ours: dict[str, Tensor] = {}
        for key, value in tensors(file):
            if key in plan:
                ours |= plan[key].apply(value)
        save_file(ours, out / name, metadata={"format": "pt"})
        places |= dict.fromkeys(ours, name)
        size += sum(value.nbytes for value in ours.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (out / "model.safetensors.index.json").write_text(
        json.dumps(index, indent=2) + "\n", encoding="utf-8", newline="\n"
    )
