# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Ground in other CRSs: refused where its pixels would be distorted, taken where they are not, and never shifted."""

import warnings
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin
from torchgeo.datasets import RasterDataset

from tests.geo_tree import UTM, X, Y, ramp, write
from torchgeo_omnisat.datamodules import MultimodalGeoDataModule
from torchgeo_omnisat.datasets import MultimodalGeoDataset, RasterTimeSeries
from torchgeo_omnisat.datasets.geo.polygons import Polygons

#: Chips in UTM zones a hundred degrees apart, which GDAL brings to one zone, and others, which it cannot.
FAR = [('EPSG:32632', 550000.0, 6344000.0), ('EPSG:32616', 694000.0, 6075000.0)]
BEYOND = [('EPSG:32722', 790000.0, 7198000.0), ('EPSG:32736', 617000.0, 9625000.0)]
NEAR = [('EPSG:32631', 720000.0, 5600000.0), ('EPSG:32632', 280000.0, 5600000.0)]


def chips(folder: Path, zones: Any) -> Path:
    for number, (crs, x, y) in enumerate(zones):
        write(folder / f'{number}.tif', np.ones((32, 32), np.uint8), (x, y), crs=crs)
    return folder


def one(folder: Path, crs: str, origin: tuple[float, float], value: int = 1, size: int = 32) -> RasterTimeSeries:
    write(folder / 'a.tif', np.full((size, size), value, np.uint8), origin, crs=crs)
    return RasterTimeSeries(folder, name=folder.name, temporal=False)


@pytest.mark.parametrize('zones', [FAR, BEYOND])
def test_chips_of_far_zones_are_refused_by_name(tmp_path: Path, zones: Any) -> None:
    with pytest.raises(ValueError, match=r'1\.tif') as caught:
        RasterTimeSeries(chips(tmp_path, zones), temporal=False)
    for crs, _, _ in zones:
        assert crs in str(caught.value)


def test_neighbouring_zones_keep_their_area(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match='1 of 2 files'):
        dataset = RasterTimeSeries(chips(tmp_path, NEAR), temporal=False)
    np.testing.assert_allclose(dataset.index.area, 320**2, rtol=0.03)


@pytest.mark.parametrize('part', ['images', 'mask'])
@pytest.mark.parametrize('zones', [FAR, BEYOND])
def test_every_part_of_a_join_is_refused(tmp_path: Path, part: str, zones: Any) -> None:
    first, second = (one(tmp_path / f's{i}', crs, (x, y)) for i, (crs, x, y) in enumerate(zones))
    parts = {'images': ({'a': first, 'b': second}, None), 'mask': ({'b': second}, first)}[part]
    with pytest.raises(ValueError, match=r'a\.tif') as caught:
        MultimodalGeoDataset(*parts, crs=zones[0][0])
    assert all(crs in str(caught.value) for crs, _, _ in zones)


def test_what_torchgeo_has_moved_is_refused(tmp_path: Path) -> None:
    foreign = RasterDataset(chips(tmp_path / 'far', FAR))
    assert foreign.index.area.max() > 1.3 * 320**2
    with pytest.raises(ValueError, match=r'1\.tif.*EPSG:32616'):
        MultimodalGeoDataset({'s2': foreign})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        MultimodalGeoDataset({'s2': RasterDataset(chips(tmp_path / 'near', NEAR[:1]))})


def test_a_map_of_the_world_is_taken_where_it_is_needed(tmp_path: Path) -> None:
    images = one(tmp_path / 's2', UTM, (X, Y))
    world = np.full((180, 360), 3, np.uint8)
    write(tmp_path / 'world.tif', world, (-180, 90), 1, crs='EPSG:4326')
    dataset = RasterTimeSeries(tmp_path / 'world.tif', name='world', temporal=False)
    for join in (
        MultimodalGeoDataset({'s2': images, 'world': dataset}, required=('s2', 'world'), gsd={'world': 10}),
        MultimodalGeoDataset({'s2': images}, dataset, crs=UTM, label_gsd=10),
    ):
        assert join.area.bounds == pytest.approx((X, Y - 320, X + 320, Y))
        sample = join[slice(X, X + 320), slice(Y - 320, Y)]
        assert (sample.get('image_world', sample.get('mask')) == 3).all()
    square = gpd.GeoDataFrame({'c': [1]}, geometry=[shapely.box(-170, -80, 170, 80)], crs='EPSG:4326')
    square.to_file(tmp_path / 'world.gpkg')
    fields = Polygons(tmp_path / 'world.gpkg', column='c')
    join = MultimodalGeoDataset({'s2': images}, fields, crs=UTM)
    assert (join[slice(X, X + 320), slice(Y - 320, Y)]['mask'] == 1).all()


LOCAL = 'LOCAL_CS["RGF93 / Lambert-93",UNIT["metre",1]]'


