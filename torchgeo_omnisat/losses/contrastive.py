# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Contrastive losses between modalities, on tiles and on patches."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
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
        embeddings: The normalised embeddings of all G tiles, ``(M, G, D)``, without gradient.
        available: Which of the G tiles has which modality, ``(G, M)``.
    """

    loss: Tensor
    pairs: tuple[tuple[int, int], ...]
    losses: Tensor
    top1: Tensor
    top5: Tensor
    counts: Tensor
    embeddings: Tensor
    available: Tensor


class CrossModalInfoNCE(nn.Module):
    """Symmetric InfoNCE between every pair of modalities that both see a tile.

    The loss of CLIP (Radford et al., "Learning Transferable Visual Models From Natural
    Language Supervision", 2021, arXiv 2103.00020) for any number of modalities: for each
    pair, every tile that has both is to be told from the other tiles that have both, in
    both directions. The loss is the mean over all tiles, pairs and directions. Embeddings
    are normalised here. The tiles of all ranks are candidates: every rank computes the joint loss
    of the gathered tiles (as OpenCLIP without ``local_loss``), so that with DDP or FSDP, which
    average gradients, they learn what a single process would from the joint batch. Ranks may have
    different numbers of tiles, and none or few of the modalities. One collective gathers the
    embeddings, another one the numbers of tiles unless they are known; both are in the forward pass.

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
        """Return only the loss; see :meth:`contrast`."""
        return self.contrast(embeddings, available, exclude).loss

    def contrast(
        self,
        embeddings: Float[Tensor, 'm b d'],
        available: Bool[Tensor, 'b m'],
        exclude: Bool[Tensor, 'b g'] | None = None,
        counts: Sequence[int] | None = None,
    ) -> TileContrast:
        """Compare the embeddings of B tiles, and those of other processes.

        Args:
            embeddings: One a modality and tile.
            available: Which tile has which modality; what the others hold does not matter.
            exclude: Which of the G tiles of all processes, in the order of the ranks, are no
                negatives for which tile, such as :func:`too_close` tells. A tile itself is
                always its own candidate.
            counts: Number of tiles of each rank, if they are known, in all ranks alike; otherwise
                the ranks exchange them, which is a second collective.

        Returns:
            The loss, and the figures of each pair.

        Raises:
            ValueError: In every process, if there are fewer than two modalities, there is
                only one tile in all processes together, an available embedding is not
                finite, or shapes do not fit.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._contrast(embeddings, available, exclude, counts)

    def _contrast(
        self, embeddings: Tensor, available: Tensor, exclude: Tensor | None, counts: Sequence[int] | None
    ) -> TileContrast:
        """As :meth:`contrast`, in single precision or better."""
        counts, excluding = _agree(embeddings, available, exclude, counts)
        modalities, _, width = embeddings.shape
        tiles, device = sum(counts), embeddings.device
        x = rearrange(embeddings, 'm b d -> b (m d)').to(torch.promote_types(embeddings.dtype, torch.float32))
        x = x.masked_fill(~available.repeat_interleave(width, 1), 0)
        columns = [x, available.to(x.dtype)]
        if excluding:
            apart = available.new_zeros(len(x), tiles) if exclude is None else exclude
            columns.append(apart.to(x.dtype))
        x, seen, *apart_everywhere = processes.gather_with_gradient(torch.cat(columns, 1), counts).split(
            [modalities * width, modalities, *([tiles] if excluding else [])], 1
        )
        x, seen = x.unflatten(1, (modalities, width)), seen.detach() > 0.5
        _refuse_strange(x.detach())
        x = F.normalize(x, dim=-1)

        first, second = torch.triu_indices(modalities, modalities, 1, device=device)
        anchor, other = torch.cat([first, second]), torch.cat([second, first])
        both = (seen[:, anchor] & seen[:, other]).T
        itself = torch.eye(tiles, dtype=torch.bool, device=device)
        candidates = both.unsqueeze(1)
        for flags in apart_everywhere:
            candidates = candidates & (flags.detach() < 0.5)
        logits = torch.einsum('bpd,gpd->pbg', x[:, anchor], x[:, other]) / self.temperature
        logits = logits.masked_fill(~(candidates | itself), -math.inf)
        right = logits.diagonal(dim1=1, dim2=2)
        each = torch.where(both, logits.logsumexp(-1) - right, 0)

        ahead = (logits >= right.unsqueeze(-1)).sum(-1) - 1  # a tie is no success: collapse must not look like one
        hits = [both & (ahead < k) for k in (1, 5)]
        sums = torch.stack([value.detach().sum(1).to(each.dtype) for value in (each, *hits, both)])
        sums = sums.unflatten(1, (2, -1)).sum(1)
        losses, top1, top5 = sums[:3] / sums[3]
        pairs = tuple((int(a), int(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True))
        loss = each.sum() / sums[3].sum().clamp(min=1)
        return TileContrast(loss, pairs, losses, top1, top5, (sums[3] / 2).long(), x.detach().transpose(0, 1), seen)


def too_close(
    bounds: Float[Tensor, 'b c'], within: float = 0.0, counts: Sequence[int] | None = None
) -> Bool[Tensor, 'b g']:
    """Which tiles of all processes are no negatives, as they share or nearly share the ground.

    Args:
        bounds: Where each of B tiles lies, in metres of one coordinate system: its centroid
            (x, y), its box (xmin, ymin, xmax, ymax), or TorchGeo's nine numbers (xmin, xmax,
            xres, ymin, ymax, yres, and the same of time). NaN where it is not known; such a
            tile is close to none.
        within: Distance of centres, in metres, below which tiles are too close; boxes that
            overlap always are.
        counts: Number of tiles of each rank, if they are known.

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
    parts = processes.gather(mine, counts)
    low, high = torch.cat(parts).unflatten(-1, (2, 2)).unbind(1)
    own = torch.arange(len(low), device=mine.device)[processes.own_rows([len(part) for part in parts])]
    overlap = ((low[own].unsqueeze(1) < high) & (low < high[own].unsqueeze(1))).all(-1)
    centre = (low + high) / 2
    near = (centre[own].unsqueeze(1) - centre).norm(dim=-1) < within
    return (overlap | near) & (own.unsqueeze(1) != torch.arange(len(low), device=own.device))


