"""What a layer readout promises; see `cdkit.testing`."""

from typing import Any

from cdkit.interfaces.image_readout import ImageReadout
from cdkit.interfaces.readout import LayerReadout
from cdkit.interfaces.stream_readout import StreamReadout
from cdkit.methods.branch import ORIGINAL
from cdkit.probing.promises import require
from cdkit.testing.image_readout_contract import check_image_readout
from cdkit.testing.stream_contract import check_stream
from cdkit.testing.values import check_value


def check_readout(readout: Any) -> None:
    """Check the promises of a layer readout, a stream readout or an image readout.

    Args:
        readout: An instance of a subclass of `cdkit.LayerReadout`.

    Raises:
        AssertionError: Where a promise is broken.
    """
    check_value(readout)
    require(
        isinstance(readout, LayerReadout),
        readout,
        "it subclasses LayerReadout",
        todo="write class Name(cdkit.LayerReadout)",
    )
    for count in (8, 32):
        layers = readout.layers(count)
        require(
            bool(layers),
            readout,
            "it names a layer",
            todo="return at least one name and layer",
        )
        require(
            ORIGINAL not in layers,
            readout,
            f"no layer is called {ORIGINAL!r}",
            todo="give the layer another name, such as layer_8",
        )
        inside = all(0 <= passed <= count for passed in layers.values())
        require(
            inside,
            readout,
            f"its states have passed 0 to {count} layers",
            layers,
            todo="count layers from 0 (the embeddings) to the depth",
        )
    if isinstance(readout, StreamReadout | ImageReadout):
        require(
            bool(readout.name) and readout.name != ORIGINAL,
            readout,
            f"its logits have a name other than {ORIGINAL!r}",
            readout.name,
            todo="write a class variable such as name: ClassVar[str] = 'image'",
        )
    if isinstance(readout, StreamReadout):
        check_stream(readout)
    if isinstance(readout, ImageReadout):
        check_image_readout(readout)
