# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Evaluation of the published weights of U-TAE on PASTIS, to validate dataset, normalisation, padding and metric.

The published code standardises the images of a test fold with the statistics of that fold. The datamodule uses those
of the training folds. Both are evaluated; the former is compared with the published score.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datasets.utils import Sample
from tqdm import tqdm

from ..datamodules import PASTISMultimodalDataModule
from ..datamodules.common.statistics import read_statistics
from ..datasets.pastis import FOLDS
from ..datasets.synthetic.writing import is_synthetic
from ..models.encoders.series.utae import UTAE
from ..models.encoders.weights import published, read_published
from ..transforms import Normalize
from ..utils.atomic import atomic_file
from .data import PUBLIC
from .runs import CONFUSION, PUBLISHED, Machine, Run, circumstances, flat, uses_gpu
from .scores import Counts, mean_iou, overall_accuracy

#: Mean IoU in % that the authors report, and the difference up to which it is reproduced.
EXPECTED, TOLERANCE = 63.1, 0.3
#: Statistics with which images are standardised, by name; the published ones first.
NORMALIZATIONS = ('test fold', 'training folds')
#: Batch size of the published evaluation.
BATCH_SIZE = 4
_SUBSET = 's2'


def published_run(data: str, fold: int, weights: str | None) -> Run:
    """Return the run that evaluates the published weights of a fold, identified by their content.

    Raises:
        ValueError: If *data* is not PASTIS.
        FileNotFoundError: If *weights* has no file of the fold.
    """
    if PUBLIC[data].datamodule != 'PASTISMultimodalDataModule':
        raise ValueError(f'--data is {data}, expected PASTIS for the row published, the weights of U-TAE on PASTIS')
    digest = 'zenodo' if weights is None else hashlib.sha256(weights_file(weights, fold).read_bytes()).hexdigest()
    return Run(data, fold, 0, PUBLISHED, json.dumps({'weights': digest}), ('s2',), 0.0, 0, 1.0, 0, BATCH_SIZE, 0.0)


def weights_file(folder: str, fold: int) -> Path:
    """Return the file of a fold in a folder of published weights, ``Fold_1/model.pth.tar`` and so on."""
    path = Path(folder).expanduser() / f'Fold_{fold}' / 'model.pth.tar'
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} does not exist, expected the unpacked weights of https://zenodo.org/records/5172293, '
            'Fold_1/model.pth.tar to Fold_5/model.pth.tar'
        )
    return path


def evaluate(run: Run, folder: Path, root: str, machine: Machine) -> dict[str, Any]:
    """Evaluate the published weights of a fold on its test fold, and return the row of the table."""
    start, (test_fold,) = time.perf_counter(), FOLDS[run.fold][2]
    if machine.weights is None:
        state = published(f'PASTIS_FOLD{run.fold}')
    else:
        path = weights_file(machine.weights, run.fold)
        state = read_published(path, str(path))
    datamodule = PASTISMultimodalDataModule(
        root, run.fold, modalities=('s2',), batch_size=run.batch_size, num_workers=machine.workers
    )
    datamodule.setup('test')
    device = torch.device('cuda' if uses_gpu(machine.accelerator) else 'cpu')
    model = UTAE.from_published(state).to(device)
    dataset: Any = datamodule.test_dataset
    counts, void = count(model, datamodule, normalizations(datamodule, test_fold), device)
    scores = {name: mean_iou(found) for name, found in counts.items()}
    official = counts[NORMALIZATIONS[0]]
    path = folder / run.key / CONFUSION
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({_SUBSET: official.tolist()}))
    with atomic_file(path.with_name('normalizations.json')) as temporary:
        temporary.write_text(json.dumps({name: found.tolist() for name, found in counts.items()}))
    return {
        'key': run.key,
        **flat(run),
        'made_up': is_synthetic(Path(root)),
        'mean_iou': round(scores[NORMALIZATIONS[0]], 3),
        'overall_accuracy': round(overall_accuracy(official), 3),
        'subsets': json.dumps({_SUBSET: round(scores[NORMALIZATIONS[0]], 3)}),
        'seconds': json.dumps({'test': round(time.perf_counter() - start, 1)}),
        **circumstances(machine.accelerator),
        'devices': 1,
        'test_tiles': len(dataset),
        'predicted_void': void,
        'mean_iou_training_statistics': round(scores[NORMALIZATIONS[1]], 3),
    }


