# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Command `report`: write the results of a run as one HTML file."""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
import yaml
from matplotlib import colormaps
from matplotlib.colors import to_hex

from ..evaluation.page import MapImage, Run, render
from ..prediction.raster import class_colors
from ..utils.atomic import atomic_file
from ..utils.cli.console import say
from ..utils.reading import load_config, load_json, refuse_special
from . import parsers

#: Files of a test and of a training, by which a folder is recognised.
KNOWN = ('scores.csv', 'classes.csv', 'subsets.csv', 'config.yaml', 'metrics.csv')
#: Metric of ``scores.csv`` by main score of ``subsets.csv``.
MAIN = {'mean_iou': 'AverageJaccardIndex', 'macro_f1': 'AverageF1Score', 'r2': 'R2'}
#: Metrics of the headline by title, as far as they exist.
SUMMARY = {
    'mean IoU': 'AverageJaccardIndex',
    'mean F1': 'AverageF1Score',
    'overall accuracy': 'OverallAccuracy',
    'R2': 'R2',
    'MAE': 'MAE',
    'RMSE': 'RMSE',
}
#: Maximum side of a map in pixels, and size of a figure in bytes.
SIDE, LARGEST = 1600, 8_000_000
PACKAGES = ('torchgeo_omnisat', 'torchgeo', 'torch', 'lightning', 'torchmetrics', 'timm', 'rasterio')


def main(argv: Sequence[str] | None = None) -> int:
    """Collect the files of a run and write the report."""
    args = parsers.report_parser().parse_args(argv)
    folders = [find_run(folder) for folder in args.run]
    run = collect(folders, [read_map(path) for path in args.map], args.title)
    with atomic_file(args.output) as path:
        path.write_text(render(run), encoding='utf-8')
    say(f'Written: {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)')
    return 0


def find_run(folder: Path) -> Path:
    """Return a folder with the files of a test or a training: *folder*, or the latest one up to two levels below.

    Raises:
        ValueError: If there is none.
    """
    if not folder.is_dir():
        raise ValueError(f'{folder} is not a folder, expected the output folder of `torchgeo test` or `torchgeo fit`')
    if any((folder / name).is_file() for name in KNOWN):
        return folder
    inner = {path.parent for pattern in KNOWN for top in ('*', '*/*') for path in folder.glob(f'{top}/{pattern}')}
    if not inner:
        raise ValueError(f'{folder} has none of {", ".join(KNOWN)}, expected the output folder of `torchgeo test`')
    return max(inner, key=lambda path: ((path / 'scores.csv').is_file(), path.stat().st_mtime))


def collect(folders: Iterable[Path], maps: Sequence[MapImage] = (), title: str | None = None) -> Run:
    """Return the content of the report of runs; a training that a test belongs to is found by its checkpoint."""
    found = list(folders)
    for folder in list(found):
        found += [path for path in [_training_of(folder)] if path is not None and path not in found]
    first = found[0]
    run = Run(title or f'Report of {first.name}', maps=maps)
    scores = _read_csv(found, 'scores.csv')
    if scores is None:
        run.notes = [f'{first} contains no scores: run `torchgeo test` and give its output folder.']
    else:
        run.scores = dict(zip(scores['metric'].astype(str), scores['score'].astype(float), strict=True))
        run.summary = {name: run.scores[metric] for name, metric in SUMMARY.items() if metric in run.scores}
    run.classes, run.subsets = (_read_csv(found, f'{name}.csv') for name in ('classes', 'subsets'))
    images = {name: _read_png(found, f'{name}.png') for name in ('confusion', 'subsets')}
    run.figures = {name: image for name, image in images.items() if image is not None}
    run.examples = _read_examples(found)
    run.curves = _read_curves(found, MAIN if run.subsets is None else [str(name) for name in run.subsets.columns])
    texts = {path: path.read_text(encoding='utf-8', errors='replace') for path in _files(found, 'config.yaml')}
    run.configuration = {str(path.relative_to(path.parents[1])): text for path, text in texts.items()}
    parsed = [_parse(text, path) for path, text in texts.items()]
    configs = [config for config in parsed if isinstance(config, dict)]
    _describe_data(run, configs)
    run.versions = {name: known for name in PACKAGES if (known := _version(name))}
    return run


