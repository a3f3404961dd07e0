# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Views: what a backbone makes of each modality of a batch, whole or in micro-batches."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..losses import MaskedReconstruction, draw_hidden
from ..models import OmniSat, OmniSatOutput
from ..transforms.base import keep_some
from ..utils.distributed import own_rows


class Draws(NamedTuple):
    """What is left to chance in a step, for B tiles.

    Attributes:
        hidden: Which ground patches are hidden in all modalities, ``(B, N)``.
        numbers: Uniform numbers ``(B, 2, M)`` that decide which modalities the fusion loses.
    """

    hidden: Tensor
    numbers: Tensor

    def part(self, rows: slice) -> 'Draws':
        """Return the draws of some tiles."""
        return Draws(*(value[rows] for value in self))


class Views(NamedTuple):
    """What :class:`Pretrainer` makes of B tiles.

    Attributes:
        tiles: An embedding a modality and tile, ``(M, B, P)``; P is 0 without heads.
        patches: What patches are compared by, ``(M, B, N, D)``.
        seen: Which patch of which tile each modality saw, ``(B, N, M)``.
        errors: Sum of the squared errors of each rebuilt modality, ``(M,)``; zero without that term.
        counts: Number of values that were rebuilt, ``(M,)``.
    """

    tiles: Tensor
    patches: Tensor
    seen: Tensor
    errors: Tensor
    counts: Tensor


