"""The model that a command runs: one rule for its device, its precision and its quantisation."""

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cdkit
from cdkit.errors import CdkitError
from cdkit.registry import unknown

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
AUTO = "auto"


def check_dtype(option: str, dtype: str) -> None:
    """Raise unless `dtype` is a precision that a model can be loaded in."""
    if dtype not in get_args(Dtype):
        raise CdkitError(unknown(option, dtype, get_args(Dtype)))


@dataclass(frozen=True)
class ChosenModel:
    """A model by name, and how it is loaded.

    Args:
        name: "micro", a checkpoint's folder, or a name on the hub.
        dtype: Its precision; "auto": the checkpoint's.
        revision: The branch, tag or commit of a model on the hub.
        load_in_4bit: Whether bitsandbytes stores its weights in four bits.
        attn_implementation: As in `from_pretrained`; None: transformers' choice.
    """

    name: str
    dtype: str = AUTO
    revision: str | None = None
    load_in_4bit: bool = False
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        check_dtype("--dtype", self.dtype)

    def load(self, device: Any = AUTO, *, device_map: Any = None) -> tuple[Any, Any]:
        """(model, processor) on the device; "auto": the accelerator there is, else the CPU.

        A `device_map` takes the device's place.
        """
        given = {
            "device": device if device_map is None else None,
            "device_map": device_map,
            "revision": self.revision,
            "quantization_config": self._four_bit() if self.load_in_4bit else None,
            "attn_implementation": self.attn_implementation,
        }
        options = {name: value for name, value in given.items() if value is not None}
        return cdkit.load_model(self.name, dtype=self.dtype, **options)

    def told(self, model: Any) -> str:
        """One line for the user: which model, where, in which precision."""
        dtype = str(model.dtype).removeprefix("torch.")
        bits = ", weights in 4 bits" if self.load_in_4bit else ""
        return f"model: {self.name} on {model.device} in {dtype}{bits}"

    def _four_bit(self) -> Any:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise CdkitError(
                "--load-in-4bit needs the package bitsandbytes, which is not installed: "
                "pip install bitsandbytes, or leave it out"
            )
        from transformers import BitsAndBytesConfig

        compute = "bfloat16" if self.dtype == AUTO else self.dtype
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
