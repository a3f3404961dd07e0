# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Rows of result tables: models that are trained with the same budget, and the runs of each."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import tasks
from .data import PUBLIC, Sensors
from .runs import Run

#: Sensors of PASTIS-HD and of the synthetic landscapes, and the modalities of each.
SENSORS: Sensors = {'S2': ('s2',), 'S1': ('s1a', 's1d'), 'SPOT': ('spot',)}
#: Encoders as wide as those of ``omnisat_tiny``; without, U-TAE is as wide as published.
NARROW: Mapping[str, Any] = {'widths': [16, 32, 64], 'image_widths': [16, 32, 64, 128]}
#: Arguments of the pre-training: reconstruction alone, the best in ``benchmarks/pretraining.py``.
REBUILDING: Mapping[str, Any] = {'tile_weight': 0, 'patch_weight': 0}
#: Probability of dropping a modality if each step trains only on the modalities that remain.
ALONE_DROPOUT = 0.2
#: Classes of the tasks by name on the command line.
TASKS = {
    'omnisat': tasks.OmniSatSegmentation,
    'omnisat_classification': tasks.OmniSatClassification,
    'omnisat_regression': tasks.OmniSatRegression,
}


@dataclass(frozen=True)
class Size:
    """Budget of each row.

    Args:
        backbone: Builder of OmniSat.
        baseline_args: Arguments of the baselines.
        steps: Optimiser steps.
        pretraining_steps: Steps of pre-training, for rows with pre-training.
        batch_size: Tiles per step.
        tiles: Number of synthetic landscapes.
        seeds: Seeds of each row.
        max_dates: Maximum number of dates of a time series; None for all.
    """

    backbone: str
    baseline_args: Mapping[str, Any]
    steps: int
    pretraining_steps: int
    batch_size: int
    tiles: int
    seeds: tuple[int, ...] = (0, 1, 2)
    max_dates: int | None = None


SIZES = {
    'smoke': Size('omnisat_tiny', NARROW, 40, 15, 4, 80, (0,), max_dates=6),
    'small': Size('omnisat_tiny', NARROW, 360, 180, 8, 160),
    'long': Size('omnisat_base', {}, 36_000, 18_000, 4, 1600),
}


@dataclass(frozen=True)
class Row:
    """Row of a table: OmniSat, or a baseline.

    Args:
        name: Name in the table.
        sensors: Its sensors.
        backbone: Builder of a baseline; None for OmniSat.
        pretrained: Whether it is pre-trained.
        dropout: Whether it is trained with modality dropout.
        both: Whether each step with dropout trains on all modalities and on those that remain.
        claimed: Mean IoU in % on PASTIS in the summary of OmniSat.
        options: Further arguments of the task. OmniSat has experts by default.
        data_options: Further arguments of the datamodule.
    """

    name: str
    sensors: tuple[str, ...] = ('S2', 'S1', 'SPOT')
    backbone: str | None = None
    pretrained: bool = True
    dropout: bool = True
    both: bool = True
    claimed: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    data_options: Mapping[str, Any] = field(default_factory=dict, hash=False)


def default(argument: str, task: str = 'omnisat') -> Any:
    """Return the default of an argument of a task."""
    signatures = (inspect.signature(vars(kind)['__init__']) for kind in TASKS[task].__mro__ if '__init__' in vars(kind))
    return next(s.parameters[argument].default for s in signatures if argument in s.parameters)


def make_run(row: Row, size: Size, data: str, fold: int, seed: int, sensors: Sensors = SENSORS) -> Run:
    """Return the run of a row for a size, fold and seed; a row of one modality has no dropout.

    *sensors* are the modalities of each sensor.
    """
    modalities = tuple(name for sensor in row.sensors for name in sensors[sensor])
    ours, several, task = row.backbone is None, len(modalities) > 1, PUBLIC[data].task
    drops, pretrained = ours and row.dropout and several, ours and row.pretrained and several
    dense = task != 'omnisat_classification'
    both = row.both and dense
    decoder = ('experts', 'expert_weight', 'decoder_width') if ours and dense else ()
    options = {name: default(name, task) for name in decoder} | dict(row.options)
    return Run(
        data=data,
        fold=fold,
        seed=seed,
        backbone=size.backbone if row.backbone is None else row.backbone,
        backbone_args=json.dumps({} if ours else dict(size.baseline_args)),
        modalities=modalities,
        modality_dropout=(default('modality_dropout', task) if both else ALONE_DROPOUT) if drops else 0.0,
        pretraining_steps=size.pretraining_steps if pretrained else 0,
        labels=1.0,
        steps=size.steps,
        batch_size=size.batch_size,
        lr=default('lr', task),
        tiles=size.tiles if data == 'synthetic' else None,
        max_dates=size.max_dates,
        subset_weight=float(drops and both),
        pretraining_args=json.dumps(dict(REBUILDING)) if pretrained else '',
        options=json.dumps(options) if options else '',
        data_options=json.dumps(dict(row.data_options)) if row.data_options else '',
    )
