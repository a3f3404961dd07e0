# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The baselines run where an OmniSat does, on the same data, loss and schedule."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torchgeo.main import main

from tests.models.encoders.test_weights import BANDS, published_state
from torchgeo_omnisat.batch import drop
from torchgeo_omnisat.modality import Modality
from torchgeo_omnisat.models import UTAE_Weights
from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatSegmentation, backbone

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
SMALL = {'widths': [16, 32], 'image_widths': [16, 16, 32, 32], 'width': 16}
TAKEN = {'utae': ['s2'], 'dual_stream': ['s2', 's1a'], 'late_fusion': ['s2', 's1a', 'spot']}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(backbone, 'rank_zero_info', messages.append)
    return messages


@pytest.mark.parametrize('name', TAKEN)
def test_command_line(name: str, root: Path, tmp_path: Path) -> None:
    """Fit, then test every subset of what the model takes from a checkpoint that is plain and complete."""
    small = ('--model.backbone', name, '--model.backbone_args', str(SMALL).replace("'", '"'))
    sensors = ('--data.modalities', '[s2,s1a,spot]')
    main(command(root, tmp_path, 'fit', *small, *sensors, '--trainer.max_steps', '2'))
    checkpoint = next(tmp_path.rglob('*.ckpt'))
    loaded = OmniSatSegmentation.load_from_checkpoint(checkpoint, weights_only=True)
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert list(loaded.modalities) == list(loaded.model.backbone.encoders) == TAKEN[name]
    assert list(loaded.known) == ['s2', 's1a', 'spot']
    assert loaded.model.backbone.patch_size == 10
    main(command(root, tmp_path / 'test', 'test', *small, *sensors, '--ckpt_path', str(checkpoint)))
    rows = read_csv(next(tmp_path.rglob('subsets.csv')))
    assert len(rows) == 2 ** len(TAKEN[name]) - 1
    assert {row['complete_samples'] for row in rows} == {'2'}


@pytest.mark.parametrize(('name', 'left'), [('utae', 's1a, spot'), ('dual_stream', 'spot'), ('late_fusion', '')])
def test_says_what_it_does_not_use(name: str, left: str, said: list[str]) -> None:
    task = OmniSatSegmentation(**TOLD | {'backbone': name}, backbone_args=SMALL)
    assert said == ([f'{name} uses {", ".join(TAKEN[name])}; not used: {left}'] if left else [])
    batch, logits = make_batch(), task(make_batch())
    for modality in MODALITIES.values():
        changed = task(drop(batch, [modality])) if name != 'utae' or modality.name != 's2' else None
        assert changed is None or torch.equal(changed, logits) == (modality.name not in TAKEN[name])


def test_what_it_takes_is_never_dropped_for_what_it_does_not() -> None:
    task = OmniSatSegmentation(**TOLD | {'backbone': 'utae'}, backbone_args=SMALL, modality_dropout=1.0)
    kept = task.dropout(make_batch())
    assert kept['valid_s2'].any(1).all()


@pytest.mark.parametrize('name', ['utae', 'dual_stream'])
def test_batch_in_which_no_tile_has_a_sensor_of_the_model(name: str, tmp_path: Path) -> None:
    """Its output is finite and depends on no image, as that of a tile without images, and there is a warning."""
    task = OmniSatSegmentation(**TOLD | {'backbone': name}, backbone_args=SMALL)
    samples = [make_sample(index, names) for index, names in enumerate([('spot',)] * 2 + [('s2', 's1a')] * 2)]
    loader, trainer = make_loader(samples), make_trainer(tmp_path, logger=False)
    with pytest.warns(UserWarning, match='2 of 2 samples without any of the modalities'):
        trainer.fit(task, loader, loader)
    trainer.test(task, loader, verbose=False)
    assert {row['blind_samples'] for row in read_csv(tmp_path / 'subsets.csv')} == {'2'}
    blind, seen = trainer.predict(task, loader) or ()
    assert not blind['seen'].any()
    assert seen['seen'].any()
    assert torch.equal(blind['probabilities'][0], blind['probabilities'][1])


def test_another_series() -> None:
    task = OmniSatSegmentation(**TOLD | {'backbone': 'utae'}, backbone_args=SMALL | {'series': 's1a'})
    assert list(task.model.backbone.encoders) == ['s1a']
    with pytest.raises(ValueError, match=r"series.*utae.*'spot'.*\['s2', 's1a'\]"):
        OmniSatSegmentation(**TOLD | {'backbone': 'utae'}, backbone_args={'series': 'spot'})


def test_classification() -> None:
    """Without pixels to label a token is a ground patch."""
    told = {key: TOLD[key] for key in ('modalities', 'patch_size')}
    task = OmniSatClassification('dual_stream', **told, label_names=['a', 'b'], backbone_args=SMALL)
    assert task(make_batch()).shape == (3, 2)
    assert task.model.backbone.patch_size == 40


def test_file_of_a_sensor_that_is_left_out_is_not_opened(root: Path, tmp_path: Path) -> None:
    """It can be empty: nothing notices, until the sensor is asked for."""
    make_datamodule(root).prepare_data()
    make_datamodule(root, modalities=None).prepare_data()
    there = Path(shutil.copytree(root, tmp_path / 'landscapes'))
    emptied = [p for d in ('DATA_S1A', 'DATA_S1D', 'DATA_SPOT') for p in (there / d).rglob('*') if p.is_file()]
    for path in emptied:
        path.write_bytes(b'')
    assert len(emptied) > 20
    for names, fails in ((('s2',), False), (('s2', 's1a'), True), (('s2', 'spot'), True)):
        task = OmniSatSegmentation('utae', backbone_args=SMALL)
        trainer, datamodule = make_trainer(tmp_path, max_steps=1), make_datamodule(there, modalities=names)
        if fails:
            with pytest.raises(Exception, match=r'S1A|SPOT'):
                trainer.fit(task, datamodule=datamodule)
        else:
            trainer.fit(task, datamodule=datamodule)
            trainer.test(task, datamodule=datamodule, verbose=False)


class TestPublishedWeights:
    @pytest.mark.parametrize('name', ['omnisat_tiny', 'dual_stream'])
    def test_go_to_the_encoder_of_their_bands(
        self, name: str, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(UTAE_Weights, 'get_state_dict', lambda *_, **__: published_state(1))
        modalities = MODALITIES | {'s2': Modality('s2', BANDS, 10, True)}
        told: dict[str, Any] = TOLD | {
            'backbone': name,
            'modalities': modalities,
            'weights': 'UTAE_Weights.PASTIS_FOLD1',
        }
        task = OmniSatSegmentation(**told, backbone_args={'encoders': {'s2': 'utae_published'}})
        ends = ('s2.in_conv.0.0.weight', 's2.encoder.in_conv.0.0.weight')
        stem = next(value for key, value in task.state_dict().items() if key.endswith(ends))
        assert torch.equal(stem, published_state(1)['in_conv.conv.conv.0.weight'])
        assert said[-1].startswith('UTAE_Weights.PASTIS_FOLD1 for the encoder of s2: loaded: in_conv.0.0.weight, ')
        assert 'new: nothing; ignored: up_blocks.0.' in said[-1]

    def test_no_series_of_their_bands(self) -> None:
        with pytest.raises(ValueError, match=r"\['B02', .*\['s2', 's1a'"):
            OmniSatSegmentation(**TOLD, weights='UTAE_Weights.PASTIS_FOLD1')
