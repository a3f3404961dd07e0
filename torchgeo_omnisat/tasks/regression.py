# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Task for the regression of a continuous value per pixel."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, R2Score

from ..modality import Modality
from ..models import OmniSatSegmenter
from ..models.omnisat import OmniSatOutput
from ..prediction import ValueWriter, seen_bits
from ..utils.checks import check_choice
from ..utils.tensors.devices import WIDE
from ..utils.tensors.finite import refuse_output
from .dense import DenseTask, flipped_back

#: Losses by name.
LOSSES: dict[str, Callable[..., Tensor]] = {'smooth_l1': F.smooth_l1_loss, 'mse': F.mse_loss, 'l1': F.l1_loss}


class OmniSatRegression(DenseTask):
    """Task for the regression of a value per pixel; ``test`` scores every subset of the modalities.

    The target is ``mask`` ``(B, H, W)``, such as biomass or canopy height, NaN where it is unknown. These pixels count
    neither in the loss nor in the metrics. The model is trained on standardised values; predictions, metrics and maps
    are in the unit of the target.

    If *modalities*, *patch_size*, *label_gsd*, *target_mean*, *target_std*, *target_unit*, *mean* or *std* are None,
    they are taken from the datamodule and saved in checkpoints.

    Args:
        backbone: Name of a builder in :mod:`torchgeo_omnisat.models`.
        modalities: Plain dictionaries of the modalities (:meth:`.Modality.as_dict`), or the
            modalities by name.
        patch_size: Side of a ground patch in metres.
        label_gsd: GSD of the target in metres.
        target_mean: Mean of the target of the training split.
        target_std: Standard deviation of the target of the training split; 0 if it is constant.
        target_unit: Unit of the target, such as ``'m'``, for maps; None if it is unknown.
        nodata: Value of the target that means unknown, in addition to NaN and infinity.
        loss: ``'smooth_l1'``, ``'mse'`` or ``'l1'``, of standardised values.
        modality_dropout: Probability of dropping each modality of a training tile, or probabilities by name; see
            :class:`.ModalityDropout`.
        subset_weight: If positive, each step trains on the tile with all modalities, and with those
            that remain after dropout, with this relative weight; see :class:`.OmniSatSegmentation`.
        decoder_width: Channels of the decoder and the experts at the GSD of the target; see
            :class:`.OmniSatSegmentation`.
        decoder_dropout: Probability of dropping each of these channels in training.
        experts: Whether each modality has a head on its own feature maps, whose outputs are added to that of the
            decoder; see :class:`.OmniSatSegmenter`. The baselines have none.
        expert_weight: Weight of the loss of each expert alone, averaged over the modalities.
        lr: Learning rate after the warm-up.
        tta: Whether validation, test and prediction average over each tile, its two flips and its rotation by 180
            degrees (test-time augmentation), at four times the cost. Not saved in checkpoints.
        **kwargs: Arguments of :class:`.SupervisedTask` and :class:`.OmniSatTask`.

    Raises:
        ValueError: If an argument is invalid or does not fit the others. Arguments that come from the
            datamodule are validated when the trainer builds the model.
    """

    required: ClassVar[tuple[str, ...]] = ('modalities', 'patch_size', 'label_gsd', 'target_mean', 'target_std')
    optional: ClassVar[tuple[str, ...]] = ('target_unit',)
    writer = ValueWriter
    subset_metrics = {'r2': 'R2', 'mae': 'MAE', 'rmse': 'RMSE'}
    score_title = 'R2'
    continuous = True
    adaptable = (*DenseTask.adaptable, 'target_mean', 'target_std')

    def __init__(
        self,
        backbone: str = 'omnisat_small',
        modalities: Sequence[dict[str, Any]] | Mapping[str, Modality] | None = None,
        patch_size: float | None = None,
        label_gsd: float | None = None,
        target_mean: float | None = None,
        target_std: float | None = None,
        target_unit: str | None = None,
        *,
        nodata: float | None = None,
        loss: Literal['smooth_l1', 'mse', 'l1'] = 'smooth_l1',
        modality_dropout: float | dict[str, float] = 0.3,
        subset_weight: float = 1.0,
        decoder_width: int = 32,
        decoder_dropout: float = 0.0,
        experts: bool = True,
        expert_weight: float = 0.3,
        lr: float = 4e-3,
        tta: bool = False,
        **kwargs: Any,
    ) -> None:
        self.tta = tta
        kwargs |= {'patch_size': patch_size, 'modality_dropout': modality_dropout, 'lr': lr}
        super().__init__(backbone=backbone, modalities=modalities, **kwargs)

    @property
    def scale(self) -> tuple[float, float]:
        """Standard deviation and mean of the target; a constant target has a standard deviation of 1."""
        return self.hparams['target_std'] or 1.0, self.hparams['target_mean']

    def configure_model(self) -> None:
        """Build the model as :meth:`.OmniSatTask.configure_model`.

        Raises:
            ValueError: If the labels of the datamodule are classes, or have another unit.
        """
        super().configure_model()
        unit, ours = getattr(self.datamodule, 'target_unit', None), self.hparams['target_unit']
        if None not in (unit, ours) and unit != ours and not self.trainer.predicting:
            who = type(self.datamodule).__name__
            raise ValueError(f'target_unit of {who} is {unit!r}, but the model was built for {ours!r}')

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the scale of the target, as that of the training labels may have changed."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get('hyper_parameters') or {}
        scale = {name: saved[name] for name in ('target_mean', 'target_std') if saved.get(name) is not None}
        if self.is_configured and scale:
            self.save_hyperparameters(scale)
            self.configure_losses()

    def build(self) -> nn.Module:
        """Build the backbone with a decoder of one output."""
        std, mean = self.scale
        if not (math.isfinite(mean) and 0 < std < math.inf):
            raise ValueError(f'target_mean is {mean} and target_std {std}, expected finite numbers, std at least 0')
        backbone, gsd = self.build_backbone(), self.hparams['label_gsd']
        return OmniSatSegmenter(
            backbone, 1, gsd, self.decoder_width, experts=self.with_experts, dropout=self.decoder_dropout
        )

    def configure_losses(self) -> None:
        """Set the loss, once all required hyper-parameters are set."""
        super().configure_losses()
        if self.is_configured:
            self.criterion = RegressionLoss(self.hparams['loss'], *self.scale)

    def make_metrics(self) -> dict[str, Metric]:
        """Return the mean absolute error, the root-mean-square error and R2 of labelled pixels."""
        return value_metrics()

    def target_of(self, batch: Sample) -> Tensor:
        """Return the target ``(B, H, W)`` of a batch, NaN where it is unknown.

        Raises:
            ValueError: If the batch has no mask, or one of another shape.
        """
        target = super().target_of(batch).float()
        if target.ndim != 3:
            raise ValueError(f'mask has shape {tuple(target.shape)}, expected (B, H, W), one value per pixel')
        known = target.isfinite()
        if self.hparams['nodata'] is not None:
            known &= target != self.hparams['nodata']
        return target.masked_fill(~known, torch.nan)

    def labelled(self, batch: Sample) -> Tensor:
        """Return which samples of a batch have a labelled pixel, ``(B,)``."""
        return self.target_of(batch).isfinite().flatten(1).any(1)

    def infer_from(self, out: OmniSatOutput, opinions: Mapping[str, Tensor] | None = None) -> tuple[Tensor, None]:
        """Return the standardised values ``(B, 1, H, W)`` from the output of the backbone."""
        values = self.model.decode(out, opinions)
        return flipped_back(values).mean(0) if self.flips else values, None

    def answer(self, logits: Tensor) -> Tensor:
        """Return the values ``(B, H, W)`` in the unit of the target."""
        std, mean = self.scale
        return logits[:, 0].float() * std + mean

    def predict_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Predict the values of pixels, with their position.

        Returns:
            ``values`` ``(B, 1, H, W)`` in the unit of the target, ``seen``, see :func:`.seen_bits`, and ``bounds`` and
            ``transform`` as in the batch or None. For tiles of an area also ``window``, as in the batch.
        """
        if self.embedder is not None:
            return self.predict_embeddings(batch, batch_idx)
        windows, batch = batch.get('window'), self.with_image(batch)
        if windows is None or any(modality.image_key in batch for modality in self.modalities.values()):
            logits, _ = self.infer(self.renormalise(batch))
            refuse_output(logits, batch, batch_idx, self.model)
            values = self.answer(logits)
        else:  # a tile without data, which becomes nodata
            values = torch.full((len(windows), *windows[0, 2:].tolist()), self.scale[1], device=windows.device)
        seen = seen_bits(batch, self.modalities, (values.shape[-2], values.shape[-1]))
        found = {'values': values[:, None], 'seen': seen}
        if windows is not None:
            return {**found, 'window': windows, 'bounds': None, 'transform': None}
        self.warn_without_modalities(batch)
        return {**found, 'bounds': batch.get('bounds'), 'transform': batch.get('transform')}

    def draw(self, sample: Sample, answer: Tensor) -> Figure:
        """Draw a sample with the predicted values."""
        figure: Figure = self.datamodule.plot({**sample, 'prediction': answer})
        return figure


class omnisat_regression(OmniSatRegression):
    """:class:`.OmniSatRegression` under its short name on the command line."""


class RegressionLoss(nn.Module):
    """Mean loss of standardised values over labelled pixels, in single precision; 0 without any.

    Args:
        kind: Name of the loss in :data:`LOSSES`.
        std: Standard deviation of the target.
        mean: Mean of the target.
    """

    def __init__(self, kind: str, std: float, mean: float) -> None:
        super().__init__()
        check_choice(loss=(kind, LOSSES))
        self.loss, self.std, self.mean = LOSSES[kind], std, mean

    def forward(self, values: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
        """Return the loss of standardised *values* ``(B, 1, H, W)`` for a target ``(B, H, W)``, NaN where unknown.

        With *counted*, ``(B,)``, of these samples only.
        """
        if values[:, 0].shape != target.shape:
            raise ValueError(
                f'mask has shape {tuple(target.shape)}, expected that of the prediction, {tuple(values[:, 0].shape)}'
            )
        known = target.isfinite()
        if counted is not None:
            known = known & counted[:, None, None]
        wanted = (target.masked_fill(~known, self.mean).float() - self.mean) / self.std
        each = self.loss(values[:, 0].float(), wanted, reduction='none')
        return (each * known).sum() / known.sum().clamp(min=1)


class LabelledMAE(MeanAbsoluteError):
    """Mean absolute error of labelled pixels."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the pixels with a finite target."""
        super().update(*labelled_pixels(preds, target))


class LabelledMSE(MeanSquaredError):
    """Mean squared error of labelled pixels."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the pixels with a finite target."""
        super().update(*labelled_pixels(preds, target))


class LabelledR2(R2Score):
    """Coefficient of determination of labelled pixels; NaN for fewer than two."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the pixels with a finite target."""
        super().update(*labelled_pixels(preds, target))

    def compute(self) -> Tensor:
        """Return 1 minus the ratio of the squared errors and the squared deviations from the mean."""
        return super().compute() if self.total >= 2 else torch.full_like(self.residual, torch.nan)


def value_metrics() -> dict[str, Metric]:
    """Return the metrics of continuous values by name; pixels without a finite target do not count."""
    metrics = {'MAE': LabelledMAE(), 'RMSE': LabelledMSE(squared=False), 'R2': LabelledR2()}
    return {name: metric.set_dtype(WIDE) for name, metric in metrics.items()}


def labelled_pixels(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return prediction and target of the pixels with a finite target, ``(N,)`` each."""
    known = target.isfinite()
    return preds[known].to(WIDE), target[known].to(WIDE)