def normalizations(datamodule: PASTISMultimodalDataModule, test_fold: int) -> dict[str, Normalize]:
    """Return the transforms that standardise Sentinel-2, by name in :data:`NORMALIZATIONS`.

    Raises:
        FileNotFoundError: If the data have no ``NORM_S2_patch.json``.
    """
    dataset: Any = datamodule.test_dataset
    path = dataset.path / 'NORM_S2_patch.json'
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist, expected the published statistics of PASTIS')
    s2 = datamodule.modalities['s2']
    mean, std = read_statistics(path, f'Fold_{test_fold}', len(s2.bands))
    found = {'mean': {'s2': mean.float()}, 'std': {'s2': std.float()}}
    return {
        NORMALIZATIONS[0]: Normalize([s2], **found),
        NORMALIZATIONS[1]: Normalize([s2], datamodule.mean, datamodule.std),
    }


@torch.inference_mode()
def count(
    model: UTAE,
    datamodule: PASTISMultimodalDataModule,
    transforms: Mapping[str, Normalize],
    device: torch.device,
    batches: int | None = None,
) -> tuple[dict[str, Counts], int]:
    """Return the confusion matrices ``(20, 20)`` of the test fold by normalisation.

    Void is neither counted nor predicted, as in the metric of the tasks. Also return the number of labelled pixels
    of the first normalisation at which the published argmax, which includes void, would have predicted void. Only the
    first *batches* are read, if it is set.
    """
    classes, void, dropped = datamodule.num_classes, datamodule.ignore_index, 0
    assert void is not None
    found = {name: torch.zeros(classes * classes, dtype=torch.int64) for name in transforms}
    loader: DataLoader[Sample] = datamodule.test_dataloader()
    for batch in tqdm(islice(loader, batches), desc='U-TAE', unit=' batches', disable=None, leave=False):
        moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        mask = moved['mask'].flatten()
        counted = mask != void
        for number, (name, transform) in enumerate(transforms.items()):
            sample = transform.to(device)(dict(moved))
            logits = model(sample['image_s2'], sample['dates_s2'], sample['valid_s2'])
            if number == 0:
                dropped += int((logits.argmax(1).flatten() == void)[counted].sum())
            logits[:, void] = -torch.inf
            pairs = mask[counted] * classes + logits.argmax(1).flatten()[counted]
            found[name] += torch.bincount(pairs, minlength=classes * classes).cpu()
    return {name: np.asarray(counts.view(classes, classes)) for name, counts in found.items()}, dropped


def seconds_per_batch(root: str, fold: int, machine: Machine, batches: int = 2) -> float:
    """Return the seconds of a batch of the evaluation, measured with random weights."""
    datamodule = PASTISMultimodalDataModule(root, fold, modalities=('s2',), batch_size=BATCH_SIZE)
    datamodule.setup('test')
    device = torch.device('cuda' if uses_gpu(machine.accelerator) else 'cpu')
    model = UTAE(published=True).to(device).eval()
    transforms = normalizations(datamodule, FOLDS[fold][2][0])
    count(model, datamodule, transforms, device, 1)
    start = time.perf_counter()
    count(model, datamodule, transforms, device, batches)
    return (time.perf_counter() - start) / min(batches, len(datamodule.test_dataloader()))


def verdict(counts: Mapping[int, Counts], complete: bool) -> str:
    """Return whether the published score is reproduced, from the confusion matrices by fold.

    *complete* states whether the data are the whole of PASTIS.
    """
    total = sum(counts.values(), start=np.zeros((20, 20), np.int64))
    score = mean_iou(total)
    folds = ', '.join(str(fold) for fold in sorted(counts))
    if not complete or set(counts) != set(FOLDS):
        why = 'the data are not the whole of PASTIS' if not complete else f'only splits {folds} were evaluated'
        return (
            f'Published weights of U-TAE: mean IoU {score:.1f} %. It cannot be compared with the published '
            f'{EXPECTED} %, because {why}.'
        )
    if abs(score - EXPECTED) <= TOLERANCE:
        return (
            f'Published weights of U-TAE: mean IoU {score:.2f} %, within {TOLERANCE} of the published {EXPECTED} %. '
            'Dataset, normalisation, padding and metric are as published.'
        )
    return (
        f'THE PIPELINE IS WRONG: the published weights of U-TAE have a mean IoU of {score:.2f} %, expected '
        f'{EXPECTED} % within {TOLERANCE}. Dataset, normalisation, padding or metric differ from the published ones; '
        'other scores of these data are not comparable either.'
    )
