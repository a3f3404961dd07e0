# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sizes, split and model that suit the sensors and labels of a folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..datamodules import MultimodalGeoDataModule
from ..datasets.common.arguments import SPLITS
from ..datasets.rasters.georeference import crs_code
from ..models.encoders.series.monthly import MONTHS
from ..utils.checks import EmptySplitError
from ..utils.plurals import counted
from .labels import Labels
from .sensors import Sensor, nice_gsd
from .splits import choose_split, count_blocks, describe

#: Presets of model and training.
PRESETS = ('auto', 'few', 'standard')
#: Number of labelled training pixels below which `auto` is `few`, and above which the model is larger.
FEW, MANY = 5000, 1_000_000
#: Callback that saves each epoch. With ``save_last``, Lightning saves only epochs of which it also saves another file.
_LAST = {'class_path': 'ModelCheckpoint', 'init_args': {'filename': 'last'}}
#: Maximum number of label pixels of an area whose labels are counted exactly.
_COUNTED = 50_000_000
#: Pixels along the side of a token: of the coarsest time series, and of the finest image if there is no time series.
_PATCH, _IMAGE_PATCH = 4, 32
#: Maximum number of tokens along the side of a tile.
_TOKENS = 8
#: Maximum number of classes that a note lists.
_LISTED = 3
#: Labelled pixels in a batch of the preset `few`.
PIXELS = 128


@dataclass
class Plan:
    """Arguments of trainer, model and datamodule, with comments by the path of the setting.

    Attributes:
        trainer: Arguments of the trainer.
        model: Arguments of the task.
        data: Arguments of the datamodule.
        notes: Comments by path, such as ``'data.split'``.
        counts: Labelled pixels by split and class.
        preset: ``'few'`` or ``'standard'``; an empty string without labels.
        warnings: Facts that the user should know.
    """

    trainer: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    preset: str = ''
    warnings: list[str] = field(default_factory=list)


def make_plan(
    root: Path, sensors: Sequence[Sensor], labels: Labels, preset: str = 'auto', presto: str | None = None
) -> Plan:
    """Return a plan for training on labels.

    Args:
        root: Folder of the data.
        sensors: Sensors that can be read.
        labels: Labels.
        preset: One of :data:`PRESETS`.
        presto: File of the weights of Presto, for the preset `few`; None to train from scratch.

    Raises:
        ValueError: If no area has images and labels, or no tile fits into it.
    """
    lattice = common_multiple([sensor.gsd for sensor in sensors])
    data: dict[str, Any] = {
        'root': str(root),
        'rasters': {sensor.name: sensor.settings for sensor in sensors},
        'mask': labels.mask,
        **({} if labels.names is None else {'labels': labels.names}),
        'label_gsd': _label_gsd(sensors, labels),
        'patch_size': lattice,
    }
    dataset = _datamodule(data, lattice).labelled
    data['label_gsd'] = nice_gsd(dataset.label_gsd)
    lattice = common_multiple([*(sensor.gsd for sensor in sensors), data['label_gsd']])
    data['patch_size'] = lattice
    dataset = _datamodule(data, lattice).labelled
    xmin, ymin, xmax, ymax = dataset.area.bounds
    short, long = sorted((xmax - xmin, ymax - ymin))
    blocks = count_blocks(dataset, lattice * max(1, math.floor(min(short, long / 5) / lattice)), len(labels.classes))
    number = blocks.labelled if not labels.sparse else sum(labels.counts.values())
    present = [name for name, count in zip(labels.classes, blocks.cells.sum((0, 1)), strict=True) if count]
    if len(present) == 1 and labels.what != 'points':
        raise ValueError(
            f'all labels of {labels.mask["path"]} on the rasters are of one class, {present[0]!r}, expected at least '
            'two: add labels of another class'
        )
    plan = Plan(preset=preset if preset != 'auto' else 'few' if 0.6 * number < FEW else 'standard')
    if not number:
        raise ValueError(f'no labelled pixel of {labels.mask["path"]} lies on the rasters, expected an overlap')
    patch = lattice if plan.preset == 'few' else patch_size(sensors, lattice)
    tokens = min(_TOKENS, max(1, math.floor(min(short, long / 5) / patch)))
    while True:
        tile = patch * tokens
        data |= {'patch_size': patch, 'tile_size': tile}
        data['split'] = choose_split(dataset, tile, len(labels.classes))
        problem, plan.counts = _try(data, dataset.area.area / data['label_gsd'] ** 2 <= _COUNTED)
        if not problem:
            break
        if tokens == 1 and patch == lattice:
            raise problem
        tokens, patch = (tokens - 1, patch) if tokens > 1 else (_TOKENS, lattice)
    plan.data = data
    plan.notes |= {
        'data.split': describe(data['split'], crs_code(dataset.crs)),
        'data.tile_size': f'{tokens} x {tokens} tokens',
        'data.patch_size': 'side of a token on the ground, in metres',
        'data.label_gsd': 'resolution of labels and maps, in metres',
    }
    if presto is not None and plan.preset != 'few':
        raise ValueError(f'presto is {presto!r} and the preset is {plan.preset!r}, expected --preset few with --presto')
    training = sum(plan.counts['train'].values()) if plan.counts else round(0.6 * number)
    _set_training(plan, sensors, training, float(dataset.area.area), presto)
    lacking = {split: [name for name, count in each.items() if not count] for split, each in plan.counts.items()}
    for split, names in lacking.items():
        if names:
            more = f' and {counted(len(names) - _LISTED, "more class")}' if len(names) > _LISTED else ''
            plan.warnings.append(
                f'{split} has no label of {", ".join(names[:_LISTED])}{more}: too few labels in too few places for '
                'three splits; add labels elsewhere, or merge classes'
            )
    return plan


