# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import random
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn
from torchgeo.main import main

import torchgeo_omnisat.plugin  # noqa: F401 (short names resolve among classes that are imported)
from tests.tasks.helpers import MODALITIES, TOLD, command, make_datamodule, make_loader, make_sample, make_trainer
from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.evaluation import ProbeCallback
from torchgeo_omnisat.evaluation.probe import Embedded, evaluating, monthly_means, patch_majority
from torchgeo_omnisat.modality import Modality
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation

SUBSETS = ('s1a+s2', 's2', 's1a')


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('landscapes')


def fit(root: Path, folder: Path, task: Any, *callbacks: ProbeCallback, **kwargs: Any) -> Trainer:
    trainer = make_trainer(folder, callbacks=list(callbacks), max_steps=-1, limit_val_batches=1, **kwargs)
    trainer.fit(task, make_datamodule(root, size=16))
    return trainer


@pytest.mark.parametrize('task', [OmniSatSegmentation, OmniSatPretraining])
def test_logs_every_subset_and_leaves_training_alone(root: Path, tmp_path: Path, task: type[Any]) -> None:
    states, logged = [], []
    for callbacks in ([], [ProbeCallback(every_n_epochs=2, max_tiles=4)]):
        seed_everything(1, verbose=False)
        model = task(backbone='omnisat_tiny')
        trainer = fit(root, tmp_path, model, *callbacks, max_epochs=3)
        states.append(model.state_dict())
        logged.append({name for name in trainer.callback_metrics if name.startswith('probe')})
        assert model.training
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    kinds = ('patch_knn', 'patch_linear', 'tile_knn', 'tile_linear')
    assert logged == [set(), {f'probe_{kind}/{subset}' for kind in kinds for subset in SUBSETS}]


def test_pixels_of_dense_embeddings_beside_images(root: Path, tmp_path: Path) -> None:
    model = OmniSatPretraining('omnisat_tiny', embedding_dim=8)
    trainer = fit(root, tmp_path, model, ProbeCallback(max_tiles=4, max_patches=300, subsets=['s2']), max_epochs=1)
    found = {name.partition('/')[0] for name in trainer.callback_metrics if name.startswith('probe_pixel')}
    assert found == {'probe_pixel_knn', 'probe_pixel_linear', 'probe_pixel_images_knn'}


def test_pixels_are_bounded_observed_and_labelled() -> None:
    task = OmniSatPretraining('omnisat_tiny', MODALITIES, 40.0, embedding_dim=8)
    samples = [make_sample(0), make_sample(1, ('spot',))]
    samples[1]['mask'][:8] = 4  # the ignored label
    batch = collate(samples, MODALITIES)
    probe, seen = ProbeCallback(max_tiles=1, max_patches=10), {}
    with torch.no_grad():
        out = task.model.backbone(batch)
        size, classes = probe._pixels(task.model.dense, out, batch['mask'], 4)
        assert size == (16, 16)
        assert (classes >= 0).sum(1).tolist() == [40, 40]
        assert (classes[1, :128] == -1).all()
        assert torch.equal(classes[classes >= 0], batch['mask'].flatten(1)[classes >= 0])
        for names in (['s2'], ['s2', 'spot']):
            part = task.model.backbone.restrict(out, names)
            seen[len(names)] = probe._of_pixels(
                task.model.dense, part, batch, task.modalities, size, classes, nullcontext
            )
    assert seen[1]['pixel'][0].shape == (40, 8)  # nothing observed the second tile
    assert seen[2]['pixel'][0].shape == (80, 8)
    assert seen[2]['pixel_images'][0].shape == (80, 12 * 3 + 1)


def test_monthly_means() -> None:
    image = torch.tensor([1.0, 3.0, torch.nan, 5.0, 100.0]).view(1, 5, 1, 1, 1)
    dates = torch.tensor([[0, 20, 40, 400, 200]])  # January twice, February without a value, February, July
    batch = {'image_x': image, 'dates_x': dates, 'valid_x': torch.tensor([[True, True, True, True, False]])}
    means = monthly_means(batch, {'x': Modality('x', ('a',), 10, True)}, (1, 1))
    assert means.flatten().tolist() == [2, 5, *[0] * 10]


class Oracle(nn.Module):
    """A backbone whose first modality tells the class of each patch, and whose second tells nothing."""

    def forward(self, batch: dict[str, Tensor]) -> Any:
        told = patch_majority(batch['mask'], (4, 4), None)
        noise = torch.rand(len(told), 16, 6, generator=torch.Generator().manual_seed(0))
        maps = {'knows': F.one_hot(told, 6).float(), 'guesses': noise}
        return self.restrict(SimpleNamespace(grid=(4, 4), maps=maps), maps)

    def restrict(self, out: Any, names: Any) -> Any:
        maps = {name: out.maps[name] for name in names}
        return SimpleNamespace(grid=(4, 4), maps=maps, fused=maps.get('knows', maps.get('guesses')))

    def observed_patches(self, maps: dict[str, Tensor], grid: tuple[int, int]) -> Tensor:
        return torch.ones(len(next(iter(maps.values()))), 16, len(maps), dtype=torch.bool)


