# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What a step of pre-training takes of memory above its model and its batch."""

from pathlib import Path

import torch

from torchgeo_omnisat.modality import Modality
from torchgeo_omnisat.tasks import OmniSatPretraining

MODALITIES = {name: Modality(name, ('A', 'B'), 10, True) for name in ('s2', 's1a')}


def resident(kind: str) -> float:
    """Resident memory in MB, now or at its peak; what getrusage tells of the peak holds that of the parent."""
    status = Path('/proc/self/status').read_text()
    return int(status.partition(f'{kind}:')[2].split()[0]) / 1e3


def main(tiles: int, micro: int | None, output: Path) -> None:
    """Write MB, of so many tiles and those of a micro-batch, or all at once."""
    task = OmniSatPretraining('omnisat_tiny', MODALITIES, 80.0, max_dates=2, micro_batch_size=micro)
    batch = {}
    for modality in MODALITIES.values():
        batch[modality.image_key] = torch.randn(tiles, 8, 2, 32, 32)
        batch[modality.dates_key] = 17900 + torch.arange(0, 240, 30).repeat(tiles, 1)
        batch[modality.valid_key] = torch.ones(tiles, 8, dtype=torch.bool)
    before = resident('VmRSS')
    task.compute(batch, 'train', 0)[0].backward()
    output.write_text(str(resident('VmHWM') - before))
