# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The location as a modality of tasks: dropout, checkpoints, scores without it."""

from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from torchgeo_omnisat import Modality
from torchgeo_omnisat.losses.negatives import NegativeDistances
from torchgeo_omnisat.modality import LOCATION
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.tasks.backbone import export_hub, load_backbone, load_hub

from .helpers import MODALITIES, TOLD, make_batch, make_datamodule, make_loader, make_sample, make_trainer

LOCATED: dict[str, Any] = TOLD | {'backbone_args': {'encoders': {'location': 'scaled'}}}


def batch_with_places(count: int = 3) -> dict[str, torch.Tensor]:
    places = torch.stack([torch.linspace(0, 20, count), torch.linspace(40, 50, count)], 1).double()
    return make_batch(count) | {'coordinates': places}


def test_location_among_the_modalities_becomes_an_encoder() -> None:
    listed = OmniSatSegmentation(**TOLD | {'modalities': [*MODALITIES.values(), Modality.location()]})
    assert listed.hparams['backbone_args'] == LOCATED['backbone_args']
    assert list(listed.modalities) == list(MODALITIES)
    assert listed.model.backbone.location is not None


def test_fraction_of_the_dropout_and_known_flags() -> None:
    torch.manual_seed(0)
    batch = batch_with_places(400)
    for chance, fraction in ((0.5, 0.5), (0.0, 1.0), (1.0, 0.0)):
        task = OmniSatSegmentation(**LOCATED, location_dropout=chance)
        flags = task.drop_location(batch)['valid_location']
        assert flags.shape == (400, 1)
        assert flags.float().mean().item() == pytest.approx(fraction, abs=0.1 if chance == 0.5 else 0)
    assert OmniSatSegmentation(**LOCATED).hparams['location_dropout'] == 0.5
    withheld = batch | {'valid_location': torch.zeros(400, 1, dtype=torch.bool)}
    assert not OmniSatSegmentation(**LOCATED).drop_location(withheld)['valid_location'].any()


def test_a_model_without_location_draws_no_random_number() -> None:
    task, batch = OmniSatSegmentation(**TOLD), batch_with_places()
    state = torch.get_rng_state()
    assert task.drop_location(batch) is batch
    assert torch.equal(torch.get_rng_state(), state)


def test_warns_of_data_without_coordinates_and_of_a_bad_probability() -> None:
    for told in (LOCATED, TOLD | {'backbone_args': {'context_degrees': 10.0}}):
        task, batch = OmniSatSegmentation(**told), make_batch()
        with pytest.warns(UserWarning, match='coordinates'):  # training, evaluation and prediction
            assert task.renormalise(batch) is batch
        assert task.drop_location(batch) is batch
    with pytest.raises(ValueError, match='location_dropout is 2'):
        OmniSatSegmentation(**LOCATED, location_dropout=2)


def test_training_reduces_dependence_as_dropout_says() -> None:
    """The whole loss of a step with location_dropout=1 is that of the same model without coordinates."""
    task = OmniSatSegmentation(**LOCATED, location_dropout=1.0, modality_dropout=0.0)
    batch = batch_with_places()
    without = {key: value for key, value in batch.items() if key != 'coordinates'}
    torch.testing.assert_close(task.learn(task.drop_location(batch))[1], task.learn(without)[1], rtol=0, atol=1e-5)
    kept = OmniSatSegmentation(**LOCATED, location_dropout=0.0, modality_dropout=0.0)
    kept.load_state_dict(task.state_dict())
    assert abs(kept.learn(kept.drop_location(batch))[1] - task.learn(without)[1]) > 1e-4


@pytest.mark.parametrize('kind', ['export', 'checkpoint'])
def test_backbone_is_handed_over_part_by_part(tmp_path: Path, kind: str) -> None:
    task = OmniSatSegmentation(**LOCATED)
    if kind == 'export':
        export_hub(task, tmp_path / 'hub')
        loaded = load_hub(tmp_path / 'hub')
        batch = batch_with_places()
        torch.testing.assert_close(loaded(batch).fused, task.eval().model.backbone(batch).fused)
        return
    plain = OmniSatSegmentation(**TOLD)
    torch.save(plain.model.backbone.state_dict(), tmp_path / 'plain.pt')
    torch.save(task.model.backbone.state_dict(), tmp_path / 'located.pt')
    report = load_backbone(task.model.backbone, tmp_path / 'plain.pt', task.modalities)
    assert (report.new, report.ignored) == (['location'], [])
    report = load_backbone(plain.model.backbone, tmp_path / 'located.pt', plain.modalities)
    assert (report.new, report.ignored) == ([], ['location'])


