# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What was seen: which modalities measured which pixel of the output."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modality import Modality


def seen_bits(batch: Mapping[str, Tensor], modalities: Mapping[str, Modality], size: tuple[int, int]) -> Tensor:
    """A bit for every modality that measured a pixel on at least one valid date.

    Args:
        batch: A batch, with or without images; ``window`` if it may have none.
        modalities: The modalities of the model; bit i is number i.
        size: Height and width of the output.

    Returns:
        ``(B, H, W)`` int32. An output pixel counts as measured if any pixel inside it was,
        or, where those of the modality are larger, the one that holds its centre.
    """
    some = next(batch[key] for key in ('window', *(m.valid_key for m in modalities.values())) if key in batch)
    bits = torch.zeros(len(some), *size, dtype=torch.int32, device=some.device)
    for index, modality in enumerate(modalities.values()):
        if modality.image_key not in batch:
            continue
        finite = batch[modality.image_key].isfinite().any(-3)
        finite = finite if modality.temporal else finite[:, None]
        measured = (finite & batch[modality.valid_key][..., None, None]).any(1, keepdim=True).float()
        finer = measured.shape[-2] >= size[0] and measured.shape[-1] >= size[1]
        fitted = F.adaptive_max_pool2d(measured, size) if finer else F.interpolate(measured, size, mode='nearest-exact')
        bits |= (fitted[:, 0] > 0).int() << index
    return bits
