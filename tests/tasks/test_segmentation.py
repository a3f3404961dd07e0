# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchgeo.main import main

from torchgeo_omnisat.batch import collate, drop
from torchgeo_omnisat.datamodules import PASTISMultimodalDataModule
from torchgeo_omnisat.tasks import OmniSatSegmentation, omnisat

from .helpers import (
    MODALITIES,
    TOLD,
    command,
    make_batch,
    make_datamodule,
    make_loader,
    make_sample,
    make_trainer,
    read_csv,
)

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
REAL = Path(__file__).parents[2].parent / 'shared/data/pastis-r-mini'


class TestCommandLine:
    def test_checkpoint_is_plain_and_complete(self, fitted: Path, root: Path) -> None:
        told = torch.load(fitted, weights_only=True)['hyper_parameters']
        datamodule = make_datamodule(root)
        datamodule.setup('test')
        assert not {'task', 'num_labels', 'weights'} & told.keys()
        assert told['modalities'] == [m.as_dict() for m in datamodule.modalities.values()]
        assert told['mean'] == {name: mean.tolist() for name, mean in datamodule.mean.items()}
        assert (told['num_classes'], told['ignore_index'], told['labels']) == (20, 19, list(datamodule.labels))

    @pytest.mark.parametrize('task', [OmniSatSegmentation, omnisat])
    def test_checkpoint_rebuilds_its_model(self, fitted: Path, task: type[OmniSatSegmentation]) -> None:
        loaded = task.load_from_checkpoint(fitted, weights_only=True)
        state = torch.load(fitted, weights_only=True)['state_dict']
        assert loaded.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
        assert list(loaded.modalities) == ['s2', 's1a']

    @pytest.mark.usefixtures('validation_figures')
    def test_test_scores_every_subset(self, fitted: Path, root: Path, tmp_path: Path) -> None:
        main(command(root, tmp_path, 'test', '--ckpt_path', str(fitted)))
        table = next(tmp_path.rglob('subsets.csv'))
        rows = read_csv(table)
        assert [row['subset'] for row in rows] == ['s1a+s2', 's2', 's1a']
        assert {row['data'] for row in rows} == {'synthetic'}
        assert sorted(path.name for path in table.parent.iterdir() if 'subsets' in path.name) == [
            'subsets.csv',
            'subsets.png',
        ]
        (logged,) = read_csv(table.parent / 'metrics.csv')
        for row in rows:
            score = float(logged[f'test_AverageJaccardIndex/{row["subset"]}'])
            assert score == pytest.approx(float(row['mean_iou']), abs=1e-6)
        assert float(logged['test_AverageJaccardIndex']) == pytest.approx(float(rows[0]['mean_iou']), abs=1e-6)
        assert float(logged['test_OverallAccuracy']) == pytest.approx(float(rows[0]['overall_accuracy']), abs=1e-6)
        assert 'test_ClasswiseJaccardIndex_meadow' in logged

    def test_validate(self, fitted: Path, root: Path, tmp_path: Path) -> None:
        main(command(root, tmp_path, 'validate', '--ckpt_path', str(fitted)))
        (logged,) = read_csv(next(tmp_path.rglob('metrics.csv')))
        assert {'val_loss', 'val_AverageJaccardIndex', 'val_ClasswiseF1Score_meadow'} <= logged.keys()

    def test_predict(self, fitted: Path, root: Path, tmp_path: Path) -> None:
        main(command(root, tmp_path, 'predict', '--ckpt_path', str(fitted)))

    def test_resume_goes_on(self, fitted: Path, root: Path, tmp_path: Path) -> None:
        main(command(root, tmp_path, 'fit', '--ckpt_path', str(fitted), '--trainer.max_steps', '3'))
        resumed = torch.load(next(tmp_path.rglob('*.ckpt')), weights_only=True)
        assert resumed['global_step'] == 3
        assert resumed['hyper_parameters'] == torch.load(fitted, weights_only=True)['hyper_parameters']

    @pytest.mark.parametrize(
        'words',
        [
            ('--model.scheduler', 'plateau', '--model.loss', 'ce', '--model.freeze_backbone', 'true'),
            ('--model.modality_dropout', '{"s2": 0.5}', '--model.backbone_args', '{"encoders": {"s2": "ltae"}}'),
        ],
    )
    def test_options(self, root: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
        fast = ('--trainer.fast_dev_run', 'true', '--model.backbone', 'omnisat_tiny')
        main(command(root, tmp_path, 'fit', *fast, *words))
        main(command(root, tmp_path, 'test', *fast, *words))
        assert not list(tmp_path.rglob('subsets*'))

    @pytest.mark.skipif(not REAL.is_dir(), reason='needs real tiles of PASTIS-R')
    def test_real_tiles(self, tmp_path: Path) -> None:
        datamodule = PASTISMultimodalDataModule(root=str(REAL), batch_size=1)
        task = OmniSatSegmentation('omnisat_tiny')
        trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=1, limit_test_batches=1)
        trainer.fit(task, datamodule=datamodule)
        (scores,) = trainer.test(task, datamodule=datamodule, verbose=False)
        assert len([key for key in scores if '/' in key]) == 7


