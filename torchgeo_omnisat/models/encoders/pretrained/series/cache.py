# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Cache of the embeddings of frozen encoders."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class EmbeddingCache:
    """Embeddings of pixels by a hash of their content; the oldest are replaced when it is full."""

    def __init__(self, size: int) -> None:
        self.size, self.hits = size, 0
        self.weights: list[Any] = []
        self.slots: dict[bytes, int] = {}
        self._keys: list[bytes] = []
        self._next = 0
        self._values: NDArray[Any] = np.empty((0, 0))

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the content from copies and pickles."""
        return vars(EmbeddingCache(self.size))

    def begin(self, weights: list[Any]) -> None:
        """Clear the cache if the weights are not those of the previous call."""
        if weights != self.weights:
            vars(self).update(vars(EmbeddingCache(self.size)), weights=weights)

    def update(self, keys: Sequence[bytes], new: Sequence[bytes], values: NDArray[Any]) -> NDArray[Any]:
        """Return the embeddings of *keys* and keep the new ones.

        Args:
            keys: Keys that are in the cache or in *new*.
            new: Distinct keys that are not in the cache.
            values: Their embeddings, ``(len(new), D)``.
        """
        rows = {key: row for row, key in enumerate(new)}
        out = np.empty((len(keys), values.shape[1]), values.dtype)
        for index, key in enumerate(keys):
            out[index] = values[rows[key]] if key in rows else self._values[self.slots[key]]
            self.hits += key not in rows
        for key, value in zip(new, values, strict=True):
            self._put(key, value)
        return out

    def _put(self, key: bytes, value: NDArray[Any]) -> None:
        if self._next == len(self._values) < self.size:
            grown = np.empty((min(self.size, max(1024, 2 * self._next)), len(value)), value.dtype)
            if self._next:
                grown[: self._next] = self._values
            self._values = grown
        slot = self._next % self.size
        if slot < len(self._keys):
            del self.slots[self._keys[slot]]
            self._keys[slot] = key
        else:
            self._keys.append(key)
        self.slots[key], self._values[slot] = slot, value
        self._next += 1


def content_keys(parts: Sequence[Tensor], shared: bytes) -> list[bytes]:
    """Return a hash of the content of every row."""
    columns = [part.cpu().flatten(1).contiguous().numpy().view(np.uint8) for part in parts]
    rows = np.ascontiguousarray(np.concatenate(columns, axis=1))
    start = hashlib.blake2b(shared + str(rows.shape[1]).encode(), digest_size=16)
    keys = []
    for row in rows:
        digest = start.copy()
        digest.update(row)
        keys.append(digest.digest())
    return keys
