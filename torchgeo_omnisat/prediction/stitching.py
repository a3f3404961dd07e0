# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Stitching: tiles are added up where they overlap; only rows that are still open are held."""

import numpy as np
from numpy.typing import NDArray

from .tiling import Strip, Tiling, Window


class Stitcher:
    """Weighted mean of overlapping tiles, one strip at a time.

    Rows of tiles come in the order of :meth:`.Tiling.passes`. No more is held than one row
    of tiles over one band, whatever the area.

    Args:
        tiling: The tiles.
        classes: Number of classes K.
    """

    def __init__(self, tiling: Tiling, classes: int) -> None:
        self.tiling, self.classes = tiling, classes
        self.strip: Strip | None = None
        self.total = np.zeros((0, 0, 0), np.float32)
        self.weight = np.zeros((0, 0), np.float32)
        self.seen = np.zeros((0, 0), np.uint16)

    def begin(self, strip: Strip) -> None:
        """Start a row of tiles; rows above it are forgotten, those below the last one kept."""
        last, self.strip = self.strip, strip
        if last == Strip(strip.band, strip.row - 1):
            done = self.tiling.rows[strip.row] - self.tiling.rows[strip.row - 1]
            for held in (self.total, self.weight, self.seen):
                held[..., :-done, :] = held[..., done:, :]
                held[..., max(0, self.tiling.size - done) :, :] = 0
            return
        size = self.tiling.size, self.tiling.extent(strip).width
        self.total = np.zeros((self.classes, *size), np.float32)
        self.weight, self.seen = np.zeros(size, np.float32), np.zeros(size, np.uint16)

    def add(self, window: Window, probabilities: NDArray[np.float32], seen: NDArray[np.uint16]) -> None:
        """Add one tile of the row.

        Args:
            window: Where it lies.
            probabilities: ``(K, height, width)``.
            seen: ``(height, width)``, a bit for every modality that measured the pixel.
        """
        assert self.strip is not None
        left, right = self.tiling.bands[self.strip.band]
        begin, end = max(window.column, left), min(window.column + window.width, right)
        inside, outside = slice(begin - window.column, end - window.column), slice(begin - left, end - left)
        weights = self.tiling.weights[:, inside]
        self.total[:, :, outside] += weights * probabilities[:, :, inside]
        self.weight[:, outside] += weights
        self.seen[:, outside] |= seen[:, inside]

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
        """The strip of the row that was added.

        Returns:
            Probabilities ``(K, rows, columns)`` and the bits of the modalities.
        """
        assert self.strip is not None
        rows = self.tiling.extent(self.strip).height
        return self.total[:, :rows] / self.weight[:rows], self.seen[:rows].copy()
