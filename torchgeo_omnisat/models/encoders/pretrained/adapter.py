# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Adaptation of the bands and units of a modality to those of pre-trained weights."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....modality import Modality
from ....utils.tensors.observed import all_observed, observed

#: Maximum of the true-colour images (TCI) that Satlas was trained on, and the digital number that it stands for:
#: "The saturation level of 255 digital counts correspond to a level of 3558 for L1C products" (Sentinel-2 Products
#: Specification Document; Satlas used L1C, https://github.com/allenai/satlas/blob/main/Normalization.md).
TCI, TCI_DN = 255.0, 3558.0
#: Digital number at which Satlas clips the other bands (the same page).
SATLAS_DN = 8160.0
#: Factor and maximum that convert our unit to that of the weights; the maximum is in the latter.
CONVERSIONS = {
    ('dn', 'dn'): (1.0, torch.inf),
    ('reflectance', 'dn'): (1e4, torch.inf),
    ('dn', 'dn to 8160'): (1.0, SATLAS_DN),
    ('reflectance', 'dn to 8160'): (1e4, SATLAS_DN),
    ('dn', 'tci'): (TCI / TCI_DN, TCI),
    ('reflectance', 'tci'): (1e4 * TCI / TCI_DN, TCI),
    ('db', 'db'): (1.0, torch.inf),
    ('power', 'db'): (1.0, torch.inf),  # after 10 log10
    ('dn', '8 bit'): (1.0, torch.inf),  # for bands without a number, those of aerial and SPOT images
}
#: Colours, the numbers of these bands of Sentinel-2, and the limits of their central wavelengths in nanometres.
_COLOURS = {'R': ('B4', 600, 700), 'G': ('B3', 500, 600), 'B': ('B2', 430, 520)}
_NAMES = {'RED': 'R', 'GREEN': 'G', 'BLUE': 'B'}


