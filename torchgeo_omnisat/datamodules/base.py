# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What all datamodules share: collation, normalisation and what a task asks for."""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader
from torchgeo.datamodules import NonGeoDataModule
from torchgeo.datasets import NonGeoDataset
from torchgeo.datasets.utils import Sample

from ..batch import collate
from ..modality import Modality
from ..transforms import Denormalize, Normalize

#: What a stage reads.
_SPLITS = {'fit': ('train', 'val'), 'validate': ('val',), 'test': ('test',), 'predict': ('test',)}


class MultimodalDataModule(NonGeoDataModule, ABC):
    """Batches of samples with several modalities, normalised once they are on the device.

    After :meth:`setup` there are, besides what TorchGeo's datamodules have:
    ``modalities`` by name, and ``mean`` and ``std``, tensors of one number a band by
    modality, in raw units.

    A subclass says what the classes are and gives :meth:`make_dataset` and
    :meth:`statistics`; its constructor names every argument, or the command line would
    not take them.
    """

    #: Number of classes in the mask, the ignored one among them.
    num_classes: int
    #: Names of the classes.
    labels: list[str]
    #: The class that neither trains nor scores; None if there is none.
    ignore_index: int | None = None
    #: Side of the ground that a token stands for, in metres.
    patch_size: float
    #: Metres a pixel of the mask.
    label_gsd: float

    modalities: dict[str, Modality]
    mean: dict[str, Tensor]  # type: ignore[assignment]
    std: dict[str, Tensor]  # type: ignore[assignment]

    @abstractmethod
    def make_dataset(self, split: str) -> NonGeoDataset:
        """The dataset of ``'train'``, ``'val'`` or ``'test'``, which has ``modalities``."""

    @abstractmethod
    def statistics(self, dataset: NonGeoDataset) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Mean and deviation of the training split, for every band of *dataset*, by modality."""

    def prepare_data(self) -> None:
        """Download and measure what a stage needs, in one process alone."""
        stage = self.trainer.state.fn if self.trainer else 'fit'
        self.statistics(self.make_dataset(_SPLITS[stage or 'fit'][0]))

    def setup(self, stage: str) -> None:
        """Make the datasets of a stage and learn the statistics.

        Args:
            stage: ``'fit'``, ``'validate'``, ``'test'`` or ``'predict'``, which predicts
                the test split.
        """
        made = {split: self.make_dataset(split) for split in _SPLITS[stage]}
        self.train_dataset = made.get('train', self.train_dataset)
        self.val_dataset = made.get('val', self.val_dataset)
        if stage == 'predict':
            self.predict_dataset = made['test']
        else:
            self.test_dataset = made.get('test', self.test_dataset)
        dataset: Any = next(iter(made.values()))
        self.modalities = dict(dataset.modalities)
        self.mean, self.std = self.statistics(dataset)
        self.aug = Normalize(self.modalities, self.mean, self.std)
        self.collate_fn = partial(collate, modalities=self.modalities)

    def plot(self, sample: Sample, show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Show a sample as the task has it, normalised and on any device.

        Args:
            sample: One sample of a batch, with ``prediction`` if there is one.
            show_titles: Whether to write what is what.
            suptitle: A title for the whole figure.

        Returns:
            The figure.
        """
        sample = {key: value.detach().cpu() for key, value in sample.items()}
        raw = Denormalize(self.modalities, self.mean, self.std)(sample)
        dataset = self._valid_attribute('val_dataset', 'test_dataset', 'predict_dataset', 'train_dataset')
        return dataset.plot(raw, show_titles=show_titles, suptitle=suptitle)

    def _dataloader_factory(self, split: str) -> DataLoader[Sample]:
        """TorchGeo's loader, except that a split smaller than a batch still gives one."""
        dataset = self._valid_attribute(f'{split}_dataset', 'dataset')
        batch_size = self._valid_attribute(f'{split}_batch_size', 'batch_size')
        processes = self.trainer.world_size if self.trainer else 1
        return DataLoader(
            dataset=dataset,
            batch_size=batch_size,
            shuffle=split == 'train',
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            drop_last=split == 'train' and len(dataset) // processes >= batch_size,
            persistent_workers=self.num_workers > 0,
        )
