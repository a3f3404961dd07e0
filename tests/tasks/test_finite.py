# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Random weights and NaN never become a result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torchgeo.main import main

from torchgeo_omnisat.prediction import GeoTIFFWriter
from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.tasks.base import OmniSatTask
from torchgeo_omnisat.tasks.setup.optimization import warmup_cosine
from torchgeo_omnisat.utils.tensors.finite import SKIPPED, Watch

from .. import processes
from ..prediction.areas import TOLD as AREA
from ..prediction.areas import PlaneDataModule
from .helpers import TOLD, command, make_loader, make_sample, make_trainer

STAGES = ('test', 'validate', 'predict')
PRETRAINING: dict[str, Any] = {key: TOLD[key] for key in ('backbone', 'modalities', 'patch_size')}
SAMPLES = [make_sample(index) for index in range(4)]


@pytest.fixture(autouse=True)
def _refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OmniSatTask, 'allow_random', False)


def run(stage: str, task: OmniSatTask, folder: Path, **kwargs: Any) -> Any:
    return getattr(make_trainer(folder), stage)(task, make_loader(SAMPLES), **kwargs)


class TestRandom:
    @pytest.mark.parametrize('stage', STAGES)
    def test_no_weights(self, stage: str, tmp_path: Path) -> None:
        pretraining = OmniSatPretraining(**PRETRAINING).double().float()
        for task in (OmniSatSegmentation(**TOLD), pretraining)[: 1 if stage == 'validate' else 2]:
            with pytest.raises(ValueError, match='random weights'):
                run(stage, task, tmp_path)
        assert not list(tmp_path.rglob('*.csv'))
        if stage == 'validate':  # to compare with
            run(stage, pretraining, tmp_path)

    @pytest.mark.parametrize('stage', STAGES)
    def test_command_line(self, stage: str, root: Path, tmp_path: Path) -> None:
        with pytest.raises((ValueError, SystemExit)):
            main(command(root, tmp_path, stage, '--model.backbone', 'omnisat_tiny'))
        assert not list(tmp_path.rglob('subsets.csv'))

    @pytest.fixture(scope='class')
    def trained(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[OmniSatSegmentation, Path]:
        """A task after a step, and its checkpoint."""
        folder, task = tmp_path_factory.mktemp('trained'), OmniSatSegmentation(**TOLD)
        trainer = make_trainer(folder, max_steps=1)
        trainer.fit(task, make_loader(SAMPLES))
        trainer.save_checkpoint(folder / 'trained.ckpt')
        return task, folder / 'trained.ckpt'

    @pytest.mark.parametrize('stage', STAGES)
    def test_trained_or_loaded(
        self, stage: str, trained: tuple[OmniSatSegmentation, Path], fitted: Path, root: Path, tmp_path: Path
    ) -> None:
        main(command(root, tmp_path, stage, '--ckpt_path', str(fitted)))
        task, path = trained
        run(stage, task, tmp_path)
        run(stage, OmniSatSegmentation.load_from_checkpoint(path, weights_only=True), tmp_path)
        run(stage, OmniSatSegmentation(**TOLD), tmp_path, ckpt_path=str(path), weights_only=True)
        for assign in (False, True)[: 2 if stage == 'predict' else 1]:
            loaded = OmniSatSegmentation(**TOLD)
            loaded.model.load_state_dict(task.model.state_dict(), assign=assign)
            run(stage, loaded, tmp_path)

    def test_weights_of_a_backbone_leave_the_head(self, tmp_path: Path) -> None:
        pretrained = OmniSatPretraining(**PRETRAINING)
        make_trainer(tmp_path, max_steps=1).fit(pretrained, make_loader(SAMPLES))
        path = tmp_path / 'pretrained.ckpt'
        pretrained.trainer.save_checkpoint(path)
        with pytest.raises(ValueError, match=r'decoder.*random weights'):
            run('predict', OmniSatSegmentation(**TOLD, weights=str(path)), tmp_path)
        run('predict', OmniSatPretraining(**PRETRAINING, weights=str(path)), tmp_path)

    def test_an_area(self, tmp_path: Path) -> None:
        writer = GeoTIFFWriter(str(tmp_path / 'map.tif'))
        with pytest.raises(ValueError, match='random weights'):
            make_trainer(tmp_path, callbacks=[writer]).predict(
                OmniSatSegmentation(**AREA), datamodule=PlaneDataModule()
            )
        assert not list(tmp_path.rglob('*map.tif*'))


def spoil(task: OmniSatTask, part: str) -> str:
    """Make a weight NaN, and return its name."""
    name, parameter = next((n, p) for n, p in task.named_parameters() if part in n and p.ndim > 1)
    with torch.no_grad():
        parameter.flatten()[0] = torch.nan
    return name


class TestNaN:
    @pytest.mark.parametrize('stage', STAGES)
    def test_checkpoint(self, stage: str, fitted: Path, tmp_path: Path) -> None:
        checkpoint = torch.load(fitted, weights_only=True)
        name = next(name for name, value in checkpoint['state_dict'].items() if 'decoder' in name and value.ndim > 1)
        checkpoint['state_dict'][name].view(-1)[3] = torch.nan
        path = tmp_path / 'nan.ckpt'
        torch.save(checkpoint, path)
        with pytest.raises(ValueError, match=name):
            OmniSatSegmentation.load_from_checkpoint(path, weights_only=True)
        with pytest.raises(ValueError, match=name):
            run(stage, OmniSatSegmentation(**TOLD), tmp_path, ckpt_path=str(path))
        if stage == 'test':
            with pytest.raises(ValueError, match=r'nan.ckpt.*' + name):
                OmniSatSegmentation(**TOLD, weights=str(path))

    @pytest.mark.parametrize('stage', STAGES)
    def test_weights_in_memory_name_the_layer(self, stage: str, tmp_path: Path) -> None:
        classes = {k: v for k, v in TOLD.items() if k in PRETRAINING}
        tasks = [OmniSatSegmentation(**TOLD), OmniSatPretraining(**PRETRAINING)]
        if stage == 'predict':
            tasks.append(OmniSatClassification(**classes, label_names=['a', 'b']))
        for task in tasks:
            task.load_state_dict(task.state_dict())
            name = spoil(task, 'backbone.fusion')
            with pytest.raises(ValueError, match=name.removeprefix('model.')):
                run(stage, task, tmp_path)

    @pytest.mark.parametrize('stage', STAGES)
    def test_an_output_names_the_tile(self, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        task = OmniSatSegmentation(**TOLD)
        task.load_state_dict(task.state_dict())
        decode, renormalise, batches = task.model.decode, task.renormalise, []

        def count(batch: Any) -> Any:
            batches.append(batch)
            return renormalise(batch)

        def spoiled(*args: Any) -> Tensor:
            logits: Tensor = decode(*args)
            if len(batches) == 2:
                logits[1, 0, 3, 3] = torch.nan
            return logits

        monkeypatch.setattr(task, 'renormalise', count)
        monkeypatch.setattr(task.model, 'decode', spoiled)
        with pytest.raises(ValueError, match=r'\b1 .*\b1\b.*bounds \[3'):
            run(stage, task, tmp_path)

    def test_a_map_is_not_written(self, tmp_path: Path) -> None:
        class Broken(OmniSatSegmentation):
            def predict_step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor | None]:
                found = super().predict_step(*args, **kwargs)
                return {**found, 'probabilities': found['probabilities'] * torch.nan}  # type: ignore[operator]

        task = Broken(**AREA)
        task.load_state_dict(task.state_dict())
        writer = GeoTIFFWriter(str(tmp_path / 'map.tif'))
        with pytest.raises(ValueError, match=r'window \[0, 0, '):
            make_trainer(tmp_path, callbacks=[writer]).predict(task, datamodule=PlaneDataModule())
        assert not (tmp_path / 'map.tif').exists()


def stop(folder: Path) -> None:
    """Train with two processes, of which one alone has a loss that is NaN."""

    class Broken(OmniSatSegmentation):
        def training_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
            loss = super().training_step(batch, batch_idx, dataloader_idx)
            return loss * torch.nan if self.global_rank == 1 and self.global_step == 2 else loss

    keep = ModelCheckpoint(folder, 'step-{step}', every_n_train_steps=1, save_last=True)
    settings: dict[str, Any] = {'enable_checkpointing': True, 'callbacks': [keep], 'max_steps': 6}
    trainer = make_trainer(folder, devices=2, strategy='ddp_fork', **settings)
    trainer.fit(Broken(**TOLD), make_loader(SAMPLES))


class TestTraining:
    @pytest.mark.slow
    def test_all_processes_stop(self, tmp_path: Path) -> None:
        assert processes.run(tmp_path, stop, tmp_path, timeout=240) == 1
        assert 'training is no longer finite at step 3' in (tmp_path / 'error.txt').read_text()
        assert torch.load(tmp_path / 'last.ckpt', weights_only=True)['global_step'] == 2

    @pytest.mark.parametrize('kind', ['loss', 'gradient'])
    @pytest.mark.parametrize('clip', [None, 0, 5.0])
    def test_it_stops_and_keeps_the_last_good_checkpoint(self, kind: str, clip: float | None, tmp_path: Path) -> None:
        class Broken(OmniSatSegmentation):
            def training_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
                loss = super().training_step(batch, batch_idx, dataloader_idx)
                if self.global_step < 2:
                    return loss
                if kind == 'loss':
                    return loss * torch.nan
                loss.register_hook(lambda gradient: gradient * torch.nan)
                return loss

        task = Broken(**TOLD, lr=0.0123)
        rate = 0.0123 * warmup_cosine(9, 0.05)(2)
        keep = ModelCheckpoint(tmp_path, 'step-{step}', every_n_train_steps=1, save_last=True)
        settings: dict[str, Any] = {'enable_checkpointing': True, 'callbacks': [keep], 'max_steps': 9}
        with pytest.raises(ValueError, match=rf'step 3\b.*{rate:g}'):
            make_trainer(tmp_path, **settings, gradient_clip_val=clip).fit(task, make_loader(SAMPLES))
        last = torch.load(tmp_path / 'last.ckpt', weights_only=True)
        assert last['global_step'] == 2
        assert all(value.isfinite().all() for value in last['state_dict'].values())

    def test_pretraining_stops_without_checkpoints_too(self, tmp_path: Path) -> None:
        class Broken(OmniSatPretraining):
            def training_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
                return super().training_step(batch, batch_idx, dataloader_idx) * torch.nan

        with pytest.raises(ValueError, match=r'step 1\b.*nan'):
            make_trainer(tmp_path, max_steps=1).fit(Broken(**PRETRAINING), make_loader(SAMPLES))

    def test_an_extreme_learning_rate_stops(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r'step \d+.*\blr\b'):
            make_trainer(tmp_path, max_steps=60, max_epochs=60).fit(
                OmniSatSegmentation(**TOLD, lr=1e6), make_loader(SAMPLES)
            )

    def test_nothing_observed_is_a_warning(self, tmp_path: Path) -> None:
        empty = [{k: v & False if k.startswith('valid_') else v for k, v in sample.items()} for sample in SAMPLES]
        with pytest.warns(UserWarning, match='without any of the modalities'):
            make_trainer(tmp_path, max_steps=1).fit(OmniSatSegmentation(**TOLD), make_loader(empty))

    def test_nan_is_not_saved(self, tmp_path: Path) -> None:
        task = OmniSatSegmentation(**TOLD)
        trainer = make_trainer(tmp_path, max_steps=1)
        trainer.fit(task, make_loader(SAMPLES))
        name = spoil(task, 'decoder')
        with pytest.raises(ValueError, match=name):
            trainer.save_checkpoint(tmp_path / 'nan.ckpt')
        assert not (tmp_path / 'nan.ckpt').exists()

    def test_a_scaler_may_skip_some_steps(self) -> None:
        watch = Watch()
        watch.loss = torch.tensor(0.5)
        for number in range(2 * SKIPPED):
            watch.begin(number, torch.tensor(torch.inf if number % SKIPPED else 1.0), 0.1, scaled=True)
        watch.begin(99, torch.tensor(1.0), 0.1, scaled=True)
        for number in range(SKIPPED):
            watch.begin(number, torch.tensor(torch.nan), 0.1, scaled=True)
        with pytest.raises(ValueError, match=r'loss.*0\.5'):
            watch.check(scaled=True)
