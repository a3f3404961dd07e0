# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Backbones as models of torchgeo-bench, which scores frozen embeddings on GEO-Bench and other datasets.

torchgeo-bench (https://github.com/torchgeo/torchgeo-bench, MIT) need not be installed to import this module.
"""

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .datasets.common.series import parse_day
from .modality import Modality, as_modalities
from .tasks.backbone import load_weights, make_backbone
from .tasks.checkpoints import read_checkpoint
from .transforms import Normalize
from .utils.checks import check_choice

#: Modality of each sensor of torchgeo-bench. Sensors that are not listed have the name of their modality.
SENSORS = {'s1_asc': 's1a', 's1_desc': 's1d', 'sar': 's1', 'sentinel2': 's2', 'sentinel-2': 's2', 'sentinel1': 's1'}
#: Other names of bands; suffixes of orbits are left out before.
BANDS = {'red': 'r', 'green': 'g', 'blue': 'b', 'vv_vh': 'vv-vh', 'vv/vh': 'vv-vh'}


class _Stand(nn.Module):
    """Base class if torchgeo-bench is not installed: the part of its interface that is used here."""

    def __init__(self, bands: Sequence[Any], normalization: str = 'identity', **_: object) -> None:
        super().__init__()
        self.bands, self.num_channels = list(bands), len(bands)

    @abstractmethod
    def _forward_patch_features(self, images: Tensor) -> Tensor: ...

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings ``(B, K)`` of images ``(B, C, H, W)``."""
        return self._forward_patch_features(images)


def _base() -> type[nn.Module]:
    try:
        found: type[nn.Module] = import_module('torchgeo_bench.models.interface').BenchModel
    except ImportError:
        return _Stand
    return found


class OmniSatBenchModel(_base()):  # type: ignore[misc]
    """Frozen backbone as a ``BenchModel`` of torchgeo-bench.

    torchgeo-bench stacks the bands of all sensors of a dataset in one image of a single date. They are separated by
    sensor, resampled to the GSD of each modality, and normalised by the statistics of each modality. Sensors that the
    backbone does not know are left out with a warning; its other modalities are absent, and its other bands NaN.

    The embedding is the mean of the fused tokens. For segmentation, the probe reads the map of tokens ``(B, D, h, w)``
    from the layer ``dense``.

    Args:
        bands: Bands of the dataset in order, each with ``sensor``, ``name``, ``source_name``, ``mean`` and ``std``.
        weights: Checkpoint of a training, or folder that ``export`` wrote.
        gsd: Size of a pixel of the images in metres.
        sensors: Modality of a sensor, in addition to the known ones, such as ``{'aerial': 'spot'}``.
        statistics: ``'model'`` normalises by the mean and standard deviation that the backbone was trained with,
            ``'dataset'`` by those of *bands*.
        date: Date of the images of time series, as torchgeo-bench has none.
        **kwargs: Arguments that torchgeo-bench passes to every model, without effect.

    Raises:
        ValueError: If no band is known to the backbone, or the weights have no statistics.
    """

    #: torchgeo-bench must not normalise the images before.
    handles_own_normalization = True

    def __init__(
        self,
        bands: Sequence[Any],
        *,
        weights: str,
        gsd: float = 10.0,
        sensors: Mapping[str, str] | None = None,
        statistics: str = 'model',
        date: str = '2019-07-01',
        **kwargs: object,
    ) -> None:
        super().__init__(bands=list(bands), normalization='identity')
        check_choice(statistics=(statistics, ('model', 'dataset')))
        _, config = read_checkpoint(weights)
        if not config.get('modalities'):
            raise ValueError(f'{weights} has no modalities, expected a checkpoint of a training or a folder of export')
        every = as_modalities(config['modalities'])
        label_gsd, arguments = config.get('label_gsd'), config.get('backbone_args') or {}
        self.backbone = make_backbone(config['backbone'], every, config['patch_size'], label_gsd, arguments)
        load_weights(self.backbone, weights, every)
        #: Index of the channel of each band of each modality; -1 if the dataset has none.
        self.channels = _match(self.bands, every, SENSORS | dict(sensors or {}))
        self.modalities = {name: every[name] for name in self.channels}
        self.normalize = Normalize(self.modalities, *self._statistics(config, statistics, weights))
        self.gsd = gsd
        self.day = parse_day(date, 'date')
        self.dense = nn.Identity()
        self.requires_grad_(False).eval()

    @property
    def embed_dim(self) -> int:
        """Number of values of an embedding."""
        return int(self.backbone.embed_dim)

    def train(self, mode: bool = True) -> 'OmniSatBenchModel':
        """Stay in evaluation mode, since the backbone is frozen."""
        super().train(False)
        return self

    def normalize_inputs(self, images: Tensor) -> Tensor:
        """Return the images as they are; each modality is normalised later."""
        return images

    def _statistics(self, config: Mapping[str, Any], which: str, weights: str) -> tuple[dict[str, Any], dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for kind, unknown in (('mean', 0.0), ('std', 1.0)):
            known = config.get(kind) or {}
            if which == 'model' and (lacking := [name for name in self.modalities if name not in known]):
                raise ValueError(
                    f"{weights} has no {kind} of {lacking[0]!r}, expected weights of a training; statistics='dataset' "
                    'uses those of the dataset'
                )
            ours = {
                name: [unknown if place < 0 else float(getattr(self.bands[place], kind)) for place in places]
                for name, places in self.channels.items()
            }
            found.append({name: known[name] for name in self.modalities} if which == 'model' else ours)
        return found[0], found[1]

    def batch(self, images: Tensor) -> dict[str, Tensor]:
        """Return the normalised batch of images ``(B, C, H, W)`` in raw units."""
        coarsest = max(modality.gsd for modality in self.modalities.values())
        side = [max(1, int(length * self.gsd / coarsest + 1e-6)) * coarsest for length in images.shape[-2:]]
        height, width = (min(length, round(s / self.gsd)) for length, s in zip(images.shape[-2:], side, strict=True))
        top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
        images = images[..., top : top + height, left : left + width].float()
        batch: dict[str, Tensor] = {}
        for name, modality in self.modalities.items():
            size = (max(1, round(side[0] / modality.gsd)), max(1, round(side[1] / modality.gsd)))
            places = torch.tensor(self.channels[name], device=images.device)
            image = F.adaptive_avg_pool2d(images[:, places.clamp_min(0)], size)
            image[:, places < 0] = torch.nan
            count = (len(images), 1)
            batch[modality.image_key] = image.unsqueeze(1) if modality.temporal else image
            batch[modality.dates_key] = torch.full(count, self.day if modality.temporal else 0, device=images.device)
            batch[modality.valid_key] = torch.ones(count, dtype=torch.bool, device=images.device)
        return dict(self.normalize(batch))

    @torch.no_grad()
    def _forward_patch_features(self, images: Tensor) -> Tensor:
        out = self.backbone(self.batch(images))
        dense: Tensor = self.dense(rearrange(out.fused, 'b (h w) d -> b d h w', h=out.grid[0]))
        return dense.mean((2, 3))


def _match(
    bands: Sequence[Any], modalities: Mapping[str, Modality], sensors: Mapping[str, str]
) -> dict[str, list[int]]:
    """Return the index of the channel of each band of the modalities that have one; -1 for other bands."""
    found = {name: [-1] * len(modality.bands) for name, modality in modalities.items()}
    left = []
    for place, band in enumerate(bands):
        sensor = str(band.sensor).lower()
        name = sensors.get(sensor, sensor)
        ours = [_plain(known) for known in modalities[name].bands] if name in modalities else []
        theirs = [_plain(band.source_name), _plain(band.name)]
        match = next((ours.index(one) for one in theirs if one in ours), None)
        if match is None:
            left.append(f'{band.sensor} {band.name}')
        else:
            found[name][match] = place
    kept = {name: places for name, places in found.items() if max(places) >= 0}
    if not kept:
        raise ValueError(f'bands are {left}, expected some of {[(m.name, m.bands) for m in modalities.values()]}')
    if left:
        warnings.warn(f'{left} are not used, because the backbone has no such bands: {list(modalities)}', stacklevel=3)
    return kept


def _plain(name: str) -> str:
    name = str(name).lower().removesuffix('_asc').removesuffix('_desc')
    return BANDS.get(name, name)
