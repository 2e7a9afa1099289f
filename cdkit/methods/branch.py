"""A distorted branch: its name, and what makes it differ from the original one."""

from dataclasses import dataclass

from cdkit.errors import CdkitError
from cdkit.interfaces.distortion import (
    AttentionDistortion,
    DistortionStrategy,
    FeatureDistortion,
    PixelDistortion,
    PromptDistortion,
)
from cdkit.methods.declarations import check_distortions_of
from cdkit.methods.part_kinds import kind_of

ORIGINAL = "original"
"""The name of the branch that is not distorted."""


@dataclass(frozen=True)
class Branch:
    """One distorted branch.

    Raises:
        CdkitError: If the name is not allowed, there is no distortion, or one distortion takes out
            the image on which another one would act.
    """

    name: str
    """The branch's name: not empty, not "original", and without dots."""
    distortions: tuple[DistortionStrategy, ...]
    """What makes it differ from the original branch, applied in this order; at least one."""

    def __post_init__(self) -> None:
        if not self.name or self.name == ORIGINAL or "." in self.name:
            raise CdkitError(
                f"a branch needs a name without dots other than {ORIGINAL!r}, got {self.name!r}"
            )
        if not self.distortions:
            raise CdkitError(
                f"branch {self.name!r} has no distortion; use the distortion 'identical' for a "
                "branch that is not distorted"
            )
        check_distortions_of(self)
        removing = [d for d in self.prompt if d.removes_image]
        others = [d for d in self.distortions if not isinstance(d, PromptDistortion)]
        if removing and others:
            raise CdkitError(
                f"branch {self.name!r}: {kind_of(removing[0])} takes the image out, so "
                f"{kind_of(others[0])} would do nothing there; give each a branch of its own"
            )

    @property
    def pixel(self) -> tuple[PixelDistortion, ...]:
        """The distortions of pixels."""
        return tuple(d for d in self.distortions if isinstance(d, PixelDistortion))

    @property
    def feature(self) -> tuple[FeatureDistortion, ...]:
        """The distortions of image features."""
        return tuple(d for d in self.distortions if isinstance(d, FeatureDistortion))

    @property
    def prompt(self) -> tuple[PromptDistortion, ...]:
        """The distortions of the prompt."""
        return tuple(d for d in self.distortions if isinstance(d, PromptDistortion))

    @property
    def keeps_prefix(self) -> bool:
        """Whether hidden states up to the first image's last token are the original branch's."""
        inputs = self.pixel or self.feature or self.prompt
        return not inputs and all(distortion.keeps_prefix for distortion in self.attention)

    @property
    def attention(self) -> tuple[AttentionDistortion, ...]:
        """The distortions of the cross-modal attention."""
        return tuple(d for d in self.distortions if isinstance(d, AttentionDistortion))
