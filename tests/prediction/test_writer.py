# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""GeoTIFFWriter: the map is what the model says, where it says it, and says what it is."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.prediction import GeoTIFFWriter, Stitcher, seen_bits
from torchgeo_omnisat.tasks import OmniSatSegmentation

from .areas import LABELS, MODALITIES, TOLD, PlaneDataModule, is_cog, make_grid

pytestmark = pytest.mark.filterwarnings('ignore:.*does not have many workers')


def make_task(**kwargs: Any) -> OmniSatSegmentation:
    torch.manual_seed(0)
    return OmniSatSegmentation(**TOLD | kwargs)


def make_trainer(folder: Path, *callbacks: Any, **kwargs: Any) -> Trainer:
    quiet: dict[str, Any] = {'logger': False, 'enable_checkpointing': False, 'enable_model_summary': False}
    quiet |= {'accelerator': 'cpu', 'devices': 1, 'enable_progress_bar': False, 'default_root_dir': folder}
    return Trainer(callbacks=list(callbacks), **quiet | kwargs)


def predict(folder: Path, datamodule: PlaneDataModule, task: OmniSatSegmentation | None = None, **kwargs: Any) -> Path:
    """Predict an area with a model from a seed, and give the map."""
    output = folder / 'map.tif'
    writer = GeoTIFFWriter(str(output), **{'overview': False, 'styles': False} | kwargs)
    make_trainer(folder, writer).predict(task or make_task(), datamodule=datamodule)
    return output


def read(path: Path) -> Any:
    with rasterio.open(path) as file:
        return file.read()


