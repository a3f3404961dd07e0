# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Training on a simulated accelerator: without waiting for it, with deterministic operations, and without float64."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.utils import devices

from ..devices import DEVICE, SimulatedStrategy, fetch, simulated
from .helpers import make_datamodule, make_trainer

#: The maps of tiles of 160 m do not divide into patches of 30 m.
TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    'segmentation': (OmniSatSegmentation, {}),
    'subsets': (OmniSatSegmentation, {'subset_weight': 1.0, 'distill': 0.1, 'patch_size': 30.0}),
    'pretraining': (OmniSatPretraining, {}),
    'hidden': (OmniSatPretraining, {'rebuild': 'hidden', 'max_dates': 1, 'patch_size': 30.0}),
}
STEPS = 3


class Fit(NamedTuple):
    """Losses, and the waits of each step but the first, which moves statistics to the device."""

    losses: list[float]
    waits: list[dict[tuple[str, str], int]]
    nondeterministic: dict[tuple[str, str], int]


class Record(Callback):
    def __init__(self, mode: Any = None) -> None:
        self.mode, self.losses, self.waits = mode, [], []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.mode is not None:
            if batch_idx:
                self.waits.append(dict(self.mode.waits))
            self.mode.waits.clear()
        self.losses.append(float(fetch(outputs['loss'])))


def fit(name: str, root: Path, folder: Path, device: bool, float64: bool = True, **kwargs: Any) -> Fit:
    kind, settings = TASKS[name]
    seed_everything(0, verbose=False)
    data = make_datamodule(root.with_name(f'{root.name}-small'), modalities=('s2', 's1a', 'spot'), size=16)
    task = kind('omnisat_tiny', **settings)
    few = {'max_steps': STEPS, 'limit_val_batches': 1, 'log_every_n_steps': 50, **kwargs}
    if not device:
        record = Record()
        make_trainer(folder, callbacks=[record], **few).fit(task, data)
        return Fit(record.losses, [], {})
    with simulated(float64=float64) as mode:
        record = Record(mode)
        make_trainer(folder, callbacks=[record], strategy=SimulatedStrategy(), **few).fit(task, data)
    return Fit(record.losses, record.waits, dict(mode.nondeterministic))


@pytest.mark.slow
@pytest.mark.parametrize('name', TASKS)
def test_steps_do_not_wait_and_are_deterministic(name: str, root: Path, tmp_path: Path) -> None:
    """The flags of valid images are read once in a step, and Lightning reads the loss.

    The losses are those of the CPU, which takes other paths.
    """
    try:
        found = fit(name, root, tmp_path, device=True, deterministic=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert found.nondeterministic == {}
    assert len(found.waits) == STEPS - 1
    for waits in found.waits:
        assert sum(waits.values()) <= 2, waits
        assert sum(count for (_, line), count in waits.items() if 'torchgeo_omnisat/' in line) <= 1, waits
    assert found.losses == pytest.approx(fit(name, root, tmp_path, device=False).losses, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['subsets', 'pretraining'])
def test_device_without_float64(name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Apple's: positions stay on the CPU, for which the draws of the geometric augmentation are read."""
    monkeypatch.setattr(devices, 'WITHOUT_FLOAT64', frozenset({DEVICE.type}))
    found = fit(name, root, tmp_path, device=True, float64=False)
    for waits in found.waits:
        assert sum(waits.values()) <= 3, waits
    assert found.losses == pytest.approx(fit(name, root, tmp_path, device=False).losses, rel=1e-3)