class Veiled(Oracle):
    """One that knows a patch in three of a tile, and of the others holds what would spoil everything."""

    def restrict(self, out: Any, names: Any) -> Any:
        part = super().restrict(out, names)
        part.fused = part.fused.masked_fill(~self.observed_patches(part.maps, (4, 4))[..., :1], 1e6)
        return part

    def observed_patches(self, maps: dict[str, Tensor], grid: tuple[int, int]) -> Tensor:
        return super().observed_patches(maps, grid) & (torch.arange(16) % 3 == 0)[:, None]


class Blocks:
    """Tiles of 16 patches of one class each, five classes and a sixth that is ignored."""

    def __init__(self, seed: int, count: int = 20) -> None:
        classes = torch.randint(0, 6, (count, 4, 4), generator=torch.Generator().manual_seed(seed))
        self.masks = classes.repeat_interleave(3, 1).repeat_interleave(3, 2)

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002 (a dataset that draws)
        label = torch.isin(torch.arange(5), self.masks[index]).float()
        return {'mask': self.masks[index], 'label': label}


def probed(probe: ProbeCallback, train: Any, val: Any, **parts: Any) -> dict[str, float]:
    def stack(samples: Any) -> Any:
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    data = SimpleNamespace(
        train_dataset=train, val_dataset=val, batch_size=4, collate_fn=stack, aug=lambda same: same, ignore_index=5
    )
    trainer: Any = SimpleNamespace(datamodule=data, precision_plugin=Trainer(logger=False).precision_plugin)
    module: Any = nn.Module()
    module.model, module.device = nn.Module(), torch.device('cpu')
    module.model.backbone = parts.pop('backbone', Oracle())
    vars(module).update(parts)
    return probe.probe(trainer, module)


def test_scores_what_embeddings_tell() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    scores = probed(ProbeCallback(), Blocks(0), Blocks(1))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    for kind in ('knn', 'linear'):
        assert scores[f'probe_patch_{kind}/knows'] == scores[f'probe_patch_{kind}/guesses+knows'] == 1
        assert scores[f'probe_patch_{kind}/guesses'] < 0.5
    assert {name.split('/')[0] for name in scores} == {
        f'probe_{kind}_{how}' for kind in ('patch', 'tile') for how in ('knn', 'linear')
    }


def test_number_of_tiles_and_patches_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    sizes: list[int] = []
    monkeypatch.setattr(Blocks, '__getitem__', lambda self, i, get=Blocks.__getitem__: asked.append(i) or get(self, i))
    probe = ProbeCallback(max_tiles=3, max_patches=7)
    monkeypatch.setattr(probe, '_score', lambda fitted, scored: sizes.extend((len(fitted.x), len(scored.x))) or {})
    probed(probe, Blocks(0), Blocks(1))
    assert len(asked) == 6
    assert set(sizes) == {7, 3}


def test_what_was_not_seen_or_has_no_class_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, found = ProbeCallback(), list[tuple[Embedded, Embedded]]()
    monkeypatch.setattr(probe, '_score', lambda *pair: found.append(pair) or {})
    train, val = Blocks(0), Blocks(1, count=7)
    probed(probe, train, val, backbone=Veiled())
    for data, parts in zip((train, val), zip(*found, strict=True), strict=True):
        known = int((data.masks[:, ::3, ::3].flatten(1)[:, ::3] != 5).sum())
        assert {len(part.x) for part in parts} == {known, len(data)}
        assert all(abs(part.x).max() <= 1 for part in parts), 'a tile is the mean of what was seen'


def test_units_are_those_of_the_model() -> None:
    asked: list[Any] = []
    probed(ProbeCallback(), Blocks(0, 4), Blocks(1, 4), renormalise=lambda batch: asked.append(batch) or batch)
    assert len(asked) == 2


def test_the_seed_chooses_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Blocks, '__getitem__', lambda self, i, get=Blocks.__getitem__: asked.append(i) or get(self, i))
    for seed in (0, 0, 1):
        probed(ProbeCallback(max_tiles=3, seed=seed), Blocks(0), Blocks(1))
    assert asked[:6] == asked[6:12] != asked[12:]
    with pytest.raises(ValueError, match='seed is -1, expected an integer, at least 0'):
        ProbeCallback(seed=-1)


