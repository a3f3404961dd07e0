# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Context manager that silences messages and warnings of Lightning."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet(every_warning: bool = False, level: int = logging.ERROR) -> Iterator[None]:
    """Silence Lightning's loggers below *level* and its warnings, or all warnings; the progress bar stays."""
    loggers: list[Any] = [logging.getLogger(name) for name in ('lightning.pytorch', 'lightning.fabric')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', module='' if every_warning else 'lightning')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
