# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Polygons as labels: named and numbered classes, and the ground that none of them covers."""

from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
import shapely

from tests.geo_tree import UTM, X, Y
from torchgeo_omnisat.datasets.polygons import Polygons

LABELS = ('wheat', 'maize', 'meadow')


def fields(path: Path, crops: list[Any]) -> Path:
    """Fields of 80 m side by side from west to east, 20 m between them."""
    shapes = [shapely.box(X + 100 * i, Y - 80, X + 100 * i + 80, Y) for i in range(len(crops))]
    gpd.GeoDataFrame({'crop': crops, 'owner': 1}, geometry=shapes, crs=UTM).to_file(path)
    return path


def row(labels: Polygons, count: int) -> list[int]:
    """The class in the middle of each field, and after it that of the gap."""
    mask = labels[slice(X, X + 100 * count, 10.0), slice(Y - 80, Y, 10.0)]['mask']
    columns = mask[:, [column for i in range(count) for column in (10 * i + 4, 10 * i + 9)]]
    assert (columns == columns[0]).all()
    return columns[0].tolist()


@pytest.mark.parametrize('crops', [['maize', 'wheat', 'meadow'], [1, 0, 2], [1.0, 0.0, 2.0], ['1', 'wheat', '2']])
def test_classes_have_names_or_numbers_and_gaps_have_none(tmp_path: Path, crops: list[Any]) -> None:
    path = fields(tmp_path / 'fields.gpkg', crops)
    assert row(Polygons(path, column='crop', labels=LABELS), 3)[:5] == [1, -1, 0, -1, 2]
    assert row(Polygons(path, column='crop', outside='meadow', labels=LABELS), 3)[:5] == [1, 2, 0, 2, 2]
    assert row(Polygons(path, column='crop', outside=0, labels=LABELS), 3)[:5] == [1, 0, 0, 0, 2]


def test_a_field_without_a_class_has_no_label(tmp_path: Path) -> None:
    path = fields(tmp_path / 'fields.gpkg', ['meadow', None, 'maize'])
    assert row(Polygons(path, column='crop', outside='wheat', labels=LABELS), 3)[:5] == [2, 0, -1, 0, 1]
    path = fields(tmp_path / 'numbers.gpkg', [2, float('nan'), 1])
    assert row(Polygons(path, column='crop', outside='wheat', labels=LABELS), 3)[:5] == [2, 0, -1, 0, 1]


def test_without_a_column_there_are_two_classes(tmp_path: Path) -> None:
    assert row(Polygons(fields(tmp_path / 'fields.gpkg', [5, 6]), labels=('ground', 'house')), 2)[:3] == [1, 0, 1]


def test_a_class_without_a_field_is_told(tmp_path: Path) -> None:
    path = fields(tmp_path / 'fields.gpkg', ['wheat', 'maize'])
    with pytest.warns(UserWarning, match=r"fields.gpkg is \['meadow'\]; \"outside: meadow\" in the mask would"):
        Polygons(path, column='crop', labels=LABELS)
    with pytest.warns(UserWarning, match=r"fields.gpkg is \['meadow'\]$"):
        Polygons(path, column='crop', outside='wheat', labels=LABELS)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            {'column': 'krop'},
            r"fields.gpkg has the columns \['crop', 'owner'\], expected 'krop', the column of the mask",
        ),
        (
            {'column': 'crop', 'labels': ('wheat',)},
            r"has 'maize' in the column 'crop', expected numbers or some of the",
        ),
        ({'column': 'crop', 'outside': 'none'}, r"outside of the mask is 'none', expected one of the labels \['wheat'"),
        ({'column': 'crop', 'outside': 3}, r'outside of the mask is 3, expected one of the labels'),
    ],
)
def test_errors_name_what_is_wrong(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = fields(tmp_path / 'fields.gpkg', ['wheat', 'maize'])
    with pytest.raises(ValueError, match=message):
        Polygons(path, **{'labels': LABELS, **settings})
