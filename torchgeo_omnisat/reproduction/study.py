# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Study: the rows that are reproduced on one dataset, their runs, and the folder of their results."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..datamodules import MultimodalDataModule
from ..datasets.synthetic.writing import is_synthetic
from ..utils.atomic import atomic_file
from ..utils.reading import load_json
from .data import PUBLIC, MappedData, PublicData, Sensors, hashes_of, place, sensors_in
from .published import evaluate, published_run
from .rows import SIZES, Row, Size, make_run
from .runs import PUBLISHED, Machine, Run, complete, execute, read

#: Names of files in the folder of results.
TABLE, STUDY, CHECK, RUNS = 'runs.csv', 'study.json', 'check.json', 'runs'
#: Rows by name on the command line; None for the published weights. Sensors are required ones; none for all.
ROWS: dict[str, Row | None] = {
    'utae': Row('U-TAE, trained here', ('S2',), 'utae'),
    'published': None,
    'dual-stream': Row('U-TAE, late fusion, trained here', ('S2', 'S1'), 'dual_stream'),
    'late-fusion': Row('late fusion of all sensors', (), 'late_fusion'),
    'omnisat': Row('OmniSat', (), pretrained=False),
    'omnisat-pretrained': Row('OmniSat, pre-trained on the same tiles', ()),
    'omnisat-no-dropout': Row('OmniSat without modality dropout', (), pretrained=False, dropout=False),
}
#: Backbones that require time series.
_OF_SERIES = ('utae', 'dual_stream')
#: Name of the row of published weights.
WEIGHTS = 'U-TAE, published weights'


@dataclass(frozen=True)
class Study:
    """Rows that are reproduced on one dataset.

    Args:
        name: Name of the dataset in :data:`.PUBLIC`.
        root: Root of the data.
        present: Modalities that the files have.
        tiles: Number of tiles by split, of the first of the *folds*.
        test_tiles: Number of test tiles by fold.
        rows: Names of rows in :data:`ROWS`.
        folds: Official splits.
        seeds: Seeds of each row.
        size: Budget of each row.
        precision: Precision of the trainer; the default if empty.
        machine: How runs are executed.
        output: Folder of the results.
        hashes: SHA-256 of the files that list the tiles, by name; empty for official splits.
    """

    name: str
    root: str
    present: tuple[str, ...]
    tiles: Mapping[str, int]
    test_tiles: Mapping[int, int]
    rows: tuple[str, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    size: Size
    precision: str
    machine: Machine
    output: Path
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> PublicData:
        """Dataset."""
        return PUBLIC[self.name]

    @property
    def sensors(self) -> Sensors:
        """Modalities of the sensors that the files have."""
        return sensors_in(self.data, self.present)

    @property
    def synthetic(self) -> bool:
        """Whether the data are synthetic, whatever their layout."""
        return self.data.synthetic or is_synthetic(Path(self.root).expanduser())

    @property
    def complete(self) -> bool:
        """Whether the data are the whole published dataset."""
        return not self.synthetic and sum(self.tiles.values()) == self.data.tiles

    @property
    def protocol(self) -> str:
        """Description of splits and metric, with the files that list the tiles, if any."""
        if not self.hashes:
            return self.data.protocol
        files = ', '.join(f'{name} (SHA-256 {digest})' for name, digest in self.hashes.items())
        return f'lists of tiles {files}; {self.data.listed}'

    @property
    def lists(self) -> str:
        """Names of the files that list the tiles; empty for official splits."""
        return ', '.join(self.hashes)

    @property
    def first_split(self) -> str:
        """Name of the split to which the numbers of tiles belong."""
        return self.lists or f'split {self.folds[0]}'

    def datamodule(self) -> MultimodalDataModule:
        """Return the datamodule of the first split."""
        more: dict[str, Any] = {'num_tiles': self.size.tiles} if self.data.synthetic else {}
        more |= {'splits': self.machine.splits} if self.hashes else {}
        return self.data.make(self.root, self.folds[0], **more)

    def title(self, row: str) -> str:
        """Return the name of a row in tables."""
        found = ROWS[row]
        return WEIGHTS if found is None else found.name

    def sensors_of(self, row: str) -> tuple[str, ...]:
        """Return the sensors of a row.

        Raises:
            ValueError: If the data lack one.
        """
        found = ROWS[row]
        required = ('S2',) if found is None else found.sensors
        if missing := [sensor for sensor in required if sensor not in self.sensors]:
            raise ValueError(f'--rows {row} requires {missing}, but {self.root} has the sensors {list(self.sensors)}')
        return required or tuple(self.sensors)

    def runs(self, row: str) -> list[Run]:
        """Return the runs of a row, by fold and seed; published weights have no seed."""
        found, sensors = ROWS[row], self.sensors_of(row)
        if found is None:
            if self.hashes:
                raise ValueError(
                    f'--splits is {self.machine.splits}, but the weights of --rows {row} belong to the official folds: '
                    'expected no --splits'
                )
            return [published_run(self.name, fold, self.machine.weights) for fold in self.folds]
        found = replace(found, sensors=sensors)
        made = [
            make_run(found, self.size, self.name, fold, seed, self.sensors)
            for fold in self.folds
            for seed in self.seeds
        ]
        splits = json.dumps(dict(self.hashes), sort_keys=True) if self.hashes else ''
        return [replace(run, precision=self.precision, splits=splits) for run in made]

    def claim(self) -> None:
        """Create the folder of the results.

        Raises:
            ValueError: If it has results of other data, or of another number of tiles.
        """
        content: dict[str, Any] = {'data': self.name, 'root': str(Path(self.root).expanduser().resolve())}
        content |= {'splits': dict(self.hashes)} if self.hashes else {}
        content |= {} if self.data.synthetic else {'tiles': sum(self.tiles.values())}
        path = self.output / STUDY
        if path.is_file() and (found := load_json(path)) != content:
            raise ValueError(f'--output {self.output} has results of {found}, expected those of {content}')
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + '\n')

    def do(self, row: str) -> None:
        """Do the runs of a row that are not done yet."""
        complete(self.runs(row), self.output / TABLE, self.output / RUNS, self.root, self.machine, _do)

    def done(self) -> dict[str, list[dict[str, str]]]:
        """Return the rows of the table of runs that are done, by row of the study.

        Rows of earlier calls with the same splits, seeds and budget are among them, in the order of :data:`ROWS`, but
        not those that are the same runs as a row of this call, such as those without dropout if there is one sensor.
        """
        found = read(self.output / TABLE)
        keys: dict[str, list[str]] = {}
        for row in sorted(ROWS, key=lambda row: row not in self.rows):
            try:
                own = [run.key for run in self.runs(row)]
            except ValueError:  # a row that the data do not have
                continue
            if row in self.rows or (own not in keys.values() and any(key in found for key in own)):
                keys[row] = own
        return {row: [found[key] for key in keys[row] if key in found] for row in ROWS if row in keys}

    def each(self) -> Iterator[tuple[str, Run]]:
        """Yield the first run of each row."""
        for row in self.rows:
            yield row, self.runs(row)[0]


