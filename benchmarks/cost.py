# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Operations and memory of the recipes of docs/howto/training.md, counted; hours of a GPU, estimated from them.

A step is run on the processor with random tiles of the published sizes. PyTorch counts its floating-point
operations (matrix products, convolutions and attention, recomputed ones included). Memory is the peak of the
tensors that are alive at once: weights, gradients, optimizer states, activations and the batch. Neither the buffers
of GPU libraries nor the fragmentation of the allocator are counted. No GPU is needed, and **no time is measured**:
hours are operations over an assumed fraction of the peak rate of a GPU.

    python benchmarks/cost.py                        # all recipes, results/cost.json
    python benchmarks/cost.py --recipes flair        # one of them, printed alone
    python benchmarks/cost.py --utilisation 0.3      # other hours from the same counts
    python benchmarks/cost.py --checkpointing        # memory against recomputation of pastis-hd, eight tiles a step

The last one computes shapes only, along the path of an accelerator, which selects by masks where the processor looks
at the values: seconds instead of minutes.
"""

import argparse
import gc
import json
import subprocess
import sys
import warnings
import weakref
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import yaml
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from torchgeo_omnisat import datamodules, tasks
from torchgeo_omnisat.models.encoders import packing
from torchgeo_omnisat.models.encoders.series import ltae
from torchgeo_omnisat.utils.atomic import atomic_file

HERE = Path(__file__).parent
CONFIGS = HERE.parent / 'docs' / 'configs'
RESULT = HERE / 'results' / 'cost.json'
#: Assumed fraction of the peak rate. Narrow feature maps keep a GPU from more; nothing here was timed on one.
UTILISATION = 0.1
#: Values of the argument ``checkpointing`` of a backbone, in the order of the table.
CHECKPOINTING = (False, 1, True, 2, 3, 4)


class Recipe(NamedTuple):
    """Training of a dataset as published.

    Attributes:
        config: Configuration in docs/configs.
        pixels: Height and width of the images of each modality.
        stored: Bytes of a value in the files of each modality.
        dates: Dates of each time series, at most those of the configuration.
        labels: Height and width of the mask.
        train: Number of training tiles.
        val: Number of validation tiles.
    """

    config: str
    pixels: Mapping[str, int]
    stored: Mapping[str, int]
    dates: Mapping[str, int]
    labels: int
    train: int
    val: int


class Hardware(NamedTuple):
    """GPUs of a configuration in docs/configs/hardware.

    Attributes:
        name: Name of the configuration.
        gpu: A GPU of this kind, whose peak rate counts.
        memory: Memory of each GPU in GB.
        peak: Peak rate of dense bfloat16 products of each GPU in TFLOP/s, from its data sheet.
    """

    name: str
    gpu: str
    memory: int
    peak: float


_PASTIS: dict[str, Any] = {
    'pixels': {'s2': 128, 's1a': 128, 's1d': 128, 'spot': 1280},
    'stored': {'s2': 2, 's1a': 2, 's1d': 2, 'spot': 1},
    'dates': {'s2': 61, 's1a': 70, 's1d': 70},
    'labels': 128,
    'train': 1460,  # three fifths of 2433 tiles; folds differ by a few
    'val': 487,
}
RECIPES = {
    'pastis-hd': Recipe('pastis-hd', **_PASTIS),
    'pretraining-hd': Recipe('pretraining-hd', **_PASTIS),
    'flair': Recipe('flair', {'aerial': 512, 's2': 10}, {'aerial': 1, 's2': 2}, {'s2': 60}, 512, 49_370, 12_342),
}
HARDWARE = (
    Hardware('one-24gb', 'A10', 24, 125.0),
    Hardware('one-80gb', 'A100', 80, 312.0),
    Hardware('eight-80gb', 'A100', 80, 312.0),
)


class PeakMemory(TorchDispatchMode):
    """Peak number of bytes of the tensors that operations create and that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def count(self, *values: Any) -> None:
        """Count the storages of tensors, each once, until they are freed."""
        for tensor in (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.alive:
                continue
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its results."""
        result = func(*args, **(kwargs or {}))
        self.count(result)
        return result


def read(name: str) -> dict[str, Any]:
    """Read a configuration of docs/configs."""
    found: dict[str, Any] = yaml.safe_load((CONFIGS / f'{name}.yaml').read_text())
    return found


def build(recipe: Recipe, backbone_args: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Tensor]]:
    """Return the task of a recipe and one random tile, all valid."""
    config = read(recipe.config)
    data = config['data']['init_args']
    datamodule = getattr(datamodules, config['data']['class_path'])(**data)
    declared = datamodule.dataset_class.all_modalities
    modalities = {name: declared[name] for name in data.get('modalities') or declared}
    dates = {name: min(most, data.get('max_dates') or most) for name, most in recipe.dates.items()}
    batch: dict[str, Tensor] = {}
    for name, modality in modalities.items():
        shape = (len(modality.bands), recipe.pixels[name], recipe.pixels[name])
        count = dates.get(name, 1)
        batch[modality.image_key] = torch.randn(1, *((count,) if modality.temporal else ()), *shape)
        batch[modality.dates_key] = 17_800 + torch.arange(count)[None] * 5
        batch[modality.valid_key] = torch.ones(1, count, dtype=torch.bool)
    told = dict(config['model']['init_args']) | ({'backbone_args': dict(backbone_args)} if backbone_args else {})
    known: dict[str, Any] = {'modalities': modalities, 'patch_size': datamodule.patch_size}
    if config['model']['class_path'] == 'omnisat':
        if told.get('subset_weight') == 0:
            told['modality_dropout'] = 0.0  # otherwise a modality of the only tile may be dropped
        classes = datamodule.num_classes
        batch['mask'] = torch.randint(classes - 1, (1, recipe.labels, recipe.labels))
        known |= {'num_classes': classes, 'ignore_index': datamodule.ignore_index, 'label_gsd': datamodule.label_gsd}
        return tasks.OmniSatSegmentation(**told, **known), batch
    return tasks.OmniSatPretraining(**told, **known), batch


def loss_of(task: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of a training step."""
    with torch.autocast('cpu', torch.bfloat16):
        found: Tensor
        if isinstance(task, tasks.OmniSatPretraining):
            found = task.compute(batch, 'train', 0)[0]
        else:
            found = task.learn(batch)[1]
    return found


def count(name: str, tiles: int) -> dict[str, float]:
    """Count the operations of a step of *tiles* tiles in TFLOP, and its memory in GB; none of it depends on time."""
    warnings.filterwarnings('ignore')  # a task without a trainer cannot log
    torch.manual_seed(0)
    packing.BLOCK = ltae.BLOCK = 2**60  # all dates at once, as on a GPU
    task, batch = build(RECIPES[name])
    task.train()
    batch = {key: value.repeat(tiles, *[1] * (value.ndim - 1)) for key, value in batch.items()}
    parameters = list(task.parameters())
    optimizer = torch.optim.AdamW(parameters)
    with PeakMemory() as memory, FlopCounterMode(display=False) as step:
        memory.count(parameters, list(task.buffers()), batch)
        loss_of(task, batch).backward()
        optimizer.step()
    task.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        loss_of(task, batch)
    recipe = RECIPES[name]
    images = {key.removeprefix('image_'): value for key, value in batch.items() if key.startswith('image_')}
    return {
        'MB': sum(value[0].numel() * recipe.stored[key] for key, value in images.items()) / 1e6,
        'parameters': sum(parameter.numel() for parameter in parameters),
        'step': step.get_total_flops() / 1e12,
        'forward': forward.get_total_flops() / 1e12,
        'GB': memory.peak / 1e9,
    }


def count_shapes(checkpointing: bool | int, tiles: int) -> dict[str, float]:
    """Count as :func:`count` does a step of pastis-hd, whose tensors have shapes and no values."""
    found = {}
    packing.BLOCK = ltae.BLOCK = 2**60
    for key in ('GB', 'TFLOP'):  # one after the other: the counter of operations keeps tensors alive
        task, batch = build(RECIPES['pastis-hd'], {'checkpointing': checkpointing})
        shapes = FakeTensorMode()
        with mock.patch('torch.__future__.get_overwrite_module_params_on_conversion', return_value=True):
            task._apply(shapes.from_tensor)
        batch = {key: shapes.from_tensor(value) for key, value in batch.items()}
        gc.collect()
        counter: Any = PeakMemory() if key == 'GB' else FlopCounterMode(display=False)
        with shapes, mock.patch('torch.compiler.is_compiling', return_value=True):  # no branch depends on values
            task.train()
            batch = {key: value.repeat(tiles, *[1] * (value.ndim - 1)) for key, value in batch.items()}
            with counter:
                if key == 'GB':
                    counter.count(list(task.parameters()), list(task.buffers()), batch)
                loss_of(task, batch).backward()
        states = 8 * sum(parameter.numel() for parameter in task.parameters())  # two of AdamW, in single precision
        found[key] = (counter.peak + states) / 1e9 if key == 'GB' else counter.get_total_flops() / 1e12
    return found


def checkpointing_table(tiles: int = 8) -> str:
    """Return memory and operations of a step for each value of ``checkpointing`` in Markdown."""
    lines = ['| `checkpointing` | memory, counted | operations | recomputed |', '| --- | --- | --- | --- |']
    least = 0.0
    for value in CHECKPOINTING:
        found = count_shapes(value, tiles)
        least = least or found['TFLOP']
        again = found['TFLOP'] / least - 1
        lines.append(f'| `{json.dumps(value)}` | {found["GB"]:.1f} GB | {found["TFLOP"]:.2f} TFLOP | {again:.0%} |')
    return '\n'.join(lines)


def apart(name: str, tiles: int) -> dict[str, float]:
    """Count in a process of its own, whose memory is free afterwards."""
    words = [sys.executable, __file__, '--one', name, '--tiles', str(tiles)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def estimate(name: str, counts: Mapping[str, float], hardware: Hardware, utilisation: float) -> dict[str, Any]:
    """Return tiles, memory in GB and estimated hours of a recipe on some hardware."""
    recipe, setting = RECIPES[name], read(f'hardware/{hardware.name}')
    trainer, batch = setting['trainer'], setting['data']['init_args']['batch_size']
    epochs, gpus = read(recipe.config)['trainer']['max_epochs'], trainer['devices']
    operations = epochs * (recipe.train * counts['step'] + recipe.val * counts['forward'])
    seconds = operations / (gpus * hardware.peak * utilisation)
    return {
        'GB': counts['GB, fixed'] + batch * counts['GB, tile'],
        'hours': seconds / 3600,
        'MB/s': epochs * (recipe.train + recipe.val) * counts['MB'] / seconds,
    }


def table(counts: Mapping[str, Mapping[str, float]], utilisation: float) -> str:
    """Return the counts and the estimates as two tables in Markdown."""
    lines = [
        '| recipe | parameters | step of one tile | epochs | tiles per epoch |',
        '| --- | --- | --- | --- | --- |',
    ]
    for name, found in counts.items():
        recipe, epochs = RECIPES[name], read(RECIPES[name].config)['trainer']['max_epochs']
        size, step = f'{found["parameters"] / 1e6:.1f} M', f'{found["step"]:.2f} TFLOP'
        lines.append(f'| `{recipe.config}` | {size} | {step} | {epochs} | {recipe.train} |')
    head = ('recipe', 'hardware', 'memory, counted', f'hours at {utilisation:.0%}', 'to read meanwhile')
    lines += ['', f'| {" | ".join(head)} |', '| --- | --- | --- | --- | --- |']
    for name, found in counts.items():
        for hardware in HARDWARE:
            guess = estimate(name, found, hardware, utilisation)
            lines.append(
                f'| `{RECIPES[name].config}` | `{hardware.name}` ({hardware.gpu}) | {guess["GB"]:.0f} of '
                f'{hardware.memory} GB | {guess["hours"]:.1f} | {guess["MB/s"]:.0f} MB/s |'
            )
    return '\n'.join(lines)


def main() -> None:
    """Count each recipe with one and two tiles, each in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--recipes', nargs='+', choices=RECIPES, default=list(RECIPES))
    parser.add_argument('--utilisation', type=float, default=UTILISATION, help='assumed fraction of the peak rate')
    parser.add_argument('--output', type=Path, help='JSON of the counts; results/cost.json for all recipes')
    parser.add_argument('--checkpointing', action='store_true', help='count each value of checkpointing instead')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    parser.add_argument('--tiles', type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(count(args.one, args.tiles)))
        return
    if args.checkpointing:
        warnings.filterwarnings('ignore')
        print(checkpointing_table())
        return
    counts = {}
    for name in args.recipes:
        one, two = (apart(name, tiles) for tiles in (1, 2))
        tile = two['GB'] - one['GB']
        counts[name] = {key: value for key, value in one.items() if key != 'GB'}
        counts[name] |= {'GB, fixed': one['GB'] - tile, 'GB, tile': tile}
    output = args.output or (RESULT if args.recipes == list(RECIPES) else None)
    if output is not None:
        versions = {name: version(name) for name in ('torch', 'torchgeo', 'timm')}
        with atomic_file(output) as temporary:
            temporary.write_text(json.dumps({'versions': versions, 'counts': counts}, indent=1) + '\n')
    print(table(counts, args.utilisation))


if __name__ == '__main__':
    main()
