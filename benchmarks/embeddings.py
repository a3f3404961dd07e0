# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Few-shot classification with embedding maps of synthetic landscapes, and what each sensor contributes.

A model is pre-trained without labels on the images of the training tiles. Classifiers are fitted on a few labelled
pixels of each class from these tiles, and scored by macro F1 on all labelled pixels of the test tiles, other ground.
Compared are 64-dimensional embeddings (float and int8), the principal components of a model without a head, the same
model with random weights, and the pixels themselves: monthly means of all bands. Also measured are the effective rank
of the embeddings, and the fraction of their variance that the position in the tile explains.

    python benchmarks/embeddings.py                        # seeds 0, 1, 2
    python benchmarks/embeddings.py --consistency 0 1      # with and without the consistency of views
    python benchmarks/embeddings.py --name contrast --model embedding_contrast_weight=0.1
"""

import argparse
import csv
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule
from torchgeo_omnisat.datasets import SyntheticLandscapes
from torchgeo_omnisat.evaluation.probe import monthly_means
from torchgeo_omnisat.evaluation.retrieval import effective_rank, position_variance
from torchgeo_omnisat.modality import subset_name, subsets
from torchgeo_omnisat.models.embedding import dense_features
from torchgeo_omnisat.reproduction.runs import circumstances, keep, read
from torchgeo_omnisat.tasks import OmniSatPretraining
from torchgeo_omnisat.utils.tensors.quantization import dequantize, quantize

HERE = Path(__file__).parent
#: Maximum number of scored pixels.
SCORED = 10000
#: Number of draws of labelled pixels, whose scores are averaged.
DRAWS = 3


def embed(task: Any, datamodule: Any, dataset: Any, kinds: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
    """Return features ``(N, F)`` of all pixels by kind, and their classes; subsets as ``'dense/s1a'``."""
    found: dict[str, list[Any]] = {}
    backbone, model = task.model.backbone, task.model
    for start in range(0, len(dataset), datamodule.batch_size):
        rows = range(start, min(start + datamodule.batch_size, len(dataset)))
        batch = datamodule.aug(datamodule.collate_fn([dataset[i] for i in rows]))
        size = tuple(batch['mask'].shape[-2:])
        with torch.inference_mode():
            out = backbone(batch)
            maps = {'mask': batch['mask'].unsqueeze(1)}
            if 'pixels' in kinds:
                maps['pixels'] = monthly_means(batch, task.modalities, size)
            if 'features' in kinds:
                maps['features'] = dense_features(backbone, out, size)
            if 'dense' in kinds:
                maps['dense'] = model.dense(out, size)
                for subset in subsets(task.modalities)[1:]:
                    maps[f'dense/{subset_name(subset)}'] = model.dense(backbone.restrict(out, subset), size)
        for name, values in maps.items():
            found.setdefault(name, []).append(values.movedim(1, -1).flatten(0, -2).numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def choose(mask: NDArray[Any], ignored: int, per_class: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of some labelled pixels of each class that has enough of them."""
    random, chosen = np.random.default_rng(seed), []
    for label in np.unique(mask[mask != ignored]):
        places = np.flatnonzero(mask == label)
        if len(places) >= per_class:
            chosen.append(random.permutation(places)[:per_class])
    return np.concatenate(chosen)


def score(x: NDArray[Any], y: NDArray[Any], tx: NDArray[Any], ty: NDArray[Any], metric: str) -> list[float]:
    """Return the macro F1 in % of 5 nearest neighbours and of logistic regression."""
    classifiers = (
        KNeighborsClassifier(5, metric=metric),
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    )
    answers = [classifier.fit(x, y).predict(tx) for classifier in classifiers]
    return [100 * float(f1_score(ty, answer, average='macro', zero_division=0)) for answer in answers]


