# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Labelled: the mean loss over samples that have labels, and what happens where there are none."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Mean loss of an epoch over all processes, weighted by the labelled samples of each batch."""

    total: Tensor
    weight: Tensor
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state('total', torch.zeros(()), dist_reduce_fx='sum')
        self.add_state('weight', torch.zeros(()), dist_reduce_fx='sum')

    def update(self, loss: Tensor, weight: Tensor) -> None:
        """Add the loss of a batch; one without a labelled sample counts nothing."""
        self.total += torch.where(weight > 0, loss.detach().float() * weight, 0.0)
        self.weight += weight

    def compute(self) -> Tensor:
        """Return mean loss and number of labelled samples, ``(2,)``; the mean is NaN without any."""
        return torch.stack([self.total / self.weight, self.weight])


def go_without(trainer: Any, stage: str) -> None:
    """Warn of an epoch without labels, and let callbacks do without its metrics.

    A checkpoint whose monitor is missing would end training, and a loss of 0 would be the best of all.

    Args:
        trainer: The trainer.
        stage: ``'train'``, ``'val'`` or ``'test'``, with which the names of the metrics begin.
    """
    told = []
    for callback in trainer.callbacks:
        monitor = getattr(callback, 'monitor', None) or ''
        if not monitor.startswith(f'{stage}_') or monitor in trainer.callback_metrics:
            continue
        if isinstance(callback, ModelCheckpoint):
            callback.monitor = None
            told.append(f'ModelCheckpoint keeps the latest state instead of the best {monitor!r}')
        elif isinstance(callback, EarlyStopping):
            callback.strict = False
            told.append(f'EarlyStopping cannot watch {monitor!r}')
    rank_zero_warn('; '.join([f'{stage!r} has no labels, so neither loss nor metrics of it are logged', *told]))


def check_classes(who: str, theirs: Sequence[str] | None, ours: Sequence[str] | None, order_alone: bool) -> None:
    """Refuse data whose classes are not those of the model, in its order.

    Args:
        who: What has the classes *theirs*.
        theirs: Names of its classes; None or empty if it does not say.
        ours: Names of the model's classes, likewise.
        order_alone: Whether other classes are no fault, as where nothing is compared with them.

    Raises:
        ValueError: If both are known and differ, with the order to use.
    """
    if not theirs or not ours or list(theirs) == list(ours) or _numbered(theirs) or _numbered(ours):
        return
    missing, extra = ([name for name in one if name not in other] for one, other in ((ours, theirs), (theirs, ours)))
    if not missing and not extra:
        raise ValueError(
            f'{who} has the labels {list(theirs)}, but the model was trained with another order of them: '
            f'expected labels: [{", ".join(ours)}]'
        )
    if not order_alone:
        raise ValueError(
            f'{who} has the labels {list(theirs)}, but the model was trained for {list(ours)}: '
            f'{missing or "none"} are missing and {extra or "none"} unknown; expected '
            f'labels: [{", ".join(ours)}]'
        )


def check_parts(parts: Mapping[str, Any], attribute: str) -> None:
    """Refuse a mixture whose parts have different classes, or the same in another order.

    Args:
        parts: The datamodules of the mixture, by name; empty if there is none.
        attribute: Where each has the names of its classes.

    Raises:
        ValueError: With the classes of two parts that differ.
    """
    held = {name: list(getattr(part, attribute, None) or ()) for name, part in parts.items()}
    named = {name: labels for name, labels in held.items() if labels and not _numbered(labels)}
    first = next(iter(named), '')
    for name, labels in named.items():
        if labels != named[first]:
            raise ValueError(
                f'labels of {name!r} are {labels} and those of {first!r} are {named[first]}, expected the same in the '
                f'same order: class 0 would be {labels[0]!r} in one source and {named[first][0]!r} in the other'
            )


def _numbered(names: Sequence[str]) -> bool:
    """Return whether classes have no names, only their numbers."""
    return list(names) == [str(number) for number in range(len(names))]
