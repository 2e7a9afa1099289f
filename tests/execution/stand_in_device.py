"""A stand-in for a GPU: tensors that say they are on another device, and are computed on the CPU.

An operator that gets tensors of both devices fails, as on a GPU. torch lets one process have one
backend of this kind, and from then on takes it for the machine's accelerator: so
`test_stand_in_device.py` runs this file as a process of its own.
"""

import copy
import itertools
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from generation.presets import ALL, CHIEF
from models.tiny import FAMILIES, Words, inputs, tiny
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import cdkit
from cdkit.strategies.combiners.contrast import Contrast

aten: Any = torch.ops.aten
CPU = torch.device("cpu")


class NoDevices:
    """What torch asks of a backend. It counts no devices, so that no library takes one of them."""

    is_initialized = is_available = is_in_bad_fork = staticmethod(lambda: False)
    device_count = current_device = staticmethod(lambda: 0)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(tuple)


_setup_privateuseone_for_python_backend("stand_in", backend_module=NoDevices())
DEVICE = torch.device("stand_in", 0)


class Held(torch.Tensor):
    """A tensor on the stand-in device."""

    content: Tensor
    is_cuda: Any = property(lambda self: True)  # so that code for CUDA runs

    @staticmethod
    def __new__(cls, content: Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls, content.shape, content.stride(), content.storage_offset(),
            dtype=content.dtype, device=DEVICE,
        )  # fmt: skip

    def __init__(self, content: Tensor) -> None:
        self.content = content

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Held({self.content})"

    # what torch does in C++, past any dispatch
    def tolist(self) -> Any:
        return self.content.tolist()

    def __index__(self) -> int:
        return self.content.__index__()

    def __int__(self) -> int:
        return int(self.content)

    def __float__(self) -> float:
        return float(self.content)

    def __bool__(self) -> bool:
        return bool(self.content)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return computed(func, args, kwargs or {})


MOVES = (aten._to_copy.default, aten.copy_.default)
"""Take tensors of two devices."""
INDICES = (
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
)
"""Take indices of the CPU for a tensor of a GPU."""
READS = (aten._local_scalar_dense.default, aten.equal.default)