def _label_gsd(sensors: Sequence[Sensor], labels: Labels) -> float | None:
    """Return the GSD of labels: None for that of a raster, else that of the finest time series, or finest image."""
    if labels.what == 'pixels':
        return None
    series = [sensor.gsd for sensor in sensors if sensor.temporal]
    return min(series or [sensor.gsd for sensor in sensors])


def _datamodule(data: Mapping[str, Any], tile: float) -> MultimodalGeoDataModule:
    return MultimodalGeoDataModule(**{'tile_size': tile, **data})


def _try(data: Mapping[str, Any], counted: bool) -> tuple[ValueError | None, dict[str, dict[str, int]]]:
    """Return the error of splits without room for a tile, and the labelled pixels of each split by class."""
    datamodule, counts = _datamodule(data, data['tile_size']), {}
    for split in SPLITS:
        try:
            datamodule.make_dataset(split)[0] if split == 'train' else datamodule.make_dataset(split)
            if counted:
                counts[split] = datamodule.label_counts(split).pixels
        except (EmptySplitError, ValueError, IndexError) as error:
            return error if isinstance(error, ValueError) else ValueError(str(error)), {}
    return None, counts


def _set_training(plan: Plan, sensors: Sequence[Sensor], training: int, area: float, presto: str | None) -> None:
    few = plan.preset == 'few'
    score = {'monitor': 'val_loss', 'mode': 'min'} if few else {'monitor': 'val_AverageJaccardIndex', 'mode': 'max'}
    epochs, patience = (10, 5) if few else (60, 12)
    plan.trainer = {
        'max_epochs': epochs,
        'log_every_n_steps': 10,
        'callbacks': [
            {'class_path': 'ModelCheckpoint', 'init_args': {**score, 'filename': 'best'}},
            _LAST,
            {'class_path': 'EarlyStopping', 'init_args': {**score, 'patience': patience}},
        ],
    }
    best = (
        'the lowest validation loss, as the mean IoU of few pixels is noisy' if few else 'the best validation mean IoU'
    )
    plan.notes['trainer.callbacks'] = (
        f'best.ckpt has {best}, last.ckpt the last state; training ends if the best does not improve'
    )
    plan.notes['data.length'] = 'random training tiles per epoch'
    if few:
        _set_few(plan, sensors, training, presto)
        return
    tiles = math.ceil(0.6 * area / plan.data['tile_size'] ** 2)
    plan.data |= {'length': min(max(100, tiles), 2000), 'batch_size': 4}
    size = 'small' if training > MANY else 'tiny'
    plan.model = {'backbone': f'omnisat_{size}'}
    plan.notes['model.backbone'] = f'for about {counted(training, "labelled training pixel")}'


