"""Where a bench ran, as plain data."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from cdkit.evals.runner.versions import versions

PACKAGES = ("cdkit", "torch", "transformers")


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Names and versions; of a GPU also its memory and the CUDA that torch was built for."""
    facts: dict[str, Any] = {
        "device": str(device),
        "device_name": cpu_name(),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu": cpu_name(),
        "system": platform.platform(),
        "versions": versions(*PACKAGES),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device_name": properties.name,
            "device_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return facts


def cpu_name(file: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name where Linux names it, else what Python knows."""
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
