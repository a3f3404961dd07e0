# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Segmentation with fields as instances."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader
from torchgeo.main import main

from torchgeo_omnisat.batch import collate, drop
from torchgeo_omnisat.datamodules import PASTISMultimodalDataModule
from torchgeo_omnisat.datasets.common.arguments import SPLITS
from torchgeo_omnisat.datasets.pastis import CLASSES
from torchgeo_omnisat.evaluation.fields import FieldScores
from torchgeo_omnisat.losses import field_targets
from torchgeo_omnisat.modality import Modality
from torchgeo_omnisat.models.segmentation import FieldMaps
from torchgeo_omnisat.tasks import OmniSatSegmentation, omnisat
from torchgeo_omnisat.tasks.fields import LOGGED, SubsetFieldScores, find_fields, repeat_pixels

from ..processes import succeed
from .helpers import MODALITIES, TOLD, command, make_batch, make_datamodule, make_sample, make_trainer, read_csv

REAL = Path(__file__).parents[2].parent / 'shared/data/pastis-r-mini'
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def field_batch() -> dict[str, torch.Tensor]:
    """A batch with four square fields in each sample."""
    ids = 1 + torch.arange(16)[:, None] // 8 * 2 + torch.arange(16) // 8
    return {**make_batch(), 'instances': ids.expand(3, 16, 16).clone()}


@pytest.fixture(scope='module')
def task() -> OmniSatSegmentation:
    """A model with random weights, in evaluation mode."""
    return OmniSatSegmentation(**TOLD, instances=True).eval()


@pytest.fixture(scope='module')
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a command that asks only the task for instances."""
    folder = tmp_path_factory.mktemp('fields')
    words = ['--model.backbone', 'omnisat_tiny', '--model.instances', 'true', '--trainer.max_steps', '2']
    words += ['--trainer.limit_val_batches', '1']
    main(command(root, folder, 'fit', *words))
    return next(folder.rglob('*.ckpt'))


def test_checkpoint_rebuilds_its_model(trained: Path) -> None:
    task = omnisat.load_from_checkpoint(trained)
    assert task.with_instances
    assert task.hparams['background'] == 0
    state = torch.load(trained, weights_only=True)['state_dict']
    assert any(key.startswith('model.fields.') for key in state)
    assert all(torch.equal(value, state[key]) for key, value in task.state_dict().items())


def test_checkpoint_from_before_there_were_fields(fitted: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(fitted, weights_only=True)
    for name in ('instances', 'instance_weight', 'field_gsd', 'background'):
        del checkpoint['hyper_parameters'][name]
    torch.save(checkpoint, tmp_path / 'old.ckpt')
    old = OmniSatSegmentation.load_from_checkpoint(tmp_path / 'old.ckpt')
    assert not old.with_instances
    assert old.state_dict().keys() == checkpoint['state_dict'].keys()


@pytest.mark.parametrize('missing', [('field_gsd',), ('instances', 'field_gsd')])
def test_older_checkpoint_with_newer_arguments(missing: tuple[str, ...]) -> None:
    """The command line passes them to the task, as the checkpoint has none that replace them."""
    old = OmniSatSegmentation(**TOLD, instances='instances' not in missing)
    saved = {name: value for name, value in old.hparams.items() if name not in missing}
    task = OmniSatSegmentation(**TOLD, instances=True, field_gsd=5.0)
    task.on_load_checkpoint({'state_dict': old.state_dict(), 'hyper_parameters': saved})
    task.load_state_dict(old.state_dict())
    assert (task.with_instances, task.field_gsd, task.field_factor) == (old.with_instances, None, 1)


def test_test_scores_fields_of_every_subset(
    trained: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if the command line says otherwise: the model is that of the checkpoint."""
    main(command(root, tmp_path, 'test', '--ckpt_path', str(trained), '--model.instances', 'false'))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('Model: ')]
    assert line.startswith(f'Model: instances=True of {trained}, ')
    assert line.endswith('instead of instances=False of the command line.')
    table = next(tmp_path.rglob('subsets.csv'))
    rows = read_csv(table)
    (logged,) = read_csv(table.parent / 'metrics.csv')
    for row in rows:
        for column, name in LOGGED.items():
            value = logged.get(f'test_{name}/{row["subset"]}', 'nan')
            assert float(value) == pytest.approx(float(row[column]), abs=1e-6, nan_ok=True)
    assert float(logged['test_PanopticQuality']) == pytest.approx(float(rows[0]['pq']), abs=1e-6)
    classes = read_csv(table.parent / 'fields.csv')
    assert {line['subset'] for line in classes} == {row['subset'] for row in rows}
    assert {line['class'] for line in classes} <= set(CLASSES[1:-1])
    mean = [float(line['pq']) for line in classes if line['subset'] == rows[0]['subset'] and line['pq'] != 'nan']
    assert sum(mean) / len(mean) == pytest.approx(float(rows[0]['pq']), abs=1e-5)


