# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""MixedDataModule: batches of one datamodule each, in the shares that were asked for."""

import contextlib
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from torchgeo_omnisat.batch import check
from torchgeo_omnisat.datamodules import MixedDataModule, PASTISMultimodalDataModule, SyntheticLandscapesDataModule
from torchgeo_omnisat.datamodules.common.sampling import Draw, EpochSampler, Progress, RandomOrder
from torchgeo_omnisat.datamodules.mixed import MixedLoader, schedule
from torchgeo_omnisat.tasks import OmniSatSegmentation
from torchgeo_omnisat.tasks.supervised import check_parts


@pytest.fixture
def parts(pastis: Path, tmp_path: Path) -> dict[str, Any]:
    """Six tiles of 32 px to train on beside three of 8 px."""
    return {
        'pastis': PASTISMultimodalDataModule(str(pastis), batch_size=2, modalities=('s2', 's1a')),
        'made': SyntheticLandscapesDataModule(str(tmp_path), num_tiles=5, size=8, dates=(2, 4), batch_size=1),
    }


class Looker(LightningModule):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {'train': [], 'val': []}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen['train'].append(batch)
        return self.weight**2

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen['val'].append(batch)
        self.log('val_loss', self.weight, batch_size=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(datamodule: MixedDataModule, epochs: int = 1) -> tuple[Looker, Trainer]:
    trainer = Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator='cpu'
    )
    looker = Looker()
    trainer.fit(looker, datamodule=datamodule)
    return looker, trainer


def test_batches_are_of_one_datamodule_each(parts: dict[str, Any]) -> None:
    torch.manual_seed(0)  # one order in twenty is sorted
    datamodule = MixedDataModule(parts)
    looker, trainer = fit(datamodule, epochs=2)
    assert list(datamodule.modalities) == ['s2', 's1a', 's1d', 'spot']
    sides = [batch['image_s2'].shape[-1] for batch in looker.seen['train']]
    assert sorted(sides) == [8] * 6 + [32] * 6
    assert sides[:6] != sorted(sides[:6])
    for batch in looker.seen['train'] + looker.seen['val']:
        check(batch, datamodule.modalities)
        assert 'source' not in batch
        if batch['image_s2'].shape[-1] == 8:  # normalised by its own: the other's are made up
            assert batch['image_s2'][batch['valid_s2']].nan_to_num().abs().mean() < 50  # raw units are thousands
    assert {batch['image_s2'].shape[-1] for batch in looker.seen['val']} == {8, 32}
    assert 'val_loss' in trainer.callback_metrics


def test_a_limit_of_batches_holds(parts: dict[str, Any]) -> None:
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator='cpu',
    )
    looker = Looker()
    trainer.fit(looker, datamodule=MixedDataModule(parts))
    assert len(looker.seen['train']) == 4  # of each


def made(folder: Path, name: str, tiles: int, **kwargs: Any) -> SyntheticLandscapesDataModule:
    told: dict[str, Any] = {'num_tiles': tiles, 'size': 8, 'dates': (2, 4), 'modalities': ('s2',), **kwargs}
    return SyntheticLandscapesDataModule(str(folder / name), **told)


class Stopper(Looker):
    """Keeps what identifies a batch and what could be drawn for it, and stops after so many."""

    def __init__(self, stop: int = -1) -> None:
        super().__init__()
        self.stop, self.all = stop, self.seen['train']

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if len(self.all) == self.stop:
            raise KeyboardInterrupt
        image = batch['image_s2'].nan_to_num()
        self.all.append((batch_idx, len(image), image.double().sum().item(), torch.rand(1).item()))
        return self.weight**2


@pytest.mark.parametrize(
    ('stop', 'workers', 'steps'),
    [(2, 0, False), pytest.param(9, 1, False, marks=pytest.mark.slow), (9, 0, True), (6, 0, True)],
)
def test_goes_on_as_if_not_stopped(tmp_path: Path, stop: int, workers: int, steps: bool) -> None:
    """Six batches an epoch: of six tiles of one, and of the three of the other again and again."""

    def run(looker: Stopper, max_steps: int = -1, **kwargs: Any) -> list[Any]:
        parts: Any = {'most': made(tmp_path, 'most', 10, batch_size=2), 'few': made(tmp_path, 'few', 5, batch_size=1)}
        for module in parts.values():
            module.num_workers = workers
        told: dict[str, Any] = dict.fromkeys(('logger', 'enable_progress_bar', 'enable_model_summary'), False)
        saver = ModelCheckpoint(tmp_path / 'steps', '{step}', every_n_train_steps=3, save_top_k=-1)
        trainer = Trainer(max_epochs=3, max_steps=max_steps, accelerator='cpu', callbacks=[saver], **told)
        torch.manual_seed(len(kwargs))
        with contextlib.suppress(KeyboardInterrupt, SystemExit):
            trainer.fit(looker, datamodule=MixedDataModule(parts, temperature=8), **kwargs)
        if looker.stop >= 0:
            trainer.save_checkpoint(tmp_path / 'a.ckpt')
        return looker.all

    whole = run(Stopper())
    shutil.rmtree(tmp_path / 'steps')
    begun = run(Stopper(), max_steps=stop) if steps else run(Stopper(stop))
    saved = tmp_path / (f'steps/step={stop}.ckpt' if steps else 'a.ckpt')
    resumed = run(Stopper(), ckpt_path=saved, weights_only=True)
    assert len({seen[2] for seen in whole}) == len(whole) == 18
    assert begun == whole[:stop]
    assert resumed == whole[stop:]


