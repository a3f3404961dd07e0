# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Contrastive losses between modalities, on tiles and on patches."""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..utils import distributed as processes


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


class PatchContrastiveLoss(nn.Module):
    """The published MIL-NCE over patches, for any availability and in little memory.

    Astruc et al., "OmniSat" (arXiv 2404.08351). Tokens are compared by cosine. The positives
    of a token are those of the other modalities on the same patch; the denominator holds
    every token but those of its own modality on its own tile, so the positives too. The
    loss is the mean over all tokens that have a positive of log-sum-exp(denominator) minus
    log-sum-exp(positives). A token that is not available has no part in either.

    The similarities are computed in square blocks, each for both of its directions, and
    once more in the backward pass, so that memory grows with the number of tokens alone.

    The published loss sees the tokens of one process. Here those of all processes are in
    the denominator; with DDP, which averages gradients, processes together learn what a
    single one would from their joint batch, and the cost of each grows with their number.
    ``gather=False`` compares each process's own tokens, as published.

    The published encoders see a patch alone. One that sees the whole tile also sees where in
    it a patch lies, which all modalities share, and tells patches apart by that and nothing
    else. ``negatives='place'`` leaves nothing to gain from it: a token is compared with
    those of the same place in the other tiles, and with its positives.

    Args:
        temperature: Temperature; at least 0.02, below which single precision overflows.
        gather: Whether tokens of other processes are negatives.
        block_size: Side of a block of similarities.
        negatives: Whether tokens of all places are negatives, or those of the same place.

    Raises:
        ValueError: If *temperature* or *block_size* is too small, or *negatives* unknown.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        gather: bool = True,
        block_size: int = 512,
        negatives: Literal['everywhere', 'place'] = 'everywhere',
    ) -> None:
        super().__init__()
        if negatives not in ('everywhere', 'place'):
            raise ValueError(f"negatives is {negatives!r}, expected 'everywhere' or 'place'")
        if not 0.02 <= temperature < math.inf:
            raise ValueError(f'temperature is {temperature}, expected a finite number of at least 0.02')
        if block_size < 1:
            raise ValueError(f'block_size is {block_size}, expected at least 1')
        self.temperature, self.gather, self.block_size = float(temperature), gather, block_size
        self.negatives = negatives

    def forward(
        self,
        tokens: Float[Tensor, 'm b n d'],
        available: Bool[Tensor, 'b m'] | Bool[Tensor, 'b n m'],
        exclude: Bool[Tensor, 'b g'] | None = None,
    ) -> Float[Tensor, '']:
        """Compare tokens.

        Args:
            tokens: One a modality, tile and patch.
            available: Which tile, or which patch of it, has which modality; what the others
                hold does not matter.
            exclude: Which of the G tiles of all processes are no negatives for which tile, as
                :func:`.too_close` tells, which is symmetric. A tile's own are always compared.

        Returns:
            The loss, a scalar; 0 where no patch has two modalities.

        Raises:
            ValueError: If there are fewer than two modalities, an available token is not
                finite, or shapes do not fit.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            seen = _seen(tokens, available)
            x = tokens.to(torch.promote_types(tokens.dtype, torch.float32)).masked_fill(~seen.unsqueeze(-1), 0)
            strange = (~x.detach().isfinite().all(-1)).sum()
            if count := int(processes.total(strange) if self.gather else strange):
                raise ValueError(f'{count} tokens that are available are NaN or infinite, expected finite numbers')
            return self._compare(F.normalize(x, dim=-1), seen, exclude)

    def _compare(
        self, x: Float[Tensor, 'm b n d'], seen: Bool[Tensor, 'm b n'], exclude: Tensor | None
    ) -> Float[Tensor, '']:
        """The loss of normalised tokens."""
        anchors = seen & (seen.sum(0) > 1)
        positives = _positives(x, seen, self.temperature)
        compared = self._with_everything if self.negatives == 'everywhere' else self._with_its_place
        local = (compared(x, seen, exclude, positives) - positives)[anchors].sum()
        count = anchors.sum()
        return processes.shared_mean(local, processes.total(count)) if self.gather else local / count.clamp(min=1)

    def _with_everything(self, x: Tensor, seen: Tensor, exclude: Tensor | None, _: Tensor) -> Float[Tensor, 'm b n']:
        """Log-sum-exp over all tokens, but those of a token's own modality and tile."""
        block = repeat(torch.arange(seen[..., 0].numel(), device=x.device), '(m b) -> m b n', m=len(x), n=x.shape[2])
        apart = _apart(len(x), x.shape[1], exclude, self.gather, x.device)
        witness = torch.zeros((), device=x.device, requires_grad=torch.is_grad_enabled())
        sums = _LogSumExp.apply(
            x[seen] * self.temperature**-0.5, witness, block[seen], apart, self.block_size, self.gather
        )
        return x.new_zeros(seen.shape).masked_scatter(seen, sums)

    def _with_its_place(
        self, x: Tensor, seen: Tensor, exclude: Tensor | None, positives: Tensor
    ) -> Float[Tensor, 'm b n']:
        """Log-sum-exp over the tokens of the same place in other tiles, and a token's positives."""
        witness = torch.zeros((), device=x.device, requires_grad=torch.is_grad_enabled())
        y, there, start = x.transpose(0, 1), seen.transpose(0, 1), 0
        if self.gather:
            start = sum(len(part) for part in processes.gather(there)[: processes.rank()])
            y, there = processes.gather_with_gradient(y, witness), torch.cat(processes.gather(there))
        own = torch.arange(start, start + x.shape[1], device=x.device)
        other = own.unsqueeze(1) != torch.arange(len(y), device=x.device)
        if exclude is not None:
            if exclude.shape != other.shape:
                raise ValueError(f'exclude is {tuple(exclude.shape)}, expected (B, {len(y)}): the tiles compared')
            other = other & ~exclude
        candidates = rearrange(other, 'b g -> 1 b 1 g 1') & rearrange(there, 'g k n -> 1 1 n g k')
        similar = torch.einsum('mbnd,gknd->mbngk', x, y) / self.temperature
        negatives = similar.masked_fill(~candidates, torch.finfo(x.dtype).min).flatten(3).logsumexp(-1)
        return torch.logaddexp(negatives, positives)


