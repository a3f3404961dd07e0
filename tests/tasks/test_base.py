# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset

from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatSegmentation
from torchgeo_omnisat.tasks.setup.optimization import warmup_cosine
from torchgeo_omnisat.utils.sharding import refuse_strategy

from ..processes import succeed
from .helpers import MODALITIES, TOLD, make_datamodule, make_loader, make_sample, make_trainer, read_csv


class TestStatistics:
    def test_checkpoint_keeps_its_own(self, fitted: Path, root: Path, tmp_path: Path) -> None:
        task = OmniSatSegmentation.load_from_checkpoint(fitted, weights_only=True)
        told = {kind: dict(task.hparams[kind]) for kind in ('mean', 'std')}

        class Elsewhere(SyntheticLandscapesDataModule):
            def statistics(self, dataset: NonGeoDataset) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
                mean, std = super().statistics(dataset)
                return {k: v - 1 for k, v in mean.items()}, {k: 3 * v for k, v in std.items()}

        arguments = {'num_tiles': 10, 'dates': (2, 3), 'batch_size': 2, 'modalities': ('s2', 's1a')}
        results = []
        for kind in (SyntheticLandscapesDataModule, Elsewhere):
            datamodule = kind(root=str(root), **arguments)  # type: ignore[arg-type]
            predictions: Any = make_trainer(tmp_path, limit_predict_batches=1).predict(task, datamodule=datamodule)
            results.append(torch.cat([p['probabilities'] for p in predictions]))
        torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
        assert {kind: dict(task.hparams[kind]) for kind in ('mean', 'std')} == told
        fresh = OmniSatSegmentation('omnisat_tiny')
        make_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(
            fresh, datamodule=Elsewhere(root=str(root), **arguments)
        )  # type: ignore[arg-type]
        assert fresh.hparams['mean']['s2'] != told['mean']['s2']


class TestFacts:
    """Checkpoints from before kind and unit were stated, and data in another unit than the model's."""

    @staticmethod
    def aged(checkpoint: Path, folder: Path, **facts: Any) -> Path:
        """Write a checkpoint whose modalities state *facts* alone."""
        content = torch.load(checkpoint, weights_only=True)
        told = content['hyper_parameters']
        told['modalities'] = [
            {key: m[key] for key in ('name', 'bands', 'gsd', 'temporal')} | facts.get(m['name'], {})
            for m in told['modalities']
        ]
        torch.save(content, folder / 'aged.ckpt')
        return folder / 'aged.ckpt'

    def test_a_checkpoint_without_facts_learns_them(self, fitted: Path, root: Path, tmp_path: Path) -> None:
        task = OmniSatSegmentation.load_from_checkpoint(self.aged(fitted, tmp_path), weights_only=True)
        assert {m.unit for m in task.modalities.values()} == {'unknown'}
        datamodule = make_datamodule(root)
        make_trainer(tmp_path, limit_test_batches=1).test(task, datamodule=datamodule)
        assert task.modalities == datamodule.modalities
        assert task.modalities['s1a'].unit == 'db'

    def test_training_goes_on(self, fitted: Path, root: Path, tmp_path: Path) -> None:
        path = self.aged(fitted, tmp_path)
        step = torch.load(path, weights_only=True)['global_step']
        trainer, task = make_trainer(tmp_path, max_steps=step + 1), OmniSatSegmentation('omnisat_tiny')
        trainer.fit(task, datamodule=make_datamodule(root), ckpt_path=path)
        assert trainer.global_step == step + 1
        assert task.modalities['s1a'].kind == 'radar'

    def test_another_unit_is_refused(self, fitted: Path, root: Path, tmp_path: Path) -> None:
        path = self.aged(fitted, tmp_path, s1a={'kind': 'radar', 'unit': 'power'})
        task = OmniSatSegmentation.load_from_checkpoint(path, weights_only=True)
        with pytest.raises(
            ValueError, match=r"'s1a' of .* has unit db instead of power, for which the model was built"
        ):
            make_trainer(tmp_path).test(task, datamodule=make_datamodule(root))

    def test_the_series_of_a_baseline_stays_the_same(self) -> None:
        """Of a checkpoint without facts the name decided; learning that two series are optical changes nothing."""
        names = ('s2', 'planet')
        plain = [MODALITIES['s2'], replace(MODALITIES['s2'], name='planet')]
        old = [replace(m, kind=None, unit='unknown') for m in plain]
        task = OmniSatSegmentation(**TOLD | {'backbone': 'utae', 'modalities': old})
        assert list(task.modalities) == ['s2']
        stub: Any = SimpleNamespace(modalities=dict(zip(names, plain, strict=True)), mean=None, std=None)
        task._trainer = SimpleNamespace(predicting=True)  # type: ignore[assignment]
        task._check_datamodule(stub)
        assert list(task.modalities) == ['s2']
        assert task.modalities['s2'].kind == 'optical'


