"""A decoder written out from the equations, with CMAC and its variants inside.

It is Llama's, but for what a `Form` says of another family. Other methods edit its attention
logits; what they do stands in their tests.

One sequence, one branch, no cache, float64, every row recomputed. Nothing here comes from cdkit: it
is what cdkit is compared with. Each decision is a function of its own: `faults` replaces one by a
known mistake, to prove that the comparison would see it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .decoders import TEXT, Decoder, gated, norm, rope, visible


@dataclass(frozen=True)
class Rules:
    """What is done to the cross-modal segment of one branch."""

    distortion: Literal["none", "mean_dim", "mean_scalar", "cut", "noise"] = "none"
    scope: Literal["call", "head", "row"] = "call"
    calibrated: bool = False
    gamma: float = 1.0
    first_gap: Literal["scaled", "unit"] = "scaled"
    text_step: float = 1.0
    kept: float = 0.0
    """Of the value noise: the share of the signal's variance that is left."""
    edit: "Edit | None" = None
    """What else is done to the attention logits (heads, rows, columns), before the causal mask:
    the rest of a method, written in the file of its test."""
    reweigh: "Edit | None" = None
    """The same for the weights, after the softmax: only faults do that."""


@dataclass(frozen=True, eq=False)
class Sequence_:
    """One prompt and what was generated after it."""

    embeds: Tensor
    """(tokens, hidden)."""
    image: tuple[int, ...]
    """For each token the number of its image, or `TEXT`, or `mark_of` the image it stands in."""
    prompt: int
    """How many of the tokens are the prompt's."""
    noise: Tensor | None = None
    """Standard normal numbers for the value noise: (layers, image tokens, kv heads, head dim)."""
    ids: tuple[int, ...] = ()
    """The tokens, where layers read them."""


@dataclass(eq=False)
class Result:
    """What a branch computed for one sequence."""

    logits: Tensor
    """(tokens, vocab)."""
    weights: list[Tensor] = field(default_factory=list)
    """A layer each: attention weights (heads, rows, columns)."""
    masks: list[Tensor] = field(default_factory=list)
    """A layer each: the cells that were distorted (heads, rows, columns)."""
    keys: list[Tensor] = field(default_factory=list)
    """A layer each, before RoPE: (tokens, kv heads, head dim)."""
    values: list[Tensor] = field(default_factory=list)


Edit = Callable[["Layer", Tensor, Result], Tensor]
"""(layer, what it has computed, what the layers below have left) -> the new tensor."""


def calibrated_positions(image: Sequence[int], rules: Rules) -> Tensor:
    """CMPC's running sum, counted from 1 at the first text token."""
    positions, here = [], 0.0
    for number in image:
        here += rules.text_step if number < 0 else 1 / rules.gamma
        late = number >= 0 and rules.first_gap == "unit"
        positions.append(here + (rules.text_step - 1 / rules.gamma if late else 0.0))
    return torch.tensor(positions, dtype=torch.float64)


def attention_logits(
    query: Tensor, key: Tensor, positions: Tensor, decoder: Decoder, layer: int = 0
) -> Tensor:
    """`Q_p K_p^T / sqrt(d)` of (tokens, heads, d): (heads, rows, columns)."""
    turn, form = decoder.turn(layer), decoder.form
    q, k = (rope(x, positions, turn, form.pairs) for x in (query, key))
    if form.l2_norms and form.l2_norms[layer]:
        q, k = (norm(x, torch.ones(()), decoder.eps) for x in (q, k))
    scaling = 1 / math.sqrt(query.shape[-1]) if form.scaling is None else form.scaling
    logits = torch.einsum("ihd,jhd->hij", q, k) * scaling
    return logits if form.cap is None else form.cap * torch.tanh(logits / form.cap)


def cross_modal(sequence: Sequence_) -> Tensor:
    """(rows, columns): True where the row is text and the column an earlier image token."""
    image = torch.tensor(sequence.image)
    tokens = torch.arange(len(image))
    earlier = tokens[None, :] < tokens[:, None]
    return is_text(image)[:, None] & (image[None, :] >= 0) & earlier


