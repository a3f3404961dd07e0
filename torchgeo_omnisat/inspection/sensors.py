# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Sensors in a folder: which files belong together, and the settings with which they are read."""

import math
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import numpy as np

from ..datasets.geo.config import image_dataset
from ..datasets.io.fingerprint import sources_of, state_of
from ..datasets.io.headers import DATE, Header, read_header
from ..datasets.rasters.bandfiles import band_of
from ..datasets.rasters.frames import days_of
from ..datasets.rasters.products import TERRAIN, archive_files
from ..datasets.rasters.sentinel import Sentinel1TimeSeries
from ..datasets.rasters.timeseries import RasterTimeSeries
from ..modality import Kind, Modality, Unit
from ..utils.plurals import counted
from ..utils.reading import load_json
from .facts import PLANET, kind_of, sample_values, sensor_of, states_nodata, unit_of
from .files import DATES, RASTERS, common_folder, select

#: Function that asks the user to choose one of several values; None if there is no answer.
Ask = Callable[[str, Sequence[str]], str | None]
#: Words in the names of masks and previews that lie beside images.
_AUXILIARY = re.compile(
    r'(?<![a-z])(?:udm2?|scl|clouds?|cldprb|masks?|qa(?:_pixel)?|fmask|aux|thumb(?:nail)?|preview|quicklook|tci|pvi)'
    r'(?![a-z])',
    re.I,
)
#: Archives, also of single files.
_ARCHIVE = re.compile(r'\.(?:zip|tar|tgz|gz|bz2|xz|7z|rar)$', re.I)
#: Path of a file in a SAFE product, and products of Sentinel-2.
_SAFE = re.compile(r'((?:.*?/)??)([^/]+\.SAFE)/', re.I)
_SENTINEL2 = re.compile(r'S2[A-D]_MSIL[12][AC]_', re.I)
_S2_FILE = re.compile(r'T\d{2}[A-Z]{3}_\d{8}T\d{6}_(B\d[\dA]|SCL|TCI|AOT|WVP)(?:_\d{2}m)?\.\w+$')
_S2_BANDS = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')
_ORBITS = {'asc': r'(?<![a-z])asc(?:ending)?(?![a-z])', 'desc': r'(?<![a-z])d(?:e?sc|escending)(?![a-z])'}
#: Classes of the scene classification of Sentinel-2 that hide the ground: shadow, clouds, cirrus.
_HIDDEN = (3, 8, 9, 10)
#: Minimum number of bands of a file that may be a stack of dates.
_STACKED = 12


@dataclass
class Sensor:
    """Settings of a sensor for the argument ``rasters``, and a description of its files.

    Attributes:
        name: Name of the modality.
        settings: Settings of the reader.
        notes: Comments by setting; those of unknown facts say what to fill in.
        files: Files, relative to the folder.
        modality: Modality as the reader describes it; None if the files cannot be read.
        summary: Number of files and dates, bands, GSD and CRS.
        months: Number of calendar months from the first to the last date of a time series.
        problem: Why the files cannot be read; an empty string if they can.
    """

    name: str
    settings: dict[str, Any]
    notes: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    modality: Modality | None = None
    summary: str = ''
    months: int = 1
    problem: str = ''

    @property
    def temporal(self) -> bool:
        """Whether the sensor is a time series."""
        return self.modality is not None and self.modality.temporal

    @property
    def gsd(self) -> float:
        """GSD in metres, as configured."""
        return float(self.settings.get('gsd', self.modality.gsd if self.modality else 10))


@dataclass(frozen=True)
class Group:
    """Raster files with the same sensor, number of bands and pixel size.

    Attributes:
        sensor: Sensor that names state; may be empty.
        orbit: ``'asc'``, ``'desc'`` or an empty string.
        place: Name of the folder of the sensor; may be empty.
        bands: Number of bands.
        side: Pixel size in units of the CRS; 0 if each file is one band.
    """

    sensor: str
    orbit: str
    place: str
    bands: int
    side: float


