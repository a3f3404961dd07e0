# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Report: what is wrong with a dataset, as JSON."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from .integrity import KINDS, Problem


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Args:
        layout: Whose files these are, as the dataset class says.
        root: The dataset's directory.
        samples: How many samples of each split were looked at.
        problems: What is wrong, warnings among it.
        absent: How many samples have no image of a modality, which nothing says they should.
    """

    layout: str
    root: str
    samples: Mapping[str, int]
    problems: Sequence[Problem]
    absent: Mapping[str, int] = field(default_factory=dict)

    @property
    def faults(self) -> list[Problem]:
        """The problems without the warnings."""
        return [problem for problem in self.problems if not problem.warning]

    @property
    def samples_at_fault(self) -> dict[str, tuple[str, ...]]:
        """The kinds of problem of each sample that has one, warnings aside."""
        kinds: dict[str, tuple[str, ...]] = {}
        for problem in self.faults:
            if problem.sample:
                kinds[problem.sample] = tuple(dict.fromkeys((*kinds.get(problem.sample, ()), problem.kind)))
        return kinds

    def count(self) -> dict[str, int]:
        """How many problems of each kind there are, in the order of :data:`KINDS`."""
        counts = Counter(problem.kind for problem in self.faults)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + '\n')

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what was written.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is something else.
        """
        expected = 'expected what `python -m torchgeo_omnisat check --output FILE` writes'
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            return cls(**{**content, 'problems': [Problem(**problem) for problem in content['problems']]})
        except FileNotFoundError:
            raise FileNotFoundError(f'{path} does not exist, {expected}') from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path} cannot be read ({type(error).__name__}: {error}), {expected}') from error
