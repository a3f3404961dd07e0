# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""OlmoEarth encoder of Sentinel-1 and Sentinel-2 time series."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchgeo.models import OlmoEarthV1_Weights, olmoearth_v1

from .....modality import Modality
from .....utils.tensors.devices import constant
from ...registry import Origin, register_encoder
from .bands import check_units, complete_groups
from .composites import OPTICAL, RADAR, RawImages, monthly_composites
from .weights import build_pretrained, load_strictly, read_weights

#: Band sets by sensor, in the order of the channels (``Modality.band_sets`` of ``olmoearth_pretrain_minimal``).
BAND_SETS = {
    'sentinel2_l2a': (('B2', 'B3', 'B4', 'B8'), ('B5', 'B6', 'B7', 'B8A', 'B11', 'B12'), ('B1', 'B9')),
    'sentinel1': (('VV', 'VH'),),
}
#: The same by sensor and index of the set.
_SETS = {(sensor, number): names for sensor, sets in BAND_SETS.items() for number, names in enumerate(sets)}
#: Maximum number of months.
MONTHS = 12
#: Licence of the weights, which forbids some uses.
LICENCE = 'OlmoEarth Artifact License'
#: Number of parameters of the encoder by entry, which the catalogue states without the package (its README).
PARAMETERS = {'NANO': 1_400_000, 'TINY': 6_200_000, 'BASE': 89_000_000, 'LARGE': 308_000_000}
#: Values of the mask of a token: it is encoded, or missing.
_SHOWN, _MISSING = 0, 3
_PACKAGE = 'olmoearth_pretrain_minimal'


