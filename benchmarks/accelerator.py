# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Training steps on an accelerator: speed, memory, utilisation, and agreement with the CPU.

Tiles of the size of PASTIS-HD (S2 of 40 dates, S1A of 50, SPOT) are drawn on the device; nothing is read or downloaded.
Each row is a process of its own, and doubles the batch until the memory or the seconds of the row end. Compiled rows
use the fastest batch of the same row without compilation. Rows that the deadline leaves out are listed as 'not run'.

- Tiles a second: steps with backward pass and AdamW, between two synchronisations.
- Memory: peak of the allocator of the device; on the CPU, peak resident memory of the process.
- Utilisation: operations of the step, counted by PyTorch without compilation, over time and peak rate. The peak is that
  of dense bfloat16 products for all rows: from --peak-tflops, from PEAKS, or else measured with a matrix product.
- Idle: share of a profiled span in which no operation ran on the device, so that it waited for the host. The profiler
  slows the host, so it is an upper bound. On the CPU, it is time outside of PyTorch's operations.
- Agreement: norm of the difference to float32 on the CPU over its norm, for the loss, outputs and all gradients of one
  step with random weights. At most 1e-3 in float32, without TF32. In bf16 at most 2e-2, or twice the difference of
  bf16 on the CPU where that is larger; a limit above 1 is not conclusive.

Tests with the marker `gpu` run before the compiled rows. The exit status is 1 if a row, an agreement or a test failed.

    python benchmarks/accelerator.py                        # a GPU, at most eight minutes
    python benchmarks/accelerator.py --resume               # keep what is done, and run the rest
    python benchmarks/accelerator.py --device cpu --quick   # the same code on small tiles
"""

import argparse
import json
import multiprocessing
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from speed import pastis_hd_tile
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from torchgeo_omnisat.models.compiling import compile_regions
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.utils.atomic import atomic_file

HERE = Path(__file__).parent
TESTS = HERE.parent / 'tests'
#: TFLOP/s of dense bfloat16 products by the exact name of the card, from NVIDIA's data sheets, which print twice the
#: rate ('with sparsity') for those after the A100.
PEAKS = {
    'NVIDIA A10': 125.0,
    'NVIDIA A100-PCIE-40GB': 312.0,
    'NVIDIA A100-SXM4-40GB': 312.0,
    'NVIDIA A100 80GB PCIe': 312.0,
    'NVIDIA A100-SXM4-80GB': 312.0,
    'NVIDIA L4': 121.0,
    'NVIDIA H100 PCIe': 756.0,
    'NVIDIA H100 80GB HBM3': 989.5,
    'NVIDIA H200': 989.5,
}
DTYPES = {'float32': torch.float32, 'bf16': torch.bfloat16}
#: What is compared with the CPU.
PARTS = ('loss', 'output', 'gradient')
#: Largest relative difference to float32 on the CPU.
TOLERANCES = {'float32': 1e-3, 'bf16': 2e-2}
TRAININGS = ('fine-tuning', 'pre-training')
NOT_RUN = 'not run'
#: Modules that each process needs.
PRELOADED = ('torchgeo_omnisat.tasks.pretraining', 'torchgeo_omnisat.tasks.segmentation')
#: Begins the messages of errors of CUDA libraries without memory that are no OutOfMemoryError.
NO_MEMORY = ('CUBLAS_STATUS_ALLOC_FAILED', 'CUDNN_STATUS_ALLOC_FAILED', 'out of memory')


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        training: 'fine-tuning' or 'pre-training'.
        size: Size of the backbone.
        precision: Key of DTYPES; bf16 is autocast.
        compiled: Whether the layers are compiled, as by ``--model.compile true``.
    """

    training: str
    size: str
    precision: str
    compiled: bool

    @property
    def name(self) -> str:
        """Name in the JSON file."""
        return f'{self.training} {self.size} {self.precision} {"compiled" if self.compiled else "eager"}'


class Setting(NamedTuple):
    """What all rows share.

    Attributes:
        device: Type of the device.
        pixels: Side of a tile in pixels of 10 m.
        dates: Most dates of a time series.
        largest: Most tiles of a batch.
        span: Least seconds that are timed.
        backend: Backend of torch.compile.
        threads: Threads of the CPU, 0 for PyTorch's choice.
    """

    device: str
    pixels: int
    dates: int
    largest: int
    span: float
    backend: str
    threads: int