def is_text(image: Tensor) -> Tensor:
    """(tokens): marks inside of an image are none."""
    return image == TEXT


def turned_rows(moved: Tensor, image: Sequence[int]) -> Tensor:
    """The positions that both sides of a calibrated cell are turned by."""
    return moved


def calibrated_cells(cells: Tensor) -> Tensor:
    return cells


def visible_cells(decoder: Decoder, sequence: Sequence_, layer: int) -> Tensor:
    return visible(decoder.form, sequence.image, sequence.prompt, layer, sequence.ids)


def each_head(x: Tensor, copies: int) -> Tensor:
    """(tokens, kv heads, d) -> (tokens, heads, d): each head stands beside its copies."""
    return x.repeat_interleave(copies, dim=1)


def threshold_groups(sequence: Sequence_, scope: str) -> list[list[int]]:
    """The rows that share a threshold: logical, whatever was computed together."""
    tokens, prompt = len(sequence.image), sequence.prompt
    if scope == "row":
        return [[row] for row in range(tokens)]
    return [list(range(prompt)), *([row] for row in range(prompt, tokens))]


def prompt_threshold(parts: "Sequence[Layer]") -> Tensor | None:
    """One for the prompts of all sequences: there is none, each has its own."""
    return None


def judged_logits(layer: "Layer") -> Tensor:
    """What is compared with the threshold."""
    return layer.logits


def averaged(value: Tensor, image: Tensor, number: int) -> Tensor:
    """The values that an image's mean is taken over: (tokens, heads, d)."""
    return value[image == number]


def mean_value(own: Tensor, distortion: str) -> Tensor:
    """(tokens, heads, d) -> (heads, d)."""
    mean = own.mean(0)  # a vector for each head
    if distortion == "mean_scalar":
        mean = own.mean((0, 2))[:, None].expand_as(mean)  # a number for each head
    return mean


def is_distorted(layer: int) -> bool:
    """Every layer is."""
    return True


def kept_weights(weights: Tensor, mask: Tensor) -> Tensor:
    """The weights of the other cells stay as they are."""
    return weights * ~mask


def run(decoder: Decoder, sequences: Sequence[Sequence_], rules: Rules) -> list[Result]:
    """A branch's logits for every token of each sequence; the sequences do not mix."""
    states = [sequence.embeds.double() for sequence in sequences]
    results = [Result(torch.empty(0)) for _ in sequences]
    more = [
        decoder.layer_inputs(*own) for own in zip(states, (s.ids for s in sequences), strict=True)
    ]
    for layer in range(decoder.layers):
        parts = [
            Layer(decoder, layer, state, sequence, rules, result)
            for state, sequence, result in zip(states, sequences, results, strict=True)
        ]
        shared = prompt_threshold(parts)
        states = [part.output(result, shared) for part, result in zip(parts, results, strict=True)]
        zipped = zip(parts, states, more, strict=True)
        states = [part.with_input(state, own) for part, state, own in zipped]
    for state, result in zip(states, results, strict=True):
        result.logits = decoder.logits(state)
    return results


def with_foreign_past(
    decoder: Decoder, sequence: Sequence_, rules: Rules, original: Result
) -> Tensor:
    """The fault of early VCD: the last row's logits with the original's columns before it."""
    state, result = sequence.embeds.double(), Result(torch.empty(0))
    for layer in range(decoder.layers):
        part = Layer(decoder, layer, state, sequence, rules)
        past = len(sequence.image) - 1
        part.use_past(original.keys[layer][:past], original.values[layer][:past])
        state = part.output(result, None)
    return decoder.logits(state[-1])


