# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""EmbeddingWriter: codes, bands and tags, the STAC item, resuming, tilings, and models without a head."""

import json
import re
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
import shapely
import torch
import xarray as xr
from pyarrow import parquet
from pyproj import CRS
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning
from torch import Tensor
from torchgeo.datasets import RasterDataset

from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.grid import Grid
from torchgeo_omnisat.prediction import EmbeddingBands, EmbeddingWriter, Window, raster
from torchgeo_omnisat.prediction.embeddings import zarr_store
from torchgeo_omnisat.prediction.embeddings.reader import EmbeddingMap
from torchgeo_omnisat.prediction.embeddings.tile_table import write_tile_table
from torchgeo_omnisat.prediction.embeddings.writer import stac_item, write_embeddings
from torchgeo_omnisat.prediction.raster import Placement
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.tasks.embedding import training_samples
from torchgeo_omnisat.utils.checks import EmptySplitError
from torchgeo_omnisat.utils.tensors.quantization import dequantize, quantize

from ..areas import MODALITIES, TOLD, PlaneDataModule, is_cog, make_grid
from ..test_writer import make_trainer
from .schemas import GEOEMB, ITEM

pytestmark = pytest.mark.filterwarnings('ignore:.*does not have many workers', 'ignore:.*fork')
RFC3339 = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ')


@pytest.fixture(scope='module')
def task() -> OmniSatPretraining:
    torch.manual_seed(0)
    made = OmniSatPretraining('omnisat_tiny', MODALITIES, 40.0, embedding_dim=8)
    made.allow_random = True
    return made


def embed(folder: Path, datamodule: Any, task: Any, *words: Any, **kwargs: Any) -> Path:
    output = folder / 'map.tif'
    make_trainer(folder, EmbeddingWriter(str(output), **kwargs), *words).predict(task, datamodule=datamodule)
    return output


def read(path: Path) -> Any:
    with rasterio.open(path) as file:
        return file.read()


class TestBands:
    def test_codes_of_blended_vectors(self) -> None:
        bands = EmbeddingBands(2, ['s2', 's1a'], ['s2'])
        values = np.array([[[3, 0, 0.1]], [[4, 0, 0]], [[0.5, 1, -1]]], np.float32)
        codes = bands.encode(values, np.array([[3, 1, 0]], np.uint16))
        assert codes.dtype == np.int8
        assert codes[:, 0, 0].tolist() == [*quantize([0.6, 0.8]).tolist(), 64, 3]
        assert (codes[:, 0, 1:] == -128).all()  # no direction; not observed
        assert bands.names == ['A00', 'A01', 'cosine s2', 'sensors']

    def test_cosine_of_a_subset_that_observed_nothing_is_nodata(self) -> None:
        bands = EmbeddingBands(2, ['s2', 's1a', 'spot'], ['spot+s1a', 's2'])
        codes = bands.encode(np.ones((4, 1, 3), np.float32), np.array([[1, 2, 5]], np.uint16))
        assert codes[2:4, 0].tolist() == [[-128, 127, 127], [127, -128, 127]]

    def test_seventh_bit_stands_for_all_others(self) -> None:
        bands = EmbeddingBands(2, list('abcdefghi'))
        assert bands.bits == [*'abcdef', 'g+h+i']
        seen = np.array([[1, 1 << 6, 1 << 8, (1 << 7) | 2, 1 << 5]], np.uint16)
        codes = bands.encode(np.ones((2, 1, 5), np.float32), seen)
        assert codes[-1, 0].tolist() == [1, 64, 64, 66, 32]


