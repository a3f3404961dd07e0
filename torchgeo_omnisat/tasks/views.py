# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Model of pre-training, the views of a batch that its losses compare, and the random draws of a step."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..losses import MaskedReconstruction, draw_hidden
from ..models import FeatureMaps, OmniSat, OmniSatOutput
from ..models.embedding import DenseEmbedding, any_observed, pixels_of
from ..transforms.base import keep_some
from ..utils.distributed import own_rows
from ..utils.tensors.coordinates import COORDINATES, LOCATION_VALID
from ..utils.tensors.devices import constant
from ..utils.tensors.pooling import any_pool
from .distillation.granularity import Granularity
from .distillation.teacher import Teacher

#: Key of the flags ``(B, 1)`` of tiles whose location is compared, also if it is withheld from the fusion.
COMPARED = 'compared_location'
#: Probability that the second view of dense embeddings lacks a modality.
VIEW_DROPOUT = 0.5


class Draws(NamedTuple):
    """Random draws of a step for B tiles.

    Attributes:
        hidden: Ground patches that are masked in all modalities, ``(B, N)``.
        numbers: Uniform random numbers ``(B, 2, M)`` for the modality dropout of the fusion.
        view: Uniform random numbers ``(B, 2, M)`` for the second view of dense embeddings.
        pixels: Indices of the pixels of each tile whose embeddings are trained, ``(B, S)``, the same for all tiles;
            None without them.
    """

    hidden: Tensor
    numbers: Tensor
    view: Tensor | None = None
    pixels: Tensor | None = None

    def part(self, rows: slice) -> 'Draws':
        """Return the draws of some tiles."""
        view, pixels = (None if value is None else value[rows] for value in (self.view, self.pixels))
        return Draws(self.hidden[rows], self.numbers[rows], view, pixels)


class Encoded(NamedTuple):
    """Feature maps, tokens, and the modalities that observed each patch ``(B, N, M)``."""

    maps: dict[str, FeatureMaps]
    tokens: dict[str, Tensor]
    observed: Tensor


class Views(NamedTuple):
    """Output of :class:`Pretrainer` for B tiles.

    Attributes:
        tiles: Embedding of each tile by modality, ``(M, B, P)``, and that of its location last, if it is compared;
            P is 0 without heads.
        patches: Embeddings of the patches, ``(M, B, N, D)``.
        observed: Patches that each modality observed, ``(B, N, M)``.
        errors: Sum of the squared errors of each reconstructed modality, ``(M,)``; zero without that term.
        counts: Number of reconstructed values, ``(M,)``.
        pixels: Embeddings of S pixels from all modalities and from some of them, ``(2, B, S, D)``; S is 0 without
            dense embeddings.
        pixels_observed: Pixels that each of these two views observed, ``(B, S, 2)``.
        pixel_errors: As *errors*, of the reconstruction from the embeddings of pixels.
        pixel_counts: As *counts*, of the reconstruction from the embeddings of pixels.
        tokens: Tokens of each modality, ``(M, B, N, D)``; N is 0 without objects and teacher.
        fused: Fused tokens of the patches that are not masked and of some modalities, without geo-context,
            ``(B, N, D)``; N is 0 if no term needs them.
        taught: Fused tokens of the teacher, ``(B, N, D)``; N is 0 without it.
        located: Tiles whose location is compared, ``(B,)`` bool.
    """

    tiles: Tensor
    patches: Tensor
    observed: Tensor
    errors: Tensor
    counts: Tensor
    pixels: Tensor
    pixels_observed: Tensor
    pixel_errors: Tensor
    pixel_counts: Tensor
    tokens: Tensor
    fused: Tensor
    taught: Tensor
    located: Tensor


