# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Old import paths, checkpoints and configurations keep working."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from torchgeo_omnisat.__main__ import main
from torchgeo_omnisat._moved import MOVED, MovedFinder
from torchgeo_omnisat.tasks import OmniSatSegmentation

#: A checkpoint from before the modules moved: shapes of its tensors, hyper-parameters, and statistics of the logits
#: of the model below, as that version computed them.
CHECKPOINT = Path(__file__).parent / 'tasks' / 'checkpoint_before_move.json'
CONFIGURATION = """
model:
  class_path: torchgeo_omnisat.tasks.OmniSatSegmentation
  init_args: {backbone: omnisat_tiny}
data:
  class_path: torchgeo_omnisat.datamodules.SyntheticLandscapesDataModule
  init_args: {root: ROOT, num_tiles: 5, batch_size: 2, modalities: [s1a, spot]}
trainer: {fast_dev_run: 1, accelerator: cpu}
"""


@pytest.mark.parametrize('old', MOVED)
def test_old_import_paths(old: str) -> None:
    finder = MovedFinder()
    spec = finder.find_spec(f'torchgeo_omnisat.{old}')
    assert spec is not None
    new = import_module(f'torchgeo_omnisat.{MOVED[old]}')
    own = new.__spec__
    with pytest.warns(DeprecationWarning, match=MOVED[old]):
        module = finder.create_module(spec)
    module.__spec__ = spec  # as importlib does
    finder.exec_module(module)
    assert module is new
    assert module.__spec__ is own


def test_an_old_path_is_imported() -> None:
    with pytest.warns(DeprecationWarning, match=r'datasets\.rasters\.frames'):
        old = import_module('torchgeo_omnisat.datasets.frames')
    assert old is import_module('torchgeo_omnisat.datasets.rasters.frames')
    with pytest.warns(DeprecationWarning, match=r'evaluation\.probe'):
        probe = import_module('torchgeo_omnisat.callbacks.probe')
    assert import_module('torchgeo_omnisat.callbacks').ProbeCallback is probe.ProbeCallback
    with pytest.raises(ModuleNotFoundError):
        import_module('torchgeo_omnisat.datasets.never_there')


def tensors(shapes: dict[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, (shape, _) in shapes.items()}


def test_old_checkpoint(tmp_path: Path) -> None:
    old = json.loads(CHECKPOINT.read_text(encoding='utf-8'))
    checkpoint = {
        'state_dict': tensors(old['state_dict']),
        'hyper_parameters': old['hyper_parameters'],
        'pytorch-lightning_version': '2.6.6',
    }
    torch.save(checkpoint, tmp_path / 'old.ckpt')
    task = OmniSatSegmentation.load_from_checkpoint(tmp_path / 'old.ckpt').eval()
    generator = torch.Generator().manual_seed(1)
    batch = {
        'image_s1a': torch.randn(1, 3, 3, 8, 8, generator=generator),
        'dates_s1a': torch.tensor([[17800, 17812, 17824]]),
        'valid_s1a': torch.tensor([[True, True, False]]),
        'image_spot': torch.randn(1, 3, 80, 80, generator=generator),
        'dates_spot': torch.zeros(1, 1, dtype=torch.int64),
        'valid_spot': torch.ones(1, 1, dtype=torch.bool),
    }
    with torch.inference_mode():
        logits = task.model(batch).double()
    assert logits.mean().item() == pytest.approx(old['logits']['mean'], abs=1e-4)
    assert logits.std().item() == pytest.approx(old['logits']['std'], abs=1e-4)


def test_old_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path('old.yaml').write_text(CONFIGURATION.replace('ROOT', str(tmp_path / 'data')), encoding='utf-8')
    assert main(['fit', '--config', 'old.yaml']) == 0
