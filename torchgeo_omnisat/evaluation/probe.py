# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Callback that evaluates frozen embeddings during training."""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from ..modality import Modality, subset_name, subsets
from ..models.embedding import any_observed, pixels_of
from ..models.segmentation import resize
from ..utils.checks import check_integer


class Embedded(NamedTuple):
    """Embeddings ``(N, D)`` and their targets: ``(N,)`` classes or ``(N, K)`` labels."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


#: Embeddings by kind (``'patch'``, ``'tile'``, ``'pixel'``, ``'pixel_images'``) and subset of the modalities.
Embeddings = dict[tuple[str, str], Embedded]


class ProbeCallback(Callback):
    """Evaluation of a frozen backbone with k-nearest-neighbour and linear classifiers.

    The classifiers are fitted on labelled tiles of the training split, without augmentation.
    They are scored on tiles of the validation split by macro F1, for subsets of the modalities.
    Each tile is encoded once. A patch is one fused token; its class is the most frequent one in
    ``mask``, without the ignored one. The embedding of a tile is the mean of its patches, and
    its target is ``label``. For a model with dense embeddings, random pixels of them are classified, too,
    as a probe of segmentation. The values of these pixels in the images, averaged by month
    (:func:`monthly_means`), are the reference for nearest neighbours.

    The scores are logged as ``probe_patch_knn/s1a+s2``, ``probe_patch_linear/s1a+s2``, and
    accordingly for ``probe_tile`` and ``probe_pixel``, with ``probe_pixel_images_knn`` as the reference,
    unless fewer than two classes occur. Random state and
    weights of the training do not change. Rank 0 computes the scores and all ranks log them.
    Under FSDP, where no rank has the whole backbone, the callback warns and does nothing.

    ``--trainer.callbacks torchgeo_omnisat.evaluation.ProbeCallback`` adds it on the command line.

    Args:
        every_n_epochs: Number of epochs between evaluations.
        max_tiles: Maximum number of tiles of each split.
        max_patches: Maximum number of patches, and of pixels, of each split.
        neighbours: Number k of nearest neighbours, by cosine distance.
        seed: Seed of the choice of tiles and patches.
        subsets: Subsets of the modalities: ``'auto'`` for all subsets of up to five modalities, else all,
            all but one, and single ones; ``'all'``; or names such as ``s1a+s2``.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        max_tiles: int = 64,
        max_patches: int = 4096,
        neighbours: int = 5,
        seed: int = 0,
        subsets: Literal['auto', 'all'] | Sequence[str] = 'auto',
    ) -> None:
        check_integer(
            1, every_n_epochs=every_n_epochs, max_tiles=max_tiles, max_patches=max_patches, neighbours=neighbours
        )
        check_integer(0, seed=seed)
        self.every_n_epochs, self.max_tiles, self.max_patches = every_n_epochs, max_tiles, max_patches
        self.neighbours, self.seed, self.subsets = neighbours, seed, subsets

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate that the task has a backbone and the datamodule has datasets."""
        datamodule: Any = getattr(trainer, 'datamodule', None)
        if getattr(getattr(pl_module, 'model', None), 'backbone', None) is None:
            raise ValueError(f'ProbeCallback found no model.backbone in {type(pl_module).__name__}, expected one')
        needed = ('train_dataset', 'val_dataset', 'collate_fn', 'aug')
        missing = [name for name in needed if getattr(datamodule, name, None) is None]
        if missing:
            raise ValueError(f'ProbeCallback found no {missing} in the datamodule {datamodule!r}, expected them')
        if getattr(datamodule, 'continuous', False):
            raise ValueError(
                f'ProbeCallback got {type(datamodule).__name__} with continuous labels, expected classes or no labels'
            )
        if isinstance(trainer.strategy, FSDPStrategy):
            rank_zero_warn('ProbeCallback does nothing under FSDP, expected DDP or one process')

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit, score and log."""
        if (trainer.current_epoch + 1) % self.every_n_epochs or isinstance(trainer.strategy, FSDPStrategy):
            return
        scores = self.probe(trainer, pl_module) if trainer.is_global_zero else {}
        for name, score in trainer.strategy.broadcast(scores).items():
            pl_module.log(name, score)

    def probe(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Return the scores of the current backbone by the name under which they are logged."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        context = trainer.precision_plugin.forward_context
        with isolate_rng(), evaluating(pl_module), torch.no_grad():
            fitted = self._embed(datamodule, datamodule.train_dataset, pl_module, context)
            scored = self._embed(datamodule, datamodule.val_dataset, pl_module, context)
            found = {}
            for kind, subset in fitted.keys() & scored.keys():
                score = (self._score_images if kind == 'pixel_images' else self._score)(
                    fitted[kind, subset], scored[kind, subset]
                )
                found.update({f'probe_{kind}_{name}/{subset}': value for name, value in score.items()})
        return dict(sorted(found.items()))

    def _embed(
        self, datamodule: Any, dataset: Any, task: Any, context: Callable[[], AbstractContextManager[None]]
    ) -> Embeddings:
        """Return the embeddings of some tiles; *context* sets the precision of the model only."""
        chosen = np.random.default_rng(self.seed).permutation(len(dataset))[: self.max_tiles]
        loader = DataLoader(
            Subset(dataset, sorted(chosen.tolist())), batch_size=datamodule.batch_size, collate_fn=datamodule.collate_fn
        )
        ignored, found = getattr(datamodule, 'ignore_index', None), defaultdict(list)
        for batch in loader:
            batch = datamodule.aug({key: value.to(task.device) for key, value in batch.items()})
            with context():
                out = task.model.backbone(getattr(task, 'renormalise', lambda same: same)(batch))
            patches = patch_majority(batch['mask'], out.grid, ignored) if 'mask' in batch else None
            every = subsets(getattr(task.model.backbone, 'modalities', out.maps), self.subsets)
            dense = getattr(task.model, 'dense', None)
            pixels = None if dense is None or 'mask' not in batch else self._pixels(dense, out, batch['mask'], ignored)
            for subset in (subset for subset in every if set(subset) <= set(out.maps)):
                with context():
                    part = task.model.backbone.restrict(out, subset)
                if dense is not None and pixels is not None:
                    for kind, value in self._of_pixels(dense, part, batch, task.modalities, *pixels, context).items():
                        found[kind, subset_name(subset)].append(value)
                fused, observed = part.fused.float(), task.model.backbone.observed_patches(part.maps, out.grid).any(-1)
                if patches is not None:
                    known = observed & (patches >= 0)
                    found['patch', subset_name(subset)].append((fused[known], patches[known]))
                if 'label' in batch:
                    weight = observed.unsqueeze(-1).float()
                    tiles = (fused * weight).sum(1) / weight.sum(1).clamp(min=1)
                    known = observed.any(1)
                    found['tile', subset_name(subset)].append((tiles[known], (batch['label'][known] > 0.5).long()))
        return {key: self._join(parts) for key, parts in found.items()}

    def _pixels(self, dense: Any, out: Any, mask: Tensor, ignored: int | None) -> tuple[tuple[int, int], Tensor]:
        """Return the size of dense embeddings, and the classes of some of their pixels; -1 for the others."""
        size = pixels_of(out.extent, dense.gsd)
        classes = patch_majority(mask, size, ignored)
        generator = torch.Generator().manual_seed(self.seed)
        tickets = torch.rand(classes.shape, generator=generator, dtype=torch.float32).to(classes.device)
        most = max(1, self.max_patches // self.max_tiles * 4)
        chosen = tickets.masked_fill(classes < 0, 2).argsort(1)[:, :most]
        return size, torch.full_like(classes, -1).scatter(1, chosen, classes.gather(1, chosen))

    def _of_pixels(
        self,
        dense: Any,
        part: Any,
        batch: Any,
        modalities: Mapping[str, Modality],
        size: tuple[int, int],
        classes: Tensor,
        context: Callable[[], AbstractContextManager[None]],
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return embeddings and images of the pixels with a class, for the modalities of a subset."""
        with context():
            embeddings = dense(part, size).float()
        known = (classes >= 0) & any_observed(part, size).flatten(1)
        images = monthly_means(batch, {name: modalities[name] for name in part.maps}, size)
        pixels = {'pixel': embeddings, 'pixel_images': images}
        return {kind: (value.flatten(2).mT[known], classes[known]) for kind, value in pixels.items()}

    def _join(self, parts: list[tuple[Tensor, Tensor]]) -> Embedded:
        x, y = (torch.cat(tensors).cpu().numpy() for tensors in zip(*parts, strict=True))
        chosen = np.random.default_rng(self.seed).permutation(len(x))[: self.max_patches]
        return Embedded(x[chosen], y[chosen])

    def _score(self, fitted: Embedded, scored: Embedded) -> dict[str, float]:
        classifiers = {'knn': self._neighbours('cosine', fitted)}
        return _macro_f1(fitted, scored, classifiers | {'linear': make_pipeline(StandardScaler(), RidgeClassifier())})

    def _score_images(self, fitted: Embedded, scored: Embedded) -> dict[str, float]:
        return _macro_f1(fitted, scored, {'knn': self._neighbours('euclidean', fitted)})

    def _neighbours(self, metric: str, fitted: Embedded) -> Any:
        return KNeighborsClassifier(min(self.neighbours, len(fitted.x)), metric=metric)


def _macro_f1(fitted: Embedded, scored: Embedded, classifiers: Mapping[str, Any]) -> dict[str, float]:
    labels = np.flatnonzero(scored.y.any(0)) if scored.y.ndim == 2 else np.unique(scored.y)
    if not len(labels) or not (fitted.y != fitted.y[:1]).any():
        return {}
    scores = {}
    for name, classifier in classifiers.items():
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about classes that are rare here
            answer = classifier.fit(*fitted).predict(scored.x)
        scores[name] = float(f1_score(scored.y, answer, labels=labels, average='macro', zero_division=0))
    return scores


def patch_majority(mask: Tensor, grid: tuple[int, int], ignore_index: int | None) -> Tensor:
    """Return the most frequent class of each patch ``(B, N)``, -1 where no pixel has a class.

    Args:
        mask: Classes ``(B, H, W)``.
        grid: Rows and columns of the patches, N in total.
        ignore_index: Class to ignore.
    """
    counts = []
    for sample in mask:  # one at a time: there are many classes
        classes = F.one_hot(sample.clamp(min=0), max(int(mask.max()), 0) + 1).movedim(-1, 0).float()
        classes *= (sample >= 0) & (sample != (-1 if ignore_index is None else ignore_index))
        counts.append(F.adaptive_avg_pool2d(classes, grid).flatten(1))
    most = torch.stack(counts).max(1)
    return most.indices.masked_fill(most.values == 0, -1)


def monthly_means(
    batch: Mapping[str, Tensor], modalities: Mapping[str, Modality], size: tuple[int, int]
) -> Float[Tensor, 'b f h w']:
    """Return the observed values of each pixel: means by month of time series, and the bands of single images.

    Values that are not observed are 0, the mean of normalised images.

    Args:
        batch: Normalised batch.
        modalities: Modalities to use.
        size: Height and width of the result.
    """
    parts = []
    for modality in modalities.values():
        if modality.image_key not in batch:
            continue
        image, dates, valid = (batch[key] for key in modality.keys)
        image = image if modality.temporal else image.unsqueeze(1)
        months = 12 if modality.temporal else 1
        month = (dates.remainder(365.25) / 365.25 * months).long().clamp(0, months - 1)
        is_observed = image.isfinite() & valid[..., None, None, None]
        index = month[..., None, None, None].expand_as(image)
        sums = image.new_zeros(len(image), months, *image.shape[2:])
        counts = sums.clone()
        sums.scatter_add_(1, index, image.masked_fill(~is_observed, 0))
        counts.scatter_add_(1, index, is_observed.to(image.dtype))
        parts.append(resize((sums / counts.clamp(min=1)).flatten(1, 2), size).float())
    return torch.cat(parts, 1)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set a module to evaluation mode, and restore the mode of all parts at the end."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
