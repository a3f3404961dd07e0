# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""DOFA encoder of images with any bands."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchgeo.models import (
    DOFABase16_Weights,
    DOFALarge16_Weights,
    dofa_base_patch16_224,
    dofa_huge_patch14_224,
    dofa_large_patch16_224,
    dofa_small_patch16_224,
)
from torchgeo.models.dofa import DOFA

from ....modality import Modality
from ..registry import register_encoder
from .adapter import BandAdapter
from .backbone import load_body
from .base import AdaptedEncoder, check_arguments
from .foundation import BandStatistics, Family, band_wavelengths, find_weights, spectral_native
from .tokens import TokenBody, prepend_class_token

#: Value that stands for radar in the weights, in micrometres (``torchgeo.models.dofa``).
RADAR = 3.75
#: Builders of the model by size.
SIZES: dict[str, Callable[[], DOFA]] = {
    'small': dofa_small_patch16_224,
    'base': dofa_base_patch16_224,
    'large': dofa_large_patch16_224,
    'huge': dofa_huge_patch14_224,
}
#: Mean and standard deviation of the pre-training, in 8 bits:
#: https://github.com/zhu-xlab/DOFA/blob/master/normalize_dataset.py. Sentinel-2 is that of SatlasPretrain: true-colour
#: images, and the other bands as digital numbers divided by 32
#: (https://github.com/allenai/satlas/blob/main/Normalization.md). That of Sentinel-1 is not stated.
STATISTICS = {
    'B4': BandStatistics(665, 'tci', 114.1099739, 77.84352553),
    'B3': BandStatistics(560, 'tci', 114.81779093, 69.96844919),
    'B2': BandStatistics(490, 'tci', 126.63977424, 67.42465279),
    'B5': BandStatistics(705, 'dn to 8160', 32 * 84.33539309, 32 * 64.57022983),
    'B6': BandStatistics(740, 'dn to 8160', 32 * 97.84789168, 32 * 61.72545487),
    'B7': BandStatistics(783, 'dn to 8160', 32 * 103.94461911, 32 * 61.34187099),
    'B8': BandStatistics(842, 'dn to 8160', 32 * 101.435633, 32 * 60.29744676),
    'B11': BandStatistics(1610, 'dn to 8160', 32 * 72.32804172, 32 * 47.88519516),
    'B12': BandStatistics(2190, 'dn to 8160', 32 * 56.66528851, 32 * 42.55886798),
    'R': BandStatistics(665, '8 bit', 123.675, 58.395),
    'G': BandStatistics(560, '8 bit', 116.28, 57.12),
    'B': BandStatistics(490, '8 bit', 103.53, 57.375),
}


class DOFABody(TokenBody):
    """Vision transformer of DOFA, for images of any size."""

    def __init__(self, model: DOFA, wavelengths: Sequence[float]) -> None:
        super().__init__(model.blocks, model.embed_dim, model.patch_size)  # fc_norm is not pre-trained
        self.wavelengths = tuple(wavelengths)
        self.patch_embed = model.patch_embed
        self.cls_token, self.pos_embed = model.cls_token, model.pos_embed

    def embed(self, x: Float[Tensor, 's d h w']) -> Float[Tensor, 's n e']:
        """Return the class token and the tokens of the patches."""
        wavelengths = torch.tensor(self.wavelengths, device=x.device, dtype=x.dtype)
        tokens, _ = self.patch_embed(x[:, : len(wavelengths)], wavelengths)
        tokens = tokens if self.terms is None else self.terms(x, tokens)
        grid = (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        return prepend_class_token(tokens, self.cls_token, self.pos_embed, grid)


def _body(size: str, sensor: str) -> TokenBody:
    return DOFABody(SIZES[size](), (RADAR,))


#: Weights of DOFA.
FAMILY = Family(
    'dofa',
    {'small': None, 'base': DOFABase16_Weights.DOFA_MAE, 'large': DOFALarge16_Weights.DOFA_MAE, 'huge': None},
    dict.fromkeys(('s2', 's1', 'rgb', 'landsat'), 'by wavelength'),
    _body,
)


@register_encoder('dofa', temporal=False, per_date=True)
class DOFAEncoder(AdaptedEncoder):
    """DOFA encoder of images whose bands are described by their wavelengths, for images of any size.

    Xiong et al., "Neural Plasticity-Inspired Multimodal Foundation Model for Earth Observation" (arXiv 2403.15356), as
    implemented in ``torchgeo.models.dofa``. Bands are described by ``wavelengths`` of the modality; VV, VH, HH and HV
    by the value for radar. The last normalisation is not part of the published weights and is left out.

    The statistics of the pre-training are known for R, G and B in 8 bits and for nine bands of Sentinel-2 (not B8A).
    For others, ``units: 'standardised'`` is required, which passes images as normalised by the statistics of the data.

    Args:
        modality: Modality to encode.
        weights: ``'DOFABase16_Weights.DOFA_MAE'``, ``'DOFALarge16_Weights.DOFA_MAE'``, or a file.
        pretrained: True for TorchGeo's weights of *size*, False for random weights.
        size: ``'small'``, ``'base'``, ``'large'`` or ``'huge'``; None for that of the weights.
        units: ``'native'`` for the statistics of the pre-training, ``'standardised'`` for those of the data; None for
            ``'native'``.
        freeze: See ``AdaptedEncoder``, as for the arguments that follow.
        layer_decay: Factor of the learning rate from one layer to the layer before it.
        levels: Indices of the blocks whose tokens are returned; None for the middle and the last.
        chunk: Maximum number of images that are computed at once.
        load: Whether to load the weights; False if a checkpoint has them.

    Raises:
        ValueError: If the weights are unknown or do not fit, no band has a wavelength, or a unit is unknown.
        FileNotFoundError: If a file of weights does not exist.
    """

    def __init__(
        self,
        modality: Modality,
        weights: Any = None,
        pretrained: bool | None = None,
        size: str | None = None,
        units: str | None = None,
        freeze: bool | str = False,
        layer_decay: float = 1.0,
        levels: Sequence[int] | None = None,
        chunk: int = 16,
        load: bool = True,
    ) -> None:
        check_arguments(modality, units, freeze, layer_decay, chunk)
        found = find_weights(modality, FAMILY, size, weights, pretrained, load)
        known = band_wavelengths(modality, found.label)
        native = spectral_native(modality, found.label, known, STATISTICS)
        adapter = BandAdapter(modality, native, units == 'standardised')
        micrometres = [RADAR if isinstance(value, str) else value / 1000 for value in known.values()]
        body = DOFABody(SIZES[found.size](), micrometres)
        tensors = load_body(body, found.read(), found.label) if load and found.read else 0
        body.add_terms(adapter, padding=1)
        super().__init__(modality, adapter, body, freeze, layer_decay, levels, chunk)
        self.origin = found.origin(tensors)