def test_fit_and_test_with_the_score_without_location(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = {'encoders': {'location': 'scaled', 's2': 'ltae', 's1a': 'ltae'}}
    task = OmniSatSegmentation(backbone='omnisat_tiny', backbone_args=args)
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=1, limit_test_batches=1)
    trainer.fit(task, make_datamodule(root))
    trainer.save_checkpoint(tmp_path / 'last.ckpt')
    loaded = OmniSatSegmentation.load_from_checkpoint(tmp_path / 'last.ckpt')
    assert loaded.model.backbone.location is not None
    decoded: list[Any] = []
    decode = loaded.infer_from
    loaded.infer_from = lambda out, *more: decoded.append(out.location) or decode(out, *more)
    (scores,) = make_trainer(tmp_path, limit_test_batches=1).test(loaded, make_datamodule(root), verbose=False)
    assert 'test_AverageJaccardIndex_without_location' in scores
    assert decoded[-1] is None
    assert all(location.known.all() for location in decoded[:-1])


@pytest.mark.parametrize('arguments', [LOCATED['backbone_args'], {'context_degrees': 10.0}])
def test_score_without_location_of_data_without_coordinates(arguments: dict[str, Any], tmp_path: Path) -> None:
    """It is the only score that there is, and not NaN; of a model with prototypes of regions, too."""
    task = OmniSatSegmentation(**TOLD | {'backbone_args': arguments})
    task.load_state_dict(task.state_dict())  # not random
    with pytest.warns(UserWarning, match='no coordinates'):
        (scores,) = make_trainer(tmp_path).test(task, make_loader([make_sample(i) for i in range(2)]), verbose=False)
    name = 'test_AverageJaccardIndex'
    assert scores[f'{name}_without_location'] == scores[name]


