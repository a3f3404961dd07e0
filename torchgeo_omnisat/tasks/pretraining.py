# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Task for self-supervised pre-training on several modalities of the same ground."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchgeo.datasets.utils import Sample

from ..batch import FILLER, available
from ..evaluation.retrieval import PatchRetrieval, draw_similarity, spread
from ..losses import CrossModalInfoNCE, MaskedReconstruction, PatchContrastiveLoss, draw_hidden, too_close
from ..modality import Modality, subset_name
from ..models import OmniSat, OmniSatOutput
from ..transforms import ModalityDropout
from ..transforms.base import keep_some
from ..utils.distributed import gather_numbers, own_rows
from ..utils.finite import refuse_loss, refuse_output
from .base import OmniSatTask

#: A number for each stage, of which its draws follow.
STAGES = {'train': 0, 'val': 1, 'test': 2}


class Draws(NamedTuple):
    """What is left to chance in a step, for B tiles.

    Attributes:
        hidden: Which ground patches are hidden in all modalities, ``(B, N)``.
        numbers: Uniform numbers ``(B, 2, M)`` that decide which modalities the fusion loses.
    """

    hidden: Tensor
    numbers: Tensor

    def part(self, rows: slice) -> 'Draws':
        """Return the draws of some tiles."""
        return Draws(*(value[rows] for value in self))


class Views(NamedTuple):
    """What :class:`Pretrainer` makes of B tiles.

    Attributes:
        tiles: An embedding a modality and tile, ``(M, B, P)``; P is 0 without heads.
        patches: What patches are compared by, ``(M, B, N, D)``.
        seen: Which patch of which tile each modality saw, ``(B, N, M)``.
        errors: Sum of the squared errors of each rebuilt modality, ``(M,)``; zero without that term.
        counts: Number of values that were rebuilt, ``(M,)``.
    """

    tiles: Tensor
    patches: Tensor
    seen: Tensor
    errors: Tensor
    counts: Tensor


