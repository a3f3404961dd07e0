# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Names: what the command line calls our tasks, ``torchgeo fit --model omnisat``.

Lightning's command line finds a class by its exact name, in a module whose name does not
begin with an underscore; an alias does not count.
"""

from .classification import OmniSatClassification
from .pretraining import OmniSatPretraining
from .segmentation import OmniSatSegmentation


class omnisat(OmniSatSegmentation):
    """:class:`.OmniSatSegmentation` under its short name."""


class omnisat_classification(OmniSatClassification):
    """:class:`.OmniSatClassification` under its short name."""


class omnisat_pretraining(OmniSatPretraining):
    """:class:`.OmniSatPretraining` under its short name."""