def read_map(path: Path) -> MapImage:
    """Read a map of classes or values at reduced resolution.

    Raises:
        ValueError: If it cannot be read as a raster.
    """
    refuse_special(path, 'a GeoTIFF')
    try:
        with rasterio.open(path) as file:
            factor = max(1.0, max(file.height, file.width) / SIDE)
            shape = max(1, round(file.height / factor)), max(1, round(file.width / factor))
            band = file.read(1, out_shape=shape, masked=True)
            tags, unit = file.tags(1), file.units[0] or ''
            transform = file.transform * file.transform.scale(file.width / shape[1], file.height / shape[0])
            crs, table = file.crs, _color_table(file)
    except rasterio.errors.RasterioError as error:
        raise ValueError(f'{path} cannot be read as a map: {error}') from error
    labels = {int(key[6:]): text for key, text in tags.items() if key.startswith('CLASS_') and key[6:].isdigit()}
    is_classes = np.issubdtype(band.dtype, np.integer)
    draw = _draw_classes(band, labels, table) if is_classes else _draw_values(band, unit)
    metres = abs(transform.a) * crs.linear_units_factor[1] if crs is not None and crs.is_projected else None
    return MapImage(path.name, *draw, tuple(transform)[:6], '' if crs is None else crs.to_string()[:60], metres)


def _draw_classes(band: Any, labels: Mapping[int, str], table: Mapping[int, Any] | None) -> tuple[Any, Any]:
    """Return the colours of classes and their legend, the most frequent class first."""
    values, counts = np.unique(band.compressed(), return_counts=True)
    default = class_colors(int(values.max()) + 1 if len(values) and 0 <= values.max() < 4096 else 1)
    image = np.zeros((*band.shape, 4), np.uint8)
    legend = []
    for value, count in sorted(zip(values.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1]):
        color = (table or {}).get(value) or default[value % len(default)]
        red, green, blue = (int(part) for part in color[:3])
        image[(band.data == value) & ~np.ma.getmaskarray(band)] = red, green, blue, 255
        legend.append((labels.get(value, str(value)), f'#{red:02x}{green:02x}{blue:02x}', count / counts.sum()))
    return image, legend


