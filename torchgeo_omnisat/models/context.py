# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Geo-context: prototypes of the region of a tile, which its fused tokens read."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..utils import distributed as processes
from ..utils.checks import check_integer
from ..utils.tensors.prototypes import PrototypeBank

#: Maximum number of values in the bank, 512 MiB in single precision.
LARGEST_BANK = 2**27


class GeoContext(nn.Module):
    """Prototypes of the region of a tile, read by attention and added to its fused tokens.

    Regions are the cells of a grid of longitude and latitude. Fused tokens F of a tile in region r become ``F + W
    softmax(F P_r^T / sqrt(D)) P_r``, with the K prototypes P_r of the region and a learned matrix W, which is zero at
    first. This is the geo-context of SkySense (Guo et al., arXiv 2312.10115), as public summaries quote it: there, the
    second term without W is concatenated, and there are 4096 regions with 100 prototypes each.

    The tokens do not change if the location of a tile is unknown, or if its region was not updated. Only
    ``omnisat_pretraining`` updates the prototypes (:meth:`update`), and other tasks read them.

    Args:
        dim: Width D of the tokens.
        degrees: Side of a region in degrees, at least 1, such that 180 is a multiple of it.
        prototypes: Number K of prototypes of a region.
        momentum: Momentum of the prototypes, see :class:`.PrototypeBank`.

    Raises:
        ValueError: If an argument is out of range, or the bank is too large.
    """

    def __init__(self, dim: int, degrees: float = 10.0, prototypes: int = 32, momentum: float = 0.9) -> None:
        super().__init__()
        if not 1 <= degrees <= 180 or abs(180 / degrees - round(180 / degrees)) > 1e-6:
            raise ValueError(
                f'context_degrees is {degrees}, expected a divisor of 180 from 1 to 180, such as 10, or None'
            )
        check_integer(1, context_prototypes=prototypes)
        self.rows = round(180 / degrees)
        regions = 2 * self.rows**2
        if regions * prototypes * dim > LARGEST_BANK:
            raise ValueError(
                f'context_degrees={degrees} and context_prototypes={prototypes} are {regions} regions and '
                f'{regions * prototypes * dim} values, expected at most {LARGEST_BANK}: use larger regions or fewer '
                'prototypes'
            )
        self.degrees = degrees
        self.bank = PrototypeBank(regions, prototypes, dim, momentum)
        # Without random numbers, so that the weights that are drawn later are those of a model without context.
        self.proj = skip_init(nn.Linear, dim, dim, bias=False)
        nn.init.zeros_(self.proj.weight)

    def regions(self, coordinates: Float[Tensor, 'b 2']) -> Int[Tensor, ' b']:
        """Return the region of each location (longitude, latitude in degrees), or -1 if it is unknown (NaN)."""
        known = coordinates.isfinite().all(-1) & (coordinates[:, 1].abs() <= 90)
        longitude, latitude = coordinates.masked_fill(~known.unsqueeze(-1), 0).unbind(-1)
        row = ((latitude + 90) / self.degrees).floor().long().clamp(max=self.rows - 1)
        column = ((longitude + 180) / self.degrees).floor().long() % (2 * self.rows)
        return (row * 2 * self.rows + column).masked_fill(~known, -1)

    def forward(
        self, fused: Float[Tensor, 'b n d'], coordinates: Float[Tensor, 'b 2'] | None
    ) -> Float[Tensor, 'b n d']:
        """Return the fused tokens with the context of their region.

        Args:
            fused: Fused tokens.
            coordinates: Longitude and latitude of each tile; None if they are unknown.
        """
        if coordinates is None:
            return fused
        regions = self.regions(coordinates).to(fused.device)
        known = (regions >= 0) & (self.bank.updates[regions.clamp(min=0)] > 0)
        prototypes = self.bank.prototypes[regions.clamp(min=0)].to(fused.dtype)
        weights = (fused @ prototypes.mT / math.sqrt(fused.shape[-1])).softmax(-1)
        return torch.where(known[:, None, None], fused + self.proj(weights @ prototypes), fused)

    def update(
        self,
        fused: Float[Tensor, 'b n d'],
        counted: Bool[Tensor, 'b n'],
        coordinates: Float[Tensor, 'b 2'] | None,
        counts: Sequence[int],
    ) -> None:
        """Update the prototypes with fused tokens without context, of the tiles of all ranks, in one collective.

        Args:
            fused: Fused tokens.
            counted: Patches to use.
            coordinates: Longitude and latitude of each tile; None if they are unknown.
            counts: Number of tiles of each rank.
        """
        regions = fused.new_full((fused.shape[0],), -1.0) if coordinates is None else self.regions(coordinates)
        regions = regions.to(fused.device)
        each = regions[:, None, None].expand(*fused.shape[:2], 1)
        rows = torch.cat([fused.detach().float(), counted.unsqueeze(-1).float(), each.float()], -1)
        everyone = torch.cat(processes.gather(rows, counts))
        self.bank.update(everyone[..., :-2], everyone[..., -2] > 0.5, everyone[:, 0, -1].long())
