# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from pyproj import Transformer
from torch import Tensor, nn
from torchgeo.datasets import unbind_samples

from tests.conftest import SHARED, SPOT, save, write_pastis
from torchgeo_omnisat.batch import check
from torchgeo_omnisat.datamodules import PASTISMultimodalDataModule


class Probe(LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.batches: dict[str, list[dict[str, Tensor]]] = {}

    def keep(self, stage: str, batch: dict[str, Tensor]) -> Tensor:
        self.batches.setdefault(stage, []).append(batch)
        return self.weight * 1

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.keep('train', batch)

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        self.keep('val', batch)

    def test_step(self, batch: dict[str, Tensor]) -> None:
        self.keep('test', batch)

    def predict_step(self, batch: dict[str, Tensor]) -> None:
        self.keep('predict', batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters())


def trainer(**kwargs: Any) -> Trainer:
    return Trainer(
        accelerator='cpu', max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **kwargs,
    )  # fmt: skip


@pytest.fixture(scope='module')
def root(pastis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since statistics are written into it."""
    return Path(shutil.copytree(pastis, tmp_path_factory.mktemp('datamodule') / 'pastis'))


def ids(dataset: Any) -> set[int]:
    return {patch.fold for patch in dataset.patches}


class TestPASTISMultimodalDataModule:
    @pytest.mark.parametrize(
        ('fold', 'train', 'val', 'test'),
        [
            (1, {1, 2, 3}, {4}, {5}),
            (2, {2, 3, 4}, {5}, {1}),
            (3, {3, 4, 5}, {1}, {2}),
            (4, {4, 5, 1}, {2}, {3}),
            (5, {5, 1, 2}, {3}, {4}),
        ],
    )
    def test_official_folds(self, root: Path, fold: int, train: set[int], val: set[int], test: set[int]) -> None:
        datamodule = PASTISMultimodalDataModule(str(root), fold=fold, modalities=('s2',))
        for stage in ('fit', 'test', 'predict'):
            datamodule.setup(stage)
        assert ids(datamodule.train_dataset) == train
        assert ids(datamodule.val_dataset) == val
        assert ids(datamodule.test_dataset) == ids(datamodule.predict_dataset) == test
        expected = 10.0 * sum(train) / 3
        assert datamodule.mean['s2'].tolist() == pytest.approx([expected] * 10)
        assert datamodule.std['s2'].tolist() == pytest.approx([1 + expected / 10] * 10)

    @pytest.mark.parametrize('fold', [0, 6, 1.5, '1', None])
    def test_no_other_fold(self, fold: Any) -> None:
        with pytest.raises(ValueError, match=rf'fold.*{fold!r}.*\[1, 2, 3, 4, 5\]'):
            PASTISMultimodalDataModule(fold=fold)

    def test_says_what_a_task_asks(self, root: Path) -> None:
        datamodule = PASTISMultimodalDataModule(str(root))
        datamodule.setup('validate')
        assert datamodule.num_classes == len(datamodule.labels) == 20
        assert (datamodule.ignore_index, datamodule.labels[19]) == (19, 'void')
        assert (datamodule.patch_size, datamodule.label_gsd) == (40.0, 10.0)
        assert list(datamodule.modalities) == list(datamodule.mean) == list(datamodule.std)
        assert [len(datamodule.mean[m.name]) for m in datamodule.modalities.values()] == [10, 3, 3, 3]

    def test_every_stage_normalises(self, root: Path) -> None:
        datamodule = PASTISMultimodalDataModule(str(root), batch_size=2, num_workers=1)
        probe = Probe()
        trainer().fit(probe, datamodule)
        for run in (trainer().validate, trainer().test, trainer().predict):
            run(probe, datamodule=datamodule)
        assert {stage: len(batches) for stage, batches in probe.batches.items()} == {
            'train': 3, 'val': 2, 'test': 1, 'predict': 1,
        }  # fmt: skip
        for stage in probe.batches:
            for batch in probe.batches[stage]:
                check(batch, datamodule.modalities)
                assert batch['image_spot'].mean().item() == pytest.approx(0, abs=0.05)
                assert batch['image_spot'].std().item() == pytest.approx(1, abs=0.05)
        datamodule.setup('test')
        raw = datamodule.test_dataset[0]['image_s2']
        seen = probe.batches['test'][0]['image_s2'][0, : len(raw)]
        assert torch.allclose(seen, (raw - 20) / 3, atol=1e-3)

    def test_coordinates_are_not_augmented(self, root: Path) -> None:
        datamodule = PASTISMultimodalDataModule(str(root), batch_size=2, modalities=('s2',))
        datamodule.setup('fit')
        batch = next(iter(datamodule.train_dataloader()))
        xmin, xmax, ymin, ymax = batch['bounds'][:, [0, 1, 3, 4]].T
        back = Transformer.from_crs(4326, 2154, always_xy=True).transform(*batch['coordinates'].T)
        assert np.abs(np.array(back) - torch.stack([(xmin + xmax) / 2, (ymin + ymax) / 2]).numpy()).max() < 1
        for _ in range(4):
            augmented = datamodule.train_aug(dict(batch))
            assert torch.equal(augmented['coordinates'], batch['coordinates'])
            assert augmented['coordinates'].dtype == torch.float64

    @pytest.mark.parametrize(('batch_size', 'batches'), [(2, 3), (4, 1), (6, 1), (8, 1)])
    def test_small_split_still_trains(self, root: Path, batch_size: int, batches: int) -> None:
        datamodule = PASTISMultimodalDataModule(str(root), batch_size=batch_size, modalities=('s2',))
        datamodule.setup('fit')
        assert len(list(datamodule.train_dataloader())) == batches
        assert sum(len(batch['mask']) for batch in datamodule.val_dataloader()) == 2

    def test_training_is_shuffled_and_the_rest_is_not(self, root: Path) -> None:
        datamodule = PASTISMultimodalDataModule(str(root), batch_size=1, modalities=('s1a',))
        datamodule.setup('fit')
        datamodule.setup('test')
        torch.manual_seed(0)
        orders = {tuple(b['bounds'][0, 0].item() for b in datamodule.train_dataloader()) for _ in range(4)}
        assert len(orders) > 1
        assert len({tuple(b['bounds'][0, 0].item() for b in datamodule.test_dataloader()) for _ in range(4)}) == 1

    def test_arguments_reach_the_dataset(self, root: Path) -> None:
        datamodule = PASTISMultimodalDataModule(
            str(root), modalities=('s1a', 's2'), bands={'s1a': ('VH', 'VV')}, max_dates=2, missing='allow'
        )
        datamodule.setup('fit')
        assert datamodule.modalities['s1a'].bands == ('VH', 'VV')
        batch = next(iter(datamodule.train_dataloader()))
        assert batch['image_s1a'].shape[1:3] == (2, 2)
        assert datamodule.train_dataset.missing == 'allow'

    def test_command_line_takes_every_argument(self, root: Path) -> None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(PASTISMultimodalDataModule, 'data')
        arguments = [
            '--data.root',
            str(root),
            '--data.fold',
            '2',
            '--data.modalities',
            '[s2,s1a]',
            '--data.max_dates',
            '3',
        ]
        arguments += [
            '--data.bands',
            '{s1a: [VV]}',
            '--data.date_range',
            '[2018-01-01,2020-01-01]',
            '--data.missing',
            'allow',
        ]
        datamodule = PASTISMultimodalDataModule(**parser.parse_args(arguments).data)
        datamodule.setup('fit')
        assert datamodule.modalities['s1a'].bands == ('VV',)
        assert ids(datamodule.val_dataset) == {5}


class TestTilesWithoutAnImage:
    def test_batches_of_one_train_without_them(self, tmp_path: Path) -> None:
        root = write_pastis(tmp_path / 'root', folds=(1, 1, 2, 3, 4), size=8)
        (root / SPOT.format(10001)).unlink()
        datamodule = PASTISMultimodalDataModule(str(root), modalities=('spot',), missing='allow')
        probe = Probe()
        with pytest.warns(UserWarning, match=r"1 of 4 .*\['spot'\].*'10001'"):
            trainer().fit(probe, datamodule)
        batches = probe.batches['train']
        assert len(batches) == 3
        assert all(len(batch['mask']) == 1 and batch['valid_spot'].all() for batch in batches)


class TestStatistics:
    def test_bands_select(self, tmp_path: Path) -> None:
        root = write_pastis(tmp_path, folds=(1, 4), size=8)
        norm = {f'Fold_{k}': {'mean': [k, 10 * k, 100 * k], 'std': [k, 2 * k, 0]} for k in range(1, 6)}
        (root / 'NORM_S1A_patch.json').write_text(json.dumps(norm))
        datamodule = PASTISMultimodalDataModule(str(root), bands={'s1a': ('VV-VH', 'VV')})
        datamodule.setup('fit')
        assert datamodule.mean['s1a'].tolist() == [200, 2]
        assert datamodule.std['s1a'].tolist() == [0, 2]
        normal = datamodule.aug(next(iter(datamodule.train_dataloader())))
        assert normal['image_s1a'].isfinite().all()

    def test_what_was_measured_comes_before_what_is_published(self, tmp_path: Path) -> None:
        root = write_pastis(tmp_path, folds=(1, 4), size=8)
        measured = {'mean': [7.0] * 3, 'std': [3.0] * 3}
        (root / 'STATISTICS.json').write_text(json.dumps({'s1a': {'Fold_1': measured}}))
        datamodule = PASTISMultimodalDataModule(str(root), modalities=('s1a', 's1d'))
        datamodule.setup('fit')
        assert (datamodule.mean['s1a'].tolist(), datamodule.mean['s1d'].tolist()) == ([7] * 3, [20] * 3)

    def test_unasked_no_more_is_measured_than_is_allowed(self, tmp_path: Path) -> None:
        root = write_pastis(tmp_path, folds=(1, 1, 1, 4), size=8)
        datamodule = PASTISMultimodalDataModule(str(root), modalities=('spot',))
        datamodule.max_measured = 2
        datamodule.setup('fit')
        assert json.loads((root / 'STATISTICS.json').read_text())['spot']['Fold_1']['samples'] == 2

    def test_measured_where_no_file_says(self, tmp_path: Path) -> None:
        root = write_pastis(tmp_path, folds=(1, 1, 2, 4), size=8)
        (root / 'NORM_S2_patch.json').unlink()
        s2 = np.load(root / 'DATA_S2/S2_10001.npy')
        s2[0, :, :4] = -10000
        save(root / 'DATA_S2/S2_10001.npy', s2)
        datamodule = PASTISMultimodalDataModule(str(root), max_dates=1, bands={'s2': ('B04', 'B02')})
        datamodule.prepare_data()
        first = [np.load(root / f'DATA_S2/S2_{n}.npy').astype(float) for n in (10000, 10001)]
        first[1][0, :, :4] = np.nan
        pixels = [
            np.concatenate([np.moveaxis(a, 1, 0).reshape(10, -1) for a in fold], 1)
            for fold in (first, [np.load(root / 'DATA_S2/S2_10002.npy').astype(float)])
        ]
        mean = np.mean([np.nanmean(fold, 1) for fold in pixels], 0)
        std = np.mean([np.nanstd(fold, 1) for fold in pixels], 0)
        kept = json.loads((root / 'STATISTICS.json').read_text())
        assert set(kept) == {'s2', 'spot'}
        assert set(kept['s2']) == {'Fold_1', 'Fold_2'}
        assert [len(kept['s2']['Fold_1']['mean']), *(kept['s2']['Fold_1'][n] for n in ('samples', 'of'))] == [10, 2, 2]
        datamodule.setup('fit')
        assert datamodule.mean['s2'].tolist() == pytest.approx(mean[[2, 0]].tolist())
        assert datamodule.std['s2'].tolist() == pytest.approx(std[[2, 0]].tolist())
        with rasterio.open(root / SPOT.format(10002)) as file:
            assert kept['spot']['Fold_2']['mean'] == pytest.approx(file.read().mean((1, 2)).tolist())

    def test_test_split_is_never_measured(self, tmp_path: Path) -> None:
        root = write_pastis(tmp_path, folds=(1, 2, 3, 4, 5), size=8)
        for number in (10003, 10004):
            (root / SPOT.format(number)).write_bytes(b'broken')
        PASTISMultimodalDataModule(str(root)).setup('fit')

    def test_training_folds_without_a_pixel(self, tmp_path: Path) -> None:
        root = write_pastis(tmp_path, folds=(1, 4), size=8)
        (root / SPOT.format(10000)).unlink()
        with pytest.raises(ValueError, match=r"'spot'.*\b1 "):
            PASTISMultimodalDataModule(str(root), missing='allow').setup('fit')
        PASTISMultimodalDataModule(str(root), missing='allow', modalities=('s2', 's1a')).setup('fit')

    def test_broken_file_is_named(self, tmp_path: Path) -> None:
        root = write_pastis(tmp_path, folds=(1, 4), size=8)
        (root / 'NORM_S1D_patch.json').write_text('{"Fold_1": {}}')
        with pytest.raises(ValueError, match=r"NORM_S1D_patch\.json.*'Fold_1'"):
            PASTISMultimodalDataModule(str(root)).setup('fit')

    def test_testing_needs_no_other_files(self, tmp_path: Path) -> None:
        root = write_pastis(tmp_path, folds=(1, 2, 3, 4, 5), size=8)
        (root / 'DATA_S2/S2_10000.npy').unlink()
        datamodule = PASTISMultimodalDataModule(str(root), modalities=('s2',))
        probe = Probe()
        trainer().test(probe, datamodule=datamodule)
        assert len(probe.batches['test']) == 1


class TestPlot:
    def test_shows_raw_units(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        datamodule = PASTISMultimodalDataModule(str(root), batch_size=2)
        datamodule.setup('fit')
        sample = unbind_samples(datamodule.aug(next(iter(datamodule.val_dataloader()))))[0]
        assert sample['image_s2'].mean() < 2000  # 4500 in raw units
        figure = datamodule.plot(sample | {'prediction': sample['mask']}, suptitle='now')
        assert figure.get_suptitle() == 'now'
        assert {'mask', 'prediction', 'spot: true colour'} <= {ax.get_title() for ax in figure.axes}
        shown: list[Any] = []
        monkeypatch.setattr(datamodule.val_dataset, 'plot', lambda shows, **_: shown.append(shows))
        datamodule.plot(sample)
        for key, value in datamodule.val_dataset[0].items():
            part = shown[0][key][: len(value)]
            assert torch.allclose(part, value, rtol=1e-4, atol=1e-2)


@pytest.mark.skipif(not SHARED.exists(), reason='no real data beside the checkout')
class TestRealData:
    def test_one_patch_a_fold_trains(self) -> None:
        datamodule = PASTISMultimodalDataModule(str(SHARED / 'pastis-r-mini'), fold=1, batch_size=4)
        probe = Probe()
        trainer().fit(probe, datamodule)
        (batch,) = probe.batches['train']
        assert batch['image_s2'].shape == (3, 3, 10, 32, 32)
        assert datamodule.mean['s1a'].tolist() == pytest.approx([-10.94, -17.36, 6.42])
        assert datamodule.mean['s2'][0].item() == pytest.approx((1165.9398 + 1207.1932 + 1187.2601) / 3)
        for name in ('s2', 's1a', 's1d'):
            assert batch[f'image_{name}'].mean().abs() < 1


class TestSplits:
    TRAIN, VAL, TEST = (10000, 10004, 10007), (10001,), (10002, 10003)

    def parts(self, folder: Path, form: str) -> Path:
        lists = {'train': self.TRAIN, 'val': self.VAL, 'test': self.TEST}
        if form in ('folder', 'fold'):
            for split, tiles in lists.items():  # as MAESTRO reads them: an id a line, and other columns
                name = f'{split}.csv' if form == 'folder' else f'{split}_fold_1.csv'
                lines = ''.join(f'{tile},T30UXV\n' for tile in tiles)
                (folder / name).write_text(f'image,TILE\n{lines}')
            return folder if form == 'folder' else folder / '{}_fold_1.csv'
        rows = [(tile, 'validation' if split == 'val' else split) for split, tiles in lists.items() for tile in tiles]
        if form == 'csv':
            path = folder / 'splits.csv'
            path.write_text('id,split\n' + ''.join(f'{tile},{split}\n' for tile, split in rows))
            return path
        path = folder / 'splits.geojson'
        features = [{'type': 'Feature', 'geometry': None, 'properties': {'id': i, 'split': s}} for i, s in rows]
        path.write_text(json.dumps({'type': 'FeatureCollection', 'features': features}))
        return path

    @pytest.mark.parametrize('form', ['folder', 'fold', 'csv', 'geojson'])
    def test_tiles_of_each_split(self, root: Path, tmp_path: Path, form: str) -> None:
        data = PASTISMultimodalDataModule(root=str(root), splits=str(self.parts(tmp_path, form)), modalities=('s2',))
        for split, tiles in (('train', self.TRAIN), ('val', self.VAL), ('test', self.TEST)):
            assert tuple(patch.id for patch in data.make_dataset(split).patches) == tiles

    def test_statistics_are_those_of_the_training_tiles(self, root: Path, tmp_path: Path) -> None:
        data = PASTISMultimodalDataModule(root=str(root), splits=str(self.parts(tmp_path, 'csv')), modalities=('s2',))
        data.setup('fit')
        images = [data.make_dataset('train')[index]['image_s2'] for index in range(len(self.TRAIN))]
        pixels = torch.cat([image.movedim(1, 0).flatten(1) for image in images], 1).double()
        mean = torch.stack([band[band.isfinite()].mean() for band in pixels])
        torch.testing.assert_close(torch.as_tensor(data.mean['s2']).double().flatten(), mean, rtol=1e-4, atol=1e-3)

    @pytest.mark.parametrize(
        ('text', 'named'),
        [
            ('id,split\n10000,train\n10000,test\n', '10000'),
            ('id,split\n10000,other\n', 'other'),
            ('id,split\n99999,train\n', '99999'),
            ('tile,split\n10000,train\n', 'tile'),
            ('id\n10000\n', 'split'),
            ('id,split\n10001,val\n', 'train'),
        ],
    )
    def test_other_files_are_refused(self, root: Path, tmp_path: Path, text: str, named: str) -> None:
        path = tmp_path / 'splits.csv'
        path.write_text(text)
        with pytest.raises(ValueError, match=named):
            PASTISMultimodalDataModule(root=str(root), splits=str(path)).make_dataset('train')

    def test_missing_file_is_named(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r'train\.csv'):
            PASTISMultimodalDataModule(root=str(root), splits=str(tmp_path)).make_dataset('train')
