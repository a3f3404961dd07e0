# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Demo: train and evaluate a small model on synthetic landscapes with TorchGeo's command line."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torchgeo.main

from .. import plugin
from ..datamodules import SyntheticLandscapesDataModule
from ..modality import subset_name
from ..tasks import OmniSatSegmentation
from ..utils.atomic import atomic_file
from ..utils.cli.console import quiet, say
from . import parsers
from .baseline import score_pixels

#: Number of test tiles to plot.
PICTURES = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Fit and test a model, compare it with the baseline, and plot predictions."""
    args = parsers.demo_parser().parse_args(argv)
    data = {'root': str(args.output / 'landscapes'), 'num_tiles': args.tiles}
    checkpoint, table = args.output / 'omnisat.ckpt', args.output / 'subsets.csv'

    fit_and_test(args.output, data, checkpoint, args.backbone, args.epochs)
    datamodule = SyntheticLandscapesDataModule(**data)
    datamodule.setup('test')
    pictures = draw_pictures(datamodule, checkpoint, args.output / 'pictures')
    say('Training a pixel-wise MLP on the same landscapes as a baseline ...')
    baseline = {subset_name(names): score_baseline(data, names) for names in (list(datamodule.modalities), ['s2'])}
    say(format_scores(table, baseline))
    say('\n'.join(map(str, ['Written:', checkpoint, table, table.with_suffix('.png'), *pictures])))
    return 0


def fit_and_test(output: Path, data: Mapping[str, Any], checkpoint: Path, backbone: str, epochs: int) -> None:
    """Print and run ``torchgeo fit`` and ``torchgeo test``."""
    shared: dict[str, Any] = {'model': 'omnisat', 'data': 'SyntheticLandscapesDataModule'}
    shared |= {f'data.{name}': value for name, value in data.items()}
    shared |= {'trainer.default_root_dir': output, 'trainer.logger': 'false', 'trainer.devices': 1}
    fit = {
        'model.backbone': backbone,
        'trainer.max_epochs': epochs,
        'trainer.check_val_every_n_epoch': max(1, epochs // 2),
        'trainer.num_sanity_val_steps': 0,
        'trainer.enable_model_summary': 'false',
        'trainer.callbacks': 'ModelCheckpoint',
        'trainer.callbacks.dirpath': checkpoint.parent,
        'trainer.callbacks.filename': checkpoint.stem,
        'trainer.callbacks.enable_version_counter': 'false',
    }
    plugin.load()
    test = {'ckpt_path': checkpoint, 'verbose': 'false'}
    for command, options in {'fit': shared | fit, 'test': shared | test}.items():
        words = [command, *(word for name, value in options.items() for word in (f'--{name}', str(value)))]
        say('$ torchgeo', shlex.join(words))
        with quiet():
            torchgeo.main.main(words)


def score_baseline(data: Mapping[str, Any], names: Sequence[str]) -> float:
    """Return the mean IoU of the pixel-wise baseline on the test tiles."""
    datamodule = SyntheticLandscapesDataModule(**data, modalities=tuple(names))
    return score_pixels(datamodule.make_dataset('train'), datamodule.make_dataset('test'))


@torch.inference_mode()
def draw_pictures(datamodule: SyntheticLandscapesDataModule, checkpoint: Path, folder: Path) -> list[Path]:
    """Plot inputs, mask and prediction of some test tiles."""
    task = OmniSatSegmentation.load_from_checkpoint(checkpoint, map_location='cpu', weights_only=True).eval()
    dataset = datamodule.make_dataset('test')
    tiles = [dataset[index] for index in range(min(PICTURES, len(dataset)))]
    batch = datamodule.aug(datamodule.collate_fn(tiles))
    batch['prediction'] = task.classes(task(batch))
    pictures = [folder / f'held_out_{index}.png' for index in range(len(tiles))]
    for index, path in enumerate(pictures):
        sample = {key: value[index] for key, value in batch.items()}
        figure = datamodule.plot(sample, suptitle='Synthetic landscape of the test split')
        with atomic_file(path) as temporary:
            figure.savefig(temporary)
        plt.close(figure)
    return pictures


def format_scores(table: Path, baseline: Mapping[str, float]) -> str:
    """Return a table of the scores of every subset in ``subsets.csv``, and of the baseline for some subsets."""
    scores = pd.read_csv(table).set_index('subset')['mean_iou']
    lines = ['', 'Mean IoU on held-out synthetic landscapes', f'{"":<22}{"omnisat":>8}{"pixel-wise MLP":>22}']
    for subset, score in scores.items():
        other = f'{baseline[subset]:>22.3f}' if subset in baseline else ''
        lines.append(f'{subset:<22}{score:>8.3f}{other}')
    return '\n'.join([*lines, ''])