def test_figures_show_outlines(task: OmniSatSegmentation) -> None:
    logits, maps = task.infer(field_batch())
    found = task.overlays(logits, maps)['fields']
    assert found.shape == (16, 16)
    assert found.dtype == torch.int64
    assert 'instances' in task._first_of(field_batch())


def test_perfect_maps_give_the_true_fields() -> None:
    """Two touching fields of one class stay two, and the class of a field is the most probable one in it."""
    ids = torch.zeros(2, 16, 24, dtype=torch.int64)
    ids[:, 2:14, 2:12], ids[:, 2:14, 12:22] = 3, 8
    targets = field_targets(ids)
    maps = FieldMaps(20.0 * torch.nn.functional.one_hot(targets.extent, 3).movedim(-1, 1), targets.distance)
    probabilities = torch.full((2, 3, 16, 24), 0.2)
    probabilities[:, 1] = 0.5
    probabilities[:, 2, 5, 5] = 1.0  # a single pixel of another class
    probabilities[1, 2, :, 12:] = 0.9
    observed = torch.ones(2, 16, 24, dtype=torch.bool)
    found = find_fields(probabilities, maps, observed)
    assert torch.equal(found.ids > 0, ids > 0)
    assert found.ids.max() == 2
    for number, true in ((1, 3), (2, 8)):
        assert (found.ids == number).ne(ids == true).sum() <= 4  # a tie at a saddle may go to either field
    assert found.classes[0][ids[0] > 0].eq(1).all()
    assert found.classes[1][found.ids[1] == 2].eq(2).all()
    scores = SubsetFieldScores(['s2'], 'all', 4, 0, 3, 10.0)
    mask = torch.where(ids > 0, 1, 0)
    there = torch.ones(2, 1, dtype=torch.bool)
    scores.update(('s2',), found, mask, ids, mask, there, there[:, 0])
    (row,) = scores.rows()
    assert row['pq'] == pytest.approx((2 * 3 / (4 + 3) + 0) / 2, abs=0.02)  # class 2 is a false alarm
    assert row['object_f1'] == 1
    assert row['components_pq'] == 0  # one component for two fields
    assert row['components_under_segmentation'] == 0.5
    size = int(torch.bincount(found.ids[0].flatten())[1:].min())
    assert find_fields(probabilities, maps, observed, smallest=size).ids.max() == 2
    assert not find_fields(probabilities, maps, observed, smallest=16 * 24).ids.any()
    crops = find_fields(probabilities, maps, observed, background=1)  # the crop of a map of fields
    assert crops.classes[ids > 0].ne(1).all()
    assert crops.classes[0][ids[0] == 0].eq(1).all()
    nothing = find_fields(probabilities, maps, ~observed)
    assert not nothing.ids.any()


def test_scored_fields_are_those_of_a_map() -> None:
    """Fields of less than 0.1 ha, 10 pixels of 10 m, are not scored, and the background is not their class."""
    task = OmniSatSegmentation(**TOLD, instances=True, background=1).eval()
    ids = torch.zeros(1, 16, 16, dtype=torch.int64)
    ids[:, 1:7, 1:7], ids[:, 9:12, 9:12] = 1, 2
    targets = field_targets(ids)
    maps = FieldMaps(20.0 * torch.nn.functional.one_hot(targets.extent, 3).movedim(-1, 1), targets.distance)
    logits = torch.zeros(1, task.hparams['num_classes'], 16, 16)
    logits[:, 1] = 5.0
    batch = {key: value[:1] for key, value in field_batch().items()}
    found = task.find_fields(logits, maps, batch, list(task.modalities))
    assert torch.equal(found.ids > 0, ids == 1)
    assert found.classes[found.ids > 0].ne(1).all()