class Layer:
    """One decoder layer on one sequence."""

    def __init__(
        self,
        decoder: Decoder,
        layer: int,
        state: Tensor,
        sequence: Sequence_,
        rules: Rules,
        below: Result | None = None,
    ) -> None:
        self.decoder, self.layer, self.state = decoder, layer, state
        self.sequence, self.rules = sequence, rules
        self.normed = x = self._normed(state, "input_layernorm")
        self.query = self._split(self._linear(x, "self_attn.q_proj"), decoder.heads)
        if decoder.form.head_norms:
            self.query = self._normed(self.query, "self_attn.q_norm")
        source = decoder.form.key_sources[layer] if decoder.form.key_sources else layer
        if source == layer:
            self._set_keys(x)
        else:
            assert below is not None
            self.key, self.value = below.keys[source], below.values[source]
        self._set_logits()

    def _set_keys(self, x: Tensor) -> None:
        self.key = self._split(self._linear(x, "self_attn.k_proj"), self.decoder.kv_heads)
        self.value = self._split(self._linear(x, "self_attn.v_proj"), self.decoder.kv_heads)
        if self.decoder.form.head_norms:
            self.key = self._normed(self.key, "self_attn.k_norm")
        if self.decoder.form.value_norms:
            self.value = norm(self.value, torch.ones(()), self.decoder.eps)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return self.decoder.linear(x, f"layers.{self.layer}.{name}")

    def _normed(self, x: Tensor, name: str) -> Tensor:
        return self.decoder.normed(x, f"layers.{self.layer}.{name}")

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], heads, -1)

    def _per_head(self, x: Tensor) -> Tensor:
        return each_head(x, self.decoder.heads // self.decoder.kv_heads)

    def use_past(self, keys: Tensor, values: Tensor) -> None:
        self.key = torch.cat((keys, self.key[len(keys) :]))
        self.value = torch.cat((values, self.value[len(values) :]))
        self._set_logits()

    def _set_logits(self) -> None:
        """The attention logits with the cross-modal segment calibrated, and the segment's cells."""
        tokens = len(self.sequence.image)
        key = self._per_head(self.key)
        ordinary = torch.arange(1, tokens + 1, dtype=torch.float64)
        self.cells = cross_modal(self.sequence)
        self.ordinary = attention_logits(self.query, key, ordinary, self.decoder, self.layer)
        self.logits = self.ordinary
        if self.rules.calibrated:
            moved = calibrated_positions(self.sequence.image, self.rules)
            moved = turned_rows(moved, self.sequence.image)
            calibrated = attention_logits(self.query, key, moved, self.decoder, self.layer)
            where = calibrated_cells(self.cells)
            self.logits = torch.where(where, calibrated, self.ordinary)

    def mask(self, shared: Tensor | None) -> Tensor:
        """`M = 1[logits > mean of their group]` on the cells: (heads, rows, columns)."""
        judged = judged_logits(self)
        mask = torch.zeros_like(judged, dtype=torch.bool)
        for rows in threshold_groups(self.sequence, self.rules.scope):
            cells = self.cells[rows]
            if not cells.any():
                continue
            for heads in self._head_groups():
                group = judged[heads][:, rows][:, cells]
                limit = group.mean() if shared is None or rows[0] > 0 else shared
                above = judged[heads][:, rows] > limit
                for index, head in enumerate(heads):
                    mask[head, rows] = above[index] & cells
        return mask

    def _head_groups(self) -> list[list[int]]:
        heads = list(range(self.decoder.heads))
        return [[head] for head in heads] if self.rules.scope == "head" else [heads]

    def _replacement(self) -> Tensor:
        """What masked cells see in place of their value: (tokens, heads, d)."""
        image = torch.tensor(self.sequence.image)
        value = self.value
        new = torch.zeros_like(value)
        for number in range(int(image.max()) + 1):
            if self.rules.distortion == "noise":
                new[image == number] = self._noised(number)
                continue
            own = averaged(value, image, number)
            new[image == number] = mean_value(own, self.rules.distortion)
        return self._per_head(new)

    def _noised(self, number: int) -> Tensor:
        """An image's values with noise of their own mean and standard deviation."""
        assert self.sequence.noise is not None
        image = torch.tensor(self.sequence.image)
        own = self.value[image == number]
        normal = self.sequence.noise[self.layer][image[image >= 0] == number]
        noise = own.mean() + (own - own.mean()).pow(2).mean().sqrt() * normal
        return math.sqrt(self.rules.kept) * own + math.sqrt(1 - self.rules.kept) * noise

    def output(self, result: Result, shared: Tensor | None) -> Tensor:
        """The layer's output states."""
        distortion = self.rules.distortion if is_distorted(self.layer) else "none"
        mask = torch.zeros_like(self.logits, dtype=torch.bool)
        if distortion != "none":
            mask = self.mask(shared)
        allowed = visible_cells(self.decoder, self.sequence, self.layer)
        logits, rules = self.logits, self.rules
        if rules.edit is not None:
            logits = rules.edit(self, logits, result)
        seen = logits.masked_fill(~allowed, -math.inf)
        if distortion == "cut":
            seen = seen.masked_fill(mask, -math.inf)
        weights = seen.softmax(-1)
        if rules.reweigh is not None:
            weights = rules.reweigh(self, weights, result)
        value = self._per_head(self.value)
        if distortion in ("none", "cut"):
            out = torch.einsum("hij,jhd->ihd", weights, value)
        else:
            kept, cut = kept_weights(weights, mask), weights * mask
            out = torch.einsum("hij,jhd->ihd", kept, value)
            out = out + torch.einsum("hij,jhd->ihd", cut, self._replacement())
        result.weights.append(weights)
        result.masks.append(mask)
        result.keys.append(self.key)
        result.values.append(self.value)
        return self._block(self._linear(out.flatten(1), "self_attn.o_proj"))

    def _block(self, attended: Tensor) -> Tensor:
        """What the rest of the layer makes of the attention's output."""
        block = self.decoder.form.block
        if block == "parallel":
            return self.state + attended + self._mlp(self.normed)
        if block == "sandwich":
            state = self.state + self._normed(attended, "post_attention_layernorm")
            out = self._mlp(self._normed(state, "pre_feedforward_layernorm"))
            return state + self._normed(out, "post_feedforward_layernorm")
        state = self.state + attended
        return state + self._mlp(self._normed(state, "post_attention_layernorm"))

    def with_input(self, state: Tensor, more: Tensor | None) -> Tensor:
        """The layer's output after its input of each token is added."""
        if more is None:
            return state
        gate = gated(self._linear(state, "per_layer_input_gate"), self.decoder.form.gate)
        added = self._linear(gate * more[:, self.layer], "per_layer_projection")
        return state + self._normed(added, "post_per_layer_input_norm")

    def _mlp(self, x: Tensor) -> Tensor:
        form = self.decoder.form
        if not (form.experts and form.experts[self.layer]):
            return self._gated_mlp(x, self._part)
        shared = self._gated_mlp(x, f"{self._part}.shared_expert")
        chances = self._linear(x, f"{self._part}.router")
        chosen = chances.argmax(-1)
        x = x * torch.sigmoid(chances.amax(-1, keepdim=True))
        first = self.decoder.state[self._expert("gate_up_proj")][chosen]
        gate, up = torch.einsum("td,tdf->tf", x, first).chunk(2, dim=-1)
        last = self.decoder.state[self._expert("down_proj")][chosen]
        return shared + torch.einsum("tf,tfd->td", gated(gate, form.gate) * up, last)

    @property
    def _part(self) -> str:
        return "feed_forward" if self.decoder.form.experts else "mlp"

    def _expert(self, name: str) -> str:
        return f"model.language_model.layers.{self.layer}.{self._part}.experts.{name}"

    def _gated_mlp(self, x: Tensor, part: str) -> Tensor:
        gate = gated(self._linear(x, f"{part}.gate_proj"), self.decoder.form.gate)
        return self._linear(gate * self._linear(x, f"{part}.up_proj"), f"{part}.down_proj")


def contrast(
    original: Tensor, distorted: Sequence[Tensor], alphas: Sequence[float], beta: float
) -> Tensor:
    """`(1 + sum a) l - sum a l~`, -inf where `softmax(l) < beta max softmax(l)`."""
    combined = (1 + sum(alphas)) * original
    for alpha, logits in zip(alphas, distorted, strict=True):
        combined = combined - alpha * logits
    return combined if beta == 0 else apply_constraint(combined, original, beta)


def apply_constraint(combined: Tensor, judge: Tensor, beta: float) -> Tensor:
    p = judge.softmax(-1)
    return combined.masked_fill(p < beta * p.max(-1, keepdim=True).values, -math.inf)