def find_sensors(root: Path, files: Sequence[str], ask: Ask) -> tuple[list[Sensor], list[str]]:
    """Return the sensors of a folder, and notes on files that are not used."""
    notes: list[str] = []
    rest = list(files)
    sensors: list[Sensor] = []
    for find in (_products, _band_files, _stac, _netcdf):
        found, rest = find(root, rest, notes)
        sensors += found
    groups, rest = _groups(root, rest, notes)
    sensors += [_of_group(root, group, sorted(members), files) for group, members in groups.items()]
    _name_apart(sensors)
    for sensor in sensors:
        _inspect(root, sensor, ask)
    notes += _repeated(root, sensors)
    order = sorted(sensors, key=lambda sensor: (not sensor.temporal, -len(sensor.files), sensor.name))
    return order, notes


def _repeated(root: Path, sensors: Sequence[Sensor]) -> list[str]:
    """Return a note for each pair of sensors of which one has virtual rasters of the other."""
    owner = {os.path.realpath(root / file): (sensor.name, file) for sensor in sensors for file in sensor.files}
    found = dict[tuple[str, str], str]()
    for sensor in sensors:
        for file in sensor.files:
            path = str(root / file)
            for source in map(os.path.realpath, sources_of(path, state_of(path))):
                name, origin = owner.get(source, ('', ''))
                if name:
                    found.setdefault((sensor.name, name), f'{file} is a virtual raster of {origin}')
    return [
        f'{what}, so that pixels of {" and ".join(dict.fromkeys(names))} are read twice: leave out one of the files'
        for names, what in found.items()
    ]


def single_bands(root: Path, files: Sequence[str], floats: bool = False) -> list[str]:
    """Return the rasters whose file has one band of integers, or of floats, of which labels may be some."""
    found, kind = [], np.floating if floats else np.integer
    for file in files:
        header = _header(root, file) if file.lower().endswith(RASTERS) else None
        if header is not None and len(header.dtypes) == 1 and np.issubdtype(np.dtype(header.dtypes[0]), kind):
            found.append(file)
    return found


def _products(root: Path, files: list[str], notes: list[str]) -> tuple[list[Sensor], list[str]]:
    """Sentinel-2 products in SAFE folders or zip archives."""
    inside: dict[str, list[str]] = defaultdict(list)
    places: dict[str, str] = {}  # SAFE folder or archive of each product
    rest, archives = list[str](), list[str]()
    for file in sorted(files, key=lambda name: _ARCHIVE.search(name) is not None):  # unpacked products first
        try:
            zipped = archive_files(str(root / file)) if file.lower().endswith('.zip') else []
        except ValueError as error:
            notes.append(str(error))
            continue
        inner = [file + found.removeprefix(f'/vsizip/{root / file}') for found in zipped] or [file]
        members = [found for found in inner if _SAFE.search(found)]
        if not members:
            (archives if _ARCHIVE.search(file) else rest).append(file)
        for member in members:
            start, product = _SAFE.search(member).groups()  # type: ignore[union-attr]
            place = file if _ARCHIVE.search(file) else start + product
            if places.setdefault(product, place) == place:
                inside[product].append(member)
    if archives:
        command = 'unzip FILE' if archives[0].lower().endswith('.zip') else 'tar -xf FILE'
        notes.append(
            f'archives such as {archives[0]} ({len(archives)} in total) are not read: unpack them ({command}) and run '
            'init again'
        )
    optical = {product: found for product, found in inside.items() if _SENTINEL2.match(product)}
    radar = [product for product in inside if product.upper().startswith('S1')]
    other = [product for product in inside if product not in (*optical, *radar)]
    if radar:
        notes.append(f'{places[radar[0]]} ({len(radar)} in total) is not read, as {TERRAIN}')
    if other:
        notes.append(f'{places[other[0]]} ({len(other)} in total) is not read: only products of Sentinel-2 are')
    if not optical:
        return [], rest
    settings = {'path': common_folder(places[product] for product in optical), 'kind': 'sentinel2'}
    members = [file for found in optical.values() for file in found]
    return [_sentinel2(settings, members, [*optical.values()])], rest


