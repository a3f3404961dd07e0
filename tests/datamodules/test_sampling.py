# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from torchgeo_omnisat.datamodules import MultimodalDataModule
from torchgeo_omnisat.datamodules.common.sampling import (
    Draw,
    EpochSampler,
    Progress,
    RandomOrder,
    ResumableDataModule,
    SeededDataset,
    SpatialOrder,
)

#: A village of four by four tiles at each corner of a large square, in metres.
VILLAGES = np.array([(x + 10 * i, y + 10 * j) for x in (0, 9e4) for y in (0, 9e4) for i in range(4) for j in range(4)])


def items(order: Any, place: Progress, batch_size: int, rank: int = 0, world_size: int = 1, **kwargs: Any) -> list[int]:
    return [draw.item for draw in EpochSampler(order, place, batch_size, rank=rank, world_size=world_size, **kwargs)]


class TestOrders:
    @pytest.mark.parametrize('order', [RandomOrder(64), SpatialOrder(VILLAGES, 5)])
    def test_every_sample_once_and_in_another_order_for_another_seed(self, order: Any) -> None:
        assert len(order) == 64
        assert sorted(order(1)) == list(range(64))
        assert order(1) == order(1) != order(2)

    @pytest.mark.parametrize('seed', range(5))
    def test_a_batch_is_of_one_region(self, seed: int) -> None:
        batches = np.array(SpatialOrder(VILLAGES, 8)(seed)).reshape(-1, 8)
        assert np.ptp(VILLAGES[batches], axis=1).max() < 100
        anywhere = np.array(RandomOrder(64)(seed)).reshape(-1, 8)
        assert np.ptp(VILLAGES[anywhere], axis=1).max() > 8e4

    def test_neighbours_and_what_is_left_over_change(self) -> None:
        order = SpatialOrder(np.random.default_rng(0).uniform(0, 1e4, (61, 2)), 8)
        batches = [{frozenset(order(seed)[i : i + 8]) for i in range(0, 56, 8)} for seed in range(4)]
        assert all(len(one & other) < 2 for one, other in pairwise(batches))
        assert len({frozenset(order(seed)[56:]) for seed in range(8)}) > 4

    def test_batches_do_not_go_from_region_to_region(self) -> None:
        early = np.array(SpatialOrder(VILLAGES, 4)(0))[:32]
        assert len(np.unique(early // 16)) > 2, 'the first half of an epoch is not one half of the ground'

    def test_tiles_at_one_place_are_fine(self) -> None:
        assert sorted(SpatialOrder(np.zeros((9, 2)), 4)(0)) == list(range(9))

    @pytest.mark.parametrize('positions', [np.array([[0.0, np.nan], [1.0, 2.0]]), np.zeros((3, 4))])
    def test_unknown_positions(self, positions: Any) -> None:
        with pytest.raises(ValueError, match=r'positions.*\(N, 2\)'):
            SpatialOrder(positions, 2)


class TestEpochSampler:
    def test_epochs_differ_and_come_again(self) -> None:
        sampler = EpochSampler(RandomOrder(20), Progress(7), 3)
        epochs = []
        for epoch in (0, 1, 2, 1):
            sampler.set_epoch(epoch)
            epochs.append(list(sampler))
        assert epochs[0] != epochs[1] == epochs[3] != epochs[2]
        assert len(sampler) == len(epochs[0]) == 18
        assert [d.item for d in epochs[0]] != items(RandomOrder(20), Progress(8), 3)

    @pytest.mark.parametrize('done', range(7))
    def test_goes_on_after_any_batch(self, done: int) -> None:
        whole = list(EpochSampler(RandomOrder(20), Progress(7, epoch=4), 3))
        sampler = EpochSampler(RandomOrder(20), Progress(7, epoch=4, batches=done), 3)
        sampler.set_epoch(4)  # as Lightning says it once more
        assert list(sampler) == whole[3 * done :]
        assert len(sampler) == 18
        sampler.set_epoch(5)
        assert len(list(sampler)) == 18

    @pytest.mark.parametrize('world', [1, 2, 4])
    def test_joint_batches_are_the_same_for_any_number_of_processes(self, world: int) -> None:
        size = 8 // world
        ranks = [np.array(items(SpatialOrder(VILLAGES, 8), Progress(1), size, rank, world)) for rank in range(world)]
        joint = np.concatenate([rank.reshape(-1, size) for rank in ranks], axis=1)
        assert np.array_equal(joint, np.array(items(SpatialOrder(VILLAGES, 8), Progress(1), 8)).reshape(-1, 8))

    def test_draws_differ_between_samples_epochs_and_processes(self) -> None:
        draws = [d for e in (0, 1) for r in (0, 1) for d in EpochSampler(RandomOrder(8), Progress(1, e), 2, True, r, 2)]
        assert len({draw.seed for draw in draws}) == len(draws) == 16

    def test_small_split_is_dealt_evenly(self) -> None:
        ranks = [items(RandomOrder(5), Progress(1), 4, rank, 2, drop_last=False) for rank in (0, 1)]
        assert [len(rank) for rank in ranks] == [3, 3]
        assert set(ranks[0] + ranks[1]) == set(range(5))


class Noise(Dataset[Sample]):
    """Draws whatever it gives."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        return {'index': torch.tensor(index), 'noise': torch.rand(1) + random.random() + np.random.rand()}  # noqa: NPY002


def test_draws_of_a_dataset_follow_from_what_it_is_asked_for() -> None:
    dataset = SeededDataset(Noise())
    first = dataset[Draw(3, 11)]['noise']
    before = torch.get_rng_state(), random.getstate()
    assert torch.equal(dataset[Draw(3, 11)]['noise'], first)
    assert not torch.equal(dataset[Draw(3, 12)]['noise'], first)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


class NoiseDataModule(ResumableDataModule):
    def __init__(self, batch_size: int = 2, workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.workers = batch_size, workers

    def setup(self, stage: str) -> None:
        self.start_anew()

    def train_dataloader(self) -> DataLoader[Sample]:
        workers: dict[str, Any] = {'num_workers': self.workers, 'persistent_workers': self.workers > 0}
        return self.resumable_loader(Noise(), RandomOrder(10), self.batch_size, True, **workers)

    def val_dataloader(self) -> DataLoader[Sample]:
        return DataLoader(Noise(), batch_size=5)


class Listener(LightningModule):
    """Keeps what it saw and what it could draw."""

    def __init__(self, stop: int = -1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.stop = stop
        self.seen: list[tuple[Any, ...]] = []

    def training_step(self, batch: Sample, batch_idx: int) -> Tensor:
        if len(self.seen) == self.stop:
            raise KeyboardInterrupt
        self.seen.append((*batch['index'].tolist(), *batch['noise'][:, 0].tolist(), torch.rand(1).item()))
        return self.weight * 1

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        torch.rand(len(batch['index']))

    def configure_optimizers(self) -> Any:
        # Asks for the loader before Lightning restores the state of its loops.
        total = self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=1 / total)


@pytest.fixture
def quiet() -> dict[str, Any]:
    names = ('enable_progress_bar', 'enable_model_summary', 'enable_checkpointing', 'logger')
    return {'accelerator': 'cpu', 'devices': 1, 'max_epochs': 3, 'num_sanity_val_steps': 1} | dict.fromkeys(
        names, False
    )


@pytest.mark.parametrize('limits', [{}, {'limit_train_batches': 3}, {'max_epochs': -1, 'max_steps': 12}])
@pytest.mark.parametrize(('stop', 'workers'), [(2, 0), (7, 2)])
def test_goes_on_as_if_not_stopped(
    tmp_path: Any, quiet: dict[str, Any], stop: int, workers: int, limits: dict[str, Any]
) -> None:
    """Stopped in the first and in a later epoch; workers have read further than was trained."""

    def fit(listener: Listener, **kwargs: Any) -> list[tuple[Any, ...]]:
        trainer = Trainer(**quiet | limits)
        torch.manual_seed(len(kwargs))
        try:
            trainer.fit(listener, datamodule=NoiseDataModule(workers=workers), **kwargs)
        except (KeyboardInterrupt, SystemExit):
            trainer.save_checkpoint(tmp_path / 'a.ckpt')
        return listener.seen

    whole = fit(Listener())
    begun = fit(Listener(stop))
    resumed = fit(Listener(), ckpt_path=tmp_path / 'a.ckpt', weights_only=True)
    assert len(whole) in (9, 12, 15)
    assert begun == whole[:stop]
    assert resumed == whole[stop:]
    assert len({seen[-1] for seen in whole}) == len(whole)


def test_other_batches_in_the_middle_of_an_epoch(tmp_path: Any, quiet: dict[str, Any]) -> None:
    datamodule = NoiseDataModule()
    trainer = Trainer(**quiet | {'max_steps': 3})
    trainer.fit(Listener(), datamodule=datamodule)
    trainer.save_checkpoint(tmp_path / 'a.ckpt')
    with pytest.raises(ValueError, match=r'\b3 of 5 '):
        Trainer(**quiet).fit(
            Listener(), datamodule=NoiseDataModule(3), ckpt_path=tmp_path / 'a.ckpt', weights_only=True
        )


def test_second_training_begins_anew(quiet: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PL_GLOBAL_SEED', '5')
    datamodule = NoiseDataModule()
    runs = []
    for _ in range(2):
        listener = Listener()
        Trainer(**quiet).fit(listener, datamodule=datamodule)
        runs.append(listener.seen)
    assert runs[0] == runs[1]


def test_neighbours_need_places() -> None:
    with pytest.raises(ValueError, match=r"batches.*'near'.*'anywhere'.*'region'"):
        MultimodalDataModule(NonGeoDataset, batches='near')  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'positions.*\blist\b.*\(N, 2\)'):
        MultimodalDataModule(NonGeoDataset, batches='region').order([], 4)  # type: ignore[arg-type]
