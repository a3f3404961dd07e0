# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A step of pre-training and a validation, by one process or by two, and what came of them.

As a script, with the number of processes and a folder, it writes ``<case>-<rank>.pt`` there.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from tests.tasks.helpers import MODALITIES, TOLD, make_sample, make_trainer
from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.tasks import OmniSatPretraining

#: What each of six tiles has; the first three are those of rank 0.
CASES: dict[str, list[tuple[str, ...]]] = {
    'differ': [('s2', 's1a'), ('s2', 's1a'), ('s2',), ('s1a', 'spot'), ('s1a', 'spot'), ('s2', 's1a', 'spot')],
    'no pair': [('s2', 's1a', 'spot'), ('s2', 's1a'), ('s2', 's1a', 'spot'), ('s2',), ('spot',), ()],
}


def make_samples(case: str) -> list[dict[str, Tensor]]:
    """Tiles in a row, of which the third and the fourth overlap."""
    samples = [make_sample(index, names) for index, names in enumerate(CASES[case])]
    for index, sample in enumerate(samples):
        left = 1000.0 * (index - (index > 2)) + 50 * (index > 2)
        sample['bounds'] = torch.tensor([left, 0, left + 160, 160], dtype=torch.float64)
    return samples


class Keep(Callback):
    """Writes gradients as the optimiser gets them, and what is logged in the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gradients: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        named = module.named_parameters()
        self.gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named}

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = {name: value.detach() for name, value in trainer.callback_metrics.items()}
        torch.save({'gradients': self.gradients, 'metrics': metrics}, self.path)


def main(processes: int, folder: Path) -> None:
    rank = int(os.environ.get('LOCAL_RANK', 0))
    for case in CASES:
        size = len(CASES[case]) // processes
        mine = make_samples(case)[rank * size : (rank + 1) * size]
        held = [m for m in MODALITIES.values() if any(m.image_key in sample for sample in mine)]
        join = partial(collate, modalities={m.name: m for m in held})
        loader = DataLoader(mine, batch_size=size, collate_fn=join)  # type: ignore[arg-type, var-annotated]
        torch.manual_seed(0)
        told = {key: TOLD[key] for key in ('backbone', 'modalities', 'patch_size')}
        task = OmniSatPretraining(**told, modality_dropout=0.5, lr=0.0)
        settings = {'max_steps': 1, 'callbacks': [Keep(folder / f'{case}-{rank}.pt')], 'use_distributed_sampler': False}
        if processes > 1:
            settings |= {'devices': processes, 'strategy': 'ddp'}
        make_trainer(folder, **settings).fit(task, loader, loader)


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]))
