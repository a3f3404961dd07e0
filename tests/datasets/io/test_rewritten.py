# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Files that are written anew while the process lives are read anew, whatever is kept open or in memory."""

import json
import os
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from torchgeo.datasets import RasterDataset

from tests.geo_tree import UTM, X, Y, write
from tests.treesatai_tree import h5, rewrite, write_treesatai_tree
from torchgeo_omnisat.datasets import MultimodalGeoDataset, RasterTimeSeries, TreeSatAITimeSeries
from torchgeo_omnisat.datasets.adapters import MappedDataset
from torchgeo_omnisat.datasets.geo.parts import _bands_of
from torchgeo_omnisat.datasets.geo.polygons import Polygons
from torchgeo_omnisat.datasets.io import opening
from torchgeo_omnisat.datasets.io.fingerprint import Fingerprint, describe_change, list_data_files, stamps, state_of

WINDOW = slice(X, X + 80, 10.0), slice(Y - 80, Y, 10.0)


def fill(path: Path, value: int, way: str = 'in place') -> Path:
    """Write 8 x 8 pixels of one value, of the same number of bytes each time."""
    image = np.full((8, 8), value, np.uint8)
    if way == 'in place' or not path.exists():
        return write(path, image)
    write(path.with_suffix('.new'), image).replace(path)
    return path


class Doubled(RasterDataset):
    """A dataset with code of its own, which is asked and keeps files open as TorchGeo does."""

    filename_glob = 'a_*.tif'
    filename_regex = r'.*?(?P<date>\d{8})'

    def __getitem__(self, index: Any) -> Any:
        sample = super().__getitem__(index)
        return {**sample, 'image': sample['image'] * 2}


@pytest.mark.parametrize('way', ['in place', 'replaced'])
@pytest.mark.parametrize('temporal', [True, False])
def test_rasters_and_raster_labels(tmp_path: Path, way: str, temporal: bool) -> None:
    path, labels = fill(tmp_path / 'a_20210101.tif', 1), fill(tmp_path / 'labels.tif', 4)
    series = RasterTimeSeries(path, name='s', temporal=temporal)
    mask = RasterTimeSeries(labels, name='mask', temporal=False)
    joined = MultimodalGeoDataset({'s': series, 'own': Doubled(tmp_path)}, mask=mask, gsd={'own': 10})
    for value in (1, 2, 3):
        if value > 1:
            fill(path, value, way)
            fill(labels, 4 + value, way)
        assert series[WINDOW]['image_s'].unique().tolist() == [value]
        sample = joined[WINDOW]
        assert sample['image_s'].unique().tolist() == [value]
        assert sample['image_own'].unique().tolist() == [2 * value]
        assert sample['mask'].unique().tolist() == [4 + value if value > 1 else 4]


def test_files_stay_open_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fill(tmp_path / 'a_20210101.tif', 1)
    series, opened, original = RasterTimeSeries(path, name='s'), list[str](), opening.DatasetReader

    def count(path: str, *args: Any, **kwargs: Any) -> Any:
        opened.append(path)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(opening, 'DatasetReader', count)
    for _ in range(3):
        series[WINDOW]
    assert len(opened) == 1


def test_a_virtual_raster_and_a_mask_beside_a_raster(tmp_path: Path) -> None:
    path = fill(tmp_path / 'b.tif', 1)
    head = f'<SRS>{UTM}</SRS><GeoTransform>{X},10,0,{Y},0,-10</GeoTransform>'
    (tmp_path / 'a_20210101.vrt').write_text(
        f'<VRTDataset rasterXSize="8" rasterYSize="8">{head}<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">b.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        '</VRTRasterBand></VRTDataset>'
    )
    series = RasterTimeSeries(tmp_path / 'a_20210101.vrt', name='s')
    assert series[WINDOW]['image_s'].unique().tolist() == [1]
    before = stamps([tmp_path / 'a_20210101.vrt'], tmp_path)
    assert [name for name, *_ in before] == ['a_20210101.vrt', 'b.tif']
    fill(path, 2, 'replaced')
    assert series[WINDOW]['image_s'].unique().tolist() == [2]
    assert stamps([tmp_path / 'a_20210101.vrt'], tmp_path) != before

    masked = RasterTimeSeries(path, name='s', temporal=False)
    assert masked[WINDOW]['image_s'].isfinite().all()
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, 'r+') as file:
        file.write_mask(np.zeros((8, 8), np.uint8))
    assert (tmp_path / 'b.tif.msk').exists()
    assert masked[WINDOW]['image_s'].isnan().all()
    assert [name for name, *_ in stamps([path], tmp_path)] == ['b.tif', 'b.tif.msk']


def test_an_archive(tmp_path: Path) -> None:
    def pack(value: int) -> None:
        fill(tmp_path / 'a_20210101.tif', value)
        with zipfile.ZipFile(tmp_path / 'new.zip', 'w') as archive:
            archive.write(tmp_path / 'a_20210101.tif', 'a_20210101.tif')
        (tmp_path / 'new.zip').replace(tmp_path / 'a.zip')

    pack(1)
    series = RasterTimeSeries(f'/vsizip/{tmp_path}/a.zip/a_20210101.tif', name='s')
    assert series[WINDOW]['image_s'].unique().tolist() == [1]
    before = state_of(f'/vsizip/{tmp_path}/a.zip/a_20210101.tif')
    pack(2)
    assert series[WINDOW]['image_s'].unique().tolist() == [2]
    assert state_of(f'/vsizip/{{{tmp_path}/a.zip}}/a_20210101.tif') not in (before, None)
    assert state_of('/vsicurl/https://example.org/a.tif') is None


