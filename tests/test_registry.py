import re

import pytest

from cdkit.strategy import DistortionStrategy
from cdkit.registry import Registry


class Blur(DistortionStrategy):
    """Never used, only registered."""


class Other(DistortionStrategy):
    """Likewise."""


@pytest.fixture
def registry() -> Registry[DistortionStrategy]:
    registry = Registry(DistortionStrategy, "cdkit.models")  # type: ignore[type-abstract]
    registry.register("blur")(Blur)
    return registry


def test_a_taken_name_is_refused(registry: Registry[DistortionStrategy]) -> None:
    with pytest.raises(ValueError, match=r"'blur' is taken by .*Blur; give .*Other another name"):
        registry.register("blur")(Other)


def test_a_stranger_is_refused(registry: Registry[DistortionStrategy]) -> None:
    with pytest.raises(TypeError, match=r"builtins.int must be a subclass of .*DistortionStrategy"):
        registry.register("int")(int)


def test_a_misspelt_name_gets_a_hint(registry: Registry[DistortionStrategy]) -> None:
    message = "cdkit.models has no 'blurr'. Did you mean 'blur'? It has: blur."
    with pytest.raises(LookupError, match=re.escape(message)):
        registry["blurr"]
