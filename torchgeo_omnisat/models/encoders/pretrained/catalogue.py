# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Catalogue of pre-trained weights by sensor."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from torchgeo.models import OlmoEarthV1_Weights, Presto_Weights, presto
from torchvision.models._api import WeightsEnum

from ....utils.atomic import cache_folder
from .images import copernicusfm, croma, deo, dofa, panopticon
from .images.backbone import TORCHVISION, make_body
from .images.base import feature_info
from .images.foundation import Family
from .series.olmoearth import LICENCE as OLMOEARTH_LICENCE
from .series.olmoearth import PARAMETERS as OLMOEARTH_PARAMETERS
from .series.presto import LICENCE as PRESTO_LICENCE
from .series.tessera import BANDS, ENTRIES, LICENCE, UNITS, TesseraEncoder
from .sources import entry_source, licence_of

#: Tags of timm that the best published results on aerial and SPOT images use; timm has thousands more.
TAGS = (
    'convnext_tiny.dinov3_lvd1689m',
    'vit_small_patch16_dinov3.lvd1689m',
    'vit_large_patch16_dinov3.sat493m',
    'vit_small_patch14_dinov2.lvd142m',
    'swin_tiny_patch4_window7_224.ms_in1k',
    'resnet18.a1_in1k',
    'resnet50.a1_in1k',
)
#: Sensors of the catalogue.
SENSORS = ('s2', 's1', 'rgb', 'landsat')
#: Beginnings of licences that are not restricted.
_OPEN = ('apache', 'mit', 'bsd', 'cc-by-4', 'cc0', 'odc-by', 'see ')
#: Foundation models of single images.
FAMILIES: tuple[Family, ...] = (croma.FAMILY, dofa.FAMILY, panopticon.FAMILY, copernicusfm.FAMILY, deo.FAMILY)


class Row(NamedTuple):
    """Pre-trained weights of an encoder.

    Attributes:
        sensor: Sensor, one of :data:`SENSORS`.
        name: Name of the encoder.
        weights: Name of the weights, or how to load them.
        bands: Bands.
        parameters: Number of parameters.
        strides: Strides of the feature maps.
        licence: Licence, or where it is stated.
        on_disk: Whether the file is in the cache.
    """

    sensor: str
    name: str
    weights: str
    bands: str
    parameters: int
    strides: str
    licence: str
    on_disk: bool


def catalogue(sensor: str | None = None) -> list[Row]:
    """Return the pre-trained weights that ``encoders`` of :class:`.OmniSat` accepts.

    Args:
        sensor: One of :data:`SENSORS`; None for all.
    """
    rows = (*_series(), *_foundation(sensor), *_entries(sensor), *_timm(sensor))
    return sorted(row for row in rows if sensor in (None, row.sensor))


def _entries(sensor: str | None) -> Iterator[Row]:
    from torchgeo.models import get_model_weights, list_models

    for name in list_models():
        if name not in TORCHVISION and not timm.is_model(name):
            continue
        try:
            entries = get_model_weights(name)
        except KeyError:
            continue
        for entry in entries:
            stated = 'in_chans' in entry.meta and ('bands' in entry.meta or entry.meta['in_chans'] == 3)
            if stated and sensor in (None, _sensor(entry.name)):
                yield _entry(name, entry)


def _entry(name: str, entry: WeightsEnum) -> Row:
    source = entry_source(name, entry)
    bands = source.native.bands
    parameters, strides = _size(name, len(bands), source.image_size)
    text = ' '.join(bands) if len(bands) < 4 else f'{len(bands)}: {bands[0]} .. {bands[-1]}'
    licence = _marked(source.licence)
    return Row(_sensor(entry.name), name, entry.name, text, parameters, strides, licence, _on_disk(entry))


def _on_disk(entry: WeightsEnum) -> bool:
    return (cache_folder() / 'checkpoints' / entry.url.rpartition('/')[2]).is_file()


def _marked(licence: str | None) -> str:
    text = licence or 'not stated'
    return text if text.lower().startswith(_OPEN) else f'{text} *'


def _foundation(sensor: str | None) -> Iterator[Row]:
    for family in FAMILIES:
        for size, entry in family.entries.items():
            for own, bands in family.bands.items() if entry is not None else ():
                if entry is not None and sensor in (None, own):
                    count, stride = _family_size(family.name, size, own)
                    licence = _marked(licence_of(entry))
                    yield Row(own, family.name, str(entry), bands, count, stride, licence, _on_disk(entry))


@cache
def _family_size(name: str, size: str, sensor: str) -> tuple[int, str]:
    """Return the number of parameters and the stride of a foundation model, without memory for its weights."""
    family = next(family for family in FAMILIES if family.name == name)
    with torch.device('meta'):
        body = family.body(size, sensor)
    return _parameters(body), _stride(body)


def _sensor(name: str) -> str:
    known = {'SENTINEL2': 's2', 'SENTINEL1': 's1', 'LANDSAT': 'landsat'}
    return next((sensor for start, sensor in known.items() if name.startswith(start)), 'rgb')


def _timm(sensor: str | None) -> Iterator[Row]:
    for tag in TAGS if sensor in (None, 'rgb') else ():
        config: Any = timm.get_pretrained_cfg(tag)
        if config is None:
            continue  # of another version of timm
        parameters, strides = _size(tag, 3)
        hub = config.hf_hub_id and try_to_load_from_cache(config.hf_hub_id, 'model.safetensors')
        licence = _marked(config.license)
        yield Row('rgb', tag, 'pretrained: true', 'R G B', parameters, strides, licence, isinstance(hub, str))


def _series() -> Iterator[Row]:
    rows: list[tuple[str, str, WeightsEnum, str, int, str, str]] = []
    for sensor, bands in (('s2', '10: B2 .. B12'), ('s1', 'VV VH')):
        rows.append((sensor, 'presto', Presto_Weights.PRESTO, bands, _presto_size(), '1', PRESTO_LICENCE))
        for entry in OlmoEarthV1_Weights.__members__.values():
            named = bands if sensor == 's1' else '12: B1 .. B12'
            rows.append((sensor, 'olmoearth', entry, named, OLMOEARTH_PARAMETERS[entry.name], '4', OLMOEARTH_LICENCE))
    for sensor, entry in ENTRIES.items():
        with torch.device('meta'):
            encoder = TesseraEncoder(BANDS[sensor], UNITS[sensor][0])
        named = ' '.join(BANDS[sensor]) if sensor == 's1' else '10: B4 .. B12'
        rows.append((sensor, 'tessera', entry, named, _parameters(encoder), '1', LICENCE))
    for sensor, name, entry, bands, count, stride, licence in rows:
        yield Row(sensor, name, entry.name, bands, count, stride, _marked(licence), _on_disk(entry))


def _presto_size() -> int:
    with torch.device('meta'):
        return _parameters(presto().encoder)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@cache
def _size(name: str, count: int, image_size: int | None = None) -> tuple[int, str]:
    """Return the number of parameters and the strides of a backbone, without memory for its weights."""
    with torch.device('meta'):
        body = make_body(name, count, image_size)
    return _parameters(body), _stride(body)


def _stride(body: nn.Module) -> str:
    strides = sorted({entry['reduction'] for entry in feature_info(body)})
    return str(strides[0]) if len(strides) == 1 else f'{strides[0]}..{strides[-1]}'
