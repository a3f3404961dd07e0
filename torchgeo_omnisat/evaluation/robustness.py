# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Robustness of a trained task to missing and degraded sensors."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchgeo.datasets.utils import Sample

from ..batch import FILLER
from ..modality import Modality, Which, as_modalities
from ..models.omnisat import OmniSatOutput
from ..transforms import CloudCover, Degradation, FewerDates, GaussianNoise, PartialCover
from ..utils.checks import check_integer
from ..utils.tensors.coordinates import COORDINATES

if TYPE_CHECKING:
    from ..tasks import SupervisedTask
from .subsets import SubsetRow, SubsetScores


@dataclass(frozen=True)
class DegradationKind:
    """Kind of degradation.

    Args:
        transform: Transform that degrades a batch.
        argument: Argument of *transform* for the level.
        factor: Factor from a level to that argument.
        clean: Level without degradation.
        levels: Default levels.
        axis: Label of the axis, with its unit.
    """

    transform: type[Degradation]
    argument: str
    factor: float
    clean: float
    levels: tuple[float, ...]
    axis: str

    def make(self, modalities: Mapping[str, Modality], level: float, seed: int) -> Degradation:
        """Return the transform for a level."""
        make: Any = self.transform
        made: Degradation = make(modalities, seed=seed, **{self.argument: self.factor * level})
        return made


#: Degradations by name.
KINDS = {
    'dates': DegradationKind(FewerDates, 'fraction', 0.01, 100, (50, 25, 10), 'dates of each series kept (%)'),
    'clouds': DegradationKind(CloudCover, 'fraction', 0.01, 0, (25, 50, 75, 90), 'optical series under clouds (%)'),
    'noise': DegradationKind(GaussianNoise, 'snr', 1, math.inf, (20, 10, 5, 0), 'signal to noise, every sensor (dB)'),
    'cover': DegradationKind(PartialCover, 'fraction', 0.01, 100, (75, 50, 25), 'tile covered by the image (%)'),
}


