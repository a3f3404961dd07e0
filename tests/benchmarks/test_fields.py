# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import argparse
from pathlib import Path
from typing import Any

import fields
import fields_belgium
import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from torchgeo_omnisat.losses import field_targets


def test_grid_scores_perfect_maps() -> None:
    ids = torch.zeros(1, 16, 24, dtype=torch.int64)
    ids[:, 2:14, 2:12], ids[:, 2:14, 12:22] = 1, 2
    targets = field_targets(ids)
    extent = torch.nn.functional.one_hot(targets.extent, 3).movedim(-1, 1).float()
    probabilities = torch.nn.functional.one_hot(ids, 3).movedim(-1, 1).float()
    rows = fields.grid(fields.Maps(probabilities, extent, targets.distance, ids, ids), None)
    assert len(rows) == len(fields.THRESHOLDS) * len(fields.HEIGHTS)
    assert {row['object_f1'] for row in rows if row['h'] <= 0.4} == {1}
    assert rows[3]['pq'] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize('change', [{'tiles': 320}, {'size': 64}, {'steps': 9}, {'without': ['s2']}])
def test_a_checkpoint_is_of_the_settings_of_its_row(change: dict[str, Any]) -> None:
    settings = {'backbone': 'omnisat_tiny', 'steps': 360, 'tiles': 160, 'size': 32, 'without': []}
    one, other = (
        fields.checkpoint_of(Path(), 0, argparse.Namespace(**given)) for given in (settings, settings | change)
    )
    assert one != other


def test_a_model_of_belgium_is_of_the_settings_of_its_row(tmp_path: Path) -> None:
    folders = {
        fields_belgium.folder_of(half, argparse.Namespace(output=Path(), steps=steps, seed=seed, root=tmp_path))
        for half, steps, seed in (('west', 150, 0), ('east', 150, 0), ('west', 300, 0), ('west', 150, 1))
    }
    assert len(folders) == 4


def test_polygons_are_connected_pixels_of_a_crop(tmp_path: Path) -> None:
    crops = np.zeros((20, 20), np.uint8)
    crops[:5, :5], crops[5:10, :5], crops[15:, 15:], crops[12, 12] = 1, 2, 1, 1
    place = {'crs': 'EPSG:32631', 'transform': from_origin(0, 200, 10, 10)}
    with rasterio.open(
        tmp_path / 'crops.tif', 'w', driver='GTiff', dtype='uint8', count=1, width=20, height=20, **place
    ) as file:
        file.write(crops, 1)
    fields_belgium.write_polygons(tmp_path / 'crops.tif', ['none', 'wheat', 'maize'], tmp_path / 'fields.gpkg')
    polygons = gpd.read_file(tmp_path / 'fields.gpkg')
    assert sorted(polygons['crop']) == ['maize', 'wheat', 'wheat']
    assert set(polygons.area) == {2500}
