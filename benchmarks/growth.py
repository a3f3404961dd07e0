# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""How a training step grows: time and peak memory over tile size, dates, modalities and batch.

Every point is a step of ``omnisat_small`` in a process of its own. Time is the processor's, of
all threads, the median of steps that are each divided by a yardstick (``speed.py``) of their
own, so that other work on the machine hardly shows; the allocator keeps its memory, for what
the kernel takes to hand out fresh pages is no part of the model. Memory is the peak of the
process less what it had before the first step.

    python benchmarks/growth.py                  # results/growth.json, .csv and .png
    python benchmarks/growth.py --axes dates     # one of the four, printed alone
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torchgeo_omnisat.utils.atomic import atomic_file

HERE = Path(__file__).parent


class Step(NamedTuple):
    """What a training step is given.

    Attributes:
        pixels: Pixels of 10 m along the side of a tile.
        dates: Dates of a series.
        modalities: Number of series, each of ten bands.
        batch: Number of tiles.
    """

    pixels: int = 64
    dates: int = 10
    modalities: int = 1
    batch: int = 1


#: What is varied: its unit, the points, and the size that the fit is over.
AXES: dict[str, tuple[str, list[Step], Callable[[Step], float]]] = {
    'tile size': ('thousand pixels', [Step(p) for p in (32, 64, 96, 128, 192, 256)], lambda s: s.pixels**2 / 1000),
    'dates': ('dates', [Step(dates=t) for t in (5, 10, 20, 40, 80)], lambda s: s.dates),
    'modalities': ('series', [Step(modalities=m) for m in (1, 2, 3, 4)], lambda s: s.modalities),
    'batch': ('tiles', [Step(batch=b) for b in (1, 2, 4, 8)], lambda s: s.batch),
}
#: Keeps freed memory in the process, and threads from counting while they wait.
TOLD = {
    'MALLOC_MMAP_THRESHOLD_': str(2**32),
    'MALLOC_TRIM_THRESHOLD_': str(2**34),
    'OMP_WAIT_POLICY': 'passive',
    'GOMP_SPINCOUNT': '0',
}


def attention_share(step: Step, dim: int = 128, depth: int = 2) -> float:
    """Operations of the attention over the ground, in those of the yardstick: quadratic in the patches."""
    patches = (step.pixels / 4) ** 2
    return 3 * depth * step.batch * 4 * patches**2 * dim / 48e9


def measure(step: Step, repeats: int, threads: int) -> dict[str, float]:
    """Time and memory of one point, in this process."""
    import torch

    from torchgeo_omnisat import Modality
    from torchgeo_omnisat.models import OmniSatSegmenter, omnisat_small

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    names = [f's2_{index}' for index in range(step.modalities)]
    bands = tuple(f'B{index}' for index in range(10))
    model = OmniSatSegmenter(omnisat_small([Modality(name, bands, 10.0, True) for name in names]), num_classes=20)
    optimizer = torch.optim.AdamW(model.parameters())
    shape = step.batch, step.dates
    batch = {f'image_{name}': torch.randn(*shape, 10, step.pixels, step.pixels) for name in names}
    batch |= {f'dates_{name}': 17_800 + 5 * torch.arange(step.dates).repeat(step.batch, 1) for name in names}
    batch |= {f'valid_{name}': torch.ones(shape, dtype=torch.bool) for name in names}
    mask = torch.randint(20, (step.batch, step.pixels, step.pixels))

    def run() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), mask).backward()
        optimizer.step()

    before = peak()
    run()
    memory = peak() - before
    conv, images = torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(10, 64, 128, 128)

    def yardstick() -> None:
        with torch.inference_mode():
            conv(images)

    yardstick()
    ratios = [processor(run) / (4 * processor(yardstick)) for _ in range(repeats)]
    return {'Y': statistics.median(ratios), 'MB': memory, 'attention Y': attention_share(step)}


