# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The location as a modality of tasks: dropout, checkpoints, scores without it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from torchgeo_omnisat import Modality
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.tasks.backbone import export_hub, load_backbone, load_hub

from .helpers import MODALITIES, TOLD, make_batch, make_datamodule, make_trainer

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
    task, batch = OmniSatSegmentation(**LOCATED), make_batch()
    with pytest.warns(UserWarning, match='coordinates'):
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
    args = {'encoders': {'location': 'scaled', 's2': 'ltae', 's1a': 'ltae'}}
    task = OmniSatSegmentation(backbone='omnisat_tiny', backbone_args=args)
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=1, limit_test_batches=1)
    trainer.fit(task, make_datamodule(root))
    trainer.save_checkpoint(tmp_path / 'last.ckpt')
    loaded = OmniSatSegmentation.load_from_checkpoint(tmp_path / 'last.ckpt')
    assert loaded.model.backbone.location is not None
    for param in loaded.model.backbone.location.parameters():
        torch.nn.init.normal_(param, std=3)  # the location decides
    (scores,) = make_trainer(tmp_path, limit_test_batches=1).test(loaded, make_datamodule(root), verbose=False)
    withheld = scores['test_AverageJaccardIndex_without_location']
    assert withheld != scores['test_AverageJaccardIndex']


def test_pretraining_has_it_too() -> None:
    task = OmniSatPretraining('omnisat_tiny', MODALITIES, 40.0, **{'backbone_args': LOCATED['backbone_args']})
    assert task.model.backbone.location is not None