def test_prediction_has_extent_and_distance(task: OmniSatSegmentation) -> None:
    batch = field_batch()
    batch['valid_s2'][1] = batch['valid_s1a'][1] = batch['valid_spot'][1] = False
    with pytest.warns(UserWarning, match='1 of 3 samples'):
        found: dict[str, Any] = task.predict_step(batch, 0)
    assert found['extent'].shape == (3, 3, 16, 16)
    assert found['distance'].shape == (3, 16, 16)
    assert torch.allclose(found['extent'].sum(1)[::2], torch.ones(2, 16, 16))
    assert 0 < found['distance'][::2].min() < found['distance'].max() < 1
    assert not found['extent'][1].any()
    assert not found['distance'][1].any()
    assert torch.equal(found['probabilities'], task.without_ignored(task(batch)).softmax(1))


def test_unobserved_tiles_of_an_area_are_zero(task: OmniSatSegmentation) -> None:
    found: dict[str, Any] = task.predict_step({'window': torch.tensor([[0, 0, 16, 16]])}, 0)
    assert found['extent'].shape == (1, 3, 16, 16)
    assert not found['extent'].any()
    assert not found['distance'].any()
    tile = {**drop(make_batch(), [MODALITIES['spot']]), 'window': torch.tensor([[0, 0, 16, 16]] * 3)}
    assert torch.allclose(task.predict_step(tile, 0)['extent'].sum(1), torch.ones(3, 16, 16))  # type: ignore[union-attr]


@pytest.mark.parametrize('settings', [{}, {'subset_weight': 1.0}, {'experts': False}])
def test_loss_of_the_head_has_its_weight(settings: dict[str, Any]) -> None:
    losses = []
    for weight in (0.0, 1.0, 2.0):
        torch.manual_seed(0)
        task = OmniSatSegmentation(
            **TOLD, instances=True, instance_weight=weight, modality_dropout=0.0, **settings
        ).eval()
        losses.append(task.learn(field_batch())[1].item())
    assert losses[1] - losses[0] > 0.5
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-4)


def test_absent_modality_has_no_influence_on_fields(task: OmniSatSegmentation) -> None:
    batch = field_batch()
    batch['valid_spot'][:] = False
    _, maps = task.infer(batch)
    _, without = task.infer(drop(batch, [MODALITIES['spot']]))
    assert maps is not None
    assert without is not None
    assert torch.allclose(maps.extent, without.extent, atol=1e-5)
    _, there = task.infer(field_batch())
    assert there is not None
    assert (maps.distance - there.distance).abs().max() > 1e-4  # the last level of the decoder has the finest sensor


def test_a_batch_without_instances_is_refused(task: OmniSatSegmentation) -> None:
    with pytest.raises(ValueError, match=r'instances of OmniSatSegmentation.*mask'):
        task.learn(make_batch())
    with pytest.raises(ValueError, match=r'instances.*\(3, 16, 15\).*\(3, 16, 16\)'):
        task.learn({**make_batch(), 'instances': torch.zeros(3, 16, 15, dtype=torch.long)})


def test_a_model_without_the_head_is_refused() -> None:
    task = OmniSatSegmentation(**TOLD)
    with pytest.raises(ValueError, match='instances=True'):
        task.model.decode_fields(task.model.backbone(make_batch()))


@pytest.mark.skipif(not REAL.exists(), reason='no real data beside the checkout')
def test_real_parcels(tmp_path: Path) -> None:
    data = PASTISMultimodalDataModule(root=str(REAL), batch_size=1, modalities=('s2',), max_dates=3)
    task = OmniSatSegmentation('omnisat_tiny', instances=True)
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=1)
    trainer.fit(task, data)
    trainer.validate(task, data, verbose=False)
    assert trainer.callback_metrics['val_loss'].isfinite()
    trainer.test(task, data, verbose=False)
    scores = trainer.callback_metrics
    assert 0 <= scores['test_PanopticQuality'] <= 1
    assert scores['test_PanopticQuality/s2'] == scores['test_PanopticQuality']


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason='no real data beside the checkout')
def test_a_real_tile_is_learnt(tmp_path: Path) -> None:
    """Fields of the training tile are nearly as good as with the true maps of their boundaries."""
    settings = {'dihedral': False, 'temporal_dropout': 0.0, 'jitter': 0.0}
    data = PASTISMultimodalDataModule(root=str(REAL), batch_size=1, modalities=('s2',), instances=True, **settings)
    data.folds = dict.fromkeys(SPLITS, (3,))
    seed_everything(0)
    task = OmniSatSegmentation('omnisat_tiny', instances=True, modality_dropout=0.0)
    trainer = make_trainer(tmp_path, max_steps=80, limit_val_batches=0)
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    (row,) = read_csv(next(tmp_path.rglob('subsets.csv')))
    found = {name: float(row[name]) for name in LOGGED}
    assert all(0 <= score <= 1 for score in found.values())
    sample = data.test_dataset[0]
    ids, mask, void = sample['instances'][None], sample['mask'][None], data.ignore_index
    assert mask.eq(void).any()
    targets = field_targets(ids)
    maps = FieldMaps(20.0 * torch.nn.functional.one_hot(targets.extent, 3).movedim(-1, 1), targets.distance)
    probabilities = torch.nn.functional.one_hot(mask, void + 1).movedim(-1, 1)[:, :void].float()
    perfect = find_fields(probabilities, maps, torch.ones_like(mask, dtype=torch.bool), 10, 0)
    scores = SubsetFieldScores(['s2'], 'all', void + 1, 0, void, 10.0)
    there = torch.ones(1, 1, dtype=torch.bool)
    scores.update(('s2',), perfect, mask, ids, mask, there, there[:, 0])
    (expected,) = scores.rows()
    assert 0.9 < float(row['overall_accuracy']) <= 1
    assert found['object_f1'] > 0.75 * expected['object_f1'] > 0.4
    assert found['pq'] > 0.7 * expected['pq'] > 0.2
    assert found['boundary_f1'] > 0.9
    lines = read_csv(next(tmp_path.rglob('fields.csv')))
    assert lines
    assert {line['class'] for line in lines} <= set(CLASSES[1:-1])


