"""What a bench found: ratios to plain decoding, taken within a round."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from cdkit.evals.speed.agreement import Agreement
from cdkit.evals.speed.clock import Times
from cdkit.evals.speed.counting import TokenCalls
from cdkit.evals.speed.measuring import Measurements
from cdkit.evals.speed.profiling import Profile
from cdkit.evals.speed.variants import PLAIN_NAME, VariantName
from cdkit.evals.statistics.bootstrap import Estimate

MEASURES: Mapping[str, Callable[[Times], float]] = {
    "first_token": lambda times: times.first,
    "per_token": lambda times: times.per_token,
    "whole_answer": lambda times: times.whole,
}


@dataclass(frozen=True, eq=False)
class BenchSection:
    """One batch size and one text length."""

    batch: int
    text_tokens: int
    image_tokens: int
    new_tokens: int
    weights: int
    """Bytes of the model's weights."""
    taken: Mapping[VariantName, Measurements]
    calls: Mapping[VariantName, TokenCalls]
    agreements: Mapping[VariantName, Agreement]
    one_candidate: Mapping[str, float]
    """Method -> the share of checked steps, by row, that left one token to choose."""
    profiles: Mapping[VariantName, Profile] = field(default_factory=dict)
    """Empty where none was asked for."""

    def seconds(self, name: VariantName, measure: str) -> Estimate:
        """The median over rounds, the smallest and the largest."""
        return _spread([MEASURES[measure](times) for times in self.taken[name].times])

    def ratio(self, name: VariantName, measure: str) -> Estimate:
        """To plain decoding in the same round."""
        of = MEASURES[measure]
        pairs = zip(self.taken[name].times, self.taken[PLAIN_NAME].times, strict=True)
        return _spread([of(own) / of(plain) for own, plain in pairs])

    def throughput(self, name: VariantName) -> Estimate:
        """Generated tokens of all rows a second, over whole answers."""
        made = self.batch * self.new_tokens
        return _spread([made / times.whole for times in self.taken[name].times])

    def memory_ratio(self, name: VariantName) -> float:
        """The ratio of the peaks, weights included: what a card must hold."""
        return self.taken[name].memory / self.taken[PLAIN_NAME].memory

    def to_dict(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "text_tokens": self.text_tokens,
            "image_tokens": self.image_tokens,
            "new_tokens": self.new_tokens,
            "weight_bytes": self.weights,
            "one_candidate": dict(self.one_candidate),
            "rows": [self._row(name) for name in self.taken],
        }

    def _row(self, name: VariantName) -> dict[str, Any]:
        taken, agreed = self.taken[name], self.agreements[name]
        return {
            "variant": name.variant,
            "method": name.method or None,
            "seconds": {m: asdict(self.seconds(name, m)) for m in MEASURES},
            "ratio": {m: asdict(self.ratio(name, m)) for m in MEASURES},
            "tokens_per_second": asdict(self.throughput(name)),
            "raw_seconds": {m: [of(t) for t in taken.times] for m, of in MEASURES.items()},
            "attach_seconds": list(taken.attach),
            "peak_bytes": taken.memory,
            "peak_ratio": self.memory_ratio(name),
            "bytes_over_weights": taken.memory - self.weights,
            "operators_per_token": self.calls[name].operators,
            "kernels_per_token": self.calls[name].kernels,
            "largest_difference": agreed.difference,
            "allowed_difference": agreed.allowed,
            "profile": self.profiles[name].to_dict() if self.profiles else None,
        }


def _spread(values: list[float]) -> Estimate:
    return Estimate(median(values), min(values), max(values))
