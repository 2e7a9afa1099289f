"""The answer proper in what a model wrote: without its thought and without a template's marks."""

import re

THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
"""What stands around a thought, in any case of the letters."""
UNFINISHED = "<think>"
"""What is left of a text that holds no more than a thought: in no parser's eyes an answer."""
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end▁of▁sentence|>",
    "<\uff5cend▁of▁sentence\uff5c>",
    "<|user|>",
    "<end_of_turn>",
    "<turn|>",
    "<eos>",
    "</s>",
    "<|im_start|>user",
    "<|start_header_id|>user",
    "<start_of_turn>user",
    "<|turn>user",
)
"""Marks that end an answer; what stands behind them is another turn."""

_ROLE = r"(?:\s*(?:assistant|model|gpt|bot)\b\s*:?)?"
_OPENING = "|".join(re.escape(opening) for opening, _ in THOUGHTS)
_CLOSING = "|".join(re.escape(closing) for _, closing in THOUGHTS)
_WHOLE = re.compile(
    "|".join(f"{re.escape(a)}.*?{re.escape(b)}" for a, b in THOUGHTS), re.DOTALL | re.IGNORECASE
)
_CLOSED = re.compile(_CLOSING, re.IGNORECASE)
_OPENED = re.compile(_OPENING, re.IGNORECASE)
_OPEN_AT_END = re.compile(rf"(?:{_OPENING})\s*$", re.IGNORECASE)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
_BOX = re.compile(r"<\|(?:begin|end)_of_box\|>|</?answer>", re.IGNORECASE)
_START = re.compile(
    r"^(?:\s*(?:<\|im_start\|>|<\|start_header_id\|>|<\|end_header_id\|>|<\|begin_of_text\|>"
    r"|<\|assistant\|>|<\|start\|>|<\|channel\|>final<\|message\|>|<[|\uff5c]begin▁of▁sentence[|\uff5c]>"
    r"|<start_of_turn>|<\|turn>|<bos>|<pad>|<unk>|<s>|</?inst>|\[/?INST\])"
    rf"{_ROLE}|\s*(?:###\s*)?(?:assistant|gpt)\s*:)+",
    re.IGNORECASE,
)
_END = re.compile("|".join(map(re.escape, ENDS)), re.IGNORECASE)
_DIALOGUE = re.compile(r"^\s*(?:user|human)\s*:.*?\b(?:assistant|gpt)\s*:", re.DOTALL | re.I)
"""A prompt that was decoded with its answer: "USER: ... ASSISTANT: Yes"."""


def proper_answer(text: str) -> str:
    """The answer in a text: what follows the thought, if there is one.

    A closing tag alone ends a thought too: many templates open it in the prompt. Marks of a chat
    template around the answer are taken off, and so are `<answer>` tags and boxes.

    Args:
        text: What the model wrote.

    Returns:
        The answer; `UNFINISHED` where the thought has no end or nothing follows it.
    """
    rest = _WHOLE.sub("\0", text)
    closed = [*_CLOSED.finditer(rest)]
    if closed:
        rest = "\0" + rest[closed[-1].end() :]
    opened = _OPENED.search(rest)
    if opened is not None:
        rest = "\0" + rest[: opened.start()]
    thought = "\0" in rest
    if not thought:
        return _unmarked(rest)
    return _unmarked(rest.replace("\0", " ").strip()) or UNFINISHED


def has_thought(text: str) -> bool:
    """Whether a thought, or what is left of one, stands in the text."""
    return bool(_OPENED.search(text) or _CLOSED.search(text))


def opens_thought(prompt: str) -> bool:
    """Whether a prompt ends with an open thought, so that the model begins inside it."""
    return bool(_OPEN_AT_END.search(prompt))


def is_thought_mark(token: str) -> bool:
    """Whether a token's text is (part of) what stands around a thought."""
    return any(token.strip().lower() in pair for pair in THOUGHTS)


def _unmarked(text: str) -> str:
    """Without marks; a text that has none is left as it is, blanks too."""
    found = _DIALOGUE.sub("", text, count=1)
    found = _START.sub("", found)
    if (end := _END.search(found)) is not None:
        found = found[: end.start()]
    if answers := _ANSWER.findall(found):
        found = answers[-1]
    found = _BOX.sub("", found)
    return text if found == text else found.strip()
