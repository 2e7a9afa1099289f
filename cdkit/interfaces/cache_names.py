"""What transformers calls the cache, in arguments and outputs."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast

OLD_CACHE = "past_key_values"
"""The name up to transformers 5.23; 5.24 warns where it is passed."""
CACHE = "cache" if "cache" in {f.name for f in fields(BaseModelOutputWithPast)} else OLD_CACHE
"""The name in the transformers that is installed."""


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """Find the cache among the arguments of a call.

    Args:
        arguments: The arguments by name.

    Returns:
        The cache under its present name, else under the former one; None without a cache.
    """
    cache = arguments.get(CACHE)
    return arguments.get(OLD_CACHE) if cache is None else cache
