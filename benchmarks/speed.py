# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Time and memory on a PASTIS-HD tile, in yardsticks, beside the published models.

A yardstick Y is the forward time of ``Conv2d(64, 64, 3, padding=1)`` over a
``(40, 64, 128, 128)`` tensor (48 GFLOP) with the same threads. Every repetition is paired
with a yardstick of its own, and the median of the ratios counts, so that figures compare
between machines and hours. A repetition in which other programs or the host took a tenth
of a core that the threads need is repeated, because threads wait for each other by
spinning. Every row runs in a process of its own; its memory is the peak resident memory of
that process, imports included. Input is random and all of it is valid, but where tiles are
loaded: those are synthetic landscapes, written first.

    python benchmarks/speed.py                  # all rows, as a Markdown table and JSON
    python benchmarks/speed.py --rows small     # rows whose name contains 'small'
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
#: Cores that others may take from the threads during a repetition; otherwise it is repeated.
DISTURBED = 0.1
#: Attempts per repetition. After them, the least disturbed ones count.
ATTEMPTS = 3
#: Seconds below which a disturbance is not known, because the kernel counts in ticks of 10 ms.
RESOLUTION = 0.05
#: Results that are not among the measured values of the table.
HIDDEN = ('cores', 'disturbed', 'ratios')


