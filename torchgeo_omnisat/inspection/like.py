# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Configuration that predicts a map of other rasters with a trained model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.reading import load_config
from .sensors import Sensor

#: Arguments of the datamodule that the model depends on.
_KEPT = ('labels', 'num_classes', 'ignore_index', 'colors', 'label_gsd', 'patch_size', 'tile_size', 'overlap')
#: Settings of a sensor that are not those of its files.
_FACTS = ('gsd', 'kind', 'unit', 'wavelengths', 'bands')
#: Kind of the modality by value of ``kind`` that selects a reader, which belongs to the files.
_READERS = {'sentinel1': 'radar', 'sentinel2': 'optical'}


def read_trained(path: Path) -> dict[str, Any]:
    """Return a configuration for `fit`.

    Raises:
        ValueError: If the file is no such configuration of a MultimodalGeoDataModule.
    """
    config = load_config(path.read_text(encoding='utf-8'), str(path))
    data = config.get('data') if isinstance(config, dict) else None
    if not isinstance(data, dict) or 'rasters' not in (data.get('init_args') or {}):
        raise ValueError(f'like is {path}, expected a configuration with data.init_args.rasters, as `init` writes it')
    assert isinstance(config, dict)
    return config


def prediction_data(
    root: Path, sensors: Sequence[Sensor], trained: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of the datamodule for rasters like those of a trained model, and notes.

    Sensors are found by name, else by kind, whether they are time series, and the number of bands, if that of the model
    is set. Those with a reader of their own, such as that of products of Sentinel-2, keep it.

    Raises:
        ValueError: If no sensor of the model is found.
    """
    given = trained['data']['init_args']
    wanted = {name: given['rasters'][name] for name in given.get('modalities') or given['rasters']}
    rasters, notes, rest = dict[str, Any](), list[str](), list(sensors)
    for by_name in (True, False):
        for name, settings in wanted.items():
            matches = [sensor for sensor in rest if (sensor.name == name if by_name else _is_alike(sensor, settings))]
            if name in rasters or not matches:
                continue
            sensor = matches[0]
            rest.remove(sensor)
            facts = {key: settings[key] for key in _FACTS if key in settings}
            for key, own, theirs in (
                ('kind', _kind(sensor.settings), _kind(settings)),
                ('unit', sensor.settings.get('unit'), settings.get('unit')),
            ):
                if None not in (own, theirs) and own != theirs:
                    notes.append(f'{name}: {key} seems to be {own} in {sensor.files[0]}, but the model has {theirs}')
            if sensor.settings.get('kind') in _READERS:  # which sets these facts
                facts = {key: value for key, value in facts.items() if key not in ('kind', 'unit', 'wavelengths')}
            elif facts.get('kind') in _READERS:
                facts['kind'] = _READERS[facts['kind']]
            rasters[name] = {**sensor.settings, **facts}
    if not rasters:
        found = [sensor.name for sensor in sensors]
        raise ValueError(f'{root} has the sensors {found}, expected some of {list(wanted)}, as the model')
    missing = [name for name in wanted if name not in rasters]
    if missing:
        notes.append(f'{", ".join(missing)}: no files were found; the map is predicted without')
    if rest:
        notes.append(f'not used, because the model has no such sensor: {", ".join(sensor.name for sensor in rest)}')
    labels = given.get('labels') or _names(given.get('mask'))
    kept = {key: given[key] for key in _KEPT if given.get(key) is not None}
    if labels:
        kept['labels'] = labels
    ordered = {name: rasters[name] for name in wanted if name in rasters}
    return {'root': str(root), 'rasters': ordered, 'mask': None, **kept}, notes


def _is_alike(sensor: Sensor, settings: Mapping[str, Any]) -> bool:
    """Return whether files without the name of a sensor of the model may be of that sensor."""
    kind, bands = _kind(sensor.settings), settings.get('bands') or settings.get('all_bands')
    series = [each.get('temporal', True) for each in (sensor.settings, settings)]
    same = kind is not None and kind == _kind(settings) and series[0] == series[1]
    return same and (not bands or sensor.modality is None or len(bands) == len(sensor.modality.bands))


def _kind(settings: Mapping[str, Any]) -> str | None:
    kind: str | None = settings.get('kind')
    return _READERS.get(kind or '', kind)


def _names(mask: Mapping[str, Any] | None) -> list[str]:
    classes = (mask or {}).get('classes') or {}
    other = (mask or {}).get('other')
    return list(dict.fromkeys([name for name in classes.values() if name is not None] + [other] * (other is not None)))
