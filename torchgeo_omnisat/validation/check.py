# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Validation of every tile of every split, with a list of problems and a summary of the values."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torchgeo.datasets import DatasetNotFoundError

from ..datamodules import MultimodalDataModule
from ..datamodules.base import describe_left_out
from ..datamodules.common.statistics import stream
from ..datasets.common.arguments import SPLITS
from ..datasets.common.integrity import Problem, Report, below, inspect
from ..modality import Modality
from ..utils.cli.console import say
from .findings import FINDERS
from .trial import try_training
from .values import SplitValues, summarize


def walk(
    datamodule: MultimodalDataModule, max_nan: float = 0.25, num_workers: int = 0, ignore: Sequence[str] = ()
) -> Report:
    """Read every tile of every available split; return problems and a summary of values, dates and labels.

    Samples that the datamodule excludes are read too. A problem is a modality with more than *max_nan* nodata, but none
    is of the kinds *ignore*. The report does not depend on *num_workers*.
    """
    report, _ = read_all(datamodule, max_nan, num_workers, ignore)
    return report


def check_data(
    datamodule: MultimodalDataModule,
    settings: Mapping[str, Any],
    max_nan: float = 0.25,
    num_workers: int = 0,
    ignore: Sequence[str] = (),
    dry_run: bool = True,
) -> Report:
    """Read every tile as :func:`walk` does, then try a training step as `fit` would.

    *settings* are ``model``, ``trainer`` and ``ckpt_path`` as in a configuration for `fit`. With *dry_run*, the model
    is built, its checkpoint loaded and, if no file has a problem, it is trained on a batch.
    """
    exclude = datamodule.exclude
    report, splits = read_all(datamodule, max_nan, num_workers, ignore)
    if not dry_run or any(problem.kind == 'label' and not problem.sample for problem in report.faults):
        return report  # fit checks the labels first, and would raise the same error
    datamodule.exclude = exclude if exclude and Path(exclude).expanduser().exists() else None
    sentence = try_training(datamodule, settings, splits, step=not report.faults)
    said = 'training' in ignore or any(problem.reason in (sentence or '') for problem in report.faults)
    if sentence is None or said:
        return report
    return replace(report, problems=[*report.problems, Problem('', '', '', 'training', sentence)])


def read_all(
    datamodule: MultimodalDataModule, max_nan: float = 0.25, num_workers: int = 0, ignore: Sequence[str] = ()
) -> tuple[Report, dict[str, SplitValues]]:
    """Read every tile as :func:`walk` does; return the report and the summary of each split."""
    datamodule.exclude = None
    changes: dict[str, Any] = datamodule.whole_series()
    changes |= {'missing': 'check'} if 'missing' in datamodule.kwargs else {}
    allow_missing = datamodule.kwargs.get('missing', 'allow') == 'allow'
    root = Path(datamodule.kwargs.get('root', getattr(datamodule, 'root', '.'))).expanduser()
    problems: list[Problem] = []
    absent: Counter[str] = Counter()
    splits: dict[str, SplitValues] = {}
    lost = []
    for split in SPLITS:
        try:
            if split in getattr(datamodule, 'left_out', tuple)():
                if split in datamodule.lost_splits():
                    problems.append(Problem(split, 'mask', '', 'label', describe_left_out(split), warning=True))
                continue
            dataset = datamodule.make_dataset(split, **changes)
        except DatasetNotFoundError as error:
            lost.append(error)
            continue
        except (ValueError, OSError, RuntimeError) as error:
            problems.append(about_dataset(error, root))
            continue
        root = dataset.path
        datamodule.modalities = dict(dataset.modalities)
        splits[split] = _empty(datamodule, dataset.modalities)
        look = partial(_read_tile, dataset, splits[split], max_nan, allow_missing)
        results: Any = stream(look, len(dataset), num_workers, f'Check {split}')
        for (found, without), values in results:
            problems += found
            absent.update(without)
            splits[split].merge(values)
    if len(lost) == len(SPLITS):
        raise lost[0]
    for absent_split in lost:
        say(f'Not checked: {absent_split}', error=True)
    found = [problem for find in FINDERS for problem in find(datamodule, splits)]
    # Problems of the whole dataset are reported once, not for each tile.
    labels = any(problem.kind == 'label' and not problem.warning for problem in found)
    files = {problem.file for problem in found if problem.file and not problem.warning}
    kept = [problem for problem in problems if problem.file not in files and not (labels and problem.kind == 'label')]
    problems = [*kept, *found]
    kept = [problem for problem in dict.fromkeys(problems) if problem.kind not in ignore]
    samples = {split: values.tiles for split, values in splits.items()}
    layout = datamodule.dataset_class.layout
    return Report(layout, str(root.resolve()), samples, kept, dict(absent), summarize(splits)), splits


def about_dataset(error: Exception, root: Path) -> Problem:
    """Return the problem for an error of a whole dataset; its file is the longest path in the message."""
    words = [Path(word.strip('\'",;:')) for word in str(error).split() if word.startswith(str(root))]
    path = max(words, key=lambda word: len(word.parts), default=None)
    kind = 'missing' if isinstance(error, FileNotFoundError) else 'settings' if path is None else 'unreadable'
    return Problem('', '', '' if path is None else below(path, root), kind, ' '.join(str(error).split()))


def _empty(datamodule: MultimodalDataModule, modalities: dict[str, Modality]) -> SplitValues:
    labels = list(getattr(datamodule, 'labels', None) or ())
    names = datamodule.label_names if labels else ()
    return SplitValues(dict(modalities), labels, datamodule.ignore_index, names, datamodule.target_unit)


def _read_tile(
    dataset: Any, nothing: SplitValues, max_nan: float, allow_missing: bool, index: int
) -> tuple[tuple[list[Problem], list[str]], SplitValues]:
    settings = nothing.modalities, nothing.labels, nothing.ignore_index, nothing.label_names, nothing.target_unit
    values = SplitValues(*settings)
    values.tiles = 1
    observe: Callable[[str, Any], None] = values.observe
    return inspect(dataset, index, max_nan, allow_missing, observe), values
