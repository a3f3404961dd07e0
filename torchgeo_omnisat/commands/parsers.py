# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command-line arguments of our commands, without the libraries that run them.

Nothing here imports torch, Lightning or TorchGeo, so that ``COMMAND --help`` prints within a second or two.
"""

import argparse
import ast
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser
from jsonargparse.typing import ClosedUnitInterval

from ..utils.cli.help import PlainHelpFormatter

#: Creates a parser with the arguments of a datamodule, from the name of the command and its description.
MakeParser = Callable[[str, str], ArgumentParser]

#: Directory of the landscapes that `baseline` generates if no other is given.
SYNTHETIC_ROOT = 'data/synthetic'
#: Official splits of PASTIS.
FOLDS = (1, 2, 3, 4, 5)
#: Model and length of the training of `demo`: together minutes on two cores.
BACKBONE, TILES, EPOCHS = 'omnisat_tiny', 160, 20
#: Presets of `init`.
PRESETS = ('auto', 'few', 'standard')
#: Sensors that `encoders` lists.
SENSORS = ('s2', 's1', 'rgb', 'landsat')
#: Files that `export` writes.
EXPORTED = ('config.json', 'model.safetensors')
#: Formats of `export`.
FORMATS = ('hub', 'torch', 'onnx')
#: Degradations that `robustness` simulates.
DEGRADATIONS = ('dates', 'clouds', 'noise', 'cover')
#: Classifiers of `baseline`: random forest, gradient boosting and pixel-wise MLP.
PIXEL_CLASSIFIERS = ('forest', 'boosting', 'mlp')
#: Classifiers of `classify`.
CLASSIFIERS = ('knn', 'logistic', 'mlp')
#: Data types of the probabilities of `classify`.
PRECISIONS = ('uint8', 'uint16', 'none')
#: Datasets and rows of `reproduce`.
REPRODUCED = (
    'pastis', 'pastis-hd', 'pastis100', 'flair', 'flair-1', 'flair-hub', 'flairhub-toy', 'treesatai', 'biomassters',
    'geobench-pastis', 'geobench-treesatai', 'geobench-biomassters', 'synthetic',
)  # fmt: skip
ROWS = (
    'utae', 'published', 'dual-stream', 'late-fusion', 'omnisat', 'omnisat-pretrained', 'omnisat-no-dropout',
)  # fmt: skip
#: Kinds of problem that `check` reports.
PROBLEMS = (
    'missing', 'unreadable', 'shape', 'dtype', 'dates', 'crs', 'label', 'nan', 'empty', 'values', 'settings',
    'training',
)  # fmt: skip


def help_parser(command: str, description: str) -> ArgumentParser:
    """Create a parser for help texts, with ``--data`` and ``--config``, without importing any datamodule."""
    parser = ArgumentParser(
        prog=f'python -m torchgeo_omnisat {command}',
        description=describe(description),
        formatter_class=PlainHelpFormatter,
    )
    parser.add_argument('-c', '--config', help=CONFIG_HELP)
    group = parser.add_argument_group('Data')
    group.add_argument('--data.help', metavar='NAME', help='list the arguments of a datamodule and exit')
    group.add_argument(
        '--data',
        metavar='NAME',
        help=f'datamodule, with its arguments as in --data.root DIR; one of {", ".join(datamodules())}, '
        'or the import path of your own',
    )
    return parser


CONFIG_HELP = 'YAML file with any of these arguments; a configuration of `fit` is accepted too'


def describe(description: str) -> str:
    """Return the description of a command that reads a datamodule."""
    return f'{description} Without --data, the synthetic landscapes of `fit` are used.'


def datamodules() -> list[str]:
    """Return the names of our datamodules, from the source of their package."""
    spec = find_spec('torchgeo_omnisat')
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0], 'datamodules', '__init__.py').read_text()
    lists = [node.value for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return [name for name in ast.literal_eval(lists[-1]) if name != 'MultimodalDataModule']


def stats_parser(make: MakeParser = help_parser) -> ArgumentParser:
    """Create the parser of ``stats``."""
    return make(
        'stats',
        'Compute the mean and standard deviation of every band over the valid dates and finite pixels of all training '
        'samples, in one pass; an interrupted pass is continued. They are written to STATISTICS.json beside the data '
        "(in PyTorch's cache if that is read-only), where every later command on the same --data.root reads them; "
        'they take precedence over published ones.',
    )


def check_parser(make: MakeParser = help_parser) -> ArgumentParser:
    """Create the parser of ``check``."""
    parser = make(
        'check',
        'Read every file of every split, with all bands and dates, and print values, dates, labels and problems. '
        'Exit status 1 if there is a problem. Warnings are about defects that published files have too and no '
        'training needs, or about implausible values. Training leaves out the tiles with a problem if it reads the '
        'file of --output: --data.exclude FILE.',
    )
    parser.add_argument('--output', type=Path, help='JSON file to write, or CSV if its name ends in .csv')
    parser.add_argument('--max-nan', type=ClosedUnitInterval, default=0.25, help='maximum fraction of invalid pixels')
    parser.add_argument(
        '--ignore',
        nargs='+',
        default=[],
        choices=list(PROBLEMS),
        metavar='KIND',
        help=f'kinds of problem to ignore: {", ".join(PROBLEMS)}',
    )
    parser.add_argument(
        '--dry-run',
        action=ActionYesNo(no_prefix='no-'),
        default=True,
        help='build the model of --config, load its checkpoint, and train and validate it on one batch on the CPU; '
        'disable with --no-dry-run',
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    parser.add_argument('--workers', type=int, default=cores, help='number of processes that read')
    return parser


def shard_parser(make: MakeParser = help_parser) -> ArgumentParser:
    """Create the parser of ``shard``."""
    parser = make(
        'shard',
        'Write the samples of a datamodule into large files that ShardedDataModule reads, from disk or from an '
        'object store. Only the modalities, bands and dates that the datamodule reads are written.',
    )
    parser.add_argument('--output', type=Path, required=True, help='folder to create; it must not exist')
    parser.add_argument('--megabytes', type=float, default=64.0, help='approximate size of a file')
    return parser


def robustness_parser(make: MakeParser = help_parser) -> ArgumentParser:
    """Create the parser of ``robustness``."""
    parser = make(
        'robustness',
        'Score trained models on the test split: for every subset of their sensors, and with degraded sensors '
        '(fewer dates, clouds, noise, partial coverage). Each tile is encoded once. Writes '
        'robustness.csv, .json and .md, subsets.png and degradations.png.',
    )
    parser.add_argument(
        '--ckpt',
        nargs='+',
        required=True,
        metavar='[LABEL=]FILE',
        help='checkpoints of OmniSatSegmentation, OmniSatClassification or OmniSatRegression, drawn side by side; the '
        'label defaults to the name of the file. Several checkpoints of one label are dedicated models, each scored '
        'with all of its own sensors only',
    )
    parser.add_argument('--output', type=Path, default=Path('robustness'), help='folder for the results')
    parser.add_argument('--task', metavar='CLASS', help='import path of the task of the checkpoints, if it is your own')
    parser.add_argument(
        '--groups',
        nargs='+',
        default=[],
        metavar='SENSOR=MODALITY,...',
        help='modalities of one sensor, present or absent together, such as s1=s1a,s1d',
    )
    parser.add_argument(
        '--degrade', nargs='*', default=list(DEGRADATIONS), choices=list(DEGRADATIONS), help='degradations to simulate'
    )
    parser.add_argument(
        '--subsets',
        nargs='+',
        default=['auto'],
        metavar='SENSOR+SENSOR',
        help='subsets of the sensors to score: all, names such as s1+s2, or auto: every subset of up to five '
        'sensors; of more sensors all, all but one, and single ones',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the degradations')
    parser.add_argument('--accelerator', default='auto', help='accelerator of Lightning')
    return parser


def baseline_parser() -> argparse.ArgumentParser:
    """Create the parser of ``baseline``."""
    parser = argparse.ArgumentParser(
        prog='python -m torchgeo_omnisat baseline',
        description='Print scores of pixel-wise classifiers, as baselines for a model. With --data or --config, of any '
        'datamodule with a mask: random forest, gradient boosting and MLP, trained and scored on the splits of the '
        'model; for continuous labels MAE, RMSE and R2 of their mean and of an MLP. With --root, the mean IoU of an '
        'MLP on PASTIS.',
    )
    parser.add_argument('-c', '--config', help=CONFIG_HELP)
    parser.add_argument('--data', metavar='NAME', help='datamodule, with its arguments as in --data.root DIR')
    parser.add_argument('--root', help=f'directory of PASTIS or of synthetic landscapes (default: {SYNTHETIC_ROOT})')
    parser.add_argument('--fold', type=int, default=1, choices=list(FOLDS), help='official split (default: 1)')
    parser.add_argument('--max-pixels', type=int, default=30000, help='number of training pixels (default: 30000)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the classifiers (default: 0)')
    parser.add_argument(
        '--classifiers', nargs='+', choices=list(PIXEL_CLASSIFIERS), help='of --data with classes (default: all)'
    )
    return parser


def data_baseline_parser(make: MakeParser = help_parser) -> ArgumentParser:
    """Create the parser of ``baseline`` of a datamodule."""
    parser = make('baseline', 'Print scores of pixel-wise classifiers, or of regression of continuous labels.')
    parser.add_argument('--max-pixels', type=int, default=30000, help='number of training pixels')
    parser.add_argument('--seed', type=int, default=0, help='seed of the classifiers')
    parser.add_argument(
        '--classifiers', nargs='+', choices=list(PIXEL_CLASSIFIERS), help='of --data with classes (default: all)'
    )
    return parser


def demo_parser() -> argparse.ArgumentParser:
    """Create the parser of ``demo``."""
    parser = argparse.ArgumentParser(
        prog='python -m torchgeo_omnisat demo',
        description='Train on synthetic landscapes and score every subset of the sensors on held-out ones.',
    )
    parser.add_argument('--output', type=Path, default=Path('demo'), help='folder for all results (default: demo)')
    parser.add_argument('--backbone', default=BACKBONE, help=f'builder of the model (default: {BACKBONE})')
    parser.add_argument('--tiles', type=_positive, default=TILES, help=f'landscapes to generate (default: {TILES})')
    parser.add_argument('--epochs', type=_positive, default=EPOCHS, help=f'number of epochs (default: {EPOCHS})')
    return parser


def init_parser() -> argparse.ArgumentParser:
    """Create the parser of ``init``."""
    parser = argparse.ArgumentParser(
        prog='python -m torchgeo_omnisat init',
        description='Inspect a folder of rasters and labels, and write a commented configuration for check, fit, test, '
        'predict and baseline. On a terminal, it asks for facts that the files do not show; otherwise they are left '
        'unknown, with a comment that says what to fill in.',
    )
    parser.add_argument('folder', type=Path, help='folder of the rasters and labels')
    parser.add_argument('--output', type=Path, required=True, metavar='FILE', help='YAML file to write')
    parser.add_argument('--overwrite', action='store_true', help='replace the file if it exists')
    parser.add_argument(
        '--like',
        type=Path,
        metavar='FILE',
        help='configuration of a trained model: write one that predicts a map of the rasters of the folder, such as '
        'another area or year',
    )
    parser.add_argument('--labels', metavar='PATH', help='file or folder of the labels, below the folder')
    parser.add_argument('--column', help='column of the class of polygons or points')
    parser.add_argument(
        '--preset',
        choices=PRESETS,
        default='auto',
        help='few: pixel-wise encoders and small tiles, for some hundreds of labelled pixels; standard: encoders with '
        'spatial context; auto (default): by the number of labelled pixels',
    )
    parser.add_argument(
        '--presto',
        metavar='FILE',
        help='weights of Presto, or PRESTO to download them: the frozen encoder of the optical time series (few)',
    )
    return parser


def encoders_parser() -> argparse.ArgumentParser:
    """Create the parser of ``encoders``."""
    parser = argparse.ArgumentParser(
        prog='python -m torchgeo_omnisat encoders',
        description='List pre-trained weights: bands, size, stride, licence, and whether they are on disk.',
    )
    parser.add_argument('--sensor', choices=SENSORS, help='sensor (default: all)')
    return parser


def export_parser() -> argparse.ArgumentParser:
    """Create the parser of ``export``."""
    parser = argparse.ArgumentParser(
        prog='python -m torchgeo_omnisat export',
        description='Write the backbone of a checkpoint to a folder for the Hugging Face Hub, or the whole model as a '
        'program of torch.export or ONNX.',
    )
    parser.add_argument('--ckpt', '--ckpt_path', type=Path, required=True, help='checkpoint of one of our tasks')
    parser.add_argument(
        '--output',
        type=Path,
        required=True,
        help=f'folder for {" and ".join(EXPORTED)}, or the .pt2 or .onnx file, beside which a .json file describes it',
    )
    parser.add_argument('--format', choices=FORMATS, default=FORMATS[0], help=f'what to write (default: {FORMATS[0]})')
    parser.add_argument(
        '--size', type=_positive, help='side of a tile in pixels of the modality with the largest GSD, for a program'
    )
    parser.add_argument('--dates', type=_positive, help='number of dates of a time series, for a program')
    return parser


def report_parser() -> argparse.ArgumentParser:
    """Create the parser of ``report``."""
    parser = argparse.ArgumentParser(
        prog='python -m torchgeo_omnisat report',
        description='Write scores, figures, examples, maps and configuration of a run to one HTML file.',
    )
    parser.add_argument(
        'run',
        nargs='+',
        type=Path,
        metavar='RUN',
        help='output folder of `torchgeo test`, such as lightning_logs/version_1, or its parent for the latest one; '
        'the training is found by the checkpoint that was tested, or given as a further folder',
    )
    parser.add_argument('--output', type=Path, default=Path('report.html'), metavar='FILE', help='default: report.html')
    parser.add_argument(
        '--map', nargs='+', type=Path, default=[], metavar='FILE', help='predicted maps to show, as GeoTIFF'
    )
    parser.add_argument('--title', help='heading (default: the name of the folder)')
    return parser


_EMBEDDINGS = (
    'GeoTIFFs of embeddings: int8 codes of this package, of AlphaEarth, or of TESSERA with a file of scales, or floats'
)


def classify_parser() -> argparse.ArgumentParser:
    """Create the parser of ``classify``."""
    parser = argparse.ArgumentParser(
        prog='python -m torchgeo_omnisat classify',
        description='Classify an embedding map from labelled points or polygons, with a cross-validated score.',
    )
    parser.add_argument(
        '--embeddings',
        nargs='+',
        type=Path,
        required=True,
        metavar='FILE',
        help=f'{_EMBEDDINGS}; several files are a mosaic on one pixel grid',
    )
    parser.add_argument(
        '--labels',
        type=Path,
        required=True,
        metavar='FILE',
        help='vector file of points or polygons in any CRS, or a table of points with lon and lat',
    )
    parser.add_argument('--column', help='column of the class (default: the only column)')
    parser.add_argument('--layer', help='layer of the vector file (default: the first)')
    parser.add_argument('--output', type=Path, required=True, metavar='FILE', help='GeoTIFF to write')
    parser.add_argument('--classifier', choices=CLASSIFIERS, default='logistic', help='default: logistic')
    parser.add_argument(
        '--block',
        type=_metres,
        metavar='METRES',
        help='side of the spatial blocks of the cross-validation, larger than fields or forest stands (default: a '
        'fifth of the longer side of the extent of the labels)',
    )
    parser.add_argument(
        '--max-pixels', type=_positive, default=1000, help='maximum number of pixels of a polygon (default: 1000)'
    )
    parser.add_argument(
        '--probabilities', choices=PRECISIONS, default='uint8', help='data type of the probabilities (default: uint8)'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the folds and the MLP (default: 0)')
    return parser


def similar_parser() -> argparse.ArgumentParser:
    """Create the parser of ``similar``."""
    parser = argparse.ArgumentParser(
        prog='python -m torchgeo_omnisat similar',
        description='Write the cosine similarity of every pixel of an embedding map to the embedding of a place.',
    )
    parser.add_argument('--embeddings', nargs='+', type=Path, required=True, metavar='FILE', help=_EMBEDDINGS)
    parser.add_argument(
        '--at',
        nargs=2,
        type=float,
        action='append',
        required=True,
        metavar=('LON', 'LAT'),
        help='place in degrees; several --at are averaged',
    )
    parser.add_argument(
        '--output', type=Path, default=Path('similarity.tif'), metavar='FILE', help='default: similarity.tif'
    )
    return parser


def change_parser() -> argparse.ArgumentParser:
    """Create the parser of ``change``."""
    parser = argparse.ArgumentParser(
        prog='python -m torchgeo_omnisat change',
        description='Write the change between two embedding maps, 1 - cosine: 0 without change, at most 2.',
    )
    parser.add_argument('--before', type=Path, required=True, metavar='FILE', help='embeddings of the first year')
    parser.add_argument('--after', type=Path, required=True, metavar='FILE', help='embeddings of another year')
    parser.add_argument('--output', type=Path, required=True, metavar='FILE', help='GeoTIFF to write')
    return parser


def reproduce_parser() -> argparse.ArgumentParser:
    """Create the parser of ``reproduce``."""
    parser = argparse.ArgumentParser(
        prog='python -m torchgeo_omnisat reproduce',
        description='Train and test models on a public dataset with its published protocol, and write a folder with '
        'the scores beside the published ones, figures, checkpoints and a model card. Before it starts, it prints the '
        'files, the steps and the estimated hours. If it is interrupted, the same command continues.',
    )
    parser.add_argument(
        '--data',
        choices=REPRODUCED,
        required=True,
        metavar='NAME',
        help=f'dataset: {", ".join(REPRODUCED)}; pastis100 and flairhub-toy are downloaded if --root lacks them',
    )
    parser.add_argument('--root', required=True, metavar='DIR', help='directory of the dataset')
    parser.add_argument(
        '--rows',
        nargs='+',
        choices=ROWS,
        default=['utae', 'omnisat'],
        metavar='ROW',
        help=f'models: {", ".join(ROWS)} (default: utae omnisat); published evaluates the published weights of U-TAE '
        'on PASTIS, to validate the pipeline',
    )
    parser.add_argument('--folds', nargs='+', type=_positive, metavar='N', help='official splits (default: all)')
    parser.add_argument(
        '--splits',
        metavar='FILE',
        help='lists of tiles instead of the folds of PASTIS, as for MAESTRO: a CSV or GeoJSON file with the columns id '
        'and split, a directory with train.csv, val.csv and test.csv, or the path of these files with {} for the split',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0], metavar='N', help='default: 0')
    parser.add_argument('--output', type=Path, default=Path('reproduction'), help='folder (default: reproduction)')
    parser.add_argument('--dry-run', action='store_true', help='print files, steps and estimated hours, and stop')
    parser.add_argument(
        '--no-check', dest='check', action='store_false', help='skip the check of all files before the first run'
    )
    parser.add_argument(
        '--weights', metavar='DIR', help='folder of the published weights, Fold_1 to Fold_5 (default: download them)'
    )
    budget = parser.add_argument_group('Budget (the defaults depend on the dataset)')
    budget.add_argument('--steps', type=_positive, help='optimiser steps of each run')
    budget.add_argument('--pretraining-steps', type=_positive, help='default: half of the steps')
    budget.add_argument('--batch-size', type=_positive, help='tiles per step, of all devices together')
    budget.add_argument('--backbone', help='builder of OmniSat, such as omnisat_base')
    budget.add_argument('--max-dates', type=_positive, help='maximum number of dates of a time series (default: all)')
    budget.add_argument('--tiles', type=_positive, help='number of synthetic landscapes')
    machine = parser.add_argument_group('Machine')
    machine.add_argument('--devices', type=_positive, default=1, help='number of devices of a training (default: 1)')
    machine.add_argument('--accelerator', default='auto', help='accelerator of Lightning (default: auto)')
    machine.add_argument('--precision', default='', help='precision of Lightning, such as bf16-mixed')
    machine.add_argument('--workers', type=int, default=0, help='number of processes that read (default: 0)')
    machine.add_argument(
        '--save-every', type=_positive, default=500, help='steps between checkpoints to resume from (default: 500)'
    )
    return parser


#: Parsers by command.
PARSERS: dict[str, Callable[[], Any]] = {
    'init': init_parser,
    'demo': demo_parser,
    'reproduce': reproduce_parser,
    'encoders': encoders_parser,
    'export': export_parser,
    'baseline': baseline_parser,
    'stats': stats_parser,
    'report': report_parser,
    'robustness': robustness_parser,
    'shard': shard_parser,
    'check': check_parser,
    'classify': classify_parser,
    'similar': similar_parser,
    'change': change_parser,
}


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'expected at least 1, got {number}')
    return number


def _metres(text: str) -> float:
    number = float(text)
    if not 0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'expected a positive number of metres, got {number}')
    return number
