# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The base class gives a dataset what a datamodule reads of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchgeo.datasets import BioMassters, GeoDataset

from torchgeo_omnisat import datasets
from torchgeo_omnisat.datamodules import MultimodalDataModule
from torchgeo_omnisat.datasets import MultimodalDataset, MultimodalGeoDataset
from torchgeo_omnisat.modality import Modality


class Plain(MultimodalDataset):
    """Three samples of one band, the least that a dataset is."""

    modalities = {'dem': Modality('dem', ('height',), 10.0, False)}

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        image = torch.full((1, 8, 8), float(index)) + torch.eye(8)
        return {'image_dem': image, 'dates_dem': torch.zeros(1, dtype=torch.int64), 'valid_dem': torch.tensor([True])}


class PlainDataModule(MultimodalDataModule):
    patch_size = 40.0


def test_defaults(tmp_path: Path) -> None:
    dataset = Plain(tmp_path, 'val')
    assert (dataset.path, dataset.split, dataset.ids) == (tmp_path, 'val', ['0', '1', '2'])
    assert dataset.all_modalities == dataset.modalities
    assert dataset.positions is None
    assert (Plain.layout, datasets.SyntheticLandscapes.layout) == ('Plain', 'PASTIS')
    assert dataset.plot(dataset[0]).axes


def test_what_is_abstract_is_required(tmp_path: Path) -> None:
    class Without(MultimodalDataset):
        modalities = Plain.modalities

    with pytest.raises(TypeError, match='abstract'):
        Without(tmp_path)  # type: ignore[abstract]


def test_ours_derive_from_it() -> None:
    ours = [getattr(datasets, name) for name in datasets.__all__]
    theirs = (GeoDataset, BioMassters)  # of TorchGeo, which we only extend
    flat = [one for one in ours if not issubclass(one, theirs) and one is not MultimodalGeoDataset]
    assert len(flat) >= 9
    assert all(issubclass(one, MultimodalDataset) for one in flat)


def test_datamodule_needs_nothing_else(tmp_path: Path) -> None:
    datamodule = PlainDataModule(Plain, batch_size=2, root=str(tmp_path))
    datamodule.prepare_data()
    datamodule.setup('fit')
    assert datamodule.mean['dem'].tolist() == pytest.approx([1.125])
    assert len(list(datamodule.train_dataloader())) == 1


def test_neighbours_need_positions(tmp_path: Path) -> None:
    datamodule = PlainDataModule(Plain, batch_size=2, root=str(tmp_path), batches='region')
    datamodule.setup('fit')
    with pytest.raises(ValueError, match='Plain'):
        datamodule.train_dataloader()