class OmniSatPretraining(OmniSatTask):
    """Contrast between the modalities of a tile, and reconstruction of hidden ground.

    Three terms, each with a weight: :class:`.CrossModalInfoNCE` of projected tiles,
    :class:`.PatchContrastiveLoss` of tokens, and :class:`.MaskedReconstruction` of ground
    patches, some of them hidden in all modalities at once, from what is fused of the others.
    The contrasts compare tiles of which nothing is hidden. Fusion loses modalities at random,
    and has to rebuild those too. No label is read.

    Validation hides the same patches each time. It also tells how often one modality finds
    its patch among *candidates* that were drawn from all validation tiles, by pair:
    ``val_patch_top1/s1a+s2``. Checkpoints follow ``val_loss``. ``backbone`` is what
    :func:`.load_backbone` hands over.

    Of *modalities*, *patch_size*, *mean* and *std*, what is None is asked of the datamodule.

    Args:
        backbone: Name of a builder in :mod:`torchgeo_omnisat.models`.
        modalities: Plain dictionaries of the modalities (:meth:`.Modality.as_dict`), or the
            modalities by name.
        patch_size: Side of a ground patch in metres.
        tile_weight: Weight of the contrast of tiles; 0 for none.
        patch_weight: Weight of the contrast of patches; 0 for none.
        reconstruction_weight: Weight of the reconstruction; 0 for none, and nothing is hidden.
        temperature: Temperature that the contrast of tiles begins with.
        patch_temperature: That of the contrast of patches, which stays.
        projection_dim: Width of a projected tile, and patch.
        patch_negatives: See :class:`.PatchContrastiveLoss`; as published it is ``'everywhere'``.
        project_patches: Whether patches are compared behind a projection head; not as published.
        exclude_within: Tiles whose centres are nearer than so many metres, or that overlap, are
            no negatives of each other; None to leave ``bounds`` aside.
        mask_ratio: Part of the ground patches that is hidden.
        hide: Whether pixels are hidden, so that nothing of them reaches any encoder, or tokens
            alone. Pixels cost a second pass of the encoders if there is a contrast too.
        rebuild: Which patches are rebuilt: the hidden ones, or all.
        max_pixels: The most pixels along the side of a rebuilt patch; None for all.
        max_dates: The most dates of a series that are rebuilt a step; None for all.
        modality_dropout: Probability that the fusion of a tile loses each of its modalities, or by
            name, in training; never the last one. See :class:`.ModalityDropout`.
        micro_batch_size: Tiles that are encoded at once, so that memory grows with them and
            hardly with the batch, all of whose tiles are negatives; None for all. Encodes
            twice. (``accumulate_grad_batches`` has the negatives of one batch alone.)
        ema: Decay of an exponential moving average of the weights, such as 0.999, which is then
            what is validated, written to checkpoints and handed over; None for none.
        candidates: Patches of which one is to be found in validation.
        seed: What is hidden and dropped follows from it, the step and the tile.
        lr: Learning rate after the warm-up.
        weight_decay: Weight decay of AdamW.
        warmup: Fraction of the steps in which the learning rate rises to *lr*.
        **kwargs: Arguments of :class:`.OmniSatTask`.

    Raises:
        ValueError: If there are fewer than two modalities to compare, no term has a weight, or
            an argument is out of range.
    """

    #: Key of what is learnt in the batch: nothing, so nobody need look at labels.
    target: ClassVar[str | None] = None

    def __init__(
        self,
        backbone: str = 'omnisat_small',
        modalities: Sequence[dict[str, Any]] | Mapping[str, Modality] | None = None,
        patch_size: float | None = None,
        *,
        tile_weight: float = 1.0,
        patch_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        temperature: float = 0.07,
        patch_temperature: float = 0.1,
        projection_dim: int = 128,
        patch_negatives: Literal['everywhere', 'place'] = 'place',
        project_patches: bool = True,
        exclude_within: float | None = 0.0,
        mask_ratio: float = 0.3,
        hide: Literal['pixels', 'tokens'] = 'tokens',
        rebuild: Literal['hidden', 'all'] = 'all',
        max_pixels: int | None = None,
        max_dates: int | None = None,
        modality_dropout: float | dict[str, float] = 0.3,
        micro_batch_size: int | None = None,
        ema: float | None = None,
        candidates: int = 256,
        seed: int = 0,
        lr: float = 2e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
        **kwargs: Any,
    ) -> None:
        """Build the model if all required arguments are given; otherwise the trainer builds it."""
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
    def terms(self) -> dict[str, float]:
        """The weights of the terms that have one, by name."""
        found = {name: float(self.hparams[f'{name}_weight']) for name in ('tile', 'patch', 'reconstruction')}
        return {name: weight for name, weight in found.items() if weight}

    def build(self) -> nn.Module:
        """Build the backbone with heads and decoders."""
        self._refuse()
        told, terms = self.hparams, self.terms
        self.dropout = ModalityDropout(self.modalities, told['modality_dropout'])
        backbone, sizes = self.build_backbone(), {name: told[name] for name in ('max_pixels', 'max_dates')}
        width, patch_size = backbone.embed_dim, backbone.patch_size
        return Pretrainer(
            backbone,
            told['projection_dim'] if 'tile' in terms else None,
            told['projection_dim'] if 'patch' in terms and told['project_patches'] else None,
            MaskedReconstruction(self.modalities, width, patch_size, **sizes) if 'reconstruction' in terms else None,
        )

    def configure_losses(self) -> None:
        """Set the contrastive losses; the reconstruction belongs to the model."""
        if self.is_configured:
            self.tile_contrast = CrossModalInfoNCE(self.hparams['temperature']) if 'tile' in self.terms else None
            temperature, where = self.hparams['patch_temperature'], self.hparams['patch_negatives']
            self.patch_contrast = PatchContrastiveLoss(temperature, negatives=where)

    def configure_callbacks(self) -> list[Callback]:
        """Return the moving average of the weights, if it is configured."""
        return [] if self.hparams['ema'] is None else [EMAWeightAveraging(decay=self.hparams['ema'])]

    def training_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the loss of a batch, with different patches masked in each step.

        Args:
            batch: A batch; labels do not matter.
            batch_idx: Index of the batch.
            dataloader_idx: Index of the dataloader.

        Returns:
            The loss.
        """
        return self.compute(batch, 'train', self.global_step, batch_idx)[0] + self.zero_loss_over_all_parameters()

    def on_validation_epoch_start(self) -> None:
        """Make room for the patches of a validation."""
        self._begin()

    def validation_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and figures of a batch, with the same patches hidden each time.

        Args:
            batch: A batch; labels do not matter.
            batch_idx: Index of the batch.
            dataloader_idx: Index of the dataloader.
        """
        self._evaluate(batch, 'val', batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the retrieval of patches, and show similarities."""
        self._report('val')

    def on_test_epoch_start(self) -> None:
        """Make room for the patches of a test."""
        self._begin()

    def test_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As :meth:`validation_step`."""
        self._evaluate(batch, 'test', batch_idx)

    def on_test_epoch_end(self) -> None:
        """As :meth:`on_validation_epoch_end`."""
        self._report('test')

    def predict_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:
        """Embeddings, nothing hidden.

        Args:
            batch: A batch.
            batch_idx: Index of the batch.
            dataloader_idx: Index of the dataloader.

        Returns:
            ``fused`` ``(B, N, D)``, ``available`` ``(B, M)``, and ``bounds`` as in the batch or None.
        """
        out = self(self.renormalise(batch))
        refuse_output(out.fused, batch, batch_idx, self.model)
        fused = out.fused.to(torch.promote_types(out.fused.dtype, torch.float32))  # NumPy has no bfloat16
        return {'fused': fused, 'available': out.available, 'bounds': batch.get('bounds')}

    def compute(self, batch: Sample, stage: str, *key: int) -> tuple[Tensor, Views]:
        """Return the weighted sum of the loss terms of a batch, and log all metrics.

        Args:
            batch: A batch.
            stage: ``'train'``, ``'val'`` or ``'test'``; modalities are dropped in training alone.
            *key: Numbers that what is hidden and dropped follows from, besides seed and stage.

        Returns:
            The loss, the same in every process, and the views that it compares.
        """
        batch = self.renormalise(batch)
        grid = self.model.grid(batch)
        if FILLER not in batch:
            self.warn_without_modalities(batch)
        told, terms, names = self.hparams, self.terms, list(self.modalities)
        count = len(available(batch, self.modalities))
        ratio = told['mask_ratio'] if 'reconstruction' in terms else 0.0
        # The one exchange of sizes of a step; everything after it knows them.
        filler = FILLER in batch
        ranks = gather_numbers(count, int('bounds' in batch), int(filler), device=self.device)
        counts = [row[0] for row in ranks]
        draws = draw_views((told['seed'], STAGES[stage], *key), counts, len(names), grid, ratio, self.device)
        chances = [self.dropout.p[name] if stage == 'train' else 0.0 for name in names]
        compare = stage != 'train' or bool({'tile', 'patch'} & set(terms))
        how = told['hide'] == 'pixels', told['micro_batch_size'], compare, told['rebuild'] == 'all'
        views = self.model.views(batch, draws, chances, *how)
        exclude = self._exclude(batch, counts) if any(row[1] for row in ranks) else None
        losses = {}
        # Of all ranks, as Lightning's mean over ranks wants the same number in each.
        counted = count if stage == 'train' else sum(row[0] for row in ranks if not row[2])
        if 'tile' in terms and (stage == 'train' or counted > 1):
            losses['tile'] = self._contrast_tiles(views, exclude, counts, stage)
        if 'patch' in terms:
            patches = self.patch_contrast.compare(views.patches, views.seen, exclude, counts)
            losses['patch'] = patches.loss
            self._log_spread(f'{stage}_patch_spread', patches.tokens, patches.available, stage)
        if 'reconstruction' in terms:
            rebuilt = self.model.reconstruction.mean(views.errors, views.counts)
            losses['reconstruction'] = rebuilt.loss
            self._log_each(f'{stage}_reconstruction_loss', names, rebuilt.losses, rebuilt.counts, stage)
        loss = sum((terms[name] * value for name, value in losses.items()), start=views.patches.new_zeros(()))
        if losses:
            self._log(f'{stage}_loss', loss, counted, stage, prog_bar=True)
        for name, value in losses.items():
            self._log(f'{stage}_{name}_loss', value, counted, stage)
        return loss, views

    def _contrast_tiles(self, views: Views, exclude: Tensor | None, counts: Sequence[int], stage: str) -> Tensor:
        """Return the contrastive loss of tiles, and log its metrics by pair of modalities."""
        assert self.tile_contrast is not None
        found = self.tile_contrast.contrast(views.tiles, views.seen.any(1), exclude, counts)
        names = list(self.modalities)
        pairs = [subset_name((names[i], names[j])) for i, j in found.pairs]
        for kind, values in {'loss': found.losses, 'top1': found.top1, 'top5': found.top5}.items():
            self._log_each(f'{stage}_tile_{kind}', pairs, values, found.counts, stage)
        self._log(f'{stage}_temperature', self.tile_contrast.temperature.detach()[0], 1, stage)
        self._log_spread(f'{stage}_tile_spread', found.embeddings, found.available, stage)
        return found.loss

    def _exclude(self, batch: Sample, counts: Sequence[int]) -> Tensor | None:
        """Return which tiles are no negatives for which; tiles of a batch without bounds are close to none."""
        within = self.hparams['exclude_within']
        if within is None:
            return None
        count = len(available(batch, self.modalities))
        unknown = torch.full((count, 9), torch.nan, dtype=torch.float64, device=self.device)
        return too_close(batch.get('bounds', unknown), within, counts)

    def _begin(self) -> None:
        """Begin an evaluation."""
        self._retrieval = PatchRetrieval(self.modalities, self.hparams['candidates'])
        self._similar: dict[str, Tensor] = {}

    def _evaluate(self, batch: Sample, stage: str, batch_idx: int) -> None:
        """Loss and figures of a batch of an evaluation."""
        loss, views = self.compute(batch, stage, batch_idx)
        refuse_output(views.patches.movedim(1, 0), batch, batch_idx, self.model)
        refuse_loss(loss, batch_idx, self.model)
        key = (self.hparams['seed'], STAGES[stage], batch_idx, self.global_rank)
        self._retrieval.update(views.patches, views.seen, generator(key))
        if batch_idx == 0 and 'tile' in self.terms:
            tiles = F.normalize(views.tiles.float(), dim=-1).cpu()
            seen = views.seen.any(1).cpu()
            for (i, first), (j, second) in combinations(enumerate(self.modalities), 2):
                both = seen[:, i] & seen[:, j]
                if both.any():
                    self._similar[f'tiles, {first} and {second}'] = (tiles[i] @ tiles[j].T)[both][:, both][:64, :64]

    def _report(self, stage: str) -> None:
        """Log what was found of the patches, and show similarities."""
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
        """Log what is the same in every process; evaluations are averaged over their batches."""
        self.log(name, value.detach(), batch_size=count, sync_dist=stage != 'train', **kwargs)

    def _log_each(self, name: str, keys: Sequence[str], values: Tensor, counts: Tensor, stage: str) -> None:
        """Log a value a key, but those that nothing counts for."""
        for key, value, count in zip(keys, values.detach(), counts.tolist(), strict=True):
            if count:
                self._log(f'{name}/{key}', value, count, stage)

    def _log_spread(self, name: str, embeddings: Tensor, available: Tensor, stage: str) -> None:
        """Log the spread of each modality's embeddings."""
        values = spread(embeddings, available)
        self._log_each(name, list(self.modalities), values, values.isfinite(), stage)

    def _refuse(self) -> None:
        """Raise a ValueError for what cannot be trained."""
        told = self.hparams
        weights = {name: told[f'{name}_weight'] for name in ('tile', 'patch', 'reconstruction')}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f'weights of the terms are {weights}, expected none below 0 and one above it')
        if len(self.modalities) < 2 and (weights['tile'] or weights['patch']):
            raise ValueError(
                f'there is nothing to compare the modality {list(self.modalities)} with: expected two or more '
                'modalities, or tile_weight=0 and patch_weight=0'
            )
        for name, choices in {'hide': ('pixels', 'tokens'), 'rebuild': ('hidden', 'all')}.items():
            if told[name] not in choices:
                raise ValueError(f'{name} is {told[name]!r}, expected {choices[0]!r} or {choices[1]!r}')
        if weights['reconstruction'] and not 0 < told['mask_ratio'] < 1:
            raise ValueError(f'mask_ratio is {told["mask_ratio"]}, expected a number between 0 and 1')
        for name in ('micro_batch_size', 'projection_dim', 'candidates'):
            if told[name] is not None and told[name] < 1:
                raise ValueError(f'{name} is {told[name]}, expected at least 1')
        if told['ema'] is not None and not 0 <= told['ema'] < 1:
            raise ValueError(f'ema is {told["ema"]}, expected a decay from 0 to below 1')


