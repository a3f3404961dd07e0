# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Whether the made-up multi-label and land-cover tasks can be learned, in a few minutes.

Writes synthetic plots in TreeSatAI's layout and synthetic patches in FLAIR's, trains
``omnisat_tiny`` on each and scores what was held out, beside the best answer that looks at no
image: for labels, to say all of them of every sample; for land cover, the commonest class
everywhere. Both scores are means over what occurs in the test split; the macro F1 that a test logs
counts genera that nowhere occur as 0. Scores are of synthetic data and say nothing about real land.
What writes them is in ``tests/landscapes``, which an editable installation (``make env``) finds.

    python benchmarks/learning.py --task treesatai
    python benchmarks/learning.py --task flair
"""

import argparse
import json
import logging
import os
import platform
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from tests.landscapes.flair import FLAIRRecipe, write_flair
from tests.landscapes.treesatai import TreeSatAIRecipe, write_treesatai
from torchgeo_omnisat.datamodules import FLAIRDataModule, TreeSatAITimeSeriesDataModule
from torchgeo_omnisat.tasks import OmniSatClassification, OmniSatSegmentation
from torchgeo_omnisat.utils.atomic import atomic_file

#: Plots or zones, and passes over them: five minutes on one core.
SIZES = {'treesatai': (600, 25), 'flair': (20, 3)}


def treesatai(root: Path, size: int) -> tuple[Any, Any]:
    """Genera of plots, from three series: Sentinel-2 alone does not tell them all apart."""
    write_treesatai(root, TreeSatAIRecipe(num_tiles=size, dates=16))
    datamodule = TreeSatAITimeSeriesDataModule(str(root), modalities=('s2', 's1a', 's1d'), batch_size=16)
    return datamodule, OmniSatClassification('omnisat_tiny', lr=3e-3, modality_dropout=0.0)


def flair(root: Path, size: int) -> tuple[Any, Any]:
    """Land cover of patches, from their aerial images and Sentinel-2."""
    write_flair(root, FLAIRRecipe(zones=size, dates=8))
    datamodule = FLAIRDataModule(str(root), batch_size=2)
    return datamodule, OmniSatSegmentation('omnisat_tiny', lr=2e-3)


def trivial_f1(labels: torch.Tensor) -> float:
    """Macro F1 over labels that occur of saying each of them always, which is the best of no image."""
    share = labels.mean(0)
    share = share[share > 0]
    return float((2 * share / (1 + share)).mean())


def trivial_iou(masks: torch.Tensor, ignore_index: int | None) -> float:
    """Mean IoU over classes that occur of the commonest class everywhere."""
    kept = masks[masks != ignore_index] if ignore_index is not None else masks
    count = torch.bincount(kept.flatten()).float()
    return float(count.max() / count.sum() / (count > 0).sum())


def report(task: str, scores: dict[str, Any], target: torch.Tensor, datamodule: Any) -> dict[str, Any]:
    """Return the score and the trivial score, averaged over the classes that occur, and those of each class."""
    if task == 'treesatai':
        metric, trivial, names = 'F1Score', trivial_f1(target), datamodule.label_names
        held = target.any(0).tolist()
    else:
        metric, trivial, names = 'JaccardIndex', trivial_iou(target, datamodule.ignore_index), datamodule.labels
        held = [index != datamodule.ignore_index and bool((target == index).any()) for index in range(len(names))]
    occurring = [name for name, there in zip(names, held, strict=True) if there]
    each = {name: round(float(scores[f'test_Classwise{metric}_{name}']), 3) for name in occurring}
    score = round(sum(each.values()) / len(each), 3)
    return {'metric': f'mean {metric}', 'score': score, 'trivial': round(trivial, 3), 'each': each}


def main() -> None:
    """Write, train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=('treesatai', 'flair'), default='treesatai')
    parser.add_argument('--size', type=int, help='plots of TreeSatAI, or zones of FLAIR')
    parser.add_argument('--epochs', type=int)
    parser.add_argument('--output', type=Path, default=Path('benchmarks/results'))
    args = parser.parse_args()
    size, epochs = SIZES[args.task]
    args.size, args.epochs = args.size or size, args.epochs or epochs
    torch.set_num_threads(1)
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore')
    seed_everything(0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / 'root'
        datamodule, task = {'treesatai': treesatai, 'flair': flair}[args.task](root, args.size)
        quiet = {'logger': False, 'enable_checkpointing': False, 'enable_model_summary': False}
        trainer = Trainer(
            accelerator='cpu',
            max_epochs=args.epochs,
            check_val_every_n_epoch=args.epochs,
            default_root_dir=name,
            **quiet,
        )
        trainer.fit(task, datamodule=datamodule)
        (scores,) = trainer.test(task, datamodule=datamodule, verbose=False)
        test = datamodule.test_dataset
        key = 'label' if args.task == 'treesatai' else 'mask'
        target = torch.stack([test[index][key] for index in range(len(test))])
    row = {'data': 'synthetic', 'task': args.task, 'size': args.size, 'steps': trainer.global_step}
    row |= report(args.task, scores, target, datamodule)
    row |= {'machine': {'processor': platform.processor() or platform.machine(), 'cores': os.cpu_count()}}
    with atomic_file(args.output / f'learning_{args.task}.json') as temporary:
        temporary.write_text(json.dumps(row, indent=1) + '\n')
    print(
        f'{args.task} (synthetic): {row["metric"]} {row["score"]} on held-out samples, {row["trivial"]} without images'
    )


if __name__ == '__main__':
    main()
