# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Datasets on which results are reproduced: datamodule, sensors, splits, metrics, protocol and licence."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import datamodules
from ..datamodules import MultimodalDataModule
from ..datasets.common.splits import read_splits, split_files

#: Modalities by sensor.
Sensors = Mapping[str, tuple[str, ...]]

_PERCENT: Mapping[str, float] = {'mean_iou': 100.0, 'overall_accuracy': 100.0}
_TITLES = {
    'mean_iou': 'mean IoU (%)',
    'overall_accuracy': 'overall accuracy (%)',
    'weighted_f1': 'weighted F1 (%)',
    'macro_f1': 'macro F1 (%)',
    'r2': 'R2 (%)',
    'mae': 'MAE',
    'rmse': 'RMSE',
}
_S1 = ('s1a', 's1d')


@dataclass(frozen=True)
class PublicData:
    """Dataset, its official splits, and what is reported of it.

    Args:
        title: Name in reports.
        datamodule: Name of the datamodule.
        sensors: Modalities by sensor; those that the files lack are left out.
        task: Name of the task on the command line.
        folds: Numbers of the official splits, the first of which are the default.
        split: Argument of the datamodule that selects the split, with ``{}`` for its number; empty if there is one.
        arguments: Further arguments of the datamodule.
        metrics: Factor by column of ``subsets.csv``, the main score first.
        tiles: Number of tiles of the complete data in training, validation and test together; None if unknown.
        summed: Whether the published score is that of the confusion matrices summed over the splits.
        protocol: Description of splits and metric.
        listed: Description of the metric if files list the tiles; empty if the datamodule reads no such files.
        licence: Licence of the data.
        url: Address of the data.
        steps: Default number of optimiser steps.
        batch_size: Default number of tiles per step.
        backbone: Default builder of OmniSat.
        few: Datamodule that trains on a part of the labels.
        synthetic: Whether the data are synthetic.
        download: Name of the dataset class of TorchGeo that can be downloaded.
        folder: Folder that it creates, below the root.
        ignored: Kinds of problems of `check` that the published files have.
    """

    title: str
    datamodule: str
    sensors: Sensors
    task: str = 'omnisat'
    folds: tuple[int, ...] = (1,)
    split: tuple[str, str] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=lambda: _PERCENT)
    tiles: int | None = None
    summed: bool = False
    protocol: str = ''
    listed: str = ''
    licence: str = 'Etalab 2.0'
    url: str = ''
    steps: int = 36_000
    batch_size: int = 4
    backbone: str = 'omnisat_base'
    few: str | None = None
    synthetic: bool = False
    download: str | None = None
    folder: str = ''
    ignored: tuple[str, ...] = ()

    @property
    def score(self) -> str:
        """Column of the main score."""
        return next(iter(self.metrics))

    def title_of(self, metric: str) -> str:
        """Return the name of a metric in reports, with its unit."""
        return _TITLES[metric]

    def options(self, root: str, fold: int, modalities: Sequence[str] | None) -> dict[str, Any]:
        """Return the arguments of the datamodule; None for all modalities that the files have."""
        selected = {} if modalities is None else {'modalities': list(modalities)}
        return {'root': root, **self._split_of(fold), **self.arguments, **selected}

    def make(self, root: str, fold: int, modalities: Sequence[str] | None = None, **more: Any) -> MultimodalDataModule:
        """Return the datamodule of a split."""
        made: MultimodalDataModule = getattr(datamodules, self.datamodule)(
            **self.options(root, fold, modalities), **more
        )
        return made

    def _split_of(self, fold: int) -> dict[str, Any]:
        if self.split is None:
            return {}
        name, form = self.split
        return {name: form.format(fold) if form else fold}


@dataclass(frozen=True)
class MappedData(PublicData):
    """Dataset of TorchGeo that is read by a mapping of its keys."""

    def options(self, root: str, fold: int, modalities: Sequence[str] | None) -> dict[str, Any]:
        """Return the arguments of :class:`.MappedDataModule`; None for all modalities."""
        given = json.loads(json.dumps(dict(self.arguments)))
        given['dataset'].setdefault('init_args', {})['root'] = root
        chosen = [name for names in self.sensors.values() for name in names] if modalities is None else list(modalities)
        given['modalities'] = [entry for entry in given['modalities'] if entry['name'] in chosen]
        given['keys'] = {name: key for name, key in given['keys'].items() if name in (*chosen, 'mask', 'label')}
        return given


