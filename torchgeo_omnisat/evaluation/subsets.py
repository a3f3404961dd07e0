# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Metrics of every subset of the modalities, and their table."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from ..modality import Which, subset_name, subsets
from ..utils.atomic import atomic_file


class SubsetRow(NamedTuple):
    """Metrics of one subset of the modalities.

    Attributes:
        subset: Name of the subset, such as ``'s1a+s2'``.
        modalities: Number of its modalities.
        scores: Metrics by column of the table, the main score first; NaN without labelled samples.
        samples: Number of scored samples, with at least one modality of the subset.
        complete_samples: Number of samples that have all modalities of the subset.
        blind_samples: Number of samples that have no modality of the subset. They are not scored,
            because their prediction would be a guess.
        title: Name of the main score in figures and reports.
    """

    subset: str
    modalities: int
    scores: Mapping[str, float]
    samples: int
    complete_samples: int
    blind_samples: int
    title: str = ''

    @property
    def score(self) -> float:
        """Main score."""
        return next(iter(self.scores.values()))

    def as_dict(self) -> dict[str, Any]:
        """Return the columns of the table."""
        counts = {name: getattr(self, name) for name in ('samples', 'complete_samples', 'blind_samples')}
        return {'subset': self.subset, 'modalities': self.modalities, **self.scores, **counts}


class SubsetScores(Metric):
    """Metrics of every subset of the modalities.

    Args:
        names: Names of M modalities.
        which: Subsets to score; see :func:`.subsets`.
        metrics: Metrics by column of the table, the main score first. A metric that returns a dictionary
            has a column for each scalar of it, under its key.
        title: Name of the main score.
    """

    counts: Tensor
    full_state_update = False

    def __init__(self, names: Iterable[str], which: Which, metrics: Mapping[str, Metric], title: str) -> None:
        super().__init__()
        self.subsets, self.title = subsets(names, which), title
        self.scores = nn.ModuleList(
            nn.ModuleDict({column: metric.clone() for column, metric in metrics.items()}) for _ in self.subsets
        )
        self.add_state('counts', torch.zeros(len(self.subsets), 4, dtype=torch.int64), dist_reduce_fx='sum')

    def update(
        self,
        subset: tuple[str, ...],
        answer: Tensor | Sequence[Tensor] | None,
        target: Tensor | Sequence[Tensor],
        available: Tensor,
        labelled: Tensor,
    ) -> None:
        """Update the metrics of one subset.

        Args:
            subset: Names of its S modalities.
            answer: Predictions for B samples, one or several arguments of the metrics; None if no sample has any of
                the modalities.
            target: Targets of the samples, the last arguments of the metrics.
            available: Modalities available in each sample, ``(B, S)`` bool.
            labelled: Samples with a label, ``(B,)`` bool.
        """
        row = self.subsets.index(subset)
        some, every = available.any(1), available.all(1)
        self.counts[row] += torch.stack([some.sum(), every.sum(), (~some).sum(), (some & labelled).sum()])
        if answer is not None and some.any():
            values = [*_several(answer), *_several(target)]
            for metric in self._metrics(row).values():
                metric.update(*(value[some] for value in values))

    def compute(self) -> list[SubsetRow]:
        """Return one row per subset, the largest subsets first."""
        rows = []
        for row, subset in enumerate(self.subsets):
            with without_torchmetrics_warnings():
                scores = self._scores(row)
            samples, complete, blind, labelled = self.counts[row].tolist()
            scores = scores if labelled else dict.fromkeys(scores, math.nan)
            rows.append(SubsetRow(subset_name(subset), len(subset), scores, samples, complete, blind, self.title))
        return rows

    def metrics_of(self, subset: str) -> dict[str, Any]:
        """Return the metrics of a subset with a name such as ``'s1a+s2'``, by column."""
        return self._metrics([subset_name(names) for names in self.subsets].index(subset))

    def _scores(self, row: int) -> dict[str, float]:
        """Return the scores by column."""
        scores: dict[str, float] = {}
        for column, metric in self._metrics(row).items():
            value = metric.compute()
            several = value if isinstance(value, Mapping) else {column: value}
            scores |= {name: float(score) for name, score in several.items() if score.ndim == 0}
        return scores

    def _metrics(self, row: int) -> dict[str, Any]:
        return dict(self.scores[row].items())  # type: ignore[operator]


def _several(values: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [values] if isinstance(values, Tensor) else values


@contextmanager
def without_torchmetrics_warnings() -> Iterator[None]:
    """Ignore warnings of torchmetrics about metrics that share their state, or that a rank did not update."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'The ``compute`` method of metric')
        yield


def write_table(rows: Sequence[SubsetRow], path: Path, data: str) -> None:
    """Write the rows as CSV; missing scores are ``nan``."""
    table = pd.DataFrame([{**row.as_dict(), 'data': data} for row in rows])
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False, float_format='%.6f', na_rep='nan')
