"""The prompts of one call: noted and checked before the first forward."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from cdkit.branches.layout import Layout, make_layout
from cdkit.errors import CdkitError
from cdkit.functional.noise import generator, purpose_of, stream
from cdkit.generation.compatibility import (
    check_arguments,
    check_attentions,
    check_cache,
    check_eval,
    check_loop,
    check_mode,
    check_whole_prompt,
    check_window,
    new_tokens,
    setting,
)
from cdkit.interfaces.cache_names import CACHE, OLD_CACHE
from cdkit.interfaces.distortion import PixelDistortion
from cdkit.interfaces.model_adapter import HOW_TO_ADD, UnmatchedPixelsError
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.method import Branch, Method, kind_of


@dataclass(eq=False)
class Session:
    """What is noted once, before the first forward call."""

    ids: Int[Tensor, "samples tokens"]
    token_mask: Tensor
    """The prompts' mask: (samples, tokens), False on padding."""
    image_index: Int[Tensor, "samples tokens"]
    layout: Layout
    """Where the prompts have their images, their padding and their text."""
    pixels: Sequence[Float[Tensor, "..."]] | None
    """Each image of the prompts, in their order."""
    in_order: bool
    """Whether an image is (frames, channels, height, width), not its numbers in any order."""
    seed: int
    given_ids: tuple[str, ...] | None
    new_tokens: int = 0
    """How many tokens `generate` may add."""
    plain: bool = False
    """Whether the model itself was called, not `generate`."""
    compile_config: Any = None
    """The `compile_config` with which `generate` compiles steps; None where it does not."""
    static_cache: bool = False
    """Whether `generate` was called with a static cache."""
    overridden: Mapping[str, Any] = field(default_factory=dict)
    """What `generate` must be passed so that it does not take what the checkpoint says."""
    token_values: Mapping[str, Shaped[Tensor, "samples tokens"]] = field(default_factory=dict)
    """Arguments that the decoder gets as well: a value for each token of the prompts."""
    features: dict[str, Float[Tensor, "tokens hidden"]] = field(default_factory=dict)
    """Branch -> features of all image tokens, where they differ from the original ones."""
    deepstack: dict[str, Sequence[Float[Tensor, "tokens hidden"]]] = field(default_factory=dict)
    """Branch, the original one too -> what deeper layers add to the image tokens."""
    attended_features: dict[str, list[Tensor]] = field(default_factory=dict)
    """Branch -> each sample's features, made from what the original branch attends to."""

    def __post_init__(self) -> None:
        samples = self.ids.shape[0]
        if self.given_ids is not None and len(self.given_ids) != samples:
            raise CdkitError(
                f"sample_ids has {len(self.given_ids)} names for {samples} prompts; give one each"
            )
        if self.pixels is not None and len(self.pixels) != sum(self.images):
            raise CdkitError(
                f"the prompts have {sum(self.images)} images but {len(self.pixels)} were passed"
            )

    @property
    def images(self) -> list[int]:
        """How many images each sample has."""
        return [row.images for row in self.layout.row_stats]

    @property
    def tokens(self) -> list[int]:
        """How many image tokens each sample has."""
        return [row.image_tokens for row in self.layout.row_stats]

    @cached_property
    def sample_ids(self) -> tuple[str, ...]:
        """The given ids; without them a digest of each sample's pixels and prompt."""
        if self.given_ids is not None:
            return self.given_ids
        names, first = [], 0
        for row, count in enumerate(self.images):
            digest = hashlib.blake2b(digest_size=16)
            digest.update(str(self.ids[row][self.token_mask[row]].tolist()).encode())
            if self.pixels is not None:
                for image in self.pixels[first : first + count]:
                    own = image.detach().to("cpu", torch.float32)
                    digest.update(own.contiguous().numpy().tobytes())
            first += count
            names.append(digest.hexdigest())
        return tuple(names)

    def rng_keys(self, expand: int) -> Int[Tensor, " rows"]:
        """A random key for each row, of (seed, sample id): the rows of one sample share it."""
        keys = [stream(self.seed, name) for name in self.sample_ids]
        return torch.tensor(keys).repeat_interleave(expand)

    def distort_features(
        self,
        branch: Branch,
        features: Sequence[Float[Tensor, "_ hidden"]],
        attention: Float[Tensor, "samples layers image"],
    ) -> None:
        """Make the branch's features of each sample from its last prompt row's attention."""
        made = []
        for name, own, seen in zip(self.sample_ids, features, attention, strict=True):
            seen = seen[:, : own.shape[0]]
            for distortion in branch.feature:
                random = generator(self.seed, name, purpose_of(distortion))
                own = distortion.distort(own, seen, generator=random)
            made.append(own)
        self.attended_features[branch.name] = made

    def distorted_pixels(
        self, branch: Branch, pixels: Sequence[Float[Tensor, "..."]]
    ) -> list[Float[Tensor, "..."]]:
        """The branch's images: each sample's noise comes from (seed, sample id) alone."""
        new: list[Tensor] = []
        for name, count in zip(self.sample_ids, self.images, strict=True):
            own = [image.to("cpu") for image in pixels[len(new) : len(new) + count]]
            for distortion in branch.pixel:
                random = generator(self.seed, name, purpose_of(distortion))
                own = _distorted(distortion, own, random)
            new += own
        return [image.to(pixel) for image, pixel in zip(new, pixels, strict=True)]