@pytest.mark.parametrize('suffix', ['.gpkg', '.shp', '.geojson'])
def test_polygons(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f'fields{suffix}'

    def draw(crop: str) -> None:
        gpd.GeoDataFrame({'crop': [crop]}, geometry=[shapely.box(X, Y - 80, X + 80, Y)], crs=UTM).to_file(path)

    draw('wheat')
    labels = Polygons(path, crs=UTM, column='crop', labels=('maize', 'wheat'))
    assert labels[WINDOW]['mask'][1:-1, 1:-1].unique().tolist() == [1]
    draw('maize')
    assert labels[WINDOW]['mask'][1:-1, 1:-1].unique().tolist() == [0]


def test_hdf5_and_aerial_images(tmp_path: Path) -> None:
    dataset = TreeSatAITimeSeries(write_treesatai_tree(tmp_path), split=None)
    for value in (100, 200):
        image = np.full((2, 10, 6, 6), value, np.float32)
        rewrite(
            h5(tmp_path, 0), 's2', image, ['20190103', f'20190{value // 100}05'], np.zeros((2, 2, 6, 6), np.float32)
        )
        with rasterio.open(dataset._aerial_file(dataset.names[0]), 'r+') as file:
            file.write(np.full((4, 304, 304), value, np.uint8))
        sample = dataset[0]
        assert sample['image_s2'].unique().tolist() == [value]
        assert sample['image_aerial'].unique().tolist() == [value]
        assert sample['dates_s2'][1] - sample['dates_s2'][0] == {100: 2, 200: 33}[value]


def test_number_of_bands(tmp_path: Path) -> None:
    for count in (1, 3):
        assert _bands_of(str(write(tmp_path / 'a.tif', np.ones((count, 8, 8), np.uint8)))) == count


class TestFingerprint:
    def test_names_sizes_and_times_count_and_the_root_does_not(self, tmp_path: Path) -> None:
        prints = []
        for folder in ('one', 'two'):
            path = tmp_path / folder / 'deep/a.tif'
            path.parent.mkdir(parents=True)
            path.write_bytes(b'abc')
            os.utime(path, ns=(5, 5))
            prints.append(Fingerprint.of(stamps([path, tmp_path / folder / 'gone.tif'], tmp_path / folder)))
        assert prints[0] == prints[1]
        assert (prints[0].count, prints[0].bytes, prints[0].newest) == (2, 3, 5)
        found = stamps([path], tmp_path / 'two')
        assert found == [('deep/a.tif', 3, 5)]
        assert Fingerprint.of(found, ['1']).digest != Fingerprint.of(found, ['2']).digest

    def test_what_changed_is_described(self) -> None:
        then = json.loads(json.dumps(asdict(Fingerprint.of([('a', 3, 5), ('b', 4, 6)]))))
        assert describe_change(then, [('a', 3, 7), ('b', 4, 8)]) == '2 of 2 files are newer, such as b'
        assert describe_change(then, [('a', 3, 5)]) == 'number of files 1, before 2'
        assert describe_change(then, [('a', 3, 5), ('b', 5, 6)]) == '2 files of 8 bytes, before 7'
        assert 'as those of a copy do' in describe_change(then, [('a', 3, 4), ('b', 4, 6)])

    def test_data_files_below_a_folder(self, tmp_path: Path) -> None:
        for name in ('x/a.tif', 'b.NPY', '.hidden/c.tif', 'STATISTICS.json', '.d.tif'):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert sorted(list_data_files(tmp_path)) == [str(tmp_path / name) for name in ('b.NPY', 'x/a.tif')]
        assert list_data_files(tmp_path, most=1) == list_data_files(tmp_path / 'gone') == []

    @pytest.mark.parametrize('attribute', ['files', 'samples', 'root', ''])
    def test_datasets_of_torchgeo_tell_their_files_or_not(self, tmp_path: Path, attribute: str) -> None:
        class Given:
            def __len__(self) -> int:
                return 2

        given = Given()
        paths = [tmp_path / f'{number}.tif' for number in range(2)]
        for path in paths:
            path.touch()
        told: dict[str, Any] = {
            'files': [{'image': str(path), 'id': 'x'} for path in paths],
            'samples': [(str(path), 1) for path in paths],
            'root': tmp_path,
        }
        if attribute:
            setattr(given, attribute, told[attribute])
        dataset = MappedDataset(given, [{'name': 'a', 'bands': ['x'], 'gsd': 10, 'temporal': False}], {'a': 'image'})
        expected = {'files': paths[1:], 'samples': paths[1:], 'root': paths, '': []}[attribute]
        assert sorted(dataset.image_files('a', [1])) == [str(path) for path in expected]


def test_file_of_equal_size_and_time_that_is_written_in_place(tmp_path: Path) -> None:
    path = write(tmp_path / 'a_20210101.tif', np.full((8, 8), 1, np.uint8))
    window, status = (slice(X, X + 80), slice(Y - 80, Y)), path.stat()
    series = RasterTimeSeries(tmp_path)
    assert series[window]['image_raster'].unique().tolist() == [1]
    path.write_bytes(write(tmp_path / 'other/b.tif', np.full((8, 8), 2, np.uint8)).read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_ino == status.st_ino
    assert series[window]['image_raster'].unique().tolist() == [2]
