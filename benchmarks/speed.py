# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Time and memory on a PASTIS-HD tile, in yardsticks, beside the published models.

A yardstick Y is the forward time of ``Conv2d(64, 64, 3, padding=1)`` over a
``(40, 64, 128, 128)`` tensor (48 GFLOP) with the same threads. Every repetition is paired
with a yardstick of its own, and the median of the ratios counts, so that figures compare
between machines and hours. Every row runs in a process of its own; its memory is the peak
resident memory of that process, imports included. Input is random and all of it is valid.

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
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

#: Row: what is built, whether it trains, and the bounds in yardsticks and GB.
ROWS: dict[str, tuple[str, bool, float | None, float | None]] = {
    'omnisat_small inference': ('omnisat_small', False, 4.0, None),
    'omnisat_small training step': ('omnisat_small', True, None, None),
    'omnisat_base inference': ('omnisat_base', False, 10.0, 2.0),
    'omnisat_base training step': ('omnisat_base', True, None, None),
}

#: What the published OmniSat costs on the same tile (10.3 M parameters, 2 cores, float32).
PUBLISHED = {False: (29.0, 3.0), True: (235.0, 16.4)}


def pastis_hd_tile() -> tuple[dict, dict]:
    """Modalities and a random batch of one tile: S2 of 40 dates, S1A of 50, SPOT of 1280 pixels."""
    import torch

    from torchgeo_omnisat import Modality

    s2 = Modality('s2', ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12'), 10.0, True)
    s1a = Modality('s1a', ('VV', 'VH', 'VV-VH'), 10.0, True)
    spot = Modality('spot', ('R', 'G', 'B'), 1.0, False)
    batch = {
        'image_s2': torch.randn(1, 40, 10, 128, 128),
        'dates_s2': torch.arange(17_800, 18_200, 10)[None],
        'image_s1a': torch.randn(1, 50, 3, 128, 128),
        'dates_s1a': torch.arange(17_800, 18_150, 7)[None],
        'image_spot': torch.randn(1, 3, 1280, 1280),
        'dates_spot': torch.zeros(1, 1, dtype=torch.int64),
    }
    batch |= {
        key.replace('dates', 'valid'): torch.ones_like(batch[key], dtype=torch.bool)
        for key in list(batch)
        if 'dates' in key
    }
    return {m.name: m for m in (s2, s1a, spot)}, batch


def measure(builder: str, training: bool, repeats: int, threads: int) -> dict:
    """Run one row in this process."""
    import torch

    from torchgeo_omnisat import models

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    modalities, batch = pastis_hd_tile()
    model = models.OmniSatSegmenter(getattr(models, builder)(modalities), num_classes=20).train(training)
    optimizer = torch.optim.AdamW(model.parameters())
    mask = torch.randint(20, (1, 128, 128))

    def inference() -> None:
        with torch.inference_mode():
            model(batch)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), mask).backward()
        optimizer.step()

    run = step if training else inference
    run()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    conv, images = torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(40, 64, 128, 128)

    def yardstick() -> None:
        with torch.inference_mode():
            conv(images)

    yardstick()
    ratios = [seconds(run) / seconds(yardstick) for _ in range(repeats)]
    return {
        'yardsticks': statistics.median(ratios),
        'ratios': ratios,
        'gigabytes': memory,
        'parameters': sum(p.numel() for p in model.parameters()),
    }


def seconds(run: Callable[[], None]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table(results: dict[str, dict]) -> str:
    """The results as Markdown, beside the published costs and the bounds."""
    lines = [
        '| one PASTIS-HD tile (S2 T 40, S1A T 50, SPOT 1280 px) | parameters | time | peak memory '
        '| published OmniSat | bound |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for name, result in results.items():
        _, training, most_time, most_memory = ROWS[name]
        time_published, memory_published = PUBLISHED[training]
        bounds = [f'{most_time:g} Y' if most_time else '', f'{most_memory:g} GB' if most_memory else '']
        held = result['yardsticks'] <= (most_time or 1e9) and result['gigabytes'] <= (most_memory or 1e9)
        verdict = ', '.join(filter(None, bounds)) + (': pass' if held else ': FAIL') if any(bounds) else ''
        lines.append(
            f'| {name} | {result["parameters"] / 1e6:.1f} M '
            f'| {result["yardsticks"]:.1f} Y | {result["gigabytes"]:.1f} GB '
            f'| {time_published:g} Y, {memory_published:g} GB | {verdict} |'
        )
    return '\n'.join(lines)


def main() -> None:
    """Run the rows one after the other, each in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', default='', help='run the rows whose name contains this')
    parser.add_argument('--repeats', type=int, default=5, help='repetitions, each paired with a yardstick')
    parser.add_argument('--threads', type=int, default=min(2, os.cpu_count() or 1), help='threads of PyTorch')
    parser.add_argument('--output', type=Path, default=Path('benchmarks/results/speed.json'))
    parser.add_argument('--one', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        builder, training, *_ = ROWS[args.one]
        print(json.dumps(measure(builder, training, args.repeats, args.threads)))
        return
    results = {}
    for name in (name for name in ROWS if args.rows in name):
        command = [
            sys.executable,
            __file__,
            '--one',
            name,
            '--repeats',
            str(args.repeats),
            '--threads',
            str(args.threads),
        ]
        results[name] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
        print(f'{name}: {results[name]["yardsticks"]:.2f} Y, {results[name]["gigabytes"]:.2f} GB', file=sys.stderr)
    machine = {
        'processor': platform.processor() or platform.machine(),
        'cores': os.cpu_count(),
        'threads': args.threads,
    }
    versions = {name: version(name) for name in ('torch', 'torchgeo', 'timm')}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_suffix('.tmp')
    temporary.write_text(json.dumps({'machine': machine, 'versions': versions, 'rows': results}, indent=1) + '\n')
    temporary.replace(args.output)
    print(table(results))


if __name__ == '__main__':
    main()
