# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Contrastive losses between modalities, of tiles and of patches."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..utils import distributed as processes
from ..utils.tensors.devices import readable, require


class TileContrast(NamedTuple):
    """Output of :class:`CrossModalInfoNCE` over the tiles of all ranks.

    Metrics of a pair of modalities are NaN if no tile has both.

    Attributes:
        loss: Scalar loss with gradient.
        pairs: Indices of the two modalities of each of P pairs.
        losses: Loss of each pair, ``(P,)``, averaged over both directions.
        top1: Top-1 retrieval accuracy of each pair, ``(P,)``, averaged over both directions.
        top5: Top-5 retrieval accuracy of each pair, ``(P,)``.
        counts: Number of tiles with both modalities, ``(P,)``.
        embeddings: Normalised embeddings of all G tiles, ``(M, G, D)``, without gradient.
        available: Flags of the modalities of all G tiles, ``(G, M)``.
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
    """Symmetric InfoNCE loss between every pair of modalities of a tile.

    This is the loss of CLIP (Radford et al., "Learning Transferable Visual Models From Natural
    Language Supervision", 2021, arXiv 2103.00020) for any number of modalities. For each pair, the
    positive of a tile is the same tile in the other modality, and the negatives are all other tiles
    with both modalities. The loss is the mean over tiles, pairs and directions. Embeddings are
    normalised by the loss.

    Tiles of all ranks are negatives. Every rank computes the loss of the gathered batch, as OpenCLIP
    without ``local_loss``. With DDP or FSDP, which average gradients, the gradient is therefore that
    of a single process with the joint batch. Ranks may have different numbers of tiles and different
    modalities. The forward pass has one collective for the embeddings and another one for the numbers
    of tiles, unless these are given.

    The temperature is learned as the parameter ``log_temperature`` of shape (1,), which is clamped in
    the forward pass.

    Args:
        temperature: Initial temperature.
        min_temperature: Minimum temperature; 0.01 in CLIP.
        max_temperature: Maximum temperature.

    Raises:
        ValueError: If the temperatures are not positive or not in order.
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
        """Clamped temperature."""
        clamped: Tensor = _Clamp.apply(self.log_temperature, *self.bounds)
        return clamped.exp()

    def forward(
        self,
        embeddings: Float[Tensor, 'm b d'],
        available: Bool[Tensor, 'b m'],
        exclude: Bool[Tensor, 'b g'] | Bool[Tensor, 'p b g'] | None = None,
    ) -> Float[Tensor, '']:
        """Return the scalar loss; see :meth:`contrast`."""
        return self.contrast(embeddings, available, exclude).loss

    def contrast(
        self,
        embeddings: Float[Tensor, 'm b d'],
        available: Bool[Tensor, 'b m'],
        exclude: Bool[Tensor, 'b g'] | Bool[Tensor, 'p b g'] | None = None,
        counts: Sequence[int] | None = None,
    ) -> TileContrast:
        """Return the loss and the retrieval metrics of each pair of modalities.

        Args:
            embeddings: Embedding of each modality and tile.
            available: Flags of the modalities of each tile; embeddings of other modalities are ignored.
            exclude: Flags of the G tiles of all ranks, in the order of ranks, that are not negatives of a
                tile, see :func:`.too_close`, for all pairs of modalities or for each of the P pairs, in the order
                of ``itertools.combinations``. The positive of a tile is never excluded.
            counts: Number of tiles of each rank, the same list on all ranks. By default, the ranks
                exchange them in a second collective.

        Returns:
            Loss and metrics.

        Raises:
            ValueError: On every rank, if there are fewer than two modalities, the ranks have one tile in
                total, an available embedding is not finite, or shapes do not match.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._contrast(embeddings, available, exclude, counts)

    def _contrast(
        self, embeddings: Tensor, available: Tensor, exclude: Tensor | None, counts: Sequence[int] | None
    ) -> TileContrast:
        """Compute :meth:`contrast` in single precision or better."""
        counts, kinds = _validate(embeddings, available, exclude, counts)
        modalities, _, width = embeddings.shape
        tiles, device = sum(counts), embeddings.device
        x = rearrange(embeddings, 'm b d -> b (m d)').to(torch.promote_types(embeddings.dtype, torch.float32))
        x = x.masked_fill(~available.repeat_interleave(width, 1), 0)
        columns = [x, available.to(x.dtype)]
        if kinds:
            excluded = available.new_zeros(len(x), tiles) if exclude is None else exclude
            excluded = excluded.expand(kinds, -1, -1) if excluded.ndim == 2 else excluded
            columns.append(rearrange(excluded, 'k b g -> b (k g)').to(x.dtype))
        x, seen, *all_excluded = processes.gather_with_gradient(torch.cat(columns, 1), counts).split(
            [modalities * width, modalities, *([kinds * tiles] if kinds else [])], 1
        )
        x, seen = x.unflatten(1, (modalities, width)), seen.detach() > 0.5
        _check_finite(x.detach())
        x = F.normalize(x, dim=-1)

        pairs = tuple(combinations(range(modalities), 2))
        first, second = torch.triu_indices(modalities, modalities, 1, device=device)
        anchor, other = torch.cat([first, second]), torch.cat([second, first])
        both = (seen[:, anchor] & seen[:, other]).T
        itself = torch.eye(tiles, dtype=torch.bool, device=device)
        candidates = both.unsqueeze(1)
        for flags in all_excluded:
            apart = rearrange(flags.detach() < 0.5, 'b (k g) -> k b g', k=kinds)
            candidates = candidates & (apart if kinds == 1 else torch.cat([apart, apart]))
        logits = torch.einsum('bpd,gpd->pbg', x[:, anchor], x[:, other]) / self.temperature
        logits = logits.masked_fill(~(candidates | itself), -math.inf)
        positive = logits.diagonal(dim1=1, dim2=2)
        each = torch.where(both, logits.logsumexp(-1) - positive, 0)

        rank = (logits >= positive.unsqueeze(-1)).sum(-1) - 1  # ties count as errors, so collapse has accuracy 0
        hits = [both & (rank < k) for k in (1, 5)]
        sums = torch.stack([value.detach().sum(1).to(each.dtype) for value in (each, *hits, both)])
        sums = sums.unflatten(1, (2, -1)).sum(1)
        losses, top1, top5 = sums[:3] / sums[3]
        loss = each.sum() / sums[3].sum().clamp(min=1)
        return TileContrast(loss, pairs, losses, top1, top5, (sums[3] / 2).long(), x.detach().transpose(0, 1), seen)


def _validate(
    embeddings: Tensor, available: Tensor, exclude: Tensor | None, counts: Sequence[int] | None
) -> tuple[Sequence[int], int]:
    """Validate the shapes of all ranks; return the number of tiles of each, and in how many ways tiles are excluded.

    It is 0 if no rank has *exclude*, 1 if it is the same for all pairs of modalities, else the number of pairs.
    """
    modalities, count, width = embeddings.shape
    matches = tuple(available.shape) == (count, modalities)
    excluded = (0, count, -1) if exclude is None else (1, 1, *exclude.shape)[-3:]
    own = (modalities, count, width, int(matches), *excluded)
    shapes = [list(own)] if counts is not None else processes.gather_numbers(*own, device=embeddings.device)
    counts = [row[1] for row in shapes] if counts is None else counts
    tiles = sum(counts)
    if min(row[0] for row in shapes) < 2:
        raise ValueError(f'embeddings have {shapes[0][0]} modality, expected at least two')
    if len({(row[0], row[2]) for row in shapes}) > 1:
        raise ValueError(f'(modalities, width) is {[(r[0], r[2]) for r in shapes]}, expected the same on all ranks')
    if not all(row[3] for row in shapes):
        raise ValueError(f'shape of available is {tuple(available.shape)}, expected (B, M) for embeddings (M, B, D)')
    pairs = modalities * (modalities - 1) // 2
    if any(row[4] not in (0, 1, pairs) or row[5] != row[1] or row[6] not in (-1, tiles) for row in shapes):
        shown = [tuple(r[4:] if r[4] > 1 else r[5:]) for r in shapes]
        raise ValueError(f'shape of exclude is {shown} by rank, expected (B, {tiles}) or ({pairs}, B, {tiles})')
    if tiles < 2:
        raise ValueError(f'embeddings of all ranks have {tiles} tile, expected at least two')
    return counts, max(row[4] for row in shapes)


def _check_finite(x: Float[Tensor, 'g m d']) -> None:
    wrong = ~x.isfinite().all(-1)

    def error() -> ValueError:
        tiles, modalities = wrong.nonzero().unbind(1)
        return ValueError(
            f'embeddings of modalities {sorted(set(modalities.tolist()))} are NaN or infinite in tiles '
            f'{sorted(set(tiles.tolist()))[:5]}, expected finite numbers'
        )

    require(~wrong.any(), 'embeddings are NaN or infinite, expected finite numbers', error)


class _Clamp(Function):
    """Clamp whose gradient is zero only if a descent step would lead further out of the limits."""

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
    """Output of :class:`PatchContrastiveLoss` over the tokens of all ranks.

    Attributes:
        loss: Scalar loss with gradient.
        tokens: Normalised tokens of all G tiles, ``(M, G, N, D)``, without gradient.
        available: Flags of the available tokens, ``(G, N, M)``.
    """

    loss: Tensor
    tokens: Tensor
    available: Tensor


class PatchContrastiveLoss(nn.Module):
    """MIL-NCE loss between the patches of modalities (Astruc et al., "OmniSat", arXiv 2404.08351).

    The similarity of tokens is their cosine. The positives of a token are the tokens of other
    modalities on the same patch. The denominator includes the positives and all tokens except those of
    the same modality and tile. The loss is log-sum-exp(denominator) minus log-sum-exp(positives),
    averaged over the tokens with a positive. Tokens that are not available are ignored.

    Similarities are computed in square blocks, each used in both directions, and computed again in
    the backward pass. Memory is therefore linear in the number of tokens.

    The denominator includes the tokens of all ranks. With DDP or FSDP, which average gradients, the
    gradient is that of a single process with the joint batch; the cost of each rank grows with the
    world size. ``gather=False`` uses only tokens of the same rank, as published. The forward pass
    gathers the tokens, the denominators, and the numbers of tiles unless these are given. The loss may
    be multiplied by any scalar that is the same on all ranks.

    The published encoders have the receptive field of a patch. An encoder with the context of the whole
    tile can also encode the position of a patch, which all modalities share, and solve the task from
    positions only. ``negatives='place'`` prevents this: the negatives of a token are the tokens at the
    same position in other tiles.

    Args:
        temperature: Temperature, at least 0.02 to avoid overflow in single precision.
        gather: Whether tokens of other ranks are negatives.
        block_size: Side of a block of similarities.
        negatives: ``'everywhere'`` for tokens at all positions, ``'place'`` for those at the same position.

    Raises:
        ValueError: If *temperature* or *block_size* is too small, or *negatives* is unknown.
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
        """Return the scalar loss; see :meth:`compare`."""
        return self.compare(tokens, available, exclude).loss

    def compare(
        self,
        tokens: Float[Tensor, 'm b n d'],
        available: Bool[Tensor, 'b m'] | Bool[Tensor, 'b n m'],
        exclude: Bool[Tensor, 'b g'] | None = None,
        counts: Sequence[int] | None = None,
    ) -> PatchContrast:
        """Return the loss and the normalised tokens.

        Args:
            tokens: Token of each modality, tile and patch.
            available: Flags of the modalities of each tile or patch; tokens of other modalities are ignored.
            exclude: Flags of the G tiles of all ranks that are not negatives of a tile, see
                :func:`.too_close`; they must be symmetric. Tokens of the same tile are never excluded.
            counts: Number of tiles of each rank, the same list on all ranks, if known.

        Returns:
            Loss, 0 if no patch has two modalities, and tokens.

        Raises:
            ValueError: If there are fewer than two modalities, an available token is not finite, or shapes
                do not match.
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
        modalities, tiles, patches, width = x.shape
        shapes = processes.gather_numbers(tiles, modalities, patches, width, device=x.device)
        if len({tuple(row[1:]) for row in shapes}) > 1:
            different = [tuple(row[1:]) for row in shapes]
            raise ValueError(f'(modalities, patches, width) is {different}, expected the same on all ranks')
        return [row[0] for row in shapes]

    def _compare(
        self, x: Float[Tensor, 'm b n d'], seen: Bool[Tensor, 'm b n'], exclude: Tensor | None, counts: Sequence[int]
    ) -> PatchContrast:
        if exclude is not None and tuple(exclude.shape) != (x.shape[1], sum(counts)):
            raise ValueError(f'shape of exclude is {tuple(exclude.shape)}, expected {(x.shape[1], sum(counts))}')
        own = processes.own_rows(counts) if self.gather else slice(0, x.shape[1])
        everyone, there = self._gathered(x, seen, counts)
        wrong = ~everyone.isfinite().all(-1)
        text = 'available tokens are NaN or infinite, expected finite numbers'
        require(~wrong.any(), text, lambda: ValueError(f'{int(wrong.sum())} {text}'))
        x, everyone = F.normalize(x, dim=-1), F.normalize(everyone, dim=-1)
        positives = _positives(x, seen, self.temperature)
        here = processes.rank() if self.gather else 0
        kind = _Everywhere if self.negatives == 'everywhere' else _SamePlace
        negatives = kind(self.temperature, self.block_size, there, exclude, list(counts), own, here)
        with torch.no_grad():
            sums = negatives.log_sums(x.detach(), everyone, positives.detach())
            anchors = there & (there.sum(0) > 1)
            both = self._gather(torch.stack([sums, positives.detach()]).transpose(0, 2), counts).transpose(0, 2)
            terms = (both[0] - both[1]).masked_fill(~anchors, 0)
            count = anchors.sum().clamp(min=1)
            scales = both[0].neg().exp().masked_fill(~anchors, 0)
        own_anchors = anchors[:, own]
        local: Tensor = _SumOfLogSums.apply(x, everyone, sums, scales, own_anchors, negatives)
        ranks = processes.world_size() if self.gather else 1
        loss = (local - positives.masked_fill(~own_anchors, 0).sum()) * ranks / count
        loss = loss + (terms.sum() / count - loss).detach()
        return PatchContrast(loss, everyone, rearrange(there, 'm g n -> g n m'))

    def _gathered(
        self, x: Float[Tensor, 'm b n d'], seen: Bool[Tensor, 'm b n'], counts: Sequence[int]
    ) -> tuple[Float[Tensor, 'm g n d'], Bool[Tensor, 'm g n']]:
        """Return the tokens of all ranks without gradient, and flags of the available ones, in one collective."""
        if not self.gather or processes.world_size() == 1:
            return x.detach(), seen
        rows = torch.cat([x.detach(), seen.unsqueeze(-1).to(x.dtype)], -1).transpose(0, 1)
        gathered = self._gather(rows, counts).transpose(0, 1)
        return gathered[..., :-1].contiguous(), gathered[..., -1] > 0.5

    def _gather(self, rows: Float[Tensor, 'b ...'], counts: Sequence[int]) -> Float[Tensor, 'g ...']:
        return torch.cat(processes.gather(rows, counts)) if self.gather else rows.detach()


def _seen(tokens: Tensor, available: Tensor) -> Bool[Tensor, 'm b n']:
    modalities, tiles, patches, _ = tokens.shape
    if modalities < 2:
        raise ValueError(f'tokens have {modalities} modality, expected at least two')
    if tuple(available.shape) not in ((tiles, modalities), (tiles, patches, modalities)):
        raise ValueError(
            f'shape of available is {tuple(available.shape)}, expected (B, M) or (B, N, M) for tokens (M, B, N, D)'
        )
    if available.ndim == 2:
        return repeat(available, 'b m -> m b n', n=patches)
    return rearrange(available, 'b n m -> m b n')


def _positives(x: Float[Tensor, 'm b n d'], seen: Bool[Tensor, 'm b n'], temperature: float) -> Float[Tensor, 'm b n']:
    """Return the log-sum-exp over the positives of each token; undefined for tokens without positive."""
    similar = torch.einsum('mbnd,kbnd->mkbn', x, x) / temperature
    same = torch.eye(len(x), dtype=torch.bool, device=x.device)[..., None, None]
    return similar.masked_fill(same | ~seen, torch.finfo(x.dtype).min).logsumexp(1)


class _SumOfLogSums(Function):
    """Sum of the log-denominators of the anchors of this rank.

    The gradient includes the contribution of this rank's tokens to the denominators of other ranks. It
    needs no communication, because the similarity of two tokens is symmetric.
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
    """Base class of the denominators of the loss.

    Similarities are bounded by the temperature, so their exponentials do not overflow.

    Args:
        temperature: Temperature.
        block_size: Side of a block of similarities.
        there: Flags of the available tokens of all ranks, ``(M, G, N)``.
        exclude: Flags of the tiles of all ranks that are not negatives of a tile of this one, ``(B, G)``.
        counts: Number of tiles of each rank.
        own: Slice of the tiles of this rank among all tiles.
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


class _Part(NamedTuple):
    """Tokens of a rank.

    Attributes:
        tokens: Available tokens ``(S, D)``; on an accelerator, all tokens.
        block: (modality, tile) of each token, ``(S,)``.
        missing: Tokens to mask, ``(S,)``; None if all are available.
        apart: Pairs of our (modality, tile) and of its own that are masked.
    """

    tokens: Tensor
    block: Tensor
    missing: Tensor | None
    apart: Tensor


class _Everywhere(_Negatives):
    """Denominators over all tokens except those of the same modality and tile.

    Tokens are ordered by (modality, tile), so few blocks need a mask. A block of similarities is used for
    its rows and its columns. On an accelerator, all blocks are masked, so that the host reads no flags.
    """

    def log_sums(self, x: Tensor, everyone: Tensor, positives: Tensor) -> Float[Tensor, 'm b n']:
        """Return the log-sum-exp of each token of this rank."""
        parts = self._parts(x, everyone)
        sums = torch.zeros_like(parts[self.here].tokens[:, 0])
        for part, i, j, weights in _weights(parts, self.here, self.block_size):
            sums[i] += weights.sum(1)
            if part == self.here and i != j:
                sums[j] += weights.sum(0)
        sums.clamp_(min=torch.finfo(x.dtype).tiny)
        return self._unpacked(sums.log(), x.new_zeros(x.shape[:-1]))

    def gradient(self, x: Tensor, everyone: Tensor, scales: Tensor) -> Float[Tensor, 'm b n d']:
        """Return the gradient of the sum over all anchors, ``scales`` being one over their sums."""
        parts = self._parts(x, everyone)
        there = self.there.split(self.counts, 1)
        scale = [self._packed(s, t) for s, t in zip(scales.split(self.counts, 1), there, strict=True)]
        own = parts[self.here].tokens
        result = torch.zeros_like(own)
        for part, i, j, weights in _weights(parts, self.here, self.block_size):
            weights *= scale[self.here][i].unsqueeze(1) + scale[part][j]
            result[i].addmm_(weights, parts[part].tokens[j])
            if part == self.here and i != j:
                result[j].addmm_(weights.T, own[i])
        result *= self.temperature**-0.5
        return self._unpacked(result, torch.zeros_like(x))

    def _packed(self, values: Tensor, there: Tensor) -> Tensor:
        """Return the values of the available tokens; on an accelerator, of all tokens."""
        return values[there] if readable(there) else values.flatten(0, 2)

    def _unpacked(self, values: Tensor, like: Tensor) -> Tensor:
        seen = self.there[:, self.own].unflatten(-1, (-1, *[1] * (like.ndim - 3)))
        return like.masked_scatter(seen, values) if readable(seen) else values.view(like.shape).masked_fill(~seen, 0)

    def _parts(self, x: Tensor, everyone: Tensor) -> list[_Part]:
        """Return the tokens of each rank."""
        tokens = list(everyone.split(self.counts, 1))
        tokens[self.here] = x.detach()
        parts = []
        for y, t, apart in zip(tokens, self.there.split(self.counts, 1), self._apart(*x.shape[:2]), strict=True):
            blocks = torch.arange(t[..., 0].numel(), device=x.device)
            blocks = repeat(blocks, '(m b) -> m b n', m=len(t), n=t.shape[2])
            missing = None if readable(t) else ~t.flatten()
            packed = self._packed(y, t) * self.temperature**-0.5
            parts.append(_Part(packed, self._packed(blocks, t), missing, apart))
        return parts

    def _apart(self, modalities: int, tiles: int) -> list[Bool[Tensor, 'i j']]:
        """Return by rank which pairs of our (modality, tile) and of its own are masked."""
        device = self.there.device
        exclude = self.exclude
        if exclude is None:
            exclude = torch.zeros(tiles, sum(self.counts), dtype=torch.bool, device=device)
        parts = list(exclude.split(self.counts, dim=1))
        parts[self.here] = parts[self.here] & ~torch.eye(tiles, dtype=torch.bool, device=device)
        tables = [repeat(part, 'b g -> (m b) (k g)', m=modalities, k=modalities) for part in parts]
        tables[self.here] = tables[self.here] | torch.eye(modalities * tiles, dtype=torch.bool, device=device)
        return tables


class _SamePlace(_Negatives):
    """Denominators over the tokens at the same position in other tiles and the positives."""

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
        """Yield positions and the exponentials ``(n, M B, M G)`` of their similarities, 0 where masked."""
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
        there, own_there = (rearrange(flags, 'm g n -> n (m g)') for flags in (self.there, self.there[:, self.own]))
        for at in _slices(places, max(1, self.block_size**2 // max(1, compared.numel()))):
            weights = (torch.bmm(left[at], right[at]) / self.temperature).exp_()
            yield at, weights.masked_fill_(~(compared & there[at].unsqueeze(1) & own_there[at].unsqueeze(2)), 0)


def _weights(parts: list[_Part], here: int, size: int) -> Iterator[tuple[int, slice, slice, Tensor]]:
    """Yield rank, slices *i* of own tokens and *j* of its tokens, and exponentials of their similarities, 0 if masked.

    Of two symmetric blocks of own tokens, only one is yielded.
    """
    own = parts[here]
    for part, other in enumerate(parts):
        for j in _slices(len(other.tokens), size):
            for i in _slices(len(own.tokens), size):
                if part == here and i.start > j.start:
                    continue
                masked = True
                if own.missing is None:
                    near = other.apart[_range(own.block, i), _range(other.block, j)]
                    if near.all():
                        continue
                    masked = bool(near.any())
                weights = (own.tokens[i] @ other.tokens[j].T).exp_()
                if masked:
                    weights.masked_fill_(other.apart[own.block[i]][:, other.block[j]], 0)
                if own.missing is not None and other.missing is not None:
                    weights.masked_fill_(own.missing[i].unsqueeze(1) | other.missing[j], 0)
                yield part, i, j, weights


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _range(block: Tensor, where: slice) -> slice:
    """Return the slice of blocks that a slice of tokens covers."""
    return slice(int(block[where.start]), int(block[where.stop - 1]) + 1)