def _set_few(plan: Plan, sensors: Sequence[Sensor], training: int, presto: str | None) -> None:
    """Set a model of single pixels, trained on labelled pixels, if all images are time series."""
    series = [sensor.name for sensor in sensors if sensor.temporal]
    used = [sensor for sensor in sensors if sensor.settings.get('kind') != 'elevation'] if series else list(sensors)
    optical = [s.name for s in sensors if s.temporal and s.settings.get('kind') in ('optical', 'sentinel2')]
    frozen: dict[str, Any] = {}
    if presto is not None:
        if not optical:
            raise ValueError(
                f'presto is {presto!r}, expected an optical time series, and the sensors are '
                f'{[sensor.name for sensor in sensors]}: leave out --presto, or set the kind of a sensor'
            )
        frozen = {name: {'name': 'presto', 'weights': presto, 'months': 12} for name in optical[:1]}
    reason = 'without elevation, with which few fields are learnt by heart'
    plan.data |= {'temporal_dropout': 0, 'speckle': 0}
    plan.notes['model.backbone'] = f'preset few, for about {counted(training, "labelled training pixel")}'
    if all(sensor.temporal for sensor in used):
        encoders = frozen or {sensor.name: _monthly(sensor.months) for sensor in used}
        if frozen:
            used = [sensor for sensor in used if sensor.name in frozen]
            reason = 'without the other sensors, with which Presto scored lower on real fields'
        plan.model = {
            'backbone': 'late_fusion',
            'lr': 0.0003,
            'modality_dropout': 0,
            'loss': 'ce',
            'backbone_args': {'encoders': encoders, 'linear': True},
        }
        plan.trainer['callbacks'] = [_LAST]
        plan.notes['trainer.callbacks'] = 'last.ckpt has the last state; few validation pixels do not tell the best one'
        plan.notes['model.backbone_args.linear'] = 'no spatial context, so that few fields are not learnt by heart'
        plan.data |= {'train_tile_size': plan.data['patch_size'], 'train_places': 'labels'}
        plan.data |= {'jitter': 0.3, 'length': 25 * PIXELS, 'batch_size': PIXELS}
        plan.notes['data.jitter'] = 'largest change of gain and offset, in standard deviations'
        plan.notes['data.train_tile_size'] = 'single tokens, so that a batch has labelled pixels of many fields'
    else:
        encoders = dict.fromkeys(series, 'ltae') | frozen
        plan.model = {
            'backbone': 'omnisat_tiny',
            'lr': 0.0003 if frozen else 0.002,
            'modality_dropout': 0,
            'backbone_args': {
                **({'encoders': encoders, 'widths': [128]} if series else {}),
                'embed_dim': 128,
                'depth': 0,
            },
        }
        plan.data |= {'length': 200, 'batch_size': 8}
    plan.warnings.append(
        f'{counted(training, "labelled training pixel is", "labelled training pixels are")} few, and a random forest '
        'may score higher: compare with the command baseline'
    )
    if len(used) < len(sensors):
        plan.data['modalities'] = [sensor.name for sensor in used]
        plan.notes['data.modalities'] = reason


def _monthly(months: int) -> Any:
    """Return the encoder of a time series, with a calendar in which all its months fit."""
    return {'name': 'monthly', 'months': months} if months > MONTHS else 'monthly'


def patch_size(sensors: Sequence[Sensor], lattice: float) -> float:
    """Return the side of a token in metres, a multiple of *lattice*."""
    series = [sensor.gsd for sensor in sensors if sensor.temporal]
    wanted = _PATCH * max(series) if series else max(min(_IMAGE_PATCH * min(s.gsd for s in sensors), 40.0), lattice)
    return _plain(lattice * max(1, round(wanted / lattice)))


def common_multiple(gsds: Sequence[float]) -> float:
    """Return the smallest length that is a whole number of pixels of every GSD, to a millimetre."""
    parts = [Fraction(round(gsd * 1000), 1000) for gsd in gsds]
    denominator = math.lcm(*(part.denominator for part in parts))
    return _plain(math.lcm(*(int(part * denominator) for part in parts)) / denominator)


def _plain(number: float) -> float:
    return int(number) if float(number).is_integer() else round(float(number), 6)