def _agree(
    embeddings: Tensor, available: Tensor, exclude: Tensor | None, counts: Sequence[int] | None
) -> tuple[Sequence[int], bool]:
    """Return the number of tiles of each rank, and whether any excludes some, once shapes fit in every rank."""
    modalities, count, width = embeddings.shape
    fits = tuple(available.shape) == (count, modalities)
    excluded = (count, -1) if exclude is None else tuple(exclude.shape)
    mine = (modalities, count, width, int(fits), *excluded)
    shapes = [list(mine)] if counts is not None else processes.gather_numbers(*mine, device=embeddings.device)
    counts = [row[1] for row in shapes] if counts is None else counts
    tiles = sum(counts)
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
    return counts, any(row[5] != -1 for row in shapes)


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


class PatchContrast(NamedTuple):
    """What :class:`PatchContrastiveLoss` makes of the tokens of all ranks.

    Attributes:
        loss: The loss, a scalar with gradient.
        tokens: The normalised tokens that were compared, ``(M, G, N, D)``, without gradient.
        available: Which of them are available, ``(G, N, M)``.
    """

    loss: Tensor
    tokens: Tensor
    available: Tensor


class PatchContrastiveLoss(nn.Module):
    """The published MIL-NCE over patches, for any availability and in little memory.

    Astruc et al., "OmniSat" (arXiv 2404.08351). Tokens are compared by cosine. The positives
    of a token are those of the other modalities on the same patch; the denominator holds
    every token but those of its own modality on its own tile, so the positives too. The
    loss is the mean over all tokens that have a positive of log-sum-exp(denominator) minus
    log-sum-exp(positives). A token that is not available has no part in either.

    The similarities are computed in square blocks, each for both of its directions, and
    once more in the backward pass, so that memory grows with the number of tokens alone.

    The published loss sees the tokens of one process. Here those of all ranks are in
    the denominator; with DDP or FSDP, which average gradients, ranks together learn what a
    single process would from their joint batch, and the cost of each grows with their number.
    ``gather=False`` compares each rank's own tokens, as published. The forward pass gathers
    tokens and then the denominators, and before that the numbers of tiles unless they are known.
    The gradient is computed from these: it is that of the mean over all ranks, whatever scalar the
    loss is multiplied by as long as it is the same in every rank.

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
        """Return the loss alone; see :meth:`compare`."""
        return self.compare(tokens, available, exclude).loss

    def compare(
        self,
        tokens: Float[Tensor, 'm b n d'],
        available: Bool[Tensor, 'b m'] | Bool[Tensor, 'b n m'],
        exclude: Bool[Tensor, 'b g'] | None = None,
        counts: Sequence[int] | None = None,
    ) -> PatchContrast:
        """Compare tokens.

        Args:
            tokens: One a modality, tile and patch.
            available: Which tile, or which patch of it, has which modality; what the others
                hold does not matter.
            exclude: Which of the G tiles of all processes are no negatives for which tile, as
                :func:`.too_close` tells, which is symmetric. A tile's own are always compared.
            counts: Number of tiles of each rank, if they are known, in all ranks alike.

        Returns:
            The loss, 0 where no patch has two modalities, and the tokens that were compared.

        Raises:
            ValueError: If there are fewer than two modalities, an available token is not
                finite, or shapes do not fit.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            seen = _seen(tokens, available)
            x = tokens.to(torch.promote_types(tokens.dtype, torch.float32)).masked_fill(~seen.unsqueeze(-1), 0)
            if not self.gather:
                counts = [x.shape[1]]
            elif counts is None:
                counts = self._counts(x)
            return self._compare(x, seen, exclude, counts)

    def _counts(self, x: Float[Tensor, 'm b n d']) -> list[int]:
        """Return the number of tiles of each rank."""
        modalities, tiles, patches, width = x.shape
        shapes = processes.gather_numbers(tiles, modalities, patches, width, device=x.device)
        if len({tuple(row[1:]) for row in shapes}) > 1:
            found = [tuple(row[1:]) for row in shapes]
            raise ValueError(f'modalities, patches and width are {found}, expected the same in all ranks')
        return [row[0] for row in shapes]

    def _compare(
        self, x: Float[Tensor, 'm b n d'], seen: Bool[Tensor, 'm b n'], exclude: Tensor | None, counts: Sequence[int]
    ) -> PatchContrast:
        if exclude is not None and tuple(exclude.shape) != (x.shape[1], sum(counts)):
            raise ValueError(f'exclude is {tuple(exclude.shape)}, expected (B, {sum(counts)}): the tiles compared')
        own = processes.own_rows(counts) if self.gather else slice(0, x.shape[1])
        everyone, there = self._gathered(x, seen, counts)
        if strange := int((~everyone.isfinite().all(-1)).sum()):
            raise ValueError(f'{strange} tokens that are available are NaN or infinite, expected finite numbers')
        x, everyone = F.normalize(x, dim=-1), F.normalize(everyone, dim=-1)
        positives = _positives(x, seen, self.temperature)
        here = processes.rank() if self.gather else 0
        kind = _Everywhere if self.negatives == 'everywhere' else _SamePlace
        negatives = kind(self.temperature, self.block_size, there, exclude, list(counts), own, here)
        with torch.no_grad():
            sums = negatives.log_sums(x.detach(), everyone, positives.detach())
            anchors = there & (there.sum(0) > 1)
            known = self._gather(torch.stack([sums, positives.detach()]).transpose(0, 2), counts).transpose(0, 2)
            terms = (known[0] - known[1]).masked_fill(~anchors, 0)
            count = anchors.sum().clamp(min=1)
            scales = known[0].neg().exp().masked_fill(~anchors, 0)
        mine = anchors[:, own]
        local: Tensor = _SumOfLogSums.apply(x, everyone, sums, scales, mine, negatives)
        loss = (local - positives.masked_fill(~mine, 0).sum()) * (processes.world_size() if self.gather else 1) / count
        loss = loss + (terms.sum() / count - loss).detach()
        return PatchContrast(loss, everyone, rearrange(there, 'm g n -> g n m'))

    def _gathered(
        self, x: Float[Tensor, 'm b n d'], seen: Bool[Tensor, 'm b n'], counts: Sequence[int]
    ) -> tuple[Float[Tensor, 'm g n d'], Bool[Tensor, 'm g n']]:
        """Return the tokens of all ranks without gradient, and which are available, in one collective."""
        if not self.gather or processes.world_size() == 1:
            return x.detach(), seen
        rows = torch.cat([x.detach(), seen.unsqueeze(-1).to(x.dtype)], -1).transpose(0, 1)
        gathered = self._gather(rows, counts).transpose(0, 1)
        return gathered[..., :-1].contiguous(), gathered[..., -1] > 0.5

    def _gather(self, rows: Float[Tensor, 'b ...'], counts: Sequence[int]) -> Float[Tensor, 'g ...']:
        return torch.cat(processes.gather(rows, counts)) if self.gather else rows.detach()


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