class Spent(NamedTuple):
    """Time of a call in seconds.

    Attributes:
        wall: Wall time.
        user: Processor time of this process.
        system: Processor time of the kernel for this process.
        others: Processor time of other programs; 0 where ``/proc/stat`` is missing.
        stolen: Processor time that the host of a virtual machine took; 0 where ``/proc/stat`` is missing.
    """

    wall: float
    user: float
    system: float
    others: float
    stolen: float

    @property
    def processor(self) -> float:
        """Processor time of the call."""
        return self.user + self.system

    def disturbance(self, idle: int) -> float:
        """Return the cores that the host and other programs took, apart from *idle* cores that no thread needs."""
        taken = self.stolen + max(0.0, self.others - idle * self.wall)
        return taken / self.wall if taken > RESOLUTION else 0.0


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        case: What is run: a function of this file, by name.
        args: Its arguments.
        bounds: The most that each unit may be.
        published: What the published model costs.
        samples: Samples of a run, by which its time is divided.
    """

    case: str
    args: tuple[Any, ...]
    bounds: dict[str, float]
    published: str = ''
    samples: int = 1


#: Tiles are those of PASTIS-HD (S2 T 40, S1A T 50, SPOT 1280 px) unless the name says otherwise.
ROWS = {
    'utae (published), S2, inference': Row('utae', (False,), {'Y': 4.5}, '8.2 Y, 1.3 GB'),
    'utae (published), S2, training step': Row('utae', (True,), {'Y': 12.5}, '15 Y, 2.9 GB'),
    'omnisat_base inference': Row('segmenter', ('omnisat_base',), {'Y': 7, 'GB': 1.5}, '29 Y, 3.0 GB'),
    'omnisat_base training step': Row('training', ('omnisat_base',), {'Y': 24, 'GB': 4.5}, '235 Y, 16.4 GB'),
    'omnisat_small inference': Row('segmenter', ('omnisat_small',), {'Y': 2.5}, '29 Y, 3.0 GB'),
    'omnisat_small training step': Row('training', ('omnisat_small',), {'Y': 8, 'GB': 2.5}, '235 Y, 16.4 GB'),
    'omnisat_small pre-training step, 64 px, per sample': Row('pretraining', (), {'Y': 3}, '13.5 Y, 4.9 GB', 2),
    'loading and collating, one worker': Row('loading', (), {'steps of omnisat_small': 0.5}),
    **{f'omnisat_base training step, S2 alone, T {dates}': Row('series', (dates,), {}) for dates in (40, 80, 120)},
    'memory of a date, T 40 to 120': Row('', (), {'MB': 40}),
    'import torchgeo_omnisat': Row('', (), {'ms': 50}),
    'the hook that `import torch` calls': Row('', (), {'ms': 2}),
}


def pastis_hd_tile(pixels: int = 128, tiles: int = 1) -> tuple[dict, dict]:
    """Modalities and a random batch: S2 of 40 dates, S1A of 50, SPOT of ten times the pixels."""
    import torch

    from torchgeo_omnisat import Modality

    s2 = Modality('s2', ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12'), 10.0, True)
    s1a = Modality('s1a', ('VV', 'VH', 'VV-VH'), 10.0, True)
    spot = Modality('spot', ('R', 'G', 'B'), 1.0, False)
    batch = {
        'image_s2': torch.randn(tiles, 40, 10, pixels, pixels),
        'dates_s2': torch.arange(17_800, 18_200, 10).repeat(tiles, 1),
        'image_s1a': torch.randn(tiles, 50, 3, pixels, pixels),
        'dates_s1a': torch.arange(17_800, 18_150, 7).repeat(tiles, 1),
        'image_spot': torch.randn(tiles, 3, 10 * pixels, 10 * pixels),
        'dates_spot': torch.zeros(tiles, 1, dtype=torch.int64),
    }
    batch |= {
        key.replace('dates', 'valid'): torch.ones_like(batch[key], dtype=torch.bool)
        for key in list(batch)
        if 'dates' in key
    }
    return {m.name: m for m in (s2, s1a, spot)}, batch


def _prepared(model: Any, training: bool, forward: Callable[[], Any], classes: int = 20) -> Callable[[], None]:
    """Inference, or a training step, of what *forward* calls."""
    import torch

    model.train(training)
    optimizer = torch.optim.AdamW(model.parameters())
    mask = torch.randint(classes, (1, 128, 128))

    def inference() -> None:
        with torch.inference_mode():
            forward()

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(forward(), mask).backward()
        optimizer.step()

    return step if training else inference


def utae(training: bool) -> Callable[[], None]:
    """U-TAE as it was published, on S2."""
    from torchgeo_omnisat.models import UTAE

    _, batch = pastis_hd_tile()
    model = UTAE(published=True)
    return _prepared(model, training, lambda: model(batch['image_s2'], batch['dates_s2'], batch['valid_s2']))


def segmenter(builder: str) -> Callable[[], None]:
    """Return inference of an OmniSat with its decoder on the whole tile."""
    from torchgeo_omnisat import models

    modalities, batch = pastis_hd_tile()
    backbone = getattr(models, builder)(modalities)
    model = models.OmniSatSegmenter(backbone, num_classes=20, width=48, experts=True)  # as in the task by default
    return _prepared(model, False, lambda: model(batch))


def training(builder: str) -> Callable[[], None]:
    """Return a default training step of the task on the whole tile: with all and with some modalities."""
    import torch

    from torchgeo_omnisat.tasks import OmniSatSegmentation

    modalities, batch = pastis_hd_tile()
    batch['mask'] = torch.randint(20, (1, 128, 128))
    task = OmniSatSegmentation(builder, modalities=modalities, num_classes=20, patch_size=40.0, label_gsd=10.0).train()
    optimizer = torch.optim.AdamW(task.parameters())

    def step() -> None:
        optimizer.zero_grad()
        task.learn(batch)[1].backward()
        optimizer.step()

    return step


def series(dates: int) -> Callable[[], None]:
    """Return a training step on a time series of *dates* dates."""
    import torch

    from torchgeo_omnisat import models

    modalities, _ = pastis_hd_tile(16)
    model = models.OmniSatSegmenter(models.omnisat_base({'s2': modalities['s2']}), num_classes=20)
    batch = {
        'image_s2': torch.randn(1, dates, 10, 128, 128),
        'dates_s2': 17_800 + torch.arange(dates)[None] * 3,
        'valid_s2': torch.ones(1, dates, dtype=torch.bool),
    }
    return _prepared(model, True, lambda: model(batch))


def pretraining() -> Callable[[], None]:
    """Return a step of both contrastive losses and reconstruction, on two tiles of half the side."""
    import torch

    from torchgeo_omnisat.tasks import OmniSatPretraining

    modalities, batch = pastis_hd_tile(64, 2)
    task = OmniSatPretraining('omnisat_small', modalities=modalities, patch_size=40.0).train()
    optimizer = torch.optim.AdamW(task.parameters())

    def step() -> None:
        optimizer.zero_grad()
        task.compute(batch, 'train', 0)[0].backward()
        optimizer.step()

    return step


def loading() -> Callable[[], None]:
    """Read and collate a tile, another one each time."""
    from itertools import cycle

    from torchgeo_omnisat.datamodules import SyntheticLandscapesDataModule

    folder = tempfile.TemporaryDirectory()
    told = {'num_tiles': 5, 'size': 128, 'dates': (40, 40), 'modalities': ('s2', 's1a', 'spot')}
    data = SyntheticLandscapesDataModule(root=folder.name, batch_size=1, **told)
    data.prepare_data()
    data.setup('fit')
    indices = cycle(range(len(data.train_dataset)))

    def run(folder: Any = folder) -> None:
        data.collate_fn([data.train_dataset[next(indices)]])

    return run


def measure(row: Row, repeats: int, threads: int) -> dict[str, Any]:
    """Run one row in this process."""
    import torch

    warnings.filterwarnings('ignore')  # a task without a trainer cannot log
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    run = globals()[row.case](*row.args)
    run()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    conv, images = torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(40, 64, 128, 128)

    def yardstick() -> None:
        with torch.inference_mode():
            conv(images)

    yardstick()
    idle = max(0, (os.cpu_count() or 1) - threads)
    return summary(rounds(run, yardstick, repeats, idle), row.samples, idle) | {'GB': memory}


def rounds(
    run: Callable[[], None], yardstick: Callable[[], None], repeats: int, idle: int = 0
) -> list[tuple[Spent, Spent]]:
    """Time a run and a yardstick in turn, and repeat disturbed rounds."""

    def disturbance(pair: tuple[Spent, Spent]) -> float:
        return _disturbance(pair, idle)

    kept = [(spent(run), spent(yardstick)) for _ in range(repeats)]
    for _ in range((ATTEMPTS - 1) * repeats):
        if max(map(disturbance, kept)) <= DISTURBED:
            break
        kept = sorted([*kept, (spent(run), spent(yardstick))], key=disturbance)[:repeats]
    return kept


def spent(run: Callable[[], None]) -> Spent:
    """Run a function and return the time that it took."""
    before, start = _clocks(), time.perf_counter()
    run()
    wall = time.perf_counter() - start
    user, system, busy, stolen = (after - earlier for after, earlier in zip(_clocks(), before, strict=True))
    return Spent(wall, user, system, max(0.0, busy - user - system), stolen)


def _clocks() -> tuple[float, float, float, float]:
    """User and system time of this process, and busy and stolen time of the machine, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    try:
        ticks = [int(word) for word in Path('/proc/stat').read_text().split('\n', 1)[0].split()[1:9]]
    except OSError:
        return usage.ru_utime, usage.ru_stime, 0.0, 0.0
    user, nice, system, _, _, irq, softirq, stolen = (tick / os.sysconf('SC_CLK_TCK') for tick in ticks)
    return usage.ru_utime, usage.ru_stime, user + nice + system + irq + softirq, stolen