def make_study(
    name: str,
    root: str,
    rows: Sequence[str],
    folds: Sequence[int] | None,
    seeds: Sequence[int],
    machine: Machine,
    output: Path,
    precision: str = '',
    **budget: Any,
) -> Study:
    """Read the index of the data and return the study; no image is read.

    Args:
        name: Name of the dataset in :data:`.PUBLIC`.
        root: Root of the data, or of the downloaded dataset.
        rows: Names of rows in :data:`ROWS`.
        folds: Official splits; None for all.
        seeds: Seeds of each row.
        machine: How runs are executed.
        output: Folder of the results.
        precision: Precision of the trainer; the default if empty.
        **budget: Fields of :class:`.Size` that differ from the defaults of the data; None for the default.

    Raises:
        ValueError: If an argument does not fit the data.
    """
    data, root = PUBLIC[name], place(PUBLIC[name], root)
    hashes = _hashes(data, machine.splits, folds)
    chosen = tuple(dict.fromkeys(folds or (data.folds[:1] if hashes else data.folds)))
    if unknown := [fold for fold in chosen if fold not in data.folds]:
        raise ValueError(f'--folds are {unknown}, expected some of {list(data.folds)} for {data.title}')
    if budget.get('max_dates') and isinstance(data, MappedData):
        raise ValueError(
            f'--max-dates is {budget["max_dates"]}, but {data.title} always has all dates: expected no --max-dates'
        )
    if budget.get('tiles') is not None and not data.synthetic:
        raise ValueError(f'--tiles is {budget["tiles"]}, but {data.title} has all of its tiles: expected no --tiles')
    more: dict[str, Any] = {'num_tiles': budget.get('tiles') or SIZES['small'].tiles} if data.synthetic else {}
    more |= {'splits': machine.splits} if hashes else {}
    made = {fold: data.make(root, fold, **more) for fold in chosen}
    first = made[chosen[0]]
    if data.synthetic:
        first.prepare_data()
    splits = {split: first.make_dataset(split) for split in ('train', 'val', 'test')}
    tests = {fold: splits['test'] if fold == chosen[0] else made[fold].make_dataset('test') for fold in chosen}
    default = SIZES['small' if data.synthetic else 'long']
    size = replace(
        default,
        backbone=data.backbone,
        steps=data.steps,
        pretraining_steps=data.steps // 2,
        batch_size=data.batch_size,
    )
    size = replace(size, **{key: value for key, value in budget.items() if value is not None})
    if budget.get('steps') is not None and budget.get('pretraining_steps') is None:
        size = replace(size, pretraining_steps=max(1, size.steps // 2))
    study = Study(
        name,
        root,
        tuple(splits['train'].modalities),
        {split: len(dataset) for split, dataset in splits.items()},
        {fold: len(dataset) for fold, dataset in tests.items()},
        tuple(dict.fromkeys(rows)),
        chosen,
        tuple(dict.fromkeys(seeds)),
        size,
        precision,
        machine,
        output,
        hashes,
    )
    for row in study.rows:
        found = ROWS[row]
        single = [name for name, modality in splits['train'].modalities.items() if not modality.temporal]
        for run in study.runs(row):
            if found and found.backbone in _OF_SERIES and (images := set(run.modalities) & set(single)):
                raise ValueError(
                    f'--rows {row} requires time series, but {sorted(images)} of {data.title} are single images'
                )
            if run.backbone != PUBLISHED and run.batch_size % machine.devices:
                raise ValueError(
                    f'--batch-size is {run.batch_size}, expected a multiple of the {machine.devices} devices'
                )
    return study


def _hashes(data: PublicData, splits: str | None, folds: Sequence[int] | None) -> dict[str, str]:
    """Return the SHA-256 of the files that list the tiles; none for official splits."""
    if splits is None:
        return {}
    if not data.listed:
        names = [name for name, other in PUBLIC.items() if other.listed]
        raise ValueError(f'--splits is {splits}, but {data.title} has official splits only: expected --data of {names}')
    if folds:
        raise ValueError(f'--folds are {list(folds)} and --splits is {splits}, expected one of them')
    return hashes_of(splits)


def _do(run: Run, folder: Path, root: str, machine: Machine) -> dict[str, Any]:
    return (evaluate if run.backbone == PUBLISHED else execute)(run, folder, root, machine)