@pytest.mark.parametrize('crs', [None, LOCAL])
def test_a_raster_without_a_crs_takes_the_one_that_is_given(tmp_path: Path, crs: str | None) -> None:
    """Its pixels lie there in a join of another CRS too."""
    for name, stated in (('told', UTM), ('untold', crs)):
        path = write(tmp_path / name / 'a.tif', ramp(64, 64), transform=from_origin(X, Y, 10, 10), crs=None)
        with rasterio.open(path, 'r+') as file:
            file.crs = rasterio.CRS.from_user_input(stated) if stated else rasterio.CRS()
    with pytest.raises(ValueError, match=r'a\.tif.*crs'):
        RasterTimeSeries(tmp_path / 'untold', temporal=False)
    images = []
    for name in ('told', 'untold'):
        dataset = RasterTimeSeries(tmp_path / name, UTM, name='a', temporal=False)
        for target in (UTM, 'EPSG:3035'):
            join = MultimodalGeoDataset({'a': dataset}, crs=target)
            left, top = join.index.geometry.iloc[0].centroid.coords[0]
            images.append(join[slice(left - 100, left + 100), slice(top - 100, top + 100)]['image_a'].numpy())
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(images[1], images[3])
    assert np.isfinite(images[3]).all()


def test_files_on_other_pixel_grids_are_told_once(tmp_path: Path) -> None:
    write(tmp_path / 's2/S2_20210101.tif', ramp(32, 32))
    write(tmp_path / 's2/S2_20210111.tif', ramp(32, 32), (X + 320, Y))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        RasterTimeSeries(tmp_path / 's2', name='s2')
    write(tmp_path / 's2/S2_20210121.tif', ramp(32, 32), (X + 5, Y))
    write(tmp_path / 's2/S2_20210131.tif', ramp(16, 16), step=20)
    with pytest.warns(UserWarning, match='s2') as caught:
        RasterTimeSeries(tmp_path / 's2', name='s2')
    (told,) = [str(warning.message) for warning in caught]
    assert all(part in told for part in ('s2: 2 of 4', 'shifted by 0.5', 'pixels of 20'))


def test_modalities_beside_the_grid_are_told(tmp_path: Path) -> None:
    images = one(tmp_path / 's2', UTM, (X, Y), size=64)
    labels = one(tmp_path / 'labels', UTM, (X + 5, Y))
    with pytest.warns(UserWarning, match=r's2.*0\.5.*pixel'):
        MultimodalGeoDataset({'s2': images}, labels)
    finer = RasterTimeSeries(write(tmp_path / 'f/a.tif', ramp(40, 40), (X + 4, Y), 2), name='f', temporal=False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        MultimodalGeoDataset({'s2': images, 'f': finer})


def mask_of(root: Path, codes: np.ndarray[Any, Any], step: float, **changes: Any) -> Any:
    write(root / 's2/a_20210101.tif', ramp(4, 4))
    write(root / 'labels/a.tif', codes.astype(np.uint8), step=step, nodata=255)
    told = {'mask': {'path': 'labels'}, 'labels': ['a', 'b', 'c'], 'label_gsd': 10, 'tile_size': 40, **changes}
    join = MultimodalGeoDataModule(str(root), {'s2': {'path': 's2', 'gsd': 10}}, **told).labelled
    return join[slice(X, X + 40), slice(Y - 40, Y)]['mask']


def test_finer_labels_take_the_majority(tmp_path: Path) -> None:
    codes = np.zeros((16, 16), np.uint8)
    codes[:4, :4] = np.array([[1, 1, 1, 2], [1, 1, 1, 2], [1, 0, 0, 2], [1, 0, 0, 2]])  # 8 of 16, the centre is 0
    codes[:4, 4:8] = np.array([[2] * 4, [2] * 4, [1] * 4, [1] * 4])  # a tie: the first class
    codes[:4, 8:12] = 255
    codes[:2, 8:12] = 1  # half of it is labelled
    codes[:4, 12:] = 255
    codes[0, 12:] = 1  # a quarter is
    mask = mask_of(tmp_path, codes, 2.5)
    assert mask[0].tolist() == [1, 1, 1, 255]
    assert (mask[1:] == 0).all()


def test_the_majority_is_one_of_classes_not_of_codes(tmp_path: Path) -> None:
    codes = np.full((8, 8), 30)
    codes[:2, :2] = [[10, 11], [30, 12]]
    classes = {10: 'a', 11: 'a', 12: 'b', 30: 'c'}
    mask = mask_of(tmp_path, codes, 5, mask={'path': 'labels', 'classes': classes})
    assert mask[0, 0] == 0
    assert (mask[1:] == 2).all()


def test_a_rare_code_of_no_class_is_not_outvoted(tmp_path: Path) -> None:
    codes = np.zeros((16, 16))
    codes[5, 5] = 77
    with pytest.raises(ValueError, match='77'):
        mask_of(tmp_path, codes, 2.5)


def test_coarser_and_shifted_labels_take_the_pixel_at_the_centre(tmp_path: Path) -> None:
    mask = mask_of(tmp_path, np.array([[0, 1], [2, 0]]), 20)
    assert mask.tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 0, 0]] * 2