def test_epochs_are_counted_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, epochs = ProbeCallback(every_n_epochs=2), list[int]()
    monkeypatch.setattr(probe, 'probe', lambda trainer, module: epochs.append(trainer.current_epoch) or {})
    for epoch in range(4):
        strategy = SimpleNamespace(broadcast=lambda scores: scores)
        trainer: Any = SimpleNamespace(current_epoch=epoch, strategy=strategy, is_global_zero=True)
        probe.on_train_epoch_end(trainer, nn.Identity())  # type: ignore[arg-type]
    assert epochs == [1, 3]


def test_every_class_counts_alike() -> None:
    x, y = np.eye(2, dtype=np.float32)[[0] * 8 + [1] * 2], np.array([0] * 8 + [1] * 2)
    scores = ProbeCallback(neighbours=1)._score(Embedded(x, y), Embedded(x[:9], np.array([0] * 7 + [1] * 2)))
    assert scores['knn'] == pytest.approx((14 / 15 + 2 / 3) / 2)


def test_nothing_to_tell_apart_is_not_scored() -> None:
    x, probe = np.eye(4, dtype=np.float32), ProbeCallback()
    same, other, none = np.zeros(4, np.int64), np.arange(4), np.zeros((4, 3), np.int64)
    assert probe._score(Embedded(x, same), Embedded(x, other)) == {}
    assert probe._score(Embedded(x, other), Embedded(x[:0], other[:0])) == {}
    assert probe._score(Embedded(x, none), Embedded(x, none)) == {}


def test_majority_matches_naive_loop() -> None:
    mask = torch.randint(0, 4, (3, 12, 12), generator=torch.Generator().manual_seed(2))
    mask[0, :4, :4] = 3
    mask[1, 0, 0] = -1
    found = patch_majority(mask, (3, 3), 3)
    for b in range(3):
        for n in range(9):
            patch = mask[b, n // 3 * 4 : n // 3 * 4 + 4, n % 3 * 4 : n % 3 * 4 + 4]
            counts = [int((patch == k).sum()) for k in range(3)]
            assert (found[b, n] == -1) if not any(counts) else (counts[found[b, n]] == max(counts))
    assert found[0, 0] == -1


class Many(Oracle):
    """A backbone of six modalities."""

    modalities = tuple('abcdef')

    def forward(self, batch: dict[str, Tensor]) -> Any:
        told = F.one_hot(patch_majority(batch['mask'], (4, 4), None), 6).float()
        return self.restrict(SimpleNamespace(grid=(4, 4), maps=dict.fromkeys(self.modalities, told)), self.modalities)

    def restrict(self, out: Any, names: Any) -> Any:
        maps = {name: out.maps[name] for name in names}
        return SimpleNamespace(grid=(4, 4), maps=maps, fused=next(iter(maps.values())))


def test_subsets_of_many_modalities() -> None:
    """All six, all but one, single ones: 13 of 63."""
    few = Blocks(0, 4)
    names = {name.split('/')[1] for name in probed(ProbeCallback(), few, few, backbone=Many())}
    assert len(names) == 13
    assert {'a+b+c+d+e+f', 'a+b+c+d+e', 'a'} <= names
    chosen = probed(ProbeCallback(subsets=['a+b']), few, few, backbone=Many())
    assert {name.split('/')[1] for name in chosen} == {'a+b+c+d+e+f', 'a+b'}


def test_modes_come_back_as_they_were() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    module[1].eval()
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, True, False, False]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'max_tiles.*\b0\b'):
        ProbeCallback(max_tiles=0)
    trainer = make_trainer(tmp_path, callbacks=[ProbeCallback()])
    with pytest.raises(ValueError, match=r"\['train_dataset', .*None"):
        trainer.fit(OmniSatSegmentation(**TOLD), make_loader([make_sample(0)]))


def test_continuous_labels_are_refused(tmp_path: Path) -> None:
    datamodule = SimpleNamespace(train_dataset=[], val_dataset=[], collate_fn=list, aug=list, continuous=True)
    task: Any = SimpleNamespace(model=SimpleNamespace(backbone=1))
    trainer: Any = SimpleNamespace(datamodule=datamodule, strategy=None)
    with pytest.raises(ValueError, match='continuous'):
        ProbeCallback().on_fit_start(trainer, task)


def test_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ['--trainer.callbacks', 'torchgeo_omnisat.evaluation.ProbeCallback', '--trainer.callbacks.max_tiles', '7']
    with pytest.raises(SystemExit) as stopped:
        main(command(root, tmp_path, 'fit', *words, '--print_config'))
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert 'class_path: torchgeo_omnisat.evaluation.ProbeCallback' in said
    assert 'max_tiles: 7' in said