def _draw_values(band: Any, unit: str) -> tuple[Any, Any]:
    """Return the colours of values between the 2nd and 98th percentile, and their legend."""
    values: Any = np.ma.masked_invalid(band).astype(np.float64)
    low, high = np.percentile(values.compressed(), [2, 98]) if values.count() else (0.0, 1.0)
    part = np.clip((values.filled(low) - low) / max(high - low, 1e-12), 0, 1)
    image = (colormaps['viridis'](part) * 255).round().astype(np.uint8)
    image[np.ma.getmaskarray(values)] = 0
    legend = [
        (f'{low + step * (high - low):.4g} {unit}'.strip(), to_hex(colormaps['viridis'](step)), None)
        for step in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    return image, legend


def _color_table(file: Any) -> Mapping[int, Any] | None:
    try:
        table: Mapping[int, Any] = file.colormap(1)
    except ValueError:
        return None
    return table


def _training_of(folder: Path) -> Path | None:
    """Return the output folder of the training whose checkpoint a test read, if it exists."""
    for path in _files([folder], 'config.yaml'):
        config = _parse(path.read_text(encoding='utf-8', errors='replace'), path)
        checkpoint = config.get('ckpt_path') if isinstance(config, dict) else None
        if isinstance(checkpoint, str) and checkpoint:
            parent = Path(checkpoint).parent
            parent = parent.parent if parent.name == 'checkpoints' else parent
            if parent.resolve() != folder.resolve() and (parent / 'config.yaml').is_file():
                return parent
    return None


def _files(folders: Iterable[Path], name: str) -> list[Path]:
    return [folder / name for folder in folders if (folder / name).is_file()]


def _parse(text: str, path: Path) -> object:
    try:
        return load_config(text, str(path))
    except (yaml.YAMLError, ValueError):
        return None


def _read_csv(folders: Iterable[Path], name: str) -> pd.DataFrame | None:
    for path in _files(folders, name):
        try:
            return pd.read_csv(path, keep_default_na=False, na_values=['nan'])
        except (ValueError, pd.errors.ParserError) as error:
            raise ValueError(f'{path} cannot be read as a table: {error}') from error
    return None


def _read_png(folders: Iterable[Path], name: str) -> bytes | None:
    for path in _files(folders, name):
        if path.stat().st_size <= LARGEST and (image := path.read_bytes()).startswith(b'\x89PNG'):
            return image
    return None


def _read_examples(folders: Iterable[Path]) -> list[tuple[bytes, list[str]]]:
    examples = []
    for path in _files(folders, 'examples/examples.json'):
        listed = load_json(path)
        for name, classes in listed.items() if isinstance(listed, dict) else ():
            image = _read_png([path.parent], Path(str(name)).name)
            if image is not None:
                examples.append((image, [str(text) for text in classes]))
    return examples


def _read_curves(folders: Iterable[Path], columns: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Return the losses and the main validation score that a training logged, from TensorBoard or CSV."""
    known = [MAIN[column] for column in columns if column in MAIN]
    for folder in folders:
        logged = _read_metrics(folder) or _read_events(folder)
        wanted = ['train_loss', 'val_loss', *[f'val_{name}' for name in known if f'val_{name}' in logged][:1]]
        curves = {name: logged[name] for name in wanted if name in logged}
        if curves:
            return curves
    return {}


def _read_metrics(folder: Path) -> dict[str, pd.DataFrame]:
    table = _read_csv([folder], 'metrics.csv')
    if table is None or 'step' not in table:
        return {}
    numbers = table.apply(pd.to_numeric, errors='coerce')
    return {
        str(name): pd.DataFrame({'step': numbers['step'], 'value': numbers[name]}).dropna() for name in numbers.columns
    }


def _read_events(folder: Path) -> dict[str, pd.DataFrame]:
    if not any(folder.glob('events.out.tfevents.*')):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # takes a second

    events = EventAccumulator(str(folder), size_guidance={'scalars': 2000})
    events.Reload()
    return {name: pd.DataFrame(events.Scalars(name))[['step', 'value']] for name in events.Tags()['scalars']}


def _describe_data(run: Run, configs: Sequence[Mapping[str, Any]]) -> None:
    """Set facts about data and sensors, from the configuration and the tables."""
    for config in configs:
        data, model = config.get('data') or {}, config.get('model') or {}
        if not isinstance(data, dict) or not isinstance(model, dict):
            continue
        given = {str(name): value for name, value in (data.get('init_args') or {}).items() if value is not None}
        run.data = {'datamodule': str(data.get('class_path', '')).rpartition('.')[-1]}
        run.data |= {name: _short(value) for name, value in given.items()}
        sensors = (model.get('init_args') or {}).get('modalities')
        run.sensors = [_facts(sensor) for sensor in sensors or () if isinstance(sensor, dict)]
        break
    if run.subsets is not None and len(run.subsets):
        first = run.subsets.iloc[0]
        facts = {'test samples': first.get('samples'), 'data': first.get('data')}
        run.data = {**run.data, **{name: str(value) for name, value in facts.items() if value is not None}}


def _facts(sensor: Mapping[str, Any]) -> dict[str, Any]:
    bands = sensor.get('bands') or ()
    return {
        'sensor': sensor.get('name', ''),
        'bands': ', '.join(map(str, bands)),
        'GSD (m)': str(sensor.get('gsd', '')),
        'images': 'time series' if sensor.get('temporal') else 'single image',
        'kind': sensor.get('kind') or '',
        'unit': sensor.get('unit') or '',
    }


def _short(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 300 else f'{text[:297]}...'


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ''
