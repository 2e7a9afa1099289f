"""What transformers calls the cache, in arguments and outputs."""

from dataclasses import fields

from transformers.modeling_outputs import BaseModelOutputWithPast

OLD_CACHE = "past_key_values"
"""The name up to transformers 5.23; 5.24 warns where it is passed."""
CACHE = "cache" if "cache" in {f.name for f in fields(BaseModelOutputWithPast)} else OLD_CACHE
"""The name in the transformers that is installed."""
