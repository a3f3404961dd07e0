# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Randomness: the user's generators are the user's, and what is drawn does not depend on what was measured."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from torchgeo_omnisat.datamodules import MixedDataModule, SyntheticLandscapesDataModule
from torchgeo_omnisat.tasks import OmniSatSegmentation

from ..tasks.helpers import make_trainer


def make(root: Path, name: str = 'one', **changes: Any) -> SyntheticLandscapesDataModule:
    told: dict[str, Any] = {'num_tiles': 10, 'size': 8, 'dates': (2, 3), 'batch_size': 2, 'modalities': ('s2',)}
    return SyntheticLandscapesDataModule(str(root / name), **told | changes)


def draw() -> tuple[float, float, float]:
    """A number of each generator that a user may draw from."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


class Drawer(Callback):
    """A user's callback, which draws around every step, and looks at the batches."""

    def __init__(self) -> None:
        self.drawn: list[tuple[float, float, float]] = []
        self.batches: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)
        self.drawn.append(draw())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.drawn.append(draw())


def train(datamodule: Any, folder: Path, **kwargs: Any) -> tuple[OmniSatSegmentation, Drawer]:
    task, drawer = OmniSatSegmentation('omnisat_tiny'), Drawer()
    make_trainer(folder, callbacks=[drawer], limit_val_batches=0, **kwargs).fit(task, datamodule=datamodule)
    return task, drawer


@pytest.mark.parametrize('mixed', [False, True])
def test_the_users_numbers_go_on_as_without_training(tmp_path: Path, mixed: bool) -> None:
    datamodule: Any = MixedDataModule({'one': make(tmp_path)}) if mixed else make(tmp_path)
    seed_everything(7, verbose=False)
    _, drawer = train(datamodule, tmp_path, max_steps=3)
    after = draw()
    seen: list[Any] = [*drawer.drawn, after]
    # beartype, which checks shapes while tests run, draws from Python's generator, and PyTorch's makes the weights.
    assert all(len(set(numbers)) == 7 for numbers in zip(*seen, strict=True)), 'no number comes again'
    assert [number for _, number, _ in seen] == np.random.RandomState(7).rand(7).tolist()


def test_an_error_gives_the_generators_back(tmp_path: Path) -> None:
    class Broken(OmniSatSegmentation):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError

    np.random.seed(7)  # noqa: NPY002
    with pytest.raises(RuntimeError):
        make_trainer(tmp_path).fit(Broken('omnisat_tiny'), datamodule=make(tmp_path))
    assert np.random.rand() == np.random.RandomState(7).rand()  # noqa: NPY002


@pytest.mark.parametrize('workers', [0, 1])
def test_statistics_that_are_measured_and_found_train_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(SyntheticLandscapesDataModule, 'official', lambda *_: None)
    found = []
    for _ in range(2):
        kept = tmp_path / 'one' / 'STATISTICS.json'
        assert kept.exists() == bool(found)
        seed_everything(3, verbose=False)
        task, _ = train(make(tmp_path, num_workers=workers), tmp_path)
        found.append({**task.state_dict(), **{k: torch.tensor(task.hparams[k]['s2']) for k in ('mean', 'std')}})
    assert all(torch.equal(found[0][key], value) for key, value in found[1].items())


@pytest.mark.parametrize('mixed', [False, True])
def test_overfitting_is_on_the_same_batches(tmp_path: Path, mixed: bool) -> None:
    """One batch, or one of each source."""
    datamodule: Any = make(tmp_path)
    if mixed:
        datamodule = MixedDataModule({'one': datamodule, 'two': make(tmp_path, 'two')})
    _, drawer = train(datamodule, tmp_path, overfit_batches=1, max_epochs=3, max_steps=-1)
    count = 1 + mixed
    assert len(drawer.batches) == 3 * count
    for number, batch in enumerate(drawer.batches):
        first = drawer.batches[number % count]
        assert batch.keys() == first.keys()
        assert all(torch.equal(value.nan_to_num(), first[key].nan_to_num()) for key, value in batch.items())
