# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Tiles of 50 m that three resolutions, a series and a mask show, made up from a seed."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchgeo_omnisat import Modality

AERIAL = Modality('aerial', ('R',), 0.2, False, 'optical', 'dn')
SPOT = Modality('spot', ('R',), 1.0, False, 'optical', 'dn')
S2 = Modality('s2', ('B04', 'B08'), 10.0, True, 'optical', 'dn')
S1A = Modality('s1a', ('VV', 'VH', 'VV-VH'), 10.0, True, 'radar', 'db')
MODALITIES = {m.name: m for m in (AERIAL, SPOT, S2)}
#: Sensors of 10 m and one of 5, cheap to make, with all kinds of bands.
SENSORS = {m.name: m for m in (S2, S1A, Modality('spot', ('R', 'G', 'B'), 5.0, False, 'optical', 'dn'))}
SIDE = 50.0
LABEL_GSD = 2.0
LEFT, TOP = 400000.0, 6800000.0


def around(images: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """A batch of images and a mask, georeferenced in metre steps, of which everything is valid."""
    count = len(mask)
    batch = {'mask': mask}
    for name, image in images.items():
        dates = image.shape[1] if image.ndim == 5 else 1
        days = 17800 + 7 * torch.arange(dates) if image.ndim == 5 else torch.zeros(1, dtype=torch.int64)
        batch |= {f'image_{name}': image, f'dates_{name}': days.repeat(count, 1)}
        batch[f'valid_{name}'] = torch.ones(count, dates, dtype=torch.bool)
    where = (LEFT, LEFT + SIDE, 1, TOP - SIDE, TOP, 1, 0, 1, 1)
    batch['bounds'] = torch.tensor(where, dtype=torch.float64).repeat(count, 1)
    batch['transform'] = torch.tensor((1, 0, LEFT, 0, -1, TOP, 0, 0, 1), dtype=torch.float64).repeat(count, 1)
    return batch


def marked(marker: Tensor, radius: float = 12.0) -> dict[str, Tensor]:
    """A cone at the same ground point ``(B, 2)`` of every image; the mask is 1 near its top."""
    place = (torch.arange(250) + 0.5) * 0.2
    right = (place - marker[:, :1])[:, None, :]
    down = (place - marker[:, 1:])[:, :, None]
    cone = (1 - (right.square() + down.square()).sqrt() / radius).clamp(min=0)[:, None]
    coarse = F.avg_pool2d(cone, 50)
    series = torch.stack([coarse, coarse * 2], 1).expand(-1, 2, 2, -1, -1)
    images = {'aerial': cone, 'spot': F.avg_pool2d(cone, 5), 's2': series.contiguous()}
    return around(images, (F.avg_pool2d(cone, 10)[:, 0] > 0.4).long())


def random_tiles(count: int = 3, dates: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Tiles of 80 m with nothing alike in them."""
    generator = torch.Generator().manual_seed(seed)
    images = {
        's2': torch.rand(count, dates, 2, 8, 8, generator=generator) * 5000,
        's1a': torch.randn(count, dates + 1, 3, 8, 8, generator=generator) - 12,
        'spot': torch.rand(count, 3, 16, 16, generator=generator) * 255,
    }
    images['s1a'][:, :, 2] = images['s1a'][:, :, 0] - images['s1a'][:, :, 1]
    batch = around(images, torch.randint(0, 5, (count, 8, 8), generator=generator))
    batch['bounds'][:, 1], batch['bounds'][:, 3] = LEFT + 80, TOP - 80
    return batch


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two batches are equal bit for bit, NaN included."""
    return list(one) == list(other) and all(
        torch.equal(one[k].nan_to_num(nan=-9e9), other[k].nan_to_num(nan=-9e9))
        and torch.equal(one[k].isnan(), other[k].isnan())
        for k in one
    )
