# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Indices of the valid images of a batch."""

import weakref
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .devices import readable

#: Flags whose values :func:`read_valid` read last, with their versions and indices.
_read: list[tuple[weakref.ref[Tensor], int, Tensor | None]] = []


def valid_indices(valid: Bool[Tensor, '...']) -> Int[Tensor, ' s'] | None:
    """Return the indices of the valid images of a flattened batch; ``None`` for all, without a copy.

    A compiled graph has fixed shapes: it computes all images, and invalid ones are masked. On an accelerator, the
    host waits for the flags unless :func:`read_valid` has read them.
    """
    if torch.compiler.is_compiling():
        return None
    known = _find(valid)
    return _indices(valid, valid) if known is None else known[2]


def read_valid(flags: Iterable[tuple[Tensor, ...]]) -> None:
    """Read the flags of all modalities at once, so that the host waits for an accelerator once instead of each time.

    Flags that were read last are not read again, such as for a teacher or a second pass over a batch.

    Args:
        flags: Tensors of each modality that have the same values, such as ``(B, 1)`` and ``(B,)``.
    """
    if torch.compiler.is_compiling():
        return
    groups = [group for group in flags if not readable(group[0])]
    known = [_find(group[0]) for group in groups]
    indices = [entry[2] for entry in known if entry is not None]
    if len(indices) < len(groups):
        values = torch.cat([group[0].flatten() for group in groups]).cpu()
        parts = values.split([group[0].numel() for group in groups])
        indices = [_indices(own, group[0]) for group, own in zip(groups, parts, strict=True)]
        _read.clear()
    _read[:] = [entry for entry in _read if entry[0]() is not None]
    for group, index in zip(groups, indices, strict=True):
        _read.extend((weakref.ref(x), _version(x), index) for x in group if _find(x) is None)


def _find(x: Tensor) -> tuple[weakref.ref[Tensor], int, Tensor | None] | None:
    return next((entry for entry in _read if entry[0]() is x and entry[1] == _version(x)), None)


def _indices(valid: Tensor, like: Tensor) -> Tensor | None:
    if bool(valid.all()):
        return None
    return valid.flatten().nonzero().squeeze(1).to(like.device, non_blocking=True)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
