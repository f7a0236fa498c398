"""Operations on the pixels of batches, with one value per image.

All take and return float32 images [N, 3, H, W] in [0, 1]; `values` are [N] and may lie on another device. What would be
many small steps takes one of two forms: on the CPU the fewest passes over pixels, some images at a time; elsewhere the
fewest launches, all images at once. Both give the same, to 1e-5. The definitions are torchvision's:

- brightness is a factor;
- contrast scales the distance to the image's mean grey value;
- saturation blends with the pixel's grey value;
- hue is a fraction of the circle.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.runtime.device_copies import constant

Interpolation = Literal["bilinear", "bicubic"]
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue


def adjust_colours(images: Tensor, values: Tensor, positions: Tensor, *, compiled: bool = False) -> Tensor:
    """Brightness, contrast, saturation and hue, one after another in an order of each image's own.

    On the CPU the images that are at the same change take turns; elsewhere, where the number of launches counts and not
    the arithmetic, all go through the same changes, most of which leave an image as it is.

    Args:
        images: [N, 3, H, W].
        values: [N, 4], factors of brightness, contrast and saturation, and the hue's fraction of the circle.
        positions: int64 [N, 4], when each of the four comes, 0 to 3.
        compiled: whether torch.compile merges the changes of a GPU into a fifth of the launches, once for each shape.

    Returns:
        new images; where a value is 1, or 0 for the hue, equal to 1e-6 to what they were without it.
    """
    if images.device.type == "cpu":
        return _adjust_in_turn(images, values, positions)
    change = compiled_adjust_at_once() if compiled else _adjust_at_once
    return change(images, values, positions)


def _adjust_in_turn(images: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    adjustments = ((adjust_brightness, 1), (adjust_contrast, 1), (adjust_saturation, 1), (adjust_hue, 0))
    images = images.clone()
    for turn in range(len(adjustments)):
        for (adjust, neutral), own, position in zip(adjustments, values.unbind(dim=1), positions.unbind(dim=1)):
            rows = ((position == turn) & (own != neutral)).nonzero().squeeze(1)
            if len(rows) == len(images):
                images = adjust(images, own)
            elif len(rows):
                images.index_copy_(0, rows, adjust(images[rows], own[rows]))
    return images


def _adjust_at_once(images: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """Three blends, the hue, three blends: every order is in this row, with blends between that change nothing."""
    slots = torch.add(positions[:, :3], positions[:, :3] > positions[:, 3:], alpha=2)
    taken = slots.unsqueeze(2) == constant(tuple(range(6)), images.device, torch.int64)
    of_reference = taken * (1 - values[:, :3]).unsqueeze(2)  # [N, 3, 6], of black, the mean grey, the pixel's grey
    of_image = 1 - of_reference.sum(dim=1)
    for slot in range(6):
        if slot == 3:
            images = adjust_hue(images, values[:, 3])
        grey = _grey(images)
        of_mean, of_grey = (_per_image(of_reference[:, kind, slot], images) for kind in (1, 2))
        reference = torch.addcmul(grey.mean(dim=(2, 3), keepdim=True) * of_mean, grey, of_grey)
        images = torch.addcmul(reference, images, _per_image(of_image[:, slot], images)).clamp_(0, 1)
    return images


@functools.cache
def compiled_adjust_at_once() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What `adjust_colours` does elsewhere than on the CPU, compiled when it is first called with images of a shape."""
    compiled: Callable[[Tensor, Tensor, Tensor], Tensor] = torch.compile(_adjust_at_once, dynamic=False)
    return compiled


def adjust_brightness(images: Tensor, values: Tensor) -> Tensor:
    """Multiplies every pixel by a factor and clips to [0, 1]."""
    return (images * _per_image(values, images)).clamp_(0, 1)


def adjust_contrast(images: Tensor, values: Tensor) -> Tensor:
    """Multiplies the distance to the image's mean grey value by a factor and clips to [0, 1]."""
    return _blend(images, _grey(images).mean(dim=(2, 3), keepdim=True), values)


def adjust_saturation(images: Tensor, values: Tensor) -> Tensor:
    """Multiplies the distance of each pixel to its grey value by a factor and clips to [0, 1]."""
    return _blend(images, _grey(images), values)


def _blend(images: Tensor, reference: Tensor, values: Tensor) -> Tensor:
    factor = _per_image(values, images)
    return (images * factor).add_(reference * (1 - factor)).clamp_(0, 1)


