# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Embeddings of any task: from the head of its model, or else from principal components of its features."""

import hashlib
import itertools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError

from ..models.embedding import ProjectedEmbedding, any_observed, dense_features, pixels_of
from ..utils.atomic import atomic_file
from ..utils.checks import EmptySplitError
from ..utils.plurals import counted

#: Maximum number of tiles, and of pixels of each, on which components are fitted.
TILES, PIXELS = 64, 512


class Projection(NamedTuple):
    """Principal components of standardised features.

    Attributes:
        mean: Mean of the F features.
        scale: Standard deviation of the F features.
        components: Components ``(D, F)``.
        gsd: GSD in metres.
        source: Description of the tiles on which they were fitted.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    components: NDArray[np.float32]
    gsd: float
    source: str


class Embedder:
    """Function that returns the embeddings of a batch, from the head of a model or from a projection.

    Args:
        model: Model with ``backbone``.
        projection: Projection of the features; None for the head ``model.dense``.
        subsets: Subsets of the modalities whose embedding is compared with that of all.
        source: Description of the head or projection.
        digest: Digest of the projection; empty for a head.
    """

    def __init__(
        self,
        model: Any,
        projection: ProjectedEmbedding | None,
        subsets: Sequence[tuple[str, ...]] = (),
        source: str = 'head',
        digest: str = '',
    ) -> None:
        self.model, self.projection, self.subsets = model, projection, subsets
        self.source, self.digest = source, digest
        self.dim: int = model.dense.dim if projection is None else projection.dim
        self.gsd: float = model.dense.gsd if projection is None else projection.gsd

    @property
    def channels(self) -> int:
        """Number of dimensions and cosines."""
        return self.dim + len(self.subsets)

    def __call__(self, batch: Mapping[str, Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Return the unit vectors and cosines ``(B, D + S, H, W)`` of a normalised batch, in single precision.

        Args:
            batch: Batch with at least one modality.
            size: Height and width in pixels; by default those of the extent at the GSD of the embeddings.
        """
        backbone = self.model.backbone
        out = backbone(batch)
        size = size or pixels_of(out.extent, self.gsd)
        embed = self.model.dense if self.projection is None else partial(self.projection.to(out.fused.device), backbone)
        vectors = embed(out, size).float()
        parts = [vectors]
        for subset in self.subsets:
            if set(subset) & set(out.maps):
                other = embed(backbone.restrict(out, subset), size).float()
                parts.append((vectors * other).sum(1, keepdim=True))
            else:
                parts.append(torch.zeros_like(vectors[:, :1]))
        return torch.cat(parts, dim=1)


def make_embedder(
    task: Any, subsets: Sequence[tuple[str, ...]], dim: int, gsd: float, files: Sequence[Path], weights: str
) -> Embedder:
    """Return the embeddings of a task that predicts, see :meth:`.OmniSatTask.make_embedder`."""
    if getattr(task.model, 'dense', None) is not None:
        return Embedder(task.model, None, subsets)
    existing = next((path for path in files if path.exists()), None)
    if task.trainer.is_global_zero and existing is None:
        fitted = fit_projection(task, task.datamodule, dim, gsd)
        existing = write_projection(files, fitted, weights)
        rank_zero_info(f'The model has no head of embeddings: {fitted.source} are written to {existing}')
    path = task.trainer.strategy.broadcast(existing)
    assert path is not None
    projection, source, digest = read_projection(path, weights)
    if (projection.dim, projection.gsd) != (dim, gsd):
        raise ValueError(
            f'{path} has {projection.dim} components at {projection.gsd:g} m, but dim is {dim} and gsd {gsd:g}: '
            'expected the same; remove it, or set another projection'
        )
    return Embedder(task.model, projection, subsets, source, digest)