def _disturbance(pair: tuple[Spent, Spent], idle: int) -> float:
    return max(call.disturbance(idle) for call in pair)


def summary(pairs: Sequence[tuple[Spent, Spent]], samples: int = 1, idle: int = 0) -> dict[str, Any]:
    """Return medians over rounds of a run and a yardstick.

    Args:
        pairs: Times of each run and its yardstick.
        samples: Samples of a run.
        idle: Cores that no thread needs.

    Returns:
        Wall time ``Y`` and processor time ``processor Y`` in yardsticks, cores used by the run by kind, the number of
        disturbed rounds that are left, and all ratios of wall times.
    """
    ratios = [run.wall / yardstick.wall / samples for run, yardstick in pairs]
    return {
        'Y': statistics.median(ratios),
        'processor Y': statistics.median(run.processor / yardstick.processor / samples for run, yardstick in pairs),
        'cores': {
            kind: statistics.median(getattr(run, kind) / run.wall for run, _ in pairs)
            for kind in ('user', 'system', 'others', 'stolen')
        },
        'disturbed': sum(_disturbance(pair, idle) > DISTURBED for pair in pairs),
        'ratios': ratios,
    }


def milliseconds(code: str, repeats: int, before: str = 'pass') -> float:
    """Median time that a statement takes in a fresh process, after another that is not timed; bytecode is cached."""
    timed = f'import time; {before}; start = time.perf_counter(); {code}; print(time.perf_counter() - start)'
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONDONTWRITEBYTECODE'}
    environment['TORCH_DEVICE_BACKEND_AUTOLOAD'] = '0'
    runs = [
        subprocess.run([sys.executable, '-c', timed], check=True, capture_output=True, text=True, env=environment)
        for _ in range(repeats + 1)
    ]
    return 1000 * statistics.median(float(run.stdout.splitlines()[-1]) for run in runs[1:])


