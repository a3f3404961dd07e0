# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Losses of a joint batch, by one process or by several: what each is given, and what it makes of it.

Each process makes all cases in turn, with find-unused DDP around the model, and writes what came out.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torchgeo_omnisat import Modality
from torchgeo_omnisat.losses import CrossModalInfoNCE, MaskedReconstruction, PatchContrastiveLoss, too_close

#: Tiles of rank 0 and of rank 1, and which of three modalities each tile has.
CASES: dict[str, tuple[tuple[int, int], list[tuple[int, int, int]]]] = {
    'all': ((3, 3), [(1, 1, 1)] * 6),
    'differ': ((3, 3), [(0, 1, 1), (0, 1, 1), (0, 0, 1), (1, 1, 0), (1, 0, 0), (1, 1, 0)]),
    'no pair': ((3, 3), [(1, 1, 0), (1, 1, 1), (0, 1, 1), (0, 1, 0), (0, 1, 0), (0, 0, 0)]),
    'nothing': ((3, 3), [(1, 1, 0), (1, 1, 1), (0, 1, 1), (0, 0, 0), (0, 0, 0), (0, 0, 0)]),
    'nowhere': ((2, 2), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]),
    'unequal': ((2, 4), [(1, 1, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1), (1, 1, 0), (1, 1, 1)]),
    'one each': ((1, 1), [(1, 1, 1), (1, 1, 1)]),
}
KINDS = (
    'tiles',
    'tiles apart',
    'tiles apart by pair',
    'patches',
    'patches apart',
    'places',
    'places apart',
    'reconstruction',
)
MODALITIES = [Modality('s2', ('B02', 'B03'), 10.0, True), Modality('spot', ('R',), 5.0, False)]
GRID, FEATURES, WIDTH = (2, 2), 5, 6


class Model(nn.Module):
    """One linear encoder a modality, which is only computed if a tile has it, a head for all, and a loss.

    The head is there because DDP waits for ever for a process that uses no parameter.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.encoders = nn.ModuleList(nn.Linear(FEATURES, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, WIDTH)
        losses: dict[str, Callable[[], nn.Module]] = {
            'tiles': CrossModalInfoNCE,
            'patches': lambda: PatchContrastiveLoss(block_size=5),
            'places': lambda: PatchContrastiveLoss(negatives='place'),
            'reconstruction': lambda: MaskedReconstruction(MODALITIES, WIDTH, 20.0, width=4),
        }
        self.loss = losses[kind.split()[0]]()

    def forward(self, x: Tensor, available: Tensor, bounds: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The loss of some tiles: inputs (M, B, N, F), availability (B, M), boxes (B, 4)."""
        nothing = torch.zeros(*x.shape[1:3], WIDTH)
        has = available.any(0).tolist()
        tokens = self.head(torch.stack([e(x[i]) if has[i] else nothing for i, e in enumerate(self.encoders)]))
        there = available.T[..., None, None]
        if self.kind == 'reconstruction':
            fused = torch.where(there, tokens, 0).mean(0)
            hidden = batch['hidden']
            return self.loss(fused, {k: v for k, v in batch.items() if k != 'hidden'}, hidden, GRID)
        tokens = torch.where(there, tokens, torch.nan)
        exclude = too_close(bounds) if 'apart' in self.kind else None
        if 'by pair' in self.kind:
            exclude = torch.stack([too_close(bounds), too_close(bounds, 3.0), torch.zeros_like(too_close(bounds))])
        return self.loss(tokens.mean(2) if 'tiles' in self.kind else tokens, available, exclude)


def joint(case: str) -> dict[str, Any]:
    """All tiles of a case; neighbours in a row overlap, and what is not valid is NaN."""
    generator = torch.Generator().manual_seed(len(case))
    available = torch.tensor(CASES[case][1], dtype=torch.bool)
    count = len(available)
    x = torch.randn(3, count, 4, FEATURES, generator=generator)
    left = torch.arange(count) * 8.0
    bounds = torch.stack([left, torch.zeros(count), left + 10, torch.full((count,), 10.0)], -1)
    batch = {'hidden': torch.rand(count, 4, generator=generator) < 0.6}
    for index, modality in enumerate(MODALITIES):
        side, dates = modality.pixels(40.0), 3 if modality.temporal else 1
        image = torch.randn(count, dates, len(modality.bands), side, side, generator=generator)
        valid = (torch.rand(count, dates, generator=generator) < 0.8) & available[:, index : index + 1]
        image = torch.where(valid[..., None, None, None], image, torch.nan)
        batch[modality.image_key] = image if modality.temporal else image[:, 0]
        batch[modality.dates_key] = torch.arange(17800, 17800 + 90 * dates, 90).repeat(count, 1)
        batch[modality.valid_key] = valid
    return {'x': x, 'available': available, 'bounds': bounds, 'batch': batch}


