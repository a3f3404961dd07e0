# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""A task's surroundings, made up from a seed and kept small."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from torchgeo_omnisat.batch import collate
from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.modality import Modality

MODALITIES = {
    's2': Modality('s2', ('B02', 'B03', 'B04'), 10, True, 'optical', 'dn'),
    's1a': Modality('s1a', ('VV', 'VH'), 10, True, 'radar', 'db'),
    'spot': Modality('spot', ('R',), 5, False, 'optical', 'dn'),
}
TOLD: dict[str, Any] = {
    'backbone': 'omnisat_tiny',
    'modalities': MODALITIES,
    'num_classes': 5,
    'labels': ['a', 'b', 'c', 'd', 'void'],
    'ignore_index': 4,
    'patch_size': 40.0,
    'label_gsd': 10.0,
}


def make_sample(index: int, names: tuple[str, ...] = tuple(MODALITIES)) -> dict[str, Tensor]:
    """A random sample of 160 m a side, whose mask can be seen in its images."""
    generator = torch.Generator().manual_seed(index)
    mask = torch.randint(0, 5, (16, 16), generator=generator)
    sample = {'mask': mask, 'bounds': torch.arange(4, dtype=torch.float64) + index}
    for name in names:
        modality = MODALITIES[name]
        dates, side = (2 + index % 2 if modality.temporal else 1), modality.pixels(160)
        image = torch.randn(dates, len(modality.bands), side, side, generator=generator)
        image += mask.repeat_interleave(side // 16, 0).repeat_interleave(side // 16, 1)
        sample[modality.image_key] = image if modality.temporal else image[0]
        sample[modality.dates_key] = 17900 + 30 * torch.arange(dates)
        sample[modality.valid_key] = torch.ones(dates, dtype=torch.bool)
    return sample


def make_batch(count: int = 3) -> dict[str, Tensor]:
    return collate([make_sample(i) for i in range(count)], MODALITIES)


def make_loader(samples: list[dict[str, Tensor]]) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(samples, batch_size=2, collate_fn=lambda s: collate(s, MODALITIES))  # type: ignore[arg-type]


def make_trainer(folder: Path, **kwargs: Any) -> Trainer:
    settings = {
        'accelerator': 'cpu',
        'devices': 1,
        'max_steps': 2,
        'logger': CSVLogger(folder),
        'default_root_dir': folder,
        'enable_progress_bar': False,
        'enable_model_summary': False,
        'enable_checkpointing': False,
        'log_every_n_steps': 1,
        'num_sanity_val_steps': 0,
    }
    return Trainer(**(settings | kwargs))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def make_datamodule(root: Path, **kwargs: Any) -> SyntheticLandscapesDataModule:
    return SyntheticLandscapesDataModule(
        root=str(root), num_tiles=10, dates=(2, 3), batch_size=2, **({'modalities': ('s2', 's1a')} | kwargs)
    )


def command(root: Path, folder: Path, *words: str) -> list[str]:
    """Words for TorchGeo's command line."""
    data = ['--data', 'SyntheticLandscapesDataModule', '--data.root', str(root), '--data.num_tiles', '10']
    data += ['--data.dates', '[2,3]', '--data.batch_size', '2', '--data.modalities', '[s2,s1a]']
    trainer = ['--trainer.accelerator', 'cpu', '--trainer.devices', '1', '--trainer.default_root_dir', str(folder)]
    trainer += ['--trainer.logger', 'CSVLogger', '--trainer.logger.save_dir', str(folder)]
    return [words[0], '--model', 'omnisat', *data, *trainer, '--trainer.enable_progress_bar', 'false', *words[1:]]
