# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""DOFA encoder of images with any bands."""

from collections.abc import Callable, Sequence

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

from .....modality import Modality
from .....utils.tensors.devices import constant
from ...registry import register_encoder
from ..adapter import Native
from .foundation import BandStatistics, Family, FoundationEncoder, Weights, band_wavelengths, spectral_native
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
        wavelengths = constant(self.wavelengths, x.device, x.dtype)
        tokens, _ = self.patch_embed(x[:, : len(wavelengths)], wavelengths)
        tokens = tokens if self.terms is None else self.terms(x, tokens)
        grid = (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        return prepend_class_token(tokens, self.cls_token, self.pos_embed, grid)


#: Weights of DOFA.
FAMILY = Family(
    'dofa',
    {'small': None, 'base': DOFABase16_Weights.DOFA_MAE, 'large': DOFALarge16_Weights.DOFA_MAE, 'huge': None},
    dict.fromkeys(('s2', 's1', 'rgb', 'landsat'), 'by wavelength'),
    lambda size, sensor: DOFABody(SIZES[size](), (RADAR,)),
)


@register_encoder('dofa', temporal=False, per_date=True)
class DOFAEncoder(FoundationEncoder):
    """DOFA encoder of images whose bands are described by their wavelengths, for images of any size.

    Xiong et al., "Neural Plasticity-Inspired Multimodal Foundation Model for Earth Observation" (arXiv 2403.15356), as
    implemented in ``torchgeo.models.dofa``. Bands are described by ``wavelengths`` of the modality; VV, VH, HH and HV
    by the value for radar. The last normalisation is not part of the published weights and is left out.

    The statistics of the pre-training are known for R, G and B in 8 bits and for nine bands of Sentinel-2 (not B8A).
    For others, ``units: 'standardised'`` is required, which passes images as normalised by the statistics of the data.

    Sizes are ``'base'`` (``DOFABase16_Weights.DOFA_MAE``) and ``'large'`` (``DOFALarge16_Weights.DOFA_MAE``), and
    ``'small'`` and ``'huge'`` without weights.
    """

    family = FAMILY
    padding = 1

    def build(self, modality: Modality, weights: Weights) -> tuple[Native, DOFABody]:
        """Return the input of DOFA, and the model for these wavelengths."""
        known = band_wavelengths(modality, weights.label)
        micrometres = [RADAR if isinstance(value, str) else value / 1000 for value in known.values()]
        native = spectral_native(modality, weights.label, known, STATISTICS)
        return native, DOFABody(SIZES[weights.size](), micrometres)
