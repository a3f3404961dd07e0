# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What augmentation costs beside a training step of ``omnisat_small``.

One batch is a PASTIS-HD tile (``speed.py``), random and all of it valid. Every repetition
times the training step and every augmentation one after the other, and the median of the
ratios counts, so that figures compare between machines and hours. The default of the
datamodules is to cost less than 10 % of the step.

    python benchmarks/augmentation.py
"""

import argparse
import json
import os
import statistics
from pathlib import Path

import torch
from speed import pastis_hd_tile, spent
from torch import nn

from torchgeo_omnisat import models, transforms
from torchgeo_omnisat.utils.atomic import atomic_file

#: The most that the default may cost, as a part of the training step.
BOUND = 0.10
DEFAULT = 'default of the datamodules'


def augmentations(modalities: dict) -> dict[str, nn.Module]:
    """Every row, the default first; normalisation is part of any training and so counted apart."""
    one = {
        name: getattr(transforms, name)(modalities)
        for name in (
            'RandomDihedral', 'RandomGroundCrop', 'RandomGroundAffine', 'RandomTemporalDropout', 'TemporalSubsample',
            'RandomDateShift', 'ModalityDropout', 'RandomClouds', 'RandomSpeckle', 'RandomBandDropout', 'RandomJitter',
        )
    }  # fmt: skip
    default = [one[name] for name in ('RandomDihedral', 'RandomTemporalDropout', 'RandomSpeckle', 'RandomJitter')]
    return {DEFAULT: transforms.MultimodalAugmentation(modalities, *default), **one}


def main() -> None:
    """Time everything in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=3, help='repetitions of the step and of every augmentation')
    parser.add_argument('--threads', type=int, default=min(2, os.cpu_count() or 1), help='threads of PyTorch')
    parser.add_argument('--output', type=Path, default=Path('benchmarks/results/augmentation.json'))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    modalities, batch = pastis_hd_tile()
    batch['mask'] = torch.randint(20, (1, 128, 128))
    model = models.OmniSatSegmenter(models.omnisat_small(modalities), num_classes=20).train()
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), batch['mask']).backward()
        optimizer.step()

    step()
    rows = augmentations(modalities)
    ratios: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(args.repeats):
        whole = spent(step).wall
        for name, augment in rows.items():
            augment(batch)
            ratios[name].append(spent(lambda augment=augment: augment(batch)).wall / whole)
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    with atomic_file(args.output) as temporary:
        temporary.write_text(json.dumps({'threads': args.threads, 'bound': BOUND, 'rows': medians}, indent=1) + '\n')
    print('| augmentation of one PASTIS-HD tile | part of a training step of omnisat_small |\n| --- | --- |')
    for name, median in medians.items():
        verdict = f' (bound {BOUND:.0%}: {"pass" if median < BOUND else "FAIL"})' if name == DEFAULT else ''
        print(f'| {name} | {median:.2%}{verdict} |')


if __name__ == '__main__':
    main()
