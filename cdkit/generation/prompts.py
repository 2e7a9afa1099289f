"""The prompts of one call: noted and checked before the first forward."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from cdkit.branches.layout import Layout, make_layout
from cdkit.branches.positions import Calibration
from cdkit.errors import CdkitError
from cdkit.functional.noise import generator, purpose_of, stream
from cdkit.generation.call_compatibility import (
    check_arguments,
    check_attentions,
    check_cache,
    check_eval,
    check_loop,
    check_mode,
    check_rope,
    check_static_cache,
    check_whole_prompt,
    check_window,
    new_tokens,
    setting,
)
from cdkit.generation.image_grids import image_grids
from cdkit.generation.pixels import check_pixels, kinds_in, pixels_of_images
from cdkit.interfaces.cache_names import CACHE, OLD_CACHE
from cdkit.interfaces.distortion import PixelDistortion
from cdkit.interfaces.pixel_source import Kind
from cdkit.interfaces.position_calibrator import ImageGrid
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import Branch
from cdkit.methods.method import Method
from cdkit.methods.part_results import check_features, unwritten
from cdkit.states.answer_states import Prepared


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
    """Each image of the prompts, in their order; of a video the frames of each run of tokens."""
    unordered: frozenset[Kind]
    """Of which kind an image is its numbers in any order, not (frames, channels, height, width)."""
    seed: int
    given_ids: tuple[str, ...] | None
    kinds: Sequence[Kind] = ()
    """Of each image of the prompts, in their order, whether it is one of a video."""
    is_video: Bool[Tensor, "samples tokens"] | None = None
    """Which image tokens are those of videos; None where none is."""
    grids: tuple[tuple[ImageGrid | None, ...], ...] = ()
    """Of each sample the grids of its images; empty where no calibrator asks for them."""
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
    encoder_kwargs: Mapping[str, Any] | None = None
    """As `ModelAdapter.encoder_kwargs`: cdkit calls the encoder with these."""
    features: dict[str, Float[Tensor, "tokens hidden"]] = field(default_factory=dict)
    """Branch -> features of all image tokens, where they differ from the original ones; where cdkit
    calls the encoder, the original ones too."""
    deepstack: dict[str, Sequence[Float[Tensor, "tokens hidden"]]] = field(default_factory=dict)
    """Branch, the original one too -> what deeper layers add to the image tokens."""
    prepared: Prepared | None = None
    """What state interventions made of the prompts' states, of each sample; None before that."""
    positions: Int[Tensor, "rows tokens *axes"] | None = None
    """The positions of the prompts' tokens as the decoder was given them, of all beams; None before
    that, and where a call had a chunk of the prompts alone."""
    attended_features: dict[str, list[Tensor]] = field(default_factory=dict)
    """Branch -> each sample's features, made from what the original branch attends to."""

    def __post_init__(self) -> None:
        samples = self.ids.shape[0]
        if self.given_ids is not None and len(self.given_ids) != samples:
            raise CdkitError(
                f"sample_ids has {len(self.given_ids)} names for {samples} prompts; give one each"
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

    def calibration(self, attached: AttachedMethod, expand: int) -> Calibration | None:
        """The method's calibrator on rows of which each sample has `expand`; None without one."""
        calibrator = attached.method.calibrator
        if calibrator is None:
            return None
        grids = tuple(own for own in self.grids for _ in range(expand))
        return Calibration(calibrator, attached.depth, grids)

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
                with unwritten(distortion, "distort", own, seen):
                    made_of: object = distortion.distort(own, seen, generator=random)
                own = check_features(distortion, made_of, own)
            made.append(own)
        self.attended_features[branch.name] = made

    def distorted_pixels(self, branch: Branch, kind: Kind) -> list[Float[Tensor, "..."]]:
        """The branch's images of one kind: a sample's noise comes from (seed, sample id) alone."""
        pixels, new = self.pixels, list[Tensor]()
        assert pixels is not None
        for name, count in zip(self.sample_ids, self.images, strict=True):
            here = slice(len(new), len(new) + count)
            own = [image.to("cpu") for image in pixels[here]]
            for distortion in branch.pixel:
                random = generator(self.seed, name, purpose_of(distortion))
                own = _distorted(distortion, own, random, self.kinds[here])
            new += own
        triples = zip(new, pixels, self.kinds, strict=True)
        return [image.to(pixel) for image, pixel, its in triples if its == kind]


def _distorted(
    distortion: PixelDistortion,
    images: Sequence[Tensor],
    random: torch.Generator,
    kinds: Sequence[Kind],
) -> list[Tensor]:
    """All images of a sample at once where their sizes allow it, else one after the other.

    The frames of a video stay together: what is drawn for one of them is drawn for all.
    """
    new = list[Tensor]()
    for group in _groups(images, kinds):
        given = torch.cat(group)
        with unwritten(distortion, "distort", given):
            made: object = distortion.distort(given, generator=random)
        together = check_features(distortion, made, given)
        new += torch.split(together, [image.shape[0] for image in group])
    return new


def _groups(images: Sequence[Tensor], kinds: Sequence[Kind]) -> list[list[Tensor]]:
    """Images that are distorted at once."""
    if len({image.shape[1:] for image in images}) == 1:
        return [list(images)]
    groups, before = list[list[Tensor]](), None
    for image, kind in zip(images, kinds, strict=True):
        place = (kind, image.shape[1:])
        if kind == "video" and place == before:
            groups[-1].append(image)
        else:
            groups.append([image])
        before = place
    return groups


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
        if static := setting("cache_implementation", given, defaults) == "static":
            check_static_cache(attached)
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
    check_rope(attached, token_mask, new)
    index = attached.adapter.image_index(attached.model, ids)
    image_index = index.masked_fill(~token_mask, -1)
    if bool((hidden := (index >= 0) & ~token_mask).any()):
        pad = setting("pad_token_id", given, defaults)
        _check_mask(method, hidden if pad is None else hidden & ids.ne(int(pad)))
    layout = make_layout(image_index, token_mask)
    kinds, is_video = kinds_in(attached, given, None if plain else defaults, ids, image_index)
    if any(row.images for row in layout.row_stats):
        check_pixels(attached, given, image_index, is_video)
    pixels, unordered = pixels_of_images(attached, given, image_index, kinds)
    calibrator, grids = method.calibrator, tuple[tuple[ImageGrid | None, ...], ...]()
    if calibrator is not None and calibrator.needs_grid:
        grids = image_grids(attached, calibrator, given, layout, kinds)
    encoder_kwargs = None
    if attached.adapter.decoder_encodes:
        encoder_kwargs = attached.adapter.encoder_kwargs(attached.model, given)
    session = Session(
        ids=ids,
        token_mask=token_mask,
        image_index=image_index,
        layout=layout,
        pixels=pixels,
        unordered=unordered,
        seed=attached.seed,
        given_ids=attached.sample_ids,
        kinds=kinds,
        is_video=is_video,
        grids=grids,
        new_tokens=new,
        plain=plain,
        compile_config=compile_config,
        static_cache=static,
        overridden=overridden,
        token_values=_token_values(attached, given),
        encoder_kwargs=encoder_kwargs,
    )
    needs_image = method.calibrator or method.interventions or method.loop or attached.reads_image
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


def _check_mask(method: Method, hidden: Bool[Tensor, "samples tokens"]) -> None:
    """Raise where the mask says padding of image tokens."""
    for row, count in enumerate(hidden.sum(dim=1).tolist()):
        if count:
            raise CdkitError(
                f"attention_mask is 0 on {count} image tokens of prompt {row}, so {method.name} "
                "cannot tell which tokens are an image's: set it to 1 there, or take the image out "
                "of the prompt"
            )


def _check_last_row(attached: AttachedMethod, session: Session) -> None:
    """Raise where a prompt ends with an image, but its last row's attention to images is read."""
    # which image tokens are pruned is read from that row, too
    reads_row = any(
        b.feature or not all(d.keeps_prefix for d in b.attention) for b in attached.every_branch
    )
    reads_row = reads_row or attached.records_image or attached.stream is not None
    reads_row = reads_row or (
        attached.states is not None and bool(attached.states.reading("image_attention"))
    )
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
