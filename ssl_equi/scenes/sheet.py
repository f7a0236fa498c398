"""Many small pictures as one."""

import numpy as np
from numpy.typing import NDArray


def contact_sheet(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Pictures [n, H, W, 3] row by row on one of [rows * H, columns * W, 3]; places left over are black.

    Raises ValueError for arrays of another shape or type, and for less than one column.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images have shape {images.shape} and type {images.dtype}: give [n, H, W, 3] uint8")
    if columns < 1:
        raise ValueError(f"columns is {columns}: a sheet has at least 1")
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, height, width, 3), dtype=np.uint8)
    cells[:count] = images
    grid = cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, 3)