def _band_files(root: Path, files: list[str], notes: list[str]) -> tuple[list[Sensor], list[str]]:
    """Band files of Sentinel-2 outside of products, and files of Sentinel-1 of the Alaska Satellite Facility."""
    sensors, rest = [], files
    optical = [file for file in files if _S2_FILE.match(PurePosixPath(file).name)]
    if optical:
        scenes: dict[str, list[str]] = defaultdict(list)
        for file in optical:
            scenes[PurePosixPath(file).name[:22]].append(file)
        settings = {'path': common_folder(optical), 'kind': 'sentinel2'}
        sensors.append(_sentinel2(settings, optical, [*scenes.values()]))
        rest = [file for file in rest if file not in set(optical)]
    pattern = re.compile(Sentinel1TimeSeries.filename_regex, re.VERBOSE)
    radar = [file for file in rest if pattern.match(PurePosixPath(file).name)]
    if radar:
        bands = sorted({PurePosixPath(file).stem[-2:] for file in radar}, key=('VV', 'VH', 'HH', 'HV').index)
        chosen: dict[str, Any] = {'path': common_folder(radar), 'kind': 'sentinel1', 'bands': bands}
        sensors.append(Sensor('s1', chosen, {'kind': 'products of the Alaska Satellite Facility'}, radar))
        rest = [file for file in rest if file not in set(radar)]
    return sensors, rest


def _sentinel2(settings: dict[str, Any], files: list[str], scenes: Sequence[Sequence[str]]) -> Sensor:
    names = [{found[1] for file in scene if (found := _S2_FILE.search(file))} for scene in scenes]
    common = set.intersection(*names)
    bands = [band for band in _S2_BANDS if band in common]
    if bands != list(_S2_BANDS):
        settings['bands'] = bands
    notes = {'kind': 'sets optical, digital numbers, and the offset of processing baselines'}
    if 'SCL' in common:
        settings['clouds'] = {'band': 'SCL', 'values': list(_HIDDEN)}
        notes['clouds'] = 'scene classification: shadow, clouds and cirrus become nodata'
    incomplete = sum(found != common for found in names)
    if incomplete:
        notes['bands'] = (
            f'those that all {len(names)} scenes have; {counted(incomplete, "scene has", "scenes have")} more'
        )
    return Sensor('s2', settings, notes, files)


def _stac(root: Path, files: list[str], notes: list[str]) -> tuple[list[Sensor], list[str]]:
    """STAC ItemCollections."""
    sensors, used = [], set[str]()
    for file in files:
        if not file.lower().endswith(('.json', '.geojson')):
            continue
        try:
            content: Any = load_json(root / file)
        except (ValueError, OSError):
            continue
        items = content.get('features') if isinstance(content, dict) else None
        if not items or not all(isinstance(item, dict) and 'stac_version' in item for item in items):
            continue
        assets = [[name for name, asset in item.get('assets', {}).items() if _is_band(name, asset)] for item in items]
        bands = [name for name in assets[0] if all(name in other for other in assets)]
        sensor = sensor_of(f'{file} {items[0].get("collection", "")} {items[0].get("properties", {}).get("platform")}')
        settings: dict[str, Any] = {'path': file, 'reader': 'stac', 'bands': bands}
        sensors.append(Sensor(sensor or 'stac', settings, {'bands': 'assets that all items have'}, [file]))
        used.add(file)
        hrefs = [str(asset.get('href')) for item in items for asset in item['assets'].values()]
        folder = (root / file).parent
        used |= {
            Path(folder / href).resolve().relative_to(root.resolve()).as_posix()
            for href in hrefs
            if '://' not in href and Path(folder / href).resolve().is_relative_to(root.resolve())
        }
    return sensors, [file for file in files if file not in used]


def _is_band(name: str, asset: Any) -> bool:
    kind, roles = str(asset.get('type', '')), asset.get('roles') or ['data']
    raster = 'tiff' in kind or 'jp2' in kind or str(asset.get('href', '')).lower().endswith(RASTERS)
    return raster and 'data' in roles and not _AUXILIARY.search(name) and name.lower() not in ('visual', 'overview')