def derived(name: str, results: dict[str, dict[str, Any]], repeats: int) -> dict[str, float] | None:
    """Return a row derived from other rows or without a yardstick; None if the other rows are missing."""
    if name.startswith('import'):
        return {'ms': milliseconds('import torchgeo_omnisat', repeats)}
    if name.startswith('the hook'):
        hook = 'from torchgeo_omnisat._autoload import install; install()'
        return {'ms': milliseconds(hook, repeats, 'import torch')}
    peaks = [results[row]['GB'] for row in results if 'S2 alone' in row]
    return {'MB': 1000 * (peaks[-1] - peaks[0]) / 80} if len(peaks) == 3 else None


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown, with the published costs and the limits."""
    lines = [
        '| one PASTIS-HD tile (S2 T 40, S1A T 50, SPOT 1280 px) | measured | published | at most | | cores |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for name, result in results.items():
        bounds = ROWS[name].bounds
        held = all(result.get(unit, float('inf')) <= most for unit, most in bounds.items())
        measured = ', '.join(f'{value:.3g} {unit}' for unit, value in result.items() if unit not in HIDDEN)
        most = ', '.join(f'{value:g} {unit}' for unit, value in bounds.items())
        verdict = ('pass' if held else 'FAIL') if bounds else ''
        cores = ', '.join(f'{kind} {value:.2f}' for kind, value in result.get('cores', {}).items())
        if result.get('disturbed'):
            cores += f' ({result["disturbed"]} of {len(result["ratios"])} disturbed)'
        lines.append(f'| {name} | {measured} | {ROWS[name].published} | {most} | {verdict} | {cores} |')
    return '\n'.join(lines)


def main() -> None:
    """Run the rows one after the other, each in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', default='', help='run the rows whose name contains this')
    parser.add_argument('--repeats', type=int, default=5, help='repetitions, each paired with a yardstick')
    parser.add_argument('--threads', type=int, default=min(2, os.cpu_count() or 1), help='threads of PyTorch')
    parser.add_argument('--output', type=Path, default=HERE / 'results' / 'speed.json')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(ROWS[args.one], args.repeats, args.threads)))
        return
    results: dict[str, dict[str, Any]] = {}
    for name in (name for name in ROWS if args.rows in name):
        if not ROWS[name].case:
            found = derived(name, results, args.repeats)
        else:
            words = [__file__, '--one', name, '--repeats', str(args.repeats), '--threads', str(args.threads)]
            done = subprocess.run([sys.executable, *words], check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
        step = results.get('omnisat_small training step')
        if found and ROWS[name].case == 'loading' and step:
            found = {'steps of omnisat_small': found['Y'] / step['Y'], **found}
        if found:
            results[name] = found
            print(f'{name}: { {k: v for k, v in found.items() if k not in HIDDEN} }', file=sys.stderr)
    machine = {
        'processor': platform.processor() or platform.machine(),
        'cores': os.cpu_count(),
        'threads': args.threads,
    }
    versions = {name: version(name) for name in ('torch', 'torchgeo', 'timm')}
    from torchgeo_omnisat.utils.atomic import atomic_file

    with atomic_file(args.output) as temporary:
        temporary.write_text(json.dumps({'machine': machine, 'versions': versions, 'rows': results}, indent=1) + '\n')
    print(table(results))


if __name__ == '__main__':
    main()