def some(tiles: dict[str, Any], where: slice) -> dict[str, Any]:
    """Some of the tiles; a modality that none of them has is not in their batch."""
    batch = {k: v[where] for k, v in tiles['batch'].items()}
    for modality in MODALITIES:
        if not batch[modality.valid_key].any():
            batch = {k: v for k, v in batch.items() if k not in modality.keys}
    return {
        'x': tiles['x'][:, where],
        'available': tiles['available'][where],
        'bounds': tiles['bounds'][where],
        'batch': batch,
    }


def outcome(kind: str, tiles: dict[str, Any], wrap: Callable[[nn.Module], nn.Module] = lambda m: m) -> dict[str, Any]:
    """Loss and gradients of every parameter; a parameter without gradient has one of 0."""
    torch.manual_seed(0)
    model = Model(kind)
    wrapped = wrap(model)  # DDP must outlive the backward pass
    loss = wrapped(**tiles)
    loss.backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }
    return {'loss': loss.detach(), 'gradients': gradients}


def constants(kind: str, constant: bool) -> Tensor:
    """Gradient of two tiles' tokens, or none: constants of a process that learns nothing from them."""
    x = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(3)).requires_grad_(not constant)
    seen = torch.full((2, 2), not constant)
    loss = CrossModalInfoNCE()(x.mean(2), seen) if kind == 'tiles' else PatchContrastiveLoss()(x, seen)
    if loss.requires_grad:  # otherwise the other rank must not wait for this one
        loss.backward()
    return torch.zeros_like(x) if x.grad is None else x.grad


def collectives(kind: str, tiles: dict[str, Any], known: Sequence[int] | None) -> list[str]:
    """Collectives of the forward pass of a loss and of its backward pass, without those of DDP."""
    model = Model(kind)
    x, available = model.head(tiles['x'][..., :FEATURES] @ torch.ones(FEATURES, WIDTH)), tiles['available']
    with recorded() as calls:
        if kind == 'reconstruction':
            batch = {k: v for k, v in tiles['batch'].items() if k != 'hidden'}
            loss = model.loss(x.mean(0), batch, tiles['batch']['hidden'], GRID)
        elif kind == 'tiles':
            loss = model.loss.contrast(x.mean(2), available, counts=known).loss
        else:
            loss = model.loss.compare(x, available, counts=known).loss
        calls.append('backward')
        loss.backward()
    return calls


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Names of the collectives that Python calls, all of the default group."""
    calls: list[str] = []
    names = ('all_gather', 'all_gather_into_tensor', 'all_reduce', 'broadcast', 'new_group')
    originals = {name: getattr(dist, name) for name in names}

    def record(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name if kwargs.get('group') in (None, dist.group.WORLD) else f'{name} of another group')
            return originals[name](*args, **kwargs)

        return call

    for name in names:
        setattr(dist, name, record(name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def refusal(x: Tensor, available: Tensor) -> str:
    """What the tile loss says to embeddings."""
    try:
        CrossModalInfoNCE()(x, available)
    except ValueError as error:
        return str(error)
    return ''


def main(rank: int, store: str, output: str) -> None:
    """Be one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', f'file://{store}', timeout=timedelta(seconds=30), rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for case, (sizes, _) in CASES.items():
        mine = some(joint(case), slice(0, sizes[0]) if rank == 0 else slice(sizes[0], sum(sizes)))
        for kind in KINDS:
            found[f'{case}/{kind}'] = outcome(
                kind, mine, lambda m: DistributedDataParallel(m, find_unused_parameters=True)
            )
        for kind in ('tiles', 'patches', 'places', 'reconstruction'):
            found[f'{case}/{kind}/collectives'] = [collectives(kind, mine, known) for known in (None, sizes)]
    for kind in ('tiles', 'patches'):
        found[f'constants/{kind}'] = constants(kind, constant=rank == 1)
    ones = torch.ones(2, 2, dtype=torch.bool)
    x = torch.ones(2, 2, 3)
    found['NaN in rank 1'] = refusal(x.index_fill(2, torch.tensor(1), torch.nan) if rank else x, ones)
    found['one tile'] = refusal(x[:, : 1 - rank], ones[: 1 - rank])
    found['other widths'] = refusal(x[..., : 2 + rank], ones)
    torch.save(found, output + '.tmp')
    os.replace(output + '.tmp', output)
    dist.barrier()
    dist.destroy_process_group()


def start(store: Path, outputs: list[Path]) -> None:
    """Be the parent of both."""
    os.environ['GLOO_SOCKET_IFNAME'] = 'lo'
    context = multiprocessing.get_context('fork')
    both = [context.Process(target=main, args=(rank, str(store), str(path))) for rank, path in enumerate(outputs)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert not any(process.exitcode for process in both)
