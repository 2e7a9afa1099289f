"""HallusionBench's and ScienceQA's files in small; all of it is made up."""

import json
from pathlib import Path

FIGURES = (
    # category, subcategory, visual_input, set, figure, question, truth
    ("VD", "illusion", "1", "0", "0", "0", "1"),
    ("VD", "illusion", "1", "0", "0", "1", "0"),
    ("VD", "illusion", "2", "0", "1", "0", "0"),
    ("VD", "illusion", "2", "0", "1", "1", "0"),
    ("VD", "illusion", "2", "0", "2", "0", "1"),
    ("VS", "chart", "0", "0", "0", "0", "1"),
    ("VS", "chart", "0", "0", "0", "1", "0"),
    ("VS", "chart", "1", "0", "1", "0", "1"),
    ("VS", "chart", "2", "0", "2", "0", "0"),
    ("VS", "chart", "2", "0", "2", "1", "0"),
)
NATURAL, SOCIAL, LANGUAGE = "natural science", "social science", "language science"
PROBLEMS = {
    # question, choices, answer, hint, image, grade, subject
    "4": ("Which is a mammal?", ("a bee", "a cat"), 1, "", None, "grade2", NATURAL),
    "5": ("Which is north?", ("Ohio", "Utah", "Iowa"), 2, "", "image.png", "grade3", SOCIAL),
    "7": ("Which  eats?", ("a fox", "a fir"), 0, "Look at it.", "image.png", "grade8", NATURAL),
    "9": ("Which rhymes?", ("cat", "dog", "hat", "sun"), 3, "", "image.png", "grade7", LANGUAGE),
    "12": ("Which is hot?", ("ice", "sun"), 1, "", "image.png", "grade6", NATURAL),
}


def hallusion_rows(images: tuple[str, ...] = ()) -> list[dict[str, object]]:
    keys = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")
    rows: list[dict[str, object]] = []
    for *values, truth in FIGURES:
        row: dict[str, object] = dict(zip(keys, values, strict=True))
        place = f"./{values[0]}/{values[1]}/{values[3]}_{values[4]}.png"
        name = None if values[2] == "0" else place
        if images and name is not None:
            name = images[0] if values[0] == "VD" else images[-1]
        row |= {
            "sample_note": "made up",
            "question": f"Is it {values[5]}?",
            "gt_answer_details": "It is.",
            "gt_answer": truth,
            "filename": name,
        }
        rows.append(row)
    return rows


def write_hallusionbench(folder: Path, images: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "HallusionBench.json"
    path.write_text(json.dumps(hallusion_rows(images), indent=1))
    return path


def write_scienceqa(folder: Path) -> Path:
    """problems.json, with pid_splits.json beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = ("question", "choices", "answer", "hint", "image", "grade", "subject")
    problems = {
        name: {**dict(zip(keys, values, strict=True)), "split": "test"}
        for name, values in PROBLEMS.items()
    }
    path = folder / "problems.json"
    path.write_text(json.dumps(problems, indent=1))
    splits = {"test": list(PROBLEMS), "val": []}
    (folder / "pid_splits.json").write_text(json.dumps(splits, indent=1))
    return path
