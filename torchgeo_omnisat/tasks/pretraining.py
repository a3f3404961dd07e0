# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Task for self-supervised pre-training on co-located modalities."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample

from ..batch import FILLER, available
from ..evaluation.consistency import EmbeddingCosine, compare_subsets, write_cosines
from ..evaluation.retrieval import PatchRetrieval, draw_similarity, effective_rank, position_variance, spread
from ..losses import GRAINS, CrossModalInfoNCE, MaskedReconstruction, PatchContrastiveLoss
from ..losses.negatives import NegativeDistances, check_distances
from ..losses.reconstruction import number_hidden
from ..modality import LOCATION, Modality, Which, as_modalities, subset_name
from ..models import OmniSat
from ..models.embedding import DenseEmbedding
from ..prediction import EmbeddingWriter, GeoTIFFWriter
from ..transforms import ModalityDropout
from ..utils.checks import check_choice, check_integer, check_least
from ..utils.distributed import gather_flagged, gather_numbers, own_rows, shared_mean
from ..utils.tensors.coordinates import COORDINATES, LOCATION_VALID
from ..utils.tensors.devices import readable, wide
from ..utils.tensors.finite import refuse_loss, refuse_output
from .base import OmniSatTask
from .distillation.granularity import FUSED, MOST_PATCHES, Granularity
from .views import COMPARED, Draws, Pretrainer, Views, draw_views, generator, limited_ratio

#: Index of each stage, part of the key of its random draws.
STAGES = {'train': 0, 'val': 1, 'test': 2}
#: Maximum side in pixels of what is reconstructed from the embedding of one pixel.
LARGEST_SIDE = 4
#: Last part of the key of the draws that withhold the location.
WITHHOLDING = 1


