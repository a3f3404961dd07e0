# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What a step of pre-training takes of memory above its model and its batch.

As a script, with the number of tiles and those of a micro-batch (0 for all at once), it prints MB.
"""

import resource
import sys
from pathlib import Path

import torch

from torchgeo_omnisat.modality import Modality
from torchgeo_omnisat.tasks import OmniSatPretraining

MODALITIES = {name: Modality(name, ('A', 'B'), 10, True) for name in ('s2', 's1a')}


def main(tiles: int, micro: int) -> None:
    task = OmniSatPretraining('omnisat_tiny', MODALITIES, 80.0, max_dates=2, micro_batch_size=micro or None)
    batch = {}
    for modality in MODALITIES.values():
        batch[modality.image_key] = torch.randn(tiles, 8, 2, 32, 32)
        batch[modality.dates_key] = 17900 + torch.arange(0, 240, 30).repeat(tiles, 1)
        batch[modality.valid_key] = torch.ones(tiles, 8, dtype=torch.bool)
    before = int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()
    task.compute(batch, 'train', 0)[0].backward()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e6)


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]))
