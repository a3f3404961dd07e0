# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Fusion of modalities: attention over modalities, then over ground patches."""

from collections.abc import Iterable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from timm.layers import Mlp, RotaryEmbeddingCat
from timm.models.eva import EvaBlock
from torch import Tensor, nn


class ModalityAttention(nn.Module):
    """Cross-attention of one learned query over the modalities that observed a ground patch.

    The cost is linear in the number of modalities. A modality that did not observe the patch
    has a weight of exactly zero; if none did, the output is the query plus a bias.

    Args:
        names: Names of the modalities; each has a learned embedding.
        dim: Width of the tokens.
        num_heads: Number of heads.
    """

    def __init__(self, names: Iterable[str], dim: int, num_heads: int) -> None:
        super().__init__()
        self.names, self.num_heads = tuple(names), num_heads
        self.query = nn.Parameter(torch.empty(dim))
        self.embeddings = nn.ParameterDict({name: nn.Parameter(torch.empty(dim)) for name in self.names})
        self.norm = nn.LayerNorm(dim)
        self.scores = nn.Linear(dim, num_heads)
        self.values = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        for parameter in (self.query, *self.embeddings.values()):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Float[Tensor, 'b n m d'], seen: Bool[Tensor, 'b n m']) -> Float[Tensor, 'b n d']:
        """Fuse the tokens of each patch.

        Args:
            tokens: Tokens of M modalities, in the order of *names*.
            seen: Flags of the patches that each modality observed.
        """
        tokens, weights = self.weigh(tokens, seen)
        values = rearrange(self.values(tokens), 'b n m (g c) -> b n m g c', g=self.num_heads)
        fused = (values * weights.unsqueeze(-1)).sum(2)
        return self.query + self.proj(rearrange(fused, 'b n g c -> b n (g c)'))

    def weigh(
        self, tokens: Float[Tensor, 'b n m d'], seen: Bool[Tensor, 'b n m']
    ) -> tuple[Float[Tensor, 'b n m d'], Float[Tensor, 'b n m g']]:
        """Return the normalised tokens and the attention weights of each modality and head.

        Args:
            tokens: Tokens of M modalities, in the order of *names*.
            seen: Flags of the patches that each modality observed.

        Returns:
            Tokens with their embeddings, and weights that sum to one over the modalities, or
            to zero for a patch that none of them observed.
        """
        hidden = ~seen.unsqueeze(-1)
        tokens = tokens.masked_fill(hidden, 0) + torch.stack([self.embeddings[name] for name in self.names])
        tokens = self.norm(tokens)
        with torch.autocast(tokens.device.type, enabled=False):  # softmax amplifies rounding errors of its input
            scores = self.scores(tokens.to(self.scores.weight.dtype))
        weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(dim=2).masked_fill(hidden, 0)
        return tokens, weights


class Fusion(nn.Module):
    """Cross-attention over modalities, then self-attention over ground patches.

    Rotary position embeddings (Su et al., arXiv 2104.09864) on both axes depend on the
    relative position of two patches, so the grid may have any size and shape.

    Args:
        names: Names of the modalities.
        dim: Width of the tokens.
        depth: Number of spatial blocks.
        num_heads: Number of heads; ``dim / num_heads`` is a multiple of four.
    """

    def __init__(self, names: Iterable[str], dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        if dim % (4 * num_heads):
            raise ValueError(f'embed_dim is {dim}, expected a multiple of 4 * num_heads = {4 * num_heads}')
        self.modalities = ModalityAttention(names, dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.rope = RotaryEmbeddingCat(dim // num_heads, temperature=100, in_pixels=False)
        self.blocks = nn.ModuleList(EvaBlock(dim, num_heads, num_prefix_tokens=0) for _ in range(depth))
        self.out_norm = nn.LayerNorm(dim)

    def forward(
        self, tokens: Float[Tensor, 'b n m d'], seen: Bool[Tensor, 'b n m'], grid: tuple[int, int]
    ) -> Float[Tensor, 'b n d']:
        """Fuse the tokens of a tile.

        Args:
            tokens: Tokens of M modalities on one ground grid.
            seen: Flags of the patches that each modality observed.
            grid: Rows and columns of the grid, N patches in total.
        """
        x = self.modalities(tokens, seen)
        x = x + self.mlp(self.norm(x))
        rope = self.rope.get_embed(list(grid))
        for block in self.blocks:
            x = block(x, rope=rope)
        return self.out_norm(x)
