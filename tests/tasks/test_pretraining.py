# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torchgeo.main import main

from tests.conftest import write_pastis
from tests.flair_tree import write_tree
from tests.landscapes.treesatai import TreeSatAIRecipe, write_treesatai
from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.datamodules import FLAIRDataModule, PASTISMultimodalDataModule, TreeSatAITimeSeriesDataModule
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation

from .helpers import MODALITIES, TOLD, command, make_datamodule, make_loader, make_sample, make_trainer, read_csv

KNOWN: dict[str, Any] = {key: TOLD[key] for key in ('backbone', 'modalities', 'patch_size')}
CONTRAST = {'reconstruction_weight': 0.0}


def make_task(**kwargs: Any) -> OmniSatPretraining:
    torch.manual_seed(0)
    return OmniSatPretraining(**KNOWN | {'exclude_within': None} | kwargs)


def make_batch(*names: tuple[str, ...]) -> dict[str, Tensor]:
    """A batch of tiles that have these modalities, and no label."""
    samples = [make_sample(index, held) for index, held in enumerate(names)]
    for index, sample in enumerate(samples):
        del sample['mask']
        sample['bounds'] = torch.tensor([1e3 * index, 0, 1e3 * index + 160, 160], dtype=torch.float64)
    return collate(samples, MODALITIES)