class Pretrainer(nn.Module):
    """Backbone with projection heads and a decoder for each modality, for pre-training.

    The embedding of a tile is the mean of the observed tokens of a modality, projected by an MLP
    (Chen et al., SimCLR, arXiv 2002.05709), so that information that the contrastive loss removes
    is lost in the head and not in the tokens. Patches are compared by their tokens, as published,
    or by a projection of them.

    Args:
        backbone: Backbone to train.
        tile_dim: Width P of the embedding of a tile; None without heads.
        patch_dim: Width of the embedding of a patch; None for tokens without projection.
        reconstruction: Decoders that reconstruct masked patches, or None.
        dense: Head of dense embeddings, or None.
        pixel_reconstruction: Decoders that reconstruct pixels from dense embeddings, or None.
    """

    def __init__(
        self,
        backbone: OmniSat,
        tile_dim: int | None = 128,
        patch_dim: int | None = None,
        reconstruction: MaskedReconstruction | None = None,
        dense: DenseEmbedding | None = None,
        pixel_reconstruction: MaskedReconstruction | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tile_heads, self.patch_heads = self._heads(tile_dim), self._heads(patch_dim)
        width = backbone.embed_dim
        with_location = tile_dim is not None and backbone.location is not None
        self.location_head = Mlp(width, width, tile_dim) if with_location else None
        self.reconstruction = reconstruction
        self.dense, self.pixel_reconstruction = dense, pixel_reconstruction
        #: Objects and teacher; set by the task.
        self.granularity: Granularity | None = None

    @property
    def teacher(self) -> Teacher | None:
        """Moving average of the student, if there is one."""
        return None if self.granularity is None else self.granularity.teacher

    @property
    def fuses(self) -> bool:
        """Whether a term needs fused tokens of masked tiles."""
        return self.reconstruction is not None or self.granularity is not None

    def _heads(self, width: int | None) -> nn.ModuleDict:
        dim = self.backbone.embed_dim
        names = self.backbone.modalities if width is not None else ()
        return nn.ModuleDict({name: Mlp(dim, dim, width) for name in names})

    def grid(self, batch: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return the rows and columns of the ground grid of a batch."""
        return self._ground(batch)[0]

    def pixel_grid(self, batch: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return the rows and columns of the dense embeddings of a batch; zero without them."""
        return (0, 0) if self.dense is None else pixels_of(self._ground(batch)[1], self.dense.gsd)

    def _ground(self, batch: Mapping[str, Tensor]) -> tuple[tuple[int, int], tuple[float, float]]:
        images = {name: batch[m.image_key] for name, m in self.backbone.modalities.items() if m.image_key in batch}
        if not images:
            self.backbone.encode(batch)  # raises the error
        return self.backbone.ground(images)

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
        masked: int | None = None,
    ) -> Views:
        """Encode every modality of a batch, and reconstruct masked patches, or *everything*.

        Tiles and patches are embedded without masking, if *compare*. A mask that all modalities share would reveal
        which of them belong together, and the contrastive loss would learn only that. Masking *pixels* instead of the
        tokens in the fusion takes a second pass of the encoders. The fusion drops modalities with the probability
        *chances*.

        *masked* is the number of masked patches of a tile, if it is known.

        With *micro_batch_size*, activations are computed again in the backward pass, so that only those of so many
        tiles are in memory.
        """
        keys = [key for m in self.backbone.modalities.values() for key in m.keys]
        images = {key: batch[key] for key in [*keys, COORDINATES, LOCATION_VALID, COMPARED] if key in batch}
        grid = self.grid(images)
        self.backbone.extend_calendars(images)  # else later parts would change those that are computed again
        if micro_batch_size is None:
            return self._views(images, draws, grid, chances, pixels, compare, everything, masked)
        parts, settings = [], (grid, chances, pixels, compare, everything, masked)
        for start in range(0, len(draws.hidden), micro_batch_size):
            rows = slice(start, start + micro_batch_size)
            part = {key: value[rows] for key, value in images.items()}
            parts.append(checkpoint(self._views, part, draws.part(rows), *settings, use_reentrant=False))
        columns = [list(column) for column in zip(*parts, strict=True)]
        joins = (1, 1, 0, None, None, 1, 0, None, None, 1, 0, 0, 0)  # dimension of the batch, None for sums over it
        return Views(*(sum(c) if d is None else torch.cat(c, d) for c, d in zip(columns, joins, strict=True)))

    def _views(
        self,
        batch: Mapping[str, Tensor],
        draws: Draws,
        grid: tuple[int, int],
        chances: Sequence[float],
        pixels: bool,
        compare: bool,
        everything: bool,
        masked: int | None,
    ) -> Views:
        backbone, hidden = self.backbone, draws.hidden
        apart = pixels and self.fuses
        shown = self._encode(self.hide(batch, hidden, grid) if apart else batch, grid)
        whole = self._encode(batch, grid) if apart and (compare or draws.pixels is not None) else shown
        _, tokens, observed = shown
        some = next(iter(tokens.values()))
        errors = some.new_zeros(len(backbone.modalities), dtype=torch.float32)
        counts = torch.zeros_like(errors, dtype=torch.int64)
        fused = taught = some[:, :0]
        if self.fuses:
            visible = observed & ~hidden.unsqueeze(-1)
            chance = constant(chances, some.device, torch.float32)
            kept = keep_some(visible.any(1), chance, *draws.numbers.unbind(1))
            fused = backbone.fuse(tokens, visible & kept.unsqueeze(1), grid, backbone.locate(batch))
        if self.reconstruction is not None:
            wanted, count = (torch.ones_like(hidden), hidden.shape[1]) if everything else (hidden, masked)
            located = backbone.add_context(fused, backbone.coordinates(batch))
            errors, counts = self.reconstruction.errors(located, batch, wanted, grid, count)
        maps, tokens, observed = whole
        stacked = torch.stack([tokens.get(name, torch.zeros_like(some)) for name in backbone.modalities])
        patches = project(stacked, self.patch_heads) if self.patch_heads else stacked
        dense = self._pixels(maps, tokens, observed, batch, draws)
        if self.teacher is not None:
            taught = self.teacher(batch)
        kept_tokens = stacked if self.granularity is not None else stacked[:, :, :0]
        tiles, known = self._with_location(self._tiles(stacked, observed), batch)
        return Views(tiles, patches, observed, errors, counts, *dense, kept_tokens, fused, taught, known)

    def _with_location(self, tiles: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the tiles and their location, and the tiles with a known location.

        The contrast compares the location also where the dropout withholds it from the fusion.
        """
        located = torch.zeros(tiles.shape[1], dtype=torch.bool, device=tiles.device)
        if self.location_head is None:
            return tiles, located
        usable = batch.get(COMPARED, batch.get(LOCATION_VALID))
        withheld = {} if usable is None else {LOCATION_VALID: usable}
        location = self.backbone.locate({**batch, **withheld})
        if location is None:
            return torch.cat([tiles, torch.zeros_like(tiles[:1])]), located
        return torch.cat([tiles, self.location_head(location.token).to(tiles.dtype).unsqueeze(0)]), location.known

    def _encode(self, batch: Mapping[str, Tensor], grid: tuple[int, int]) -> Encoded:
        maps = self.backbone.encode(batch)
        return Encoded(maps, self.backbone.tokens(maps), self.backbone.observed_patches(maps, grid))

    def _pixels(
        self,
        maps: dict[str, FeatureMaps],
        tokens: dict[str, Tensor],
        observed: Tensor,
        batch: Mapping[str, Tensor],
        draws: Draws,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the last four entries of :class:`Views`."""
        backbone, chosen, some = self.backbone, draws.pixels, next(iter(tokens.values()))
        errors = some.new_zeros(len(backbone.modalities), dtype=torch.float32)
        counts = torch.zeros_like(errors, dtype=torch.int64)
        if self.dense is None or chosen is None or draws.view is None:
            return some.new_zeros(2, len(some), 0, 1), observed.new_zeros(len(some), 0, 2), errors, counts
        grid, extent = backbone.ground(maps)
        where, location = backbone.coordinates(batch), backbone.locate(batch)
        fused = backbone.add_context(backbone.fuse(tokens, observed, grid, location), where)
        whole = OmniSatOutput(tokens, fused, observed.any(1), maps, grid, extent, location, where)
        kept = keep_some(observed.any(1), VIEW_DROPOUT, *draws.view.unbind(1))
        views, size = (whole, backbone.hide(whole, kept)), pixels_of(whole.extent, self.dense.gsd)
        maps_of_views = [self.dense(view, size).flatten(2) for view in views]
        at = chosen.unsqueeze(1)
        pixels = torch.stack([x.gather(2, at.expand(-1, x.shape[1], -1)).mT for x in maps_of_views])
        seen = torch.stack([any_observed(view, size).flatten(1).gather(1, chosen) for view in views], dim=-1)
        if self.pixel_reconstruction is not None:
            # Every second pixel is reconstructed from some modalities, the others from all of them.
            hidden = torch.zeros_like(maps_of_views[0][:, 0], dtype=torch.bool).scatter(1, chosen, True)
            from_some = torch.zeros_like(hidden).scatter(1, chosen[:, ::2], True)
            mixed = torch.where(from_some.unsqueeze(1), maps_of_views[1], maps_of_views[0])
            scaled = mixed.mT * math.sqrt(self.dense.dim)  # components of about 1
            errors, counts = self.pixel_reconstruction.errors(scaled, batch, hidden, size, chosen.shape[1])
        return pixels, seen, errors, counts

    def _tiles(self, tokens: Tensor, observed: Tensor) -> Tensor:
        if not self.tile_heads:
            return tokens.new_zeros(*tokens.shape[:2], 0)
        count = observed.sum(1).T.clamp(min=1).unsqueeze(-1)
        return project(tokens.sum(2) / count, self.tile_heads)

    def hide(self, batch: Mapping[str, Tensor], hidden: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        """Return the batch with pixels of masked patches ``(B, N)``, also of several patches, set to NaN."""
        flags = hidden.unflatten(1, (1, *grid))
        changed = {}
        for modality in self.backbone.modalities.values():
            if modality.image_key in batch:
                image = batch[modality.image_key]
                rows, columns = image.shape[-2:]
                gone = any_pool(flags, (rows, columns))
                changed[modality.image_key] = image.masked_fill(
                    gone.unsqueeze(1) if modality.temporal else gone, torch.nan
                )
        return {**batch, **changed}


def project(embeddings: Tensor, heads: nn.ModuleDict) -> Tensor:
    """Return the embeddings ``(M, ..., D)`` after the head of each modality."""
    return torch.stack([head(x) for head, x in zip(heads.values(), embeddings, strict=True)])


def draw_views(
    key: Sequence[int],
    counts: Sequence[int],
    modalities: int,
    grid: tuple[int, int],
    ratio: float,
    device: torch.device,
    pixel_grid: tuple[int, int] = (0, 0),
    pixels: int = 0,
) -> Draws:
    """Return random draws that depend on a key, and not on the number of ranks that share the batch.

    *counts* are the tiles of each rank; at least one patch of the grid is not masked. *pixels* of the *pixel_grid* of
    dense embeddings are drawn without replacement. They are the same for all tiles, so that the contrast cannot be
    solved by the position of a pixel in its tile.
    """
    own = own_rows(counts)
    random = generator(key)
    numbers = torch.rand(sum(counts), 2, modalities, generator=random, dtype=torch.float32)
    hidden = draw_hidden(sum(counts), grid, limited_ratio(ratio, grid), random)
    drawn = [hidden, numbers]
    if pixels:
        chosen = torch.randperm(math.prod(pixel_grid), generator=random)[:pixels].expand(sum(counts), -1)
        drawn += [torch.rand(numbers.shape, generator=random, dtype=torch.float32), chosen]
    return Draws(*(value[own].to(device, non_blocking=True) for value in drawn))


def limited_ratio(ratio: float, grid: tuple[int, int]) -> float:
    """Return the fraction of the patches to mask, so that at least one is not."""
    return min(ratio, 1 - 1 / (grid[0] * grid[1]))


def generator(key: Sequence[int]) -> torch.Generator:
    """Return a generator on the CPU that depends on non-negative integers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