class Pretrainer(nn.Module):
    """A backbone with what pre-training adds: projection heads and a decoder for each modality.

    A tile's embedding is the mean of the tokens that a modality saw, projected by a
    perceptron (as Chen et al., SimCLR, arXiv 2002.05709), so that what the contrast throws
    away is lost behind the head and not in the tokens. Patches are compared by their tokens
    themselves, as published, unless they are to be projected too.

    Args:
        backbone: What is trained and handed over.
        tile_dim: Width P of a tile's embedding; None without heads.
        patch_dim: Width of a patch's embedding; None for the tokens themselves.
        reconstruction: The decoders, if hidden patches are to be rebuilt.
    """

    def __init__(
        self,
        backbone: OmniSat,
        tile_dim: int | None = 128,
        patch_dim: int | None = None,
        reconstruction: MaskedReconstruction | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tile_heads, self.patch_heads = self._heads(tile_dim), self._heads(patch_dim)
        self.reconstruction = reconstruction

    def _heads(self, width: int | None) -> nn.ModuleDict:
        """Build one MLP per modality, or none."""
        dim = self.backbone.embed_dim
        names = self.backbone.modalities if width is not None else ()
        return nn.ModuleDict({name: Mlp(dim, dim, width) for name in names})

    def grid(self, batch: Mapping[str, Tensor]) -> tuple[int, int]:
        """Rows and columns of the ground grid of a batch."""
        images = {name: batch[m.image_key] for name, m in self.backbone.modalities.items() if m.image_key in batch}
        if not images:
            self.backbone.encode(batch)  # says what is missing
        return self.backbone.ground(images)[0]

    def forward(self, batch: Mapping[str, Tensor]) -> OmniSatOutput:
        """Return the output of the backbone for a batch, with nothing masked."""
        return self.backbone(batch)

    def views(
        self,
        batch: Mapping[str, Tensor],
        draws: Draws,
        chances: Sequence[float],
        pixels: bool = True,
        micro_batch_size: int | None = None,
        compare: bool = True,
        everything: bool = False,
    ) -> Views:
        """Encode every modality of a batch, and rebuild what is hidden of it.

        Tiles and patches are embedded with nothing hidden: what all modalities lack alike would
        tell which of them belong together, and a contrast would learn that and nothing else.

        Args:
            batch: A normalised batch; only its images, dates and flags are used.
            draws: What is hidden and dropped.
            chances: Probability that the fusion of a tile loses each modality, never its last.
            pixels: Hide the pixels of hidden patches, so that nothing of them reaches what
                is fused, and encode every tile once more for that; otherwise only their
                tokens, and only from the fusion.
            micro_batch_size: Tiles that are encoded at once. Only they are held in memory:
                activations are computed again in the backward pass. None for all, without that.
            compare: Whether embeddings matter; otherwise those of what is not hidden do, which
                saves one of the two passes.
            everything: Rebuild the patches that are not hidden too.

        Returns:
            The views of all tiles.
        """
        keys = [key for m in self.backbone.modalities.values() for key in m.keys if key in batch]
        images = {key: batch[key] for key in keys}
        grid = self.grid(images)
        if micro_batch_size is None:
            return self._views(images, draws, grid, chances, pixels, compare, everything)
        parts, told = [], (grid, chances, pixels, compare, everything)
        for start in range(0, len(draws.hidden), micro_batch_size):
            rows = slice(start, start + micro_batch_size)
            part = {key: value[rows] for key, value in images.items()}
            parts.append(checkpoint(self._views, part, draws.part(rows), *told, use_reentrant=False))
        tiles, patches, seen, errors, counts = zip(*parts, strict=True)
        return Views(torch.cat(tiles, 1), torch.cat(patches, 1), torch.cat(seen), sum(errors), sum(counts))

    def _views(
        self,
        batch: Mapping[str, Tensor],
        draws: Draws,
        grid: tuple[int, int],
        chances: Sequence[float],
        pixels: bool,
        compare: bool,
        everything: bool,
    ) -> Views:
        """Return the views of tiles that are encoded at once."""
        backbone, hidden = self.backbone, draws.hidden
        apart = pixels and self.reconstruction is not None
        shown = self._encode(self.hide(batch, hidden, grid) if apart else batch, grid)
        whole = self._encode(batch, grid) if apart and compare else shown
        tokens, seen = shown
        some = next(iter(tokens.values()))
        errors = some.new_zeros(len(backbone.modalities), dtype=torch.float32)
        counts = torch.zeros_like(errors, dtype=torch.int64)
        if self.reconstruction is not None:
            visible = seen & ~hidden.unsqueeze(-1)
            chance = torch.tensor(chances, dtype=torch.float32, device=some.device)
            kept = keep_some(visible.any(1), chance, *draws.numbers.unbind(1))
            fused = backbone.fuse(tokens, visible & kept.unsqueeze(1), grid)
            wanted = torch.ones_like(hidden) if everything else hidden
            errors, counts = self.reconstruction.errors(fused, batch, wanted, grid)
        tokens, seen = whole
        stacked = torch.stack([tokens.get(name, torch.zeros_like(some)) for name in backbone.modalities])
        patches = project(stacked, self.patch_heads) if self.patch_heads else stacked
        return Views(self._tiles(stacked, seen), patches, seen, errors, counts)

    def _encode(self, batch: Mapping[str, Tensor], grid: tuple[int, int]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the tokens of each modality, and the patches that each of them observed."""
        maps = self.backbone.encode(batch)
        return self.backbone.tokens(maps), self.backbone.observed_patches(maps, grid)

    def _tiles(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Return the embedding of every tile in every modality, from the tokens of observed patches."""
        if not self.tile_heads:
            return tokens.new_zeros(*tokens.shape[:2], 0)
        count = seen.sum(1).T.clamp(min=1).unsqueeze(-1)
        return project(tokens.sum(2) / count, self.tile_heads)

    def hide(self, batch: Mapping[str, Tensor], hidden: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        """Return the batch with masked patches set to NaN.

        A pixel that lies on several patches goes with any of them.

        Args:
            batch: A batch; it is not changed.
            hidden: Which patches are hidden, ``(B, N)``.
            grid: Rows and columns of the ground grid, N in all.
        """
        flags = hidden.unflatten(1, (1, *grid)).float()
        changed = {}
        for modality in self.backbone.modalities.values():
            if modality.image_key in batch:
                image = batch[modality.image_key]
                gone = F.adaptive_max_pool2d(flags, tuple(image.shape[-2:])) > 0
                changed[modality.image_key] = image.masked_fill(
                    gone.unsqueeze(1) if modality.temporal else gone, torch.nan
                )
        return {**batch, **changed}


def project(embeddings: Tensor, heads: nn.ModuleDict) -> Tensor:
    """Embeddings ``(M, ..., D)``, those of each modality through its own head."""
    return torch.stack([head(x) for head, x in zip(heads.values(), embeddings, strict=True)])


def draw_views(
    key: Sequence[int],
    counts: Sequence[int],
    modalities: int,
    grid: tuple[int, int],
    ratio: float,
    device: torch.device,
) -> Draws:
    """Draws that follow from a key, the same for a tile however many processes share the batch.

    Args:
        key: Whole numbers, not negative, such as the seed and the step; the same in every process.
        counts: Number of tiles of each rank.
        modalities: Number M of modalities.
        grid: Rows and columns of the ground grid, N in all; one patch or more stays visible.
        ratio: Part of the patches to hide.
        device: Where the draws are wanted.
    """
    own = own_rows(counts)
    random = generator(key)
    numbers = torch.rand(sum(counts), 2, modalities, generator=random, dtype=torch.float32)
    hidden = draw_hidden(sum(counts), grid, min(ratio, 1 - 1 / (grid[0] * grid[1])), random)
    return Draws(hidden[own].to(device), numbers[own].to(device))


def generator(key: Sequence[int]) -> torch.Generator:
    """Return a generator on the CPU that depends on non-negative integers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