def rows(quick: bool) -> list[Row]:
    """Return the rows in the order in which they run: those that may not end in time are the last."""
    if quick:
        return [
            Row('fine-tuning', 'tiny', 'bf16', False),
            Row('fine-tuning', 'tiny', 'float32', False),
            Row('pre-training', 'tiny', 'float32', False),
            Row('fine-tuning', 'tiny', 'float32', True),
        ]
    return [
        Row(training, size, precision, compiled)
        for compiled in (False, True)
        for precision in ('bf16', 'float32')
        for size in ('small', 'base', 'tiny')
        for training in TRAININGS
    ]


def prepare(row: Row, tiles: int, setting: Setting, device: str, dropout: bool = True) -> tuple[Any, dict[str, Tensor]]:
    """Return the task of a row, and a random batch, all valid.

    Pre-training drops no modality. Fine-tuning trains on all and on some modalities, as by default, which takes a
    second pass through the decoder; without *dropout* it does not, because devices draw other modalities.
    """
    torch.manual_seed(0)
    with torch.device(device):
        modalities, batch = pastis_hd_tile(setting.pixels, tiles)
        batch['mask'] = torch.randint(20, (tiles, setting.pixels, setting.pixels))
    for name in ('s2', 's1a'):
        for kind in ('image', 'dates', 'valid'):
            batch[f'{kind}_{name}'] = batch[f'{kind}_{name}'][:, : setting.dates].contiguous()
    torch.manual_seed(0)
    told: dict[str, Any] = {'modalities': modalities, 'patch_size': 40.0}
    if row.training == 'pre-training' or not dropout:
        told['modality_dropout'] = 0.0
    if row.training == 'pre-training':
        task: Any = OmniSatPretraining(f'omnisat_{row.size}', **told)
    else:
        task = OmniSatSegmentation(f'omnisat_{row.size}', num_classes=20, label_gsd=10.0, **told)
    return task.to(device), batch


def loss_of(task: Any, batch: Mapping[str, Tensor], row: Row, device: str) -> Tensor:
    """Return the loss of a training step, whose metrics need a trainer and are left out.

    Flags are new tensors in each step, as from a loader, because the model reads those of one batch only once.
    """
    fresh = {key: value.clone() if key.startswith('valid') else value for key, value in batch.items()}
    with torch.autocast(device, torch.bfloat16, enabled=row.precision == 'bf16'):
        loss: Tensor
        loss = task.compute(fresh, 'train', 0)[0] if row.training == 'pre-training' else task.learn(fresh)[1]
    return loss


def synchronise(device: str) -> None:
    """Wait until the device has done its work."""
    if device != 'cpu':
        getattr(torch, device).synchronize()


def seconds(run: Callable[[], object], least: float, device: str) -> float:
    """Return the mean seconds of a call, over at least *least* seconds and two calls."""
    synchronise(device)
    start, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - start < least:
        run()
        count += 1
        synchronise(device)
    return (time.perf_counter() - start) / count


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, end = 0.0, float('-inf')
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total


def idle(run: Callable[[], object], device: str, steps: int = 1) -> float | None:
    """Return the share of time without an operation on the device; None if the profiler records no operation."""
    kind, activity = (DeviceType.CPU, ProfilerActivity.CPU)
    if device == 'cuda':
        kind, activity = (DeviceType.CUDA, ProfilerActivity.CUDA)
    synchronise(device)
    with profile(activities=[activity]) as recorded:
        start = time.perf_counter()
        for _ in range(steps):
            run()
        synchronise(device)
        wall = time.perf_counter() - start
    # A range that a program names, such as the step of the optimiser, spans its gaps.
    named = ('Optimizer.', 'ProfilerStep', 'autograd::', 'Torch-Compiled Region', '## Call CompiledFxGraph')
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in recorded.events()
        if event.device_type == kind and not event.name.startswith(named)
    ]
    return max(0.0, 1 - covered(spans) / 1e6 / wall) if spans else None