def fit_projection(task: Any, datamodule: Any, dim: int, gsd: float) -> Projection:
    """Fit the principal components of a model on random pixels of training tiles.

    If the datamodule has no training tiles, as without labels, they are those to predict.

    Args:
        task: Task with ``model.backbone`` and ``renormalise``.
        datamodule: Datamodule that was set up for prediction.
        dim: Number of components.
        gsd: GSD in metres.

    Raises:
        ValueError: If there are fewer features or pixels than components.
    """
    samples, source = training_samples(datamodule)
    random, rows = np.random.default_rng(0), []
    backbone = task.model.backbone
    was_training = task.training
    task.eval()
    with torch.inference_mode():
        for sample in samples:
            batch = datamodule.collate_fn([sample])
            images = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
            if not any(modality.image_key in images for modality in task.modalities.values()):
                continue
            normalise = getattr(datamodule, 'aug', None) or (lambda same: same)
            batch = normalise({key: value.to(task.device) for key, value in images.items()})
            out = backbone(task.renormalise(batch))
            size = pixels_of(out.extent, gsd)
            features = dense_features(backbone, out, size)[0].flatten(1).T.float().cpu().numpy()
            places = np.flatnonzero(any_observed(out, size)[0].flatten().cpu().numpy())
            rows.append(features[random.permutation(places)[:PIXELS]])
    task.train(was_training)
    x = np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)
    if min(x.shape) < dim:
        raise ValueError(
            f'{source} give {counted(x.shape[0], "pixel")} of {x.shape[1]} features, expected at least dim, {dim}'
        )
    mean, scale = (np.asarray(value, np.float32) for value in (x.mean(0), np.maximum(x.std(0), 1e-6)))
    components = PCA(dim, random_state=0).fit((x - mean) / scale).components_.astype(np.float32)
    return Projection(mean, scale, components, gsd, f'{dim} principal components of {len(x)} pixels of {source}')


def write_projection(paths: Sequence[Path], projection: Projection, weights: str) -> Path:
    """Write a projection to the first path that is writable, and return it.

    Args:
        paths: Possible files.
        projection: Projection.
        weights: Digest of the weights that it belongs to.
    """
    for path, *others in (paths[i:] for i in range(len(paths))):
        try:
            with atomic_file(path) as temporary, temporary.open('wb') as file:
                np.savez(file, weights=weights, **projection._asdict())
        except OSError as error:
            if not others:
                raise
            rank_zero_info(f'{path} cannot be written ({error})')
        else:
            return path
    raise AssertionError


def read_projection(path: Path, weights: str) -> tuple[ProjectedEmbedding, str, str]:
    """Return the projection in a file, its source and its digest.

    Raises:
        ValueError: If the file is damaged or belongs to other weights.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = {name: file[name] for name in (*Projection._fields, 'weights')}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path} cannot be read ({error}), expected the principal components of a model') from error
    if str(stored['weights']) != weights:
        raise ValueError(
            f'{path} has the principal components of weights {str(stored["weights"])[:16]}, expected those of '
            f'{weights[:16]}: remove it, or set another projection'
        )
    arrays = {name: stored[name] for name in ('mean', 'scale', 'components')}
    digest = hashlib.sha256(b''.join(array.tobytes() for array in arrays.values())).hexdigest()
    mean, scale, components = (torch.from_numpy(array) for array in arrays.values())
    return ProjectedEmbedding(mean, scale, components, float(stored['gsd'])), str(stored['source']), digest


def training_samples(datamodule: Any) -> tuple[Iterator[Any], str]:
    """Return random tiles of the training split, and their description.

    Without a training split, or if it is empty, they are those to predict. Other errors are raised.

    Args:
        datamodule: Datamodule that was set up for prediction.
    """
    random = np.random.default_rng(0)
    dataset: Any = ()
    if hasattr(datamodule, 'make_dataset'):
        with suppress(EmptySplitError, DatasetNotFoundError):
            found = datamodule.make_dataset('train')
            dataset = found if len(found) else ()  # its length may raise the error
    if dataset:
        chosen = sorted(random.permutation(len(dataset))[:TILES].tolist())
        return (dataset[index] for index in chosen), 'training tiles'
    dataset, tiling = datamodule.predict_dataset, getattr(datamodule, 'tiling', None)
    if tiling is None:
        places: list[Any] = list(range(len(dataset)))
    else:
        strips = tiling.strips()
        strips = [strips[index] for index in sorted(random.permutation(len(strips))[: 4 * TILES].tolist())]
        places = list(itertools.chain.from_iterable(tiling.tiles(strip) for strip in strips))
    chosen = sorted(random.permutation(len(places))[:TILES].tolist())
    return (dataset[places[index]] for index in chosen), 'tiles to predict'
