# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Kind, unit and wavelengths: stated by our datasets and by settings, never taken from names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchgeo.datasets import RasterDataset

from tests.geo_tree import X, Y, write
from torchgeo_omnisat.datasets import MultimodalGeoDataset, RasterTimeSeries, Sentinel1TimeSeries, Sentinel2TimeSeries
from torchgeo_omnisat.datasets import flair as flair_layout
from torchgeo_omnisat.datasets import flairhub as flairhub_layout
from torchgeo_omnisat.datasets import pastis as pastis_layout
from torchgeo_omnisat.datasets import treesatai as treesatai_layout
from torchgeo_omnisat.datasets.geo.config import image_dataset
from torchgeo_omnisat.datasets.rasters.stac import STACTimeSeries
from torchgeo_omnisat.modality import Modality

PASTIS = {source.modality.name: source.modality for source in pastis_layout.SOURCES}
WINDOW = slice(X, X + 20), slice(Y - 10, Y)
S1_NAME = 'S1A_IW_20210101T055005_DVP_RTC10_G_g{}uned_1A2B_{}.tif'


def facts(dataset: Any) -> tuple[Any, ...]:
    (modality,) = dataset.modalities.values()
    return modality.kind, modality.unit, modality.wavelengths


@pytest.fixture
def radar(tmp_path: Path) -> Path:
    """Two scenes of one day, 0.02 and 0.08, without names of bands."""
    write(tmp_path / 's1/a_20210101.tif', np.full((2, 4, 4), 0.02, np.float32))
    write(tmp_path / 's1/b_20210101.tif', np.full((2, 4, 4), 0.08, np.float32))
    return tmp_path


@pytest.mark.parametrize(
    ('modalities', 'expected'),
    [
        (PASTIS, {'s2': 'optical dn', 's1a': 'radar db', 's1d': 'radar db', 'spot': 'optical dn'}),
        (flair_layout.MODALITIES, {'aerial': 'optical dn', 's2': 'optical dn'}),
        (
            flairhub_layout.MODALITIES,
            {
                'aerial': 'optical dn',
                'spot': 'optical dn',
                'dem': 'elevation metres',
                'aerial_rlt': 'optical dn',
                's2': 'optical dn',
                's1a': 'radar db',
                's1d': 'radar db',
            },
        ),
        (
            treesatai_layout.MODALITIES,
            {'s2': 'optical dn', 's1a': 'radar db', 's1d': 'radar db', 'aerial': 'optical dn'},
        ),
    ],
)
def test_datasets_of_ours_state_theirs(modalities: dict[str, Modality], expected: dict[str, str]) -> None:
    assert {name: f'{m.kind} {m.unit}' for name, m in modalities.items()} == expected
    wavelengths = dict(zip(modalities['s2'].bands, modalities['s2'].wavelengths or (), strict=True))
    assert (wavelengths['B02'], wavelengths['B8A'], wavelengths['B12']) == (492.7, 864.7, 2202.4)
    if 'spot' in modalities:
        assert (modalities['spot'].wavelengths or ())[:3] == (660, 560, 485)


def test_products_of_sentinel_state_theirs(tmp_path: Path) -> None:
    for band in ('B02', 'B8A'):
        write(tmp_path / f's2/T31UFS_20210101T104629_{band}.tif', np.ones((4, 4), np.uint16))
    series = Sentinel2TimeSeries(tmp_path / 's2', bands=('B8A', 'B02'))
    assert facts(series) == ('optical', 'dn', (864.7, 492.7))
    for scale, unit in {'d': 'db', 'p': 'power', 'a': 'dn'}.items():
        for band in 'VV', 'VH':
            write(tmp_path / scale / S1_NAME.format(scale, band), np.ones((4, 4), np.float32))
        assert facts(Sentinel1TimeSeries(tmp_path / scale)) == ('radar', unit, None)
    for kind, path, expected in (('sentinel2', 's2', 'optical'), ('sentinel1', 'p', 'radar')):
        bands = {'bands': ['B02']} if kind == 'sentinel2' else {}
        assert facts(image_dataset('x', {'kind': kind, 'path': path, **bands}, tmp_path))[0] == expected


