# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from torchgeo_omnisat.tasks import OmniSatSegmentation
from torchgeo_omnisat.tasks.backbone import load_backbone

from ..models.encoders.pretrained.series.test_presto import SMALL
from .helpers import MODALITIES, TOLD, make_loader, make_sample, make_trainer


class TestWeights:
    def save(self, path: Path, **changes: Any) -> tuple[Path, OmniSatSegmentation]:
        torch.manual_seed(7)
        task = OmniSatSegmentation(**TOLD | changes)
        torch.save({'state_dict': task.state_dict(), 'hyper_parameters': dict(task.hparams)}, path)
        return path, task

    def test_backbone_is_taken_and_the_decoder_is_not(self, tmp_path: Path) -> None:
        path, old = self.save(tmp_path / 'a.ckpt')
        new = OmniSatSegmentation(**TOLD | {'num_classes': 3, 'labels': None}, weights=str(path))
        for key, value in new.model.backbone.state_dict().items():
            assert torch.equal(value, old.model.backbone.state_dict()[key]), key
        assert 'weights' not in new.hparams

    @pytest.mark.parametrize('prefix', ['', 'model.', 'backbone.', 'module.model.backbone.'])
    def test_prefixes(self, tmp_path: Path, prefix: str) -> None:
        _, old = self.save(tmp_path / 'a.ckpt')
        path = tmp_path / 'b.pt'
        torch.save({prefix + key: value for key, value in old.model.backbone.state_dict().items()}, path)
        new = OmniSatSegmentation(**TOLD, weights=str(path))
        assert torch.equal(new.model.backbone.fusion.modalities.query, old.model.backbone.fusion.modalities.query)

    def test_new_and_missing_modalities(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path, old = self.save(tmp_path / 'a.ckpt', modalities=[MODALITIES['s2'].as_dict(), MODALITIES['s1a'].as_dict()])
        told = TOLD | {'modalities': [MODALITIES['s2'], MODALITIES['spot']]}
        with caplog.at_level('INFO'):
            new = OmniSatSegmentation(**told, weights=str(path))
        (said,) = [record.message for record in caplog.records if str(path) in record.message]
        assert said.endswith('loaded: s2, fusion; new: spot; ignored: s1a')
        for part in ('encoders.s2', 'heads.s2', 'fusion.modalities.query'):
            keys = [key for key in old.model.backbone.state_dict() if key.startswith(part)]
            assert keys
            assert all(
                torch.equal(new.model.backbone.state_dict()[k], old.model.backbone.state_dict()[k]) for k in keys
            )

    def test_presto_saved_before_it_used_coordinates(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        arguments = {'backbone_args': {'encoders': {'s2': {'name': 'presto', 'pretrained': False} | SMALL}}}
        path, _ = self.save(tmp_path / 'a.ckpt', **arguments)
        saved = torch.load(path)
        old = {key: value for key, value in saved['state_dict'].items() if 'uses_coordinates' not in key}
        assert len(old) == len(saved['state_dict']) - 1
        torch.save(saved | {'state_dict': old}, path)
        with caplog.at_level('INFO'):
            new = OmniSatSegmentation(**TOLD | arguments, weights=str(path))
        (message,) = [record.message for record in caplog.records if str(path) in record.message]
        assert 'new: nothing' in message
        (flag,) = [value for key, value in new.state_dict().items() if 'uses_coordinates' in key]
        assert not flag

    @pytest.mark.parametrize(
        ('lost', 'said'),
        [('earlier', 'ignored: nothing'), ('start', 'ignored: s2 (encoders.s2.start is missing instead of ())')],
    )
    def test_monthly_saved_before_its_calendar_grew(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str, said: str
    ) -> None:
        arguments = {'backbone_args': {'encoders': {'s2': 'monthly'}}}
        path, _ = self.save(tmp_path / 'a.ckpt', **arguments)
        saved = torch.load(path)
        old = {key: value for key, value in saved['state_dict'].items() if not key.endswith(f'.{lost}')}
        torch.save(saved | {'state_dict': old}, path)
        with caplog.at_level('INFO'):
            OmniSatSegmentation(**TOLD | arguments, weights=str(path))
        assert said in caplog.text

    def test_other_bands_are_not_mixed_up(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path, _ = self.save(tmp_path / 'a.ckpt')
        swapped = [m.select(m.bands[::-1]) if m.name == 's1a' else m for m in MODALITIES.values()]
        with caplog.at_level('INFO'):
            OmniSatSegmentation(**TOLD | {'modalities': swapped}, weights=str(path))
        assert "ignored: s1a (bands ['VV', 'VH'] instead of ['VH', 'VV'])" in caplog.text

    def test_another_unit_is_refused(self, tmp_path: Path) -> None:
        path, _ = self.save(tmp_path / 'a.ckpt')
        power = [replace(m, unit='power') if m.name == 's1a' else m for m in MODALITIES.values()]
        with pytest.raises(ValueError, match=r"a\.ckpt.*'s1a'.*'db'.*'power'"):
            OmniSatSegmentation(**TOLD | {'modalities': power}, weights=str(path))
        unknown = [replace(m, kind=None, unit='unknown') for m in MODALITIES.values()]
        OmniSatSegmentation(**TOLD | {'modalities': unknown}, weights=str(path))

    @pytest.mark.parametrize('name', ['norm', 'query', 'weight', 'blocks'])
    def test_a_modality_called_as_a_part_of_the_fusion(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
    ) -> None:
        both = [MODALITIES['s2'], replace(MODALITIES['spot'], name=name)]
        path, _ = self.save(tmp_path / 'a.ckpt', modalities=both)
        with caplog.at_level('INFO'):
            OmniSatSegmentation(**TOLD | {'modalities': both[:1]}, weights=str(path))
        (said,) = [record.message for record in caplog.records if str(path) in record.message]
        assert said.endswith(f'loaded: s2, fusion; new: nothing; ignored: {name}')

    def test_statistics_come_with_what_is_loaded_alone(self, tmp_path: Path) -> None:
        numbers = {name: [float(len(name))] * len(modality.bands) for name, modality in MODALITIES.items()}
        path, task = self.save(tmp_path / 'a.ckpt', mean=numbers, std=numbers)
        swapped = {n: m.select(m.bands[::-1]) if n == 's1a' else m for n, m in MODALITIES.items()}
        known = {name: value for name, value in numbers.items() if name != 's1a'}
        assert load_backbone(task.build_backbone(), path, swapped).statistics == {'mean': known, 'std': known}

    def test_checkpoint_that_fits_nothing(self, tmp_path: Path) -> None:
        path, _ = self.save(tmp_path / 'a.ckpt')
        with pytest.raises(ValueError, match=r'a\.ckpt.*backbone'):
            OmniSatSegmentation(**TOLD | {'backbone': 'omnisat_small'}, weights=str(path))

    @pytest.mark.parametrize('content', [{}, {'state_dict': {'conv.weight': torch.zeros(3)}}, {'state_dict': [1, 2]}])
    def test_checkpoint_of_something_else(self, tmp_path: Path, content: dict[str, Any]) -> None:
        torch.save(content, tmp_path / 'a.ckpt')
        with pytest.raises(ValueError, match='fits the backbone'):
            OmniSatSegmentation(**TOLD, weights=str(tmp_path / 'a.ckpt'))

    def test_hostile_checkpoint_runs_nothing(self, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / 'owned',)

        path = tmp_path / 'a.ckpt'
        torch.save({'state_dict': Hostile()}, path)
        (tmp_path / 'b.ckpt').write_bytes(pickle.dumps(Hostile()))
        for path in (tmp_path / 'a.ckpt', tmp_path / 'b.ckpt'):
            with pytest.raises(ValueError, match=re.escape(path.name)):
                OmniSatSegmentation(**TOLD, weights=str(path))
        assert not (tmp_path / 'owned').exists()

    def test_damaged_checkpoint(self, tmp_path: Path) -> None:
        path, _ = self.save(tmp_path / 'a.ckpt')
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ValueError, match=r'a\.ckpt'):
            OmniSatSegmentation(**TOLD, weights=str(path))
        torch.save(torch.zeros(2), path)
        with pytest.raises(ValueError, match=r'a\.ckpt.*Tensor'):
            OmniSatSegmentation(**TOLD, weights=str(path))

    def test_no_file(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / 'none.ckpt'):
            with pytest.raises(FileNotFoundError, match='is not a file'):
                OmniSatSegmentation(**TOLD, weights=str(path))


class TestOlderThanMissingBands:
    """Checkpoints without the parameters of missing bands, which count as zeros."""

    @staticmethod
    def aged(checkpoint: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint as it was written before: without these, the last of the optimizer."""
        gone = [key for key in checkpoint['state_dict'] if key.endswith('.missing')]
        for key in gone:
            del checkpoint['state_dict'][key]
        for state in checkpoint.get('optimizer_states', ()):
            last = state['param_groups'][-1]['params']
            for place in last[len(last) - len(gone) :]:
                state['state'].pop(place, None)
            del last[len(last) - len(gone) :]
        return checkpoint

    def test_training_goes_on(self, tmp_path: Path) -> None:
        seed_everything(0, verbose=False)
        first = OmniSatSegmentation(**TOLD)
        loader = make_loader([make_sample(i) for i in range(2)])
        make_trainer(tmp_path, max_steps=2).fit(first, loader)
        first.trainer.save_checkpoint(tmp_path / 'new.ckpt')
        new = torch.load(tmp_path / 'new.ckpt', weights_only=True)
        torch.save(self.aged(new), tmp_path / 'old.ckpt')
        ends = []
        for name in ('new', 'old'):
            task = OmniSatSegmentation(**TOLD)
            seed_everything(1, verbose=False)
            make_trainer(tmp_path, max_steps=4).fit(task, loader, ckpt_path=tmp_path / f'{name}.ckpt')
            ends.append(task.state_dict())
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
        assert not all(torch.equal(ends[0][key], value) for key, value in first.state_dict().items())

    def test_loads(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        task = OmniSatSegmentation(**TOLD)
        written = {'state_dict': task.state_dict(), 'hyper_parameters': dict(task.hparams)}
        written |= {'pytorch-lightning_version': '2.5.0'}
        torch.save(self.aged(written), tmp_path / 'old.ckpt')
        loaded = OmniSatSegmentation.load_from_checkpoint(tmp_path / 'old.ckpt', weights_only=True)
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in task.state_dict().items())

    def test_backbone_is_taken_whole(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        old = OmniSatSegmentation(**TOLD)
        state = {key: value for key, value in old.state_dict().items() if not key.endswith('.missing')}
        torch.save({'state_dict': state, 'hyper_parameters': dict(old.hparams)}, tmp_path / 'old.ckpt')
        new = OmniSatSegmentation(**TOLD).model.backbone
        with torch.no_grad():
            for name, parameter in new.named_parameters():
                if name.endswith('.missing'):
                    parameter.fill_(1)
        report = load_backbone(new, tmp_path / 'old.ckpt', MODALITIES)
        assert set(report.loaded) >= set(MODALITIES)
        assert not report.new
        assert all(torch.equal(value, new.state_dict()[k]) for k, value in old.model.backbone.state_dict().items())