_PASTIS: dict[str, Any] = {
    'datamodule': 'PASTISMultimodalDataModule',
    'folds': (1, 2, 3, 4, 5),
    'split': ('fold', ''),
    'summed': True,
    'tiles': 2433,
    'few': 'FewPASTISDataModule',
    'protocol': 'five official folds: three to train, one to validate, one to test; confusion matrix over all pixels '
    'of the test folds, void ignored, mean IoU of 19 classes',
    'listed': 'confusion matrix over all pixels of the test tiles, void ignored, mean IoU of 19 classes',
}
_WITHOUT_SPOT: Sensors = {'S2': ('s2',), 'S1': _S1}
_WITH_SPOT: Sensors = {**_WITHOUT_SPOT, 'SPOT': ('spot',)}
_FLAIRHUB: Sensors = {'aerial': ('aerial',), 'SPOT': ('spot',), 'S2': ('s2',), 'S1': _S1, 'DEM': ('dem',)}

#: Datasets by name on the command line.
PUBLIC: dict[str, PublicData] = {
    'synthetic': PublicData(
        'synthetic landscapes',
        'SyntheticLandscapesDataModule',
        _WITH_SPOT,
        folds=(1, 2, 3, 4, 5),
        split=('fold', ''),
        summed=True,
        steps=360,
        batch_size=8,
        backbone='omnisat_tiny',
        few='FewSyntheticLandscapesDataModule',
        synthetic=True,
        protocol='five folds of synthetic landscapes, as those of PASTIS',
        licence='none: the data are generated by this package',
    ),
    'pastis': PublicData('PASTIS-R', sensors=_WITHOUT_SPOT, url='https://zenodo.org/records/5735646', **_PASTIS),
    'pastis-hd': PublicData(
        'PASTIS-HD', sensors=_WITH_SPOT, url='https://huggingface.co/datasets/IGNF/PASTIS-HD', **_PASTIS
    ),
    'pastis100': PublicData(
        'PASTIS-R-100',
        sensors=_WITHOUT_SPOT,
        url='https://huggingface.co/datasets/torchgeo/PASTIS-R-100',
        steps=1500,
        download='PASTIS100',
        folder='PASTIS-R',
        **_PASTIS,
    ),
    'flair': PublicData(
        'FLAIR #2',
        'FLAIRDataModule',
        {'aerial': ('aerial',), 'S2': ('s2',)},
        steps=60_000,
        batch_size=8,
        tiles=77762,
        protocol="official domains of FLAIR #2; confusion matrix over all pixels of the test domains, 'other' ignored, "
        'mean IoU of 12 classes',
        url='https://ignf.github.io/FLAIR',
    ),
    'flair-1': PublicData(
        'FLAIR #1',
        'FLAIRDataModule',
        {'aerial': ('aerial',)},
        arguments={'release': 1, 'modalities': ['aerial']},
        steps=60_000,
        batch_size=8,
        tiles=77412,
        protocol="official test domains of FLAIR #1; confusion matrix over all pixels of the test domains, 'other' "
        'ignored, mean IoU of 12 classes',
        url='https://ignf.github.io/FLAIR',
    ),
    'flair-hub': PublicData(
        'FLAIR-HUB',
        'FLAIRHUBMultimodalDataModule',
        _FLAIRHUB,
        folds=(1, 2, 3, 4, 5),
        split=('split_column', 'split_{}'),
        steps=60_000,
        batch_size=8,
        tiles=241100,
        protocol="official splits split_1 to split_5; land cover, 'undefined' ignored",
        url='https://huggingface.co/datasets/IGNF/FLAIR-HUB',
    ),
    'flairhub-toy': PublicData(
        'FLAIR-HUB toy',
        'FLAIRHUBMultimodalDataModule',
        _FLAIRHUB,
        arguments={'split_column': 'split_toy'},
        steps=3000,
        protocol="split_toy of the toy dataset; land cover, 'undefined' ignored",
        url='https://huggingface.co/datasets/IGNF/FLAIR-HUB',
        download='FLAIRHUBToy',
        folder='FLAIR-HUB_TOY',
    ),
    'treesatai': PublicData(
        'TreeSatAI Time-Series',
        'TreeSatAITimeSeriesDataModule',
        {'aerial': ('aerial',), 'S2': ('s2',), 'S1': _S1},
        task='omnisat_classification',
        metrics={'weighted_f1': 100.0, 'macro_f1': 100.0},
        steps=30_000,
        batch_size=32,
        tiles=50381,
        protocol='published lists of training and test plots of 60 m; multi-label genera, F1 at a threshold of 0.5, '
        'weighted by the number of plots of each genus',
        licence='CC-BY-4.0',
        url='https://huggingface.co/datasets/IGNF/TreeSatAI-Time-Series',
    ),
    'biomassters': MappedData(
        'BioMassters',
        'MappedDataModule',
        {'S2': ('s2',), 'S1': ('s1',)},
        task='omnisat_regression',
        metrics={'r2': 100.0, 'mae': 1.0, 'rmse': 1.0},
        ignored=('nan',),  # tiles without one of the orbits of Sentinel-1
        arguments={
            'dataset': {'class_path': 'torchgeo_omnisat.datasets.BioMasstersSeries'},
            'modalities': [
                {
                    'name': 's2',
                    'bands': ['B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12'],
                    'gsd': 10,
                    'temporal': True,
                    'kind': 'optical',
                    'unit': 'dn',
                },
                {
                    'name': 's1',
                    'bands': ['VV_asc', 'VH_asc', 'VV_desc', 'VH_desc'],
                    'gsd': 10,
                    'temporal': True,
                    'kind': 'radar',
                    'unit': 'db',
                },
            ],
            'keys': {
                's2': {'key': 'image_S2', 'dates': 'dates_S2', 'channels': list(range(10))},
                's1': {'key': 'image_S1', 'dates': 'dates_S1', 'nodata': -9999},
                'mask': {'key': 'label', 'continuous': True, 'value_unit': 't'},
            },
            'fractions': [0.8, 0.1, 0.1],
            'patch_size': 40,
        },
        tiles=8689,
        protocol='training chips of the competition, divided at random (seed 0) into 80 %, 10 % and 10 %, because its '
        'test chips have no published labels',
        licence='CC-BY-4.0',
        url='https://huggingface.co/datasets/nascetti-a/BioMassters',
    ),
    'geobench-pastis': PublicData(
        'PASTIS of GEO-Bench-2',
        'GeoBench2DataModule',
        _WITHOUT_SPOT,
        arguments={'name': 'pastis'},
        protocol='splits in the files of GEO-Bench-2; confusion matrix over all pixels of the test samples, void '
        'ignored, mean IoU of 19 classes',
        url='https://huggingface.co/aialliance',
    ),
    'geobench-treesatai': PublicData(
        'TreeSatAI of GEO-Bench-2',
        'GeoBench2DataModule',
        {'aerial': ('aerial',), 'S2': ('s2',), 'S1': ('s1',)},
        task='omnisat_classification',
        arguments={'name': 'treesatai'},
        metrics={'weighted_f1': 100.0, 'macro_f1': 100.0},
        steps=30_000,
        batch_size=32,
        protocol='splits in the files of GEO-Bench-2; multi-label genera, F1 at a threshold of 0.5, weighted by the '
        'number of plots of each genus',
        licence='CC-BY-4.0',
        url='https://huggingface.co/aialliance',
    ),
    'geobench-biomassters': PublicData(
        'BioMassters of GEO-Bench-2',
        'GeoBench2DataModule',
        {'S2': ('s2',), 'S1': ('s1',)},
        task='omnisat_regression',
        arguments={'name': 'biomassters'},
        metrics={'r2': 100.0, 'mae': 1.0, 'rmse': 1.0},
        ignored=('nan',),  # tiles without one of the orbits of Sentinel-1
        protocol='splits in the files of GEO-Bench-2; R2, MAE and RMSE over all pixels of the test samples, in the '
        'unit of the labels',
        licence='CC-BY-4.0',
        url='https://huggingface.co/aialliance',
    ),
}


def sensors_in(data: PublicData, present: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the sensors of a dataset of which some modality is present, with these modalities."""
    found = {sensor: tuple(name for name in names if name in present) for sensor, names in data.sensors.items()}
    return {sensor: names for sensor, names in found.items() if names}


def hashes_of(splits: str) -> dict[str, str]:
    """Return the SHA-256 of each file that lists tiles, by its name.

    Args:
        splits: File, directory or pattern, as for :func:`.read_splits`.

    Raises:
        ValueError: If a file cannot be read or is invalid.
    """
    read_splits(splits)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in split_files(splits)}


def place(data: PublicData, root: str) -> str:
    """Return the root of the datamodule: that of a downloaded dataset may be a folder of *root*."""
    inside = Path(root, data.folder)
    return str(inside) if data.folder and inside.is_dir() else root
