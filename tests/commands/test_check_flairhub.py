# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Faults planted in a synthetic FLAIR-HUB, each to be found with its file and reason."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.commands.test_check import find, truncate, without_crs
from tests.landscapes.flairhub import FLAIRHUBRecipe, write_flairhub, write_table
from torchgeo_omnisat.commands.check import walk
from torchgeo_omnisat.datamodules import FLAIRHUBMultimodalDataModule
from torchgeo_omnisat.datasets.flairhub import table_of

SIZES = ('count', 'height', 'width')
HUB_S2 = ('SENTINEL2_TS', 'SENTINEL2_MSK-SC')


def replace_image(path: Path, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
    with rasterio.open(path) as file:
        image, profile = change(file.read()), file.profile
    with rasterio.open(path, 'w', **{**profile, **dict(zip(SIZES, image.shape, strict=True))}) as file:
        file.write(image)


@pytest.fixture(scope='module')
def whole_hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patches of training and nothing else, to be read alone."""
    root = tmp_path_factory.mktemp('hub') / 'root'
    write_flairhub(root, FLAIRHUBRecipe(areas=1, dates=4))
    return root


@pytest.fixture
def hub(whole_hub: Path, tmp_path: Path) -> Path:
    """A copy to be broken."""
    return Path(shutil.copytree(whole_hub, tmp_path / 'hub'))


def test_flairhub_files(hub: Path) -> None:
    report = walk(FLAIRHUBMultimodalDataModule(str(hub)))
    assert (report.problems, report.samples, report.absent) == ([], {'train': 4}, {})
    place = 'D005-2018_{0}/AA-S1-0/D005-2018_{0}_AA-S1-0_{1}.tif'
    faults = [
        ('0-0', 's2', 'SENTINEL2_MSK-SC', 'missing', 'does not exist'),
        ('0-0', 's1a', 'SENTINEL1-ASC_TS', 'dates', 'holds 2 images, but .*SENTINEL1-ASC.* has 3 dates'),
        ('0-0', 's1d', 'SENTINEL1-DESC_TS', 'shape', r'has shape \(3, 5, 5\), expected \(any, 2, 5, 5\)'),
        ('0-1', 'aerial', 'AERIAL_RGBI', 'unreadable', 'truncated or damaged'),
        ('0-1', 'spot', 'SPOT_RGBI', 'shape', r'has shape \(4, 16, 16\), expected \(4, 32, 32\)'),
        ('1-0', 'mask', 'AERIAL_LABEL-COSIA', 'label', 'holds labels from 19 to 19, expected classes 0 to 18'),
        ('1-0', 'dem', 'DEM_ELEV', 'crs', 'has no CRS'),
        ('1-1', 'mask', 'AERIAL_LABEL-COSIA', 'missing', 'does not exist, expected mask there'),
    ]
    paths = [hub / place.format(product, patch) for patch, _, product, *_ in faults]
    paths[0].unlink()
    replace_image(paths[1], lambda image: image[:4])
    replace_image(paths[2], lambda image: image[:3])
    truncate(paths[3])
    replace_image(paths[4], lambda image: image[:, :16, :16])
    replace_image(paths[5], lambda image: np.full_like(image, 19))
    without_crs(paths[6])
    paths[7].unlink()
    problems = {(p.sample, p.part): p for p in find(FLAIRHUBMultimodalDataModule(str(hub)))}
    assert len(problems) == len(faults)
    for (patch, part, product, kind, reason), path in zip(faults, paths, strict=True):
        problem = problems[f'D005-2018_AA-S1-0_{patch}', part]
        assert (problem.file, problem.kind) == (str(path.relative_to(hub)), kind), product
        assert re.search(reason, problem.reason)
    allowing = FLAIRHUBMultimodalDataModule(str(hub), missing='allow')
    assert (faults[0][0], 's2') not in {(p.sample[-3:], p.part) for p in find(allowing)}


def test_flairhub_tables(hub: Path) -> None:
    patches = [f'D005-2018_AA-S1-0_{row}-{column}' for row, column in np.ndindex(2, 2)]
    for name in ('SENTINEL2', 'SENTINEL1-ASC', 'SENTINEL1-DESC', 'AERIAL'):
        table_of(hub, name).unlink()
    series = {'1': '20190101', '2': '20190102', '3': '20190103'}
    write_table(table_of(hub, 'SENTINEL2'), [{'patch_id': patches[0], 'acquisition_dates': json.dumps(series)}])
    series['2'] = '20191301'
    row = {'patch_id': patches[0], 'acquisition_dates': json.dumps(series)}
    write_table(table_of(hub, 'SENTINEL1-ASC'), [row])
    write_table(table_of(hub, 'AERIAL'), [{'patch_id': patches[1], 'date': '20190231'}])
    problems = find(FLAIRHUBMultimodalDataModule(str(hub)))
    tables = {name: str(table_of(hub, name).relative_to(hub)) for name in ('SENTINEL1-ASC', 'SENTINEL1-DESC')}
    image = 'D005-2018_{0}/AA-S1-0/D005-2018_{0}_AA-S1-0_{1}.tif'
    optical = [(image.format(name, patch[-3:]), patch) for patch in patches for name in HUB_S2]
    assert {(p.sample, p.part, p.file, p.kind) for p in problems} == {
        *((patch, 's2', file, 'dates') for file, patch in optical),
        *((patch, 's1a', tables['SENTINEL1-ASC'], 'dates') for patch in patches),
        *((patch, 's1d', tables['SENTINEL1-DESC'], 'missing') for patch in patches),
        (patches[1], 'aerial', str(table_of(hub, 'AERIAL').relative_to(hub)), 'dates'),
    }
    reasons = {p.part: p.reason for p in problems}
    assert 'holds 4 images, but GLOBAL_SENTINEL2_MTD_DATES.gpkg has 3 dates' in reasons['s2']
    assert '20191301' in reasons['s1a']
    assert '20190231' in reasons['aerial']