class TestMetrics:
    """Class 4 is ignored, class 3 never occurs, and the model would like to say 4 everywhere."""

    def make_scored(self, tmp_path: Path) -> tuple[dict[str, float], list[Tensor], list[Tensor]]:
        torch.manual_seed(0)
        task = OmniSatSegmentation(**TOLD)
        task.model.decoder.head.bias.data[:] = torch.tensor([0.0, 0.1, 0.0, -100.0, 100.0])
        samples = [make_sample(i) for i in range(5)]
        for sample in samples:
            sample['mask'][sample['mask'] == 3] = 0
        (scores,) = make_trainer(tmp_path).test(task, make_loader(samples), verbose=False)
        with torch.no_grad():
            logits = [task(collate([sample], MODALITIES))[0] for sample in samples]
        return scores, [x[:4].argmax(0) for x in logits], [sample['mask'] for sample in samples]

    def test_macro_scores_are_means_over_scored_classes(self, tmp_path: Path) -> None:
        scores, given, wanted = self.make_scored(tmp_path)
        x, y = torch.stack(given), torch.stack(wanted)
        x, y = x[y != 4], y[y != 4]
        counts = [((x == k) & (y == k)).sum() for k in range(3)], [(x == k).sum() for k in range(3)]
        right, said, real = *counts, [(y == k).sum() for k in range(3)]
        iou = [r / (s + t - r) for r, s, t in zip(right, said, real, strict=True)]
        f1 = [2 * r / (s + t) for r, s, t in zip(right, said, real, strict=True)]
        recall = [r / t for r, t in zip(right, real, strict=True)]
        for name, values in (('JaccardIndex', iou), ('F1Score', f1), ('Accuracy', recall)):
            assert scores[f'test_Average{name}'] == pytest.approx(torch.stack(values).mean().item()), name
        assert scores['test_OverallAccuracy'] == pytest.approx((x == y).float().mean().item())
        assert scores['test_AverageJaccardIndex/s1a+s2+spot'] == pytest.approx(torch.stack(iou).mean().item())

    def test_ignored_class_has_no_probability(self, tmp_path: Path) -> None:
        task = OmniSatSegmentation(**TOLD)
        task.model.decoder.head.bias.data[4] = 100.0
        (prediction, *_) = make_trainer(tmp_path).predict(task, make_loader([make_sample(0), make_sample(1)])) or []
        assert isinstance(prediction, dict)
        assert not prediction['probabilities'][:, 4].any()
        torch.testing.assert_close(prediction['probabilities'].sum(1), torch.ones(2, 16, 16))
        assert torch.equal(prediction['bounds'][1], torch.arange(4, dtype=torch.float64) + 1)
        assert prediction['transform'] is None
        assert 'window' not in prediction

    def test_label_that_is_no_class_hides_none(self) -> None:
        task = OmniSatSegmentation(**TOLD | {'ignore_index': 255})
        logits = torch.randn(1, 5, 2, 2)
        assert torch.equal(task.without_ignored(logits), logits)

    def test_the_sanity_check_logs_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lightning would discard them."""
        logged: list[bool] = []
        monkeypatch.setattr(
            OmniSatSegmentation, 'log_dict', lambda self, _: logged.append(self.trainer.sanity_checking)
        )
        trainer = make_trainer(tmp_path, max_steps=1, num_sanity_val_steps=1)
        trainer.fit(OmniSatSegmentation(**TOLD), *[make_loader([make_sample(0)])] * 2)
        assert logged == [False, False]  # of validation and of training


class TestTraining:
    def test_modalities_are_dropped_in_training_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        task = OmniSatSegmentation(**TOLD, modality_dropout=1.0, subset_weight=0.0)
        seen: list[tuple[bool, float]] = []
        forward = task.model.backbone.forward

        def spy(batch: dict[str, Tensor]) -> Any:
            held = torch.stack([batch[m.valid_key].any(-1) for m in MODALITIES.values()], -1)
            seen.append((task.training, held.sum(-1).float().mean().item()))
            return forward(batch)

        monkeypatch.setattr(task.model.backbone, 'forward', spy)
        loader = make_loader([make_sample(0), make_sample(1)])
        make_trainer(tmp_path).fit(task, loader, loader)
        assert {count for training, count in seen if training} == {1.0}
        assert {count for training, count in seen if not training} == {3.0}

    def test_mixed_precision(self, tmp_path: Path) -> None:
        task, loader = OmniSatSegmentation(**TOLD), make_loader([make_sample(0), make_sample(1, ('s2',))])
        trainer = make_trainer(tmp_path, precision='bf16-mixed')
        trainer.fit(task, loader, loader)
        (scores,) = trainer.test(task, loader, verbose=False)
        assert all(torch.isfinite(p).all() for p in task.parameters())
        assert scores['test_loss'] > 0

    def test_loss_falls(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        task = OmniSatSegmentation(**TOLD, lr=3e-3, modality_dropout=0.0)
        loader = make_loader([make_sample(0), make_sample(1)])
        make_trainer(tmp_path, max_steps=40).fit(task, loader)
        losses = [
            float(row['train_loss']) for row in read_csv(next(tmp_path.rglob('metrics.csv'))) if row['train_loss']
        ]
        assert losses[-1] < 0.7 * losses[0]

    @pytest.mark.parametrize('absent', ['s1a', 'spot'])
    def test_every_parameter_takes_part_in_several_processes(
        self, absent: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = OmniSatSegmentation(**TOLD)
        trainer = Trainer(accelerator='cpu', logger=False)
        task.trainer = trainer
        monkeypatch.setattr(task, 'log', lambda *args, **kwargs: None)
        batch = drop(make_batch(), [MODALITIES[absent]])
        task.training_step(batch, 0).backward()
        assert any(p.grad is None for p in task.parameters())
        monkeypatch.setattr(type(trainer), 'world_size', 2)
        task.training_step(batch, 0).backward()
        assert all(p.grad is not None for p in task.parameters())

    def test_frozen_backbone(self, tmp_path: Path) -> None:
        task = OmniSatSegmentation(**TOLD, freeze_backbone=True)
        before = {key: value.clone() for key, value in task.state_dict().items()}
        modes = []
        task.on_train_batch_start = lambda *_: modes.append((task.model.backbone.training, task.model.training))  # type: ignore[method-assign]
        make_trainer(tmp_path).fit(task, make_loader([make_sample(0), make_sample(1)]))
        changed = {key for key, value in task.state_dict().items() if not torch.equal(value, before[key])}
        assert changed
        assert {key.split('.')[1] for key in changed} == {'decoder', 'experts'}
        assert set(modes) == {(False, True)}


class TestExperts:
    def test_logits_add_up_over_observed_pixels(self) -> None:
        torch.manual_seed(0)
        model, batch = OmniSatSegmentation(**TOLD).eval().model, make_batch()
        batch['valid_s1a'][1] = False
        batch['image_spot'][0, ..., :16] = torch.nan
        with torch.no_grad():
            out = model.backbone(batch)
            expected, opinions = model.decoder(out, (16, 16)), model.expert_logits(out)
            opinions['s1a'][1], opinions['spot'][0, ..., :8] = 0, 0
            for name in ('s2', 's1a', 'spot'):
                assert opinions[name].abs().amax() > 0
                expected = expected + opinions[name]
            torch.testing.assert_close(model(batch), expected)
            torch.testing.assert_close(model.decode(out, model.expert_logits(out)), expected)

    @pytest.mark.parametrize('subset_weight', [0.0, 1.0])
    def test_each_expert_learns_from_the_samples_with_its_modality(self, subset_weight: float) -> None:
        task = OmniSatSegmentation(**TOLD, modality_dropout=0.0, expert_weight=0.5, subset_weight=subset_weight)
        batch = make_batch()
        batch['valid_s1a'][1] = False
        logits, loss = task.learn(batch)
        opinions, mask = task.model.expert_logits(task.model.backbone(batch)), batch['mask']
        alone = [task.criterion(opinions[name], mask) for name in ('s2', 'spot')]
        alone.append(task.criterion(opinions['s1a'][[0, 2]], mask[[0, 2]]))
        torch.testing.assert_close(loss, task.criterion(logits, mask) + 0.5 * torch.stack(alone).mean())

    def test_baselines_have_none(self) -> None:
        assert not OmniSatSegmentation(**TOLD | {'backbone': 'late_fusion'}).model.experts

    @pytest.mark.parametrize('weight', [-1.0, float('inf')])
    def test_implausible_weight(self, weight: float) -> None:
        with pytest.raises(ValueError, match=f'expert_weight is {weight}'):
            OmniSatSegmentation(**TOLD, expert_weight=weight)

    def test_checkpoint_from_before_there_were_experts(self, fitted: Path, root: Path, tmp_path: Path) -> None:
        """Its hyper-parameters do not name them."""
        saved = torch.load(fitted, weights_only=True)
        state = {key: value for key, value in saved['state_dict'].items() if not key.startswith('model.experts.')}
        assert len(state) < len(saved['state_dict'])
        hparams = {key: value for key, value in saved['hyper_parameters'].items() if 'expert' not in key}
        old = tmp_path / 'old.ckpt'
        torch.save({**saved, 'state_dict': state, 'hyper_parameters': hparams}, old)
        loaded = OmniSatSegmentation.load_from_checkpoint(old)
        assert loaded.hparams['experts'] is False
        assert loaded.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
        main(command(root, tmp_path, 'test', '--ckpt_path', str(old)))

    def test_training_resumes_from_before_decoders_had_a_width(self, root: Path, tmp_path: Path) -> None:
        task = OmniSatSegmentation('omnisat_tiny', lr=1e-3, decoder_width=32)
        trainer = make_trainer(tmp_path, max_steps=1)
        trainer.fit(task, datamodule=make_datamodule(root))
        trainer.save_checkpoint(old := tmp_path / 'old.ckpt')
        saved = torch.load(old, weights_only=True)
        del saved['hyper_parameters']['decoder_width']
        torch.save(saved, old)
        resumed = OmniSatSegmentation('omnisat_tiny', lr=1e-3)
        trainer = make_trainer(tmp_path, max_steps=2)
        trainer.fit(resumed, datamodule=make_datamodule(root), ckpt_path=str(old))
        assert trainer.global_step == 2
        assert resumed.hparams['decoder_width'] == 32
        assert {key: x.shape for key, x in resumed.state_dict().items()} == {
            key: x.shape for key, x in task.state_dict().items()
        }
        trainer.save_checkpoint(tmp_path / 'new.ckpt')
        loaded = OmniSatSegmentation.load_from_checkpoint(tmp_path / 'new.ckpt')
        assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in loaded.state_dict().items())

    @pytest.mark.parametrize('width', [0, 48.0, 10**6])
    def test_implausible_width(self, width: Any) -> None:
        with pytest.raises(ValueError, match=f'decoder_width is {width}, expected an integer from 1'):
            OmniSatSegmentation(**TOLD, decoder_width=width)

    def test_dropout_of_the_decoder(self) -> None:
        model = OmniSatSegmentation(**TOLD, decoder_dropout=0.3).model
        assert {part.p for part in model.modules() if isinstance(part, nn.Dropout2d)} == {0.3}
        with pytest.raises(ValueError, match=r'decoder_dropout is 1\.5, expected a probability'):
            OmniSatSegmentation(**TOLD, decoder_dropout=1.5)

    @pytest.mark.parametrize('background', [5, -1])
    def test_background_that_is_no_class(self, background: int) -> None:
        with pytest.raises(ValueError, match=rf'background is {background}, expected .* 0 to 4'):
            OmniSatSegmentation(**TOLD, background=background)

    def test_number_of_class_weights(self) -> None:
        with pytest.raises(ValueError, match=r'class_weights has 2 .* 5 classes'):
            OmniSatSegmentation(**TOLD, class_weights=[1.0, 2.0])


class TestFlips:
    """Test-time augmentation."""

    @pytest.mark.parametrize('instances', [False, True])
    def test_probabilities_are_means_over_flips(self, instances: bool) -> None:
        torch.manual_seed(0)
        task = OmniSatSegmentation(**TOLD, tta=True, instances=instances).eval()
        batch = make_batch()
        batch['image_s2'] = batch['image_s2'][..., :12]
        batch['image_s1a'] = batch['image_s1a'][..., :12]
        batch['image_spot'] = batch['image_spot'][..., :24]  # a tile that is not square
        views = [(), (-1,), (-2,), (-1, -2)]
        with torch.no_grad():
            logits, more = task.infer(batch)
            task.tta = False
            found = []
            for axes in views:
                turned = {key: x.flip(axes) if 'image' in key else x for key, x in batch.items()}
                found.append((task.infer(turned), axes))
        expected = sum(x.softmax(1).flip(axes) for (x, _), axes in found) / 4
        torch.testing.assert_close(logits.softmax(1), expected)
        assert (expected - found[0][0][0].softmax(1)).abs().max() > 1e-4
        assert (more is None) != instances
        if more is not None:
            distance = sum(fields.distance.flip(axes) for (_, fields), axes in found) / 4
            torch.testing.assert_close(more.distance, distance)
            extent = sum(fields.extent.softmax(1).flip(axes) for (_, fields), axes in found) / 4
            torch.testing.assert_close(more.extent.softmax(1), extent)

    def test_test_and_prediction(self, tmp_path: Path) -> None:
        """A model that knows left from right gives equal probabilities to a tile and its mirror image."""
        torch.manual_seed(0)
        task = OmniSatSegmentation(**TOLD, tta=True)
        samples = [make_sample(i) for i in range(3)]
        mirrored = [{key: x.flip(-1) if 'image' in key else x for key, x in sample.items()} for sample in samples]
        trainer = make_trainer(tmp_path)
        (scores,) = trainer.test(task, make_loader(samples), verbose=False)
        assert len([key for key in scores if '/' in key]) == 7
        ours, theirs = (trainer.predict(task, make_loader(some)) for some in (samples, mirrored))
        assert ours is not None
        assert theirs is not None
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one['probabilities'], other['probabilities'].flip(-1))
            assert one['seen'].shape == (len(one['probabilities']), 16, 16)
        assert 'tta' not in task.hparams
