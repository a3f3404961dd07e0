# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What objects, a teacher at three granularities and prototypes of regions add to pre-training.

Each variant is pre-trained without labels on the images of all training tiles of synthetic landscapes. Its frozen
backbone is then probed (macro F1 of patches by nearest neighbours and by a linear classifier), and fine-tuned, both
with the labels of a tenth of the tiles. Steps, tiles and order are the same for all variants. A run is a row of the
table; runs that are there are not repeated.

    python benchmarks/granularity.py                                   # all variants, seeds 0, 1, 2
    python benchmarks/granularity.py --variants default object --seeds 0
    python benchmarks/granularity.py --table                           # print the table only
    python benchmarks/granularity.py --variants default location --regions 10 --root DIR --results FILE.csv
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from embeddings import KeptLandscapes, is_done
from lightning.pytorch import LightningModule, Trainer, seed_everything

from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.evaluation import ProbeCallback
from torchgeo_omnisat.evaluation.retrieval import effective_rank, spread
from torchgeo_omnisat.reproduction.few import FewSyntheticLandscapesDataModule
from torchgeo_omnisat.reproduction.runs import circumstances, keep, read
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation

HERE = Path(__file__).parent
ALL = ['pixel', 'object', 'image']
CONTEXT = {'backbone_args': {'context_degrees': 10.0}}
#: Arguments of the pre-training by variant; None is no pre-training.
VARIANTS: dict[str, Mapping[str, Any] | None] = {
    'none': None,
    'default': {},
    'object': {'object_weight': 1.0},
    'teacher pixel': {'granularity': ['pixel']},
    'teacher object': {'granularity': ['object']},
    'teacher image': {'granularity': ['image']},
    'teacher all': {'granularity': ALL},
    'context': CONTEXT,
    'together': {'object_weight': 1.0, 'granularity': ALL, **CONTEXT},
    'teacher all alone': {'granularity': ALL, 'tile_weight': 0, 'patch_weight': 0, 'reconstruction_weight': 0},
    'location': {'backbone_args': {'encoders': {'location': 'scaled'}}},
}
#: Variants without ``--variants``; landscapes without ``--regions`` are all in one place.
DEFAULT = [name for name in VARIANTS if name != 'location']
#: Columns with scores.
SCORES = ('probe_knn', 'probe_linear', 'mean_iou', 'mean_iou_subsets')


class ProbeBefore(ProbeCallback):
    """Probe of a backbone before it is fine-tuned."""

    found: dict[str, float]
    collapse: dict[str, float]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the backbone, and measure whether the fused patches of the validation tiles collapsed."""
        super().on_fit_start(trainer, pl_module)
        datamodule, task = trainer.datamodule, pl_module  # type: ignore[attr-defined]
        repeated = datamodule.train_dataset.patches
        datamodule.train_dataset.patches = list({id(patch): patch for patch in repeated}.values())
        self.found = self.probe(trainer, task)
        datamodule.train_dataset.patches = repeated
        dataset = datamodule.val_dataset
        batch = datamodule.aug(datamodule.collate_fn([dataset[i] for i in range(len(dataset))]))
        with torch.inference_mode():
            fused = task.eval().model.backbone(batch).fused.unsqueeze(0)
        task.train()
        everywhere = torch.ones(*fused.shape[1:3], 1, dtype=torch.bool)
        self.collapse = {
            'patch_rank': effective_rank(fused, everywhere).item(),
            'patch_spread': spread(fused, everywhere).item(),
            'tile_rank': effective_rank(fused.mean(2), everywhere[:, 0]).item(),
        }

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do nothing."""


def make_trainer(steps: int, folder: Path, *callbacks: Any) -> Trainer:
    """Return a trainer on one processor, which writes only the scores of subsets to a folder."""
    return Trainer(
        accelerator='cpu', devices=1, max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
        callbacks=list(callbacks), default_root_dir=folder,
    )  # fmt: skip


