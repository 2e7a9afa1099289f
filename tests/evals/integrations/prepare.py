"""Run by the environment that has lmms-eval: its data sets, and what cdkit answers by itself.

    python prepare.py FOLDER

The answers come from `cdkit.attach` and the model's own `generate`, a question at a time: nothing
of the harness is used for them but the names that the noise is drawn by.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import datasets  # pyright: ignore[reportMissingImports]
import torch
from PIL import Image
from transformers import LogitsProcessorList, TopPLogitsWarper

import cdkit
from cdkit.evals.microworld import write_benchmarks
from cdkit.evals.runner.gumbel import GumbelSampling

QUESTIONS, CAPTIONS = 16, 6
METHODS = ("plain", "cmac")
SEED = 3
Row = dict[str, Any]


def rows(folder: Path) -> dict[str, list[Row]]:
    """Task -> its documents: POPE's questions, captions, and two sets that cannot be answered."""
    files = write_benchmarks(folder / "world", images=6, exam_images=1)
    asked = [json.loads(line) for line in files.pope["adversarial"].read_text().splitlines()]
    questions = [
        {"image": picture(files.images / row["image"]), "question": row["text"],
         "answer": row["label"]}
        for row in asked[:QUESTIONS]
    ]  # fmt: skip
    names = files.caption_images.read_text().splitlines()[:CAPTIONS]
    captions = [
        {"image": picture(files.images / name), "question": files.caption_prompt, "answer": "a"}
        for name in names
    ]
    torn = [dict(row) for row in questions[:4]]
    torn[2]["image"] = torn[2]["image"][:150]
    blind = [dict(row) for row in questions[:3]]
    blind[1]["image"] = None
    return {"small_pope": questions, "small_captions": captions, "torn": torn, "blind": blind}


def picture(path: Path) -> bytes:
    return path.read_bytes()


def store(name: str, rows: list[Row], folder: Path) -> None:
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    columns["image"] = [b and {"bytes": b, "path": None} for b in columns["image"]]
    kinds = {"image": datasets.Image()} | dict.fromkeys(
        ("question", "answer"), datasets.Value("string")
    )
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    made.to_parquet(folder / f"{name}.parquet")


@torch.inference_mode()
def answer(
    model: Any, processor: Any, method: str, row: Row, name: str, *, repeat: int | None = None
) -> str:
    """Greedy, or with a repeat drawn at temperature 0.8 from the likeliest tokens of 0.9."""
    image = Image.open(io.BytesIO(row["image"])).convert("RGB")
    prompt = cdkit.adapter_for(model).prompt(row["question"], images=1, processor=processor)
    inputs = processor(images=[image], text=[prompt], return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    processors = LogitsProcessorList()
    if repeat is not None:
        drawn = f"{name}#{repeat}" if repeat else name
        processors = LogitsProcessorList(
            [
                lambda ids, scores: scores / 0.8,
                TopPLogitsWarper(0.9),
                GumbelSampling(SEED, [drawn], prompt_length=length, temperature=1.0),
            ]
        )
    with cdkit.attach(model, cdkit.load(method), processor=processor, seed=SEED, sample_ids=[name]):
        ids = model.generate(
            **inputs, max_new_tokens=24, do_sample=False, logits_processor=processors
        )
    said = processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True)
    return str(said.split(" and ")[0].strip())  # the captions' stop string


def main(folder: Path) -> None:
    model, processor = cdkit.load_model("micro")
    documents = rows(folder)
    for name, of_task in documents.items():
        store(name, of_task, folder)
    own = {
        method: {
            "small_pope": [
                [answer(model, processor, method, row, f"small_pope/{doc}")]
                for doc, row in enumerate(documents["small_pope"])
            ],
            "small_captions": [
                [
                    answer(model, processor, method, row, f"small_captions/{doc}", repeat=repeat)
                    for repeat in (0, 1)
                ]
                for doc, row in enumerate(documents["small_captions"])
            ],
        }
        for method in METHODS
    }
    (folder / "own.json").write_text(json.dumps(own))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