def test_the_datamodule_reads_instances_for_the_task(root: Path) -> None:
    assert 'instances' not in make_datamodule(root).make_dataset('train')[0]
    assert 'instances' in make_datamodule(root, instances=True).make_dataset('train')[0]


class NoisyFields(OmniSatSegmentation):
    """A model that knows the fields of each sample except for noise, which depends on its logits."""

    def infer_from(self, out: Any, opinions: Any = None) -> Any:
        logits, maps = super().infer_from(out, opinions)
        targets = field_targets(field_batch()['instances'][:1].expand(len(logits), 16, 16))
        extent = 4.0 * torch.nn.functional.one_hot(targets.extent, 3).movedim(-1, 1) + 8 * logits[:, :3]
        return logits, maps._replace(extent=extent, distance=(targets.distance + maps.distance) / 2)


def score_fields(folder: Path, processes: int) -> None:
    """Test on four samples, two of which lack sensors, such that one rank has no radar image."""
    names = [('s2',), ('spot', 's1a'), ('s2', 'spot'), ('s2', 's1a', 'spot')]
    samples = [make_sample(index, some) for index, some in enumerate(names)]
    for index, sample in enumerate(samples):
        sample['instances'] = field_batch()['instances'][0].roll(2 * index, 1)
    loader = DataLoader(samples, collate_fn=lambda some: collate(some, MODALITIES))  # type: ignore[arg-type, var-annotated]
    strategy = 'ddp_fork' if processes > 1 else 'auto'
    torch.manual_seed(0)
    task = NoisyFields(**TOLD, instances=True)
    task.allow_random = True
    make_trainer(folder, devices=processes, strategy=strategy).test(task, loader, verbose=False)


def test_two_processes_score_fields_as_one(tmp_path: Path) -> None:
    tables = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        succeed(folder, score_fields, folder, processes)
        tables.append([next(folder.rglob(name)).read_text() for name in ('subsets.csv', 'fields.csv')])
    assert tables[0] == tables[1]
    rows = read_csv(next(tmp_path.rglob('subsets.csv')))
    assert len(rows) == 7
    for column in LOGGED:
        assert len({row[column] for row in rows}) > 2
    assert 0 < float(rows[0]['pq']) < float(rows[0]['object_f1']) < 1


#: A sensor with feature maps of 5 m, finer than the labels.
SPOT = Modality('spot', ('R',), 2.5, False, 'optical', 'dn')


def finer_batch(count: int = 2) -> dict[str, torch.Tensor]:
    """Samples with three fields at 5 m, whose borders are not those of pixels of 10 m."""
    batch = {key: value[:count] for key, value in make_batch(count).items()}
    batch['image_spot'] = batch['image_spot'].repeat_interleave(2, 2).repeat_interleave(2, 3)
    ids = torch.ones(32, 32, dtype=torch.int64)
    ids[15:, :13], ids[15:, 13:] = 2, 3
    return {**batch, 'instances': ids.expand(count, 32, 32).clone()}


