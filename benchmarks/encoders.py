# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Processor time and peak memory of pre-trained encoders, in yardsticks.

A yardstick Y is that of ``speed.py``: the forward time of ``Conv2d(64, 64, 3, padding=1)`` on a
``(40, 64, 128, 128)`` tensor. Both times are processor times of one thread, which a loaded machine changes
less than wall times, and the minimum over the repetitions. An encoder runs alone, without fusion and decoder, on
random valid images of one sample, with random weights: a Sentinel-2 time series of 40 dates and 128 pixels, one
Sentinel-2 image of 128 pixels, or an aerial image of 512 pixels. Each encoder has a process of its own, which first
predicts, then takes a training step with frozen and then with trained weights. The memory is the peak of the process
after each, with 0.5 to 0.7 GB of imports. Pixel encoders are measured on 16 (Presto) or 4 (TESSERA) pixels a side, and
their times are multiplied by 64 or 1024.

    python benchmarks/encoders.py                    # all encoders, as a Markdown table and CSV
    python benchmarks/encoders.py --only resnet18    # encoders whose name contains this
    python benchmarks/encoders.py --smoke            # tiny images, to see that the script runs
"""

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BANDS = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')
#: Central wavelengths of the bands in nanometres.
NANOMETRES = (492.4, 559.8, 664.6, 704.1, 740.5, 782.8, 832.8, 864.7, 1613.7, 2202.4)
#: Foundation models of single images, measured on one date: a time series costs that for each valid date.
FOUNDATION = ('croma', 'deo', 'dofa', 'panopticon', 'copernicusfm')
#: Encoders by sensor; a timm or torchvision name has a file of random weights with the bands of the sensor.
ENCODERS: dict[str, dict[str, dict[str, Any]]] = {
    's2': {
        'ltae': {},
        'utae': {},
        'resnet18': {},
        'resnet50': {},
        'swin_v2_t': {},
        'vit_small_patch16_224': {},
        'presto': {'pretrained': False, 'cache_size': 0},
        'tessera': {'pretrained': False, 'cache_size': 0},
    },
    's2_image': {name: {'pretrained': False, 'units': 'standardised'} for name in FOUNDATION},
    'aerial': {
        'resnet18': {},
        'convnext_tiny': {},
        'vit_small_patch14_dinov2': {},
    },
}
#: Encoders of single pixels, and the side of the images that they are measured on.
PIXELS = {'presto': 16, 'tessera': 4}
FIELDS = ('sensor', 'encoder', 'mode', 'Y', 'GB')


def case(sensor: str, name: str, freeze: bool, size: int, dates: int) -> tuple[Any, tuple[Any, ...]]:
    """Return an encoder and its input."""
    import torch

    from torchgeo_omnisat import Modality
    from torchgeo_omnisat.models.encoders import build_encoders
    from torchgeo_omnisat.models.encoders.pretrained.images.backbone import make_body

    temporal = sensor == 's2'
    bands, gsd = (('R', 'G', 'B'), 0.2) if sensor == 'aerial' else (BANDS, 10.0)
    waves = NANOMETRES if bands == BANDS else None
    modality = Modality(sensor, bands, gsd, temporal, 'optical', 'dn', wavelengths=waves)
    spec: dict[str, Any] = {'name': name, **ENCODERS[sensor][name]}
    if name in (*PIXELS, *FOUNDATION):
        spec['freeze'] = freeze
    elif name not in ('ltae', 'utae'):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'weights.pth'
            torch.save(make_body(name, len(bands)).state_dict(), path)
            spec |= {'weights': str(path), 'bands': list(bands), 'freeze': freeze}
            (encoder,) = build_encoders({sensor: modality}, {sensor: spec}, (32, 64, 64, 128), (64,)).values()
    if name in (*PIXELS, *FOUNDATION, 'ltae', 'utae'):
        (encoder,) = build_encoders({sensor: modality}, {sensor: spec}, (32, 64, 64, 128), (64,)).values()
    if not temporal:
        return encoder, (torch.randn(1, len(bands), size, size), torch.ones(1, dtype=torch.bool))
    days = 17_800 + 9 * torch.arange(dates)[None]
    return encoder, (torch.randn(1, dates, len(bands), size, size), days, torch.ones(1, dates, dtype=torch.bool))


def processor_time(run: Callable[[], None]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(sensor: str, name: str, repeats: int, smoke: bool) -> list[dict[str, Any]]:
    """Measure an encoder in this process."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings('ignore', message='encoder of .* is frozen with random weights')
    size, dates = {'s2': (128, 40), 's2_image': (128, 1), 'aerial': (512, 1)}[sensor]
    scale = 1
    if name in PIXELS:
        size, scale = PIXELS[name], (128 // PIXELS[name]) ** 2
    if smoke:
        size, dates, scale, repeats = (16, 3, 1, 1) if sensor == 's2' else (56, 1, 1, 1)
    conv, images = torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(2 if smoke else 40, 64, 128, 128)

    def yardstick() -> None:
        with torch.inference_mode():
            conv(images)

    rows = []
    for mode, freeze in (('inference', True), ('step, frozen', True), ('step, trained', False)):
        if name in ('ltae', 'utae') and mode == 'step, frozen':
            continue
        encoder, inputs = case(sensor, name, freeze, size, dates)
        encoder.train(mode != 'inference')
        trained = [p for p in encoder.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained) if trained else None

        def run(mode: str = mode, encoder: Any = encoder, inputs: Any = inputs, optimizer: Any = optimizer) -> None:
            with torch.set_grad_enabled(mode != 'inference'):
                maps = encoder(*inputs)
            total = sum(x.square().mean() for x in maps)
            if mode != 'inference' and total.requires_grad:
                optimizer.zero_grad()
                total.backward()
                optimizer.step()

        run()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        pairs = [(processor_time(run), processor_time(yardstick)) for _ in range(repeats)]
        ratio = scale * min(own for own, _ in pairs) / min(unit for _, unit in pairs)
        rows.append({'sensor': sensor, 'encoder': name, 'mode': mode, 'Y': round(ratio, 3), 'GB': round(memory, 2)})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown, one line per encoder."""
    lines = ['| sensor | encoder | inference | training step, frozen | training step, trained |', '| --- ' * 5 + '|']
    for sensor, name in dict.fromkeys((row['sensor'], row['encoder']) for row in rows):
        own = [row for row in rows if (row['sensor'], row['encoder']) == (sensor, name)]
        found = {row['mode']: f'{float(row["Y"]):.3g} Y, {float(row["GB"]):.1f} GB' for row in own}
        cells = [found.get(mode, '') for mode in ('inference', 'step, frozen', 'step, trained')]
        lines.append(f'| {sensor} | `{name}` | {" | ".join(cells)} |')
    return '\n'.join(lines)


def main() -> None:
    """Measure each encoder in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='', help='encoders whose name contains this')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--smoke', action='store_true', help='tiny images and one repetition; nothing is saved')
    parser.add_argument('--output', type=Path, default=HERE / 'results' / 'encoders.csv')
    parser.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, args.repeats, args.smoke)))
        return
    rows: list[dict[str, Any]] = []
    for sensor, encoders in ENCODERS.items():
        for name in (name for name in encoders if args.only in name):
            words = [sys.executable, __file__, '--repeats', str(args.repeats), '--one', sensor, name]
            done = subprocess.run([*words, *['--smoke'] * args.smoke], check=True, stdout=subprocess.PIPE, text=True)
            rows += json.loads(done.stdout.splitlines()[-1])
            print(table(rows[-3:]).splitlines()[-1], file=sys.stderr, flush=True)
            if not args.smoke:
                save(args.output, rows)
    print(table(rows))


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows, and keep those of other encoders that the file has."""
    from torchgeo_omnisat.utils.atomic import atomic_file

    measured = {(row['sensor'], row['encoder']) for row in rows}
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline='') as file:
            kept = [row for row in csv.DictReader(file) if (row['sensor'], row['encoder']) not in measured]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, temporary.open('w', newline='') as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator='\n')
        writer.writeheader()
        writer.writerows([*kept, *rows])


if __name__ == '__main__':
    main()
