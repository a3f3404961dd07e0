# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""EmbeddingWriter: codes, bands and tags, the STAC item, resuming, tilings, and models without a head."""

import json
import re
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from pyproj import CRS
from rasterio import Affine
from torch import Tensor
from torchgeo.datasets import RasterDataset

from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.grid import Grid
from torchgeo_omnisat.prediction import EmbeddingBands, EmbeddingWriter, Window
from torchgeo_omnisat.prediction.embeddings.reader import EmbeddingMap
from torchgeo_omnisat.prediction.embeddings.writer import stac_item
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.tasks.embedding import training_samples
from torchgeo_omnisat.utils.checks import EmptySplitError
from torchgeo_omnisat.utils.quantization import dequantize, quantize

from ..areas import MODALITIES, TOLD, PlaneDataModule, is_cog, make_grid
from ..test_writer import make_trainer

pytestmark = pytest.mark.filterwarnings('ignore:.*does not have many workers', 'ignore:.*fork')
#: What the schema of the extension allows in the properties of an item, and in its quantization.
PROPERTIES = (
    'runtime_parameters preprocessing postprocessing fit_for_use spatial_coverage uncertainty quantization energy'
)
QUANTIZATION = {'method': str, 'original_dtype': str, 'quantized_dtype': str, 'scale': list, 'offset': list}
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
        """What the schemas of STAC 1.0.0 and of the extension `embeddings` 0.0.1 require of an item."""
        assert (item['type'], item['stac_version'], item['id']) == ('Feature', '1.0.0', 'map')
        assert 'https://stac-extensions.github.io/embeddings/v0.0.1/schema.json' in item['stac_extensions']
        west, south, east, north = item['bbox']
        ring = np.array(item['geometry']['coordinates'][0])
        assert (ring[0] == ring[-1]).all()
        assert (ring >= [west - 1e-9, south - 1e-9]).all()
        assert (ring <= [east + 1e-9, north + 1e-9]).all()
        assert (4.4 < west < east < 4.5, 50.5 < south < north < 50.6) == (True, True)
        assert any('/raster/' in extension for extension in item['stac_extensions'])
        properties = item['properties']
        assert RFC3339.fullmatch(properties['datetime'])  # of processing, because the plane has no dates
        assert properties['datetime'] == properties['created']
        assert 'processing' in properties['description']
        assert not {'start_datetime', 'end_datetime'} & set(properties)
        assert {name[4:] for name in properties if name.startswith('emb:')} <= set(PROPERTIES.split())
        quantization = properties['emb:quantization']
        assert {name: type(value) for name, value in quantization.items()} == QUANTIZATION
        assert all(isinstance(x, float) for x in quantization['scale'] + quantization['offset'])
        assert set(properties['emb:postprocessing']) == {'format', 'expression'}
        assert properties['emb:runtime_parameters']['dimensions'] == 8
        assert (properties['data_type'], properties['gsd']) == ('int8', 10.0)
        assert (properties['proj:epsg'], properties['proj:shape']) == (32631, [260, 48])
        assert isinstance(item['links'], list)
        asset = item['assets']['embeddings']
        assert asset['href'] == './map.tif'
        assert not any(name.startswith('emb:') for name in asset)

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


def test_item_states_the_period_of_dated_images() -> None:
    bands, tags = EmbeddingBands(2, ['s2']), {'EMBEDDING_GSD': '10'}
    days = pd.Timestamp('2020-03-01'), pd.Timestamp('2020-09-30')
    properties = stac_item('map.tif', make_grid(8, 8), bands, tags, days)['properties']
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
    make_trainer(tmp_path, EmbeddingWriter(str(tmp_path / 'tiles'))).predict(task, datamodule=datamodule)
    dataset: Any = datamodule.predict_dataset
    assert sorted(path.stem for path in (tmp_path / 'tiles').iterdir()) == sorted(dataset.ids)
    with rasterio.open(tmp_path / f'tiles/{dataset.ids[0]}.tif') as file:
        assert file.tags()['EMBEDDING_GSD'] == '10'
        assert (file.read(9) == 1).all()
        assert file.shape == (16, 16)
