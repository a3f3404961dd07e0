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
    for known, version, index in _read:
        if known() is valid and version == _version(valid):
            return index
    return _indices(valid, valid)


def read_valid(flags: Iterable[tuple[Tensor, ...]]) -> None:
    """Read the flags of all modalities at once, so that the host waits for an accelerator once instead of each time.

    Args:
        flags: Tensors of each modality that have the same values, such as ``(B, 1)`` and ``(B,)``.
    """
    if torch.compiler.is_compiling():
        return
    groups = [group for group in flags if not readable(group[0])]
    if all(any(known() is x and version == _version(x) for known, version, _ in _read) for g in groups for x in g):
        return
    values = torch.cat([group[0].flatten() for group in groups]).cpu()
    _read.clear()
    for group, own in zip(groups, values.split([group[0].numel() for group in groups]), strict=True):
        index = _indices(own, group[0])
        _read.extend((weakref.ref(x), _version(x), index) for x in group)


def _indices(valid: Tensor, like: Tensor) -> Tensor | None:
    if bool(valid.all()):
        return None
    return valid.flatten().nonzero().squeeze(1).to(like.device, non_blocking=True)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