def peak() -> float:
    """Most memory that the process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def processor(run: Callable[[], None]) -> float:
    """Seconds that all threads together were at work."""
    start = time.process_time()
    run()
    return time.process_time() - start


def fit(sizes: list[float], costs: list[float]) -> dict[str, float]:
    """Fit the constant cost of a step and the exponent of the rest by least squares of relative errors."""
    x, y = np.array(sizes), np.array(costs)
    found = []
    for exponent in np.arange(0.5, 2.001, 0.01):
        for powers in ([np.ones_like(x), x**exponent], [np.zeros_like(x), x**exponent]):
            solved, *_ = np.linalg.lstsq(np.stack(powers, 1) / y[:, None], np.ones_like(y), rcond=None)
            error = np.square(np.stack(powers, 1) @ solved / y - 1).sum()
            if solved[0] >= 0:
                found.append((float(error), {'constant': float(solved[0]), 'exponent': round(float(exponent), 2)}))
    return min(found, key=lambda pair: pair[0])[1]


def draw(rows: list[dict[str, Any]], exponents: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot one panel per axis: time on the left in blue, memory on the right in orange."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(exponents), figsize=(11, 2.9), layout='constrained')
    for panel, axis in zip(np.atleast_1d(panels), exponents, strict=True):
        points = [row for row in rows if row['axis'] == axis]
        sizes = [row['size'] for row in points]
        right = panel.twinx()
        for side, unit, colour, mark in ((panel, 'Y', '#0072B2', 'o-'), (right, 'MB', '#D55E00', 's--')):
            side.plot(sizes, [row[unit] for row in points], mark, color=colour, markersize=4, linewidth=1.2)
            side.set_ylim(bottom=0)
            side.tick_params(axis='y', colors=colour, labelsize=7)
        panel.tick_params(axis='x', labelsize=7)
        panel.set_xlim(left=0)
        panel.set_xlabel(AXES[axis][0], fontsize=8)
        title = [axis] + [f'{name}: {law(exponents[axis][u], u)}' for name, u in (('time', 'Y'), ('memory', 'MB'))]
        panel.set_title('\n'.join(title), fontsize=8)
        first, last = axis == next(iter(exponents)), axis == list(exponents)[-1]
        panel.set_ylabel('time of a step (Y)' if first else '', fontsize=8, color='#0072B2')
        right.set_ylabel('memory of a step (MB)' if last else '', fontsize=8, color='#D55E00')
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format='png')
    plt.close(figure)


def law(found: dict[str, float], unit: str) -> str:
    """Return a fitted law in the notation of matplotlib."""
    return f'{found["constant"]:.2g} {unit} + $b\\,x^{{{found["exponent"]:.2f}}}$'


def main() -> None:
    """Measure every point, each in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--axes', nargs='+', choices=list(AXES), default=list(AXES))
    parser.add_argument('--repeats', type=int, default=5, help='steps, each paired with a yardstick')
    parser.add_argument('--threads', type=int, default=min(2, os.cpu_count() or 1), help='threads of PyTorch')
    parser.add_argument('--output', type=Path, default=HERE / 'results', help='folder of growth.json, .csv and .png')
    parser.add_argument('--draw', action='store_true', help='fit and draw again what growth.json holds')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(Step(*json.loads(args.one)), args.repeats, args.threads)))
        return
    rows, seen = [], {}
    if args.draw:
        rows = json.loads((args.output / 'growth.json').read_text())['rows']
    for axis in [] if args.draw else args.axes:
        for step in AXES[axis][1]:
            if step not in seen:
                told = ['--one', json.dumps(step), '--repeats', str(args.repeats), '--threads', str(args.threads)]
                words = [sys.executable, __file__, *told]
                done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | TOLD)
                seen[step] = json.loads(done.stdout.splitlines()[-1])
            rows.append({'axis': axis, 'size': AXES[axis][2](step), **step._asdict(), **seen[step]})
            print(rows[-1], file=sys.stderr)
    exponents = {}
    for axis in args.axes:
        points = [row for row in rows if row['axis'] == axis]
        sizes = [row['size'] for row in points]
        exponents[axis] = {unit: fit(sizes, [row[unit] for row in points]) for unit in ('Y', 'MB')}
        print(f'{axis}: {exponents[axis]}')
    if args.axes == list(AXES):
        save(rows, exponents, args.output, args.threads)


def save(rows: list[dict[str, Any]], exponents: dict[str, dict[str, Any]], folder: Path, threads: int) -> None:
    """Write numbers, table and figure."""
    machine = {'cores': os.cpu_count(), 'threads': threads, 'torch': version('torch')}
    with atomic_file(folder / 'growth.json') as path:
        path.write_text(json.dumps({'machine': machine, 'exponents': exponents, 'rows': rows}, indent=1) + '\n')
    with atomic_file(folder / 'growth.csv') as path, path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, exponents, folder / 'growth.png')


if __name__ == '__main__':
    main()