def computed(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operator gives, by the device of what it got."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    held = [x for x in tensors if isinstance(x, Held)]
    others = [x for x in tensors if not isinstance(x, Held)]
    if held and operator not in MOVES:
        may_be_there = args[1] if operator in INDICES and isinstance(args[0], Held) else ()
        wrong = [x for x in others if x.ndim and not any(x is i for i in may_be_there)]
        if wrong:
            shape = tuple(wrong[0].shape)
            raise RuntimeError(f"{operator}: a tensor of {shape} is on the CPU, others are not")
    stays = bool(held)
    if operator is aten.copy_.default:
        stays = isinstance(args[0], Held)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == DEVICE.type
        if stays:
            kwargs = kwargs | {"device": CPU}
    same = {id(x): x for x in others} | {id(x.content): x for x in held}
    args, kwargs = tree_map(lambda x: x.content if isinstance(x, Held) else x, (args, kwargs))
    compute: Any = SUBSTITUTES.get(operator) or operator
    made = compute(*args, **kwargs)

    def kept(x: Any) -> Any:
        if not isinstance(x, Tensor) or id(x) in same:
            return same.get(id(x), x)
        return Held(x) if stays and operator not in READS else x

    return tree_map(kept, made)


def widened(one: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.bmm(one.to(dtype), other.to(dtype))


def counted(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return torch.histc(x.double(), *args, **kwargs)


SUBSTITUTES: dict[Any, Callable[..., Any]] = {aten.bmm.dtype: widened, aten.histc.default: counted}
"""What a GPU has and a CPU has not."""


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operators that make tensors on a device get no tensor of it."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return computed(operator, args, kwargs or {})


class Functions(TorchFunctionMode):
    """What is not made of operators that can be seen."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is nn.functional.scaled_dot_product_attention:
            given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            if all(isinstance(x, Held) for x in given):
                args, kwargs = tree_map(
                    lambda x: x.content if isinstance(x, Held) else x, (args, kwargs)
                )
                return Held(function(*args, **kwargs))
        of_data = function in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if function is torch.Tensor.new_tensor:
            of_data, kwargs = True, {"device": args[0].device, "dtype": args[0].dtype} | kwargs
            function, args = torch.tensor, args[1:]
        if of_data and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        return function(*args, **kwargs)


@contextmanager
def there() -> Iterator[None]:
    """Within it, the device can be used."""
    with torch.no_grad(), Functions(), Operators():  # type: ignore[no-untyped-call]
        yield


def moved(model: Any) -> Any:
    """A copy of a model on the stand-in device."""
    own = copy.deepcopy(model)
    for module in own.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Held(parameter.data), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Held(buffer)
        for name, value in vars(module).items():
            if type(value) is Tensor:  # frequencies that a rotary embedding keeps beside its buffer
                setattr(module, name, Held(value))
    return own


def answered(model: Any, given: dict[str, Tensor], method: cdkit.Method, **asked: Any) -> Any:
    kept: dict[str, Any] = {
        name: asked.pop(name) for name in ("optimize", "trace") if name in asked
    }
    kept |= {"processor": Words(), "sample_ids": ["a", "b"]}
    asked = {"max_new_tokens": 4, "pad_token_id": 0, **asked}
    asked["output_logits"] = method.loop is None
    torch.manual_seed(0)
    with torch.no_grad(), cdkit.attach(model, method, **kept):
        return model.generate(**given, return_dict_in_generate=True, **asked)


def difference(
    family: str, method: cdkit.Method, dtype: torch.dtype | None = None, **asked: Any
) -> str:
    """In what the answers on the device differ from those on the CPU; empty where in nothing."""
    model, given = tiny(family), inputs(family, 0, 1)
    if dtype is not None:
        model = copy.deepcopy(model).to(dtype)
    given = {k: x.to(model.dtype) if x.is_floating_point() else x for k, x in given.items()}
    wanted = answered(model, given, method, **asked)
    try:
        own = moved(model)
        with there():
            found = answered(own, {k: Held(x) for k, x in given.items()}, method, **asked)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)
        lines = [f"{x.filename.rsplit('/', 1)[-1]}:{x.lineno}" for x in place]
        return f"{type(error).__name__}: {str(error)[:200]} {lines[-12:]}"
    if not isinstance(found.sequences, Held):
        return "the answer is on the CPU"
    if not found.sequences.content.equal(wanted.sequences):
        return "other tokens"
    near = 1e-9 if model.dtype == torch.float64 else 1e-5
    pairs = zip(found.logits or (), wanted.logits or (), strict=True)
    if not all(a.content.allclose(b, rtol=0, atol=near) for a, b in pairs):
        return "other logits"
    return ""


class LeftBehind(Contrast):
    """Makes a tensor without asking where."""

    def combine(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        made = super().combine(original, *args, **kwargs)
        return made[0] + torch.zeros(original.shape[-1]), *made[1:]


BEAMS = {"do_sample": False, "num_beams": 2}
HOWS: dict[str, dict[str, Any]] = {
    "beams": BEAMS,
    "sampling": {"do_sample": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "each branch by itself": {"optimize": False},
    "no optimisation": {"optimize": []},
    "a static cache": {"cache_implementation": "static"},
    "traces": {"trace": ("logits", "mask", "image_attention")},
}


def every() -> Iterator[tuple[str, str]]:
    """What was tried, and what went wrong."""
    for name in ALL:
        yield f"{name}", difference("llava", cdkit.load(name), **greedy_of(name))
    for name, (how, asked) in itertools.product(CHIEF, HOWS.items()):
        options: dict[str, Any] = {"do_sample": False} | asked
        yield f"{name}, {how}", difference("llava", cdkit.load(name), **options)
    for family, name in itertools.product(FAMILIES, ("cmac", "vcd", "icd")):
        yield f"{family}, {name}", difference(family, cdkit.load(name), do_sample=False)


def greedy_of(name: str) -> dict[str, Any]:
    return {"do_sample": False} if "greedy" in cdkit.load(name).modes else BEAMS


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    faulty = replace(cdkit.load("vcd"), combiner=LeftBehind(alpha=1.0))
    assert "is on the CPU, others are not" in difference("llava", faulty, do_sample=False)
    found = list(every())
    for case, wrong in found:
        if wrong:
            print(f"{case}: {wrong}")
    print(f"{len(found)} tried")