@pytest.mark.usefixtures('validation_figures')
class TestFigures:
    def test_one_png_a_validation_where_the_logger_takes_no_figures(self, root: Path, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, limit_train_batches=1)
        trainer.fit(OmniSatSegmentation('omnisat_tiny'), datamodule=make_datamodule(root))
        paths = sorted(tmp_path.rglob('figures/val/0/*'))
        assert [path.name for path in paths] == ['000001.png', '000002.png']
        assert all(path.read_bytes().startswith(b'\x89PNG') for path in paths)
        assert paths[0].is_relative_to(tmp_path / 'lightning_logs')

    def test_logger_that_takes_figures(self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        logger, tags = TensorBoardLogger(tmp_path), []
        monkeypatch.setattr(logger.experiment, 'add_figure', lambda tag, *args, **kwargs: tags.append(tag))
        trainer = make_trainer(tmp_path, max_steps=1, limit_train_batches=1, logger=logger)
        trainer.fit(OmniSatSegmentation('omnisat_tiny'), datamodule=make_datamodule(root))
        assert tags == ['val/0']
        assert not list(tmp_path.rglob('*.png'))


class TestErrors:
    def test_no_datamodule(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"\['modalities', .*\].*datamodule"):
            make_trainer(tmp_path).fit(OmniSatSegmentation('omnisat_tiny'), make_loader([make_sample(0)]))

    def test_datamodule_that_is_not_ours(self, tmp_path: Path) -> None:
        class Other(NonGeoDataModule):
            def setup(self, stage: str) -> None:
                self.mean = torch.tensor(0)

        with pytest.raises(ValueError, match='Other'):
            make_trainer(tmp_path).fit(OmniSatSegmentation('omnisat_tiny'), datamodule=Other(NonGeoDataset))  # type: ignore[type-abstract]

    @pytest.mark.parametrize(
        ('kwargs', 'message'),
        [
            ({'modalities': ('s2', 'spot')}, r"has 'spot'.*built for only \['s2', 's1a'\]: .* modalities: \[s2\]"),
            (
                {'bands': {'s1a': ('VV', 'VH')}},
                r"'s1a' of .* has bands \('VV', 'VH'\) instead of \('VV', 'VH', .* was built",
            ),
        ],
    )
    def test_data_that_the_model_does_not_know(
        self, fitted: Path, root: Path, tmp_path: Path, kwargs: dict[str, Any], message: str
    ) -> None:
        task = OmniSatSegmentation.load_from_checkpoint(fitted, weights_only=True)
        for run in ('predict', 'test'):
            with pytest.raises(ValueError, match=message):
                getattr(make_trainer(tmp_path), run)(task, datamodule=make_datamodule(root, **kwargs))

    def test_other_classes(self, fitted: Path, root: Path, tmp_path: Path) -> None:
        task = OmniSatSegmentation.load_from_checkpoint(fitted, weights_only=True)
        datamodule = make_datamodule(root)
        datamodule.num_classes = 7
        with pytest.raises(ValueError, match=r'num_classes.*\b7\b.*\b20\b'):
            make_trainer(tmp_path).test(task, datamodule=datamodule)
        make_trainer(tmp_path).predict(task, datamodule=datamodule)

    def test_a_datamodule_may_say_the_same_in_other_types(self) -> None:
        told = {name: TOLD[name] for name in ('backbone', 'modalities', 'patch_size')}
        task = OmniSatClassification(**told, label_names=['a', 'b'])
        datamodule = SimpleNamespace(modalities=list(MODALITIES.values()), label_names=('a', 'b'))
        task._trainer = SimpleNamespace(  # type: ignore[assignment]
            datamodule=datamodule, predicting=False, is_global_zero=False, test_loop=SimpleNamespace(verbose=False)
        )
        task.configure_model()
        task.on_test_start()
        assert len(task.subset_scores.subsets) == 7

    def test_endless_training_needs_a_plateau(self, tmp_path: Path) -> None:
        loader = make_loader([make_sample(0)])
        with pytest.raises(ValueError, match="scheduler='cosine'"):
            make_trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(OmniSatSegmentation(**TOLD), loader)

    @pytest.mark.parametrize(
        ('told', 'message'),
        [
            ({'backbone': 'resnet50'}, r"backbone is 'resnet50', expected one of \['omnisat_base', "),
            ({'labels': ['a']}, r"labels are \['a'\], expected one for each of 5 classes"),
            ({'loss': 'focal'}, r"loss is 'focal', expected one of \['ce\+dice', 'ce'\]"),
            ({'modality_dropout': {'aerial': 0.1}}, r"p has \['aerial'\]"),
            ({'class_weights': [1.0, 1.0]}, 'class_weights has 2 entries, expected one for each of 5 classes'),
            ({'class_weights': [1.0, 1.0, 1.0, 1.0, -1.0]}, r'class_weights is \[.*-1\.0\], expected finite'),
            ({'scheduler': 'onecycle'}, r"scheduler is 'onecycle', expected one of \['cosine', 'plateau'\]"),
            ({'warmup': -1.0}, r'warmup is -1\.0, expected'),
            ({'warmup': 500}, 'warmup is 500, expected'),
            ({'mean': {'s2': [1.0]}}, r"mean has \{'s2': 1, 's1a': 0, 'spot': 0\} numbers .* \{'s2': 3,"),
            ({'mean': 3.0}, 'mean is 3.0, expected numbers by modality'),
        ],
    )
    def test_bad_arguments(self, told: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            OmniSatSegmentation(**TOLD | told)


class TestBlind:
    def test_output_is_finite_and_the_task_says_so_once(self, tmp_path: Path) -> None:
        blind = make_sample(0)
        for modality in MODALITIES.values():
            blind[modality.valid_key][:] = False
        task = OmniSatSegmentation(**TOLD)
        loader = make_loader([blind, make_sample(1)] * 2)
        with pytest.warns(UserWarning, match=r"1 of 2 .*\['s2',") as said:
            predictions: Any = make_trainer(tmp_path).predict(task, loader)
        assert all(p['probabilities'].isfinite().all() for p in predictions)
        assert len([w for w in said if 'without any of the modalities' in str(w.message)]) == 1

    def test_nothing_is_said_otherwise(self, tmp_path: Path) -> None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            make_trainer(tmp_path).predict(OmniSatSegmentation(**TOLD), make_loader([make_sample(0, ('spot',))]))
        assert not [w for w in said if 'without any of the modalities' in str(w.message)]


class TestOptimizer:
    def test_schedule(self) -> None:
        factor = warmup_cosine(100, 0.1)
        assert [round(factor(step), 6) for step in (0, 4, 9, 10, 55, 100, 101)] == [0.1, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
        assert warmup_cosine(1, 0.05)(0) == 1

    def test_learning_rate_ends_at_zero(self, tmp_path: Path) -> None:
        task = OmniSatSegmentation(**TOLD, lr=1e-3, warmup=0.5)
        rates = []
        task.on_train_batch_end = lambda *_: rates.append(task.optimizers().param_groups[0]['lr'])  # type: ignore[method-assign]
        make_trainer(tmp_path, max_steps=4).fit(task, make_loader([make_sample(i) for i in range(4)]))
        assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 0], abs=1e-9)

    def test_norms_do_not_decay(self, tmp_path: Path) -> None:
        task = OmniSatSegmentation(**TOLD, weight_decay=0.1)
        trainer = make_trainer(tmp_path)
        trainer.fit(task, make_loader([make_sample(0)]))
        decayed, spared = trainer.optimizers[0].param_groups
        assert (decayed['weight_decay'], spared['weight_decay']) == (0.1, 0)
        assert len(decayed['params']) + len(spared['params']) == len(list(task.parameters()))
        assert all(p.ndim > 1 for p in decayed['params'])


def train_and_test(folder: Path) -> None:
    """Of each pair of samples one goes to either of two processes."""
    names = [('s2',), ('spot',), ('s1a', 'spot'), ('s2',)]
    loader = DataLoader(
        [make_sample(index, held) for index, held in enumerate(names)],  # type: ignore[arg-type]
        collate_fn=partial(collate, modalities=MODALITIES),
    )
    trainer = make_trainer(folder, devices=2, strategy='ddp_fork')
    task = OmniSatSegmentation(**TOLD, modality_dropout=0.0)
    trainer.fit(task, loader, loader)
    trainer.test(task, loader, verbose=False)


@pytest.mark.slow
def test_two_processes_that_see_different_modalities(tmp_path: Path) -> None:
    succeed(tmp_path, train_and_test, tmp_path)
    (table,) = tmp_path.rglob('subsets.csv')
    rows = {row['subset']: row for row in read_csv(table)}
    assert [rows[name]['samples'] for name in ('s1a+s2+spot', 's2', 's1a')] == ['4', '2', '1']


@pytest.mark.parametrize(
    ('strategy', 'wrong'),
    [
        (ModelParallelStrategy(tensor_parallel_size=2), 'tensor_parallel_size'),
        (FSDPStrategy(use_orig_params=False), 'use_orig_params'),
        (FSDPStrategy(auto_wrap_policy={torch.nn.Linear}), 'auto_wrap_policy'),
    ],
)
def test_strategy_that_shards_parts_of_a_model_is_refused(strategy: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        refuse_strategy(strategy)
    refuse_strategy(FSDPStrategy())
    refuse_strategy(ModelParallelStrategy())
    refuse_strategy(ModelParallelStrategy(tensor_parallel_size=1))


def test_figure_takes_what_it_shows_alone() -> None:
    task = OmniSatSegmentation(**TOLD)
    batch = {
        **collate([make_sample(0, ('s2', 's1a')), make_sample(1, ('s2',))], MODALITIES),
        'bounds': torch.zeros(2, 9),
        'other': torch.zeros(2, 1000),
    }
    sample = task._first_of(batch)
    assert {'image_s2', 'dates_s2', 'valid_s2', 'mask'} <= set(sample)
    assert not {'bounds', 'other'} & set(sample)
    assert torch.equal(sample['image_s2'], batch['image_s2'][0])
