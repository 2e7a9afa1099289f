"""An lmms-eval model: any of its tasks about images, under any of cdkit's methods.

    lmms-eval --model cdkit --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=cmac,alpha=1.0 \
        --tasks pope --batch_size 8

docs/lmms_eval.md says what is guaranteed. Only lmms-eval imports this file.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from lmms_eval.api.instance import (  # pyright: ignore[reportMissingImports]
    GenerationResult,
    Instance,
    TokenCounts,
)
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from loguru import logger  # pyright: ignore[reportMissingImports]
from PIL.Image import Image
from tqdm import tqdm

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.integrations.lmms_eval.options import protocol_notes, read_options
from cdkit.evals.integrations.lmms_eval.request_answers import DecodedAnswer, answers
from cdkit.evals.integrations.lmms_eval.requests import Request, batches, naming_errors, repeats
from cdkit.evals.integrations.lmms_eval.task_decoding import IDLE, check_decoding, read_decoding
from cdkit.evals.protocols.follow import prepare
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.checkpoint_settings import notes


class Cdkit(lmms):  # type: ignore[misc]
    """A model of transformers with a method attached while it answers.

    Every process holds the whole model and answers its share of the documents. Whatever fails is
    raised with the task and the documents; nothing is scored in its place.
    """

    is_simple = True  # asked with a text and images, not with a conversation

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.options = options = read_options(given)
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        if self._world_size > 1 and options.device_map is not None:
            raise CdkitError(
                f"device_map={options.device_map} spreads one model over devices, and "
                f"{self._world_size} processes each hold a whole one: leave one of them out"
            )
        alone = options.device if self._world_size == 1 else None
        device = alone or self.accelerator.device
        self._model, self._processor = options.chosen.load(device, device_map=options.device_map)
        if options.protocol is not None:
            prepare(
                options.protocol,
                adapter=cdkit.adapter_for(self._model),
                processor=self._processor,
                model=options.model_type,
            )
        if self._rank == 0:
            logger.info(options.chosen.told(self._model))
            for note in (
                *notes(self._model, beams=True),
                *protocol_notes(options, self._processor),
            ):
                logger.warning(note)
        self.device: torch.device = self._model.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """One answer for each request, in their order."""
        # built here: lmms-eval frees the memory of a model by taking it from its attributes
        engine = AnswerEngine(self._model, self._processor, protocol=self.options.model_protocol)
        asked = self._read(engine, requests)
        answered: dict[int, DecodedAnswer] = {}
        with tqdm(total=len(asked), disable=self.rank != 0, desc="cdkit") as bar:
            for batch in batches(asked, self.options.batch_size):
                for part, images in self._of_equal_count(batch):
                    with naming_errors(part):
                        found = answers(
                            engine, self.options.method, part, images, self.options.seed
                        )
                    for request, answer in zip(part, found, strict=True):
                        answered[request.place] = answer
                        given = requests[request.place].args[1]
                        self.cache_hook.add_partial(
                            "generate_until", (request.text, given), answer.text
                        )
                    bar.update(len(part))
        made = (answered[place] for place in range(len(asked)))
        return [GenerationResult(s.text, TokenCounts(output_tokens=s.tokens)) for s in made]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "cdkit does not score continuations (output_type multiple_choice and loglikelihood): "
            "the plausibility constraint gives tokens a probability of 0, so choices tie, and "
            "lmms-eval's models disagree on the sign. Use a task that generates its answers."
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError(
            "cdkit answers single questions: tasks of output_type generate_until_multi_round "
            "cannot run. Use a task of output_type generate_until."
        )

    def _read(self, engine: AnswerEngine, requests: Sequence[Instance]) -> list[Request]:
        options, reported = self.options, set[tuple[str, str]]()
        lengths = engine.lengths([request.args[0] for request in requests])
        keys = ((request.args[4], request.args[3]) for request in requests)
        asked = []
        for place, (request, length, repeat) in enumerate(
            zip(requests, lengths, repeats(keys), strict=True)
        ):
            text, given, doc_to_visual, doc, task, split = request.args
            for name in sorted(IDLE.keys() & given.keys()):
                if (task, name) not in reported:
                    logger.warning(f"{task}: {name} has no effect under cdkit: {IDLE[name]}")
                reported.add((task, name))
            try:
                decoding = read_decoding(given, stop_at_blank_line=options.stop_at_blank_line)
                if options.model_protocol is not None:
                    check_decoding(options.model_protocol, decoding)
            except CdkitError as error:
                raise CdkitError(f"task {task}: {error}") from None
            visuals = partial(_visuals, self.task_dict, task, split, doc, doc_to_visual)
            asked.append(Request(place, task, doc, repeat, text, length, decoding, visuals))
        return asked

    def _of_equal_count(
        self, batch: Sequence[Request]
    ) -> Iterator[tuple[list[Request], list[tuple[Image, ...]]]]:
        """The batch in parts whose documents have equally many images."""
        loaded = []
        for request in batch:
            with naming_errors([request]):
                found = request.images(allow_truncated=self.options.allow_truncated_images)
            loaded.append((request, found))
        loaded.sort(key=lambda pair: len(pair[1]))
        for _, pairs in groupby(loaded, key=lambda pair: len(pair[1])):
            requests, images = zip(*pairs, strict=True)
            yield list(requests), list(images)


def _visuals(task_dict: Any, task: str, split: str, doc: Any, doc_to_visual: Any) -> Any:
    return doc_to_visual(task_dict[task][split][doc])