def measure(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Pre-train, probe, fine-tune and test; return a row of the table."""
    told = VARIANTS[name]
    data: dict[str, Any] = {
        'root': str(args.root),
        'num_tiles': args.tiles,
        'batch_size': args.batch_size,
        'modalities': ('s2', 's1a'),
    }
    data |= {'regions': args.regions, 'version': 2} if args.regions else {}
    own = {} if told is None else {k: v for k, v in told.items() if k == 'backbone_args'}
    start, weights = time.process_time(), args.folder / f'granularity-{name.replace(" ", "-")}-{seed}.ckpt'
    if told is not None:
        datamodule = SyntheticLandscapesDataModule(**data)
        datamodule.dataset_class = KeptLandscapes
        seed_everything(seed, verbose=False)
        trainer = make_trainer(args.pretraining_steps, args.folder)
        trainer.fit(OmniSatPretraining(args.backbone, **told), datamodule=datamodule)
        weights.parent.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(weights, weights_only=True)
    middle = time.process_time()
    few = FewSyntheticLandscapesDataModule(part=args.labels, draw=seed, **data)
    few.dataset_class = KeptLandscapes
    seed_everything(seed, verbose=False)
    probe = ProbeBefore(max_patches=8192, subsets=('s2+s1a',))
    task = OmniSatSegmentation(args.backbone, weights=None if told is None else str(weights), **own)
    trainer = make_trainer(args.steps, args.folder, probe)
    trainer.fit(task, datamodule=few)
    (scores,) = trainer.test(task, datamodule=few, verbose=False)
    weights.unlink(missing_ok=True)
    subsets = [value for key, value in scores.items() if key.startswith('test_AverageJaccardIndex/')]
    row = {
        'key': f'{name} {seed}', 'variant': name, 'seed': seed,
        'probe_knn': 100 * probe.found['probe_patch_knn/s1a+s2'],
        'probe_linear': 100 * probe.found['probe_patch_linear/s1a+s2'],
        'mean_iou': 100 * scores['test_AverageJaccardIndex'],
        'mean_iou_subsets': 100 * statistics.mean(subsets),
        **probe.collapse,
    }  # fmt: skip
    row = {column: round(value, 3) if isinstance(value, float) else value for column, value in row.items()}
    return row | settings_of(args) | {
        'pretraining_minutes': round((middle - start) / 60, 2),
        'fine_tuning_minutes': round((time.process_time() - middle) / 60, 2), **circumstances(),
    }  # fmt: skip


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of each row."""
    names = ('steps', 'pretraining_steps', 'batch_size', 'tiles', 'labels', 'backbone')
    return {name: getattr(args, name) for name in names} | {'regions': args.regions or ''}


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the table of the scores: mean and standard deviation, and gains over ``default`` of the same seed."""
    columns = ['pre-training', 'seeds', 'k-NN F1', 'linear F1', 'mean IoU', 'gain', 'of subsets']
    columns += ['rank of patches', 'of tiles', 'spread by seed']
    lines = [f'| {" | ".join(columns)} |', f'|{" --- |" * len(columns)}']
    before = {row['seed']: float(row['mean_iou']) for row in rows if row['variant'] == 'default'}
    for name in VARIANTS:
        own = sorted((row for row in rows if row['variant'] == name), key=lambda row: int(row['seed']))
        if own:
            knn, linear, iou, subsets = (pretty([float(row[column]) for row in own]) for column in SCORES)
            gains = [float(row['mean_iou']) - before[row['seed']] for row in own if row['seed'] in before]
            gain = '' if name == 'default' or not gains else pretty(gains, '+.1f')
            ranks = [pretty([float(row[column]) for row in own]) for column in ('patch_rank', 'tile_rank')]
            apart = ' / '.join(f'{float(row["patch_spread"]):.2f}' for row in own)
            lines.append(f'| {" | ".join([name, str(len(own)), knn, linear, iou, gain, subsets, *ranks, apart])} |')
    return '\n'.join(lines)


def pretty(values: Sequence[float], form: str = '.1f') -> str:
    """Return mean and standard deviation."""
    deviation = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):{form}}{deviation}'


def main() -> None:
    """Do the runs that are not in the results, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--variants', choices=list(VARIANTS), nargs='+', default=DEFAULT)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='seeds of weights, order and labels')
    parser.add_argument('--labels', type=float, default=0.1, help='fraction of the training tiles with labels')
    parser.add_argument('--steps', type=int, default=50, help='steps of fine-tuning')
    parser.add_argument('--pretraining-steps', type=int, default=150)
    parser.add_argument('--batch-size', type=int, default=8, help='tiles per step')
    parser.add_argument('--tiles', type=int, default=160, help='landscapes, of which three fifths are for training')
    parser.add_argument('--backbone', default='omnisat_tiny')
    parser.add_argument('--regions', type=int, help='regions of the landscapes; the test split has others')
    parser.add_argument('--table', action='store_true', help='do no runs')
    parser.add_argument('--root', type=Path, default=HERE / 'runs' / 'landscapes-embeddings')
    parser.add_argument('--folder', type=Path, default=HERE / 'runs', help='for checkpoints, which are removed')
    parser.add_argument('--results', type=Path, default=HERE / 'results' / 'granularity.csv')
    args = parser.parse_args()
    for seed in [] if args.table else args.seeds:
        for name in args.variants:
            if not is_done(args.results, f'{name} {seed}', settings_of(args)):
                keep(args.results, measure(name, seed, args))
    print(table(list(read(args.results).values())))


if __name__ == '__main__':
    main()
