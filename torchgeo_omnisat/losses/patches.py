# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Contrast of patches: the modalities that see a patch find each other among all tokens."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import processes


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
