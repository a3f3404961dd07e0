# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Training on a simulated accelerator: without waiting for it, with deterministic operations, and without float64."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torchmetrics import MetricCollection

from torchgeo_omnisat.losses import CrossEntropyDice
from torchgeo_omnisat.tasks import OmniSatPretraining, OmniSatSegmentation
from torchgeo_omnisat.tasks.supervised import classification_metrics, update
from torchgeo_omnisat.transforms.ground import _turn, _turn_by_masks
from torchgeo_omnisat.utils.tensors import devices
from torchgeo_omnisat.utils.tensors.finite import EVERY, SKIPPED, Watch

from ..devices import DEVICE, SimulatedStrategy, fetch, place, simulated
from .helpers import TOLD, make_batch, make_datamodule, make_trainer

#: The maps of tiles of 160 m do not divide into patches of 30 m.
TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    'checkpointing': (OmniSatSegmentation, {'backbone_args': {'checkpointing': 2}}),
    'subsets': (OmniSatSegmentation, {'subset_weight': 1.0, 'distill': 0.1, 'patch_size': 30.0}),
    'fields': (OmniSatSegmentation, {'instances': True, 'field_gsd': 5.0}),
    'pretraining': (OmniSatPretraining, {}),
    'grains': (
        OmniSatPretraining,
        {
            'object_weight': 1.0,
            'object_clusters': 4,
            'exclude_within': 500.0,
            'granularity': ['pixel', 'object', 'image'],
            'granularity_prototypes': 8,
            'backbone_args': {'encoders': {'location': 'scaled'}, 'context_degrees': 10.0, 'context_prototypes': 4},
        },
    ),
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
        ours = {line: count for (_, line), count in waits.items() if 'torchgeo_omnisat/' in line}
        most = 2 if name in ('grains', 'fields') else 1  # the regions of the tiles, the largest field
        assert sum(ours.values()) <= most, waits
        assert sum(waits.values()) <= most + 1, waits
    assert found.losses == pytest.approx(fit(name, root, tmp_path, device=False).losses, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['subsets', 'pretraining', 'grains'])
def test_device_without_float64(name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Apple's: positions stay on the CPU, for which the draws of the geometric augmentation are read."""
    monkeypatch.setattr(devices, 'WITHOUT_FLOAT64', frozenset({DEVICE.type}))
    found = fit(name, root, tmp_path, device=True, float64=False)
    most = 15 if name == 'grains' else 3  # flags of the location, whose coordinates are on the CPU
    for waits in found.waits:
        assert sum(waits.values()) <= most, waits
    assert found.losses == pytest.approx(fit(name, root, tmp_path, device=False).losses, rel=1e-3)


def test_metrics_of_classes_are_those_of_torchmetrics() -> None:
    """On a device they are updated from one confusion matrix, without a wait."""
    settings: dict[str, Any] = {'num_classes': 4, 'labels': ['a', 'b', 'c', 'void'], 'ignore_index': 3}
    expected = MetricCollection(classification_metrics('multiclass', **settings)).clone()
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randint(4, (2, 2, 5, 5), generator=generator) for _ in range(3)]
    for answer, truth in pairs:
        expected.update(answer.clamp(max=2), truth)
    with simulated() as mode:
        found = MetricCollection(classification_metrics('multiclass', **settings)).clone()._apply(place)
        for answer, truth in place(pairs):
            update(found, answer.clamp(max=2), truth)
        assert not mode.waits
        scores = fetch(found.compute())
    assert scores.keys() == expected.compute().keys()
    for name, score in expected.compute().items():
        torch.testing.assert_close(scores[name], score, msg=name)


@pytest.mark.parametrize(('scaled', 'first'), [(False, 7), (True, 6 + SKIPPED)])
def test_gradient_that_is_not_finite_is_found_later(scaled: bool, first: int) -> None:
    """The device is asked after a number of steps, and has kept the first one that fails."""
    with simulated() as mode:
        watch = Watch()
        for number in range(1, EVERY):
            watch.loss = place(torch.tensor(float(number)))
            watch.begin(number, place(torch.tensor(torch.nan if number >= 7 else 1.0)), 0.1, scaled)
        assert not mode.waits
        with pytest.raises(ValueError, match=f'at step {first}: the loss is {first} '):
            watch.begin(EVERY, place(torch.tensor(1.0)), 0.1, scaled)


@pytest.mark.parametrize('shape', [(8, 2, 3, 5, 5), (8, 6, 6), (8, 1, 4, 6)])
def test_tiles_are_turned_by_masks(shape: tuple[int, ...]) -> None:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    element = torch.arange(8) if shape[-1] == shape[-2] else torch.arange(0, 8, 2).repeat(2)
    expected = torch.stack([_turn(x, int(k)) for x, k in zip(image, element, strict=True)])
    assert torch.equal(_turn_by_masks(image, element), expected)


def test_samples_without_a_modality_are_counted() -> None:
    """On a device they are read at the end, with one warning."""
    task = OmniSatSegmentation(**TOLD)
    batch = {key: value & False if key.startswith('valid_') else value for key, value in make_batch().items()}
    with simulated() as mode:
        for _ in range(2):
            task.warn_without_modalities(place(batch))
        assert not mode.waits
        with pytest.warns(UserWarning, match='6 of 6 samples'):
            task.warn_extreme()


def test_labels_are_checked_on_the_device() -> None:
    """With an assertion, which does not wait."""
    loss, mask = CrossEntropyDice(ignore_index=9), torch.tensor([[[0, 1], [2, 9]]])
    with simulated() as mode:
        loss(place(torch.zeros(1, 3, 2, 2)), place(mask))
        assert not mode.waits
        with pytest.raises(RuntimeError, match=r'expected labels from 0 to 2 or ignore_index=9'):
            loss(place(torch.zeros(1, 3, 2, 2)), place(mask + 1))
