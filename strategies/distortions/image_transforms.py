"""Random transforms of pictures, in plain torch: torchvision's do not take a generator."""

import math
from collections.abc import Callable, Mapping

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, interpolate, pad

Images = Float[Tensor, "images 3 height width"]
"""Colours in [0, 1]."""
Draw = Callable[[float, float], float]
"""(low, high) -> a uniform random number."""


def horizontal_flip(images: Images, draw: Draw) -> Images:
    """Mirror left and right."""
    return images.flip(-1)


def vertical_flip(images: Images, draw: Draw) -> Images:
    """Mirror top and bottom."""
    return images.flip(-2)


def rotation(images: Images, draw: Draw) -> Images:
    """Rotate by up to 180 degrees about the centre; the nearest pixel, black outside."""
    angle = math.radians(draw(-180, 180))
    height, width = images.shape[-2:]
    down, right = ((torch.arange(n, dtype=images.dtype) - (n - 1) / 2) for n in (height, width))
    y, x = torch.meshgrid(down, right, indexing="ij")
    cos, sin = math.cos(angle), math.sin(angle)
    grid = torch.stack(((cos * x - sin * y) * 2 / width, (sin * x + cos * y) * 2 / height), dim=-1)
    return grid_sample(
        images, grid.expand(len(images), -1, -1, -1), mode="nearest", align_corners=False
    )


def colour_jitter(images: Images, draw: Draw) -> Images:
    """Brightness, contrast, saturation (times 0 to 2) and hue (any angle), in random order."""
    changes = [(change, draw(0, 2)) for change in (_brightness, _contrast, _saturation)]
    changes = [*changes, (_hue, draw(-0.5, 0.5))]
    for change, by in sorted(changes, key=lambda _: draw(0, 1)):
        images = change(images, by).clamp(0, 1)
    return images


def _grey(images: Images) -> Float[Tensor, "images 1 height width"]:
    red, green, blue = (images[:, colour : colour + 1] for colour in range(3))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _brightness(images: Images, by: float) -> Images:
    return images * by


def _contrast(images: Images, by: float) -> Images:
    middle = reduce(_grey(images), "n 1 h w -> n 1 1 1", "mean")
    return middle + by * (images - middle)


def _saturation(images: Images, by: float) -> Images:
    grey = _grey(images)
    return grey + by * (images - grey)


def _hue(images: Images, by: float) -> Images:
    """Rotate the hexagon of colours (red, yellow, green, cyan, blue, magenta) by a share."""
    red, green, blue = (images[:, colour : colour + 1] for colour in range(3))
    most, least = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    chroma = most - least
    safe = chroma.clamp(min=torch.finfo(images.dtype).tiny)
    sixth = torch.where(
        most == red,
        (green - blue) / safe,
        torch.where(most == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixth = sixth + 6 * by
    away = torch.cat([(sixth + shift) % 6 for shift in (5, 3, 1)], dim=1)
    return most - chroma * torch.minimum(away, 4 - away).clamp(0, 1)


def blur(images: Images, draw: Draw) -> Images:
    """Gaussian, 13 pixels wide, of deviation 1.5 to 2 pixels; the picture is mirrored outside."""
    sigma, sides = draw(1.5, 2.0), images.shape[-2:]
    for axis, side in enumerate(sides):
        radius = min(6, side - 1)
        weight = torch.exp(
            -(torch.arange(-radius, radius + 1, dtype=images.dtype) ** 2) / (2 * sigma**2)
        )
        kernel = rearrange(weight / weight.sum(), "k -> 1 1 k 1" if axis == 0 else "k -> 1 1 1 k")
        margin = (0, 0, radius, radius) if axis == 0 else (radius, radius, 0, 0)
        planes = pad(rearrange(images, "n c h w -> (n c) 1 h w"), margin, mode="reflect")
        images = rearrange(conv2d(planes, kernel), "(n c) 1 h w -> n c h w", c=3)
    return images


def resized_crop(images: Images, draw: Draw) -> Images:
    """Cut out 8 to 100 % of the area, of ratio 3/4 to 4/3, and resize it to the whole."""
    height, width = images.shape[-2:]
    for _ in range(10):
        area = height * width * draw(0.08, 1)
        ratio = math.exp(draw(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(draw(0, height - h + 1)), int(draw(0, width - w + 1))
            break
    else:  # too oblong a picture: the largest part of an allowed ratio, in the middle
        h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
        top, left = (height - h) // 2, (width - w) // 2
    part = images[..., top : top + h, left : left + w]
    return interpolate(part, (height, width), mode="bilinear", antialias=True)


TRANSFORMS: Mapping[str, Callable[[Images, Draw], Images]] = {
    function.__name__: function
    for function in (horizontal_flip, vertical_flip, rotation, colour_jitter, blur, resized_crop)
}
