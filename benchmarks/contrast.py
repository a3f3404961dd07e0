# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What the contrast of patches costs, beside one matrix product of all pairs.

Random tokens of M modalities, B tiles, N patches and D numbers, all of them available; forward and
backward in float32. Time is the median ratio to the product of all tokens with all tokens, each
repetition paired with a product of its own. The product is made in strips that share their memory,
which costs less than one of its full size. Memory is what the peak resident memory of a fresh
process grows by, with tokens and their gradient already there.

    python benchmarks/contrast.py                    # M 3, B 8, N 1024, D 256, against the bounds
    python benchmarks/contrast.py --tiles 2 --output /tmp/contrast.json
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

import torch

from torchgeo_omnisat.losses import PatchContrastiveLoss
from torchgeo_omnisat.utils.atomic import atomic_file

#: The most that forward and backward may take, in matrix products of all pairs, and in GB.
MOST_TIME, MOST_MEMORY = 6.0, 1.0


def prepare(args: argparse.Namespace) -> tuple[torch.Tensor, Callable[[], None]]:
    """Tokens with the memory of their gradient touched, and forward and backward of the loss."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokens = torch.randn(args.modalities, args.tiles, args.patches, args.dim).requires_grad_()
    tokens.grad = torch.ones_like(tokens)
    available = torch.ones(args.tiles, args.modalities, dtype=torch.bool)
    loss = PatchContrastiveLoss(block_size=args.block_size)
    return tokens, lambda: loss(tokens, available).backward()


def gigabytes(args: argparse.Namespace) -> float:
    """Return the growth of the peak memory of this process, after a small step as warm-up."""
    small = argparse.Namespace(**{**vars(args), 'tiles': 2, 'patches': 8})
    prepare(small)[1]()
    _, step = prepare(args)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9


def ratios(args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Loss by product and seconds of the product, for each repetition."""
    tokens, step = prepare(args)
    flat = tokens.detach().flatten(0, 2)
    strip = torch.empty(min(2048, len(flat)), len(flat))

    def product() -> None:
        for rows in flat.split(len(strip)):
            torch.mm(rows, flat.T, out=strip[: len(rows)])

    product()
    step()
    products = [(seconds(product), seconds(step)) for _ in range(args.repeats)]
    return [one / other for other, one in products], [other for other, _ in products]


def seconds(run: Callable[[], None]) -> float:
    """Time one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Measure memory in a fresh process, then time in this one, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--modalities', type=int, default=3)
    parser.add_argument('--tiles', type=int, default=8)
    parser.add_argument('--patches', type=int, default=1024, help='patches of a tile')
    parser.add_argument('--dim', type=int, default=256, help='width of a token')
    parser.add_argument('--block-size', type=int, default=512, help='side of a block of similarities')
    parser.add_argument('--repeats', type=int, default=5, help='repetitions, each paired with a product')
    parser.add_argument('--threads', type=int, default=min(2, os.cpu_count() or 1), help='threads of PyTorch')
    parser.add_argument('--output', type=Path, default=Path('benchmarks/results/contrast.json'))
    parser.add_argument('--memory', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print(gigabytes(args))
        return
    command = [sys.executable, __file__, '--memory', *sys.argv[1:]]
    memory = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    found, products = ratios(args)
    ratio = statistics.median(found)
    result = {
        'machine': {'processor': platform.processor() or platform.machine(), 'cores': os.cpu_count()},
        'load': os.getloadavg(),
        'torch': version('torch'),
        'arguments': {k: v for k, v in vars(args).items() if isinstance(v, int)},
        'ratio': ratio,
        'ratios': found,
        'seconds_of_product': statistics.median(products),
        'gigabytes': memory,
        'passed': ratio < MOST_TIME and memory < MOST_MEMORY,
    }
    with atomic_file(args.output) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + '\n')
    print('| contrast of patches, forward and backward | measured | bound | |\n| --- | --- | --- | --- |')
    for name, value, bound in (
        ('matrix products of all pairs', ratio, MOST_TIME),
        ('GB above the inputs', memory, MOST_MEMORY),
    ):
        print(f'| {name} | {value:.2f} | {bound:g} | {"pass" if value < bound else "FAIL"} |')
    print(json.dumps(result))


if __name__ == '__main__':
    main()