@pytest.fixture(scope='module')
def finer() -> OmniSatSegmentation:
    """A model with random weights and maps of fields at 5 m, in evaluation mode."""
    torch.manual_seed(0)
    told = TOLD | {'modalities': {**MODALITIES, 'spot': SPOT}}
    return OmniSatSegmentation(**told, instances=True, field_gsd=5.0, modality_dropout=0.0).eval()


class TestFinerBoundaries:
    """``field_gsd``: maps of fields at 5 m, classes at 10 m."""

    def test_prediction(self, finer: OmniSatSegmentation) -> None:
        batch = finer_batch(3)
        batch['valid_spot'][1:] = False
        batch['valid_s2'][2] = batch['valid_s1a'][2] = False
        with pytest.warns(UserWarning, match='1 of 3 samples'):
            found: dict[str, Any] = finer.predict_step(batch, 0)
        assert found['probabilities'].shape == (3, 5, 16, 16)
        assert found['extent'].shape == (3, 3, 32, 32)
        assert found['distance'].shape == (3, 32, 32)
        assert torch.allclose(found['extent'].sum(1)[:2], torch.ones(2, 32, 32))  # also without the finest sensor
        assert not found['extent'][2].any()
        assert not found['distance'][2].any()
        empty: dict[str, Any] = finer.predict_step({'window': torch.tensor([[0, 0, 16, 16]])}, 0)
        assert empty['extent'].shape == (1, 3, 32, 32)
        assert empty['probabilities'].shape == (1, 5, 16, 16)

    def test_only_the_finest_sensor_has_details(self, finer: OmniSatSegmentation) -> None:
        """A pixel of SPOT changes boundaries next to it, and no other sensor is in the last block."""
        assert finer.model.fields.skips[-1].levels == {'spot': 0}
        batch = finer_batch(1)
        maps = finer.infer(batch)[1].distance
        batch['image_spot'][:, :, 32, 32] += 30
        change = (finer.infer(batch)[1].distance - maps).abs()[0]
        assert change[14:19, 14:19].mean() > 5 * change.mean()

    def test_loss(self, finer: OmniSatSegmentation) -> None:
        batch = finer_batch()
        finer.learn(batch)[1].backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in finer.model.fields.parameters())
        finer.zero_grad()
        batch['mask'][:, :4] = 4  # void
        logits, maps = finer.infer(batch)
        loss = finer.loss(logits, maps, batch)
        for rows, same in ((8, True), (9, False)):
            extent, distance = maps.extent.clone(), maps.distance.clone()
            extent[:, 0, :rows] += 5
            distance[:, :rows] = 0
            assert (finer.loss(logits, FieldMaps(extent, distance), batch) == loss) == same

    def test_instances_at_the_gsd_of_labels_are_repeated(self, finer: OmniSatSegmentation) -> None:
        batch = {**finer_batch(), 'instances': field_batch()['instances'][:2]}
        assert torch.equal(finer.instances_of(batch)[:, 1::2, ::2], batch['instances'])
        assert finer.instances_of(batch).shape == (2, 32, 32)
        batch['instances'] = torch.zeros(2, 48, 48, dtype=torch.int64)
        with pytest.raises(ValueError, match=r'\(2, 48, 48\).*\(2, 16, 16\).*\(2, 32, 32\)'):
            finer.learn(batch)

    def test_scores(self, finer: OmniSatSegmentation) -> None:
        """Fields and baseline are compared with the true fields at 5 m."""
        batch, names = finer_batch(), ['s2', 's1a', 'spot']
        targets = field_targets(batch['instances'])
        extent = 20.0 * torch.nn.functional.one_hot(targets.extent, 3).movedim(-1, 1)
        logits = torch.zeros(2, 5, 16, 16)
        logits[:, 1] = 5.0
        batch['mask'][:] = 1
        found = finer.find_fields(logits, FieldMaps(extent, targets.distance), batch, names)
        assert [len(ids.unique()) for ids in found.ids] == [3, 3]
        assert found.classes.eq(1).all()
        assert not finer._fields_of(logits, FieldMaps(extent, targets.distance), found.ids > 1000).ids.any()
        small = torch.zeros(1, 32, 32, dtype=torch.int64)  # 0.12 and 0.0875 ha
        small[:, 2:10, 2:8], small[:, 12:19, 12:17] = 1, 2
        parts = field_targets(small)
        maps = FieldMaps(20.0 * torch.nn.functional.one_hot(parts.extent, 3).movedim(-1, 1), parts.distance)
        assert torch.equal(finer._fields_of(logits[:1], maps, small >= 0).ids, small * (small == 1))
        finer.subset_scores = finer.make_scores(names, 'all')
        finer.field_scores = finer.make_field_scores(names, 'all')
        assert finer.field_scores.smallest == 40
        output, there = (logits, FieldMaps(extent, targets.distance)), torch.ones(2, 3, dtype=torch.bool)
        finer.score_subset(tuple(names), output, batch, there)
        row = finer.field_scores.rows()[0]
        assert row['object_f1'] == row['boundary_f1'] == 1
        assert row['sq'] > 0.97
        assert row['components_object_f1'] == pytest.approx(2 / (3 + 1) * (512 / 1024 > 0.5))

    @pytest.mark.slow
    def test_borders_inside_of_pixels_of_the_labels_are_learnt(self) -> None:
        """Two fields that differ in SPOT alone; without it, their border is unknown."""

        def draw(count: int, seed: int) -> dict[str, torch.Tensor]:
            generator = torch.Generator().manual_seed(seed)
            border, bright = (torch.rand(count, size, 1, generator=generator) for size in (1, 2))
            bright[:, 1] = (bright[:, 0] + 0.5) % 1
            batch = finer_batch(count)
            batch['instances'] = (1 + (torch.arange(32) >= 8 + 17 * border).long()).expand(count, 32, 32).clone()
            image = bright[..., 0].gather(1, batch['instances'].flatten(1) - 1).view(count, 1, 32, 32)
            batch['image_spot'] = 2 * repeat_pixels(image, 2)
            for key in ('image_s2', 'image_s1a', 'image_spot'):
                batch[key] = batch[key] * (key == 'image_spot')
                batch[key] += 0.1 * torch.randn(batch[key].shape, generator=generator)
            batch['mask'][:] = 1
            return batch

        torch.manual_seed(0)
        told = TOLD | {'modalities': {**MODALITIES, 'spot': SPOT}}
        task = OmniSatSegmentation(**told, instances=True, field_gsd=5.0, modality_dropout=0.0)
        optimizer = torch.optim.AdamW(task.parameters(), 4e-3)
        for step in range(80):
            optimizer.zero_grad()
            task.learn(draw(4, step))[1].backward()
            optimizer.step()
        batch, scores = draw(8, 1000), []
        for names in (['s2', 's1a', 'spot'], ['s2', 's1a']):
            batch['valid_spot'][:] = 'spot' in names
            with torch.no_grad():
                found = task.eval().find_fields(*task.infer(batch), batch, names)
            metric = FieldScores()
            metric.update(found.ids, found.classes, batch['instances'], torch.ones_like(found.ids))
            scores.append(float(metric.compute()['boundary_f1']))
        assert scores[0] > 0.95
        assert scores[1] < 0.6

    def test_trained_with_landscapes_and_loaded_again(self, root: Path, tmp_path: Path) -> None:
        """The datamodule draws the parcels at the finer GSD for the task, which the checkpoint states."""
        task = OmniSatSegmentation('omnisat_tiny', instances=True, field_gsd=5.0)
        data = make_datamodule(root, modalities=('s2', 'spot'))
        trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0, limit_test_batches=1)
        trainer.fit(task, data)
        assert data.train_dataset[0]['instances'].shape == (64, 64)
        trainer.save_checkpoint(tmp_path / 'finer.ckpt')
        loaded = OmniSatSegmentation.load_from_checkpoint(tmp_path / 'finer.ckpt')
        assert loaded.field_factor == 2
        assert all(torch.equal(value, task.state_dict()[key]) for key, value in loaded.state_dict().items())
        assert any(key.startswith('model.fields.skips.') for key in loaded.state_dict())
        trainer.test(loaded, make_datamodule(root, modalities=('s2', 'spot')), verbose=False)
        assert 0 <= trainer.callback_metrics['test_BoundaryF1'] <= 1

    @pytest.mark.parametrize('gsd', [3.0, 20.0, 0.0, -5.0, 0.1])
    def test_a_gsd_that_is_no_part_of_that_of_the_labels(self, gsd: float) -> None:
        with pytest.raises(ValueError, match=f'field_gsd is {gsd} m.*10 m'):
            OmniSatSegmentation(**TOLD, instances=True, field_gsd=gsd)

    def test_without_fields(self) -> None:
        with pytest.raises(ValueError, match=r'field_gsd is 5\.0 m.*instances=True'):
            OmniSatSegmentation(**TOLD, field_gsd=5.0)
