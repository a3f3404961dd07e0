# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Vision transformers of TorchGeo with timm's interface, for images of any size."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from ..adapter import BandAdapter


class BandTerms(nn.Module):
    """Zero-initialised convolutions of bands that the weights lack, and of flags of missing bands."""

    extra: nn.Parameter | None

    def __init__(self, adapter: BandAdapter, width: int, patch: int, padding: int = 0) -> None:
        super().__init__()
        self.known, self.rest = len(adapter.theirs), len(adapter.rest)
        self.indices: list[int] = adapter.known.tolist()  # of the matched bands among the flags
        self.patch, self.padding = patch, padding
        extra = nn.Parameter(torch.zeros(width, self.rest, patch, patch)) if self.rest else None
        self.register_parameter('extra', extra)
        self.missing = nn.Parameter(torch.zeros(width, adapter.count, patch, patch))

    def forward(self, x: Float[Tensor, 's d h w'], tokens: Float[Tensor, 's n e']) -> Float[Tensor, 's n e']:
        """Add the terms to the tokens of the matched bands."""
        if self.extra is not None:
            tokens = tokens + self._tokens(x[:, self.known : self.known + self.rest], self.extra)
        if x.shape[1] > self.known + self.rest:
            tokens = tokens + self._tokens(x[:, self.known + self.rest :], self.missing)
        return tokens

    def _tokens(self, x: Tensor, weight: Tensor) -> Tensor:
        return rearrange(F.conv2d(x, weight, stride=self.patch, padding=self.padding), 's e h w -> s (h w) e')


class TokenBody(nn.Module, ABC):
    """Vision transformer whose tokens are returned as feature maps.

    A subclass implements ``embed``.

    Args:
        blocks: Blocks of the transformer.
        width: Number of channels of a token.
        patch: Patch size in pixels.
        norm: Normalisation of the returned tokens; None if the weights have none.
    """

    terms: BandTerms | None

    def __init__(self, blocks: nn.ModuleList, width: int, patch: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.patch, self.width = patch, width
        self.blocks = blocks
        self.norm = nn.Identity() if norm is None else norm
        self.terms = None
        self.feature_info = [
            {'num_chs': width, 'reduction': patch, 'module': f'blocks.{index}'} for index in range(len(blocks))
        ]

    def add_terms(self, adapter: BandAdapter, padding: int = 0) -> None:
        """Add the parameters that are not pre-trained; call it after the weights are loaded."""
        self.terms = BandTerms(adapter, self.width, self.patch, padding)

    @abstractmethod
    def embed(self, x: Float[Tensor, 's d h w']) -> Float[Tensor, 's n e']:
        """Return the input of the first block: prefix tokens, then one token per patch.

        Args:
            x: Output of a ``BandAdapter``.
        """

    def run_block(self, index: int, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the output of a block."""
        output: Tensor = self.blocks[index](tokens)
        return output

    def forward_intermediates(
        self, x: Float[Tensor, 's d h w'], indices: Sequence[int], norm: bool = True, intermediates_only: bool = True
    ) -> list[Tensor]:
        """Return the maps ``(S, E, H / patch, W / patch)`` after these blocks.

        Args:
            x: Output of a ``BandAdapter``, whose height and width are multiples of the patch size.
            indices: Indices of the blocks.
            norm: Whether to normalise the tokens.
            intermediates_only: True; for compatibility with timm.
        """
        grid = (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        tokens, maps = self.embed(x), {}
        for index in range(max(indices) + 1):
            tokens = self.run_block(index, tokens, grid)
            if index in indices:
                output = self.norm(tokens) if norm else tokens
                patches = output[:, output.shape[1] - grid[0] * grid[1] :]
                maps[index] = rearrange(patches, 's (h w) e -> s e h w', h=grid[0])
        return [maps[index] for index in indices]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the groups of parameters by depth, for ``layer_decay``."""
        return {'stem': r'^(?!blocks\.|norm\.)', 'blocks': [(r'^blocks\.(\d+)', None), (r'^norm', (99999,))]}


def prepend_class_token(
    tokens: Float[Tensor, 's n e'], cls_token: Tensor, positions: Tensor, grid: tuple[int, int]
) -> Float[Tensor, 's m e']:
    """Add position embeddings, resized to the grid of patches, and prepend the class token.

    Args:
        tokens: Tokens of the patches.
        cls_token: Class token ``(1, 1, E)``.
        positions: Position embeddings ``(1, 1 + N, E)`` of a square grid, the first that of the class token.
        grid: Rows and columns of patches.
    """
    positions = resample_abs_pos_embed(positions, list(grid), num_prefix_tokens=1)
    return torch.cat([cls_token.expand(len(tokens), -1, -1), tokens], 1) + positions