def _seen(tokens: Tensor, available: Tensor) -> Bool[Tensor, 'm b n']:
    """Which token is available, once everything is known to fit."""
    modalities, tiles, patches, _ = tokens.shape
    if modalities < 2:
        raise ValueError(f'tokens have {modalities} modality, expected two or more to compare')
    if tuple(available.shape) not in ((tiles, modalities), (tiles, patches, modalities)):
        raise ValueError(
            f'available is {tuple(available.shape)}, expected (B, M) or (B, N, M) as tokens are (M, B, N, D)'
        )
    if available.ndim == 2:
        return repeat(available, 'b m -> m b n', n=patches)
    return rearrange(available, 'b n m -> m b n')


def _positives(x: Float[Tensor, 'm b n d'], seen: Bool[Tensor, 'm b n'], temperature: float) -> Float[Tensor, 'm b n']:
    """Log-sum-exp over the positives of each token; meaningless where there is none."""
    similar = torch.einsum('mbnd,kbnd->mkbn', x, x) / temperature
    same = torch.eye(len(x), dtype=torch.bool, device=x.device)[..., None, None]
    return similar.masked_fill(same | ~seen, torch.finfo(x.dtype).min).logsumexp(1)


def _apart(
    modalities: int, tiles: int, exclude: Tensor | None, everywhere: bool, device: torch.device
) -> list[Bool[Tensor, 'i j']]:
    """For each process, which of our (modality, tile) are never compared with which of its own, on the CPU."""
    counts = torch.cat(processes.gather(torch.tensor([tiles], device=device))).tolist() if everywhere else [tiles]
    if exclude is None:
        exclude = torch.zeros(tiles, sum(counts), dtype=torch.bool)
    if tuple(exclude.shape) != (tiles, sum(counts)):
        raise ValueError(f'exclude is {tuple(exclude.shape)}, expected (B, {sum(counts)}): the tiles compared')
    here = processes.rank() if everywhere else 0
    parts = list(exclude.cpu().split(counts, dim=1))
    parts[here] = parts[here] & ~torch.eye(tiles, dtype=torch.bool)
    tables = [repeat(part, 'b g -> (m b) (k g)', m=modalities, k=modalities) for part in parts]
    tables[here] = tables[here] | torch.eye(modalities * tiles, dtype=torch.bool)
    return tables