def adjust_hue(images: Tensor, values: Tensor) -> Tensor:
    """Turns the hue of HSV by a fraction of the circle; 1/3 takes red to green and green to blue.

    Hues are written as signed distances from red in sixths of the circle, so that red, green and blue lie at 0, 2 and
    4. A channel is full up to one sixth away from its own hue and gone from two sixths on; all pixels take the same
    arithmetic, without a choice between the six sectors.
    """
    red, green, blue = images.unbind(dim=1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    spread = largest - smallest
    distance_from_red = (green + blue).sub_(red).sub_(smallest).div_(spread.clamp(min=1e-20)).add_(1)
    hue = torch.copysign(distance_from_red, green - blue).add_(6 * _per_image(values, images)[:, 0])
    distance = hue.unsqueeze(1) - constant((0, 2, 4), images.device).view(3, 1, 1)
    distance.sub_(torch.div(distance, 6).round_(), alpha=6).abs_()
    share = (2 - distance).clamp_(0, 1)
    return torch.addcmul(smallest.unsqueeze(1), share, spread.unsqueeze(1))


def to_grayscale(images: Tensor) -> Tensor:
    """Three equal channels: 0.299 red + 0.587 green + 0.114 blue."""
    return _grey(images).expand_as(images)


def _grey(images: Tensor) -> Tensor:
    """[N, 1, H, W]"""
    if images.device.type != "cpu" and not torch.compiler.is_compiling():  # compiled code merges what stands below
        weights = constant((GREY_WEIGHTS,), images.device).expand(len(images), 1, 3)
        return torch.bmm(weights, images.flatten(2)).unflatten(2, images.shape[2:])
    of_red, of_green, of_blue = constant(GREY_WEIGHTS, images.device)
    red, green, blue = images.split(1, dim=1)
    return (red * of_red).addcmul_(green, of_green).addcmul_(blue, of_blue)


def solarize(images: Tensor, values: Tensor) -> Tensor:
    """Replaces each value v from the threshold upwards by 1 - v."""
    inverted = (images >= _per_image(values, images)).to(images.dtype)
    # |inverted - v| is v or 1 - v; on CPUs this is much faster than choosing between the two.
    return inverted.sub_(images).abs_()


def gaussian_blur(images: Tensor, values: Tensor, kernel_size: int) -> Tensor:
    """Convolves with a Gaussian of standard deviation `values` pixels, cut off at `kernel_size`, borders mirrored.

    Raises:
        ValueError: half the kernel does not fit into the images.
    """
    weights = blur_weights(values, kernel_size).to(images.device)
    return blur_by_weights(images, weights, kernel_size)


def blur_weights(values: Tensor, kernel_size: int) -> Tensor:
    """[N, at most kernel_size]: the weights of `gaussian_blur` along one side, where the values are."""
    radius = kernel_size // 2
    if values.device.type == "cpu":
        # Beyond 6.5 standard deviations a weight is below 1e-9 of the largest. A GPU would be waited for.
        radius = min(radius, math.ceil(6.5 * float(values.max())))
    squared_distance = torch.arange(-radius, radius + 1, device=values.device).square().to(values.dtype)
    # Without deviation, the middle has all the weight.
    weights = torch.exp(-squared_distance / (2 * values.square()).clamp_(min=1e-20).unsqueeze(1))
    return weights / weights.sum(dim=1, keepdim=True)


def blur_by_weights(images: Tensor, weights: Tensor, kernel_size: int) -> Tensor:
    """`gaussian_blur` with weights of `blur_weights` on the device of the images; raises ValueError as that does.

    On the CPU a sum of shifted images; elsewhere two matrix products, in TF32 if the user allows it.
    """
    if min(images.shape[2:]) <= kernel_size // 2:
        raise ValueError(
            f"a blur of kernel size {kernel_size} got images of {images.shape[2]} x {images.shape[3]} pixels: "
            "use a smaller kernel"
        )
    blur = _blur_by_shifts if images.device.type == "cpu" else _blur_by_products
    return blur(images, weights)


def _blur_by_shifts(images: Tensor, weights: Tensor) -> Tensor:
    radius = weights.shape[1] // 2
    for dim, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        images = _weighted_shifts(F.pad(images, padding, mode="reflect"), weights, dim)
    return images


def _weighted_shifts(padded: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Correlates along one dimension: on CPUs several times faster than a convolution."""
    length = padded.shape[dim] - weights.shape[1] + 1
    result = torch.zeros_like(padded.narrow(dim, 0, length), memory_format=torch.contiguous_format)
    for shift, weight in enumerate(weights.unbind(dim=1)):
        result.addcmul_(padded.narrow(dim, shift, length), weight.view(-1, 1, 1, 1))
    return result


def _blur_by_products(images: Tensor, weights: Tensor) -> Tensor:
    count, channels, height, width = images.shape
    down = _blur_matrices(weights, height)
    across = down if width == height else _blur_matrices(weights, width)
    blurred = torch.bmm(images.reshape(count, channels * height, width), across.mT)
    return torch.matmul(down.unsqueeze(1), blurred.view(images.shape))


def _blur_matrices(weights: Tensor, side: int) -> Tensor:
    """[N, side, side]: how much each pixel of a row adds to each pixel of the blurred row."""
    count, kernel_size = weights.shape
    source = constant(_mirrored_neighbours(side, kernel_size // 2), weights.device, torch.int64)
    each = (count, side, kernel_size)
    matrices = weights.new_zeros(count, side, side)
    return matrices.scatter_add_(2, source.expand(each), weights.unsqueeze(1).expand(each))


@functools.lru_cache(maxsize=32)
def _mirrored_neighbours(side: int, radius: int) -> tuple[tuple[int, ...], ...]:
    """The pixels around each pixel of a row, which goes on in its mirror images beyond both ends."""
    last = side - 1
    shifts = range(-radius, radius + 1)
    return tuple(tuple(last - abs(last - abs(pixel + shift)) for shift in shifts) for pixel in range(side))


def crop_and_resize(
    images: Tensor, boxes: Tensor, output_size: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Cuts a rectangle of whole pixels out of each image and resizes it to a square.

    Shrinking averages over all pixels that the rectangle has (antialiasing, as Pillow and torchvision do). What lies
    outside of the rectangle has no influence, as long as it is finite. Bicubic results are clipped to [0, 1]. On the
    CPU the images take turns; elsewhere two matrix products resize all at once, equal to 5e-6 unless the user lets
    float32 products use TF32.

    Args:
        images: [N, 3, H, W].
        boxes: int64 [N, 4], top, left, height and width in pixels; the rectangle lies inside the image.
        output_size: side of the results.
        interpolation: "bilinear" or "bicubic".

    Returns:
        [N, 3, output_size, output_size], contiguous.
    """
    crop = _crop_in_turn if images.device.type == "cpu" else _crop_at_once
    result = crop(images, boxes, output_size, interpolation)
    return result.clamp_(0, 1) if interpolation == "bicubic" else result


def _crop_in_turn(images: Tensor, boxes: Tensor, output_size: int, interpolation: Interpolation) -> Tensor:
    result = images.new_empty(len(images), 3, output_size, output_size)
    for index, (top, left, height, width) in enumerate(boxes.tolist()):
        # Resizing is several times slower on channels-last memory, in which decoded pictures come.
        box = images[index : index + 1, :, top : top + height, left : left + width].contiguous()
        size = (output_size, output_size)
        result[index : index + 1] = F.interpolate(box, size, mode=interpolation, antialias=True)
    return result


def _crop_at_once(images: Tensor, boxes: Tensor, output_size: int, interpolation: Interpolation) -> Tensor:
    count, channels, height, width = images.shape
    weights = _resize_weights(boxes.to(images.device), max(height, width), output_size, interpolation)
    down, across = weights[:, 0, :, :height], weights[:, 1, :, :width]
    narrowed = torch.bmm(images.reshape(count, channels * height, width), across.mT)
    return torch.matmul(down.unsqueeze(1), narrowed.view(count, channels, height, output_size))


def _resize_weights(boxes: Tensor, image_side: int, output_size: int, interpolation: Interpolation) -> Tensor:
    """[N, 2, output_size, image_side]: how much each source pixel of a column, and of a row, adds to each pixel of the
    resized one."""
    source, target = (
        constant(tuple(pixel + 0.5 for pixel in range(side)), boxes.device) for side in (image_side, output_size)
    )
    start, length = boxes.view(-1, 2, 2, 1, 1).unbind(dim=1)
    step = length / output_size
    source = source - start  # from the box's edge: rounded as on the CPU, and less than from the image's
    distance = (source - target.unsqueeze(1) * step).div_(step.clamp(min=1)).abs_()
    weights = (1 - distance).clamp_(min=0) if interpolation == "bilinear" else _cubic(distance)
    weights.mul_((source > 0) & (source < length))
    return weights.div_(weights.sum(dim=3, keepdim=True))


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, which Pillow and torch use when they antialias.

    From 1 to 2 it is (1 - x)(2 - x)^2 / 2; below 1, (1 - x)^2 (2x - 1) comes to that.
    """
    to_one = 1 - distance
    near, far = to_one.clamp(min=0), (to_one + 1).clamp_(min=0)
    return torch.addcmul((1 - 2 * near).mul_(near).mul_(near), to_one, far.square_(), value=0.5)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """[N] as [N, 1, 1, 1] on the device of the images."""
    return values.to(images.device).view(-1, 1, 1, 1)
