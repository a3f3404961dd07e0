# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Embedding products as a modality: codes become vectors, with the date of the middle of their year."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torchgeo.datasets import GoogleSatelliteEmbedding, TesseraEmbeddings

import torchgeo_omnisat.datasets
from tests.prediction.embeddings.files import X, Y, landscape, write_codes, write_raster, write_scaled
from torchgeo_omnisat.datasets import (
    AlphaEarthEmbeddings,
    EmbeddingRasters,
    MultimodalGeoDataset,
    RasterTimeSeries,
    TesseraRasters,
)
from torchgeo_omnisat.datasets.geo.config import image_dataset
from torchgeo_omnisat.utils.tensors.quantization import dequantize, quantize

AEF, _ = landscape(32, 32, dims=64)
AEF[:, 4, 5] = np.nan
TESSERA = 3 * landscape(32, 32, dims=128)[0]
EPOCH = np.datetime64('1970-01-01')
MIDDLE = {year: int((np.datetime64(f'{year}-07-02') - EPOCH).astype(int)) for year in (2021, 2022, 2024)}
WHOLE: Any = (slice(X, X + 320), slice(Y - 320, Y))


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('products')
    for year, sign in ((2021, -1), (2022, 1)):
        write_codes(root / f'aef/{year}/31N/x086q72fv2f9q1x4a-0000000000-0000000000.tiff', sign * AEF, flipped=True)
        write_scaled(root / f'tessera/grid_4.45_51.45_{year}.tiff', sign * TESSERA)
    write_raster(root / 's2/a_20211101.tif', np.full((2, 32, 32), 7, np.uint16), names=['B04', 'B08'])
    write_raster(root / 's2/a_20220901.tif', np.full((2, 32, 32), 9, np.uint16), names=['B04', 'B08'])
    seen = np.ones((32, 32))
    write_codes(root / 'own/map_2022.tif', AEF, seen)
    return root


def error(found: Tensor, expected: Any) -> float:
    assert np.array_equal(np.isnan(found.numpy()), np.isnan(expected))
    return float(np.nanmax(np.abs(found.numpy() - expected)))


def test_codes_become_vectors_of_the_newest_year(root: Path) -> None:
    dataset = AlphaEarthEmbeddings(root / 'aef', name='aef')
    modality = dataset.modalities['aef']
    assert (modality.kind, modality.temporal, modality.gsd) == ('embedding', False, 10)
    assert modality.bands == tuple(f'A{index:02}' for index in range(64))
    sample = dataset[WHOLE]
    assert error(sample['image_aef'], dequantize(quantize(AEF))) < 1e-6
    assert sample['dates_aef'].tolist() == [MIDDLE[2022]]
    assert sample['valid_aef'].tolist() == [True]


def test_scales_of_tessera_and_own_maps_without_the_sensors(root: Path) -> None:
    sample = TesseraRasters(root / 'tessera')[WHOLE]
    assert sample['image_tessera'].shape == (128, 32, 32)
    assert error(sample['image_tessera'], TESSERA) < 0.02
    own = EmbeddingRasters(root / 'own', bands=['A03', 'A01'])
    assert error(own[WHOLE]['image_embeddings'], dequantize(quantize(AEF))[[3, 1]]) < 1e-6
    assert len(EmbeddingRasters(root / 'own').bands) == 64


def test_years_are_a_series_on_request(root: Path) -> None:
    sample = AlphaEarthEmbeddings(root / 'aef', name='aef', temporal=True)[WHOLE]
    assert sample['image_aef'].shape == (2, 64, 32, 32)
    assert sample['dates_aef'].tolist() == [MIDDLE[2021], MIDDLE[2022]]
    assert error(sample['image_aef'][0], -dequantize(quantize(AEF))) < 1e-6


@pytest.mark.parametrize('through', ['kind', 'class_path'])
def test_join_takes_the_year_of_the_series(root: Path, through: str) -> None:
    if through == 'kind':
        settings = {'aef': {'kind': 'alphaearth', 'path': 'aef'}, 'tessera': {'kind': 'tessera', 'path': 'tessera'}}
    else:
        paths = {'aef': str(root / 'aef'), 'tessera': str(root / 'tessera')}
        kinds = {'aef': GoogleSatelliteEmbedding, 'tessera': TesseraEmbeddings}
        settings = {
            name: {'class_path': f'torchgeo.datasets.{kind.__name__}', 'init_args': {'paths': paths[name]}}
            for name, kind in kinds.items()
        }
    products = {name: image_dataset(name, one, root) for name, one in settings.items()}
    for days, year, sign in ((('2021-06-01', '2022-03-01'), 2021, -1), (('2021-10-01', '2022-10-01'), 2022, 1)):
        s2 = RasterTimeSeries(root / 's2', name='s2', date_range=days)
        join = MultimodalGeoDataset({'s2': s2, **products}, date_ranges={'s2': days})
        assert [m.kind for m in join.modalities.values()] == [None, 'embedding', 'embedding']
        sample = join[slice(X, X + 320), slice(Y - 320, Y), slice(*map(pd.Timestamp, days))]
        assert error(sample['image_aef'], sign * dequantize(quantize(AEF))) < 1e-6
        assert error(sample['image_tessera'], sign * TESSERA) < 0.02
        assert sample['dates_aef'].tolist() == [MIDDLE[year]]
        assert sample['dates_tessera'].tolist() == [MIDDLE[year]]


