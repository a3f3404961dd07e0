# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Classifier: the fused tokens of a tile to one logit a label."""

from collections.abc import Mapping

from jaxtyping import Bool, Float
from timm.layers import Mlp
from torch import Tensor, nn

from .omnisat import OmniSat, OmniSatOutput


class OmniSatClassifier(nn.Module):
    """An OmniSat with a head on its fused tokens: logits for the whole tile.

    What a label asks for may fill the tile or stand in a corner of it, so every patch
    says how much it counts for each label.

    Args:
        backbone: The model that encodes and fuses.
        num_classes: Number of labels K.
    """

    def __init__(self, backbone: OmniSat, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = LabelHead(backbone.embed_dim, num_classes)

    def forward(self, batch: Mapping[str, Tensor]) -> Float[Tensor, 'b k']:
        """Logits of a batch; see :meth:`OmniSat.forward`."""
        return self.decode(self.backbone(batch))

    def decode(self, out: OmniSatOutput) -> Float[Tensor, 'b k']:
        """Logits from what the backbone made of a batch."""
        seen = self.backbone.seen(out.maps, out.grid).any(-1)
        return self.head(out.fused, seen)


class LabelHead(nn.Module):
    """One learned query a label attends over the patches that were seen.

    The weights of a label sum to one over the patches that some modality saw, so that
    neither the number of patches nor a patch that nothing saw changes the scale. Where
    nothing was seen at all, all patches count alike, and the output is finite.

    Args:
        dim: Width of the tokens.
        num_classes: Number of labels K.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.mlp = Mlp(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)
        self.scores = nn.Linear(dim, num_classes)
        self.logits = nn.Linear(dim, num_classes)

    def forward(self, tokens: Float[Tensor, 'b n d'], seen: Bool[Tensor, 'b n']) -> Float[Tensor, 'b k']:
        """Average the logits of the patches, label by label.

        Args:
            tokens: One token a ground patch.
            seen: Which patches any modality saw.
        """
        tokens = self.norm(tokens + self.mlp(tokens))
        counted = (seen | ~seen.any(1, keepdim=True)).unsqueeze(-1)
        scores = self.scores(tokens).float().masked_fill(~counted, -float('inf'))
        return (scores.softmax(dim=1) * self.logits(tokens).float()).sum(1)