def gradients(task: OmniSatPretraining, loss: Tensor) -> dict[str, Tensor]:
    named = {name: p for name, p in task.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
    return dict(zip(named, found, strict=True))


MIXED = [('s2', 's1a', 'spot'), ('s2', 'spot'), ('s1a', 'spot'), ('s2', 's1a'), ('s2',), ('s2', 's1a', 'spot')]


class TestFit:
    def test_checkpoint_loads_safely_and_hands_its_backbone_over(self, root: Path, tmp_path: Path) -> None:
        words = command(root, tmp_path, 'fit', '--model.backbone', 'omnisat_tiny', '--trainer.max_steps', '2')
        words[words.index('omnisat')] = 'omnisat_pretraining'
        main(words)
        checkpoint = next(tmp_path.rglob('*.ckpt'))
        task = OmniSatPretraining.load_from_checkpoint(checkpoint, weights_only=True)
        assert list(task.modalities) == ['s2', 's1a']
        assert task.hparams['mean']
        state = torch.load(checkpoint, weights_only=True)['state_dict']
        assert state['tile_contrast.log_temperature'].shape == (1,)
        fine = OmniSatSegmentation(**TOLD | {'modalities': task.modalities}, weights=str(checkpoint))
        for name, value in task.model.backbone.state_dict().items():
            assert torch.equal(value, fine.model.backbone.state_dict()[name])

    @pytest.mark.usefixtures('validation_figures')
    def test_figures_by_pair_of_modalities(self, root: Path, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, max_steps=3, max_epochs=1)
        trainer.fit(OmniSatPretraining('omnisat_tiny'), datamodule=make_datamodule(root))
        rows = read_csv(next(tmp_path.rglob('metrics.csv')))
        told = {name: float(value) for row in rows for name, value in row.items() if value}
        for stage in ('train', 'val'):
            pairs = [f'{stage}_tile_{kind}/s1a+s2' for kind in ('loss', 'top1', 'top5')]
            terms = [f'{stage}_{kind}' for kind in ('loss', 'tile_loss', 'patch_loss', 'reconstruction_loss')]
            spreads = [f'{stage}_{level}_spread/{name}' for level in ('tile', 'patch') for name in ('s2', 's1a')]
            assert {*pairs, *terms, *spreads, f'{stage}_temperature'} <= set(told)
            total = sum(told[f'{stage}_{kind}_loss'] for kind in ('tile', 'patch', 'reconstruction'))
            assert told[f'{stage}_loss'] == pytest.approx(total, rel=1e-4)
            assert all(0 < told[name] <= 1.1 for name in spreads)
        assert told['val_patch_candidates/s1a+s2'] == 128  # nothing is hidden from what is compared
        assert 0 <= told['val_patch_top1/s1a+s2'] <= told['val_patch_top5/s1a+s2'] <= 1
        (figure,) = tmp_path.rglob('figures/val/similarity/*.png')
        assert figure.read_bytes().startswith(b'\x89PNG')

    def test_validation_is_the_same_each_time(self, root: Path, tmp_path: Path) -> None:
        task = OmniSatPretraining('omnisat_tiny')
        data = make_datamodule(root)
        first, again = (make_trainer(tmp_path).validate(task, datamodule=data, verbose=False) for _ in range(2))
        assert first == again

    def test_last_batch_of_one_tile_is_validated_without_its_contrast(self, tmp_path: Path) -> None:
        loader = make_loader([make_sample(i) for i in range(3)])
        (result,) = make_trainer(tmp_path).validate(make_task(**CONTRAST, patch_weight=0.0), loader, verbose=False)
        assert result['val_loss'] == result['val_tile_loss'] > 0

    def test_embeddings(self, tmp_path: Path) -> None:
        results: Any = make_trainer(tmp_path).predict(make_task(), make_loader([make_sample(0), make_sample(1)]))
        (result,) = results
        assert result['fused'].shape == (2, 16, 64)
        assert result['available'].all()


def pastis(folder: Path) -> LightningDataModule:
    return PASTISMultimodalDataModule(str(write_pastis(folder)), batch_size=2, modalities=('s2', 's1a', 'spot'))


def flair(folder: Path) -> LightningDataModule:
    return FLAIRDataModule(str(write_tree(folder)), batch_size=2)


def treesatai(folder: Path) -> LightningDataModule:
    write_treesatai(folder / 'plots', TreeSatAIRecipe(num_tiles=5, dates=3))
    return TreeSatAITimeSeriesDataModule(str(folder / 'plots'), batch_size=2)


@pytest.mark.parametrize('make', [pastis, flair, treesatai])
def test_every_datamodule(make: Callable[[Path], LightningDataModule], tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, fast_dev_run=True)
    trainer.fit(OmniSatPretraining('omnisat_tiny'), datamodule=make(tmp_path))
    assert trainer.callback_metrics['val_loss'].isfinite()


class TestTerms:
    @pytest.mark.parametrize('term', ['tile', 'patch', 'reconstruction'])
    def test_alone(self, term: str) -> None:
        weights = {f'{name}_weight': float(name == term) for name in ('tile', 'patch', 'reconstruction')}
        task = make_task(**weights)
        found = gradients(task, task.compute(make_batch(*MIXED), 'train', 0)[0])
        trained = {name for name, gradient in found.items() if gradient.any()}
        assert any('backbone.encoders.spot' in name for name in trained)
        assert any('tile_heads' in name for name in trained) == (term == 'tile')
        assert ('tile_contrast.log_temperature' in trained) == (term == 'tile')
        assert any('backbone.fusion' in name for name in trained) == (term == 'reconstruction')

    def test_weights(self) -> None:
        batch = make_batch(*MIXED)

        def loss(tile: float, patch: float, reconstruction: float) -> float:
            weights = {'tile_weight': tile, 'patch_weight': patch, 'reconstruction_weight': reconstruction}
            return float(make_task(**weights).compute(batch, 'train', 0)[0].detach())

        tiny = 1e-9  # so that heads, and with them the random start of all parameters, are the same
        apart = loss(1, tiny, tiny), loss(tiny, 1, tiny), loss(tiny, tiny, 1)
        assert loss(0.5, 2, 3) == pytest.approx(0.5 * apart[0] + 2 * apart[1] + 3 * apart[2], rel=1e-5)

    def test_every_step_hides_other_patches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        batch, task = make_batch(*[('s2', 's1a')] * 4), make_task(tile_weight=0, patch_weight=0, modality_dropout=0.0)
        monkeypatch.setattr(task, 'zero_loss_over_all_parameters', lambda: 0)  # asks the trainer
        first, other, again = (float(task.training_step(batch, step).detach()) for step in (0, 1, 0))
        assert first == again
        assert first != other

    def test_modalities_are_dropped_in_training_alone(self) -> None:
        batch = make_batch(*[('s2', 's1a')] * 4)

        def loss(dropout: float, stage: str) -> float:
            weights = {'tile_weight': 0, 'patch_weight': 0, 'modality_dropout': dropout}
            return float(make_task(**weights).compute(batch, stage, 0)[0].detach())

        assert loss(0.9, 'val') == loss(0.0, 'val')
        assert loss(0.9, 'train') != loss(0.0, 'train')

    def test_tiles_that_are_near_are_no_negatives(self) -> None:
        batch, task = make_batch(*[('s2', 's1a')] * 4), make_task(**CONTRAST)

        def loss(within: float | None) -> float:
            task.hparams['exclude_within'] = within
            return float(task.compute(batch, 'val', 0)[0].detach())

        assert loss(0.0) == loss(None)
        assert loss(1500.0) < loss(0.0)
        assert loss(1e5) < loss(1500.0)
        del batch['bounds']
        assert loss(1e5) == loss(None)

    def test_no_pair_is_no_error(self) -> None:
        task = make_task(**CONTRAST)
        loss, _ = task.compute(make_batch(('s2',), ('spot',), ('s1a',)), 'train', 0)
        assert loss == 0
        assert not any(gradient.any() for gradient in gradients(task, loss).values())

    def test_content_of_what_is_absent_does_not_matter(self) -> None:
        batch = make_batch(*MIXED)
        other = {**batch, 'image_spot': batch['image_spot'].clone()}
        other['image_spot'][3:5] = torch.nan
        results = [make_task().compute(b, 'train', 0)[0] for b in (batch, other)]
        assert results[0].isfinite()
        torch.testing.assert_close(*results)


class TestErrors:
    @pytest.mark.parametrize(
        ('told', 'message'),
        [
            ({'modalities': {'s2': MODALITIES['s2']}}, r"got \['s2'\]: expected two"),
            ({'patch_weight': -1.0}, 'expected none below 0 and one above it'),
            ({'tile_weight': 0.0, 'patch_weight': 0.0, **CONTRAST}, "{'tile': 0.0"),
            ({'mask_ratio': 1.0}, 'mask_ratio is 1.0, expected a number between 0 and 1'),
            ({'mask_ratio': 0.0}, 'mask_ratio is 0.0'),
            ({'hide': 'patches'}, "hide is 'patches', expected one of"),
            ({'micro_batch_size': 0}, 'micro_batch_size is 0, expected an integer, at least 1'),
            ({'micro_batch_size': 1.5}, 'micro_batch_size is 1.5, expected an integer'),
            ({'max_dates': 2.5}, 'max_dates is 2.5, expected an integer'),
            ({'embedding_dim': 8.5}, 'embedding_dim is 8.5, expected an integer'),
            ({'seed': -5}, 'seed is -5, expected an integer, at least 0'),
            ({'object_weight': float('nan')}, "'object': nan"),
            ({'exclude_within': -5}, 'exclude_within is -5, expected distances in metres'),
            ({'exclude_within': {'s2': -5}}, "exclude_within has .*'s2': -5"),
            ({'candidates': 0}, 'candidates is 0'),
            ({'projection_dim': 0}, 'projection_dim is 0'),
            ({'ema': 1.0}, 'ema is 1.0, expected a decay'),
            ({'temperature': 0.0}, 'temperature is 0.0'),
            ({'modality_dropout': {'aerial': 0.1}}, r"p has \['aerial'\]"),
        ],
    )
    def test_bad_arguments(self, told: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_task(**told)

    @pytest.mark.parametrize('told', [{'exclude_within': -5}, {'seed': -5}, {'mask_ratio': 1.0}])
    def test_bad_arguments_before_the_data_are_known(self, told: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match='{} is {}'.format(*next(iter(told.items())))):
            OmniSatPretraining(**told)

    def test_one_modality_can_be_rebuilt(self) -> None:
        task = make_task(modalities={'s2': MODALITIES['s2']}, tile_weight=0.0, patch_weight=0.0)
        assert task.compute(make_batch(('s2',)), 'train', 0)[0] > 0

    def test_one_tile_cannot_be_compared(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match='1 tile'):
            make_trainer(tmp_path).fit(make_task(), make_loader([make_sample(0)]))

    def test_one_tile_has_patches_to_compare(self) -> None:
        assert make_task(tile_weight=0.0).compute(make_batch(('s2', 's1a')), 'train', 0)[0] > 0

    def test_no_image(self) -> None:
        with pytest.raises(ValueError, match='keys of the batch'):
            make_task().compute({'label': torch.zeros(2, 3)}, 'train', 0)


def test_half_precision_compares_in_single(tmp_path: Path) -> None:
    task = make_task()
    losses: list[Tensor] = []
    task.on_before_backward = losses.append  # type: ignore[method-assign]
    samples = [make_sample(index, names) for index, names in enumerate(MIXED)]
    trainer = make_trainer(tmp_path, precision='bf16-mixed')
    trainer.fit(task, make_loader(samples))
    single = make_task().compute(collate(samples[:2], MODALITIES), 'train', 0, 0)[0]
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0], single, rtol=0.05, atol=0)
    assert trainer.optimizers[0].param_groups[0]['params'][0].dtype == torch.float32


def test_moving_average_is_what_is_kept(tmp_path: Path) -> None:
    loader = make_loader([make_sample(i) for i in range(4)])
    task, steps = make_task(ema=0.9), []

    def keep(*_: Any) -> None:
        steps.append({name: value.clone() for name, value in task.state_dict().items()})

    task.on_train_batch_end = keep  # type: ignore[method-assign]
    make_trainer(tmp_path, enable_checkpointing=True, limit_val_batches=0).fit(task, loader)
    (path,) = tmp_path.rglob('*step=2.ckpt')
    checkpoint = torch.load(path, weights_only=True)
    for name, value in checkpoint['state_dict'].items():
        torch.testing.assert_close(value, 0.9 * steps[0][name] + 0.1 * steps[1][name])
        torch.testing.assert_close(checkpoint['current_model_state'][name], steps[1][name])
    assert any(not torch.equal(steps[0][name], value) for name, value in steps[1].items())
    for name, value in task.state_dict().items():
        assert torch.equal(value, checkpoint['state_dict'][name])
