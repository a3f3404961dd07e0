# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Excluding: a datamodule that leaves out samples with a problem, and says so."""

import warnings
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from ..datasets.integrity import Report


class ExcludingDataModule(LightningDataModule):
    """A datamodule that leaves out the samples that a report of `check` has a problem with.

    They are left out of every split, for nobody can read them. In training that is noted; in
    validation, test and prediction it is a warning, because the score is one of fewer samples
    than others are scored on. What has nothing but warnings in the report stays.
    """

    dataset_class: Any
    #: The report; None leaves nothing out.
    exclude: str | None = None

    @cached_property
    def report(self) -> Report:
        """What `check` found.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is something else, or is about another dataset.
        """
        path = Path(self.exclude or '').expanduser()
        report = Report.read(path)
        if report.layout != self.dataset_class.layout:
            raise ValueError(
                f'exclude is {str(path)!r}, which is about {report.layout} in {report.root}, '
                f'expected a report about {self.dataset_class.layout}'
            )
        return report

    def exclusion(self) -> dict[str, Any]:
        """The argument by which a dataset leaves samples out; nothing if it is to leave out none."""
        return {} if self.exclude is None else {'exclude': tuple(self.report.samples_at_fault)}

    @rank_zero_only
    def say_excluded(self, datasets: Mapping[str, Any]) -> None:
        """Say of how many samples each split was made smaller, and why.

        Args:
            datasets: The datasets by split.
        """
        if self.exclude is None:
            return
        kinds = self.report.samples_at_fault
        for split, dataset in datasets.items():
            reasons = Counter(', '.join(kinds[name]) for name in dataset.excluded)
            why = '; '.join(f'{count} {reason}' for reason, count in reasons.most_common())
            number, total = len(dataset.excluded), len(dataset.excluded) + len(dataset)
            said = f'{number} of {total} samples of {split!r} are left out, as {self.exclude} says' + (
                f': {why}' * bool(why)
            )
            if split == 'train' or not number:
                rank_zero_info(said)
            else:
                warnings.warn(f'{said}. Scores are of the other {len(dataset)} samples alone', stacklevel=2)
