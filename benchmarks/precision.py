# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Scores after a training in single and in half precision.

Trains ``omnisat_tiny`` on synthetic landscapes from one seed in each precision, and scores held-out tiles in the same
precision. ``16-mixed`` is autocast to float16 with a gradient scaler, which Lightning replaces by ``bf16-mixed`` on the
CPU unless the plugin is given. Scores are of synthetic data.

    python benchmarks/precision.py                         # all precisions
    python benchmarks/precision.py --precision bf16-true   # one of them; the others are kept in the JSON file
"""

import argparse
import json
import logging
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.plugins.precision import MixedPrecision

from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.tasks import OmniSatSegmentation
from torchgeo_omnisat.utils.atomic import atomic_file

PRECISIONS = ('32-true', 'bf16-mixed', 'bf16-true', '16-mixed')


def run(precision: str, root: Path, folder: str, steps: int, seed: int) -> dict[str, Any]:
    """Train and test in one precision."""
    seed_everything(seed, verbose=False)
    data = SyntheticLandscapesDataModule(
        root=str(root), num_tiles=80, size=32, dates=(6, 8), modalities=('s2', 's1a', 'spot'), batch_size=4
    )
    settings: dict[str, Any] = {'precision': precision}
    if precision == '16-mixed':
        settings = {'plugins': [MixedPrecision('16-mixed', 'cpu')]}
    quiet = {'logger': False, 'enable_checkpointing': False, 'enable_progress_bar': False}
    trainer = Trainer(
        accelerator='cpu',
        max_steps=steps,
        limit_val_batches=0,
        enable_model_summary=False,
        default_root_dir=folder,
        **settings,
        **quiet,
    )
    task = OmniSatSegmentation('omnisat_tiny', modality_dropout=0.0)
    start = time.process_time()
    trainer.fit(task, data)
    seconds = time.process_time() - start
    (scores,) = trainer.test(task, data, verbose=False)
    return {
        'mean IoU': float(scores['test_AverageJaccardIndex']),
        'accuracy': float(scores['test_OverallAccuracy']),
        'loss': float(scores['test_loss']),
        'parameters': str(next(task.parameters()).dtype),
        'seconds': seconds,
    }


def main() -> None:
    """Train in each precision and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--precision', choices=PRECISIONS, nargs='+', default=PRECISIONS)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--output', type=Path, default=Path('benchmarks/results/precision.json'))
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore')
    rows: dict[str, Any] = json.loads(args.output.read_text())['rows'] if args.output.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in args.precision:
            row = run(precision, Path(folder) / 'root', folder, args.steps, args.seed)
            rows[precision] = {'steps': args.steps, 'seed': args.seed, **row}
            about = {'processor': platform.processor() or platform.machine(), 'cores': os.cpu_count()}
            with atomic_file(args.output) as temporary:
                temporary.write_text(json.dumps({'data': 'synthetic', 'machine': about, 'rows': rows}, indent=1) + '\n')
    print('| precision | mean IoU | accuracy | loss |\n| --- | --- | --- | --- |')
    for precision, row in rows.items():
        print(f'| `{precision}` | {100 * row["mean IoU"]:.1f} | {100 * row["accuracy"]:.1f} | {row["loss"]:.3f} |')


if __name__ == '__main__':
    main()