class TestRasters:
    @pytest.mark.parametrize(
        ('settings', 'expected'),
        [
            ({}, (None, 'unknown', None)),
            ({'kind': 'raster'}, (None, 'unknown', None)),
            ({'kind': 'radar'}, ('radar', 'unknown', None)),
            ({'kind': 'radar', 'unit': 'power'}, ('radar', 'power', None)),
            ({'unit': 'db'}, ('radar', 'db', None)),
            ({'decibels': True}, ('radar', 'db', None)),
            ({'decibels': True, 'unit': 'db', 'kind': 'radar'}, ('radar', 'db', None)),
            ({'decibels': False}, ('radar', 'power', None)),
            ({'decibels': False, 'kind': 'elevation', 'unit': 'metres'}, ('elevation', 'metres', None)),
            ({'kind': 'optical', 'wavelengths': [490, 665]}, ('optical', 'unknown', (490, 665))),
            ({'wavelengths': {'B2': 665, 'B1': 490}}, (None, 'unknown', (490, 665))),
            ({'wavelengths': {'B2': 665}, 'bands': ['B2']}, (None, 'unknown', (665,))),
            ({'reader': 'raster', 'kind': 'thermal'}, ('thermal', 'unknown', None)),
        ],
    )
    def test_settings_state_theirs(self, radar: Path, settings: dict[str, Any], expected: tuple[Any, ...]) -> None:
        assert facts(image_dataset('s1', {'path': 's1', **settings}, radar)) == expected

    @pytest.mark.parametrize(
        ('settings', 'message'),
        [
            ({'decibels': True, 'unit': 'power'}, "unit of 's1' is 'power', but decibels is True"),
            ({'decibels': False, 'unit': 'db'}, "unit of 's1' is 'db', but decibels is False"),
            ({'decibels': True, 'kind': 'optical'}, "kind of 's1' is 'optical', but its unit is 'db'"),
            ({'unit': 'power', 'kind': 'elevation'}, "kind of 's1' is 'elevation', but its unit is 'power'"),
            ({'unit': 'dB'}, "unit of 's1' is 'dB', expected one of"),
            ({'kind': 'sar'}, "kind of 's1' is 'sar', expected one of .*'sentinel1'.*'radar'"),
            ({'reader': 'stacks'}, "reader of 's1' is 'stacks', expected one of"),
            ({'wavelengths': [490]}, "wavelengths of 's1' are"),
            ({'wavelengths': {'B1': 490}}, r"wavelengths of 's1' has \['B1'\], expected \['B2'\]"),
        ],
    )
    def test_contradictions(self, radar: Path, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            image_dataset('s1', {'path': 's1', **settings}, radar)

    def test_a_subclass_states_its_own(self, radar: Path) -> None:
        class Elevation(RasterTimeSeries):
            kind = 'elevation'
            unit = 'metres'

        class Backscatter(RasterTimeSeries):
            decibels = True

        assert facts(Elevation(radar / 's1')) == ('elevation', 'metres', None)
        assert facts(Backscatter(radar / 's1')) == ('radar', 'db', None)

    @pytest.mark.parametrize(('unit', 'mean'), [('power', 0.05), ('dn', 0.05), ('db', 0.0501036)])
    def test_overlaps_are_averaged_by_their_unit(self, radar: Path, unit: Any, mean: float) -> None:
        image = RasterTimeSeries(radar / 's1', name='s1', unit=unit)[WINDOW]['image_s1']
        torch.testing.assert_close(image, torch.full((1, 2, 1, 2), mean), atol=1e-6, rtol=0)


class TestForeign:
    @pytest.fixture
    def given(self, radar: Path) -> RasterDataset:
        class Scenes(RasterDataset):
            filename_glob = '*.tif'
            filename_regex = r'.*_(?P<date>\d{8})'

        return Scenes(radar / 's1', time_series=True)

    def test_nothing_is_known_unless_it_is_stated(self, given: RasterDataset) -> None:
        assert facts(MultimodalGeoDataset({'s1': given})) == (None, 'unknown', None)
        joined = MultimodalGeoDataset({'s1': given}, facts={'s1': {'kind': 'radar', 'unit': 'db'}})
        assert facts(joined) == ('radar', 'db', None)
        assert facts(joined.unlabelled()) == ('radar', 'db', None)
        assert joined[WINDOW]['image_s1'][0, 0, 0, 0].item() == pytest.approx(0.0501036, abs=1e-6)

    def test_settings_beside_the_class(self, radar: Path) -> None:
        settings = {'class_path': 'torchgeo.datasets.RasterDataset', 'init_args': {'paths': 's1'}}
        with pytest.raises(ValueError, match=r"settings.*'s1'.*\['nodata'\].*class_path"):
            image_dataset('s1', {**settings, 'nodata': 0}, radar)
        assert isinstance(image_dataset('s1', {**settings, 'kind': 'radar', 'gsd': 10}, radar), RasterDataset)

    def test_what_the_dataset_states_is_not_overruled(self, radar: Path) -> None:
        power = RasterTimeSeries(radar / 's1', name='s1', unit='power')
        with pytest.raises(ValueError, match=r"facts.*'s1'.*\{'unit': 'db'\}.*dataset"):
            MultimodalGeoDataset({'s1': power}, facts={'s1': {'unit': 'db'}})
        with pytest.raises(ValueError, match='facts names'):
            MultimodalGeoDataset({'s1': power}, facts={'s2': {'unit': 'dn'}})


class TestItems:
    @pytest.fixture(autouse=True)
    def needs(self) -> None:
        pytest.importorskip('pystac')

    def write(self, root: Path, properties: dict[str, Any], **asset: Any) -> Path:
        write(root / 'a.tif', np.ones((4, 4), np.float32))
        item = {
            'type': 'Feature',
            'stac_version': '1.0.0',
            'id': 'a',
            'geometry': None,
            'properties': {'datetime': '2021-01-01T10:00:00Z', **properties},
            'links': [],
            'assets': {'x': {'href': 'a.tif', **asset}},
        }
        path = root / 'items.json'
        path.write_text(json.dumps({'type': 'FeatureCollection', 'features': [item]}))
        return path

    @pytest.mark.parametrize(
        ('properties', 'asset', 'expected'),
        [
            ({}, {}, (None, 'unknown', None)),
            (
                {'platform': 'sentinel-2a'},
                {'eo:bands': [{'center_wavelength': 0.842}]},
                ('optical', 'dn', (842.0,)),
            ),
            (
                {'constellation': 'Sentinel-2'},
                {'bands': [{'eo:center_wavelength': 0.49}]},
                ('optical', 'dn', (490.0,)),
            ),
            ({'sar:polarizations': ['VV']}, {}, ('radar', 'unknown', None)),
            ({}, {'eo:bands': [{'center_wavelength': 0.5}, {'center_wavelength': 0.6}]}, (None, 'unknown', None)),
        ],
    )
    def test_items_state_theirs(self, tmp_path: Path, properties: Any, asset: Any, expected: tuple[Any, ...]) -> None:
        assert facts(STACTimeSeries(self.write(tmp_path, properties, **asset), bands=('x',))) == expected

    def test_settings_add_and_do_not_contradict(self, tmp_path: Path) -> None:
        radar = self.write(tmp_path, {'sar:polarizations': ['VV']}).name
        power = image_dataset('s1', {'kind': 'stac', 'path': radar, 'bands': ['x'], 'unit': 'power'}, tmp_path)
        assert facts(power) == ('radar', 'power', None)
        with pytest.raises(ValueError, match=r"kind.*'s1'.*'optical'.*items.*'radar'"):
            image_dataset('s1', {'reader': 'stac', 'kind': 'optical', 'path': radar, 'bands': ['x']}, tmp_path)
        self.write(tmp_path, {'platform': 'sentinel-2a'})
        with pytest.raises(ValueError, match=r"unit.*'s2'.*'reflectance'.*items.*'dn'"):
            STACTimeSeries(tmp_path / radar, bands=('x',), unit='reflectance')
