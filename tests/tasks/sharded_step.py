# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A training step of two ranks whose parameters are sharded, on CPUs."""

import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from tests.tasks.helpers import TOLD, make_trainer
from tests.tasks.pretraining_step import Share
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation


class CPUFSDPStrategy(FSDPStrategy):
    """FSDP1 on CPUs, which Lightning offers on GPUs alone, though PyTorch shards on both."""

    def _setup_model(self, model: LightningModule) -> FullyShardedDataParallel:  # type: ignore[override]
        return FullyShardedDataParallel(model, device_id=torch.device('cpu'), **self.kwargs)


STRATEGIES: dict[str, Any] = {
    'ddp': lambda: DDPStrategy(process_group_backend='gloo'),
    'static': lambda: DDPStrategy(process_group_backend='gloo', static_graph=True, gradient_as_bucket_view=True),
    'stuck': lambda: DDPStrategy(process_group_backend='gloo', timeout=timedelta(seconds=5)),
    'fsdp1': lambda: CPUFSDPStrategy(process_group_backend='gloo', use_orig_params=True),
    'fsdp2': lambda: ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, process_group_backend='gloo', save_distributed_checkpoint=False
    ),
}


class Sharded(Callback):
    """Counts the parameters that a rank holds when training starts, and keeps whether its graph is static."""

    held, static = 0, False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.static = bool(getattr(trainer.model, 'static_graph', False))
        parts = [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
        self.held = sum(part.numel() for part in parts)


class Stuck(Callback):
    """Rank 1 sleeps before the second step."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank and trainer.global_step:
            time.sleep(600)


def step(rank: int, kind: str, task: str, port: int, folder: Path, tiles: int, steps: int) -> None:
    """Train; write the loss and how many parameters this rank held to ``<kind>-<task>-<rank>.pt``."""
    names = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'LOCAL_RANK': rank, 'WORLD_SIZE': 2, 'NODE_RANK': 0}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    told = TOLD  # each step also trains on some of the modalities
    if task == 'pretraining':
        told = {**{key: TOLD[key] for key in ('backbone', 'modalities', 'patch_size')}, 'modality_dropout': 0.0}
    kinds = {'segmentation': OmniSatSegmentation, 'pretraining': OmniSatPretraining}
    module = kinds[task](**told, lr=0.01)
    counter = Sharded()
    strategy: Strategy = STRATEGIES[kind]()
    callbacks = [counter, *([Stuck()] if kind == 'stuck' else [])]
    trainer = make_trainer(
        folder, max_steps=steps, devices=2, strategy=strategy, callbacks=callbacks, use_distributed_sampler=False
    )
    trainer.fit(module, DataLoader(Share('differ', 3), batch_size=tiles, collate_fn=Share.join), None)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    trainer.save_checkpoint(folder / f'{kind}-{task}.ckpt')
    torch.save(
        {'metrics': metrics, 'held': counter.held, 'static': counter.static}, folder / f'{kind}-{task}-{rank}.pt'
    )


def main(kind: str, task: str, folder: Path, tiles: int = 3, steps: int = 2) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    mp.start_processes(step, args=(kind, task, port, folder, tiles, steps), nprocs=2, start_method='fork')
