# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""MultimodalGeoDataset: the same ground in every modality, and what is missing is missing."""

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
import torch
from matplotlib.figure import Figure
from rasterio import Affine
from torch.utils.data import DataLoader
from torchgeo.datasets import (
    CDL,
    NAIP,
    IntersectionDataset,
    RasterDataset,
    Sentinel2,
    UnionDataset,
    VectorDataset,
    stack_samples,
    unbind_samples,
)
from torchgeo.datasets.splits import random_grid_cell_assignment, roi_split, time_series_split
from torchgeo.samplers import GriddedPatchSampler, RandomPatchSampler, SequentialPeriodSampler

from tests.geo_tree import UTM, X, Y, ramp, write
from torchgeo_omnisat.batch import available, check, collate
from torchgeo_omnisat.datasets import MultimodalGeoDataset, RasterTimeSeries
from torchgeo_omnisat.datasets.geo.polygons import Polygons
from torchgeo_omnisat.datasets.rasters.georeference import window_grid


class Labels(RasterDataset):
    filename_glob = 'labels*.tif'
    is_image = False


def window(left: float = 0, top: float = 0, width: float = 16, height: float = 16) -> tuple[slice, slice]:
    """Pixels of 10 m from the upper left corner of everything."""
    x, y = X + 10 * left, Y - 10 * top
    return slice(x, x + 10 * width), slice(y - 10 * height, y)