def pretrain(datamodule: Any, seed: int, consistency: float, args: argparse.Namespace) -> Any:
    """Return a pre-trained task; tiles are kept in memory."""
    seed_everything(seed, verbose=False)
    task = OmniSatPretraining(args.backbone, embedding_dim=64, consistency_weight=consistency, **dict(args.model))
    trainer = Trainer(
        accelerator='cpu', devices=1, max_steps=args.steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(task, datamodule=datamodule)
    return task.eval()


class KeptLandscapes(SyntheticLandscapes):
    """Landscapes that are read once."""

    kept: ClassVar[dict[str, Any]] = {}

    def __getitem__(self, index: int) -> Any:
        """Return a sample, from memory if it was read before."""
        key = str(self.ids[index])
        if key not in self.kept:
            self.kept[key] = super().__getitem__(index)
        return dict(self.kept[key])


def measure(seed: int, consistency: float, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Pre-train a model and return the rows of the table."""
    datamodule = SyntheticLandscapesDataModule(
        str(args.root), num_tiles=args.tiles, batch_size=args.batch_size, modalities=tuple(args.modalities)
    )
    datamodule.dataset_class = KeptLandscapes
    start = time.process_time()
    task = pretrain(datamodule, seed, consistency, args)
    minutes = (time.process_time() - start) / 60
    datamodule.setup('test')
    parts = [datamodule.make_dataset(split) for split in ('train', 'test')]
    kinds = ('dense', 'features') if args.only_trained else ('dense', 'features', 'pixels')
    train, test = (embed(task, datamodule, part, kinds) for part in parts)
    some = np.random.default_rng(0).permutation(len(train['features']))[:20000]
    pca = make_pipeline(StandardScaler(), PCA(64, random_state=0)).fit(train['features'][some])
    # Training and test features of each row, and the distance of its neighbours.
    features: dict[str, tuple[Any, Any, str]] = {
        'embedding': (train['dense'], test['dense'], 'cosine'),
        'embedding, int8': (*(dequantize(quantize(x['dense'])) for x in (train, test)), 'cosine'),
        'principal components': (*(pca.transform(x['features']) for x in (train, test)), 'cosine'),
    }
    if not args.only_trained:
        torch.manual_seed(seed)
        random = OmniSatPretraining(args.backbone, dict(task.modalities), task.hparams['patch_size'], embedding_dim=64)
        fresh = [embed(random.eval(), datamodule, part, ('dense',))['dense'] for part in parts]
        features['random weights'] = (*fresh, 'cosine')
        features['pixels'] = (train['pixels'], test['pixels'], 'euclidean')
    names = [name for name in test if name.startswith('dense/')]
    features |= {f'embedding, {name[6:]}': (train['dense'], test[name], 'cosine') for name in names}
    cosines = {f'embedding, {name[6:]}': float((test[name] * test['dense']).sum(1).mean()) for name in names}
    vectors = torch.from_numpy(test['dense']).unflatten(0, (len(parts[1]), -1))[:, ::7]
    everywhere = torch.ones(vectors.shape[:2], dtype=torch.bool)
    statistics = {
        'rank': f'{effective_rank(vectors.unsqueeze(0), everywhere.unsqueeze(-1)).item():.1f}',
        'position': f'{position_variance(vectors, everywhere).item():.4f}',
    }
    ignored: Any = datamodule.ignore_index
    y, ty = train['mask'][:, 0], test['mask'][:, 0]
    rows = []
    for name, (x, tx, metric) in features.items():
        scores = []
        for draw in range(DRAWS):
            points = choose(y, ignored, args.points, DRAWS * seed + draw)
            places = np.flatnonzero(np.isin(ty, np.unique(y[points])))
            places = np.random.default_rng(draw).permutation(places)[:SCORED]
            scores.append(score(x[points], y[points], tx[places], ty[places], metric))
        knn, logistic = np.mean(scores, axis=0).round(2).tolist()
        rows.append(
            {
                'key': f'{args.name} {seed} {consistency} {name}', 'run': args.name, 'seed': seed,
                'consistency_weight': consistency, 'features': name, 'knn': knn, 'logistic': logistic,
                'cosine': f'{cosines[name]:.4f}' if name in cosines else '',
                **(statistics if name == 'embedding' else dict.fromkeys(statistics, '')),
                'classes': len(np.unique(y[points])), 'draws': DRAWS, **settings_of(args),
                'cpu_minutes': round(minutes, 1), **circumstances(),
            }
        )  # fmt: skip
    return rows


def is_done(path: Path, key: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a table has a row of a key.

    Raises:
        SystemExit: If the row is of other settings.
    """
    row = read(path).get(key)
    found = {name: (row or {}).get(name, '') for name in settings}
    expected = {name: str(value) for name, value in settings.items()}
    if row is not None and found != expected:
        raise SystemExit(f'{path} has a row {key!r} of {found}, expected {expected}: choose other --results')
    return row is not None


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of each row."""
    names = ('points', 'steps', 'batch_size', 'tiles', 'backbone')
    return {name: getattr(args, name) for name in names} | {'modalities': '+'.join(args.modalities)}


def main() -> None:
    """Measure what is missing in the table, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--consistency', type=float, nargs='+', default=[0.1], help='weights of the consistency')
    parser.add_argument('--points', type=int, default=20, help='labelled pixels of each class')
    parser.add_argument('--steps', type=int, default=200)
    parser.add_argument('--batch-size', type=int, default=4, help='tiles a step')
    parser.add_argument('--tiles', type=int, default=160)
    parser.add_argument('--modalities', nargs='+', default=['s2', 's1a'])
    parser.add_argument('--backbone', default='omnisat_tiny')
    parser.add_argument('--model', type=lambda text: text.split('='), nargs='*', default=[], help='other NAME=JSON')
    parser.add_argument('--name', default='default', help='name of the run')
    parser.add_argument(
        '--only-trained', action='store_true', help='omit the rows that do not depend on the pre-training'
    )
    parser.add_argument('--root', type=Path, default=HERE / 'runs' / 'landscapes-embeddings')
    parser.add_argument('--results', type=Path, default=HERE / 'results' / 'embeddings.csv')
    args = parser.parse_args()
    args.model = [(name, json.loads(value)) for name, value in args.model]
    for seed in args.seeds:
        for consistency in args.consistency:
            last = 'embedding' if args.only_trained else 'pixels'
            if not is_done(args.results, f'{args.name} {seed} {consistency} {last}', settings_of(args)):
                for row in measure(seed, consistency, args):
                    keep(args.results, row)
    with args.results.open(newline='') as file:
        for row in csv.DictReader(file):
            shown = ('run', 'seed', 'consistency_weight', 'features', 'knn', 'logistic', 'cosine', 'rank', 'position')
            print(*(row[name] for name in shown), sep='\t')


if __name__ == '__main__':
    main()
