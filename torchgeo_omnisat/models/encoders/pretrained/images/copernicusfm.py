# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Copernicus-FM encoder of images with any bands."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torchgeo.models import CopernicusFM_Base_Weights, copernicusfm_base
from torchgeo.models.copernicusfm import CopernicusFM, FourierExpansion

from .....modality import Modality
from .....utils.signatures import with_arguments_of
from .....utils.tensors.devices import constant
from ...registry import register_encoder
from ..adapter import Native, canonical
from .foundation import BandStatistics, Family, FoundationEncoder, Weights, band_wavelengths, spectral_native
from .tokens import TokenBody

#: Builders of the model by size.
SIZES: dict[str, Callable[[], CopernicusFM]] = {'base': copernicusfm_base}
#: Bands of Sentinel-2 in the pre-training: wavelength and bandwidth in nanometres, mean and standard deviation of
#: digital numbers of level 1C. From https://github.com/zhu-xlab/Copernicus-FM: ``band_wavelengths`` and
#: ``band_bandwidths`` in Copernicus-Bench/src/configs/dataset, ``S2C_MEAN`` and ``S2C_STD`` in
#: Copernicus-FM/src/main_pretrain.py.
SENTINEL2 = {
    'B1': (440, 20, 1612.9, 791.0),
    'B2': (490, 65, 1397.6, 854.3),
    'B3': (560, 35, 1322.3, 878.7),
    'B4': (665, 30, 1373.1, 1144.9),
    'B5': (705, 15, 1561.0, 1127.5),
    'B6': (740, 15, 2108.4, 1164.2),
    'B7': (783, 20, 2390.7, 1276.0),
    'B8': (842, 115, 2318.7, 1249.5),
    'B8A': (860, 20, 2581.0, 1345.9),
    'B9': (940, 20, 837.7, 577.5),
    'B10': (1370, 30, 22.0, 47.5),
    'B11': (1610, 90, 2195.2, 1340.0),
    'B12': (2190, 180, 1537.4, 1142.9),
}
#: Statistics of the pre-training; those of Sentinel-1 are ``S1_MEAN`` and ``S1_STD`` in the same file.
STATISTICS = {
    **{name: BandStatistics(nm, 'dn', mean, std) for name, (nm, _, mean, std) in SENTINEL2.items()},
    'VV': BandStatistics(None, 'db', -12.59, 5.26),
    'VH': BandStatistics(None, 'db', -20.26, 5.91),
}
#: Wavelength and bandwidth of radar in the pre-training, in nanometres.
RADAR = (5e7, 1e9)
#: Ranges that the model encodes: wavelengths and bandwidths in nanometres, areas of a patch in square kilometres.
WAVELENGTHS, BANDWIDTHS, AREAS = (100, 1e9), (1, 1e9), (0.001, 5.1e8)


