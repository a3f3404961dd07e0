# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""COG: what is written part by part is one file, its legend inside, whatever its kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from torchgeo_omnisat.prediction.raster import (
    MapBands,
    _color_tables,
    class_colors,
    draw_overview,
    set_colors,
    write_map,
)
from torchgeo_omnisat.prediction.tiling import Window

from .areas import LABELS, is_cog, make_grid

COLORS = class_colors(3, ['#0a141e', 'yellow', 'red'])


@pytest.mark.parametrize('precision', ['uint8', 'uint16', 'none'])
def test_parts_come_back(tmp_path: Path, precision: Any) -> None:
    bands, path = MapBands(LABELS, ['s2'], precision), tmp_path / 'map.tif'
    values = np.random.default_rng(0).integers(0, 3, (len(bands.names), 700, 300)).astype(bands.dtype)
    parts = [(Window(row, 0, 50, 300), values[:, row : row + 50]) for row in range(0, 650, 50)]
    assert write_map(path, tmp_path / 'scratch', make_grid(700, 300), bands, parts, COLORS, {'A': 'b'}) == 650 * 300
    with rasterio.open(path) as file:
        read = file.read()
        assert file.tags()['A'] == 'b'
        assert file.colormap(1)[0][:3] == (10, 20, 30)
        assert file.overviews(1) == [2, 4]
    assert is_cog(path)
    assert np.array_equal(read[:, :650], values[:, :650])
    assert (read[:, 650:] == bands.nodata).all()
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize('options', [{'bigtiff': 'YES'}, {'bigtiff': 'NO'}, {'endianness': 'BIG'}])
def test_colors_in_any_tiff(tmp_path: Path, options: dict[str, str]) -> None:
    path = tmp_path / 'map.tif'
    size = {'width': 20, 'height': 20, 'count': 4, 'dtype': 'uint8', 'photometric': 'PALETTE'}
    with rasterio.open(path, 'w', driver='GTiff', **size, **options) as file:
        file.write(np.ones((4, 20, 20), np.uint8))
    assert set_colors(path, COLORS) == 1
    with rasterio.open(path) as file:
        assert file.colormap(1)[0][:3] == (10, 20, 30)
        assert file.colormap(1)[1][:3] == (255, 255, 0)
        assert (file.read() == 1).all()
    with path.open('rb') as raw:  # TIFF has 16 bits a colour; GDAL would forgive 8
        ((order, place, entries),) = _color_tables(raw)
        raw.seek(place)
        table = np.frombuffer(raw.read(6 * entries), f'{order}u2').reshape(3, entries)
    assert table[:, 1].tolist() == [65535, 65535, 0]


def test_classes_differ_in_color() -> None:
    for count in (2, 10, 20, 60):
        assert len(np.unique(class_colors(count), axis=0)) == count


def test_between_two_classes_there_is_no_third(tmp_path: Path) -> None:
    bands, path = MapBands(LABELS, ['s2'], 'none'), tmp_path / 'map.tif'
    values = np.zeros((2, 300, 600), np.uint8)
    values[0, :, ::3] = 2
    write_map(path, tmp_path / 'scratch', make_grid(300, 600), bands, [(Window(0, 0, 300, 600), values)], COLORS)
    with rasterio.open(path, overview_level=0) as file:
        assert np.unique(file.read(1)).tolist() == [0, 2]


def test_overview_is_small_and_has_a_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('torchgeo_omnisat.prediction.raster.SIDE', 100)
    bands, path = MapBands(LABELS, ['s2'], 'none'), tmp_path / 'map.tif'
    values = np.zeros((2, 400, 600), np.uint8)
    values[0, :, 300:] = 2
    write_map(path, tmp_path / 'scratch', make_grid(500, 600), bands, [(Window(0, 0, 400, 600), values)], COLORS)
    figure = draw_overview(path, LABELS, COLORS, 'map')
    (image,) = figure.axes[0].get_images()
    drawn = np.asarray(image.get_array())
    assert drawn.shape == (83, 100, 3)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ['water  50.0%', 'town  50.0%', 'nodata']
    long = draw_overview(path, ['a' * 300, 'b', 'c'], COLORS).axes[0].get_legend()
    assert long is not None
    assert long.get_texts()[0].get_text() == f'{"a" * 57}...  50.0%'
    assert image.get_extent() == [600000, 606000, 5600000 - 5000, 5600000]
    assert drawn[10, 10].tolist() == [10, 20, 30]
    assert drawn[10, 90].tolist() == [255, 0, 0]
    assert drawn[80, 10].tolist() == [220, 220, 224]
