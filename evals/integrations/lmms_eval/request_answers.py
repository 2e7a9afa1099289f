"""A batch of a harness's requests, answered by a model under a method."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL.Image import Image
from transformers import StoppingCriteriaList

from cdkit.errors import CdkitError
from cdkit.evals.integrations.lmms_eval.requests import MARK, Request, content
from cdkit.evals.integrations.lmms_eval.task_decoding import StopsAt, TaskDecoding, cut
from cdkit.evals.reports.results import mode_names
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.methods.method import Method


@dataclass(frozen=True)
class DecodedAnswer:
    """An answer's text up to its stop string, and how many tokens were generated for it."""

    text: str
    tokens: int


def check_mode(method: Method, decoding: TaskDecoding) -> None:
    """Raise where the method is not defined for what the task asks."""
    if decoding.mode not in method.modes:
        raise CdkitError(
            f"{method.name} is defined for {mode_names(method.modes)}, but the task asks for "
            f"{mode_names([decoding.mode])}: set do_sample, temperature and num_beams by "
            "--gen_kwargs, or use another method"
        )


def prompt(engine: AnswerEngine, text: str, images: int) -> str:
    """The text in the model's chat template: images where it marks them, else before it."""
    parts = content(text, images)
    if parts is None:
        engine.check_prompt(text)
        return engine.prompt(text, images)
    if images == 1 and text.lstrip().startswith(MARK):
        return engine.prompt(text.replace(MARK, "", 1).lstrip(), images)
    if engine.protocol is not None and (conversation := engine.protocol.settings(of="model")):
        fixed = [name for name in ("system", "template") if name in conversation]
        if fixed:
            raise CdkitError(
                f"its text places {images} images ({MARK}), and {fixed[0]} is set, which has the "
                f"images before the text: leave {fixed[0]} out, or take another task"
            )
    if not getattr(engine.processor, "chat_template", None):
        raise CdkitError(
            f"its text places {images} images ({MARK}), for which the model's processor has no "
            "chat template: only tasks with the images before the text can run on this model"
        )
    message = {"role": "user", "content": parts}
    return str(engine.processor.apply_chat_template([message], add_generation_prompt=True))


def answers(
    engine: AnswerEngine,
    method: Method,
    requests: Sequence[Request],
    images: Sequence[Sequence[Image]],
    seed: int,
) -> list[DecodedAnswer]:
    """One for each request; they share a decoding and their number of images."""
    (decoding,) = {request.decoding for request in requests}
    (count,) = {len(pictures) for pictures in images}
    check_mode(method, decoding)
    texts = [prompt(engine, request.text, count) for request in requests]
    inputs = engine.moved(engine.batch(images, texts))
    start = inputs["input_ids"].shape[1]
    sampled = decoding.temperature is not None
    warm = replace(
        engine,
        noise_seed=seed,
        temperature=decoding.temperature or 1.0,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
    )
    sampling = warm.sampling(seed if sampled else None, [r.draw_id for r in requests], start)
    rows, _ = warm.tokens(
        method,
        inputs,
        [request.noise_id for request in requests],
        limit=decoding.limit,
        processors=lambda trace: sampling,
        num_beams=decoding.num_beams,
        stopping_criteria=_stopping(engine, decoding, start),
        **dict(decoding.passed),
    )
    return [_said(engine, row, decoding) for row in rows]


def _stopping(engine: AnswerEngine, decoding: TaskDecoding, start: int) -> StoppingCriteriaList:
    def decode(ids: list[int]) -> str:
        return str(engine.processor.tokenizer.decode(ids, skip_special_tokens=True))

    stops = [StopsAt(decoding.until, start, decode)] if decoding.until else []
    return StoppingCriteriaList(stops)


def _said(engine: AnswerEngine, ids: list[int], decoding: TaskDecoding) -> DecodedAnswer:
    pad = engine.model.generation_config.pad_token_id
    kept = engine.until_end(ids)
    while kept and kept[-1] == pad:  # after a stop string, while its batch went on
        kept.pop()
    text = engine.processor.tokenizer.decode(kept, skip_special_tokens=True)
    return DecodedAnswer(cut(text, decoding.until).strip(), len(kept))
