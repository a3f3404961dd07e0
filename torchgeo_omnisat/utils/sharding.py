# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Fully sharded data parallel training (FSDP1 and FSDP2) of a task as one unit."""

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

#: Methods of a task that gather its parameters.
STEPS = ('training_step', 'validation_step', 'test_step', 'predict_step')


def refuse_strategy(strategy: Strategy) -> None:
    """Check that a strategy does not shard parts of a task.

    A rank whose batch lacks a modality does not call its encoder, so the encoder cannot be a unit
    whose parameters all ranks gather and reduce together.
    """
    if isinstance(strategy, ModelParallelStrategy) and strategy._tensor_parallel_size not in (1, 'auto'):
        raise ValueError(
            f'tensor_parallel_size of ModelParallelStrategy is {strategy._tensor_parallel_size}, expected 1: '
            'only data parallelism (FSDP2) is supported'
        )
    if isinstance(strategy, FSDPStrategy):
        for name, expected in {'auto_wrap_policy': None, 'use_orig_params': True}.items():
            if (value := strategy.kwargs.get(name, expected)) is not expected:
                raise ValueError(
                    f'{name} of FSDPStrategy is {value!r}, expected {expected}: a rank whose batch lacks a modality '
                    'does not call its encoder, so the whole task is one unit with its original parameters'
                )


def shard_task(task: LightningModule, strategy: Any) -> None:
    """Shard a task by FSDP2 as one unit, if that is the strategy and it is not sharded yet.

    Its parameters become ``DTensor``; inside the steps they are whole.
    """
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(task, FSDPModule):
        assert task.device_mesh is not None
        for parameter in task.parameters():  # FSDP2 does not take the channels-last layout
            parameter.data = parameter.data.contiguous()
        fully_shard(task, mesh=task.device_mesh['data_parallel'])
        for step in STEPS:
            register_fsdp_forward_method(task, step)