class omnisat_pretraining(OmniSatPretraining):
    """:class:`.OmniSatPretraining` under its short name on the command line."""


class Pretrainer(nn.Module):
    """A backbone with what pre-training adds: projection heads and a decoder for each modality.

    A tile's embedding is the mean of the tokens that a modality saw, projected by a
    perceptron (as Chen et al., SimCLR, arXiv 2002.05709), so that what the contrast throws
    away is lost behind the head and not in the tokens. Patches are compared by their tokens
    themselves, as published, unless they are to be projected too.

    Args:
        backbone: What is trained and handed over.
        tile_dim: Width P of a tile's embedding; None without heads.
        patch_dim: Width of a patch's embedding; None for the tokens themselves.
        reconstruction: The decoders, if hidden patches are to be rebuilt.
    """

    def __init__(
        self,
        backbone: OmniSat,
        tile_dim: int | None = 128,
        patch_dim: int | None = None,
        reconstruction: MaskedReconstruction | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tile_heads, self.patch_heads = self._heads(tile_dim), self._heads(patch_dim)
        self.reconstruction = reconstruction

    def _heads(self, width: int | None) -> nn.ModuleDict:
        """Build one MLP per modality, or none."""
        dim = self.backbone.embed_dim
        names = self.backbone.modalities if width is not None else ()
        return nn.ModuleDict({name: Mlp(dim, dim, width) for name in names})

    def grid(self, batch: Mapping[str, Tensor]) -> tuple[int, int]:
        """Rows and columns of the ground grid of a batch."""
        images = {name: batch[m.image_key] for name, m in self.backbone.modalities.items() if m.image_key in batch}
        if not images:
            self.backbone.encode(batch)  # says what is missing
        return self.backbone.ground(images)[0]

    def forward(self, batch: Mapping[str, Tensor]) -> OmniSatOutput:
        """Return the output of the backbone for a batch, with nothing masked."""
        return self.backbone(batch)

    def views(
        self,
        batch: Mapping[str, Tensor],
        draws: Draws,
        chances: Sequence[float],
        pixels: bool = True,
        micro_batch_size: int | None = None,
        compare: bool = True,
        everything: bool = False,
    ) -> Views:
        """Encode every modality of a batch, and rebuild what is hidden of it.

        Tiles and patches are embedded with nothing hidden: what all modalities lack alike would
        tell which of them belong together, and a contrast would learn that and nothing else.

        Args:
            batch: A normalised batch; only its images, dates and flags are used.
            draws: What is hidden and dropped.
            chances: Probability that the fusion of a tile loses each modality, never its last.
            pixels: Hide the pixels of hidden patches, so that nothing of them reaches what
                is fused, and encode every tile once more for that; otherwise only their
                tokens, and only from the fusion.
            micro_batch_size: Tiles that are encoded at once. Only they are held in memory:
                activations are computed again in the backward pass. None for all, without that.
            compare: Whether embeddings matter; otherwise those of what is not hidden do, which
                saves one of the two passes.
            everything: Rebuild the patches that are not hidden too.

        Returns:
            The views of all tiles.
        """
        keys = [key for m in self.backbone.modalities.values() for key in m.keys if key in batch]
        images = {key: batch[key] for key in keys}
        grid = self.grid(images)
        if micro_batch_size is None:
            return self._views(images, draws, grid, chances, pixels, compare, everything)
        parts, told = [], (grid, chances, pixels, compare, everything)
        for start in range(0, len(draws.hidden), micro_batch_size):
            rows = slice(start, start + micro_batch_size)
            part = {key: value[rows] for key, value in images.items()}
            parts.append(checkpoint(self._views, part, draws.part(rows), *told, use_reentrant=False))
        tiles, patches, seen, errors, counts = zip(*parts, strict=True)
        return Views(torch.cat(tiles, 1), torch.cat(patches, 1), torch.cat(seen), sum(errors), sum(counts))

    def _views(
        self,
        batch: Mapping[str, Tensor],
        draws: Draws,
        grid: tuple[int, int],
        chances: Sequence[float],
        pixels: bool,
        compare: bool,
        everything: bool,
    ) -> Views:
        """Return the views of tiles that are encoded at once."""
        backbone, hidden = self.backbone, draws.hidden
        apart = pixels and self.reconstruction is not None
        shown = self._encode(self.hide(batch, hidden, grid) if apart else batch, grid)
        whole = self._encode(batch, grid) if apart and compare else shown
        tokens, seen = shown
        some = next(iter(tokens.values()))
        errors = some.new_zeros(len(backbone.modalities), dtype=torch.float32)
        counts = torch.zeros_like(errors, dtype=torch.int64)
        if self.reconstruction is not None:
            visible = seen & ~hidden.unsqueeze(-1)
            chance = torch.tensor(chances, dtype=torch.float32, device=some.device)
            kept = keep_some(visible.any(1), chance, *draws.numbers.unbind(1))
            fused = backbone.fuse(tokens, visible & kept.unsqueeze(1), grid)
            wanted = torch.ones_like(hidden) if everything else hidden
            errors, counts = self.reconstruction.errors(fused, batch, wanted, grid)
        tokens, seen = whole
        stacked = torch.stack([tokens.get(name, torch.zeros_like(some)) for name in backbone.modalities])
        patches = project(stacked, self.patch_heads) if self.patch_heads else stacked
        return Views(self._tiles(stacked, seen), patches, seen, errors, counts)

    def _encode(self, batch: Mapping[str, Tensor], grid: tuple[int, int]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the tokens of each modality, and the patches that each of them observed."""
        maps = self.backbone.encode(batch)
        return self.backbone.tokens(maps), self.backbone.observed_patches(maps, grid)

    def _tiles(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Return the embedding of every tile in every modality, from the tokens of observed patches."""
        if not self.tile_heads:
            return tokens.new_zeros(*tokens.shape[:2], 0)
        count = seen.sum(1).T.clamp(min=1).unsqueeze(-1)
        return project(tokens.sum(2) / count, self.tile_heads)

    def hide(self, batch: Mapping[str, Tensor], hidden: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        """Return the batch with masked patches set to NaN.

        A pixel that lies on several patches goes with any of them.

        Args:
            batch: A batch; it is not changed.
            hidden: Which patches are hidden, ``(B, N)``.
            grid: Rows and columns of the ground grid, N in all.
        """
        flags = hidden.unflatten(1, (1, *grid)).float()
        changed = {}
        for modality in self.backbone.modalities.values():
            if modality.image_key in batch:
                image = batch[modality.image_key]
                gone = F.adaptive_max_pool2d(flags, tuple(image.shape[-2:])) > 0
                changed[modality.image_key] = image.masked_fill(
                    gone.unsqueeze(1) if modality.temporal else gone, torch.nan
                )
        return {**batch, **changed}


def project(embeddings: Tensor, heads: nn.ModuleDict) -> Tensor:
    """Embeddings ``(M, ..., D)``, those of each modality through its own head."""
    return torch.stack([head(x) for head, x in zip(heads.values(), embeddings, strict=True)])


def draw_views(
    key: Sequence[int],
    counts: Sequence[int],
    modalities: int,
    grid: tuple[int, int],
    ratio: float,
    device: torch.device,
) -> Draws:
    """Draws that follow from a key, the same for a tile however many processes share the batch.

    Args:
        key: Whole numbers, not negative, such as the seed and the step; the same in every process.
        counts: Number of tiles of each rank.
        modalities: Number M of modalities.
        grid: Rows and columns of the ground grid, N in all; one patch or more stays visible.
        ratio: Part of the patches to hide.
        device: Where the draws are wanted.
    """
    own = own_rows(counts)
    random = generator(key)
    numbers = torch.rand(sum(counts), 2, modalities, generator=random, dtype=torch.float32)
    hidden = draw_hidden(sum(counts), grid, min(ratio, 1 - 1 / (grid[0] * grid[1])), random)
    return Draws(hidden[own].to(device), numbers[own].to(device))


def generator(key: Sequence[int]) -> torch.Generator:
    """Return a generator on the CPU that depends on non-negative integers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