class OmniSatPretraining(OmniSatTask):
    """Task for self-supervised pre-training with contrastive losses and masked reconstruction.

    The loss is the weighted sum of three terms: :class:`.CrossModalInfoNCE` of projected tiles,
    :class:`.PatchContrastiveLoss` of tokens, and :class:`.MaskedReconstruction` of ground
    patches. Masked patches are hidden in all modalities and reconstructed from the fused tokens
    of the others. The contrastive losses compare tiles without masking. The fusion drops
    modalities at random, but they are still reconstructed. Labels are not used. If the backbone has the location as a
    modality, it takes part in the contrast of tiles (after Klemmer et al., "SatCLIP", arXiv 2311.17179, and Astruc et
    al., "UniGeoCLIP", arXiv 2604.11668), and *location_dropout* withholds it from the fusion.

    With *embedding_dim*, a head also decodes a unit vector for each pixel of *embedding_gsd* metres
    (:class:`.DenseEmbedding`), which ``torchgeo predict`` writes as a map. It is trained on *embedding_pixels*
    random pixels of each tile, in two views: one of all modalities, and one of a random subset. Three more terms are
    added: reconstruction of the time series of the pixel in all modalities from either view; contrast between the
    views of a pixel and of the pixels at the same position in other tiles; and consistency, 1 minus the cosine of the
    two views. ``test`` writes the cosine of the embeddings from every subset of the modalities and from all of them to
    ``embeddings.csv``.

    With *object_weight*, patches are also clustered without labels (:class:`.PatchClusters`), and the mean embeddings
    of the objects of a tile are compared between modalities, and with the fused tokens of the masked tile. With
    *granularity*, a :class:`.Teacher` sees all modalities without masking, and the student, both the fused tokens of
    the masked tile and each modality alone, learns its prototypes at each of these granularities
    (:class:`.GrainDistillation`). Spread, effective rank and the number of used prototypes are logged, so that a
    collapse is visible: ``train_teacher_image_rank/fused`` is near 1 if all tiles have the same embedding. A backbone
    with ``context_degrees`` also learns prototypes of regions (:class:`.GeoContext`).

    Validation masks the same patches in every epoch. It also logs the accuracy of retrieving the patch
    of another modality among *candidates* from all validation tiles, by pair:
    ``val_patch_top1/s1a+s2``. Checkpoints monitor ``val_loss``. :func:`.load_backbone` loads
    the backbone of a checkpoint into another task.

    If *modalities*, *patch_size*, *mean* or *std* are None, they are taken from the datamodule.

    Args:
        backbone: Name of a builder in :mod:`torchgeo_omnisat.models`.
        modalities: Plain dictionaries of the modalities (:meth:`.Modality.as_dict`), or the
            modalities by name.
        patch_size: Side of a ground patch in metres.
        tile_weight: Weight of the contrastive loss of tiles; 0 disables it.
        patch_weight: Weight of the contrastive loss of patches; 0 disables it.
        object_weight: Weight of the contrastive loss of objects; 0 disables it.
        object_clusters: Number of clusters of patches, also for ``'object'`` in *granularity*.
        granularity: Granularities at which the student learns from a teacher: ``'pixel'``, the patches of the ground
            grid, ``'object'`` and ``'image'``, the tile. Empty for none, without a teacher.
        granularity_weight: Weight of the loss of each granularity.
        granularity_prototypes: Number of learned prototypes of each granularity.
        teacher_decay: Decay of the moving average of the teacher per step.
        reconstruction_weight: Weight of the reconstruction; 0 disables it and the masking.
        temperature: Initial temperature of the contrastive loss of tiles.
        patch_temperature: Fixed temperature of the contrastive loss of patches.
        projection_dim: Width of the projected embeddings of tiles and patches.
        patch_negatives: See :class:`.PatchContrastiveLoss`; ``'everywhere'`` is as published.
        project_patches: Whether to compare projected patches; the published loss compares tokens.
        exclude_within: Distance in metres between centres of tiles below which they are not negatives of
            each other; overlapping tiles never are. None ignores ``bounds`` and ``coordinates``. A number is that of
            all pairs of modalities with images; pairs with the location have 100 km, because the location of
            neighbours is almost the same. A dictionary has distances by pair, such as ``location+s2``, or by modality
            for all of its other pairs; the contrast of patches uses the largest one of pairs with images.
        mask_ratio: Fraction of the ground patches to mask.
        hide: ``'pixels'`` masks the input of the encoders, ``'tokens'`` only the input of the fusion.
            Pixels require a second pass of the encoders if there is also a contrastive loss.
        rebuild: Patches to reconstruct: the masked ones, or all.
        max_pixels: Maximum number of pixels along the side of a reconstructed patch; None for all.
        max_dates: Maximum number of dates of a time series to reconstruct per step; None for all.
        modality_dropout: Probability that the fusion drops each modality of a training tile, or
            probabilities by name; at least one modality is kept. See :class:`.ModalityDropout`.
        micro_batch_size: Number of tiles to encode at once; None for all. Memory then depends on it and
            little on the batch size, while all tiles of the batch remain negatives. Tiles are encoded
            twice. (With ``accumulate_grad_batches``, negatives come from a single batch.)
        ema: Decay of an exponential moving average of the weights, such as 0.999. The average is
            validated and saved in checkpoints. None disables it. ``bf16-true`` and ``16-true`` lack the resolution.
        candidates: Number of candidate patches of the retrieval in validation.
        embedding_dim: Dimension of dense embeddings, such as 64; None for a model without them.
        embedding_gsd: GSD of dense embeddings in metres.
        embedding_weight: Weight of their reconstruction; 0 disables it.
        embedding_error: ``'squared'`` or ``'absolute'`` error of their reconstruction, see
            :class:`.MaskedReconstruction`; the absolute one suits time series with clouds.
        embedding_contrast_weight: Weight of their contrast; 0 disables it.
        consistency_weight: Weight of their consistency between all and some modalities; 0 disables it. A larger
            weight raises the cosine between the embeddings from all and from some modalities; a weight of 1 lowered
            the scores of nearest neighbours and logistic regression.
        embedding_pixels: Number of pixels of each tile on which they are trained.
        subsets: Subsets of the modalities whose embeddings ``test`` compares with those of all: ``'auto'`` for all
            subsets of up to five modalities, else all but one and single ones; ``'all'``; or names such as
            ``s1a+s2``. Not saved in checkpoints.
        seed: Seed of masking and dropout, which also depend on the step and the tile.
        lr: Learning rate after the warm-up.
        weight_decay: Weight decay of AdamW.
        warmup: Fraction of the steps with a linear warm-up to *lr*.
        **kwargs: Arguments of :class:`.OmniSatTask`.

    Raises:
        ValueError: If there are fewer than two modalities to compare, no term has a weight, or
            an argument is out of range.
    """

    #: Key of the target in the batch; None, because labels are not used.
    target: ClassVar[str | None] = None
    #: The argument ``subsets``.
    subsets: Which = 'auto'
    #: Arguments of the update of the geo-context after the backward pass.
    _located: tuple[Tensor, Tensor, Tensor | None, Sequence[int]] | None = None
    ignore = (*OmniSatTask.ignore, 'subsets')

    def __init__(
        self,
        backbone: str = 'omnisat_small',
        modalities: Sequence[dict[str, Any]] | Mapping[str, Modality] | None = None,
        patch_size: float | None = None,
        *,
        tile_weight: float = 1.0,
        patch_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        object_weight: float = 0.0,
        object_clusters: int = 16,
        granularity: Sequence[Literal['pixel', 'object', 'image']] = (),
        granularity_weight: float = 1.0,
        granularity_prototypes: int = 64,
        teacher_decay: float = 0.99,
        temperature: float = 0.07,
        patch_temperature: float = 0.1,
        projection_dim: int = 128,
        patch_negatives: Literal['everywhere', 'place'] = 'place',
        project_patches: bool = True,
        exclude_within: float | dict[str, float] | None = 0.0,
        mask_ratio: float = 0.3,
        hide: Literal['pixels', 'tokens'] = 'tokens',
        rebuild: Literal['hidden', 'all'] = 'all',
        max_pixels: int | None = None,
        max_dates: int | None = None,
        modality_dropout: float | dict[str, float] = 0.3,
        micro_batch_size: int | None = None,
        ema: float | None = None,
        candidates: int = 256,
        embedding_dim: int | None = None,
        embedding_gsd: float = 10.0,
        embedding_weight: float = 1.0,
        embedding_error: Literal['squared', 'absolute'] = 'squared',
        embedding_contrast_weight: float = 0.1,
        consistency_weight: float = 0.1,
        embedding_pixels: int = 64,
        subsets: Literal['auto', 'all'] | Sequence[str] = 'auto',
        seed: int = 0,
        lr: float = 2e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self.subsets = subsets
        super().__init__(
            backbone=backbone,
            modalities=modalities,
            patch_size=patch_size,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            **kwargs,
        )

    @property
    def grains(self) -> tuple[str, ...]:
        """Granularities of the teacher, fine to coarse."""
        return tuple(grain for grain in GRAINS if grain in self.hparams['granularity'])

    @property
    def terms(self) -> dict[str, float]:
        """Weights of the enabled loss terms by name."""
        names = ('tile', 'patch', 'reconstruction', 'object')
        found = {name: float(self.hparams[f'{name}_weight']) for name in names}
        found |= {f'teacher_{grain}': float(self.hparams['granularity_weight']) for grain in self.grains}
        if self.hparams['embedding_dim'] is not None:
            found['pixel_reconstruction'] = float(self.hparams['embedding_weight'])
            found['pixel_contrast'] = float(self.hparams['embedding_contrast_weight'])
            found['consistency'] = float(self.hparams['consistency_weight'])
        return {name: weight for name, weight in found.items() if weight}

    def configure_models(self) -> None:
        """Validate all arguments, and build the model if the required ones are set."""
        self._check_arguments()
        super().configure_models()

    def build(self) -> nn.Module:
        """Build the backbone with heads and decoders."""
        self._check_modalities()
        hparams, terms = self.hparams, self.terms
        self.dropout = ModalityDropout(self.modalities, hparams['modality_dropout'])
        backbone, sizes = self.build_backbone(), {name: hparams[name] for name in ('max_pixels', 'max_dates')}
        width, patch_size = backbone.embed_dim, backbone.patch_size
        model = Pretrainer(
            backbone,
            hparams['projection_dim'] if 'tile' in terms else None,
            hparams['projection_dim'] if 'patch' in terms and hparams['project_patches'] else None,
            MaskedReconstruction(self.modalities, width, patch_size, **sizes) if 'reconstruction' in terms else None,
            *self._dense_parts(backbone),
        )
        grains = [grain for grain in self.grains if f'teacher_{grain}' in terms]
        if grains or 'object' in terms:
            model.granularity = Granularity(
                backbone,
                grains,
                objects='object' in terms,
                width=hparams['projection_dim'],
                clusters=hparams['object_clusters'],
                prototypes=hparams['granularity_prototypes'],
                decay=hparams['teacher_decay'],
                temperature=hparams['patch_temperature'],
            )
        if backbone.context is not None and not model.fuses:
            raise ValueError(
                'context_degrees needs a term that trains the fusion, expected reconstruction_weight, object_weight or '
                'granularity'
            )
        return model

    @property
    def tile_names(self) -> list[str]:
        """Modalities that the contrast of tiles compares; the location is the last."""
        arguments = self.hparams['backbone_args'] or {}
        located = (arguments.get('encoders') or {}).get(LOCATION) is not None
        return [*self.modalities, *([LOCATION] if located else [])]

    def _dense_parts(self, backbone: OmniSat) -> tuple[DenseEmbedding | None, MaskedReconstruction | None]:
        """Return the head of dense embeddings, and the decoders that reconstruct pixels from them."""
        hparams = self.hparams
        if hparams['embedding_dim'] is None:
            return None, None
        dense = DenseEmbedding(backbone, hparams['embedding_dim'], hparams['embedding_gsd'])
        if 'pixel_reconstruction' not in self.terms:
            return dense, None
        side = min(LARGEST_SIDE, hparams['max_pixels'] or LARGEST_SIDE)
        reconstruction = MaskedReconstruction(
            self.modalities,
            dense.dim,
            dense.gsd,
            max_pixels=side,
            max_dates=hparams['max_dates'],
            standardised=False,
            error=hparams['embedding_error'],
        )
        return dense, reconstruction

    def configure_losses(self) -> None:
        """Set the contrastive losses; the reconstruction belongs to the model."""
        if self.is_configured:
            self.tile_contrast = CrossModalInfoNCE(self.hparams['temperature']) if 'tile' in self.terms else None
            temperature, where = self.hparams['patch_temperature'], self.hparams['patch_negatives']
            self.patch_contrast = PatchContrastiveLoss(temperature, negatives=where)
            self.pixel_contrast = PatchContrastiveLoss(temperature, negatives='place')

    def configure_callbacks(self) -> list[Callback]:
        """Return also the moving average of the weights, if configured, and a writer if an area is predicted."""
        trainer: Any = self.trainer
        area = trainer.state.fn == TrainerFn.PREDICTING and hasattr(self.datamodule, 'plan')
        writes = any(isinstance(callback, GeoTIFFWriter) for callback in trainer.callbacks)
        decay = self.hparams['ema']
        fits = trainer.state.fn == TrainerFn.FITTING
        if fits and decay is not None and trainer.precision in ('bf16-true', '16-true'):
            raise ValueError(
                f'ema is {decay} with the precision {trainer.precision}, whose resolution is lower than the steps of '
                'the average: expected 32-true or bf16-mixed, or ema=None'
            )
        # Buffers are copied: the average of counts and of random first prototypes would be wrong.
        average = [] if decay is None else [EMAWeightAveraging(use_buffers=False, decay=decay)]
        return [*super().configure_callbacks(), *average, *([EmbeddingWriter()] if area and not writes else [])]

    def training_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the loss of a batch, with different patches masked in each step."""
        return self.compute(batch, 'train', self.global_step, batch_idx)[0] + self.zero_loss_over_all_parameters()

    def configure_model(self) -> None:
        """Build the model, see :class:`.OmniSatTask`; a teacher needs whole weights on each rank."""
        strategy = getattr(self._trainer, 'strategy', None)
        if self.hparams['granularity'] and isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
            raise ValueError(
                f'strategy is {type(strategy).__name__}, but granularity={list(self.hparams["granularity"])} has a '
                'teacher of whole weights: expected DDP or a single process'
            )
        super().configure_model()

    def on_after_backward(self) -> None:
        """Update the prototypes of regions; before, the backward pass of micro-batches would read others."""
        if self._located is not None:
            self.model.backbone.context.update(*self._located)
            self._located = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then the teacher; a checkpoint after the step has both."""
        super().optimizer_step(*args, **kwargs)
        teacher = self.model.teacher
        if teacher is not None:
            teacher.update(self.model.backbone, self.model.granularity.heads)

    def on_validation_epoch_start(self) -> None:
        """Reset the retrieval."""
        self._retrieval = PatchRetrieval(self.modalities, self.hparams['candidates'])
        self._similar: dict[str, Tensor] = {}

    def validation_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the losses of a batch, with the same masked patches in every epoch."""
        self._evaluate(batch, 'val', batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the retrieval of patches, and draw similarities."""
        self._report('val')

    def on_test_epoch_start(self) -> None:
        """Reset the retrieval and the comparison of subsets of the modalities."""
        self.on_validation_epoch_start()
        theirs = as_modalities(getattr(self.datamodule, 'modalities', None) or self.modalities)
        self._cosines = EmbeddingCosine([name for name in self.modalities if name in theirs], self.subsets)
        self._cosines.to(self.device)

    def test_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the losses of a batch, as :meth:`validation_step`, and compare the embeddings of all subsets."""
        self._evaluate(batch, 'test', batch_idx)
        if FILLER not in batch:
            compare_subsets(self._cosines, self.model.backbone, self.model.dense, self.renormalise(batch))

    def on_test_epoch_end(self) -> None:
        """Log the retrieval of patches and the cosine of every subset, and write ``embeddings.csv``.

        A ``fast_dev_run`` writes no file.
        """
        self._report('test')
        rows, folder = self._cosines.compute(), self.folder
        self.log_dict({f'test_EmbeddingCosine/{row.subset}': row.cosine for row in rows if row.embeddings})
        if rows and self.trainer.is_global_zero and not getattr(self.trainer, 'fast_dev_run', False):
            data = type(self.datamodule).__name__ if self.datamodule else 'dataloaders'
            data = 'synthetic' if getattr(self.datamodule, 'synthetic', False) else data
            write_cosines(rows, folder / 'embeddings.csv', data)
            rank_zero_info(f'Cosine of embeddings by subset of the modalities: {folder / "embeddings.csv"}')

    def predict_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Return the embeddings of a batch, without masking.

        Returns:
            ``fused`` ``(B, N, D)``, ``available`` ``(B, M)``, and ``bounds`` as in the batch or None. With
            :class:`.EmbeddingWriter`, the output of :meth:`predict_embeddings`.
        """
        if self.embedder is not None:
            return self.predict_embeddings(batch, batch_idx)
        out = self(self.renormalise(batch))
        refuse_output(out.fused, batch, batch_idx, self.model)
        fused = out.fused.to(torch.promote_types(out.fused.dtype, torch.float32))  # NumPy has no bfloat16
        return {'fused': fused, 'available': out.available, 'bounds': batch.get('bounds')}

    def compute(self, batch: Sample, stage: str, *key: int) -> tuple[Tensor, Views]:
        """Return the weighted sum of the loss terms of a batch, and log all metrics.

        Args:
            batch: A batch.
            stage: ``'train'``, ``'val'`` or ``'test'``; modalities are dropped only in training.
            *key: Integers that, with seed and stage, determine the random draws.

        Returns:
            Loss, equal on all ranks, and the views that it compares.
        """
        batch = self.renormalise(batch)
        grid = self.model.grid(batch)
        if FILLER not in batch:
            self.warn_without_modalities(batch)
        terms, count = self.terms, len(available(batch, self.modalities))
        # The only exchange of sizes in a step.
        filler = FILLER in batch
        ranks = gather_numbers(count, int('bounds' in batch), int(filler), device=self.device)
        counts = [row[0] for row in ranks]
        if stage == 'train' and self.has_location(batch):
            batch = self._withhold_location(batch, counts, key)
        draws, views = self._draw(batch, grid, counts, stage, key)
        exclude = self._exclude(batch, counts) if any(row[1] for row in ranks) else None
        losses = {}
        # The count of all ranks, because Lightning's mean over ranks needs equal batch sizes.
        counted = count if stage == 'train' else sum(row[0] for row in ranks if not row[2])
        if 'tile' in terms and (stage == 'train' or counted > 1):
            losses['tile'] = self._contrast_tiles(views, self._exclude_by_pair(batch, exclude, counts), counts, stage)
        losses |= self._patch_losses(views, exclude, counts, stage)
        if self._trains_dense:
            losses |= self._dense_losses(views, exclude, counts, stage)
        if self.model.granularity is not None:
            losses |= self._grain_losses(views, self.model.backbone.coordinates(batch), exclude, counts, stage)
            if stage != 'train':
                self._log_fused(views.fused, views.observed.any(-1) & ~draws.hidden, counts, stage)
        if stage == 'train' and self.model.backbone.context is not None:
            shown = views.observed.any(-1) & ~draws.hidden
            self._located = views.fused.detach(), shown, self.model.backbone.coordinates(batch), counts
        loss = sum((terms[name] * value for name, value in losses.items()), start=views.patches.new_zeros(()))
        if losses:
            self._log(f'{stage}_loss', loss, counted, stage, prog_bar=True)
        for name, value in losses.items():
            self._log(f'{stage}_{name}_loss', value, counted, stage)
        return loss, views

    @property
    def _trains_dense(self) -> bool:
        return bool({'pixel_reconstruction', 'pixel_contrast', 'consistency'} & set(self.terms))

    def _draw(
        self, batch: Sample, grid: tuple[int, int], counts: Sequence[int], stage: str, key: Sequence[int]
    ) -> tuple[Draws, Views]:
        """Return the random draws for a batch, and the views of it."""
        hparams, names = self.hparams, list(self.modalities)
        ratio = hparams['mask_ratio'] if self.model.fuses else 0.0
        pixels = self.model.pixel_grid(batch), hparams['embedding_pixels'] if self._trains_dense else 0
        draws = draw_views(
            (hparams['seed'], STAGES[stage], *key), counts, len(names), grid, ratio, self.device, *pixels
        )
        contrasts = bool({'tile', 'patch'} & set(self.terms)) or self.model.granularity is not None
        views = self.model.views(
            batch,
            draws,
            [self.dropout.p[name] if stage == 'train' else 0.0 for name in names],
            pixels=hparams['hide'] == 'pixels',
            micro_batch_size=hparams['micro_batch_size'],
            compare=stage != 'train' or contrasts,
            everything=hparams['rebuild'] == 'all',
            masked=number_hidden(grid, limited_ratio(ratio, grid)),
        )
        return draws, views

    def _patch_losses(
        self, views: Views, exclude: Tensor | None, counts: Sequence[int], stage: str
    ) -> dict[str, Tensor]:
        """Return the enabled losses of the contrast and the reconstruction of patches."""
        losses = {}
        if 'patch' in self.terms:
            patches = self.patch_contrast.compare(views.patches, views.observed, exclude, counts)
            losses['patch'] = patches.loss
            self._log_spread(f'{stage}_patch_spread', patches.tokens, patches.available, stage)
        if 'reconstruction' in self.terms:
            rebuilt = self.model.reconstruction.mean(views.errors, views.counts)
            losses['reconstruction'] = rebuilt.loss
            self._log_each(f'{stage}_reconstruction_loss', list(self.modalities), rebuilt.losses, rebuilt.counts, stage)
        return losses

    def _dense_losses(
        self, views: Views, exclude: Tensor | None, counts: Sequence[int], stage: str
    ) -> dict[str, Tensor]:
        """Return the enabled losses of dense embeddings, and log the errors by modality."""
        losses, terms = {}, self.terms
        if 'pixel_reconstruction' in terms:
            rebuilt = self.model.pixel_reconstruction.mean(views.pixel_errors, views.pixel_counts)
            losses['pixel_reconstruction'] = rebuilt.loss
            names = list(self.modalities)
            self._log_each(f'{stage}_pixel_reconstruction_loss', names, rebuilt.losses, rebuilt.counts, stage)
        if 'pixel_contrast' in terms:
            found = self.pixel_contrast.compare(views.pixels, views.pixels_observed, exclude, counts)
            losses['pixel_contrast'] = found.loss
        if 'consistency' in terms:
            both = views.pixels_observed.all(-1)
            whole, part = views.pixels.float()
            apart = (1 - F.cosine_similarity(part, whole.detach(), dim=-1)).masked_fill(~both, 0)
            losses['consistency'] = shared_mean(apart.sum(), both.sum())[0]
        self._log_statistics(views, counts, stage)
        return losses

    def _grain_losses(
        self, views: Views, coordinates: Tensor | None, exclude: Tensor | None, counts: Sequence[int], stage: str
    ) -> dict[str, Tensor]:
        """Return the losses of objects and of the student, and log whether their embeddings collapse."""
        model = self.model
        fused = model.backbone.add_context(views.fused, coordinates)
        taught = None if model.teacher is None else views.taught
        found = model.granularity(views.tokens, fused, taught, views.observed, exclude, counts, stage == 'train')
        counted = stage != 'train' or readable(views.observed) or self._logs_now  # singular values are slow
        for name, compared in found.items() if counted else ():
            sources = [*self.modalities, FUSED]
            self._log_collapse(f'{stage}_{name}', sources, compared.embeddings, compared.available, stage)
            if compared.used is not None:
                self._log(f'{stage}_{name}_prototypes', compared.used, 1, stage)
        return {name: compared.loss for name, compared in found.items()}

    def _log_fused(self, fused: Tensor, shown: Tensor, counts: Sequence[int], stage: str) -> None:
        """Log whether the fused tokens of the backbone collapse; the losses compare their projections."""
        step = -(-fused.shape[1] // MOST_PATCHES)
        tokens, seen = gather_flagged(fused[:, ::step].detach().float(), shown[:, ::step], counts)
        self._log_collapse(f'{stage}_fused', ['all'], tokens.unsqueeze(0), seen.unsqueeze(-1), stage)

    def _log_statistics(self, views: Views, counts: Sequence[int], stage: str) -> None:
        """Log whether the dense embeddings of the tiles of all ranks collapse, or depend on their position."""
        if stage == 'train' and not readable(views.pixels_observed) and not self._logs_now:
            return  # singular values are slow on an accelerator
        pixels, seen = gather_flagged(views.pixels[0].detach(), views.pixels_observed[..., 0], counts)
        self._log_collapse(f'{stage}_pixel', ['all'], pixels.unsqueeze(0), seen.unsqueeze(-1), stage)
        position = position_variance(pixels, seen).unsqueeze(0)
        self._log_each(f'{stage}_pixel_position', ['all'], position, position.isfinite(), stage)

    def _log_collapse(
        self, name: str, sources: Sequence[str], embeddings: Tensor, available: Tensor, stage: str
    ) -> None:
        """Log spread and effective rank of the embeddings ``(S, G, N, D)`` of each source."""
        for kind, statistic in {'spread': spread, 'rank': effective_rank}.items():
            values = statistic(embeddings, available)
            self._log_each(f'{name}_{kind}', sources, values, values.isfinite(), stage)

    def _contrast_tiles(self, views: Views, exclude: Tensor | None, counts: Sequence[int], stage: str) -> Tensor:
        assert self.tile_contrast is not None
        seen = views.observed.any(1)
        if self.model.location_head is not None:
            seen = torch.cat([seen, views.located.unsqueeze(1)], 1)
        found = self.tile_contrast.contrast(views.tiles, seen, exclude, counts)
        names = self.tile_names
        pairs = [subset_name((names[i], names[j])) for i, j in found.pairs]
        for kind, values in {'loss': found.losses, 'top1': found.top1, 'top5': found.top5}.items():
            self._log_each(f'{stage}_tile_{kind}', pairs, values, found.counts, stage)
        self._log(f'{stage}_temperature', self.tile_contrast.temperature.detach()[0], 1, stage)
        self._log_spread(f'{stage}_tile_spread', found.embeddings, found.available, stage, names)
        return found.loss

    def _distances(self) -> NegativeDistances | None:
        within = self.hparams['exclude_within']
        return None if within is None else NegativeDistances(within, self.tile_names)

    def _exclude(self, batch: Sample, counts: Sequence[int]) -> Tensor | None:
        if (distances := self._distances()) is None:
            return None
        return distances.exclude(self._position(batch, 'bounds', 9), counts).to(self.device, non_blocking=True)

    def _exclude_by_pair(self, batch: Sample, exclude: Tensor | None, counts: Sequence[int]) -> Tensor | None:
        """Return which tiles are not negatives of a tile, ``(P, B, G)`` if it depends on the pair of modalities."""
        distances = self._distances()
        if distances is None or (self.model.location_head is None and not isinstance(distances.within, Mapping)):
            return exclude
        positions = self._position(batch, 'bounds', 9), self._position(batch, COORDINATES, 2)
        return distances.exclude_by_pair(*positions, counts, self.device)

    def _position(self, batch: Sample, key: str, width: int) -> Tensor:
        count = len(available(batch, self.modalities))
        unknown = torch.full((count, width), torch.nan, dtype=wide(self.device), device=self.device)
        return batch.get(key, unknown)

    def _withhold_location(self, batch: Sample, counts: Sequence[int], key: Sequence[int]) -> Sample:
        """Return the batch with the location of some tiles withheld from the fusion, the same for any world size."""
        random = generator((self.hparams['seed'], *key, WITHHOLDING))
        kept = torch.rand(sum(counts), 1, generator=random, dtype=torch.float32) >= self.hparams['location_dropout']
        kept = kept[own_rows(counts)].to(self.device, non_blocking=True)
        usable = batch.get(LOCATION_VALID, torch.ones_like(kept))
        return {**batch, LOCATION_VALID: kept & usable, COMPARED: usable}

    def _evaluate(self, batch: Sample, stage: str, batch_idx: int) -> None:
        loss, views = self.compute(batch, stage, batch_idx)
        refuse_output(views.patches.movedim(1, 0), batch, batch_idx, self.model)
        refuse_loss(loss, batch_idx, self.model)
        key = (self.hparams['seed'], STAGES[stage], batch_idx, self.global_rank)
        self._retrieval.update(views.patches, views.observed, generator(key))
        if batch_idx == 0 and 'tile' in self.terms:
            tiles = F.normalize(views.tiles.float(), dim=-1).cpu()
            observed = views.observed.any(1).cpu()
            for (i, first), (j, second) in combinations(enumerate(self.modalities), 2):
                both = observed[:, i] & observed[:, j]
                if both.any():
                    self._similar[f'tiles, {first} and {second}'] = (tiles[i] @ tiles[j].T)[both][:, both][:64, :64]

    def _report(self, stage: str) -> None:
        for pair, found in self._retrieval.compute().items():
            name = subset_name(pair)
            self.log(f'{stage}_patch_top1/{name}', found.top1, sync_dist=True)
            self.log(f'{stage}_patch_top5/{name}', found.top5, sync_dist=True)
            self.log(f'{stage}_patch_candidates/{name}', float(found.candidates), sync_dist=True)
            self._similar[f'patches, {pair[0]} and {pair[1]}'] = found.similarity
        if not self.trainer.sanity_checking:
            data = 'synthetic landscapes' if getattr(self.datamodule, 'synthetic', False) else f'{stage} split'
            self.show(f'{stage}/similarity', lambda: draw_similarity(self._similar, f'Cosine of embeddings, {data}'))

    def _log(self, name: str, value: Tensor, count: int, stage: str, **kwargs: Any) -> None:
        """Log a value that is equal on all ranks; evaluations average it over batches and ranks."""
        self.log(name, value.detach(), batch_size=count, sync_dist=stage != 'train', **kwargs)

    def _log_each(self, name: str, keys: Sequence[str], values: Tensor, counts: Tensor, stage: str) -> None:
        if stage == 'train' and not readable(counts) and not self._logs_now:
            return  # the counts are only read for steps that reach the loggers
        for key, value, count in zip(keys, values.detach(), counts.tolist(), strict=True):
            if count:
                self._log(f'{name}/{key}', value, count, stage)

    @property
    def _logs_now(self) -> bool:
        trainer: Any = self.trainer
        return (self.global_step + 1) % (trainer.log_every_n_steps or 1) == 0

    def _log_spread(
        self, name: str, embeddings: Tensor, available: Tensor, stage: str, names: Sequence[str] | None = None
    ) -> None:
        values = spread(embeddings, available)
        self._log_each(name, names or list(self.modalities), values, values.isfinite(), stage)

    def _check_arguments(self) -> None:
        hparams = self.hparams
        names = ('tile', 'patch', 'reconstruction', 'object', 'granularity')
        weights = {name: hparams[f'{name}_weight'] for name in names}
        if not all(0 <= weight < math.inf for weight in weights.values()) or not self.terms:
            raise ValueError(f'weights of the loss terms are {weights}, expected none below 0 and one above it')
        check_choice(
            hide=(hparams['hide'], ('pixels', 'tokens')),
            rebuild=(hparams['rebuild'], ('hidden', 'all')),
            embedding_error=(hparams['embedding_error'], ('squared', 'absolute')),
        )
        if strange := set(hparams['granularity']) - set(GRAINS):
            raise ValueError(f'granularity has {sorted(strange)}, expected some of {list(GRAINS)}')
        if (weights['reconstruction'] or weights['object'] or self.grains) and not 0 < hparams['mask_ratio'] < 1:
            raise ValueError(f'mask_ratio is {hparams["mask_ratio"]}, expected a number between 0 and 1')
        of_tiles = ('micro_batch_size', 'projection_dim', 'candidates', 'max_pixels', 'max_dates')
        of_pixels = ('embedding_dim', 'embedding_pixels')
        check_integer(0, seed=hparams['seed'])
        check_integer(1, **{name: hparams[name] for name in (*of_tiles, *of_pixels)})
        check_integer(2, **{name: hparams[name] for name in ('object_clusters', 'granularity_prototypes')})
        check_least(
            0,
            **{name: hparams[name] for name in ('embedding_weight', 'embedding_contrast_weight', 'consistency_weight')},
        )
        check_distances(hparams['exclude_within'])
        for name in ('ema', 'teacher_decay'):
            if hparams[name] is not None and not 0 <= hparams[name] < 1:
                raise ValueError(f'{name} is {hparams[name]}, expected a decay from 0 to below 1')

    def _check_modalities(self) -> None:
        few = len(self.tile_names) < 2 and self.hparams['tile_weight']
        if few or (len(self.modalities) < 2 and self.hparams['patch_weight']):
            raise ValueError(
                f'contrastive losses need two modalities, got {list(self.modalities)}: expected two or more '
                'modalities, or tile_weight=0 and patch_weight=0'
            )
        self._distances()  # validates the names of exclude_within


class omnisat_pretraining(OmniSatPretraining):
    """:class:`.OmniSatPretraining` under its short name on the command line."""