def peak_memory(device: str) -> float:
    """Return the peak memory in GB."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def lacks_memory(error: RuntimeError) -> bool:
    """Return whether an error says that the device has no more memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in NO_MEMORY)


def measure(row: Row, setting: Setting, batch_size: int | None, send: Callable[[dict[str, Any]], None]) -> None:
    """Send the results of each batch size; ``{'largest': n}`` says that n tiles fit and twice as many do not.

    Args:
        row: Row of the table.
        setting: What all rows share.
        batch_size: Tiles of the only batch, None for doubling batches.
        send: Function that receives the results.
    """
    device = setting.device
    least = 2 if row.training == 'pre-training' else 1  # contrast needs two tiles
    size, most = (batch_size or least), (batch_size or setting.largest)
    while size <= most:
        try:
            found = measure_batch(row, setting, size)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            send({'largest': size // 2 if batch_size is None and size > least else 0})
            return
        send({'batch': size, **found})
        size *= 2
        if device == 'cuda':
            torch.cuda.empty_cache()


def measure_batch(row: Row, setting: Setting, tiles: int) -> dict[str, Any]:
    """Return the results of one batch size."""
    device = setting.device
    task, batch = prepare(row, tiles, setting, device)
    task.train()
    optimizer = torch.optim.AdamW(task.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss_of(task, batch, row, device).backward()
        optimizer.step()

    with FlopCounterMode(display=False) as flops:
        step()
    begin = time.perf_counter()
    if row.compiled:
        compile_regions(task.model, setting.backend)
    step()
    synchronise(device)
    first = time.perf_counter() - begin
    if device == 'cuda':  # neither the step without compilation nor compilation itself counts
        torch.cuda.reset_peak_memory_stats()
    mean = seconds(step, setting.span, device)
    return {
        'tiles/s': tiles / mean,
        'TFLOP/tile': flops.get_total_flops() / 1e12 / tiles,
        'TFLOP/s': flops.get_total_flops() / 1e12 / mean,
        'GB': peak_memory(device),
        'idle': idle(step, device),
        'first step, s': first,
    }


def agreement(row: Row, setting: Setting) -> dict[str, Any]:
    """Return relative differences of one step to float32 on the CPU."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    task, batch = prepare(row, 2, setting, 'cpu', dropout=False)
    task.eval()
    results = []
    for device, precision in (('cpu', 'float32'), ('cpu', row.precision), (setting.device, row.precision)):
        task.zero_grad()
        task.to(device)
        moved = {key: value.to(device) for key, value in batch.items()}
        with torch.autocast(device, torch.bfloat16, enabled=precision == 'bf16'), torch.no_grad():
            output = task.model.backbone(moved).fused if row.training == 'pre-training' else task(moved)
        loss = loss_of(task, moved, row._replace(precision=precision), device)
        loss.backward()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in task.parameters()]
        found = {'loss': loss.detach(), 'output': output, 'gradient': torch.cat([x.flatten() for x in gradients])}
        results.append({key: value.double().cpu() for key, value in found.items()})
    reference, same, ours = results
    least = TOLERANCES[row.precision]
    cpu = {key: difference(same[key], reference[key]) for key in PARTS}
    return {
        **{key: difference(ours[key], reference[key]) for key in PARTS},
        'CPU': cpu,
        'limits': {key: least if row.precision == 'float32' else max(least, 2 * cpu[key]) for key in PARTS},
    }


def difference(ours: Tensor, reference: Tensor) -> float:
    """Return the norm of the difference over that of the reference."""
    return float((ours - reference).norm() / reference.norm())


def agrees(found: Mapping[str, Any]) -> bool:
    """Return whether all differences are within their limits; NaN is not."""
    return all(found[key] <= found['limits'][key] for key in PARTS)


def about(setting: Setting) -> dict[str, Any]:
    """Return the name of the device, and the rate of a matrix product on it in TFLOP/s."""
    device, side = setting.device, 8192 if setting.device == 'cuda' else 512
    rates = {}
    for name, dtype in DTYPES.items():
        a = torch.randn(side, side, device=device, dtype=dtype)
        torch.mm(a, a)
        rates[name] = 2 * side**3 / seconds(lambda a=a: torch.mm(a, a), setting.span / 4, device) / 1e12
    found: dict[str, Any] = {'name': platform.processor() or platform.machine(), 'product, TFLOP/s': rates}
    if device == 'cuda':
        properties = torch.cuda.get_device_properties(0)
        found |= {'name': properties.name, 'GB': properties.total_memory / 1e9, 'CUDA': torch.version.cuda}
    return found


def gpu_tests(limit: float) -> dict[str, Any]:
    """Run the tests with the marker ``gpu`` and return their numbers."""
    marked = re.compile(r'mark\.gpu|\bDEVICES\b')
    files = sorted(str(path) for path in TESTS.rglob('test_*.py') if marked.search(path.read_text()))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report.xml'
        words = [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', '-p', 'no:cacheprovider', f'--junitxml={report}']
        words += ['-k', 'not compiled']  # rows of the table compile
        try:
            done = subprocess.run([*words, *files], cwd=HERE.parent, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {'status': f'no result after {limit:.0f} s'}
        if not report.exists():
            return {'status': f'pytest failed: {(done.stdout + done.stderr)[-500:]}'}
        suite = ElementTree.parse(report).getroot().find('testsuite')
    assert suite is not None
    counts = {name: int(suite.get(name, 0)) for name in ('tests', 'failures', 'errors', 'skipped')}
    bad = counts['failures'] + counts['errors']
    return {'status': done.stdout[-2000:] if bad or done.returncode else 'done', **counts}


def _child(connection: Connection, threads: int, function: Callable[..., Any], *args: Any) -> None:
    warnings.filterwarnings('ignore')  # a task without a trainer cannot log
    if threads:
        torch.set_num_threads(threads)
    try:
        if function is measure:
            measure(*args, connection.send)
        else:
            connection.send(function(*args))
    except Exception as error:
        traceback.print_exc()
        connection.send({'error': f'{type(error).__name__}: {error}'.splitlines()[0][:200]})
    connection.send(None)


def apart(limit: float, threads: int, function: Callable[..., Any], *args: Any) -> tuple[list[dict[str, Any]], bool]:
    """Call a function in a process of its own; return what it sends in *limit* seconds, and whether it ended."""
    context = multiprocessing.get_context('forkserver')  # the server imports once, without using the device
    context.set_forkserver_preload(['torch.profiler', 'torch.utils.flop_counter', *PRELOADED])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, threads, function, *args), daemon=False)
    found, end = [], time.monotonic() + limit
    process.start()
    theirs.close()
    ended = False
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            message = ours.recv()
            if message is None:
                ended = True
                break
            found.append(message)
    except EOFError:
        process.join()
        found.append({'error': f'the process ended with status {process.exitcode}'})
        ended = True
    finally:
        if not ended:
            process.kill()
        process.join()
    return found, ended


def summary(found: list[dict[str, Any]], ended: bool) -> dict[str, Any]:
    """Return the result of a row: all batches, the fastest, and the largest that fits."""
    batches = [result for result in found if 'batch' in result]
    errors = [result['error'] for result in found if 'error' in result]
    limits = [result['largest'] for result in found if 'largest' in result]
    if not batches:
        status = errors[0] if errors else 'out of memory' if limits else 'no result in time'
        return {'status': 'error' if errors else NOT_RUN, 'reason': status, 'batches': []}
    fits = max(result['batch'] for result in batches)
    why = 'error' if errors else 'memory' if limits else 'limit of the batch' if ended else 'time'
    return {
        'status': 'error' if errors else 'done',
        'reason': errors[0] if errors else '',
        'best': max(batches, key=lambda result: result['tiles/s']),
        'largest batch': fits,
        'largest batch, ended by': why,
        'batches': batches,
    }


def table(results: Mapping[str, Any]) -> str:
    """Return the results in Markdown."""
    peak, device = results['peak'], results['device']
    lines = [
        f'{device["name"]}, torch {results["versions"]["torch"]}, {results["tile"]}. Peak rate: '
        + (f'{peak["TFLOP/s"]:.4g} TFLOP/s ({peak["source"]}).' if peak else f'{NOT_RUN}.'),
        '',
        '| training | size | precision | | tiles/s | batch | memory | utilisation | idle | largest batch |',
        '| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    for row in (Row(*words) for words in results['order']):
        result = results['rows'][row.name]
        head = f'| {row.training} | `{row.size}` | {row.precision} | {"compiled" if row.compiled else "eager"} |'
        if 'best' not in result:
            lines.append(f'{head} {result["status"]}: {result["reason"]} | | | | | |')
            continue
        best = result['best']
        used = f'{best["TFLOP/s"] / peak["TFLOP/s"]:.1%}' if peak else ''
        waits = '' if best['idle'] is None else f'{best["idle"]:.0%}'
        sign = '' if result['largest batch, ended by'] == 'memory' else 'at least '
        largest = '' if row.compiled else f'{sign}{result["largest batch"]}'
        note = f' ({result["reason"]})' if result['reason'] else ''
        lines.append(
            f'{head} {best["tiles/s"]:.3g} | {best["batch"]} | {best["GB"]:.3g} GB | {used} | {waits} '
            f'| {largest}{note} |'
        )
    lines += ['', '| agreement with float32 on the CPU | loss (limit) | output (limit) | gradient (limit) | |']
    lines += ['| --- | --- | --- | --- | --- |']
    for name, found in results['agreement'].items():
        if 'loss' in found:
            parts = ' | '.join(f'{found[key]:.1e} ({found["limits"][key]:.1e})' for key in PARTS)
            passed = 'pass' if max(found['limits'].values()) < 1 else 'not conclusive: bf16 is too coarse here'
            lines.append(f'| {name} | {parts} | {passed if agrees(found) else "FAIL"} |')
        else:
            lines.append(f'| {name} | {found.get("error", NOT_RUN)} | | | |')
    tests = results['gpu tests']
    counts = ', '.join(f'{key} {value}' for key, value in tests.items() if key != 'status')
    status = tests['status'].strip().splitlines()[-1] if tests['status'].strip() else 'failed'
    return '\n'.join([*lines, '', f'Tests with the marker `gpu`: {status}{f" ({counts})" if counts else ""}.'])


def failed(results: Mapping[str, Any]) -> bool:
    """Return whether a row, an agreement or a test failed; what did not run has not."""
    tests = results['gpu tests']
    return (
        any(result['status'] == 'error' for result in results['rows'].values())
        or any('error' in found or ('loss' in found and not agrees(found)) for found in results['agreement'].values())
        or tests['status'] not in ('done', NOT_RUN)
    )


def resume(results: dict[str, Any], before: Mapping[str, Any], quick: bool) -> None:
    """Take over what an earlier call has done on the same device, in the order of :func:`rows`."""
    same = {'device': (before['device']['name'], results['device']['name'])}
    same |= {key: (before[key], results[key]) for key in ('versions', 'tile')}
    for key, (theirs, ours) in same.items():
        if theirs != ours:
            raise SystemExit(f'--resume: {key} was {theirs}, but is {ours}: expected the same, or another --output')
    done = {name: row for name, row in before['rows'].items() if row['status'] == 'done'}
    results['rows'] |= done
    results['order'] = [row for row in rows(quick) if row.name in results['rows']]
    results['agreement'] |= {name: found for name, found in before['agreement'].items() if 'loss' in found}
    if before['gpu tests']['status'] == 'done':
        results['gpu tests'] = before['gpu tests']


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything until the deadline, and write the files after each result."""
    begin = time.monotonic()
    end = begin + args.deadline
    setting = Setting(args.device, 128, 50, args.largest_batch, 0.5, 'inductor', args.threads)
    if args.quick:
        setting = setting._replace(pixels=16, dates=3, largest=2, span=0.05, backend='aot_eager')
    small = setting._replace(pixels=32, dates=6) if not args.quick else setting
    every = [row for row in rows(args.quick) if args.rows in row.name]
    if not every:
        raise SystemExit(f'--rows is {args.rows!r}, expected a part of a name such as {rows(args.quick)[0].name!r}')
    results: dict[str, Any] = {
        'device': {'name': args.device},
        'versions': {name: version(name) for name in ('torch', 'torchgeo', 'timm')},
        'tile': f'tiles of {setting.pixels} pixels of 10 m, at most {setting.dates} dates, random',
        'peak': None,
        'order': every,
        'rows': {row.name: {'status': NOT_RUN, 'reason': 'deadline', 'batches': []} for row in every},
        'agreement': {},
        'gpu tests': {'status': NOT_RUN},
    }

    def left() -> float:
        return end - time.monotonic()

    def save() -> None:
        for path, text in (
            (args.output, json.dumps(results, indent=1)),
            (args.output.with_suffix('.md'), table(results)),
        ):
            with atomic_file(path) as temporary:
                temporary.write_text(text + '\n')

    answers, _ = apart(left(), args.threads, about, setting)
    found = answers[0] if answers else {'error': f'no result in {args.deadline:g} s'}
    if 'error' in found:
        raise SystemExit(f'--device is {args.device!r}, which does not work here: {found["error"]}')
    results['device'] = found
    if args.resume and args.output.exists():
        resume(results, json.loads(args.output.read_text()), args.quick)
    known = PEAKS.get(found['name'])
    if args.peak_tflops:
        results['peak'] = {'TFLOP/s': args.peak_tflops, 'source': '--peak-tflops'}
    elif known:
        results['peak'] = {'TFLOP/s': known, 'source': 'data sheet, dense bfloat16'}
    else:
        results['peak'] = {'TFLOP/s': max(found['product, TFLOP/s'].values()), 'source': 'matrix product, measured'}
    checks = [Row(training, 'tiny', precision, False) for precision in DTYPES for training in TRAININGS]
    for row in checks:
        name = f'{row.training} {row.precision}'
        if name in results['agreement']:
            continue
        answers, _ = apart(min(2 * args.row_seconds, left()), args.threads, agreement, row, small)
        results['agreement'][name] = answers[0] if answers else {'status': NOT_RUN}
    save()
    tested = results['gpu tests']['status'] == 'done'
    for row in (row for row in every if results['rows'][row.name]['status'] != 'done'):
        if row.compiled and not tested:
            results['gpu tests'], tested = gpu_tests(max(1.0, min(args.test_seconds, left()))), True
        seconds_left = left()
        if seconds_left < 1:
            break
        limit = args.compile_seconds if row.compiled else args.row_seconds
        eager = results['rows'].get(row._replace(compiled=False).name, {})
        size = eager['best']['batch'] if 'best' in eager else None
        only = size or (2 if row.training == 'pre-training' else 1)
        told = row, setting, only if row.compiled else None
        sent, ended = apart(min(limit, seconds_left), args.threads, measure, *told)
        results['rows'][row.name] = summary(sent, ended)
        print(f'{row.name}: {results["rows"][row.name]}', file=sys.stderr)
        save()
    if not tested and left() > 1:
        results['gpu tests'] = gpu_tests(min(args.test_seconds, left()))
    results['seconds'] = time.monotonic() - begin
    save()
    return results


def main() -> None:
    """Run all rows, print the table and write it with a JSON file beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda', choices=('cuda', 'cpu'))
    parser.add_argument('--quick', action='store_true', help='small tiles, the tiny model, compiled without inductor')
    parser.add_argument('--rows', default='', help='run the rows whose name contains this')
    parser.add_argument('--resume', action='store_true', help='keep what is done in --output, and run the rest')
    parser.add_argument('--peak-tflops', type=float, help='peak rate of the device in TFLOP/s')
    parser.add_argument('--largest-batch', type=int, default=256, help='most tiles of a batch')
    parser.add_argument('--row-seconds', type=float, default=15.0, help='limit of a row that is not compiled')
    parser.add_argument('--compile-seconds', type=float, default=120.0, help='limit of a compiled row')
    parser.add_argument('--test-seconds', type=float, default=90.0, help='limit of the tests')
    parser.add_argument('--deadline', type=float, default=450.0, help='seconds after which no row runs')
    parser.add_argument('--threads', type=int, default=0, help='threads of PyTorch, 0 for its choice')
    parser.add_argument('--output', type=Path, default=HERE / 'results' / 'accelerator.json')
    args = parser.parse_args()
    results = run(args)
    print(table(results))
    if failed(results):
        raise SystemExit(1)


if __name__ == '__main__':
    main()
