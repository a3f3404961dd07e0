# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A step of pre-training with objects, teacher and prototypes of regions, by one process or by two."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from tests.tasks.helpers import TOLD, make_trainer
from tests.tasks.pretraining_step import CASES, Keep, Share
from torchgeo_omnisat.tasks import OmniSatPretraining

#: Longitude and latitude of each tile: regions that one process has, that both have, and none.
PLACES = [(2.0, 48.0), (2.0, 48.0), (12.0, 48.0), (12.0, 48.0), (2.0, 48.0), (float('nan'), float('nan'))]
TERMS: dict[str, Any] = {
    'object_weight': 1.0,
    'object_clusters': 4,
    'granularity': ['pixel', 'object', 'image'],
    'granularity_prototypes': 8,
    'teacher_decay': 0.5,
    'backbone_args': {'context_degrees': 10.0, 'context_prototypes': 4},
}


class KeepState(Keep):
    """Also writes the state of the model, and the assignments of the clusters."""

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.assignments: list[Any] = []
        clusters: Any = module.model.granularity.clusters  # type: ignore[union-attr]
        clusters.register_forward_hook(lambda _, __, out: self.assignments.append(out))

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_fit_end(trainer, module)
        path = self.folder / f'{self.case}-{trainer.global_rank}.pt'
        found = torch.load(path, weights_only=True)
        torch.save({**found, 'state': module.state_dict(), 'assignments': self.assignments}, path)


class Located(Share):
    """Tiles with coordinates."""

    def __init__(self, case: str, size: int) -> None:
        super().__init__(case, size)
        for sample, place in zip(self.samples, PLACES, strict=True):
            sample['coordinates'] = torch.tensor(place, dtype=torch.float64)


def main(processes: int, folder: Path) -> None:
    for case in CASES:
        size = len(CASES[case]) // processes
        loader = DataLoader(Located(case, size), batch_size=size, collate_fn=Share.join)
        torch.manual_seed(0)
        told = {key: TOLD[key] for key in ('backbone', 'modalities', 'patch_size')}
        task = OmniSatPretraining(**told, modality_dropout=0.5, lr=0.0, **TERMS)
        settings = {'max_steps': 2, 'callbacks': [KeepState(folder, case)], 'use_distributed_sampler': False}
        if processes > 1:
            settings |= {'devices': processes, 'strategy': 'ddp_fork'}
        make_trainer(folder, max_epochs=2, limit_val_batches=0, **settings).fit(task, loader)
