# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Scene classifier: logits of a tile from its fused tokens."""

from collections.abc import Mapping

from jaxtyping import Bool, Float
from timm.layers import Mlp
from torch import Tensor, nn

from .omnisat import OmniSat, OmniSatOutput, check_size


class OmniSatClassifier(nn.Module):
    """OmniSat backbone with a multi-label classification head.

    A class may cover the tile or only a corner of it, so the head weights the patches by
    attention, separately for each label.

    Args:
        backbone: Backbone that encodes and fuses the modalities.
        num_classes: Number of labels K.

    Raises:
        ValueError: If *num_classes* is not a positive integer.
    """

    def __init__(self, backbone: OmniSat, num_classes: int) -> None:
        super().__init__()
        check_size('num_classes', num_classes)
        self.backbone = backbone
        self.head = LabelHead(backbone.embed_dim, num_classes)

    def forward(self, batch: Mapping[str, Tensor]) -> Float[Tensor, 'b k']:
        """Return the logits of a batch; see :meth:`OmniSat.forward`."""
        return self.decode(self.backbone(batch))

    def decode(self, out: OmniSatOutput) -> Float[Tensor, 'b k']:
        """Return the logits from the output of the backbone."""
        seen = self.backbone.observed_patches(out.maps, out.grid).any(-1)
        return self.head(out.fused, seen)


class LabelHead(nn.Module):
    """Attention pooling over observed patches, with one learned query per label.

    The weights of a label sum to one over the observed patches, so neither the number of
    patches nor unobserved ones change the scale. If no patch is observed, all are included and
    the output is finite.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.mlp = Mlp(dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)
        self.scores = nn.Linear(dim, num_classes)
        self.logits = nn.Linear(dim, num_classes)

    def forward(self, tokens: Float[Tensor, 'b n d'], seen: Bool[Tensor, 'b n']) -> Float[Tensor, 'b k']:
        """Return the weighted mean of the logits of the patches.

        Args:
            tokens: One token per ground patch.
            seen: Whether any modality observed the patch.
        """
        tokens = self.norm(tokens + self.mlp(tokens))
        counted = (seen | ~seen.any(1, keepdim=True)).unsqueeze(-1)
        scores = self.scores(tokens).float().masked_fill(~counted, -float('inf'))
        return (scores.softmax(dim=1) * self.logits(tokens).float()).sum(1)
