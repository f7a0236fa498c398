"""How images of any size are brought to the one size of a batch.

For training a picture lies inside a larger canvas, so that crops are taken from all of it, on the device; for probing
it is resized and cropped around its centre, the same way each time.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

_FILTER = Image.Resampling.BILINEAR  # shrinks with anti-aliasing, as torchvision's Resize does


class Fit(Protocol):
    """Writes an image of any size into a buffer of one size."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the buffer."""

    @property
    def fills_image(self) -> bool:
        """True if the picture always fills the buffer."""

    def place(self, image: np.ndarray, out: np.ndarray) -> tuple[int, int]:
        """Write uint8 [h, w, 3] into uint8 [H, W, 3]; returns height and width of the picture in `out`."""


@dataclass(frozen=True)
class Canvas:
    """A square of `side` pixels with the picture in its top-left corner and zeros elsewhere.

    A picture whose longer side exceeds `side` is shrunk to it, keeping its proportions; none is enlarged.
    """

    side: int

    @property
    def fills_image(self) -> bool:
        return False

    @property
    def image_size(self) -> tuple[int, int]:
        return self.side, self.side

    def place(self, image: np.ndarray, out: np.ndarray) -> tuple[int, int]:
        height, width = image.shape[:2]
        longer = max(height, width)
        if longer > self.side:
            height, width = (max(1, round(length * self.side / longer)) for length in (height, width))
            image = np.asarray(Image.fromarray(image).resize((width, height), _FILTER))
        out[height:] = 0
        out[:height, width:] = 0
        out[:height, :width] = image
        return height, width


@dataclass(frozen=True)
class CenterCrop:
    """The central square of `side` pixels of the picture after its shorter side was resized to `shorter_side`."""

    side: int
    shorter_side: int

    @property
    def fills_image(self) -> bool:
        return True

    @property
    def image_size(self) -> tuple[int, int]:
        return self.side, self.side

    def place(self, image: np.ndarray, out: np.ndarray) -> tuple[int, int]:
        height, width = image.shape[:2]
        shorter = min(height, width)
        if height == width == self.side == self.shorter_side:
            out[...] = image
            return self.side, self.side
        resized_height = self.shorter_side * height // shorter
        resized_width = self.shorter_side * width // shorter
        top = round((resized_height - self.side) / 2)
        left = round((resized_width - self.side) / 2)
        # Only the pixels of the crop are computed, which is the same: the filter still sees the picture around it.
        box = (
            left * width / resized_width,
            top * height / resized_height,
            (left + self.side) * width / resized_width,
            (top + self.side) * height / resized_height,
        )
        out[...] = np.asarray(Image.fromarray(image).resize((self.side, self.side), _FILTER, box=box))
        return self.side, self.side


def imagenet_center_crop(side: int) -> CenterCrop:
    """The usual evaluation crop: 87.5 % of the shorter side (Resize 256, CenterCrop 224, for any `side`)."""
    return CenterCrop(side, round(side * 256 / 224))