class TestPretraining:
    """Contrast with the location, and its dropout in the fusion."""

    KNOWN: ClassVar[dict[str, Any]] = {
        **{key: TOLD[key] for key in ('backbone', 'modalities', 'patch_size')},
        'backbone_args': {'encoders': {'location': 'scaled', 's2': 'ltae', 's1a': 'ltae'}},
    }

    def make(self, **kwargs: Any) -> OmniSatPretraining:
        torch.manual_seed(0)
        return OmniSatPretraining(**self.KNOWN | kwargs)

    def batch(self, *places: tuple[float, float]) -> dict[str, torch.Tensor]:
        batch = make_batch(len(places))
        bounds = torch.full((len(places), 9), torch.nan, dtype=torch.float64)
        return batch | {'coordinates': torch.tensor(places, dtype=torch.float64), 'bounds': bounds}

    def logged(
        self, task: OmniSatPretraining, batch: dict[str, torch.Tensor], stage: str = 'train'
    ) -> dict[str, float]:
        found: dict[str, float] = {}
        task.log = lambda name, value, **_: found.update({name: float(value)})  # type: ignore[method-assign, misc]
        task.compute(batch, stage, 0, 0)
        return found

    def test_location_is_compared_with_every_modality(self) -> None:
        batch = self.batch((0, 40), (0, 50), (10, 45), (torch.nan, 45))
        found = self.logged(self.make(), batch)
        pairs = {name.split('/')[1] for name in found if name.startswith('train_tile_loss/')}
        assert pairs == {'s1a+s2', 's2+spot', 's1a+spot', 'location+s2', 'location+s1a', 'location+spot'}
        assert 'train_tile_spread/location' in found
        images = self.make(backbone_args=None)
        assert not any('location' in name for name in self.logged(images, batch))

    def test_gradient_of_the_contrast_reaches_encoder_and_images_without_fusion(self) -> None:
        task = self.make(reconstruction_weight=0.0, patch_weight=0.0, location_dropout=1.0)
        loss, views = task.compute(self.batch((0, 40), (0, 50), (10, 45)), 'val', 0)
        assert views.located.all()
        loss.backward()
        backbone = task.model.backbone
        for module in (backbone.location.encoder, backbone.encoders['s2'], task.model.location_head):
            assert max(p.grad.abs().max() for p in module.parameters() if p.grad is not None) > 0

    def test_withheld_location_is_compared_but_not_fused(self) -> None:
        places = (0, 40), (0, 50), (10, 45)
        batch = self.batch(*places)
        losses = {}
        for chance in (0.0, 1.0):
            losses[chance] = self.logged(self.make(location_dropout=chance), batch)
        without = {key: value for key, value in batch.items() if key != 'coordinates'}
        with pytest.warns(UserWarning, match='coordinates'):
            losses['never'] = self.logged(self.make(), without)
        assert losses[0.0]['train_tile_loss'] == losses[1.0]['train_tile_loss']
        name = 'train_reconstruction_loss'
        assert losses[1.0][name] == pytest.approx(losses['never'][name], abs=1e-6)
        assert abs(losses[0.0][name] - losses[1.0][name]) > 1e-6
        assert 'train_tile_loss/location+s2' not in losses['never']

    def test_location_that_the_data_withhold_is_not_compared(self) -> None:
        places = (0, 40), (0, 50), (10, 45)
        batch = self.batch(*places) | {'valid_location': torch.tensor([[True], [True], [False]])}
        unknown = self.batch(*places[:2], (torch.nan, torch.nan))
        for stage in ('train', 'val'):
            withheld, never = (self.logged(self.make(), found, stage) for found in (batch, unknown))
            assert withheld == never

    def test_distances_of_pairs(self) -> None:
        batch = self.batch((0, 45), (0, 45.5), (0, 50))  # 56 km and 556 km apart
        task = self.make()
        found = task._exclude_by_pair(batch, None, [3])
        located = [LOCATION in pair for pair in combinations(task.tile_names, 2)]
        assert found is not None
        assert found.shape == (6, 3, 3)
        assert [bool(flags[0, 1]) for flags in found] == located
        assert not found[:, 0, 2].any()
        near = self.make(exclude_within={'location': 50_000, 'location+s2': 600_000})
        found = near._exclude_by_pair(batch, None, [3])
        assert found is not None
        pairs = list(combinations(near.tile_names, 2))
        assert [bool(flags[0, 1]) for flags in found] == [pair == ('s2', 'location') for pair in pairs]
        assert found[pairs.index(('s2', 'location')), 0, 2]
        assert self.make(exclude_within=None)._exclude_by_pair(batch, None, [3]) is None
        assert NegativeDistances(near.hparams['exclude_within'], near.tile_names).of('s2', 's1a') == 0

    def test_exclusion_by_bounds_of_image_pairs(self) -> None:
        task = self.make(exclude_within={'s2': 500.0, 's1a+s2': 2000.0})
        batch = self.batch((0, 45), (0, 45.5), (0, 50))
        left = torch.tensor([0.0, 1000.0, 5000.0], dtype=torch.float64)
        batch['bounds'] = torch.stack([left, left + 160, *[left * 0] * 2, left * 0 + 160, *[left * 0] * 4], 1)
        found = task._exclude_by_pair(batch, None, [3])
        assert found is not None
        close = {pair: bool(found[row, 0, 1]) for row, pair in enumerate(combinations(task.tile_names, 2))}
        assert close['s2', 's1a']
        assert not close['s2', 'spot']
        assert not close['s1a', 'spot']
        whole = task._exclude(batch, [3])
        assert whole is not None
        assert whole[0, 1]  # patches: the largest distance of the images
        assert not whole[0, 2]

    def test_one_sensor_and_the_location(self) -> None:
        task = self.make(modalities={'s2': MODALITIES['s2']}, patch_weight=0.0, backbone_args=LOCATED['backbone_args'])
        batch = self.batch((0, 40), (0, 50), (10, 45))
        batch = {key: value for key, value in batch.items() if not key.endswith(('_s1a', '_spot'))}
        assert 'train_tile_loss/location+s2' in self.logged(task, batch)
        with pytest.raises(ValueError, match='two modalities'):
            self.make(modalities={'s2': MODALITIES['s2']}, patch_weight=0.0, backbone_args=None)

    @pytest.mark.parametrize('wrong', [{'s3': 1.0}, {'s2': -1.0}, {'s2+s1a': 1.0}])
    def test_bad_distances(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match='exclude_within has'):
            self.make(exclude_within=wrong)

    def test_micro_batches_are_one_batch(self) -> None:
        batch = self.batch((0, 40), (0, 50), (10, 45))
        whole, parts = (self.logged(self.make(micro_batch_size=size), batch) for size in (None, 2))
        assert whole == pytest.approx(parts, abs=1e-4)

    def test_fit_and_load(self, root: Path, tmp_path: Path) -> None:
        task = OmniSatPretraining('omnisat_tiny', backbone_args=self.KNOWN['backbone_args'])
        trainer = make_trainer(tmp_path, max_steps=2, limit_val_batches=1)
        trainer.fit(task, make_datamodule(root))
        trainer.save_checkpoint(tmp_path / 'last.ckpt')
        fine = OmniSatSegmentation(**LOCATED | {'modalities': task.modalities}, weights=str(tmp_path / 'last.ckpt'))
        for name, value in task.model.backbone.location.state_dict().items():
            assert torch.equal(value, fine.model.backbone.location.state_dict()[name])
