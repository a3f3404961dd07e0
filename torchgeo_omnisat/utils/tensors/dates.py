# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sinusoidal encoding of acquisition dates by the season and the year."""

import math

import torch
from torch import Tensor

#: Mean length of the Gregorian year, in days.
YEAR = 365.2425


def annual_code(dates: Tensor, valid: Tensor, harmonics: int = 4) -> Tensor:
    """Return sinusoids of the day of the year and of the time since the first valid date.

    For days since 1970-01-01, ``(B, T)``, return ``(B, T, 2 * harmonics + 4)`` float32: sines, then cosines, of the
    harmonics and of periods of 2 and 8 years. It is undefined where dates are not valid.
    """
    first = dates.masked_fill(~valid, torch.iinfo(dates.dtype).max).amin(1, keepdim=True)
    cycles = 2 * math.pi * torch.arange(1, harmonics + 1, dtype=torch.float32, device=dates.device)
    season = dates.float().fmod(YEAR).unsqueeze(-1) / YEAR * cycles
    years = torch.where(valid, dates - first, 0).float().unsqueeze(-1) / YEAR
    angles = torch.cat([season, years * (2 * math.pi / 2), years * (2 * math.pi / 8)], dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
