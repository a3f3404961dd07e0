# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Base class of tasks with a prediction for every pixel."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..batch import available
from ..models.late_fusion import LATE_FUSION
from ..models.omnisat import OmniSatOutput, check_size
from ..prediction import GeoTIFFWriter
from ..transforms.base import probability
from ..utils.tensors.coordinates import COORDINATES, LOCATION_VALID
from .supervised import SupervisedTask

#: Axes that are flipped in each view of test-time augmentation; the last pair is a rotation by 180 degrees.
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))


class DenseTask(SupervisedTask):
    """Base class of tasks whose model is an :class:`.OmniSatSegmenter`, with the target ``mask`` ``(B, H, W)``.

    Subclasses have the arguments ``tta``, ``decoder_width``, ``decoder_dropout``, ``experts``, ``expert_weight``,
    ``subset_weight`` and ``modality_dropout`` of :class:`.OmniSatSegmentation`.
    """

    target: ClassVar[str] = 'mask'
    #: Class of the prediction writer that is added if an area is predicted and there is none.
    writer: ClassVar[type[GeoTIFFWriter]] = GeoTIFFWriter
    #: Hyper-parameters that are weights, at least 0.
    weights_of_losses: ClassVar[tuple[str, ...]] = ('subset_weight', 'expert_weight')
    #: Hyper-parameters of the model that a checkpoint lacks if it was written before there were such arguments.
    older: ClassVar[Mapping[str, Any]] = {'experts': False, 'decoder_width': 32}
    #: The argument ``tta``.
    tta: bool = False
    ignore = (*SupervisedTask.ignore, 'tta')

    @property
    def with_experts(self) -> bool:
        """Whether each modality has a head; the baselines have none."""
        return self.hparams['experts'] and self.hparams['backbone'] not in LATE_FUSION

    @property
    def decoder_width(self) -> int:
        """Channels of the decoder and the experts."""
        width: int = self.hparams['decoder_width']
        check_size('decoder_width', width)
        return width

    @property
    def decoder_dropout(self) -> float:
        """Probability of dropping each of their last channels."""
        return probability(self.hparams['decoder_dropout'], 'decoder_dropout')

    @property
    def with_instances(self) -> bool:
        """Whether the model has a second head, for fields."""
        return False

    @property
    def drops(self) -> bool:
        """Whether modalities are dropped in training."""
        return len(self.modalities) > 1 and any(self.dropout.p.values())

    @property
    def trains_on_both(self) -> bool:
        """Whether each step trains on all modalities, and on those that remain after dropout."""
        return bool(self.hparams['subset_weight']) and self.drops

    def configure_losses(self) -> None:
        """Validate the weights of the losses; subclasses set ``criterion``."""
        for name in self.weights_of_losses:
            if not 0 <= self.hparams[name] < math.inf:
                raise ValueError(f'{name} is {self.hparams[name]}, expected at least 0')

    @abstractmethod
    def infer_from(self, out: OmniSatOutput, opinions: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Any]:
        """Return the output of :meth:`infer` from that of the backbone, and of the experts if already computed."""

    def infer(self, batch: Sample) -> tuple[Tensor, Any]:
        """Return the output of the model for a normalised batch, and further outputs, if the task has any."""
        if self.with_instances or self.flips:
            return self.infer_from(self.model.backbone(self.views(batch)))
        return self(batch), None

    def learn(self, batch: Sample) -> tuple[Tensor, Tensor]:
        """Return output and loss of a training batch; see *subset_weight* and *expert_weight*."""
        weight, both = self.hparams['subset_weight'], self.trains_on_both
        if not both and not self.model.experts and not self.with_instances:
            return super().learn(batch)
        out = self.model.backbone(batch if both else self.dropout(batch))
        opinions = self.model.expert_logits(out)
        logits, more = self.infer_from(out, opinions)
        loss = self.loss(logits, more, batch)
        if both:
            left = available(self.dropout(batch), self.modalities)
            part, more = self.infer_from(self.model.backbone.hide(out, left), opinions)
            loss = (loss + weight * self.loss(part, more, batch)) / (1 + weight)
            loss = loss + self.distillation_loss(part, logits, batch)
        return logits, loss + self.hparams['expert_weight'] * self._loss_of_experts(opinions, out, batch)

    def distillation_loss(self, student: Tensor, teacher: Tensor, batch: Sample) -> Tensor | float:
        """Return a loss of the output for some modalities, given that for all; 0 by default."""
        return 0.0

    def _loss_of_experts(self, opinions: Mapping[str, Tensor], out: OmniSatOutput, batch: Sample) -> Tensor | float:
        """Return the mean loss of each expert alone, over the samples that have its modality."""
        if not opinions:
            return 0.0
        order, target = list(self.modalities), self.target_of(batch)
        flags = [out.available[:, order.index(name)] for name in opinions]
        losses = torch.stack([self.criterion(x, target, own) for x, own in zip(opinions.values(), flags, strict=True)])
        counted = torch.stack([own.any() for own in flags])
        return (losses * counted).sum() / counted.sum().clamp(min=1)

    @property
    def flips(self) -> bool:
        """Whether the output is averaged over flips of the tile."""
        return self.tta and not self.training

    def views(self, batch: Sample) -> Sample:
        """Return the samples of a batch and then, with *tta*, those of each of :data:`FLIPS`."""
        if not self.flips:
            return batch
        found = {}
        for modality in self.modalities.values():
            for key in set(modality.keys) & set(batch):
                flips = FLIPS if key == modality.image_key else [()] * len(FLIPS)
                found[key] = torch.cat([batch[key].flip(axes) if axes else batch[key] for axes in flips])
        for key in (COORDINATES, LOCATION_VALID):
            if key in batch:
                found[key] = torch.cat([batch[key]] * len(FLIPS))
        return found

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the model of a checkpoint that was written before some of its arguments; see :attr:`older`.

        Raises:
            ValueError: If the model of other arguments is already sharded, or its optimiser is set up.
        """
        saved = checkpoint.get('hyper_parameters')
        if self.is_configured and saved is not None:
            lacking = {name: value for name, value in self.older.items() if name not in saved}
            given = {name: self.hparams[name] for name in lacking}
            if given != lacking:
                strategy = getattr(self._trainer, 'strategy', None)
                if getattr(strategy, 'restore_checkpoint_after_setup', False):  # of FSDP
                    raise ValueError(
                        f'the checkpoint lacks {list(lacking)}, so its model has {lacking}, but '
                        f'{type(strategy).__name__} has already set up a model of {given}: expected the arguments '
                        f'{lacking} of {type(self).__name__}'
                    )
                self.save_hyperparameters(lacking)
                built = self.build().to(self.device)
                for part in ('decoder', 'experts', 'fields'):  # the backbone may be compiled
                    setattr(self.model, part, getattr(built, part))
                if strategy is not None:
                    self.compile_model()
        super().on_load_checkpoint(checkpoint)

    def configure_callbacks(self) -> list[Callback]:
        """Return also a prediction writer if an area is predicted and the trainer has no writer."""
        trainer: Any = self.trainer
        configured = any(isinstance(callback, GeoTIFFWriter) for callback in trainer.callbacks)
        area = trainer.state.fn == TrainerFn.PREDICTING and hasattr(self.datamodule, 'plan')
        return super().configure_callbacks() + ([self.writer()] if area and not configured else [])

    def on_predict_start(self) -> None:
        """Log a message if predictions of single tiles are only returned and not written."""
        super().on_predict_start()
        trainer: Any = self.trainer
        if not any(isinstance(callback, BasePredictionWriter) for callback in trainer.callbacks):
            who = type(self.datamodule).__name__ if self.datamodule else 'the dataloader'
            rank_zero_info(
                f'{who} has no area: Trainer.predict returns the predictions, and no map is written. Use '
                f'MultimodalGeoDataModule for maps, or the callback {self.writer.__name__} to write single tiles.'
            )


def flipped_back(output: Tensor) -> Tensor:
    """Return an output for :meth:`.DenseTask.views`, ``(4 B, ..., H, W)``, as ``(4, B, ..., H, W)``."""
    views = output.unflatten(0, (len(FLIPS), -1)).unbind(0)
    return torch.stack([view.flip(axes) if axes else view for axes, view in zip(FLIPS, views, strict=True)])