def _netcdf(root: Path, files: list[str], notes: list[str]) -> tuple[list[Sensor], list[str]]:
    """NetCDF files, by the words before the first digit that follows a separator."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if file.lower().endswith('.nc'):
            found[sensor_of(PurePosixPath(file).name) or sensor_of(file) or 'netcdf'].append(file)
    every = [file for members in found.values() for file in members]
    sensors = []
    for name, members in found.items():
        chosen = select(members, every)
        if chosen.get('filename_glob') == '*.nc':
            del chosen['filename_glob']
        sensors.append(Sensor(name, {**chosen, 'reader': 'netcdf'}, {}, members))
    return sensors, [file for file in files if file not in set(every)]


def _groups(root: Path, files: list[str], notes: list[str]) -> tuple[dict[Group, list[str]], list[str]]:
    """Group other rasters by sensor, folder, number of bands and pixel size."""
    headers = {file: _header(root, file) for file in files if file.lower().endswith(RASTERS)}
    unreadable = [file for file, header in headers.items() if header is None]
    if unreadable:
        notes.append(
            counted(len(unreadable), 'raster cannot be read or has', 'rasters cannot be read or have')
            + f' no georeference, such as {unreadable[0]}'
        )
    known = {file: header for file, header in headers.items() if header is not None}
    several = {str(PurePosixPath(file).parent) for file, header in known.items() if len(header.dtypes) > 1}
    beside = [
        file
        for file, header in known.items()
        if len(header.dtypes) == 1
        and _AUXILIARY.search(PurePosixPath(file).stem)
        and (str(PurePosixPath(file).parent) in several or band_of(file))
    ]
    beside += [file for file in known if re.search(r'udm2?\b|_udm', PurePosixPath(file).stem) and file not in beside]
    if beside:
        notes.append(f'masks or previews beside images such as {beside[0]} ({len(beside)} in total) are not read')
    found: dict[Group, list[str]] = defaultdict(list)
    for file, header in known.items():
        if file not in beside:
            found[_group_of(file, header)].append(file)
    return found, [file for file in files if file not in known]


def _group_of(file: str, header: Header) -> Group:
    path = PurePosixPath(file)
    folder = next((part for part in reversed(path.parts[:-1]) if sensor_of(part)), '')
    sensor = sensor_of(path.stem) or sensor_of(folder)
    place = folder or ('' if sensor or len(path.parts) < 2 else path.parts[0])
    if not sensor and not place:
        place = re.match(r'[A-Za-z]*', path.stem).group().lower()  # type: ignore[union-attr]
    text = file.lower()
    orbit = next((name for name, pattern in _ORBITS.items() if sensor == 's1' and re.search(pattern, text)), '')
    bands = len(header.dtypes)
    side = 0.0 if bands == 1 and band_of(file) and sensor != 'dem' else round(abs(header.transform.a), 9)
    return Group(sensor, orbit, place, bands, side)


def _header(root: Path, file: str) -> Header | None:
    try:
        return read_header(str(root / file))
    except (ValueError, OSError):
        return None


def _of_group(root: Path, group: Group, files: list[str], every: Sequence[str]) -> Sensor:
    settings, notes = select(files, every), dict[str, str]()
    header = _header(root, files[len(files) // 2])
    assert header is not None
    texts = [text or '' for text in header.descriptions]
    dated = [text for text in texts if DATE.search(text)]
    stacked = len(dated) == len(texts) and len({DATE.search(text).group() for text in dated}) > 1  # type: ignore[union-attr]
    pattern, days = _dates(files)
    if stacked:
        settings['stack'] = {'dates': 'descriptions'}
        notes['stack'] = f'bands have descriptions with dates, such as {texts[0]}'
    elif _is_yearly(group, pattern, days, texts):
        count = group.bands // _STACKED
        bands = [f'B{number}' for number in range(1, count + 1)]
        settings['stack'] = {'dates': [f'{month:02d}-01' for month in range(1, 13)], 'bands': bands}
        settings |= pattern
        notes['stack'] = (
            f'FILL IN: taken as {counted(count, "band")} of each of 12 months, month by month; order: band-date if all '
            'months of a band come first; bands names them'
        )
    else:
        settings |= pattern if len(days) > 1 else {}
        if len(days) < 2:
            settings['temporal'] = False
        lost = len(files) - sum(_day(PurePosixPath(file).name, pattern) is not None for file in files)
        if len(days) > 1 and lost:
            notes['path'] = f'FILL IN: {lost} of {len(files)} files without a date in the name, not read'
        if len(days) < 2 and len(files) > 1:
            series = 'FILL IN: ' if group.sensor in ('s1', 's2') else ''
            notes['temporal'] = (
                f'{series}file names have no date, so the {len(files)} files are read as one image; for a time series, '
                'rename them as S2_20210615.tif, or state filename_regex and date_format'
            )
    if group.sensor == 'planet' and group.bands in PLANET and not all(texts):
        settings['all_bands'] = list(PLANET[group.bands])
        notes['all_bands'] = f'order of PlanetScope files with {group.bands} bands'
    name = _name(group, files)
    return Sensor(name, settings, notes, files)


def _is_yearly(group: Group, pattern: dict[str, str], days: set[datetime], texts: Sequence[str]) -> bool:
    """Return whether files without band descriptions may be stacks of the twelve months of a year."""
    return pattern.get('date_format') == '%Y' and group.bands % _STACKED == 0 and not any(texts)


def _dates(files: Sequence[str]) -> tuple[dict[str, str], set[datetime]]:
    """Return the settings that find most dates in file names, and these dates."""
    best: tuple[dict[str, str], set[datetime]] = ({}, set())
    most = 0
    for pattern in DATES:
        days = [_day(PurePosixPath(file).name, pattern) for file in files]
        found = [day for day in days if day is not None]
        if len(found) > most:
            best, most = (pattern, set(found)), len(found)
    return best


def _day(name: str, pattern: dict[str, str]) -> datetime | None:
    match = re.match(pattern.get('filename_regex', RasterTimeSeries.filename_regex), name, re.VERBOSE)
    if match is None:
        return None
    try:
        return datetime.strptime(match['date'], pattern.get('date_format', '%Y%m%d'))
    except ValueError:
        return None


def _name(group: Group, files: Sequence[str]) -> str:
    name = valid_name(group.place or group.sensor or PurePosixPath(files[0]).stem)
    return f'{name}_{group.orbit}' if group.orbit and not re.search(_ORBITS[group.orbit], group.place) else name


def valid_name(text: str) -> str:
    """Return a valid name of a modality that is similar to a text."""
    name = re.sub(r'[^a-z0-9]+', '_', text.lower()).strip('_') or 'images'
    name = {'sentinel_2': 's2', 'sentinel2': 's2', 'sentinel_1': 's1', 'sentinel1': 's1'}.get(name, name)
    name = name if name[0].isalpha() else f'x{name}'
    try:
        Modality(name, ('band',), 1.0, False)
    except ValueError:
        return f'{name}_images'
    return name


def _name_apart(sensors: Sequence[Sensor]) -> None:
    """Append a number to the name of sensors with the same name."""
    counts = Counter(sensor.name for sensor in sensors)
    seen = Counter[str]()
    for sensor in sensors:
        seen[sensor.name] += 1
        if counts[sensor.name] > 1:
            sensor.name += f'_{seen[sensor.name]}'


def _inspect(root: Path, sensor: Sensor, ask: Ask) -> None:
    """Read headers and some pixels: set gsd, kind and unit, or a note that says what to fill in."""
    try:
        dataset = _read(root, sensor)
    except (ValueError, OSError, RuntimeError) as error:
        sensor.problem = ' '.join(str(error).split())
        if 'states no CRS' in sensor.problem:
            sensor.notes['path'] = "FILL IN: files state no CRS, add crs: 'EPSG:...' of the files"
        return
    (modality,) = dataset.modalities.values()
    index = dataset.index
    gsd = nice_gsd(modality.gsd)
    sensor.settings['gsd'] = gsd
    if abs(gsd - modality.gsd) > 1e-6 * gsd:
        sensor.notes['gsd'] = f'pixels of {modality.gsd:.6g} m are resampled'
    is_raster = sensor.settings.get('kind') not in ('sentinel1', 'sentinel2')
    if is_raster:
        _set_facts(sensor, modality, [str(path) for path in index.filepath], ask)
    if is_raster and sensor.settings.get('reader') is None:
        _set_nodata(sensor, [str(path) for path in index.filepath])
    if list(modality.bands) == [f'B{number}' for number in range(1, len(modality.bands) + 1)]:
        sensor.notes.setdefault('bands', f'bands have no names; all_bands: [...] would name the {len(modality.bands)}')
    dataset = _read(root, sensor)
    (sensor.modality,) = dataset.modalities.values()
    _set_summary(sensor, dataset)


def _read(root: Path, sensor: Sensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return image_dataset(sensor.name, sensor.settings, root)


def _set_facts(sensor: Sensor, modality: Modality, paths: Sequence[str], ask: Ask) -> None:
    named = sensor_of(sensor.name) or sensor_of(sensor.files[0])
    kind, why = kind_of(named, modality.bands)
    if modality.kind is not None:
        kind, why = modality.kind, 'stated by the files'
    if kind is None:
        kind = _asked(ask, f'What does {sensor.name} ({sensor.files[0]}) measure?', get_args(Kind))
        why = 'as answered'
    if kind is None:
        sensor.notes['kind'] = f'FILL IN kind: one of {", ".join(get_args(Kind))}'
    else:
        sensor.settings['kind'], sensor.notes['kind'] = kind, why
    values = None if sensor.settings.get('reader') else sample_values(paths)
    unit, why = (modality.unit, 'stated by the files') if modality.unit != 'unknown' else unit_of(kind, values)
    if unit == 'unknown' and kind not in ('embedding', 'other', 'thermal'):
        choices = [name for name in get_args(Unit) if name != 'unknown']
        unit = _asked(ask, f'In which unit are the pixels of {sensor.name} ({values})?', choices) or 'unknown'
        why = 'as answered'
    if unit == 'unknown':
        sensor.notes['unit'] = f'FILL IN unit: reflectance, dn, db, power or metres ({values})'
    else:
        sensor.settings['unit'], sensor.notes['unit'] = unit, why


def _asked(ask: Ask, question: str, choices: Sequence[str]) -> Any:
    return ask(question, list(choices))


def _set_nodata(sensor: Sensor, paths: Sequence[str]) -> None:
    """Set 0 as nodata of optical digital numbers if files state none and some pixels are 0 in all bands."""
    if sensor.settings.get('kind') != 'optical' or sensor.settings.get('unit') != 'dn':
        return
    values = sample_values(paths)
    if values is not None and values.zero > 0 and not states_nodata(paths[0]):
        sensor.settings['nodata'] = 0
        sensor.notes['nodata'] = (
            f'{100 * values.zero:.2g} % of the pixels are 0 in all bands, and files state no nodata'
        )


def nice_gsd(gsd: float) -> float:
    """Return a GSD, rounded to two significant digits if it is not a multiple of a centimetre."""
    for digits in (0, 1, 2):
        if abs(gsd - round(gsd, digits)) < 1e-4 * gsd and round(gsd, digits) > 0:
            return _plain(round(gsd, digits))
    scale = 10 ** (math.floor(math.log10(gsd)) - 1)
    return _plain(round(round(gsd / scale) * scale, 6))


def _plain(number: float) -> float:
    return int(number) if float(number).is_integer() else number


def _set_summary(sensor: Sensor, dataset: Any) -> None:
    assert sensor.modality is not None
    bands = sensor.modality.bands
    listed = ' '.join(bands) if len(bands) <= 13 else f'{len(bands)} bands {bands[0]} to {bands[-1]}'
    days = np.unique(days_of(dataset.index)).astype('datetime64[D]')
    sensor.months = int(np.ptp(days.astype('datetime64[M]').astype(np.int64))) + 1
    span = f'{days[0]} to {days[-1]}' if len(days) > 1 else f'{days[0]}'
    dates = f'{counted(len(days), "date")} from {span}' if sensor.temporal else 'one image'
    crs = dataset.crs.to_authority()
    code = ':'.join(crs) if crs else dataset.crs.name
    sensor.summary = f'{counted(len(sensor.files), "file")}, {dates}, {listed}, {sensor.gsd:g} m, {code}'
