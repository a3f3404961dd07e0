# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Contrast of tiles: the modalities that see a tile find each other among other tiles."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import processes


class TileContrast(NamedTuple):
    """What :class:`CrossModalInfoNCE` makes of the tiles of all processes.

    P pairs of modalities; where no tile has both, there is NaN instead of a figure.

    Attributes:
        loss: The loss, a scalar with gradient.
        pairs: The two modalities of each pair, as indices.
        losses: Loss of each pair, ``(P,)``, the mean of both directions.
        top1: Part of the tiles whose nearest candidate is the tile itself, ``(P,)``.
        top5: Part of the tiles that are among their own five nearest candidates, ``(P,)``.
        counts: Tiles that have both modalities, ``(P,)``.
    """

    loss: Tensor
    pairs: tuple[tuple[int, int], ...]
    losses: Tensor
    top1: Tensor
    top5: Tensor
    counts: Tensor


class CrossModalInfoNCE(nn.Module):
    """Symmetric InfoNCE between every pair of modalities that both see a tile.

    The loss of CLIP (Radford et al., "Learning Transferable Visual Models From Natural
    Language Supervision", 2021, arXiv 2103.00020) for any number of modalities: for each
    pair, every tile that has both is to be told from the other tiles that have both, in
    both directions. The loss is the mean over all tiles, pairs and directions. Embeddings
    are normalised here. The tiles of all processes are candidates, and gradients come back
    from all of them: with DDP, which averages gradients, processes together learn what a
    single one would from their joint batch, and each of them is told the joint loss. They
    may have different numbers of tiles, and none or few of the modalities.

    The temperature is learned: the parameter ``log_temperature``, of shape (1,), clamped
    where it is used.

    Args:
        temperature: The temperature to begin with.
        min_temperature: The least that it may become; CLIP's is 0.01.
        max_temperature: The most that it may become.

    Raises:
        ValueError: If the three are not positive or not in order.
    """

    def __init__(self, temperature: float = 0.07, min_temperature: float = 0.01, max_temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < min_temperature <= temperature <= max_temperature < math.inf:
            raise ValueError(
                f'temperature is {temperature}, expected a number from {min_temperature} to {max_temperature}, '
                'both positive and finite'
            )
        self.bounds = (math.log(min_temperature), math.log(max_temperature))
        self.log_temperature = nn.Parameter(torch.tensor([math.log(temperature)]))

    @property
    def temperature(self) -> Float[Tensor, '1']:
        """The temperature in use."""
        clamped: Tensor = _Clamp.apply(self.log_temperature, *self.bounds)
        return clamped.exp()

    def forward(
        self,
        embeddings: Float[Tensor, 'm b d'],
        available: Bool[Tensor, 'b m'],
        exclude: Bool[Tensor, 'b g'] | None = None,
    ) -> Float[Tensor, '']:
        """The loss alone; see :meth:`contrast`."""
        return self.contrast(embeddings, available, exclude).loss

    def contrast(
        self,
        embeddings: Float[Tensor, 'm b d'],
        available: Bool[Tensor, 'b m'],
        exclude: Bool[Tensor, 'b g'] | None = None,
    ) -> TileContrast:
        """Compare the embeddings of B tiles, and those of other processes.

        Args:
            embeddings: One a modality and tile.
            available: Which tile has which modality; what the others hold does not matter.
            exclude: Which of the G tiles of all processes, in the order of the ranks, are no
                negatives for which tile, such as :func:`too_close` tells. A tile itself is
                always its own candidate.

        Returns:
            The loss, and the figures of each pair.

        Raises:
            ValueError: In every process, if there are fewer than two modalities, there is
                only one tile in all processes together, an available embedding is not
                finite, or shapes do not fit.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._contrast(embeddings, available, exclude)

    def _contrast(self, embeddings: Tensor, available: Tensor, exclude: Tensor | None) -> TileContrast:
        """As :meth:`contrast`, in single precision or better."""
        start, tiles = _agree(embeddings, available, exclude)
        own = torch.arange(start, start + embeddings.shape[1], device=embeddings.device)
        x = embeddings.transpose(0, 1).to(torch.promote_types(embeddings.dtype, torch.float32))
        x = processes.gather_with_gradient(x.masked_fill(~available.unsqueeze(-1), 0), self.log_temperature)
        seen = torch.cat(processes.gather(available))
        _refuse_strange(x.detach())
        x = F.normalize(x, dim=-1)

        first, second = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
        anchor, other = torch.cat([first, second]), torch.cat([second, first])
        both = (seen[:, anchor] & seen[:, other]).T
        candidates = both.unsqueeze(1).expand(-1, len(own), -1)
        if exclude is not None:
            candidates = candidates & ~exclude
        candidates = candidates | (own.unsqueeze(1) == torch.arange(tiles, device=own.device))
        logits = torch.einsum('bpd,gpd->pbg', x[own][:, anchor], x[:, other]) / self.temperature
        logits = logits.masked_fill(~candidates, -math.inf)
        right = logits[:, torch.arange(len(own), device=own.device), own]
        each = torch.where(both[:, own], logits.logsumexp(-1) - right, 0)

        ahead = (logits >= right.unsqueeze(-1)).sum(-1) - 1  # a tie is no success: collapse must not look like one
        hits = [both[:, own] & (ahead < k) for k in (1, 5)]
        sums = torch.stack([value.sum(1).to(each.dtype) for value in (each, *hits, both[:, own])])
        sums = processes.total(sums).unflatten(1, (2, -1)).sum(1)
        losses, top1, top5 = sums[:3] / sums[3]
        pairs = tuple((int(a), int(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True))
        loss = processes.shared_mean(each.sum(), sums[3].sum())
        return TileContrast(loss, pairs, losses, top1, top5, (sums[3] / 2).long())


def too_close(bounds: Float[Tensor, 'b c'], within: float = 0.0) -> Bool[Tensor, 'b g']:
    """Which tiles of all processes are no negatives, as they share or nearly share the ground.

    Args:
        bounds: Where each of B tiles lies, in metres of one coordinate system: its centroid
            (x, y), its box (xmin, ymin, xmax, ymax), or TorchGeo's nine numbers (xmin, xmax,
            xres, ymin, ymax, yres, and the same of time). NaN where it is not known; such a
            tile is close to none.
        within: Distance of centres, in metres, below which tiles are too close; boxes that
            overlap always are.

    Returns:
        Flags ``(B, G)``: another tile, of the G of all processes in the order of the ranks,
        overlaps or is nearer than *within*. No tile is too close to itself.

    Raises:
        ValueError: If *bounds* has another number of columns, or *within* is negative.
    """
    columns = {2: [0, 1, 0, 1], 4: [0, 1, 2, 3], 9: [0, 3, 1, 4]}
    if bounds.ndim != 2 or bounds.shape[-1] not in columns:
        raise ValueError(f'bounds is {tuple(bounds.shape)}, expected (B, 2), (B, 4) or (B, 9): centroids or boxes')
    if not within >= 0:
        raise ValueError(f'within is {within}, expected a number of metres, not negative')
    mine = bounds[:, columns[bounds.shape[-1]]].double()
    parts = processes.gather(mine)
    low, high = torch.cat(parts).unflatten(-1, (2, 2)).unbind(1)
    start = sum(len(part) for part in parts[: processes.rank()])
    own = torch.arange(start, start + len(mine), device=mine.device)
    overlap = ((low[own].unsqueeze(1) < high) & (low < high[own].unsqueeze(1))).all(-1)
    centre = (low + high) / 2
    near = (centre[own].unsqueeze(1) - centre).norm(dim=-1) < within
    return (overlap | near) & (own.unsqueeze(1) != torch.arange(len(low), device=own.device))


def _agree(embeddings: Tensor, available: Tensor, exclude: Tensor | None) -> tuple[int, int]:
    """First tile of this process among those of all, and their number, once shapes fit in every process."""
    modalities, count, width = embeddings.shape
    fits = tuple(available.shape) == (count, modalities)
    excluded = (count, -1) if exclude is None else tuple(exclude.shape)
    mine = torch.tensor([[modalities, count, width, fits, *excluded]], device=embeddings.device)
    shapes = torch.cat(processes.gather(mine)).tolist()
    tiles = sum(row[1] for row in shapes)
    if min(row[0] for row in shapes) < 2:
        raise ValueError(f'embeddings have {shapes[0][0]} modality, expected two or more to compare')
    if len({(row[0], row[2]) for row in shapes}) > 1:
        raise ValueError(f'modalities and width are {[(r[0], r[2]) for r in shapes]}, expected the same in all ranks')
    if not all(row[3] for row in shapes):
        raise ValueError(f'available is {tuple(available.shape)}, expected (B, M) as embeddings are (M, B, D)')
    if any(row[4] != row[1] or row[5] not in (-1, tiles) for row in shapes):
        raise ValueError(f'exclude is {[tuple(r[4:]) for r in shapes]} in the processes, expected (B, {tiles})')
    if tiles < 2:
        raise ValueError(f'there is {tiles} tile in all processes together, expected two or more to compare')
    return sum(row[1] for row in shapes[: processes.rank()]), tiles


def _refuse_strange(x: Float[Tensor, 'g m d']) -> None:
    """Raise a ValueError for embeddings that are available and not finite."""
    strange = ~x.isfinite().all(-1)
    if strange.any():
        tiles, modalities = strange.nonzero().unbind(1)
        raise ValueError(
            f'embeddings of modalities {sorted(set(modalities.tolist()))} are NaN or infinite in tiles '
            f'{sorted(set(tiles.tolist()))[:5]} that have them, expected finite numbers'
        )


class _Clamp(Function):
    """Clamp; the gradient passes except where a step along it would lead further out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limits = low, high
        return x.clamp(low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high) = ctx.saved_tensors, ctx.limits
        outwards = ((x <= low) & (grad[0] > 0)) | ((x >= high) & (grad[0] < 0))
        return grad[0].masked_fill(outwards, 0), None, None
