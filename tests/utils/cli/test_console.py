# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Messages of Lightning that the command line hides."""

import logging

import pytest

from torchgeo_omnisat.utils.cli.console import hide_noise


@pytest.mark.parametrize(
    ('message', 'is_shown'),
    [
        ('TPU available: False, using: 0 TPU cores', False),
        ('TPU available: True, using: 8 TPU cores', True),
        ('GPU available: False, used: False', True),
        ('`Trainer.fit` stopped: `max_epochs=2` reached.', False),
        ('Time limit reached. Elapsed time is 0:00:10. Signaling Trainer to stop.', True),
        ('Restoring states from the checkpoint path at last.ckpt', False),
        ('Restored all states from the checkpoint at last.ckpt', True),
    ],
)
def test_noise_is_hidden(message: str, is_shown: bool) -> None:
    logger = logging.getLogger('lightning.pytorch.utilities.rank_zero')
    before = list(logger.filters)
    record = logging.LogRecord(logger.name, logging.INFO, '', 0, message, None, None)
    try:
        hide_noise(trains=True)
        assert bool(logger.filter(record)) == is_shown
    finally:
        logger.filters[:] = before
