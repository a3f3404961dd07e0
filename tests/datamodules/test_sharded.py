# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Shards: the same samples, dealt to processes once each, and trained on as those of the files."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from pyproj import CRS
from torch import Tensor
from torchgeo.datasets.utils import Sample
from torchgeo.main import main as torchgeo

from tests.processes import succeed
from tests.tasks.helpers import make_trainer
from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat.commands.shard import write
from torchgeo_omnisat.datamodules import ShardedDataModule, SyntheticLandscapesDataModule
from torchgeo_omnisat.datamodules.adapters import ByShard
from torchgeo_omnisat.datasets import ShardedDataset
from torchgeo_omnisat.datasets.shards import decode_sample, encode_sample, write_split
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation

pytest.importorskip('litdata')

S2 = {'name': 's2', 'bands': ['B04'], 'gsd': 10.0, 'temporal': True}


def landscapes(root: Path) -> SyntheticLandscapesDataModule:
    return SyntheticLandscapesDataModule(str(root), num_tiles=20, size=8, dates=(2, 5), batch_size=2)


@pytest.fixture(scope='module')
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('shards')
    write(landscapes(folder / 'landscapes'), folder / 'out', 0.06)
    return folder / 'out'


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return (
        a.keys() == b.keys()
        and all(a[key].dtype == b[key].dtype for key in a)
        and all(np.array_equal(a[key], b[key], equal_nan=a[key].is_floating_point()) for key in a)
    )


def test_samples_are_those_of_the_files(shards: Path) -> None:
    files = landscapes(shards.parent / 'landscapes')
    files.setup('fit')
    found = ShardedDataset(str(shards), 'val')
    assert len(found) == len(files.val_dataset)
    assert len(found.lengths) > 1
    for index in (3, 0, 2, 1):
        assert same(found[index], files.val_dataset[index])
    assert same(pickle.loads(pickle.dumps(found))[-1], found[3])
    assert CRS.from_user_input(found.crs) == CRS(2154)
    with pytest.raises(IndexError):
        found[4]


@pytest.mark.parametrize(
    ('image', 'stored'),
    [
        (torch.tensor([0.0, 255.0]), torch.uint8),
        (torch.tensor([-3.0, 10000.0]), torch.int16),
        (torch.tensor([0.5, torch.nan]), torch.float16),
        (torch.tensor([0.1, 40000.0]), torch.float32),
        (torch.tensor([70000.5, torch.inf]), torch.float32),
    ],
)
def test_every_value_is_kept(image: Tensor, stored: torch.dtype, tmp_path: Path) -> None:
    """Samples of one file may lack modalities, have any length, and hold what was not measured."""
    samples = [
        {'image_s2': image.view(2, 1, 1, 1), 'dates_s2': torch.arange(2), 'valid_s2': torch.tensor([True, False])},
        {'image_s1': image.view(1, 2, 1), 'mask': torch.tensor([[3, 255]]), 'bounds': torch.rand(9).double()},
    ]
    write_split(map(encode_sample, samples), tmp_path / 'train', 1)
    (tmp_path / 'shards.json').write_text(json.dumps({'modalities': [S2], 'labels': [], 'shards': {'train': [2]}}))
    found = ShardedDataset(str(tmp_path))
    assert all(same(found[index], sample) for index, sample in enumerate(samples))
    assert same(decode_sample(encode_sample(samples[0])), samples[0])
    assert len(encode_sample(samples[0])) - len(encode_sample({**samples[0], 'image_s2': image[:0]})) == pytest.approx(
        2 * stored.itemsize, abs=16
    )