class _SumOfLogSums(Function):
    """Sum over the anchors of this rank of the log-sum-exp of what they are compared with.

    The gradient also holds what this rank's tokens add to the log-sum-exps of the anchors of other
    ranks, which is known without asking them: a product of two tokens is the same both ways.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        everyone: Tensor,
        log_sums: Tensor,
        scales: Tensor,
        anchors: Tensor,
        negatives: '_Everywhere | _SamePlace',
    ) -> Tensor:
        ctx.negatives = negatives
        ctx.save_for_backward(x, everyone, scales)
        return log_sums.masked_fill(~anchors, 0).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        x, everyone, scales = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            return grad[0] * ctx.negatives.gradient(x, everyone, scales), None, None, None, None, None


class _Negatives:
    """Tokens that those of this rank are compared with.

    Products are bounded, so their exponentials need no maximum taken off.

    Args:
        temperature: Temperature.
        block_size: Side of a block of similarities.
        there: Which token of all ranks is available, ``(M, G, N)``.
        exclude: Which tiles of all ranks are no negatives of which tile of this one, ``(B, G)``.
        counts: Number of tiles of each rank.
        own: Tiles of this rank among all.
        here: Index of this rank in *counts*.
    """

    def __init__(
        self,
        temperature: float,
        block_size: int,
        there: Tensor,
        exclude: Tensor | None,
        counts: list[int],
        own: slice,
        here: int,
    ) -> None:
        self.temperature, self.block_size, self.there = temperature, block_size, there
        self.exclude, self.counts, self.own, self.here = exclude, counts, own, here


class _Everywhere(_Negatives):
    """All tokens but those of a token's own modality and tile.

    Tokens come in the order of their (modality, tile), so few blocks need a mask. One block of
    products serves the tokens of its rows and those of its columns.
    """

    def log_sums(self, x: Tensor, everyone: Tensor, positives: Tensor) -> Float[Tensor, 'm b n']:
        """Return the log-sum-exp of each token of this rank."""
        seen, parts, blocks, apart = self._parts(x, everyone)
        sums = torch.zeros_like(parts[self.here][:, 0])
        for part, i, j, weights in _weights(parts, blocks, apart, self.here, self.block_size):
            sums[i] += weights.sum(1)
            if part == self.here and i != j:
                sums[j] += weights.sum(0)
        sums.clamp_(min=torch.finfo(x.dtype).tiny)
        return x.new_zeros(seen.shape).masked_scatter(seen, sums.log())

    def gradient(self, x: Tensor, everyone: Tensor, scales: Tensor) -> Float[Tensor, 'm b n d']:
        """Return the gradient of the sum over all anchors, ``scales`` being one over their sums."""
        seen, parts, blocks, apart = self._parts(x, everyone)
        scale = [s[t] for s, t in zip(scales.split(self.counts, 1), self.there.split(self.counts, 1), strict=True)]
        result = torch.zeros_like(parts[self.here])
        for part, i, j, weights in _weights(parts, blocks, apart, self.here, self.block_size):
            weights *= scale[self.here][i].unsqueeze(1) + scale[part][j]
            result[i].addmm_(weights, parts[part][j])
            if part == self.here and i != j:
                result[j].addmm_(weights.T, parts[self.here][i])
        result *= self.temperature**-0.5
        return torch.zeros_like(x).masked_scatter(seen.unsqueeze(-1), result)

    def _parts(self, x: Tensor, everyone: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """Return the tokens of each rank that are available, the (modality, tile) of each, and which are apart."""
        there = self.there.split(self.counts, 1)
        tokens = list(everyone.split(self.counts, 1))
        tokens[self.here] = x.detach()
        blocks = [
            repeat(torch.arange(t[..., 0].numel(), device=x.device), '(m b) -> m b n', m=len(t), n=t.shape[2])[t]
            for t in there
        ]
        parts = [y[t] * self.temperature**-0.5 for y, t in zip(tokens, there, strict=True)]
        return there[self.here], parts, blocks, self._apart(*x.shape[:2])

    def _apart(self, modalities: int, tiles: int) -> list[Bool[Tensor, 'i j']]:
        """For each rank, which of our (modality, tile) are never compared with which of its own, on the CPU."""
        exclude = torch.zeros(tiles, sum(self.counts), dtype=torch.bool) if self.exclude is None else self.exclude.cpu()
        parts = list(exclude.split(self.counts, dim=1))
        parts[self.here] = parts[self.here] & ~torch.eye(tiles, dtype=torch.bool)
        tables = [repeat(part, 'b g -> (m b) (k g)', m=modalities, k=modalities) for part in parts]
        tables[self.here] = tables[self.here] | torch.eye(modalities * tiles, dtype=torch.bool)
        return tables


class _SamePlace(_Negatives):
    """The tokens of the same place in other tiles, and a token's positives; some places at a time."""

    def log_sums(self, x: Tensor, everyone: Tensor, positives: Tensor) -> Float[Tensor, 'm b n']:
        """Return the log-sum-exp of each token of this rank."""
        sums = [weights.sum(-1) for _, weights in self._blocks(x, everyone, itself=False)]
        negatives = rearrange(torch.cat(sums).log(), 'n (m b) -> m b n', m=len(x))
        return torch.logaddexp(negatives, positives)

    def gradient(self, x: Tensor, everyone: Tensor, scales: Tensor) -> Float[Tensor, 'm b n d']:
        """Return the gradient of the sum over all anchors, ``scales`` being one over their sums."""
        rows, columns = (rearrange(s, 'm b n -> n (m b)') for s in (scales[:, self.own], scales))
        tokens = rearrange(everyone, 'm g n d -> n (m g) d')
        parts = [
            (weights * (rows[at].unsqueeze(2) + columns[at].unsqueeze(1))) @ tokens[at]
            for at, weights in self._blocks(x, everyone, itself=True)
        ]
        return rearrange(torch.cat(parts), 'n (m b) d -> m b n d', m=len(x)) / self.temperature

    def _blocks(self, x: Tensor, everyone: Tensor, itself: bool) -> Iterator[tuple[slice, Tensor]]:
        """Yield places, and the exponentials ``(n, M B, M G)`` of their similarities, 0 where not compared."""
        modalities, places = x.shape[0], x.shape[2]
        all_tiles = torch.arange(everyone.shape[1], device=x.device)
        same = all_tiles[self.own].unsqueeze(1) == all_tiles
        other = ~same if self.exclude is None else ~same & ~self.exclude
        compared = repeat(other, 'b g -> m b k g', m=modalities, k=modalities)
        if itself:
            elsewhere = ~torch.eye(modalities, dtype=torch.bool, device=x.device)
            compared = compared | (elsewhere[:, None, :, None] & same[None, :, None, :])
        compared = rearrange(compared, 'm b k g -> (m b) (k g)')
        left, right = rearrange(x, 'm b n d -> n (m b) d'), rearrange(everyone, 'm g n d -> n d (m g)')
        there, mine = (rearrange(flags, 'm g n -> n (m g)') for flags in (self.there, self.there[:, self.own]))
        for at in _slices(places, max(1, self.block_size**2 // max(1, compared.numel()))):
            weights = (torch.bmm(left[at], right[at]) / self.temperature).exp_()
            yield at, weights.masked_fill_(~(compared & there[at].unsqueeze(1) & mine[at].unsqueeze(2)), 0)


def _weights(
    parts: list[Tensor], blocks: list[Tensor], tables: list[Tensor], here: int, size: int
) -> Iterator[tuple[int, slice, slice, Tensor]]:
    """Exponentials of the products of our tokens *i* with the tokens *j* of a rank, 0 where not compared.

    Of our own tokens with each other, only one of two symmetric blocks.
    """
    x, block = parts[here], blocks[here]
    ranges = [(i, _range(block, i)) for i in _slices(len(x), size)]
    for part, (y, theirs, apart) in enumerate(zip(parts, blocks, tables, strict=True)):
        for j in _slices(len(y), size):
            columns = _range(theirs, j)
            for i, rows in ranges:
                if part == here and i.start > j.start:
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
