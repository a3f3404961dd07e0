# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from torchgeo.datasets import DatasetNotFoundError, unbind_samples

from tests.conftest import SHARED, save
from tests.datamodules.test_pastis import Probe, trainer
from tests.flair_tree import aerial, labels, series, write_tree
from tests.landscapes.flair import FLAIRRecipe, write_flair
from torchgeo_omnisat.batch import check
from torchgeo_omnisat.datamodules import FLAIRDataModule
from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatSegmentation

ZONE = 'D001_2019/Z1_AA'


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset into which statistics are written."""
    return write_tree(tmp_path_factory.mktemp('flair'))


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """A copy to be changed, without statistics."""
    return Path(shutil.copytree(root, tmp_path / 'own', ignore=shutil.ignore_patterns('STATISTICS*')))


class TestFLAIRDataModule:
    def test_official_domains(self, root: Path) -> None:
        datamodule = FLAIRDataModule(str(root))
        for stage in ('fit', 'test', 'predict'):
            datamodule.setup(stage)
        splits = (datamodule.train_dataset, datamodule.val_dataset, datamodule.test_dataset, datamodule.predict_dataset)
        assert [dataset.patches[0].domain for dataset in splits] == ['D001_2019', 'D004_2021'] + ['D015_2020'] * 2

    @pytest.mark.parametrize(('num_classes', 'ignore_index'), [(13, 12), (19, None)])
    def test_says_what_a_task_asks(self, root: Path, num_classes: int, ignore_index: int | None) -> None:
        datamodule = FLAIRDataModule(str(root), num_classes=num_classes)
        datamodule.setup('fit')
        assert datamodule.num_classes == len(datamodule.labels) == num_classes
        assert (datamodule.ignore_index, datamodule.labels[-1]) == (ignore_index, 'other')
        assert (datamodule.patch_size, datamodule.label_gsd) == (10.24, 0.2)
        assert list(datamodule.modalities) == list(datamodule.mean) == list(datamodule.std) == ['aerial', 's2']
        batch = next(iter(datamodule.train_dataloader()))
        check(batch, datamodule.modalities)
        assert batch['label'].shape[1] == len(datamodule.label_names)

    @pytest.mark.parametrize('num_classes', [0, 12, '13'])
    def test_no_other_number_of_classes(self, num_classes: Any) -> None:
        with pytest.raises(ValueError, match=rf'num_classes is {num_classes!r}, expected one of \[13, 19\]'):
            FLAIRDataModule(num_classes=num_classes)

    def test_every_stage_normalises(self, root: Path) -> None:
        datamodule = FLAIRDataModule(str(root), batch_size=2)
        probe = Probe()
        trainer().fit(probe, datamodule)
        for run in (trainer().test, trainer().predict):
            run(probe, datamodule=datamodule)
        assert {stage: len(batches) for stage, batches in probe.batches.items()} == {
            'train': 1, 'val': 1, 'test': 1, 'predict': 1,
        }  # fmt: skip
        datamodule.setup('test')
        raw = datamodule.test_dataset[0]['image_aerial']
        seen = probe.batches['test'][0]['image_aerial'][0]
        assert torch.allclose(seen[4], (raw[4] - 3.34) / 3.2, atol=1e-3)
        assert torch.allclose(seen[0], (raw[0] - 113.78) / 51, atol=1e-3)
        assert probe.batches['test'][0]['image_s2'].mean().abs() < 0.1

    def test_a_split_is_needed_when_a_stage_needs_it(self, own: Path) -> None:
        for directory in own.glob('flair_2_*'):
            shutil.rmtree(directory)
        datamodule = FLAIRDataModule(str(own))
        datamodule.setup('fit')
        datamodule.setup('validate')
        with pytest.raises(DatasetNotFoundError, match='flair_2_labels_test'):
            datamodule.setup('test')

    def test_says_when_data_are_made_up(self, root: Path, tmp_path: Path) -> None:
        write_flair(tmp_path / 'made', FLAIRRecipe(zones=1, size=8, dates=2))
        assert FLAIRDataModule(str(tmp_path / 'made')).synthetic
        assert not FLAIRDataModule(str(root)).synthetic

    def test_command_line_takes_every_argument(self, root: Path) -> None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(FLAIRDataModule, 'data')
        arguments = [
            f'--data.root={root}', '--data.modalities=[s2,aerial]', '--data.bands={s2: [B08, B04]}',
            '--data.num_classes=19', '--data.cloud_probability=50', '--data.cloud_cover=0.1', '--data.max_dates=2',
            '--data.missing=allow',
        ]  # fmt: skip
        datamodule = FLAIRDataModule(**parser.parse_args(arguments).data)
        datamodule.setup('fit')
        assert list(datamodule.modalities) == ['s2', 'aerial']
        assert datamodule.train_dataset.cloud_cover == 0.1
        assert next(iter(datamodule.train_dataloader()))['image_s2'].shape[1:3] == (2, 2)

    def test_trains_from_both(self, root: Path) -> None:
        task = OmniSatSegmentation(backbone='omnisat_tiny')
        fast = Trainer(fast_dev_run=True, accelerator='cpu', enable_progress_bar=False, enable_model_summary=False)
        fast.fit(task, FLAIRDataModule(str(root), batch_size=2))
        assert fast.callback_metrics['train_loss'].isfinite()

    def test_classification_of_its_covers(self, root: Path) -> None:
        datamodule = FLAIRDataModule(str(root), batch_size=2)
        task = OmniSatClassification('omnisat_tiny')
        trainer().fit(task, datamodule=datamodule)
        assert list(task.hparams['label_names']) == datamodule.labels[:12]
        (scores,) = trainer().test(task, datamodule=datamodule, verbose=False)
        assert 0 <= scores['test_AverageF1Score'] <= 1


class TestStatistics:
    def test_series_of_valid_dates_of_training(self, own: Path) -> None:
        masks = np.zeros((4, 2, 12, 14), np.uint8)
        masks[1] = 100
        save(series(own, ZONE, 'masks.npy'), masks)
        datamodule = FLAIRDataModule(str(own), max_dates=1, bands={'s2': ('B04', 'B02')})
        datamodule.prepare_data()
        data = np.load(series(own, ZONE, 'data.npy')).astype(float)[[0, 2, 3]]
        pixels = np.concatenate([data[:, :, 2:7, 3:8], data[:, :, 6:11, 7:12]])
        kept = json.loads((own / 'STATISTICS.json').read_text())
        assert list(kept) == ['s2']
        assert (kept['s2']['train']['samples'], kept['s2']['train']['of']) == (2, 2)
        datamodule.setup('validate')
        assert datamodule.mean['s2'].tolist() == pytest.approx(pixels.mean((0, 2, 3))[[2, 0]].tolist())
        assert datamodule.std['s2'].tolist() == pytest.approx(pixels.std((0, 2, 3))[[2, 0]].tolist())

    def test_published_of_the_bands_in_use_unless_the_file_says_otherwise(self, own: Path) -> None:
        arguments: dict[str, Any] = {'modalities': ('aerial',), 'bands': {'aerial': ('nDSM', 'G')}}
        datamodule = FLAIRDataModule(str(own), **arguments)
        datamodule.setup('fit')
        assert datamodule.mean['aerial'].tolist() == pytest.approx([3.34, 118.08])
        assert datamodule.std['aerial'].tolist() == pytest.approx([3.2, 45])
        assert not list(own.glob('STATISTICS*'))
        entry = {'aerial': {'train': {'mean': [1, 2, 3, 4, 5], 'std': [6, 7, 8, 9, 10]}}}
        (own / 'STATISTICS.json').write_text(json.dumps(entry))
        datamodule.setup('fit')
        assert (datamodule.mean['aerial'].tolist(), datamodule.std['aerial'].tolist()) == ([5, 2], [10, 7])

    def test_without_a_training_split(self, own: Path) -> None:
        for directory in own.glob('flair_*_train'):
            shutil.rmtree(directory)
        datamodule = FLAIRDataModule(str(own))
        with pytest.warns(UserWarning, match=r"no training split, so statistics of \['s2'\] are computed from 'test'"):
            datamodule.setup('test')
        assert list(json.loads((own / 'STATISTICS.json').read_text())['s2']) == ['test']

    def test_training_split_without_a_valid_date(self, own: Path) -> None:
        save(series(own, ZONE, 'masks.npy'), np.full((4, 2, 12, 14), 100, np.uint8))
        with pytest.raises(ValueError, match=r"'s2'.*\b2 "):
            FLAIRDataModule(str(own)).setup('fit')

    def test_test_split_is_never_measured(self, own: Path) -> None:
        for path in (aerial(own, '000500'), labels(own, '000500')):
            path.write_bytes(b'broken')
        FLAIRDataModule(str(own)).setup('fit')


class TestPlot:
    def test_shows_raw_units(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        datamodule = FLAIRDataModule(str(root))
        datamodule.setup('fit')
        sample = unbind_samples(datamodule.aug(next(iter(datamodule.val_dataloader()))))[0]
        figure = datamodule.plot(sample | {'prediction': sample['mask']}, suptitle='now')
        assert {'mask', 'prediction', 'aerial: true colour'} <= {ax.get_title() for ax in figure.axes}
        shown: list[Any] = []
        monkeypatch.setattr(datamodule.val_dataset, 'plot', lambda shows, **_: shown.append(shows))
        datamodule.plot(sample)
        for key, value in datamodule.val_dataset[0].items():
            assert torch.allclose(shown[0][key], value, rtol=1e-4, atol=1e-2)


@pytest.mark.skipif(not SHARED.exists(), reason='no real data beside the checkout')
class TestRealData:
    def test_aerial_alone(self) -> None:
        datamodule = FLAIRDataModule(str(SHARED / 'flair-mini'), batch_size=2)
        probe = Probe()
        trainer().fit(probe, datamodule)
        (batch,) = probe.batches['train']
        assert batch['image_aerial'].shape == (2, 5, 512, 512)
        assert batch['image_aerial'].mean().abs() < 1.5
        assert len(probe.batches['val']) == 1
        with pytest.raises(DatasetNotFoundError):
            datamodule.setup('test')

    @pytest.mark.slow
    def test_land_cover_from_aerial_alone(self, tmp_path: Path) -> None:
        datamodule = FLAIRDataModule(str(SHARED / 'flair-mini'), batch_size=1)
        task = OmniSatSegmentation('omnisat_tiny')
        fast = Trainer(fast_dev_run=1, accelerator='cpu', enable_progress_bar=False, enable_model_summary=False)
        fast.fit(task, datamodule=datamodule)
        assert fast.callback_metrics['train_loss'].isfinite()
        assert (task.hparams['label_gsd'], list(datamodule.modalities)) == (0.2, ['aerial'])
        sample = datamodule.val_dataset[0]
        datamodule.val_dataset.plot(sample).savefig(tmp_path / 'flair.png')
        assert (tmp_path / 'flair.png').stat().st_size > 10_000