class TestMap:
    def test_it_lies_on_the_grid_and_explains_itself(self, tmp_path: Path) -> None:
        datamodule = PlaneDataModule(300, 280, modalities=('s2', 'dem'), covers={'s2': (0, 200), 'dem': (0, 200)})
        path = predict(tmp_path, datamodule, colors=('blue', '#ffff00', 'red'))
        with rasterio.open(path) as file:
            assert (file.crs.to_epsg(), file.transform, file.shape) == (32631, make_grid(1, 1).transform, (300, 280))
            assert file.dtypes == ('uint8',) * 5
            assert file.nodata == 255
            assert file.descriptions == ('class', 'modalities', *(f'probability {label}' for label in LABELS))
            assert [file.tags(1)[f'CLASS_{i}'] for i in range(3)] == LABELS
            assert [file.tags(2)[f'BIT_{i}'] for i in range(3)] == list(MODALITIES)
            assert file.scales == pytest.approx((1, 1, 0.004, 0.004, 0.004))
            assert [file.colormap(1)[i][:3] for i in range(3)] == [(0, 0, 255), (255, 255, 0), (255, 0, 0)]
            assert file.overviews(1) == [2]
            bands = file.read()
        assert is_cog(path)
        with rasterio.open(path, overview_level=0) as small:
            assert small.colormap(1)[1][:3] == (255, 255, 0)
            assert np.isin(small.read(1), bands[0]).all()
        assert sorted(path.parent.iterdir()) == [path]
        assert (bands[:, :, 200:] == 255).all()
        seen = bands[:, :, :200]
        assert (seen[1] == 0b101).all()
        assert (abs(seen[2:].astype(int).sum(0) - 250) <= 1).all()
        assert (seen[2:].max(0) - np.take_along_axis(seen[2:], seen[:1].astype(int), 0)[0] <= 1).all()

    @pytest.mark.parametrize('size', [(32, 32), (20, 13), (41, 97)])
    def test_it_is_what_the_stitched_model_says(self, tmp_path: Path, size: tuple[int, int]) -> None:
        task, datamodule = make_task(), PlaneDataModule(*size, modalities=('s2', 'dem'), overlap=0.5)
        stored = read(predict(tmp_path, datamodule, task, probabilities='uint16'))
        stitcher, tiling = Stitcher(datamodule.tiling, 3), datamodule.tiling
        rows = []
        for strip in tiling.strips():
            stitcher.begin(strip)
            for window in tiling.tiles(strip):
                with torch.inference_mode():
                    batch = collate([datamodule.predict_dataset[window]], MODALITIES)
                    probabilities = task.eval()(batch).softmax(1)[0].numpy()
                stitcher.add(window, probabilities, np.ones((32, 32), np.uint16))
            rows.append(stitcher.finish()[0])
        wanted = np.concatenate(rows, axis=1)
        np.testing.assert_allclose(stored[2:] / 60000, wanted, atol=1e-5 + 1e-6)
        assert np.array_equal(stored[0], wanted.argmax(0))

    def test_bands_of_columns_leave_no_trace(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        one = read(predict(tmp_path / 'one', PlaneDataModule(40, 200, size=16)))
        monkeypatch.setattr('torchgeo_omnisat.prediction.writer.MEMORY', 1e-6)
        many = predict(tmp_path / 'many', PlaneDataModule(40, 200, size=16))
        assert np.array_equal(read(many), one)

    def test_an_older_map_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / 'map.tif').write_text('something else')
        datamodule = PlaneDataModule(32, 32)
        assert read(predict(tmp_path, datamodule)).shape == (5, 32, 32)
        assert len(datamodule.predict_dataloader()) == 1  # by hand, now that the writer is through

    def test_ignored_class_never_wins(self, tmp_path: Path) -> None:
        task = make_task(ignore_index=1)
        task.model.decoder.head.bias.data[1] = 100.0
        bands = read(predict(tmp_path, PlaneDataModule(32, 32), task))
        assert not (bands[0] == 1).any()
        assert not bands[3].any()

    def test_without_probabilities(self, tmp_path: Path) -> None:
        assert read(predict(tmp_path, PlaneDataModule(32, 32), probabilities='none')).shape == (2, 32, 32)

    def test_picture_and_parcels_beside_it(self, tmp_path: Path) -> None:
        predict(tmp_path, PlaneDataModule(64, 64), overview=True, parcels=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ['map.gpkg', 'map.png', 'map.tif']
        assert (tmp_path / 'map.png').read_bytes().startswith(b'\x89PNG')


class TestModalities:
    """s2 covers the left, s1a the right, and they share the middle."""

    def test_each_pixel_says_what_measured_it(self, tmp_path: Path) -> None:
        covers = {'s2': (0, 50), 's1a': (30, 80)}
        bands = read(predict(tmp_path, PlaneDataModule(64, 100, modalities=('s2', 's1a'), covers=covers)))
        wanted = np.repeat([1, 3, 2, 255], [30, 20, 30, 20])
        assert (bands[1] == wanted).all()
        assert ((bands[0] == 255) == (wanted == 255)).all()

    def test_of_a_baseline_bits_are_those_of_what_it_takes(self, tmp_path: Path) -> None:
        task = make_task(backbone='utae', modalities={name: MODALITIES[name] for name in ('dem', 's2')})
        path = predict(tmp_path, PlaneDataModule(32, 32, modalities=('s2', 'dem')), task)
        with rasterio.open(path) as file:
            assert {k: v for k, v in file.tags(2).items() if k.startswith('BIT')} == {'BIT_0': 's2'}
            assert (file.read(2) == 1).all()

    def test_one_that_is_nowhere_changes_nothing(self, tmp_path: Path) -> None:
        alone = read(predict(tmp_path / 'a', PlaneDataModule(64, 40)))
        nowhere = PlaneDataModule(64, 40, modalities=('s2', 's1a'), covers={'s1a': (500, 600)})
        assert np.array_equal(read(predict(tmp_path / 'b', nowhere)), alone)

    def test_tiles_without_any_cost_no_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        task, sizes = make_task(), []
        forward = task.model.forward
        monkeypatch.setattr(task.model, 'forward', lambda batch: sizes.append(len(batch['window'])) or forward(batch))
        datamodule = PlaneDataModule(32, 200, covers={'s2': (0, 40)}, batch_size=1)
        bands = read(predict(tmp_path, datamodule, task))
        assert sum(sizes) == 2
        assert (bands[:, :, 40:] == 255).all()
        assert (bands[1, :, :40] == 1).all()

    def test_an_area_without_any_is_an_error(self, tmp_path: Path) -> None:
        datamodule = PlaneDataModule(64, 64, covers={'s2': (100, 120)})
        with pytest.raises(ValueError, match=r"\['s2', 's1a', 'dem'\].*EPSG:32631"):
            predict(tmp_path, datamodule)
        assert not list(tmp_path.iterdir())

    def test_outside_of_a_polygon_is_nodata(self, tmp_path: Path) -> None:
        datamodule = PlaneDataModule(64, 64)
        xmin, _, _, ymax = datamodule.grid.bounds
        datamodule.area = shapely.box(xmin + 100, ymax - 500, xmin + 300, ymax)  # type: ignore[attr-defined]
        bands = read(predict(tmp_path, datamodule))
        inside = bands[1] == 1
        assert inside[:50, 10:30].all()
        assert inside.sum() == 50 * 20
        assert (bands[:, ~inside] == 255).all()
        assert np.array_equal(bands[:, inside], read(predict(tmp_path / 'all', PlaneDataModule(64, 64)))[:, inside])

    def test_bits_of_finer_and_coarser_pixels(self) -> None:
        image = torch.full((1, 1, 2, 2), torch.nan)
        image[..., 0, 1] = 1.0
        batch = {'image_dem': image, 'valid_dem': torch.ones(1, 1, dtype=torch.bool), 'window': torch.zeros(1, 4)}
        coarse = seen_bits(batch, {'dem': MODALITIES['dem']}, (4, 4))
        assert coarse[0].tolist() == [[0, 0, 1, 1]] * 2 + [[0, 0, 0, 0]] * 2
        assert seen_bits(batch, {'dem': MODALITIES['dem']}, (1, 1)).tolist() == [[[1]]]
        batch['valid_dem'][:] = False
        assert not seen_bits(batch, {'dem': MODALITIES['dem']}, (4, 4)).any()

    def test_one_band_is_enough_and_the_centre_of_a_pixel_tells(self) -> None:
        image = torch.full((1, 2, 3, 3), torch.nan)
        image[:, 1, :, 1] = 1.0
        batch = {'image_dem': image, 'valid_dem': torch.ones(1, 1, dtype=torch.bool)}
        assert seen_bits(batch, {'dem': MODALITIES['dem']}, (5, 5))[0, 0].tolist() == [0, 0, 1, 0, 0]

    def test_eight_need_a_wider_type(self) -> None:
        from torchgeo_omnisat.prediction.raster import MapBands

        assert MapBands(LABELS, [str(i) for i in range(7)]).dtype == 'uint8'
        wide = MapBands(LABELS, [str(i) for i in range(8)])
        assert (wide.dtype, wide.nodata) == ('uint16', 65535)
        coded = wide.encode(np.ones((3, 1, 2), np.float32) / 3, np.array([[255, 0]], np.uint16))
        assert coded[:, 0].tolist() == [[0, 65535], [255, 65535], *[[20000, 65535]] * 3]
        assert MapBands([str(i) for i in range(254)], ['s2']).dtype == 'uint8'
        assert MapBands([str(i) for i in range(256)], ['s2']).nodata == 65535, 'number 255 is a class'


class TestTrainer:
    def test_nothing_is_kept_and_a_writer_is_there(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path)
        assert trainer.predict(make_task(), datamodule=PlaneDataModule(32, 40)) is None
        assert (tmp_path / 'prediction.tif').is_file()
        assert (tmp_path / 'prediction.png').is_file()

    def test_tiles_are_counted(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        bar = TQDMProgressBar()
        writer = GeoTIFFWriter(str(tmp_path / 'map.tif'))
        trainer = make_trainer(tmp_path, writer, bar, enable_progress_bar=True)
        trainer.predict(make_task(), datamodule=PlaneDataModule(64, 64, overlap=0))
        shown = capsys.readouterr()
        assert 'Predicting: 100%' in shown.err
        assert '4/4' in shown.err
        # Time gone and left; a quick machine shows the last state alone.
        assert re.search(r'[1-4]/4 \[\d\d:\d\d<\d\d:\d\d, .*tiles', shown.err)
        assert 'tiles/s' in shown.err
        assert not bar.is_disabled

    def test_a_second_area_with_the_same_trainer(self, tmp_path: Path) -> None:
        trainer, task = make_trainer(tmp_path), make_task()
        for width in (32, 40):
            trainer.predict(task, datamodule=PlaneDataModule(32, width))
            assert read(tmp_path / 'prediction.tif').shape[-1] == width


class TestErrors:
    def test_single_tiles_are_only_returned_and_that_is_said(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        sample = PlaneDataModule(32, 32).predict_dataset[0, 0, 32, 32]
        del sample['window']
        loader = torch.utils.data.DataLoader([sample])
        with caplog.at_level('INFO'):
            (prediction,) = make_trainer(tmp_path).predict(make_task(), loader)  # type: ignore[misc]
        assert prediction['probabilities'].shape == (1, 3, 32, 32)
        assert 'Trainer.predict returns the predictions' in caplog.text

    def test_without_an_area(self, tmp_path: Path) -> None:
        loader = torch.utils.data.DataLoader([{}])
        with pytest.raises(ValueError, match='NoneType'):
            make_trainer(tmp_path, GeoTIFFWriter()).predict(make_task(), loader)

    def test_tiles_out_of_order(self, tmp_path: Path) -> None:
        datamodule = PlaneDataModule(64, 64)
        loader = datamodule.predict_dataloader()
        datamodule.predict_dataloader = lambda: (datamodule.plan(), loader)[1]  # type: ignore[method-assign]
        loader.dataset.parts.reverse()  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match='out of order'):
            predict(tmp_path, datamodule)

    def test_other_pixels_than_the_grid(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r'\(32, 32\).*\(16, 16\)'):
            predict(tmp_path, PlaneDataModule(64, 64), make_task(label_gsd=20.0))

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            ({'probabilities': 'int8'}, "probabilities is 'int8', expected one of"),
            ({'colors': ('red',)}, 'colors has 1 entry, expected'),
        ],
    )
    def test_arguments(self, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            predict(tmp_path, PlaneDataModule(32, 32), **arguments)

    @pytest.mark.parametrize('output', ['map.png', 'maps', 'map.gpkg'])
    def test_a_map_is_a_geotiff(self, tmp_path: Path, output: str) -> None:
        trainer = make_trainer(tmp_path, GeoTIFFWriter(str(tmp_path / output)))
        with pytest.raises(ValueError, match=rf"output.*{output}'"):
            trainer.predict(make_task(), datamodule=PlaneDataModule(32, 32))

    @pytest.mark.parametrize('limit', [1, 0.5])
    def test_a_limit_of_batches_leaves_the_rest_to_another_run(self, tmp_path: Path, limit: float) -> None:
        writer, area = GeoTIFFWriter(str(tmp_path / 'map.tif'), overview=False), PlaneDataModule(128, 32, overlap=0)
        with pytest.warns(UserWarning, match=r'limit_predict_batches .*map.tif'):
            make_trainer(tmp_path, writer, limit_predict_batches=limit).predict(make_task(), datamodule=area)
        assert not (tmp_path / 'map.tif').exists()
        assert read(predict(tmp_path, PlaneDataModule(128, 32, overlap=0))).shape == (5, 128, 32)
        assert [path.name for path in tmp_path.iterdir()] == ['map.tif']

    def test_a_negative_parcel(self) -> None:
        with pytest.raises(ValueError, match=r'smallest_parcel.*-1'):
            GeoTIFFWriter(smallest_parcel=-1)