class TestMap:
    def test_file_and_item(self, tmp_path: Path, task: OmniSatPretraining) -> None:
        datamodule = PlaneDataModule(260, 48, modalities=('s2', 's1a'), covers={'s1a': (0, 32)})
        path = embed(tmp_path, datamodule, task, cosine=['s1a'])
        with rasterio.open(path) as file:
            assert (file.crs.to_epsg(), file.transform, file.shape) == (32631, make_grid(1, 1).transform, (260, 48))
            assert set(file.dtypes) == {'int8'}
            assert file.nodata == -128
            assert file.descriptions == (*(f'A0{i}' for i in range(8)), 'cosine s1a', 'sensors')
            assert file.tags(10)['BIT_1'] == 's1a'
            assert file.scales[8] == pytest.approx(1 / 127)
            assert file.overviews(1) == [2]
            tags, bands = file.tags(), file.read()
        assert is_cog(path)
        assert tags['EMBEDDING_DIMENSION'] == '8'
        assert tags['EMBEDDING_GSD'] == '10'
        assert tags['SENSORS'] == 's2, s1a, dem'
        assert re.fullmatch('[0-9a-f]{64}', tags['WEIGHTS_SHA256'])
        assert '(q / 127.5)**2' in tags['QUANTIZATION_FORMULA']
        np.testing.assert_allclose(np.linalg.norm(dequantize(bands[:8]), axis=0), 1, atol=0.02)
        assert (bands[-1, :, :32] == 3).all()
        assert (bands[-1, :, 32:] == 1).all()
        assert sorted(file.name for file in tmp_path.iterdir()) == ['map.json', 'map.tif']
        self.check_item(json.loads((tmp_path / 'map.json').read_text()))

    @staticmethod
    def check_item(item: dict[str, Any]) -> None:
        ITEM.validate(item)
        assert item['id'] == 'map'
        west, south, east, north = item['bbox']
        ring = np.array(item['geometry']['coordinates'][0])
        assert (ring[0] == ring[-1]).all()
        assert (ring >= [west - 1e-9, south - 1e-9]).all()
        assert (ring <= [east + 1e-9, north + 1e-9]).all()
        assert (4.4 < west < east < 4.5, 50.5 < south < north < 50.6) == (True, True)
        properties = item['properties']
        assert properties['datetime'] == properties['created']  # of processing, because the plane has no dates
        assert 'processing' in properties['description']
        assert not {'start_datetime', 'end_datetime'} & set(properties)
        assert properties['emb:runtime_parameters']['dimensions'] == 8
        assert (properties['data_type'], properties['gsd']) == ('int8', 10.0)
        assert (properties['proj:epsg'], properties['proj:shape']) == (32631, [260, 48])
        assert properties['proj:transform'] == list(make_grid(1, 1).transform)[:6]
        assert item['assets']['embeddings']['href'] == './map.tif'
        assert [band['description'] for band in item['assets']['embeddings']['raster:bands']][-2:] == [
            'cosine s1a',
            'sensors',
        ]
        assert 'zarr' not in item['assets']

    def test_schema_rejects_other_items(self) -> None:
        item = stac_item('map.tif', make_grid(8, 8), EmbeddingBands(2, ['s2']), {'EMBEDDING_GSD': '10'}, None, True)
        wrong: dict[tuple[str, ...], Any] = {
            ('bbox',): [4.0, 50.0],
            ('links',): [{'href': 'a'}],
            ('properties', 'datetime'): None,
            ('properties', 'emb:dimensions'): 8,
            ('properties', 'emb:quantization'): {'method': 'linear'},
            ('properties', 'proj:transform'): [1.0],
            ('assets', 'embeddings'): {},
            ('assets', 'embeddings', 'emb:type'): 'pixel',
            ('assets', 'zarr', 'href'): 3,
        }
        assert ITEM.is_valid(item)
        for keys, value in wrong.items():
            changed: Any = deepcopy(item)
            part = changed
            for key in keys[:-1]:
                part = part[key]
            part[keys[-1]] = value
            assert not ITEM.is_valid(changed), keys

    def test_item_follows_the_schema_of_pystac(self) -> None:
        """The core schema that comes with pystac is official, but of STAC 1.1, to which pystac converts the item."""
        bands, tags = EmbeddingBands(2, ['s2']), {'EMBEDDING_GSD': '10'}
        item = pystac.Item.from_dict(stac_item('map.tif', make_grid(8, 8), bands, tags, None))
        content = item.to_dict(include_self_link=False, transform_hrefs=False)
        JsonSchemaSTACValidator().validate_core(content, pystac.STACObjectType.ITEM, '1.1.0')

    def test_vectors_are_those_of_the_head(self, tmp_path: Path, task: OmniSatPretraining) -> None:
        datamodule = PlaneDataModule(32, 32, modalities=('s2', 's1a'))
        codes = read(embed(tmp_path, datamodule, task, cosine=['s1a']))
        batch = collate([datamodule.predict_dataset[0, 0, 32, 32]], MODALITIES)
        with torch.inference_mode():
            out = task.eval().model.backbone(batch)
            vectors = task.model.dense(out)[0].numpy()
            other = task.model.dense(task.model.backbone.restrict(out, ['s1a']))[0].numpy()
        assert abs(codes[:8].astype(int) - quantize(vectors)).max() <= 1
        np.testing.assert_allclose(codes[8] / 127, (vectors * other).sum(0), atol=0.005)

    def test_it_opens_as_embedding_of_torchgeo_and_of_this_package(
        self, tmp_path: Path, task: OmniSatPretraining
    ) -> None:
        path = embed(tmp_path, PlaneDataModule(32, 32), task, cosine=['s2'])
        embeddings = EmbeddingMap([path])
        assert embeddings.names == tuple(f'A0{i}' for i in range(8))

        class Embeddings(RasterDataset):
            filename_glob = '*.tif'
            all_bands = tuple(f'A0{i}' for i in range(8))
            separate_files = False

        dataset = Embeddings(str(tmp_path), bands=Embeddings.all_bands)
        image = dataset[dataset.bounds]['image']
        assert image.shape == (8, 32, 32)
        np.testing.assert_allclose(dequantize(image.numpy()), embeddings.read(Window(0, 0, 32, 32)), atol=1e-6)

    def test_unobserved_pixels_are_nodata(self, tmp_path: Path, task: OmniSatPretraining) -> None:
        codes = read(embed(tmp_path, PlaneDataModule(32, 64, covers={'s2': (0, 40)}, batch_size=1), task))
        assert (codes[:, :, 40:] == -128).all()
        assert (codes[-1, :, :40] == 1).all()

    def test_default_writer_of_pretraining(self, tmp_path: Path, task: OmniSatPretraining) -> None:
        assert make_trainer(tmp_path).predict(task, datamodule=PlaneDataModule(32, 32)) is None
        assert read(tmp_path / 'embeddings.tif').shape == (9, 32, 32)
        assert task.embedder is None  # the task returns its usual output again

    @pytest.mark.parametrize('wrong', [['nir'], 's2'])
    def test_wrong_subsets(self, tmp_path: Path, task: OmniSatPretraining, wrong: Any) -> None:
        with pytest.raises(ValueError, match=r'nir|s2'):
            embed(tmp_path, PlaneDataModule(32, 32), task, cosine=wrong)