class OlmoEarthEncoder(RawImages):
    """OlmoEarth v1, a pre-trained transformer of time series of Sentinel-1, Sentinel-2 or both.

    Herzog et al., "OlmoEarth: Stable Latent Image Modeling for Multimodal Earth Observation" (arXiv 2511.13655). The
    model is that of the package ``olmoearth-pretrain-minimal``: ``pip install 'torchgeo_omnisat[olmoearth]'``.

    OlmoEarth takes up to 12 monthly composites, which begin in the month of the first observed date of the sample.
    Several dates of a month are combined per pixel: the median of optical bands, the mean of backscatter in linear
    power. A token stands for a patch of 4 pixels, a month and a band set. It is masked unless all bands of the set were
    observed in a pixel of the patch; other pixels of the patch are filled with the mean of its observed pixels. The
    output is one map of patches, the mean of the tokens of each.

    The model was trained on small images, and its cost grows with the square of the area, so images are split into
    windows. Without gradients it ignores masks within a batch, so only windows with the same number of tokens are
    computed together.

    Args:
        bands: Bands of the modality in any order. Incomplete band sets and other bands are not used, with a warning.
        unit: Unit of the raw images, as in :class:`.Modality`, or one for each band.
        gsd: GSD in metres.
        mean: Mean of each band with which images were normalised; None for images in raw units.
        std: Standard deviation, in the same form.
        weights: Entry of ``torchgeo.models.OlmoEarthV1_Weights`` or its name, a file, or a state dict. None for random
            weights, for example to load a checkpoint.
        size: Size of the model: ``'nano'``, ``'tiny'``, ``'base'`` or ``'large'``. None for that of an entry, or
            ``'nano'``.
        freeze: Whether the weights are excluded from training.
        patch: Side of a patch in pixels, 1 to 8.
        window: Side of a window in pixels, a multiple of *patch*.
        chunk: Maximum number of windows that are computed at once.

    Raises:
        ImportError: If ``olmoearth-pretrain-minimal`` is not installed.
        ValueError: If no band set is complete, a unit cannot be converted, or a size or the weights do not fit.
    """

    native_mean: Tensor
    native_std: Tensor

    def __init__(
        self,
        bands: Sequence[str],
        unit: str | Sequence[str],
        gsd: float = 10.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        weights: OlmoEarthV1_Weights | str | Path | Mapping[str, Tensor] | None = None,
        size: str | None = None,
        freeze: bool = True,
        patch: int = 4,
        window: int = 32,
        chunk: int = 4,
    ) -> None:
        sets = complete_groups('OlmoEarth', bands, _SETS)
        if not 1 <= patch <= 8 or window < patch or window % patch or chunk < 1:
            raise ValueError(
                f'patch is {patch}, window {window} and chunk {chunk}, expected a patch of 1 to 8 pixels, a window of '
                'some patches, and at least one window'
            )
        super().__init__(bands, mean, std)
        self.gsd, self.patch, self.window, self.chunk = gsd, patch, window, chunk
        #: Indices of the bands of each complete band set, by sensor and index of the set.
        self.sets = sets
        self.used = [band for places in sets.values() for band in places]
        known = {
            index: RADAR if sensor == 'sentinel1' else OPTICAL
            for (sensor, _), places in sets.items()
            for index in places
        }
        self.units = check_units('OlmoEarth', bands, unit, known)
        package = _import(_PACKAGE)
        loaded = None if weights is None else read_weights(weights, OlmoEarthV1_Weights, LICENCE)
        size = size or _size_of(weights) or 'nano'
        self.encoder: Any
        self.encoder = olmoearth_v1(None, model_size=size, drop_path=0.0).encoder
        if loaded is not None:
            self.origin = _load(self.encoder, *loaded)
        numbers = package.Normalizer().norm_config
        names = [(sensor, name) for sensor, number in sets for name in _named(sensor, number)]
        for kind in ('mean', 'std'):
            values = [numbers[sensor][name][kind] for sensor, name in names]
            self.register_buffer(f'native_{kind}', torch.tensor(values).float().view(-1, 1, 1), persistent=False)
        if freeze:
            self.freeze_modules('encoder')
        self.channels, self.strides = (int(self.encoder.embedding_size),), (patch,)

    def forward(
        self, image: Float[Tensor, 'b t c h w'], dates: Int[Tensor, 'b t'], valid: Bool[Tensor, 'b t']
    ) -> list[Tensor]:
        """Encode time series; the arguments are those of ``PixelEncoder``.

        Returns:
            One map of shape ``(B, D, H / patch, W / patch)``, rounded up, zero where no band set was observed.

        Raises:
            ValueError: If a series spans more than 12 months.
        """
        height, width = image.shape[-2:]
        with torch.autocast(image.device.type, enabled=False):
            x, first = self._composites(image, dates, valid)
            x = F.pad(x, (0, -width % self.window, 0, -height % self.window), value=torch.nan)
            rows = x.shape[-2] // self.window
            tiles = rearrange(x, 'b m c (i h) (j w) -> (b i j) m c h w', h=self.window, w=self.window)
            months = first.repeat_interleave(len(tiles) // len(image))
            encoded = self._encode(tiles, months)
        maps = rearrange(encoded, '(b i j) d h w -> b d (i h) (j w)', b=len(image), i=rows)
        return [maps[..., : -(-height // self.patch), : -(-width // self.patch)].to(image.dtype)]

    def _composites(
        self, image: Tensor, dates: Tensor, valid: Tensor
    ) -> tuple[Float[Tensor, 'b m c h w'], Int[Tensor, ' b']]:
        """Return normalised monthly composites of the used bands, and the first month."""
        units = [self.units[band] for band in self.used]
        x, first = monthly_composites(self, image, dates, valid, self.used, units, MONTHS, 'OlmoEarth')
        factor = constant([1e4 if unit in OPTICAL else 1.0 for unit in units], x.device).view(-1, 1, 1)
        # Normalizer: mean - 2 std is 0, and mean + 2 std is 1.
        return (x * factor - self.native_mean + 2 * self.native_std) / (4 * self.native_std), first

    def _encode(self, x: Float[Tensor, 'n m c h w'], first: Int[Tensor, ' n']) -> Float[Tensor, 'n d i j']:
        known = torch.stack([part.isfinite().all(2) for part in x.split(self._counts(), 2)], 2)
        shown = F.max_pool2d(known.flatten(0, 2).float(), self.patch).unflatten(0, known.shape[:3]) > 0
        x = self._filled(x, known)
        tokens = shown.flatten(1).sum(1)
        out = x.new_zeros(len(x), self.channels[0], *shown.shape[-2:])
        order, parts = [], []
        trained = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))
        with torch.set_grad_enabled(trained):
            for number in tokens[tokens > 0].unique():
                for index in (tokens == number).nonzero().squeeze(1).split(self.chunk):
                    order.append(index)
                    parts.append(self._tokens(x[index], shown[index], first[index]))
        return out.index_copy(0, torch.cat(order), torch.cat(parts).to(out.dtype)) if order else out

    def _counts(self) -> list[int]:
        return [len(places) for places in self.sets.values()]

    def _filled(self, x: Tensor, known: Tensor) -> Tensor:
        """Fill pixels without a complete band set with the mean of the observed pixels of the patch."""
        flags = known.repeat_interleave(constant(self._counts(), x.device), dim=2)
        values = x.masked_fill(~flags, 0)
        total, weight = (F.avg_pool2d(y.flatten(0, 1).to(x.dtype), self.patch) for y in (values, flags))
        mean = (total / weight.clamp(min=1e-6)).unflatten(0, x.shape[:2])
        blocks = repeat(mean, 'n m c i j -> n m c (i p) (j q)', p=self.patch, q=self.patch)
        return torch.where(flags, values, blocks)

    def _tokens(self, x: Tensor, shown: Tensor, first: Tensor) -> Float[Tensor, 'n d i j']:
        """Return the mean of the tokens of every patch, zero for a patch without one."""
        months = first.unsqueeze(1) + torch.arange(x.shape[1], device=x.device)
        stamps = torch.stack([torch.full_like(months, 15), months % 12, 1970 + months // 12], -1)
        channels = dict(zip(self.sets, x.split(self._counts(), 2), strict=True))
        flags = dict(zip(self.sets, shown.unbind(2), strict=True))
        fields: dict[str, Tensor] = {'timestamps': stamps}
        for sensor in dict.fromkeys(sensor for sensor, _ in self.sets):
            images, masks = [], []
            for number, names in enumerate(BAND_SETS[sensor]):
                key = sensor, number
                absent = x.new_zeros(*x.shape[:2], len(names), *x.shape[-2:])
                visible = flags.get(key, torch.zeros_like(shown[:, :, 0]))
                images.append(channels.get(key, absent))
                mask = torch.where(visible, _SHOWN, _MISSING)
                masks.append(repeat(mask, 'n m i j -> n m (i p) (j q)', p=self.patch, q=self.patch))
            fields[sensor] = rearrange(torch.cat(images, 2), 'n m c h w -> n h w m c')
            fields[f'{sensor}_mask'] = rearrange(torch.stack(masks, 2), 'n m s h w -> n h w m s')
        sample = _import(f'{_PACKAGE}.olmoearth_pretrain_v1.utils.datatypes').MaskedOlmoEarthSample(**fields)
        encoded = self.encoder(sample, patch_size=self.patch, input_res=self.gsd)['tokens_and_masks']
        total = x.new_zeros(len(x), *shown.shape[-2:], self.channels[0])
        count = x.new_zeros(len(x), *shown.shape[-2:], 1)
        for sensor in dict.fromkeys(sensor for sensor, _ in self.sets):
            tokens = getattr(encoded, sensor)
            weight = (getattr(encoded, f'{sensor}_mask') == _SHOWN).unsqueeze(-1).to(tokens.dtype)
            total, count = total + (tokens * weight).sum((3, 4)), count + weight.sum((3, 4))
        return rearrange(total / count.clamp(min=1), 'n i j d -> n d i j')


@register_encoder('olmoearth', temporal=True)
def olmoearth_encoder(
    modality: Modality,
    weights: OlmoEarthV1_Weights | str | None = None,
    pretrained: bool | None = None,
    load: bool = True,
    **kwargs: Any,
) -> OlmoEarthEncoder:
    """Build the OlmoEarth encoder of a modality; see ``build_pretrained``.

    Other arguments are those of ``OlmoEarthEncoder``. Without *mean* and *std*, images are in raw units, unless
    ``set_statistics`` is called.
    """
    if pretrained or weights is not None:
        kwargs.setdefault('size', _size_of(weights or OlmoEarthV1_Weights.NANO))
    return build_pretrained(
        lambda chosen: OlmoEarthEncoder(modality.bands, modality.unit, modality.gsd, weights=chosen, **kwargs),
        *(modality.name, 'olmoearth', weights, pretrained, load, OlmoEarthV1_Weights.NANO, LICENCE),
    )


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            "the encoder 'olmoearth' needs olmoearth-pretrain-minimal: pip install 'torchgeo_omnisat[olmoearth]'"
        ) from error


def _size_of(weights: Any) -> str | None:
    if not isinstance(weights, OlmoEarthV1_Weights):
        entries = OlmoEarthV1_Weights.__members__.values()
        known = {key: entry for entry in entries for key in (entry.name, str(entry))}
        weights = known.get(weights) if isinstance(weights, str) else None
    return None if weights is None else str(weights.meta['model_size'])


def _named(sensor: str, number: int) -> list[str]:
    names = BAND_SETS[sensor][number]
    return [name.lower() if sensor == 'sentinel1' else f'B{name[1:].zfill(2)}' for name in names]


def _load(encoder: Any, state: Mapping[str, Tensor], origin: Origin) -> Origin:
    plain = {key.removeprefix('model.'): value for key, value in state.items()}
    part = {key.removeprefix('encoder.'): value for key, value in plain.items() if key.startswith('encoder.')} or plain
    return load_strictly(encoder, part, origin, 'this size of OlmoEarth')