@pytest.mark.parametrize(
    'mask', [torch.tensor([[1.5, torch.nan, -0.25]]), torch.tensor([[40000, 3, 255]]), torch.tensor([[70001, 0, -100]])]
)
def test_masks_keep_their_values_and_type(mask: Tensor) -> None:
    """Continuous masks are floats; 40000 is exact in float16, in which it may be stored."""
    found = decode_sample(encode_sample({'mask': mask}))['mask']
    assert found.dtype == mask.dtype
    assert torch.equal(found.nan_to_num(-1), mask.nan_to_num(-1))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_masks_in_half_precision_are_read_in_single_precision(dtype: torch.dtype) -> None:
    mask = torch.tensor([[1.5, -0.25]], dtype=dtype)
    found = decode_sample(encode_sample({'mask': mask}))['mask']
    assert found.dtype == torch.float32
    assert torch.equal(found, mask.float())


@pytest.mark.parametrize('processes', [1, 2, 3])
def test_processes_read_shards_of_their_own(processes: int) -> None:
    order = ByShard((7,) * 12, 4, processes, window=2)
    indices = order(5)
    assert sorted(indices) == list(range(84))
    assert indices != order(6)
    assert indices == order(5)
    whole = len(indices) // (4 * processes) * 4 * processes
    for rank in range(processes):
        own = np.array(indices[:whole]).reshape(-1, processes, 4)[:, rank]
        assert len(set(own.ravel() // 7)) <= len(own.ravel()) / 7 + 2
        assert max(len(set(part.ravel() // 7)) for part in np.split(own, [3])[:1]) <= 3
        assert np.diff(own.ravel() // 7).any()


class Keep(Callback):
    """Notes which samples this process reads in which epoch."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        getitem = ShardedDataset.__getitem__
        self.read: list[tuple[int, int]] = []

        def spy(dataset: ShardedDataset, index: int) -> Sample:
            self.read.append((trainer.current_epoch, index))
            return getitem(dataset, index)

        ShardedDataset.__getitem__ = spy  # type: ignore[method-assign]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(trainer.default_root_dir)
        (folder / f'rank{trainer.global_rank}.json').write_text(json.dumps(self.read))


def deal(root: Path, folder: Path) -> None:
    """Two epochs of two processes."""
    seed_everything(3, verbose=False)
    trainer = make_trainer(
        folder, devices=2, strategy='ddp_fork', max_steps=-1, max_epochs=2, limit_val_batches=0, callbacks=[Keep()]
    )
    trainer.fit(OmniSatPretraining('omnisat_tiny'), ShardedDataModule(str(root), batch_size=2))


@pytest.mark.slow
def test_two_processes_share_an_epoch(shards: Path, tmp_path: Path) -> None:
    succeed(tmp_path, deal, shards, tmp_path)
    ranks = [json.loads((tmp_path / f'rank{rank}.json').read_text()) for rank in (0, 1)]
    for epoch in (0, 1):
        first, second = ([index for e, index in rank if e == epoch] for rank in ranks)
        assert len(first) == len(second) == 6
        assert {*first, *second} == set(range(12))
    assert [index for epoch, index in ranks[0] if not epoch] != [index for epoch, index in ranks[0] if epoch]


def test_a_split_without_samples_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SyntheticLandscapesDataModule, 'val_dataset', property(lambda _: None, lambda *_: None), raising=False
    )
    with pytest.raises(ValueError, match=r"\['val'\]"):
        write(landscapes(tmp_path / 'landscapes'), tmp_path / 'out', 0.06)
    assert not (tmp_path / 'out').exists()


def test_an_address_is_fetched_into_the_cache(shards: Path, tmp_path: Path) -> None:
    """litdata's ``local:`` stands for an object store."""
    found = ShardedDataset(str(shards), 'val', str(tmp_path / 'cache'))
    expected = found[0]
    found = ShardedDataset(str(shards), 'val', str(tmp_path / 'cache'))
    found.root = f'local:{shards}'
    assert same(found[0], expected)
    assert list((tmp_path / 'cache').rglob('*.bin'))


@pytest.mark.slow
def test_training_goes_on_in_the_middle_of_an_epoch(shards: Path, tmp_path: Path) -> None:
    """With workers, of which one had read ahead."""

    def fit(seed: int, path: Path | None) -> dict[str, Tensor]:
        seed_everything(seed, verbose=False)
        data, task = ShardedDataModule(str(shards), batch_size=2, num_workers=2), OmniSatSegmentation('omnisat_tiny')
        saver = ModelCheckpoint(tmp_path, '{step}', every_n_train_steps=3, save_top_k=-1)
        settings = {'max_epochs': 1, 'max_steps': -1, 'limit_val_batches': 0, 'enable_checkpointing': True}
        make_trainer(tmp_path, **settings, callbacks=[saver]).fit(task, data, ckpt_path=path, weights_only=True)
        return task.state_dict()

    whole = fit(3, None)
    resumed = fit(100, tmp_path / 'step=3.ckpt')
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_command_line_trains(shards: Path, tmp_path: Path) -> None:
    """Classes, modalities and statistics are those of the datamodule that the shards were written from."""
    words = ['fit', '--model', 'omnisat', '--model.backbone', 'omnisat_tiny', '--data', 'ShardedDataModule']
    words += ['--data.root', str(shards), '--trainer.accelerator', 'cpu', '--trainer.max_steps', '1']
    torchgeo([*words, '--trainer.default_root_dir', str(tmp_path), '--trainer.enable_progress_bar', 'false'])
    told = torch.load(next(tmp_path.rglob('*.ckpt')), weights_only=True)['hyper_parameters']
    files = landscapes(shards.parent / 'landscapes')
    files.setup('fit')
    assert (told['num_classes'], told['labels'], told['label_gsd']) == (20, files.labels, 10.0)
    assert told['std'] == {name: pytest.approx(x.tolist()) for name, x in files.std.items()}


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['shard', '--data=SyntheticLandscapesDataModule', '--data.num_tiles=5', '--data.size=8']
    words += ['--data.dates=[2,3]', f'--data.root={tmp_path / "landscapes"}', f'--output={tmp_path / "out"}']
    assert main(words) == 0
    assert 'train: 3 samples in 1 file\n' in capsys.readouterr().out
    data = ShardedDataModule(str(tmp_path / 'out'))
    data.setup('test')
    files = landscapes(tmp_path / 'landscapes')
    assert data.synthetic
    assert (data.labels, data.label_names, data.ignore_index) == (files.labels, files.label_names, files.ignore_index)
    assert list(data.mean) == ['s2', 's1a', 's1d', 'spot']
    sample = {key: value[0] for key, value in data.aug(data.collate_fn([data.test_dataset[0]])).items()}
    sample['mask'][0] = 255  # what is ignored need not be among the classes
    data.plot(sample)
    with pytest.raises(SystemExit, match='1'):
        main(words)
    assert 'exists already' in capsys.readouterr().err
    with pytest.raises(SystemExit, match='1'):
        main(['stats', '--data=ShardedDataModule', f'--data.root={tmp_path / "out"}'])
    assert 'shards contain their statistics' in capsys.readouterr().err
    with pytest.raises(ValueError, match=r'shards\.json'):
        ShardedDataModule(str(tmp_path))
    (tmp_path / 'shards.json').write_text('{"shards"')
    with pytest.raises(ValueError, match=r'shards\.json'):
        ShardedDataModule(str(tmp_path))


def test_shards_from_before_facts_were_stated(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = Path(shutil.copytree(shards, tmp_path / 'old'))
    told = json.loads((old / 'shards.json').read_text())
    for modality in told['modalities']:
        for fact in ('kind', 'unit', 'wavelengths'):
            modality.pop(fact, None)
    (old / 'shards.json').write_text(json.dumps(told))
    with caplog.at_level('INFO'):
        for root in (shards, old):
            task = OmniSatSegmentation('omnisat_tiny')
            make_trainer(tmp_path, max_steps=1).fit(task, datamodule=ShardedDataModule(str(root)))
            assert task.modalities['s1a'].unit == ('db' if root == shards else 'unknown')
    (line,) = [record.message for record in caplog.records if 'simulated' in record.message]
    assert 's1a (kind and unit unknown)' in line
