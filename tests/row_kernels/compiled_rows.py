# pyright: reportMissingImports=false
"""Compile the kernels for NVIDIA GPUs, which needs none: with the arguments of a real call.

`test_generated_rows.py` runs this file, in a process whose Triton does not interpret.
"""

import importlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from cdkit.row_kernels.generated_rows import CUTS, REPLACES, RowRules, attend_rows

KERNELS: Any = importlib.import_module("cdkit.row_kernels.triton_rows")
SHARED = 99 << 10
"""Bytes of shared memory that a program has on GPUs of compute capability 8.6 and 8.9, the least of
those from 8.0 on."""
KINDS = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.bool: "i1",
}


class Recorder:
    """Takes a kernel's launch, with its arguments by name."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.given = kernel, dict[str, Any]()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            names = self.kernel.arg_names
            self.given = dict(zip(names, args, strict=False)) | kwargs
            assert set(self.given) == set(names)

        return launch

    def compiled(self, capability: int) -> Any:
        signature, constants, attributes = dict[str, str](), dict[str, Any](), dict[Any, Any]()
        for place, parameter in enumerate(self.kernel.params):
            name, value = parameter.name, self.given[parameter.name]
            if parameter.is_constexpr:
                signature[name], constants[name] = "constexpr", value
                continue
            aligned = True
            if type(value) is int and value == 1 and not parameter.do_not_specialize:
                signature[name], constants[name] = "constexpr", 1
                continue
            if isinstance(value, torch.Tensor):
                signature[name] = "*" + KINDS[value.dtype]
            else:
                signature[name] = "i32"
                aligned = value % 16 == 0 and not parameter.do_not_specialize
            if aligned:
                attributes[(place,)] = [["tt.divisibility", 16]]
        if "widens" in constants:
            constants["widens"] = False  # as on CUDA
        source = ASTSource(self.kernel, signature, constexprs=constants, attrs=attributes)
        return compile(source, target=GPUTarget("cuda", capability, 32))


def shapes() -> Iterator[Any]:
    """A call for each dtype, and, as `slow`, more shapes and the other kind of replacement."""
    for dtype, capability, heads, kv_heads, dim, few in (
        (torch.bfloat16, 90, 32, 32, 128, False),
        (torch.bfloat16, 80, 28, 4, 128, True),
        (torch.float16, 80, 32, 32, 80, False),
        (torch.float16, 90, 8, 4, 256, True),
        (torch.float32, 80, 14, 2, 64, True),
    ):
        for one in True, False:
            # a value for each image token takes more shared memory
            marks = () if few and not one else pytest.mark.slow
            yield pytest.param(dtype, capability, heads, kv_heads, dim, one, marks=marks)


@pytest.mark.parametrize(
    ("dtype", "capability", "heads", "kv_heads", "dim", "one"), list(shapes()), ids=str
)
def test_compiles(
    dtype: torch.dtype, capability: int, heads: int, kv_heads: int, dim: int, one: bool
) -> None:
    split, add = Recorder(KERNELS.split_columns), Recorder(KERNELS.add_splits)
    made = SimpleNamespace(split_columns=split, add_splits=add, tl=KERNELS.tl)
    prefix = torch.empty(1, kv_heads, 600, dim, dtype=dtype)
    suffix = torch.empty(2, kv_heads, 20, dim, dtype=dtype)
    rules = RowRules(
        kernels=made,
        splits=8,
        table=torch.tensor([[CUTS, 0, 0, 0], [REPLACES, 1, 1, 0]], dtype=torch.int32),
        replaces=True,
        cuts=True,
        mean_keys=torch.empty(1, 2, kv_heads, dim),
        replacements=torch.empty(1, 1, kv_heads, 1 if one else 576, dim, dtype=dtype),
    )
    attend_rows(
        rules,
        torch.empty(2, heads, 1, dim, dtype=dtype),
        prefix,
        prefix,
        suffix,
        suffix,
        rows_per_sample=1,
        image_place=torch.empty(2, 610, dtype=torch.int32),
        token_mask=torch.ones(2, 620, dtype=torch.bool),
        scaling=dim**-0.5,
        sinks=torch.empty(heads, dtype=dtype),
    )
    binaries = [recorder.compiled(capability) for recorder in (split, add)]
    for binary in binaries:
        assert binary.asm["cubin"] and binary.metadata.shared <= SHARED
    products = binaries[0].asm["ptx"].count("mma.sync")
    assert (products > 0) == (dtype != torch.float32)  # halves go to the tensor cores