class _LogSumExp(Function):
    """For each token, the log-sum-exp of its products with all tokens that it is compared with.

    Tokens come in the order of their (modality, tile), so few blocks need a mask. Products are
    bounded, so their exponentials need no maximum taken off, and one block of them serves the
    tokens of its rows and those of its columns.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        witness: Tensor,
        block: Int[Tensor, ' t'],
        apart: list[Tensor],
        size: int,
        everywhere: bool,
    ) -> Tensor:
        parts = processes.gather(x) if everywhere else [x]
        blocks = processes.gather(block) if everywhere else [block]
        ctx.here, ctx.apart, ctx.size, ctx.everywhere = processes.rank() if everywhere else 0, apart, size, everywhere
        sums = torch.zeros_like(x[:, 0])
        for part, i, j, weights in _weights(x, block, parts, blocks, ctx):
            sums[i] += weights.sum(1)
            if part == ctx.here and i != j:
                sums[j] += weights.sum(0)
        sums.clamp_(min=torch.finfo(x.dtype).tiny)
        ctx.save_for_backward(x, block, sums, *parts, *blocks)
        return sums.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        x, block, sums, *others = ctx.saved_tensors
        parts, blocks = others[: len(ctx.apart)], others[len(ctx.apart) :]
        scale = grad[0] / sums
        scales = processes.gather(scale) if ctx.everywhere else [scale]
        result = torch.zeros_like(x)
        with torch.autocast(x.device.type, enabled=False):
            for part, i, j, weights in _weights(x, block, parts, blocks, ctx):
                weights *= scale[i].unsqueeze(1) + scales[part][j]
                result[i].addmm_(weights, parts[part][j])
                if part == ctx.here and i != j:
                    result[j].addmm_(weights.T, x[i])
        return result, None, None, None, None, None


def _weights(
    x: Tensor, block: Tensor, parts: list[Tensor], blocks: list[Tensor], ctx: Any
) -> Iterator[tuple[int, slice, slice, Tensor]]:
    """Exponentials of the products of our tokens *i* with the tokens *j* of a process, 0 where not compared.

    Of our own tokens with each other, only one of two symmetric blocks.
    """
    for part, (y, theirs, apart) in enumerate(zip(parts, blocks, ctx.apart, strict=True)):
        ranges = [(i, _range(block, i)) for i in _slices(len(x), ctx.size)]
        for j in _slices(len(y), ctx.size):
            columns = _range(theirs, j)
            for i, rows in ranges:
                if part == ctx.here and i.start > j.start:
                    continue
                near = apart[rows, columns]
                if near.all():
                    continue
                weights = (x[i] @ y[j].T).exp_()
                if near.any():
                    weights.masked_fill_(apart.to(x.device)[block[i]][:, theirs[j]], 0)
                yield part, i, j, weights


def _slices(length: int, size: int) -> list[slice]:
    """Consecutive slices of *size*, the last one shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _range(block: Tensor, where: slice) -> slice:
    """First to last block of a slice of tokens in the order of their blocks."""
    return slice(int(block[where.start]), int(block[where.stop - 1]) + 1)
