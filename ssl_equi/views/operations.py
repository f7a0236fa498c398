"""What is done to pixels: batched operations with one value an image, most of them kornia's.

All take and return float32 images [N, 3, H, W] in [0, 1]; `values` are [N] and may lie on another device. This is the
only file that imports kornia. Where kornia has several definitions of one operation, ours is torchvision's:

- brightness is a factor (kornia's `adjust_brightness` adds);
- contrast scales the distance to the image's mean grey value (kornia's `adjust_contrast` scales the distance to black);
- saturation blends with the pixel's grey value (kornia's `adjust_saturation` scales the S of HSV);
- hue is a fraction of the circle (kornia's is an angle) and is computed here, several times faster;
- angles are counter-clockwise (kornia's `RandomRotation` agrees, its `RandomAffine` turns clockwise).

kornia takes a second to import, so it is imported where it is used: `--help` needs none of it.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_equi.device_copies import constant

Interpolation = Literal["bilinear", "bicubic"]


def adjust_brightness(images: Tensor, values: Tensor) -> Tensor:
    """Multiplies every pixel by a factor and clips to [0, 1]."""
    from kornia.enhance import adjust_brightness_accumulative

    return adjust_brightness_accumulative(images, values.to(images.device))


def adjust_contrast(images: Tensor, values: Tensor) -> Tensor:
    """Multiplies the distance to the image's mean grey value by a factor and clips to [0, 1]."""
    from kornia.enhance import adjust_contrast_with_mean_subtraction

    return adjust_contrast_with_mean_subtraction(images, values.to(images.device))


def adjust_saturation(images: Tensor, values: Tensor) -> Tensor:
    """Multiplies the distance of each pixel to its grey value by a factor and clips to [0, 1]."""
    from kornia.enhance import adjust_saturation_with_gray_subtraction

    return adjust_saturation_with_gray_subtraction(images, values.to(images.device))


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
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    for channel, own_hue in enumerate((0, 2, 4)):
        distance = hue - own_hue
        distance.sub_(torch.round(distance / 6).mul_(6)).abs_()
        share = distance.neg_().add_(2).clamp_(0, 1)
        torch.addcmul(smallest, share, spread, out=result[:, channel])
    return result


def to_grayscale(images: Tensor) -> Tensor:
    """Three equal channels: 0.299 red + 0.587 green + 0.114 blue."""
    from kornia.color import rgb_to_grayscale

    return rgb_to_grayscale(images).expand_as(images)


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
    from kornia.filters import get_gaussian_kernel1d

    radius = kernel_size // 2
    if values.device.type == "cpu":
        # Beyond 6.5 standard deviations a weight is below 1e-9 of the largest. A GPU would be waited for.
        radius = min(radius, math.ceil(6.5 * float(values.max())))
    weights: Tensor = get_gaussian_kernel1d(2 * radius + 1, values.view(-1, 1))
    return weights


def blur_by_weights(images: Tensor, weights: Tensor, kernel_size: int) -> Tensor:
    """`gaussian_blur` with weights of `blur_weights` on the device of the images; raises ValueError as that does."""
    if min(images.shape[2:]) <= kernel_size // 2:
        raise ValueError(
            f"a blur of kernel size {kernel_size} got images of {images.shape[2]} x {images.shape[3]} pixels: "
            "use a smaller kernel"
        )
    radius = weights.shape[1] // 2
    for dim, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        images = _weighted_shifts(F.pad(images, padding, mode="reflect"), weights, dim)
    return images


def _weighted_shifts(padded: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Correlates along one dimension: on CPUs several times faster than a convolution, and never in TF32."""
    length = padded.shape[dim] - weights.shape[1] + 1
    result = torch.zeros_like(padded.narrow(dim, 0, length), memory_format=torch.contiguous_format)
    for shift, weight in enumerate(weights.unbind(dim=1)):
        result.addcmul_(padded.narrow(dim, shift, length), weight.view(-1, 1, 1, 1))
    return result


def affine(
    images: Tensor,
    *,
    angle_rad: Tensor,
    translate_right: Tensor,
    translate_down: Tensor,
    scale: Tensor,
    shear_x_rad: Tensor,
    shear_y_rad: Tensor,
) -> Tensor:
    """Shears, scales and turns each image about its centre, then moves it; bilinear, black outside.

    The units and signs are those of `ssl_equi.views.parameters.AffineParameters`.
    """
    from kornia.geometry.transform import warp_affine

    height, width = images.shape[2:]
    cosine, sine = torch.cos(angle_rad), torch.sin(angle_rad)
    tangent_x, tangent_y = torch.tan(shear_x_rad), torch.tan(shear_y_rad)
    # Pixel coordinates run right and down, which turns the signs of the sines and tangents.
    shear = _matrices(1 + 0 * tangent_x, -tangent_x, -tangent_y, 1 + tangent_x * tangent_y)
    linear = _matrices(scale * cosine, scale * sine, -scale * sine, scale * cosine) @ shear
    centre = constant(((width - 1) / 2, (height - 1) / 2), linear.device)
    moved_by = torch.stack([translate_right * width, translate_down * height], dim=1)
    offset = centre + moved_by - linear @ centre
    matrices = torch.cat([linear, offset.unsqueeze(2)], dim=2).to(images.device)
    return warp_affine(images, matrices, (height, width), mode="bilinear", padding_mode="zeros", align_corners=True)


def rotate(images: Tensor, values: Tensor) -> Tensor:
    """Turns each image counter-clockwise about its centre by `values` radians; bilinear, black outside."""
    none, one = torch.zeros_like(values), torch.ones_like(values)
    return affine(
        images,
        angle_rad=values,
        translate_right=none,
        translate_down=none,
        scale=one,
        shear_x_rad=none,
        shear_y_rad=none,
    )


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
    top, left, height, width = boxes.to(images.device).unbind(dim=1)
    count, channels, image_height, image_width = images.shape
    across = _resize_weights(left, width, image_width, output_size, interpolation)
    down = _resize_weights(top, height, image_height, output_size, interpolation)
    narrowed = torch.bmm(images.reshape(count, channels * image_height, image_width), across.mT)
    return torch.matmul(down.unsqueeze(1), narrowed.view(count, channels, image_height, output_size))


def _resize_weights(
    start: Tensor, length: Tensor, image_side: int, output_size: int, interpolation: Interpolation
) -> Tensor:
    """[N, output_size, image_side]: how much each source pixel of a row adds to each pixel of the resized row."""
    source = torch.arange(image_side, device=start.device).view(1, 1, -1)
    target = torch.arange(output_size, device=start.device).view(1, -1, 1)
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    step = length / output_size
    distance = (source + 0.5 - start - (target + 0.5) * step) / step.clamp(min=1)
    weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    weights = weights * ((source >= start) & (source < start + length))
    return weights / weights.sum(dim=2, keepdim=True)


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, which Pillow and torch use when they antialias."""
    x = distance.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _matrices(first: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
    """[N, 2, 2] from entries [N] in reading order."""
    return torch.stack([first, second, third, fourth], dim=1).unflatten(1, (2, 2))


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """[N] as [N, 1, 1, 1] on the device of the images."""
    return values.to(images.device).view(-1, 1, 1, 1)