class RobustnessTest(LightningModule):
    """Test of a trained task with every subset of its sensors and every degradation.

    Each tile is encoded once; only degraded modalities are encoded again. Random draws depend
    on *seed* and the index of the tile in the test split.

    Args:
        task: Trained task.
        groups: Modalities by sensor, such as ``{'s1': ('s1a', 's1d')}``; any other modality
            is a separate sensor.
        kinds: Names of the degradations in :data:`KINDS`; those that apply to no modality of
            the task are skipped.
        levels: Levels by kind, instead of the default ones.
        seed: Seed of the degradations.
        subsets: Subsets of the sensors; see :func:`.subsets`.

    Raises:
        ValueError: If a kind is unknown, or, at the start of the test, a modality is in two groups or a
            group has the name of a modality outside it.
    """

    def __init__(
        self,
        task: 'SupervisedTask',
        groups: Mapping[str, Sequence[str]] | None = None,
        kinds: Sequence[str] = tuple(KINDS),
        levels: Mapping[str, Sequence[float]] | None = None,
        seed: int = 0,
        subsets: Which = 'auto',
    ) -> None:
        super().__init__()
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f'degradations {unknown} are unknown, expected some of {list(KINDS)}')
        check_integer(0, seed=seed)
        self.task, self.seed, self.subsets = task, seed, subsets
        self.groups = {sensor: tuple(names) for sensor, names in (groups or {}).items()}
        self.levels = {kind: tuple((levels or {}).get(kind, KINDS[kind].levels)) for kind in kinds}

    def configure_model(self) -> None:
        """Configure the task for its datamodule; Lightning calls this before the test."""
        self.task.configure_model()

    def on_test_start(self) -> None:
        """Set up the metrics for the modalities that task and data share."""
        theirs = getattr(self.task.datamodule, 'modalities', None)
        names = [name for name in self.task.modalities if theirs is None or name in as_modalities(theirs)]
        self.sensors = sensors(names, self.groups)
        self.subset_scores = self.task.make_scores(self.sensors, self.subsets).to(self.device)
        self.degraded: dict[tuple[str, float], tuple[Degradation, SubsetScores]] = {}
        series = [name for name in names if self.task.modalities[name].temporal]
        unknown = [name for name in series if self.task.modalities[name].kind is None]
        if 'clouds' in self.levels and unknown:
            rank_zero_info(f'No clouds are simulated for {", ".join(unknown)}, whose kind is unknown: state kind')
        for kind, levels in self.levels.items():
            if not any(KINDS[kind].transform.concerns(self.task.modalities[name]) for name in names):
                continue
            for level in levels:
                made = KINDS[kind].make(self.task.modalities, level, self.seed)
                self.degraded[kind, level] = made, self.task.make_scores(['all']).to(self.device)
        self.tested = 0

    def test_step(self, batch: Sample, batch_idx: int) -> None:
        """Update the metrics of every subset and degradation."""
        if FILLER in batch:
            return
        task = self.task
        if task.target not in batch:
            raise ValueError(f'the data have no {task.target!r} to score, expected what {type(task).__name__} learns')
        target, labelled = task.truth(batch), task.labelled(batch)
        places = torch.arange(self.tested, self.tested + len(target), device=target.device)
        self.tested += len(target)
        batch = {**task.renormalise(batch), 'index': places}
        present = any(modality.image_key in batch for modality in task.modalities.values())
        out = task.model.backbone(batch) if present else None
        for subset in self.subset_scores.subsets:
            self._count_subset(subset, out, target, labelled)
        for transform, scores in self.degraded.values():
            changed = None if out is None else self._encode_again(out, batch, transform)
            self._count(scores, ('all',), changed, target, self._availability(self.sensors, changed, target), labelled)

    def on_test_end(self) -> None:
        """Warn about extreme values, which count as nodata."""
        self.task.warn_extreme()

    def _count_subset(
        self, subset: tuple[str, ...], out: OmniSatOutput | None, target: Tensor, labelled: Tensor
    ) -> None:
        available = self._availability(subset, out, target)
        if out is not None and available.any() and len(subset) < len(self.sensors):
            out = self.task.model.backbone.restrict(out, [name for sensor in subset for name in self.sensors[sensor]])
        self._count(self.subset_scores, subset, out, target, available, labelled)

    def _availability(self, subset: Iterable[str], out: OmniSatOutput | None, target: Tensor) -> Tensor:
        """Return which samples have any of the modalities of each sensor, ``(B, S)`` bool."""
        order = list(self.task.modalities)
        columns = [[order.index(name) for name in self.sensors[sensor]] for sensor in subset]
        if out is None:
            return torch.zeros(len(target), len(columns), dtype=torch.bool, device=target.device)
        return torch.stack([out.available[:, some].any(1) for some in columns], dim=1)

    def _encode_again(self, out: OmniSatOutput, batch: Sample, transform: Degradation) -> OmniSatOutput:
        """Return the output for the degraded batch, for which only degraded modalities are encoded."""
        changed, concerned = transform(batch), list(transform.present(batch))
        if not concerned:
            return out
        backbone = self.task.model.backbone
        keys = [key for modality in concerned for key in modality.keys] + [COORDINATES]
        again = backbone.encode({key: changed[key] for key in keys if key in changed})
        joined: OmniSatOutput = backbone.join({**out.maps, **again}, out.location, out.coordinates)
        return joined

    def _count(
        self,
        scores: SubsetScores,
        subset: tuple[str, ...],
        out: OmniSatOutput | None,
        target: Tensor,
        available: Tensor,
        labelled: Tensor,
    ) -> None:
        decoded = out is not None and available.any()
        answer = self.task.answer(self.task.model.decode(out)) if decoded else None
        scores.update(subset, answer, target, available, labelled)

    def results(self) -> tuple[list[SubsetRow], dict[str, list[tuple[float, SubsetRow]]]]:
        """Return the rows of the subsets, all sensors first, and those by degradation, clean level first."""
        rows = self.subset_scores.compute()
        found: dict[str, list[tuple[float, SubsetRow]]] = {}
        for (kind, level), (_, scores) in self.degraded.items():
            (row,) = scores.compute()
            whole = row._replace(subset=rows[0].subset, modalities=rows[0].modalities)
            found.setdefault(kind, [(KINDS[kind].clean, rows[0])]).append((level, whole))
        return rows, found


def sensors(names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return the modalities of each sensor, in the order of *names*; one in no group is a separate sensor."""
    of = {name: sensor for sensor, members in groups.items() for name in members}
    if len(of) < sum(len(members) for members in groups.values()):
        raise ValueError(f'groups are {dict(groups)}, expected each modality once')
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        sensor = of.get(name, name)
        found[sensor] = (*found.get(sensor, ()), name)
    if taken := [sensor for sensor, members in groups.items() if sensor in names and sensor not in members]:
        raise ValueError(f'groups are called {taken}, expected names that no other modality has')
    return found