class CopernicusFMBody(TokenBody):
    """Vision transformer of Copernicus-FM, for images of any size.

    Args:
        model: Copernicus-FM.
        wavelengths: Wavelength of each band in nanometres.
        bandwidths: Bandwidth of each band in nanometres.
        area: Area of a patch in square kilometres; None if it is unknown.
    """

    def __init__(
        self, model: CopernicusFM, wavelengths: Sequence[float], bandwidths: Sequence[float], area: float | None
    ) -> None:
        width: int = model.pos_embed.shape[-1]
        super().__init__(model.blocks, width, model.patch_embed_spectral.kernel_size)  # fc_norm is not pre-trained
        self.wavelengths, self.bandwidths, self.area = tuple(wavelengths), tuple(bandwidths), area
        self.patch_embed_spectral = model.patch_embed_spectral
        self.cls_token, self.pos_embed = model.cls_token, model.pos_embed
        self.coord_fc, self.scale_fc, self.time_fc = model.coord_fc, model.scale_fc, model.time_fc
        self.coord_token, self.time_token = model.coord_token, model.time_token
        self.scale_token, self.scale_expansion = model.scale_token, model.scale_expansion
        for module in self.modules():
            if isinstance(module, FourierExpansion):
                module.assert_range = False  # checked by the encoder, because a compiled graph cannot

    def embed(self, x: Float[Tensor, 's d h w']) -> Float[Tensor, 's n e']:
        """Return the class token and the tokens of the patches."""
        bands = {'wavelengths': self.wavelengths, 'bandwidths': self.bandwidths}
        given = {name: constant(values, x.device, x.dtype) for name, values in bands.items()}
        tokens = self.patch_embed_spectral(x[:, : len(self.wavelengths)], **given)
        tokens = tokens if self.terms is None else self.terms(x, tokens)
        grid = [x.shape[-2] // self.patch, x.shape[-1] // self.patch]
        positions = resample_abs_pos_embed(self.pos_embed, grid, num_prefix_tokens=1)
        positions = positions + self.coord_fc(self.coord_token) + self.scale_fc(self._scale(x))
        positions = positions + self.time_fc(self.time_token)
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + positions

    def _scale(self, x: Tensor) -> Tensor:
        if self.area is None:
            return self.scale_token
        area = constant([self.area], x.device, torch.float32)
        encoded: Tensor = self.scale_expansion(area, self.width)
        return encoded[:, None].to(x.dtype)


#: Weights of Copernicus-FM.
FAMILY = Family(
    'copernicusfm',
    {'base': CopernicusFM_Base_Weights.CopernicusFM_ViT},
    dict.fromkeys(('s2', 's1', 'rgb', 'landsat'), 'by wavelength'),
    lambda size, sensor: CopernicusFMBody(SIZES[size](), RADAR[:1], RADAR[1:], None),
)


@register_encoder('copernicusfm', temporal=False, per_date=True)
class CopernicusFMEncoder(FoundationEncoder):
    """Copernicus-FM encoder of images whose bands are described by wavelength and bandwidth, for images of any size.

    Wang et al., "Towards a Unified Copernicus Foundation Model for Earth Vision" (arXiv 2503.11849), as implemented in
    ``torchgeo.models.copernicusfm``, with its spectral input. Bands are described by ``wavelengths`` of the modality;
    VV, VH, HH and HV by the values for radar. Bandwidths are known for Sentinel-2 and radar. The area of a patch is
    computed from the GSD, if it is at least 0.001 square kilometres. Location and time are not passed, because the
    source model ignores those of a whole batch if one is unknown. The last normalisation is not part of the published
    weights and is left out.

    The statistics of the pre-training are known for Sentinel-2 (level 1C) and for Sentinel-1 in decibels. For others,
    ``units: 'standardised'`` is required, which passes images as normalised by the statistics of the data.

    The size is ``'base'`` (``CopernicusFM_Base_Weights.CopernicusFM_ViT``).
    """

    family = FAMILY
    padding = 1

    @with_arguments_of(FoundationEncoder, is_last=True)
    def __init__(
        self, modality: Modality, weights: Any = None, *, bandwidths: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Initialize the encoder.

        Args:
            modality: Modality to encode.
            weights: ``'CopernicusFM_Base_Weights.CopernicusFM_ViT'`` or a file.
            bandwidths: Bandwidth in nanometres by name of the band, for those that are not of Sentinel-2 or radar.
            **kwargs: Arguments of ``FoundationEncoder``.

        Raises:
            ValueError: If a bandwidth is unknown, or as for ``FoundationEncoder``.
        """
        self.bandwidths = dict(bandwidths or {})
        super().__init__(modality, weights, **kwargs)

    def build(self, modality: Modality, weights: Weights) -> tuple[Native, CopernicusFMBody]:
        """Return the input of Copernicus-FM, and the model for these wavelengths and bandwidths."""
        known = band_wavelengths(modality, weights.label)
        native = spectral_native(modality, weights.label, known, STATISTICS)
        nanometres = [RADAR[0] if isinstance(value, str) else value for value in known.values()]
        widths = _bandwidths(modality, known, native.units, self.bandwidths)
        for name, values, (low, high) in (
            ('wavelengths', nanometres, WAVELENGTHS),
            ('bandwidths', widths, BANDWIDTHS),
        ):
            if not all(low <= value <= high for value in values):
                raise ValueError(
                    f'{name} of {modality.name!r} are {values}, expected {low:g} to {high:g} nanometres for '
                    f'{weights.label}'
                )
        model = SIZES[weights.size]()
        area = (model.patch_embed_spectral.kernel_size * modality.gsd / 1000) ** 2
        return native, CopernicusFMBody(model, nanometres, widths, area if AREAS[0] <= area <= AREAS[1] else None)


def _bandwidths(
    modality: Modality, known: Mapping[int, float | str], units: Sequence[str | None], given: Mapping[str, float]
) -> list[float]:
    """Return the bandwidth of each band with a wavelength; the unit of a band of the pre-training is not None."""
    found: list[float | None] = []
    for (index, value), unit in zip(known.items(), units, strict=True):
        band = modality.bands[index]
        default = SENTINEL2[canonical(band)][1] if unit == 'dn' else None
        found.append(RADAR[1] if isinstance(value, str) else given.get(band, default))
    if missing := [modality.bands[index] for index, width in zip(known, found, strict=True) if not width]:
        raise ValueError(
            f'bandwidths of {missing} of {modality.name!r} are unknown to Copernicus-FM, which knows those of '
            f'{list(SENTINEL2)} of Sentinel-2: expected bandwidths: {{{missing[0]}: NANOMETRES, ...}}'
        )
    return [float(width) for width in found if width is not None]
