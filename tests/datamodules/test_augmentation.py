# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchgeo.datasets import unbind_samples

from torchgeo_omnisat.datamodules import MultimodalDataModule, SyntheticLandscapesDataModule
from torchgeo_omnisat.tasks import OmniSatSegmentation
from torchgeo_omnisat.transforms import MultimodalAugmentation, Normalize, RandomTemporalDropout

from .test_pastis import Probe, trainer

OFF: dict[str, Any] = {'dihedral': False, 'temporal_dropout': 0.0, 'speckle': 0.0, 'jitter': 0.0}
STEPS = {
    'dihedral': 'RandomDihedral',
    'temporal_dropout': 'RandomTemporalDropout',
    'speckle': 'RandomSpeckle',
    'jitter': 'RandomJitter',
}


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('augmentation') / 'root'


def make(root: Path, **kwargs: Any) -> SyntheticLandscapesDataModule:
    datamodule = SyntheticLandscapesDataModule(str(root), num_tiles=10, size=8, dates=(3, 4), batch_size=6, **kwargs)
    datamodule.prepare_data()
    datamodule.setup('fit')
    return datamodule


def steps(datamodule: MultimodalDataModule) -> list[str]:
    assert isinstance(datamodule.train_aug, MultimodalAugmentation)
    return [type(step).__name__ for step in datamodule.train_aug.steps]


def test_defaults_in_their_order(root: Path) -> None:
    expected = ['RandomDihedral', 'RandomTemporalDropout', 'RandomSpeckle', 'Normalize', 'RandomJitter']
    assert steps(make(root)) == expected


def test_dates_are_dropped_at_drawn_rates(root: Path) -> None:
    datamodule = make(root, temporal_dropout=(0.1, 0.6))
    (step,) = (step for step in datamodule.train_aug.steps if isinstance(step, RandomTemporalDropout))
    assert set(step.p.values()) == {(0.1, 0.6)}


@pytest.mark.parametrize('name', list(STEPS))
def test_each_can_be_switched_off(root: Path, name: str) -> None:
    assert STEPS[name] not in steps(make(root, **{name: OFF[name]}))
    assert steps(make(root, **(OFF | {name: 0.5 if name != 'dihedral' else True}))).count(STEPS[name]) == 1


def test_training_is_augmented_and_evaluation_is_not(root: Path) -> None:
    torch.manual_seed(0)
    datamodule = make(root)
    probe = Probe()
    trainer().fit(probe, datamodule)
    (seen,) = probe.batches['train']
    plain = datamodule.aug(datamodule.collate_fn([datamodule.train_dataset[i] for i in range(6)]))
    assert seen['valid_s2'].sum() < plain['valid_s2'].sum()
    turned = {tuple(tile.flatten().tolist()) for tile in plain['mask']}
    assert not {tuple(tile.flatten().tolist()) for tile in seen['mask']} <= turned
    assert sorted(tile.sum().item() for tile in seen['mask']) == sorted(tile.sum().item() for tile in plain['mask'])
    (val,) = probe.batches['val']
    expected = datamodule.aug(next(iter(datamodule.val_dataloader())))
    assert all(torch.equal(val[k].nan_to_num(), expected[k].nan_to_num()) for k in expected)
    assert isinstance(datamodule.aug, Normalize)


def test_nothing_is_left_to_chance_without_augmentation(root: Path) -> None:
    datamodule = make(root, **OFF)
    batch = next(iter(datamodule.train_dataloader()))
    one, other = datamodule.train_aug(batch), datamodule.aug(batch)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k].nan_to_num(), other[k].nan_to_num()) for k in one)


def test_speckle_is_in_decibel_before_normalisation(root: Path) -> None:
    torch.manual_seed(0)
    datamodule = make(root, **(OFF | {'speckle': 5.0}))
    batch = next(iter(datamodule.train_dataloader()))
    seen: list[Tensor] = []
    changed = datamodule.train_aug(batch)
    for name in ('s1a', 's1d'):
        raw = changed[f'image_{name}'] * datamodule.std[name][:, None, None] + datamodule.mean[name][:, None, None]
        valid = batch[f'valid_{name}']
        seen.append((10 ** ((raw - batch[f'image_{name}']) / 10))[valid][:, :2].flatten())
    gain = torch.cat(seen)
    gain = gain[gain.isfinite()]
    assert gain.mean().item() == pytest.approx(1, abs=3 * (0.2 / len(gain)) ** 0.5)
    assert gain.var().item() == pytest.approx(0.2, rel=0.15)


def test_facts_that_are_known_need_no_word(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level('INFO'):
        make(root)
    assert 'simulated' not in caplog.text


def test_a_training_sample_can_be_shown(root: Path) -> None:
    datamodule = make(root)
    batch = datamodule.train_aug(next(iter(datamodule.train_dataloader())))
    datamodule.plot(unbind_samples(batch)[0])


def test_values_that_a_frozen_encoder_caches_are_not_augmented(root: Path) -> None:
    """In the second epoch every embedding comes from the cache; the other modality is augmented."""
    small = {'encoder_embedding_size': 16, 'encoder_depth': 1, 'encoder_num_heads': 2}
    small |= {'decoder_embedding_size': 16, 'decoder_depth': 1, 'decoder_num_heads': 2}
    spec = {'name': 'presto', 'pretrained': False} | small
    datamodule = make(root, modalities=('s2', 's1a'))
    uncached = {'encoders': {'s2': {**spec, 'cache_size': 0}}}
    task = OmniSatSegmentation('omnisat_tiny', modality_dropout=0.0, backbone_args={'encoders': {'s2': spec}})
    run = trainer()
    run.fit_loop.max_epochs, run.limit_val_batches = 2, 0
    run.fit(task, datamodule)
    assert task.model.backbone.encoders['s2'].cache.hits == 6 * 64
    varied = {type(step).__name__: list(step.modalities) for step in datamodule.train_aug.steps[1:]}
    assert all(varied[name] == ['s1a'] for name in ('RandomTemporalDropout', 'RandomSpeckle', 'RandomJitter'))
    assert steps(datamodule)[0] == 'RandomDihedral'
    facts = {key: task.hparams[key] for key in ('modalities', 'num_classes', 'patch_size', 'label_gsd')}
    assert not OmniSatSegmentation('omnisat_tiny', backbone_args=uncached, **facts).cached_modalities