def at(bounds: torch.Tensor) -> tuple[float, float]:
    """The upper left corner in pixels of 10 m."""
    return (bounds[0].item() - X) / 10, (Y - bounds[4].item()) / 10


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 x 48 px of 10 m; radar of 20 m on the western half, aerial images of 0.2 m on 4 x 4 px."""
    root = tmp_path_factory.mktemp('geo')
    for number, stamp in enumerate(('20200901', '20210301', '20220301')):
        write(root / f's2/S2_{stamp}.tif', ramp(48, 48, 2) + number, bands=('B04', 'B08'))
    for stamp in '20200915', '20210315':
        write(root / f's1/S1_{stamp}.tif', -ramp(24, 12) / 1000, step=20, bands=('VV',))
    write(root / 'aerial/a_20190701.tif', np.full((3, 200, 200), 9, np.uint8), (X + 80, Y - 80), 0.2)
    labels = np.arange(48 * 48).reshape(48, 48) % 5
    labels[0, 0] = 255
    write(root / 'labels.tif', labels.astype(np.uint8), nodata=255)
    return root


@pytest.fixture
def children(root: Path) -> dict[str, Any]:
    return {
        's2': RasterTimeSeries(root / 's2', name='s2'),
        's1': RasterTimeSeries(root / 's1', name='s1', decibels=True),
        'aerial': RasterTimeSeries(root / 'aerial', temporal=False),
    }


@pytest.fixture
def joined(children: dict[str, Any], root: Path) -> MultimodalGeoDataset:
    return MultimodalGeoDataset(children, mask=Labels(root), required=('s2',))


def test_every_modality_has_its_own_pixels_and_dates(joined: MultimodalGeoDataset) -> None:
    sample = joined[window(8, 8, 4, 4)]
    shapes = {key: tuple(sample[key].shape) for key in ('image_s2', 'image_s1', 'image_aerial', 'mask')}
    assert shapes == {'image_s2': (3, 2, 4, 4), 'image_s1': (2, 1, 2, 2), 'image_aerial': (3, 200, 200), 'mask': (4, 4)}
    check(sample, joined.modalities, batched=False)
    days = sample['dates_s2'].numpy().astype('datetime64[D]').astype(str).tolist()
    assert days == ['2020-09-01', '2021-03-01', '2022-03-01']
    assert {m.name: m.gsd for m in joined.modalities.values()} == {'s2': 10, 's1': 20, 'aerial': 0.2}
    expected = torch.from_numpy(ramp(48, 48, 2))[:, 8:12, 8:12]
    torch.testing.assert_close(sample['image_s2'][0], expected)
    torch.testing.assert_close(sample['image_s1'][0], -torch.from_numpy(ramp(24, 12))[:, 4:6, 4:6] / 1000)
    assert (sample['image_aerial'] == 9).all()
    assert torch.equal(sample['mask'], torch.arange(48 * 48).view(48, 48)[8:12, 8:12] % 5)


def test_a_window_is_moved_to_where_pixels_meet(joined: MultimodalGeoDataset) -> None:
    assert (joined.lattice, joined.step, joined.res) == (20, 20, (10, 10))
    sample = joined[window(8.7, 9.4, 4.4, 3.3)]
    assert at(sample['bounds']) == (8, 10)
    assert sample['image_s2'].shape[-2:] == (4, 4)
    assert sample['image_s1'].shape[-2:] == (2, 2)
    torch.testing.assert_close(sample['image_s2'][0], torch.from_numpy(ramp(48, 48, 2))[:, 10:14, 8:12])
    side_by_side = [at(joined[window(left + 1, 0, 4, 4)]['bounds'])[0] for left in (0, 4, 8)]
    assert side_by_side == [2, 6, 10]


def test_tiles_are_a_whole_number_of_patches(children: dict[str, Any]) -> None:
    joined = MultimodalGeoDataset(children, patch_size=40)
    assert (joined.lattice, joined.step) == (20, 40)
    assert joined[window(2, 2, 15, 15)]['image_s2'].shape[-2:] == (16, 16)
    assert at(joined[window(2, 2, 15, 15)]['bounds']) == (2, 2)
    with pytest.raises(ValueError, match=r'gsd sets.*modality'):
        MultimodalGeoDataset(children, patch_size=33.333)


def test_a_modality_without_anything_is_missing(joined: MultimodalGeoDataset) -> None:
    east, west = joined[window(30, 0)], joined[window(0, 20)]
    assert not {'image_s1', 'image_aerial'} & east.keys()
    assert 'image_s1' in west
    batch = collate([east, west], joined.modalities)
    assert available(batch, joined.modalities).tolist() == [[True, False, False], [True, True, False]]


def test_a_modality_may_end_inside_a_tile(joined: MultimodalGeoDataset) -> None:
    sample = joined[window(16, 0)]
    image = sample['image_s1'][0, 0]
    assert image[:, :4].isfinite().all()
    assert image[:, 4:].isnan().all()
    assert sample['valid_s1'].all()


def test_a_modality_that_is_nowhere_near(children: dict[str, Any], root: Path, tmp_path: Path) -> None:
    write(tmp_path / 'far_20200101.tif', ramp(4, 4), (X + 1e5, Y))
    children['dem'] = RasterTimeSeries(tmp_path, temporal=False)
    joined = MultimodalGeoDataset(children, mask=Labels(root))
    assert 'image_dem' not in joined[window()]
    assert joined.modalities['dem'].gsd == 10
    with pytest.raises(ValueError, match=r"\['s2', 'dem', 'mask'\]"):
        MultimodalGeoDataset(children, mask=Labels(root), required=('s2', 'dem'))


def test_required_and_labels_restrict_the_ground(children: dict[str, Any], root: Path) -> None:
    area = MultimodalGeoDataset(children, required=('s1',)).area
    assert area.bounds == (X, Y - 480, X + 240, Y)
    assert MultimodalGeoDataset({'aerial': children['aerial']}, mask=Labels(root)).area.area == pytest.approx(1600)
    part = MultimodalGeoDataset(children).clip(shapely.box(X, Y - 100, X + 100, Y))
    assert part.area.area == pytest.approx(1e4)
    with pytest.raises(ValueError, match=r'area.*bounds'):
        part.clip(shapely.box(0, 0, 1, 1))
    with pytest.raises(ValueError, match=r"\['area'\]"):
        MultimodalGeoDataset(children, area=shapely.box(0, 0, 1, 1))


def test_a_window_outside(joined: MultimodalGeoDataset) -> None:
    with pytest.raises(IndexError, match=r'data'):
        joined[window(100, 100)]
    with pytest.raises(IndexError, match=r'is outside'):
        joined[window(48, 0)]  # touches


def test_datasets_of_other_crs_see_the_same_ground(tmp_path: Path, root: Path) -> None:
    degrees = RasterTimeSeries(root / 's2', name='s2', crs='EPSG:4326', res=0.0001)
    x, y, _ = degrees.bounds
    image = degrees[x, y]['image_s2'][0]
    write(tmp_path / 'deg/a_20210101.tif', image.numpy(), (x.start, y.stop), 0.0001, 'EPSG:4326')
    zone = RasterTimeSeries(root / 's2', name='s2', crs='EPSG:32632', res=10)
    x, y, _ = zone.bounds
    image = zone[x, y]['image_s2'][0]
    write(tmp_path / 'zone/a_20210101.tif', image.numpy(), (x.start, y.stop), 10, 'EPSG:32632')
    joined = MultimodalGeoDataset(
        {
            's2': RasterTimeSeries(root / 's2'),
            'deg': RasterTimeSeries(tmp_path / 'deg'),
            'zone': RasterTimeSeries(tmp_path / 'zone'),
            'theirs': RasterDatasetOfSeries(tmp_path / 'zone', time_series=True),
        }
    )
    assert joined.crs == UTM
    assert {m.gsd for m in joined.modalities.values()} == {10}
    sample = joined[window(16, 16)]
    for name in 'deg', 'zone', 'theirs':
        assert (sample[f'image_{name}'][0] - sample['image_s2'][0]).abs().max() < 15  # of 100 a row
    # In degrees alone, the join takes a UTM zone.
    assert MultimodalGeoDataset({'deg': RasterTimeSeries(tmp_path / 'deg')}).crs == UTM
    web = RasterTimeSeries(root / 's2', crs='EPSG:3857', res=16)  # 10 m at this latitude
    assert MultimodalGeoDataset({'deg': RasterTimeSeries(tmp_path / 'deg'), 'web': web}).crs == UTM
    for crs in 'EPSG:4326', 'EPSG:3857':
        with pytest.raises(ValueError, match=r'projected.*metres'):
            MultimodalGeoDataset({'deg': RasterTimeSeries(tmp_path / 'deg')}, crs=crs)


def test_sides_that_are_bent_in_the_crs_of_the_join(tmp_path: Path) -> None:
    """In the middle of its southern side a degree of longitude sags by 120 m."""
    write(tmp_path / 'deg/a_20210101.tif', np.ones((50, 100), np.uint8), (2, 51), 0.01, 'EPSG:4326')
    box = shapely.box(2, 50.5, 3, 51)
    gpd.GeoDataFrame({'c': [1]}, geometry=[box.segmentize(0.01)], crs=4326).to_file(tmp_path / 'fields.geojson')
    labels = Polygons(tmp_path / 'fields.geojson', column='c')
    joined = MultimodalGeoDataset({'deg': RasterTimeSeries(tmp_path / 'deg')}, mask=labels, crs=UTM, label_gsd=10)
    assert joined.modalities['deg'].gsd == 1110
    x, y = gpd.GeoSeries([shapely.Point(2.5, 50.5)], crs=4326).to_crs(UTM).iloc[0].coords[0]
    assert joined.area.contains(shapely.Point(x, y + 5))
    sample = joined[x - 1110 : x + 1110, y + 20 : y + 1130]
    assert (sample['mask'] == 1).all()
    assert sample['image_deg'].isfinite().all()


class RasterDatasetOfSeries(RasterDataset):
    filename_regex = r'.*?(?P<date>\d{8})'


def test_periods_of_their_own(children: dict[str, Any], root: Path) -> None:
    ranges = {'s2': ('2021-01-01', '2021-12-31'), 's1': ('2020-01-01', '2020-12-31')}
    joined = MultimodalGeoDataset(children, date_ranges=ranges)
    sample = joined[window()]
    assert (len(sample['dates_s2']), len(sample['dates_s1'])) == (1, 1)
    assert sample['dates_s1'].item() < sample['dates_s2'].item()
    with pytest.raises(ValueError, match=r"date_ranges.*'s1'.*period.*data"):
        MultimodalGeoDataset(children, date_ranges={'s1': ('2001-01-01', '2001-12-31')})
    with pytest.raises(ValueError, match=r"date_ranges.*\['s3'\]"):
        MultimodalGeoDataset(children, date_ranges={'s3': ('2001-01-01', '2001-12-31')})


def test_a_period_restricts_series_and_not_single_images(joined: MultimodalGeoDataset) -> None:
    x, y = window(8, 8, 4, 4)
    sample = joined[x, y, slice(pd.Timestamp('2021-01-01'), pd.Timestamp('2021-12-31'))]
    assert (len(sample['dates_s2']), len(sample['dates_s1'])) == (1, 1)
    assert {'image_aerial', 'mask'} <= sample.keys()  # of 2019, and of no date
    late = joined[x, y, slice(pd.Timestamp('2022-01-01'), pd.Timestamp('2022-12-31'))]
    assert 'image_s1' not in late


def test_torchgeos_own_datasets(root: Path, tmp_path: Path) -> None:
    for stamp in '20210105T104629', '20201231T104629':
        for tile, left in (('T31UFS', 0), ('T31UGS', 24)):  # two tiles of one day
            for band in 'B04', 'B08':
                image = ramp(48, 24) + left + (band == 'B08') * 10000
                write(tmp_path / f's2/{tile}_{stamp}_{band}.tif', image, (X + 10 * left, Y))
    write(tmp_path / 'naip/m_3807511_ne_18_060_20181104.tif', np.full((4, 80, 80), 3, np.uint8), (X, Y), 1)
    children = {
        's2': Sentinel2(tmp_path / 's2', bands=['B04', 'B08'], time_series=True),
        'mosaic': Sentinel2(tmp_path / 's2', bands=['B04', 'B08']),
        'naip': NAIP(tmp_path / 'naip'),
    }
    joined = MultimodalGeoDataset(children, mask=Labels(root))
    sample = joined[window()]
    assert joined.modalities['s2'].bands == joined.modalities['mosaic'].bands == ('B04', 'B08')
    assert sample['image_s2'].shape == (2, 2, 16, 16)
    assert sample['dates_s2'].diff().item() == 5
    torch.testing.assert_close(joined[window(16, 0)]['image_s2'][0], torch.from_numpy(ramp(48, 48, 2))[:, :16, 16:32])
    assert sample['image_mosaic'].shape == (2, 16, 16)
    assert sample['image_naip'].shape == (4, 160, 160)
    assert sample['image_naip'][:, :80, :80].eq(3).all()
    assert sample['image_naip'][:, 80:].isnan().all()


def test_a_dataset_with_code_of_its_own_is_asked(root: Path, tmp_path: Path) -> None:
    class Halved(RasterDataset):
        filename_glob = '*.tif'
        filename_regex = r'.*?(?P<date>\d{8})'

        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return {**sample, 'image': sample['image'] / 2}

    for series in True, False:
        joined = MultimodalGeoDataset({'s1': Halved(root / 's1', time_series=series)}, gsd={'s1': 10})
        image = joined[window(16, 0)]['image_s1']
        assert image.shape == ((2, 1, 16, 16) if series else (1, 16, 16))
        assert image[..., 8:].isnan().all()  # beyond the file, where TorchGeo says zero
        assert image[..., 0, 0].max() == pytest.approx(-(1 + 8) / 2000, abs=5e-4)

    write(tmp_path / '2021_30m_cdls.tif', np.full((48, 48), 5, np.uint8))
    labels = CDL(tmp_path, years=[2021], classes=[0, 1, 5])
    sample = MultimodalGeoDataset({'s2': RasterTimeSeries(root / 's2')}, mask=labels)[window()]
    assert (sample['mask'] == 2).all()  # the third of its classes


def test_vector_labels(root: Path, tmp_path: Path) -> None:
    shapes = [shapely.box(X, Y - 40, X + 80, Y), shapely.box(X + 320, Y - 480, X + 480, Y)]
    for crs in UTM, 'EPSG:4326':
        frame = gpd.GeoDataFrame({'crop': [3, 7]}, geometry=shapes, crs=UTM).to_crs(crs)
        path = tmp_path / crs.replace(':', '')
        path.mkdir()
        frame.to_file(path / 'fields.geojson')
        labels = VectorDataset(path, label_name='crop')
        joined = MultimodalGeoDataset({'s2': RasterTimeSeries(root / 's2')}, mask=labels, crs=UTM)
        mask = joined[window()]['mask']
        assert mask.shape == (16, 16)
        assert ((mask == 3).sum() - 32).abs() < (1 if crs == UTM else 9)
        assert set(mask.unique().tolist()) <= {0, 3, 255}


def test_vector_labels_do_not_set_the_crs(root: Path, tmp_path: Path) -> None:
    """Polygons are reprojected exactly, but images would be resampled."""
    series = RasterTimeSeries(root / 's2')
    frame = gpd.GeoDataFrame({'crop': [1]}, geometry=[shapely.box(X, Y - 160, X + 160, Y)], crs=UTM).to_crs('EPSG:2154')
    frame.to_file(tmp_path / 'fields.gpkg')
    labels = VectorDataset(tmp_path / 'fields.gpkg', label_name='crop')
    assert MultimodalGeoDataset({'s2': series}, mask=labels).crs == UTM
    far = frame.set_geometry(frame.translate(9000))
    (tmp_path / 'far').mkdir()
    far.to_file(tmp_path / 'far/fields.gpkg')
    with pytest.raises(ValueError, match=r'labels do not overlap any image: .*labels \(\d+.*s2 \(\d+'):
        MultimodalGeoDataset({'s2': series}, mask=VectorDataset(tmp_path / 'far', label_name='crop'))


def test_a_file_of_another_crs_moves_no_pixel(root: Path, tmp_path: Path) -> None:
    for path in sorted((root / 's2').glob('*.tif')):
        (tmp_path / path.name).symlink_to(path)
    write(tmp_path / 'a_20220505.tif', ramp(64, 64, 2), (173000.0, 5713000.0), crs='EPSG:32632')
    series = RasterTimeSeries(tmp_path, allow_outside=True)
    assert series.crs == UTM
    assert MultimodalGeoDataset({'s2': series}).corner == (X, Y)


def test_labels_end_inside_a_tile(joined: MultimodalGeoDataset, root: Path) -> None:
    assert joined[window()]['mask'][0, 0] == 255  # nodata
    mask = joined[window(40, 40)]['mask']
    assert torch.equal(mask == 255, ~((torch.arange(16) < 8)[:, None] & (torch.arange(16) < 8)))
    children = {'s2': RasterTimeSeries(root / 's2')}
    assert MultimodalGeoDataset(children, mask=Labels(root), ignore_index=-100)[window()]['mask'][0, 0] == -100


def test_torchgeos_samplers_and_workers(joined: MultimodalGeoDataset) -> None:
    sampler = RandomPatchSampler(joined, size=16, length=6, generator=0)
    loader = DataLoader(
        joined, batch_size=3, sampler=sampler, num_workers=2, collate_fn=lambda s: collate(s, joined.modalities)
    )
    for batch in loader:
        assert batch['image_s2'].shape[-2:] == batch['mask'].shape[-2:] == (16, 16)
        row, column = ((Y - batch['bounds'][:, 4]) / 10).long(), ((batch['bounds'][:, 0] - X) / 10).long()
        assert torch.equal(batch['image_s2'][:, 0, 0, 0, 0], (1 + 100 * row + column).float())
    indices = list(GriddedPatchSampler(joined, size=16))
    assert sorted(at(joined[index]['bounds']) for index in indices) == [
        (i, j) for i in (0, 16, 32) for j in (0, 16, 32)
    ]
    periods = SequentialPeriodSampler(joined, freq='Y')
    found = [len(joined[index].get('dates_s2', [])) for index in GriddedPatchSampler(joined, size=48) @ periods]
    assert found == [1, 1]
    again = pickle.loads(pickle.dumps(joined))
    torch.testing.assert_close(again[window()], joined[window()], equal_nan=True)


def test_stack_and_unbind(joined: MultimodalGeoDataset) -> None:
    samples = [joined[window(left, 0, 8, 8)] for left in (24, 32)]
    batch = stack_samples(samples)
    assert batch['image_s2'].shape == (2, 3, 2, 8, 8)
    for one, other in zip(unbind_samples(batch), samples, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    mixed = collate([joined[window(0, 0, 8, 8)], samples[0]], joined.modalities)
    assert [sample['valid_s1'].any().item() for sample in unbind_samples(mixed)] == [True, False]


def test_splits(joined: MultimodalGeoDataset) -> None:
    west, east = roi_split(joined, [shapely.box(X, Y - 480, X + 240, Y), shapely.box(X + 240, Y - 480, X + 480, Y)])
    assert 'image_s1' in west[window(0, 0, 8, 8)]
    with pytest.raises(IndexError):
        west[window(32, 0, 8, 8)]
    with pytest.raises(IndexError):
        east[window(8, 0, 8, 8)]
    parts = random_grid_cell_assignment(joined, [0.5, 0.5], grid_size=2, generator=torch.Generator().manual_seed(0))
    assert [len(part) for part in parts] == [2, 2]
    t, middle = joined.bounds[2], pd.Timestamp('2021-01-01')
    early, late = time_series_split(joined, [pd.Interval(t.start, middle), pd.Interval(middle, t.stop)])
    assert (len(early[window()]['dates_s2']), len(late[window()]['dates_s2'])) == (1, 2)


def test_intersections_and_unions(joined: MultimodalGeoDataset, children: dict[str, Any], root: Path) -> None:
    class Marks(RasterDataset):
        filename_glob = 'labels*.tif'
        filename_regex = 'labels'

    theirs = IntersectionDataset(MultimodalGeoDataset(children), Labels(root), spatial_only=True)
    sample = theirs[window(8, 8, 4, 4)]
    assert {'image_s2', 'image_s1', 'image_aerial', 'mask'} <= sample.keys()
    other = IntersectionDataset(Marks(root, crs='EPSG:32632'), MultimodalGeoDataset(children), spatial_only=True)
    assert other.crs == 'EPSG:32632'
    x, y, _ = other.bounds
    middle = slice((x.start + x.stop) / 2, (x.start + x.stop) / 2 + 80), slice(y.start + 200, y.start + 280)
    assert {'image', 'image_s2'} <= other[middle].keys()
    edges = (X, X + 160), (X + 320, X + 480)
    union = UnionDataset(*(joined.clip(shapely.box(left, Y - 480, right, Y)) for left, right in edges))
    assert 'image_s1' in union[window(0, 0, 8, 8)]
    assert 'image_s1' not in union[window(36, 0, 8, 8)]
    parts = [RasterDatasetOfSeries(root / 's2', time_series=True) for _ in range(2)]
    parts[0].index, parts[1].index = parts[0].index.iloc[:2], parts[1].index.iloc[2:]
    parted = MultimodalGeoDataset({'s2': parts[0] | parts[1]})
    torch.testing.assert_close(parted[window()]['image_s2'], joined[window()]['image_s2'])
    assert parted.modalities['s2'].temporal


def test_arguments(children: dict[str, Any], root: Path) -> None:
    with pytest.raises(ValueError, match=r"required.*'s2'.*\['s2', 's1', 'aerial'\]"):
        MultimodalGeoDataset(children, required='s2')
    with pytest.raises(ValueError, match=r"required.*\('spot',\)"):
        MultimodalGeoDataset(children, required=('spot',))
    with pytest.raises(ValueError, match=r"'s2'.*str.*GeoDataset"):
        MultimodalGeoDataset({'s2': str(root)})
    with pytest.raises(ValueError, match=r'datasets'):
        MultimodalGeoDataset({})
    with pytest.raises(ValueError, match=r"modality.*'Sentinel 2'"):
        MultimodalGeoDataset({'Sentinel 2': children['s2']})
    with pytest.raises(ValueError, match=r"gsd.*\['spot'\]"):
        MultimodalGeoDataset(children, gsd={'spot': 1})


def test_children_are_not_changed(children: dict[str, Any], root: Path) -> None:
    before = {name: (child.crs, child.res, len(child)) for name, child in children.items()}
    labels = Labels(root)
    MultimodalGeoDataset(children, mask=labels, crs='EPSG:32632', date_ranges={'s2': ('2021-01-01', '2021-12-31')})
    assert {name: (child.crs, child.res, len(child)) for name, child in children.items()} == before
    assert labels.crs == UTM


def test_plot(joined: MultimodalGeoDataset) -> None:
    sample = joined[window(8, 8, 4, 4)]
    assert isinstance(joined.plot({**sample, 'prediction': sample['mask']}, suptitle='Made up'), Figure)


def test_pixels_are_square(root: Path) -> None:
    with pytest.raises(ValueError, match=r'pixel size.*window.*10 x 20.*square'):
        window_grid(UTM, slice(X, X + 160, 10), slice(Y - 160, Y, 20))


class RasterDatasetOfAnotherSize(RasterDataset):
    """Two pixels more than were asked for, or nothing where it says that there is something."""

    filename_regex = r'S2_(?P<date>\d+)'
    lost = False

    def __getitem__(self, index: Any) -> dict[str, Any]:
        if self.lost:
            raise IndexError('nothing there')
        sample = super().__getitem__(index)
        return {**sample, 'image': torch.nn.functional.pad(sample['image'], (1, 1))}


def test_what_others_give_is_looked_at(root: Path) -> None:
    dataset = RasterDatasetOfAnotherSize(root / 's2')
    joined = MultimodalGeoDataset({'s2': dataset})
    with pytest.raises(ValueError, match=r"'s2'.*\(2, 16, 18\).*window.*16 x 16 pixels.*10.0 m"):
        joined[window()]
    for source in joined.sources.values():
        source.dataset.lost = True
    assert 'image_s2' not in joined[window()]


def test_one_modality_a_dataset(children: dict[str, Any]) -> None:
    both = MultimodalGeoDataset({'s2': children['s2'], 's1': children['s1']})
    with pytest.raises(ValueError, match=r"'all'.*modalities \['s2', 's1'\].*dataset"):
        MultimodalGeoDataset({'all': both})


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        ({'origin': (X + 3, Y)}, r'other has pixels of 10 m that are shifted by 0.3 pixels from the grid of the tiles'),
        ({'origin': (X, Y - 4)}, r'other has pixels of 10 m that are shifted by 0.4 pixels from the grid of the tiles'),
        ({'step': 9.0}, r'other has pixels of 9 m, the tiles have 10 m; it is resampled'),
        (
            {'origin': (183200.0, 5708800.0), 'crs': 'EPSG:32632'},
            r'other is in EPSG:32632, the tiles are in EPSG:32631; it is resampled',
        ),
        ({'origin': (X + 20, Y - 30)}, ''),
        ({'step': 20.0}, ''),
    ],
)
@pytest.mark.parametrize('labels', [False, True])
def test_no_two_grids_are_mixed_silently(tmp_path: Path, other: dict[str, Any], message: str, labels: bool) -> None:
    """What lies on other pixels is resampled to those of the tiles, and that is said."""
    write(tmp_path / 's2/a_20210101.tif', ramp(64, 64))
    write(tmp_path / 'other/b.tif', np.ones((64, 64), np.uint8), **other)
    s2 = RasterTimeSeries(tmp_path / 's2', name='s2')
    more = RasterTimeSeries(tmp_path / 'other', name='other', temporal=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        if labels:
            joined = MultimodalGeoDataset({'s2': s2}, mask=more, crs=UTM, label_gsd=10)
        else:
            gsd = {'other': 20 if other.get('step') == 20 else 10}
            joined = MultimodalGeoDataset({'s2': s2, 'other': more}, gsd=gsd)
    texts = [str(warning.message) for warning in said if 'resampled' in str(warning.message)]
    assert len(texts) == bool(message)
    assert all(re.search(message.replace('other', '(other|mask|s2)'), text) for text in texts)
    assert joined[window(16, 16)]['image_s2'].shape == (1, 1, 16, 16)


def test_rotated_pixels_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path / 's2/a_20210101.tif', ramp(64, 64))
    place = Affine.translation(X, Y) @ Affine.rotation(30) @ Affine.scale(10, -10)
    size = {'count': 1, 'height': 40, 'width': 40, 'dtype': 'float32'}
    with rasterio.open(tmp_path / 'b.tif', 'w', driver='GTiff', crs=UTM, transform=place, **size) as file:
        file.write(ramp(40, 40))
    askew = RasterTimeSeries(tmp_path / 'b.tif', name='askew', res=10, temporal=False)
    with pytest.warns(UserWarning, match=r'askew.*pixels.*rotated.*grid.*tiles'):
        MultimodalGeoDataset({'s2': RasterTimeSeries(tmp_path / 's2', name='s2'), 'askew': askew})