def test_other_batches_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    mixture = MixedDataModule({'one': made(tmp_path, 'one', 10, batch_size=1)})
    place = {'seed': 1, 'epoch': 0, 'batches': 2}
    shape = {'lengths': [3], 'batch_size': [2], 'processes': 1, 'temperature': 1.0, 'limit': None}
    mixture.load_state_dict(place | shape)
    mixture.cut_epoch(shape)
    with pytest.raises(ValueError, match=r'\b2 of 3 .*2\.0'):
        mixture.cut_epoch(shape | {'temperature': 2.0})
    mixture.load_state_dict(place | shape | {'batches': 3})
    mixture.cut_epoch(shape | {'temperature': 2.0})  # the epoch is through
    mixture.setup('fit')
    mixture.train_dataloader()
    assert mixture._shape.keys() == shape.keys()


class Numbers(Dataset[Any]):
    """Samples that are their own number."""

    def __init__(self, begin: int, count: int) -> None:
        self.range = range(begin, begin + count)

    def __len__(self) -> int:
        return len(self.range)

    def __getitem__(self, draw: Draw) -> int:
        return self.range[draw.item]


@pytest.mark.parametrize('temperature', [1, float('inf')])
def test_processes_share_the_samples_of_one_datamodule_at_a_time(temperature: float) -> None:
    sizes, place = (48, 12), Progress(5)

    def epoch(rank: int, processes: int) -> list[list[int]]:
        loaders = []
        for index, size in enumerate(sizes):
            sampler = EpochSampler(RandomOrder(size), place, 4 // processes, True, rank, processes)
            loaders.append(DataLoader(Numbers(100 * index, size), batch_size=4 // processes, sampler=sampler))
        loader = MixedLoader(loaders, place, temperature)
        batches = [batch.tolist() for batch, _, _ in loader]
        assert len(batches) == len(loader) == 15
        return batches

    alone, first, second = epoch(0, 1), epoch(0, 2), epoch(1, 2)
    place.epoch = 1
    assert [batch[0] >= 100 for batch in epoch(0, 1)] != [batch[0] >= 100 for batch in alone], 'another order'
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in alone]
    few = [batch for batch in alone if batch[0] >= 100]
    assert len(few) == (3 if temperature == 1 else 7)
    assert sorted(chain(*few[:3])) == list(range(100, 112))  # all of them before any comes again
    assert few[3:6] != few[:3]
    if temperature == 1:
        assert sorted(chain(*first, *second)) == [*range(48), *range(100, 112)]


def test_a_picture_is_drawn_by_the_datamodule_of_its_batch(tmp_path: Path) -> None:
    parts: Any = {'one': made(tmp_path, 'one', 10), 'two': made(tmp_path, 'two', 5, seed=7)}
    mixture = MixedDataModule(parts, rename={'two': {'s2': 's2_two'}})
    mixture.setup('fit')
    for batch in mixture.val_dataloader():
        batch = mixture.on_after_batch_transfer(batch, 0)
        figure = mixture.plot({key: value[0] for key, value in batch.items()})
        assert figure.axes[0].get_ylabel() == 's2\ntrue colour'
        assert figure.axes[0].images


def test_shares_follow_the_temperature() -> None:
    lengths = [90, 10]
    for temperature, expected in ((1, [90, 10]), (2, [75, 25]), (float('inf'), [50, 50])):
        assert np.bincount(schedule(lengths, temperature, 0)).tolist() == expected
    assert not np.array_equal(schedule(lengths, 1, 0), schedule(lengths, 1, 1))
    assert np.array_equal(schedule(lengths, 1, 3), schedule(lengths, 1, 3))
    assert 1 in schedule([1000, 1], 1, 0)


def test_a_name_is_one_modality(parts: dict[str, Any], pastis: Path) -> None:
    parts['pastis'] = PASTISMultimodalDataModule(str(pastis), bands={'s2': ('B02', 'B03')}, modalities=('s2',))
    with pytest.raises(ValueError, match=r"'s2' .*'made'.*\{'made': \{'s2': 's2_made'"):
        MixedDataModule(parts).setup('fit')
    datamodule = MixedDataModule(parts, rename={'pastis': {'s2': 's2_few'}})
    looker, _ = fit(datamodule)
    assert datamodule.modalities['s2_few'].bands == ('B02', 'B03')
    names = [{key for key in batch if key.startswith('image')} for batch in looker.seen['train']]
    assert {'image_s2_few'} in names
    assert any('image_s2' in held for held in names)
    assert torch.equal(datamodule.mean['s2_few'], parts['pastis'].mean['s2'])
    assert datamodule.sources['pastis']['mean'].keys() == {'s2_few'}


def test_what_all_agree_on_is_known(parts: dict[str, Any]) -> None:
    datamodule = MixedDataModule(parts)
    datamodule.setup('fit')
    assert (datamodule.num_classes, datamodule.ignore_index, datamodule.label_gsd) == (20, 19, 10.0)
    assert datamodule.label_names == parts['pastis'].label_names
    assert datamodule.synthetic
    for name, part in parts.items():
        assert all(torch.equal(datamodule.sources[name][k]['s2'], getattr(part, k)['s2']) for k in ('mean', 'std'))
    parts['made'].num_classes = 3
    datamodule.setup('fit')
    assert datamodule.num_classes is None
    parts['made'].patch_size = 20.0
    with pytest.raises(ValueError, match=r'20.*patch_size'):
        MixedDataModule(parts)
    assert MixedDataModule(parts, patch_size=40.0).patch_size == 40


def test_one_without_validation(parts: dict[str, Any]) -> None:
    datamodule = MixedDataModule(parts)
    datamodule.setup('fit')
    both = len(datamodule.val_dataloader())
    parts['made'].val_dataset = None  # as rasters have it where their split leaves it no ground
    assert 0 < len(datamodule.val_dataloader()) < both
    parts['pastis'].val_dataset = None
    assert len(datamodule.val_dataloader()) == 0


def test_arguments(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='datamodules'):
        MixedDataModule({})
    with pytest.raises(ValueError, match=r'temperature.*0\.5'):
        MixedDataModule(parts, temperature=0.5)
    with pytest.raises(ValueError, match=r"rename.*\['flair'\].*\['pastis', 'made'\]"):
        MixedDataModule(parts, rename={'flair': {}})
    with pytest.raises(ValueError, match=r"rename.*'made'.*\['s3'\]"):
        MixedDataModule(parts, rename={'made': {'s3': 's4'}}).setup('fit')
    with pytest.raises(ValueError, match='predict'):
        MixedDataModule(parts).setup('predict')


def test_what_one_source_knows_of_a_modality_is_kept(parts: dict[str, Any]) -> None:
    datamodule = MixedDataModule(parts)
    datamodule.setup('fit')
    plain = {name: replace(m, kind=None, unit='unknown') for name, m in parts['pastis'].modalities.items()}
    power = plain | {'s1a': replace(plain['s1a'], unit='power')}
    for changed in (plain, power):
        parts['pastis'].setup = lambda stage, changed=changed: setattr(parts['pastis'], 'modalities', changed)
        if changed is plain:
            datamodule.setup('fit')
            assert {m.unit for m in datamodule.modalities.values()} == {'dn', 'db'}
        else:
            with pytest.raises(ValueError, match=r"'s1a' of 'made' is .*unit='db'.*has .*unit='power'"):
                datamodule.setup('fit')


@pytest.mark.parametrize('other', [['c', 'a', 'b'], ['a', 'b', 'd'], ['a', 'b']])
def test_sources_of_other_classes_are_refused(other: list[str]) -> None:
    parts = {'one': SimpleNamespace(labels=['a', 'b', 'c']), 'two': SimpleNamespace(labels=other)}
    with pytest.raises(ValueError, match=r"labels.*'two'.*'one'"):
        check_parts(parts, 'labels')
    check_parts(parts | {'two': SimpleNamespace(labels=['a', 'b', 'c'])}, 'labels')
    check_parts(parts | {'two': SimpleNamespace(labels=['0', '1', '2'])}, 'labels')
    check_parts(parts, 'label_names')


def test_training_on_sources_of_other_classes_is_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    parts['made'].labels = parts['made'].labels[::-1]
    trainer = Trainer(accelerator='cpu', logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"labels.*'made'"):
        trainer.fit(OmniSatSegmentation('omnisat_tiny', num_classes=20), datamodule=MixedDataModule(parts))


def test_guard_of_all_sources(parts: dict[str, Any]) -> None:
    MixedDataModule(parts)
    assert {part.guard for part in parts.values()} == {'warn'}
    MixedDataModule(parts, guard='error')
    assert {part.guard for part in parts.values()} == {'error'}
    with pytest.raises(ValueError, match=r"guard.*'never'"):
        MixedDataModule(parts, guard='never')  # type: ignore[arg-type]