class TestZarr:
    def test_store_has_the_codes_of_the_map(self, tmp_path: Path, task: OmniSatPretraining) -> None:
        pytest.importorskip('zarr')
        datamodule = PlaneDataModule(32, 48, modalities=('s2', 's1a'), covers={'s1a': (0, 32)})
        (tmp_path / 'map.zarr/old').mkdir(parents=True)
        (tmp_path / 'map.zarr/zarr.json').write_text('{}')  # of an earlier run, which is replaced
        path = embed(tmp_path, datamodule, task, cosine=['s1a'], zarr=True)
        store = tmp_path / 'map.zarr'
        assert sorted(file.name for file in tmp_path.iterdir()) == ['map.json', 'map.tif', 'map.zarr']
        assert not (store / 'old').exists()
        codes = read(path)
        with xr.open_dataset(store, engine='zarr', consolidated=False) as data:
            assert data['embeddings'].dims == ('band', 'y', 'x')
            assert data['embeddings'].dtype == np.int8
            assert np.array_equal(data['embeddings'], codes[:8])
            assert np.array_equal(data['cosine'], codes[8:9])
            assert np.array_equal(data['sensors'], codes[9])
            assert data['sensors'].attrs['BIT_2'] == 'dem'
            assert data.sizes == {'band': 8, 'y': 32, 'x': 48, 'subset': 1}
            attributes = data.attrs
            corner = datamodule.grid.transform @ (0.5, 0.5)
            assert (float(data['x'][0]), float(data['y'][0])) == corner
            assert CRS.from_wkt(data['spatial_ref'].attrs['crs_wkt']).to_epsg() == 32631
        GEOEMB.validate(attributes)
        assert attributes['spatial:transform'] == list(datamodule.grid.transform)[:6]
        assert attributes['spatial:bbox'] == list(datamodule.grid.bounds)
        with rasterio.open(path) as file:
            assert attributes['weights_sha256'] == file.tags()['WEIGHTS_SHA256']
        asset = json.loads((tmp_path / 'map.json').read_text())['assets']['zarr']
        assert asset['href'] == './map.zarr'
        self.check_reader(store, path)
        embed(tmp_path, datamodule, task)
        assert sorted(file.name for file in tmp_path.iterdir()) == ['map.json', 'map.tif']  # the store is outdated

    @staticmethod
    def check_reader(store: Path, path: Path) -> None:
        """Read the store through GDAL."""
        first, second = EmbeddingMap([path]), EmbeddingMap([store])
        assert (second.grid, second.names, second.sensors) == (first.grid, first.names, ['s2', 's1a', 'dem'])
        assert len(first.weights) == 1
        assert second.weights == first.weights
        window = Window(3, 5, 20, 40)
        vectors = first.read(window)
        assert np.array_equal(second.read(window), vectors)
        assert np.array_equal(second.read_sensors(window, vectors), first.read_sensors(window, vectors))

    def test_chunks_are_blocks_and_nodata_is_not_stored(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip('zarr')
        grid, bands = make_grid(40, 32), EmbeddingBands(2, ['s2'])
        for module in (zarr_store, raster):
            monkeypatch.setattr(module, 'BLOCK', 16)
        codes = np.full((3, 40, 32), -128, np.int8)
        codes[:, 33:, 20:] = 5
        scratch, path, store = (tmp_path / name for name in ('scratch.tif', 'map.tif', 'map.zarr'))
        write_embeddings(path, scratch, grid, bands, [(Window(0, 0, 40, 32), codes)], {})
        zarr_store.write_zarr(store, path, grid, bands, {'EMBEDDING_GSD': '10'}, ['https://example.org/s2'])
        assert [file.relative_to(store / 'embeddings/c').as_posix() for file in (store / 'embeddings/c').rglob('*') if
                file.is_file()] == ['0/2/1']  # fmt: skip
        with xr.open_dataset(store, engine='zarr', consolidated=False) as data:
            assert np.array_equal(data['embeddings'], codes[:2])
            assert 'cosine' not in data
            assert data.attrs['geoemb:source_data'] == ['https://example.org/s2']

    def test_interrupted_store_is_written_again(
        self, tmp_path: Path, task: OmniSatPretraining, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip('zarr')

        def stop(store: Path, *args: Any) -> None:
            zarr_store.write_zarr(store, *args)
            (store / 'left').write_text('')
            raise Stop

        with monkeypatch.context() as patch:
            patch.setattr('torchgeo_omnisat.prediction.embeddings.writer.write_zarr', stop)
            with pytest.raises(Stop):
                embed(tmp_path, PlaneDataModule(32, 32), task, zarr=True)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith('map')]
        embed(tmp_path, PlaneDataModule(32, 32), task, zarr=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ['map.json', 'map.tif', 'map.zarr']
        assert not (tmp_path / 'map.zarr/left').exists()

    def test_requirements(self, tmp_path: Path, task: OmniSatPretraining, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip('zarr')
        (tmp_path / 'map.zarr').mkdir()
        with pytest.raises(ValueError, match=r'map\.zarr'):
            embed(tmp_path, PlaneDataModule(32, 32), task, zarr=True)
        with pytest.raises(ValueError, match='https'):
            EmbeddingWriter('map.tif', zarr=True, source_data='https://example.org')
        monkeypatch.setitem(sys.modules, 'zarr', None)
        with pytest.raises(ImportError, match=r'\[zarr\]'):
            EmbeddingWriter('map.tif', zarr=True)


def test_default_output_is_that_of_the_trainer(tmp_path: Path, task: OmniSatPretraining) -> None:
    writer = EmbeddingWriter()
    for name in ('one', 'two'):
        make_trainer(tmp_path / name, writer).predict(task, datamodule=PlaneDataModule(32, 32))
        assert (tmp_path / name / 'embeddings.tif').is_file()


def test_item_states_the_period_of_dated_images() -> None:
    bands, tags = EmbeddingBands(2, ['s2']), {'EMBEDDING_GSD': '10'}
    days = pd.Timestamp('2020-03-01'), pd.Timestamp('2020-09-30')
    item = stac_item('map.tif', make_grid(8, 8), bands, tags, days)
    ITEM.validate(item)
    properties = item['properties']
    assert properties['datetime'] is None
    assert (properties['start_datetime'], properties['end_datetime']) == (
        '2020-03-01T00:00:00Z',
        '2020-09-30T00:00:00Z',
    )
    always = stac_item('map.tif', make_grid(8, 8), bands, tags, (pd.Timestamp.min, pd.Timestamp.max))['properties']
    assert RFC3339.fullmatch(always['datetime'])
    assert 'start_datetime' not in always


def test_gsd_of_a_geographic_grid_is_in_metres(tmp_path: Path, task: OmniSatPretraining) -> None:
    datamodule = PlaneDataModule(32, 32)
    datamodule.grid = Grid(CRS.from_epsg(4326), Affine(1e-4, 0, 5, 0, -1e-4, 50), 32, 32)
    with rasterio.open(embed(tmp_path, datamodule, task)) as file:
        assert float(file.tags()['EMBEDDING_GSD']) == pytest.approx(11.132)
    assert json.loads((tmp_path / 'map.json').read_text())['properties']['gsd'] == pytest.approx(11.132)


class Local(torch.nn.Module):
    """Embedding of each pixel by itself, from the image of the first date."""

    dim, gsd = 8, 10.0

    def __call__(self, out: Any, size: Any = None) -> Tensor:
        weights = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
        return torch.nn.functional.normalize(torch.einsum('bchw,dc->bdhw', out.image, weights), dim=1)


class TestTilings:
    """A model without context gives the same codes for all tilings: blending and normalisation add nothing."""

    @pytest.fixture
    def local(self, task: OmniSatPretraining) -> OmniSatPretraining:
        made = deepcopy(task)
        made.model.dense = Local()
        made.model.backbone.forward = lambda batch: SimpleNamespace(image=batch['image_s2'][:, 0])
        return made

    def test_any_tiling(self, tmp_path: Path, local: OmniSatPretraining, monkeypatch: pytest.MonkeyPatch) -> None:
        codes = []
        for name, size, overlap, batch_size in (('a', 32, 0.25, 3), ('b', 16, 0.5, 1), ('c', 64, 0.1, 2)):
            datamodule = PlaneDataModule(72, 88, size, overlap, batch_size=batch_size)
            codes.append(read(embed(tmp_path / name, datamodule, local)).astype(int))
        monkeypatch.setattr('torchgeo_omnisat.prediction.writer.MEMORY', 1e-6)  # narrow bands of columns
        codes.append(read(embed(tmp_path / 'd', PlaneDataModule(72, 88, 16), local)).astype(int))
        for other in codes[1:]:
            assert abs(other - codes[0]).max() <= 1

    def test_vectors_are_blended_before_they_are_normalised(self, tmp_path: Path, task: OmniSatPretraining) -> None:
        datamodule = PlaneDataModule(32, 56, overlap=0.25)  # the second tile begins at column 24
        codes = read(embed(tmp_path, datamodule, task))
        vectors = []
        with torch.inference_mode():
            for column in (0, 24):
                batch = collate([datamodule.predict_dataset[0, column, 32, 32]], MODALITIES)
                vectors.append(task.eval().model.dense(task.model.backbone(batch))[0].numpy())
        ramp = np.sin(np.pi / 2 * (np.arange(8) + 0.5) / 8) ** 2
        mean = vectors[0][..., 24:] * (1 - ramp) + vectors[1][..., :8] * ramp
        expected = quantize(mean / np.linalg.norm(mean, axis=0))
        assert abs(codes[:8, :, 24:32].astype(int) - expected).max() <= 1


class Stop(Exception):
    pass


class TestRuns:
    def test_interrupted_run_is_resumed(
        self, tmp_path: Path, task: OmniSatPretraining, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = read(embed(tmp_path / 'whole', PlaneDataModule(72, 40, batch_size=1), task))
        predict, count = task.predict_step, [0]

        def stop(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == 5:
                raise Stop
            return predict(*args, **kwargs)

        monkeypatch.setattr(task, 'predict_step', stop)
        with pytest.raises(Stop):
            embed(tmp_path, PlaneDataModule(72, 40, batch_size=1), task)
        assert not (tmp_path / 'map.tif').exists()
        count[0] = 10
        assert np.array_equal(read(embed(tmp_path, PlaneDataModule(72, 40, batch_size=1), task)), whole)
        assert count[0] - 10 < 6  # of 6 batches
        assert sorted(path.name for path in tmp_path.iterdir()) == ['map.json', 'map.tif', 'whole']

    @pytest.mark.slow
    @pytest.mark.enable_socket
    def test_two_processes_share_components(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        made = OmniSatSegmentation(**TOLD)
        made.allow_random = True
        whole = read(embed(tmp_path / 'whole', PlaneDataModule(72, 40), made, dim=4))
        writer = EmbeddingWriter(str(tmp_path / 'map.tif'), dim=4)
        trainer = make_trainer(tmp_path, writer, devices=2, strategy='ddp_fork')
        torch.set_num_threads(1)
        trainer.predict(made, datamodule=PlaneDataModule(72, 40), return_predictions=False)
        assert abs(read(tmp_path / 'map.tif').astype(int) - whole).max() <= 1


class TestModelsWithoutHead:
    def test_faulty_training_split_is_an_error(self, tmp_path: Path) -> None:
        datamodule = PlaneDataModule(32, 32)
        for error, expected in ((EmptySplitError('no train'), 'tiles to predict'), (KeyError('band'), '')):

            def fail(split: str, error: Exception = error) -> None:
                raise error

            datamodule.make_dataset = fail  # type: ignore[attr-defined]
            if expected:
                assert training_samples(datamodule)[1] == expected
            else:
                with pytest.raises(KeyError):
                    training_samples(datamodule)

    @pytest.mark.parametrize('kind', ['segmentation', 'pretraining'])
    def test_components_are_fitted_once(self, tmp_path: Path, kind: str) -> None:
        torch.manual_seed(0)
        made: Any = (
            OmniSatSegmentation(**TOLD)
            if kind == 'segmentation'
            else OmniSatPretraining(**{name: TOLD[name] for name in ('backbone', 'modalities', 'patch_size')})
        )
        made.allow_random = True
        path = embed(tmp_path, PlaneDataModule(40, 40), made, dim=4)
        with rasterio.open(path) as file:
            assert file.descriptions == ('A00', 'A01', 'A02', 'A03', 'sensors')
            assert '4 principal components' in file.tags()['EMBEDDING_SOURCE']
            codes = file.read()
        assert (tmp_path / 'map.pca.npz').exists()
        elsewhere = PlaneDataModule(32, 40)
        shared = str(tmp_path / 'map.pca.npz')
        other = read(embed(tmp_path / 'other', elsewhere, made, dim=4, projection=shared))
        assert sorted(file.name for file in (tmp_path / 'other').iterdir()) == ['map.json', 'map.tif']
        both = [dequantize(x[:4, :20, :20]) for x in (codes, other)]
        assert (both[0] * both[1]).sum(0).mean() > 0.9  # the same place, in other tiles
        if kind == 'pretraining':
            for wrong, value in (({'dim': 3}, 'dim is 3'), ({'dim': 4, 'gsd': 20.0}, 'gsd 20')):
                with pytest.raises(ValueError, match=value):
                    embed(tmp_path / 'other', elsewhere, made, projection=shared, **wrong)

    def test_components_of_other_weights_are_rejected(self, tmp_path: Path) -> None:
        for seed in (0, 1):
            torch.manual_seed(seed)
            made = OmniSatSegmentation(**TOLD)
            if seed:
                with pytest.raises(ValueError, match=r'map\.pca\.npz'):
                    embed(tmp_path, PlaneDataModule(32, 32), made, dim=4)
            else:
                embed(tmp_path, PlaneDataModule(32, 32), made, dim=4)


def test_single_tiles(tmp_path: Path) -> None:
    datamodule = SyntheticLandscapesDataModule(
        str(tmp_path / 'data'), num_tiles=10, size=16, dates=(2, 3), modalities=('s2',), batch_size=2
    )
    task = OmniSatPretraining('omnisat_tiny', embedding_dim=8, tile_weight=0, patch_weight=0)
    task.allow_random = True
    folder = tmp_path / 'tiles'
    writer = EmbeddingWriter(str(folder), parquet=True)
    make_trainer(tmp_path, writer).predict(task, datamodule=datamodule)
    dataset: Any = datamodule.predict_dataset
    assert sorted(path.stem for path in folder.glob('*.tif')) == sorted(dataset.ids)
    table = gpd.read_parquet(folder / 'embeddings.parquet')
    assert table['id'].tolist() == list(dataset.ids)
    assert table.crs.to_epsg() == 4326
    for number in (0, len(table) - 1):
        row, sample = table.iloc[number], dataset[number]
        with rasterio.open(folder / f'{row["id"]}.tif') as file:
            assert file.tags()['EMBEDDING_GSD'] == '10'
            assert (file.read(9) == 1).all()
            assert file.shape == (16, 16)
            mean = dequantize(file.read()[:8]).mean((1, 2))
        np.testing.assert_allclose(row['embedding'], mean / np.linalg.norm(mean), atol=1e-6)
        corners = gpd.GeoSeries(shapely.points(dataset.corners[number]), crs=dataset.crs).to_crs(4326)
        vertices = shapely.points(shapely.get_coordinates(row.geometry)[[0, 3, 1]])  # tiles of PASTIS are rotated
        assert shapely.distance(corners.to_numpy(), vertices).max() < 1e-6
        assert row['sensors'].tolist() == ['s2']
        days = sample['dates_s2'][sample['valid_s2']].numpy().astype('datetime64[D]')
        assert (row['start_datetime'], row['end_datetime']) == tuple(
            pd.Timestamp(day, tz='UTC') for day in (days.min(), days.max())
        )
    assert parquet.read_schema(folder / 'embeddings.parquet').field('embedding').type.list_size == 8
    with pytest.raises(ValueError, match='zarr'):
        make_trainer(tmp_path, EmbeddingWriter(str(folder), zarr=True)).predict(task, datamodule=datamodule)


def test_table_omits_missing_tiles_and_those_of_other_weights(tmp_path: Path) -> None:
    bands = EmbeddingBands(2, ['s2', 's1a'])
    codes = np.full((3, 4, 4), -128, np.int8)
    for name, weights, place in (
        ('a', '1', make_grid(4, 4)),
        ('b', '2', make_grid(4, 4)),
        ('c', '1', Placement(None, Affine.identity(), 4, 4)),
    ):
        if name == 'c':
            codes[:, :2] = np.array([9, 9, 2]).reshape(3, 1, 1)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            write_embeddings(tmp_path / f'{name}.tif', tmp_path / 'scratch.tif', place, bands,
                             [(Window(0, 0, 4, 4), codes)], {'WEIGHTS_SHA256': weights})  # fmt: skip
            files = [tmp_path / f'{other}.tif' for other in 'abcd']
            count = write_tile_table(tmp_path / 'table.parquet', files, 2, '1')
    assert count == 2
    table = gpd.read_parquet(tmp_path / 'table.parquet')
    assert table['id'].tolist() == ['a', 'c']
    assert table['embedding'][0] is None  # no pixel was observed
    np.testing.assert_allclose(table['embedding'][1], [0.5**0.5] * 2, rtol=1e-6)
    assert table['sensors'][1].tolist() == ['s1a']
    assert table.geometry[0].is_valid
    assert table.geometry[1] is None  # no georeference
    assert table['start_datetime'].isna().all()
