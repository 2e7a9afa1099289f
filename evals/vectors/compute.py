"""Compute a file of directions: the states of all captions, the method's recipe, the manifest."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cdkit import __version__
from cdkit.errors import CdkitError
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.chosen_model import ChosenModel
from cdkit.evals.runner.fingerprints import model_files
from cdkit.evals.vectors.caption_states import Text, states_of
from cdkit.evals.vectors.pairs import Demonstrations
from cdkit.functional.directions import check_rank, shuffled_states
from cdkit.interfaces.adapter_lookup import adapter_for, unwrap
from cdkit.interfaces.demonstrations import DirectionRecipe
from cdkit.interfaces.vector_file import write_vectors
from cdkit.pretrained import MICRO, micro_path


def compute_vectors(
    engine: AnswerEngine,
    chosen: ChosenModel,
    method: str,
    recipe: DirectionRecipe,
    demonstrations: Demonstrations,
    out: Path,
    *,
    rank: int | None = None,
    shuffle: int | None = None,
    watch: Callable[[list[Text]], Iterable[Text]] = iter,
) -> dict[str, Any]:
    """Compute the directions of a method on a model, and write their file.

    Args:
        engine: The model with its processor.
        chosen: How the model was loaded.
        method: The method's name, for the manifest.
        recipe: How it makes directions.
        demonstrations: The pairs.
        out: The file to write.
        rank: The rank; None: as published.
        shuffle: The seed under which the pairs are shuffled, for a control; None: they are not.
        watch: Called with all captions; passes them on while it shows how far the work is.

    Returns:
        The manifest, but for what `write_vectors` adds.

    Raises:
        CdkitError: The rank is larger than the data allows, or a caption cannot be run.
    """
    pairs = demonstrations.pairs
    rank = recipe.rank if rank is None else rank
    model: Any = unwrap(engine.model)
    decoder: Any = adapter_for(model).decoder(model)
    hidden = decoder.get_input_embeddings().weight.shape[-1]
    check_rank(rank, len(pairs), hidden, centred=recipe.centred)
    texts = [(p, p.truthful) for p in pairs] + [(p, p.hallucinated) for p in pairs]
    truthful, hallucinated = states_of(engine, watch(texts), recipe).chunk(2)
    if shuffle is not None:
        truthful, hallucinated = shuffled_states(truthful, hallucinated, seed=shuffle)
    directions = recipe.directions(truthful, hallucinated, rank).to(truthful.dtype)
    if not bool(directions.isfinite().all()):
        raise CdkitError(
            "the states of these captions are not finite on this model: load it in another "
            "precision (--dtype bfloat16 or float32)"
        )
    path = str(micro_path()) if chosen.name == MICRO else chosen.name
    prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
    manifest = {
        "method": method,
        "cdkit": __version__,
        "model": {
            "name": chosen.name,
            "type": model.config.model_type,
            "files": model_files(path, chosen.revision),
        },
        "data": {"sha256": demonstrations.sha256, "pairs": len(pairs)},
        "prompts": {"first": prompts[0], "different": len(prompts)},
        "rank": rank,
        "shuffled": shuffle,
    }
    write_vectors(out, directions, decoder, manifest)
    return manifest