def _distorted(
    distortion: PixelDistortion, images: Sequence[Tensor], random: torch.Generator
) -> list[Tensor]:
    """All images of a sample at once where their sizes allow it, else one after the other."""
    frames = [image.shape[0] for image in images]
    if len({image.shape[1:] for image in images}) == 1:
        return list(
            torch.split(distortion.distort(torch.cat(list(images)), generator=random), frames)
        )
    return [distortion.distort(image, generator=random) for image in images]


def open_session(
    attached: AttachedMethod, given: dict[str, Any], *, defaults: Sequence[object], plain: bool
) -> Session:
    """Note the prompts, after everything that can be refused was."""
    method = attached.method
    check_eval(attached.model, method)
    overridden = check_arguments(given, defaults, method, plain=plain)
    overridden |= check_attentions(given, defaults, attached, plain=plain)
    given = given | overridden
    check_cache(given.get(OLD_CACHE) if given.get(CACHE) is None else given[CACHE])
    if not plain:
        check_mode(given, defaults, method)
        check_whole_prompt(given, defaults, method, sees_ahead=attached.sees_ahead)
    elif method.stateful:
        raise CdkitError(f"{method.name} depends on the step; a plain call has none: generate")
    elif method.loop is not None:
        raise CdkitError(f"{method.name} is a way to decode; a plain call has none: generate")
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise CdkitError("input_ids of shape (prompts, tokens) are needed to find the image")
    if method.loop is not None:
        check_loop(given, defaults, method)
    compile_config, static, new = None, False, 0
    if not plain:
        new = new_tokens(ids, given, defaults)
        static = setting("cache_implementation", given, defaults) == "static"
        if not setting("disable_compile", given, defaults):
            compile_config = setting("compile_config", given, defaults)
    mask = given.get("attention_mask")
    if mask is None:
        # a plain call has no rule for a missing mask: every token counts
        mask = torch.ones_like(ids) if plain else _not_padding(attached, ids, given, defaults)
    elif mask.ndim != 2:
        raise CdkitError(f"attention_mask must be (prompts, tokens), got {tuple(mask.shape)}")
    token_mask = mask.to(ids.device).bool()
    check_window(attached, token_mask, new)
    index = attached.adapter.image_index(attached.model, ids)
    image_index = index.masked_fill(~token_mask, -1)
    if bool((hidden := (index >= 0) & ~token_mask).any()):
        pad = setting("pad_token_id", given, defaults)
        _check_mask(method, hidden if pad is None else hidden & ids.ne(int(pad)))
    layout = make_layout(image_index, token_mask)
    if any(row.images for row in layout.row_stats):
        _check_pixels(attached, given, [row.images for row in layout.row_stats])
        _check_required(attached, given)
    pixels, in_order = _pixels(attached, given, image_index)
    session = Session(
        ids=ids,
        token_mask=token_mask,
        image_index=image_index,
        layout=layout,
        pixels=pixels,
        in_order=in_order,
        seed=attached.seed,
        given_ids=attached.sample_ids,
        new_tokens=new,
        plain=plain,
        compile_config=compile_config,
        static_cache=static,
        overridden=overridden,
        token_values=_token_values(attached, given),
    )
    needs_image = method.calibrator or method.interventions or method.loop
    if attached.branches or needs_image:
        for row, images in enumerate(session.images):
            if images == 0:
                raise CdkitError(
                    f"prompt {row} has no image, and {method.name} is about the image; put an "
                    "image placeholder into the prompt, or generate without cdkit.attach"
                )
    _check_last_row(attached, session)
    return session