@pytest.mark.parametrize(
    ('name', 'file', 'image', 'expected', 'day'),
    [
        ('PrestoEmbeddings', 'Togo_Presto_embeddings_v2025_06_19.tif', TESSERA, TESSERA, '2019-08-31'),
        ('CopernicusEmbed', 'embed_map_310k.tif', AEF, AEF, None),
        # Codes of six levels: 8, 8, 8, 5, 5 and 5 steps from -1 on.
        ('EmbeddedSeamlessData', 'SDC30_EBD_V001_31UDS_2024.tif', np.full((13, 32, 32), 4 + 5 * 8, np.uint16),
         np.tile(np.array([0, 0.25, -1, -1, -1, -1]), 13)[:, None, None] * np.ones((78, 32, 32)), '2024-07-02'),
    ],
)  # fmt: skip
def test_other_embeddings_of_torchgeo(
    tmp_path: Path, name: str, file: str, image: Any, expected: Any, day: str | None
) -> None:
    write_raster(tmp_path / file, image)
    settings = {'class_path': f'torchgeo.datasets.{name}', 'init_args': {'paths': str(tmp_path)}}
    join = MultimodalGeoDataset({'other': image_dataset('other', settings, tmp_path)})
    modality = join.modalities['other']
    assert (modality.kind, modality.temporal, len(modality.bands)) == ('embedding', False, len(expected))
    sample = join[WHOLE]
    assert error(sample['image_other'], expected) < 1e-6
    assert sample['dates_other'].tolist() == [0 if day is None else int((np.datetime64(day) - EPOCH).astype(int))]


def test_rows_from_south_to_north_are_on_the_grid(root: Path) -> None:
    dataset = AlphaEarthEmbeddings(root / 'aef', name='aef')
    part = dataset[slice(X + 50, X + 130), slice(Y - 200, Y - 40), slice(None)]['image_aef']
    assert torch.equal(part.nan_to_num(9), dataset[WHOLE]['image_aef'][:, 4:20, 5:13].nan_to_num(9))


def test_files_of_another_product(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'map_2022.tif has 64 bands of int8, expected 128 of TESSERA'):
        TesseraRasters(root / 'own')
    with pytest.raises(ValueError, match=r'grid_.*tiff has 128 bands of int8 with scales, expected 64 of AlphaEarth'):
        AlphaEarthEmbeddings(root / 'tessera')
    write_raster(tmp_path / 'a.tif', np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r'a.tif has 3 bands of uint8, expected an embedding'):
        EmbeddingRasters(tmp_path)
    write_codes(tmp_path / 'b.tif', AEF)
    (tmp_path / 'a.tif').unlink()
    with pytest.raises(ValueError, match=r'b.tif has no year'):
        AlphaEarthEmbeddings(tmp_path, temporal=True)
    assert AlphaEarthEmbeddings(tmp_path)[WHOLE]['dates_alphaearth'].tolist() == [0]


def test_former_name_of_tessera() -> None:
    assert torchgeo_omnisat.datasets.TesseraEmbeddings is TesseraRasters


def test_dates_of_dated_files_beside_undated_ones(tmp_path: Path) -> None:
    """A dated map wins where it is valid, and has the middle of its year; an undated one fills the rest."""
    half = AEF.copy()
    half[:, :, 16:] = np.nan
    write_codes(tmp_path / 'map.tif', -AEF)
    write_codes(tmp_path / 'map_2021.tif', half)
    write_codes(tmp_path / 'map_2024.tif', -half)
    expected = dequantize(quantize(np.where(np.isnan(half), -AEF, half)))
    expected[:, 4, 5] = np.nan
    join = MultimodalGeoDataset({'own': EmbeddingRasters(tmp_path, name='own')})
    sample = join[(*WHOLE, slice(pd.Timestamp('2021-03-01'), pd.Timestamp('2021-09-01')))]
    assert sample['dates_own'].tolist() == [MIDDLE[2021]]
    assert error(sample['image_own'], expected) < 1e-6
    leap = join[(*WHOLE, slice(pd.Timestamp('2024-03-01'), pd.Timestamp('2024-09-01')))]
    assert leap['dates_own'].tolist() == [MIDDLE[2024]]
    undated = join[(*WHOLE, slice(pd.Timestamp('2019-03-01'), pd.Timestamp('2019-09-01')))]
    assert undated['dates_own'].tolist() == [0]


def test_year_of_a_folder_above_the_path_is_not_read(tmp_path: Path) -> None:
    write_codes(tmp_path / 'proj2019/maps/a.tif', AEF)
    dataset = EmbeddingRasters(tmp_path / 'proj2019/maps')
    assert dataset[WHOLE]['dates_embeddings'].tolist() == [0]
    (tmp_path / 'proj2019/maps/a.tif').unlink()
    write_codes(tmp_path / 'proj2019/maps/2021/a.tif', AEF)
    assert EmbeddingRasters(tmp_path / 'proj2019/maps')[WHOLE]['dates_embeddings'].tolist() == [MIDDLE[2021]]
    (tmp_path / 'proj2019/maps/2021/a.tif').rename(tmp_path / 'proj2019/maps/2021/a_2022.tif')
    alone = EmbeddingRasters([tmp_path / 'proj2019/maps/2021/a_2022.tif'])
    assert alone[WHOLE]['dates_embeddings'].tolist() == [MIDDLE[2022]]
