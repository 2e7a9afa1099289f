"""The options that say what stands around a method: a protocol, or single settings of one."""

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Protocol"

ProtocolOption = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="Ask as a paper does: a protocol (see: cdkit list protocols) or a .toml file. Options "
        "given beside it win.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
QuestionSuffix = Annotated[
    str | None,
    typer.Option(help="Text behind each question.", rich_help_panel=PANEL, show_default="none"),
]
CaptionPrompt = Annotated[
    str | None,
    typer.Option(
        help="What a model is asked for a caption.",
        rich_help_panel=PANEL,
        show_default="the benchmark's",
    ),
]
Parser = Annotated[
    str | None,
    typer.Option(
        help="The parser that the plain metrics are made by.",
        rich_help_panel=PANEL,
        show_default="the benchmark's",
    ),
]
Scorer = Annotated[
    str | None,
    typer.Option(
        help="The scorer of captions.", rich_help_panel=PANEL, show_default="the benchmark's"
    ),
]
UnfinishedSentence = Annotated[
    str | None,
    typer.Option(
        help="kept or dropped: the last sentence of an answer that the token limit cut off.",
        rich_help_panel=PANEL,
        show_default="kept",
    ),
]
ImageList = Annotated[
    Path | None,
    typer.Option(
        help="A file that lists the images to ask about, one a line.",
        rich_help_panel=PANEL,
        show_default="all images",
    ),
]
ImageCount = Annotated[
    int | None,
    typer.Option(
        help="Ask about so many images of a benchmark alone.",
        rich_help_panel=PANEL,
        show_default="all images",
    ),
]
ImageSeed = Annotated[
    int | None,
    typer.Option(
        help="Draw the images of --image-count under this seed.",
        rich_help_panel=PANEL,
        show_default="the first ones",
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system",
        help="The system message.",
        rich_help_panel=PANEL,
        show_default="as the chat template has it",
    ),
]
Template = Annotated[
    str | None,
    typer.Option(
        help="The whole conversation, with {images} and {question}, in place of the chat template.",
        rich_help_panel=PANEL,
        show_default="the chat template",
    ),
]
ImagePreprocessing = Annotated[
    str | None,
    typer.Option(
        help="crop, pad or squash: how a picture becomes a square.",
        rich_help_panel=PANEL,
        show_default="as the checkpoint says",
    ),
]


def protocol_name(given: str | None) -> str | None:
    """A packaged protocol's name as it is; a file by its whole path, so that it is found again."""
    if given is None or not (given.endswith(".toml") or Path(given).is_file()):
        return given
    return str(Path(given).absolute())
