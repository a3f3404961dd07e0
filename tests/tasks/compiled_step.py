# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Training with and without ``compile``; run by ``test_compiling.py``."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch._dynamo.utils import counters

from tests.tasks.helpers import make_datamodule, make_trainer
from torchgeo_omnisat.models import compiling
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation

NARROW = {'widths': [16, 16], 'image_widths': [16, 16, 16, 16]}


def main(folder: str, device: str) -> None:
    """Losses, scores and checkpoints are the same, and ``compile`` is not saved."""
    if device == 'cpu':
        compiling.BACKEND = 'eager'  # a C++ compiler takes minutes
    torch.backends.cudnn.allow_tf32 = False
    for kind in (OmniSatSegmentation, OmniSatPretraining):
        results = [train(kind, compiled, Path(folder), device) for compiled in (False, True)]
        assert counters['stats']['unique_graphs'] > 0
        assert not counters['graph_break'], counters['graph_break']
        (metrics, saved), (same, ours) = results
        assert same == pytest.approx(metrics, rel=1e-4, abs=1e-6)
        assert list(saved['state_dict']) == list(ours['state_dict'])
        assert saved['hyper_parameters'] == ours['hyper_parameters']
        assert 'compile' not in saved['hyper_parameters']
        torch.testing.assert_close(ours['state_dict'], saved['state_dict'], rtol=1e-4, atol=1e-4)


def train(kind: Any, compiled: bool, folder: Path, device: str) -> tuple[dict[str, float], Any]:
    seed_everything(0, verbose=False)
    task = kind('omnisat_tiny', backbone_args=NARROW, compile=compiled, lr=1e-4)
    trainer = make_trainer(folder, accelerator=device, max_steps=2, limit_val_batches=1)
    trainer.fit(task, make_datamodule(folder / 'data', size=16, modalities=('s2', 'spot')))
    assert compiled == any(module._compiled_call_impl is not None for module in task.modules())
    trainer.save_checkpoint(folder / 'last.ckpt')
    assert not kind.load_from_checkpoint(folder / 'last.ckpt').compiled
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if value.isfinite()}
    return metrics, torch.load(folder / 'last.ckpt', weights_only=True)