class Native(NamedTuple):
    """Input of pre-trained weights.

    Attributes:
        label: Name of the weights in errors.
        bands: Bands in the order of the channels.
        units: Unit of each band before normalisation; None where it is not stated.
        shift: Value that is subtracted from each band.
        scale: Value that each band is divided by afterwards.
        sentinel2: Whether numbered bands are those of Sentinel-2.
        standardised: Whether ``shift`` and ``scale`` apply to images normalised by the statistics of the data.
        clip: Range of the values after normalisation; None for any.
    """

    label: str
    bands: tuple[str, ...]
    units: tuple[str | None, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    sentinel2: bool = False
    standardised: bool = False
    clip: tuple[float, float] | None = None


def canonical(band: str) -> str:
    """Return the name of a band without case, padding and prefix: ``B08`` and ``b8`` are ``B8``."""
    text = band.strip().upper().removeprefix('SR_')
    number = re.fullmatch(r'B0*(\d+)(A?)', text)
    return f'B{number[1]}{number[2]}' if number else _NAMES.get(text, text)


def match_bands(modality: Modality, native: Native) -> tuple[list[int], list[int], list[int]]:
    """Match the bands of a modality with those of weights, by number, polarisation or colour.

    Returns:
        Indices of the matched bands in the modality, those in the weights, and indices of the bands that the weights
        lack.

    Raises:
        ValueError: If no band matches, or two bands match the same one.
    """
    theirs = {canonical(band): index for index, band in enumerate(native.bands)}
    own, other, rest = [], [], []
    for index, band in enumerate(modality.bands):
        name = canonical(band)
        nm = modality.wavelengths[index] if modality.wavelengths else None
        found = theirs.get(name)
        if found is None:
            found = theirs.get(_colour(name, nm, native.sentinel2))
        if found is None:
            rest.append(index)
        else:
            own.append(index)
            other.append(found)
    if not own or len(set(other)) < len(other):
        raise ValueError(
            f'bands {list(modality.bands)} of {modality.name!r} do not match the bands {list(native.bands)} of '
            f'{native.label}: expected at least one of the same number, polarisation or colour, each once'
        )
    return own, other, rest


def _colour(name: str, nm: float | None, sentinel2: bool) -> str:
    """Return the number of a colour, or the colour of a number; an empty name if there is none."""
    if name in _COLOURS:
        return _COLOURS[name][0] if sentinel2 else ''
    for colour, (number, low, high) in _COLOURS.items():
        if name == number and (nm is None or low <= nm <= high):
            return colour
    return ''


class BandAdapter(nn.Module):
    """Conversion of images of a modality to the bands and units of pre-trained weights.

    Missing pixels get the mean of their band, or 0 after normalisation where :meth:`set_normalisation` was not called.

    Args:
        modality: Modality.
        native: Input of the weights.
        standardised: Whether to pass images normalised by the statistics of the data unchanged, instead of
            converting them to the unit of the weights.

    Raises:
        ValueError: If no band matches, or a unit cannot be converted.
    """

    known: Tensor
    rest: Tensor
    mean: Tensor
    std: Tensor
    factor: Tensor
    limit: Tensor
    shift: Tensor
    scale: Tensor
    fill: Tensor

    def __init__(self, modality: Modality, native: Native, standardised: bool = False) -> None:
        super().__init__()
        own, theirs, rest = match_bands(modality, native)
        self.theirs, self.standardised, self.count = theirs, standardised, len(modality.bands)
        self.log = not standardised and modality.unit == 'power'
        self.clip = native.clip
        self.converts = not standardised or native.standardised
        for name, indices in (('known', own), ('rest', rest)):
            self.register_buffer(name, torch.tensor(indices, dtype=torch.int64), persistent=False)
        factor, limit = zip(
            *(self._conversion(modality, native, i, j) for i, j in zip(own, theirs, strict=True)), strict=False
        )
        self.limited = min(limit) < torch.inf
        fixed = {
            'factor': factor,
            'limit': limit,
            'shift': [native.shift[j] if self.converts else 0.0 for j in theirs],
            'scale': [native.scale[j] if self.converts else 1.0 for j in theirs],
        }
        for name, values in fixed.items():
            self.register_buffer(name, _per_band(values), persistent=False)
        for name, value in (('mean', 0.0), ('std', 1.0), ('fill', 0.0)):
            self.register_buffer(name, _per_band([value] * len(own)))
        if standardised:
            self.fill.copy_(self._convert(torch.zeros_like(self.mean)))

    def _conversion(self, modality: Modality, native: Native, own: int, theirs: int) -> tuple[float, float]:
        if self.standardised:
            return 1.0, torch.inf
        unit, wanted = modality.unit, native.units[theirs]
        found = CONVERSIONS.get((unit, wanted or ''))
        if wanted == '8 bit' and re.fullmatch(r'B\d+A?', canonical(modality.bands[own])):
            found = None
        if found is None:
            units = dict(zip(native.bands, native.units, strict=True))
            raise ValueError(
                f'unit {unit!r} of the bands {list(modality.bands)} of {modality.name!r} cannot be converted to that '
                f'of {native.label}, which takes {units}: expected the unit of the modality, or units: standardised '
                'to pass images as normalised by the statistics of the data'
            )
        return found

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the statistics that images are normalised with before they reach the encoder."""
        if self.standardised:
            return
        for name, values in (('mean', mean), ('std', std)):
            buffer = getattr(self, name)
            all_bands = torch.tensor(list(values), dtype=torch.float32, device=buffer.device)
            buffer.copy_(all_bands[self.known].view(-1, 1, 1))
        self.std[self.std == 0] = 1  # a constant band is normalised to 0
        self.fill.copy_(self._convert(torch.zeros_like(self.mean)))

    def _convert(self, x: Tensor) -> Tensor:
        """Convert normalised values of the matched bands ``(..., K, H, W)``."""
        if not self.converts:
            return x
        wide = torch.promote_types(x.dtype, torch.float32)
        names = 'mean', 'std', 'factor', 'limit', 'shift', 'scale'
        mean, std, factor, limit, shift, scale = (getattr(self, name).to(wide) for name in names)
        raw = x.to(wide)
        if self.log:
            raw = 10 * (raw * std + mean).clamp(min=1e-10).log10()
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        converted = torch.addcmul((mean * factor - shift) / scale, raw, std * factor / scale)
        if self.limited:
            converted = converted.minimum((limit - shift) / scale)
        return (converted if self.clip is None else converted.clamp(*self.clip)).to(x.dtype)

    def forward(self, image: Float[Tensor, 's c h w']) -> Float[Tensor, 's d h w']:
        """Return the matched bands, the other bands and, if some are missing, the flags of missing bands.

        Args:
            image: Images; NaN is nodata.
        """
        if all_observed(image):
            return torch.cat([self._convert(image[:, self.known]), image[:, self.rest]], 1)
        missing = ~observed(image)
        image = image.masked_fill(missing, 0)
        converted = self._convert(image[:, self.known])
        parts = [torch.where(missing[:, self.known], self.fill.to(image.dtype), converted), image[:, self.rest]]
        parts.append((missing & ~missing.all(1, keepdim=True)).to(image.dtype))
        return torch.cat(parts, 1)


def _per_band(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32).view(-1, 1, 1)


class AdaptedConv2d(nn.Conv2d):
    """First convolution of a pre-trained backbone, for the output of a ``BandAdapter``.

    Columns of bands that the modality lacks are removed. Bands that the weights lack, and the flags of missing bands,
    have separate convolutions, initialised to zero.
    """

    extra: nn.Parameter | None
    missing: nn.Parameter

    def __init__(self, conv: nn.Conv2d, adapter: BandAdapter) -> None:
        sizes: Any = len(adapter.theirs), conv.out_channels
        names = 'kernel_size', 'stride', 'padding', 'dilation', 'padding_mode'
        rest: Any = {'bias': conv.bias is not None, 'device': 'meta'} | {name: getattr(conv, name) for name in names}
        super().__init__(*sizes, **rest)
        self.weight = nn.Parameter(conv.weight.detach()[:, adapter.theirs].clone())
        self.bias = conv.bias
        shape = (conv.out_channels, len(adapter.rest), *self.weight.shape[2:])
        self.register_parameter('extra', nn.Parameter(torch.zeros(shape)) if shape[1] else None)
        self.missing = nn.Parameter(torch.zeros(shape[0], adapter.count, *shape[2:]))

    def forward(self, x: Float[Tensor, 's d h w']) -> Float[Tensor, 's e i j']:
        """Convolve the output of the adapter."""
        known, rest = self.weight.shape[1], 0 if self.extra is None else self.extra.shape[1]
        out = self._conv_forward(x[:, :known], self.weight, self.bias)
        if self.extra is not None:
            out = out + self._conv_forward(x[:, known : known + rest], self.extra, None)
        if x.shape[1] > known + rest:
            out = out + self._conv_forward(x[:, known + rest :], self.missing, None)
        return out