def _token_values(
    attached: AttachedMethod, given: Mapping[str, Any]
) -> dict[str, Shaped[Tensor, "samples tokens"]]:
    """The arguments of a call that the decoder gets as well, with a value for each token."""
    found = {name: given.get(name) for name in attached.token_arguments}
    shape = given["input_ids"].shape
    return {
        name: values
        for name, values in found.items()
        if isinstance(values, Tensor) and values.shape == shape
    }


def _pixels(
    attached: AttachedMethod, given: dict[str, Any], image_index: Int[Tensor, "samples tokens"]
) -> tuple[Sequence[Tensor] | None, bool]:
    """The pixels of each image, and whether their order is known; None where there are none, or the
    adapter cannot assign them to images and no branch changes pixels.

    Without them the digest that replaces a sample id covers the prompt's tokens alone.
    """
    if given.get("pixel_values") is None:
        return None, True
    counts = list[int]()
    for row in image_index.tolist():
        found = Counter(row)
        counts += [found[number] for number in range(max(row) + 1)]
    adapter, model = attached.adapter, attached.model
    try:
        return adapter.split_pixels(model, given, counts), True
    except UnmatchedPixelsError as error:
        reason = error
    moving = [d for branch in attached.branches for d in branch.pixel if not d.elementwise]
    if not moving:
        try:
            return adapter.split_values(model, given, counts), False
        except UnmatchedPixelsError:
            pass  # why their order is not known says more
    if any(branch.pixel for branch in attached.branches):
        why = "which are an image's is not known"
        if moving:
            why = f"{kind_of(moving[0])} needs them as pictures"
        raise CdkitError(
            f"{attached.method.name} changes pixels, but {why}: {reason}; use a method that "
            f"changes none, or write an adapter. {HOW_TO_ADD}"
        )
    return None, True


def _check_mask(method: Method, hidden: Bool[Tensor, "samples tokens"]) -> None:
    """Raise where the mask says padding of image tokens."""
    for row, count in enumerate(hidden.sum(dim=1).tolist()):
        if count:
            raise CdkitError(
                f"attention_mask is 0 on {count} image tokens of prompt {row}, so {method.name} "
                "cannot tell which tokens are an image's: set it to 1 there, or take the image out "
                "of the prompt"
            )


def _check_pixels(attached: AttachedMethod, given: dict[str, Any], images: Sequence[int]) -> None:
    """Raise where the prompts have image tokens, but nothing to put in their place."""
    if given.get("pixel_values") is not None:
        return
    for branch in attached.branches:
        if branch.pixel:
            raise CdkitError(f"branch {branch.name!r} distorts pixels: pass pixel_values")
    if given.get("mm_encoder_outputs") is None:
        row = next(row for row, count in enumerate(images) if count)
        raise CdkitError(
            f"prompt {row} has image tokens, but no image came with it, and {attached.method.name} "
            "would act on the placeholders: pass pixel_values, with every turn of a conversation"
        )


def _check_required(attached: AttachedMethod, given: dict[str, Any]) -> None:
    for name in attached.adapter.required:
        if given.get(name) is None:
            raise CdkitError(
                f"{type(attached.model).__name__} needs {name} beside pixel_values, as its "
                "processor returns it: pass all of the processor's output on"
            )


def _check_last_row(attached: AttachedMethod, session: Session) -> None:
    """Raise where a prompt ends with an image, but its last row's attention to images is read."""
    # which image tokens are pruned is read from that row, too
    reads_row = any(
        b.feature or not all(d.keeps_prefix for d in b.attention) for b in attached.branches
    )
    reads_row = reads_row or attached.records_image
    if not reads_row and attached.method.loop is None:
        return
    last = session.layout.last_token[:, None]
    for row, number in enumerate(session.image_index.gather(1, last)[:, 0].tolist()):
        if number >= 0:
            raise CdkitError(
                f"prompt {row} ends with an image, but {attached.method.name} reads where its last "
                "text token looks; put the question after the image"
            )


def _not_padding(
    attached: AttachedMethod,
    ids: Int[Tensor, "samples tokens"],
    given: dict[str, Any],
    defaults: Sequence[object],
) -> Int[Tensor, "samples tokens"]:
    """Hugging Face's rule for a missing mask: pad tokens are padding unless they end a text."""
    pad, eos = (setting(name, given, defaults) for name in ("pad_token_id", "eos_token_id"))
    ends = eos if isinstance(eos, list) else [eos]
    if pad is None or pad in ends:
        return torch.ones_like(ids)
    return ids.ne(int(pad)).long()
