# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A step of pre-training and a validation, by one process or by two, and what came of them."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from tests.losses.ranks import recorded
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


class Share(Dataset[dict[str, Tensor]]):
    """The tiles of a process: all, or one of two halves."""

    def __init__(self, case: str, size: int) -> None:
        self.samples, self.size = make_samples(case), size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.samples[index + (dist.get_rank() * self.size if dist.is_initialized() else 0)]

    @staticmethod
    def join(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch without the modalities that none of them has."""
        held = {m.name: m for m in MODALITIES.values() if any(m.image_key in sample for sample in samples)}
        return collate(samples, held)


class Keep(Callback):
    """Writes gradients as the optimiser gets them, and what is logged in the end, to ``<case>-<rank>.pt``."""

    def __init__(self, folder: Path, case: str) -> None:
        self.folder, self.case = folder, case
        self.gradients: dict[str, Tensor] = {}

    def on_train_batch_start(self, *_: Any) -> None:
        self.stack = ExitStack()
        self.calls = self.stack.enter_context(recorded())

    def on_before_backward(self, *_: Any) -> None:
        self.calls.append('backward')

    def on_train_batch_end(self, *_: Any) -> None:
        self.stack.close()

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        named = module.named_parameters()
        self.gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named}

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = {name: value.detach() for name, value in trainer.callback_metrics.items()}
        found = {'gradients': self.gradients, 'metrics': metrics, 'collectives': self.calls}
        torch.save(found, self.folder / f'{self.case}-{trainer.global_rank}.pt')


def main(processes: int, folder: Path) -> None:
    for case in CASES:
        size = len(CASES[case]) // processes
        loader = DataLoader(Share(case, size), batch_size=size, collate_fn=Share.join)
        torch.manual_seed(0)
        told = {key: TOLD[key] for key in ('backbone', 'modalities', 'patch_size')}
        task = OmniSatPretraining(**told, modality_dropout=0.5, lr=0.0)
        settings = {'max_steps': 1, 'callbacks': [Keep(folder, case)], 'use_distributed_sampler': False}
        if processes > 1:
            settings |= {'devices': processes, 'strategy': 'ddp_fork'}
        make_trainer(folder, **settings).fit(task, loader, loader)
