# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Tasks: models in training, each a TorchGeo task."""

from .base import OmniSatTask
from .classification import OmniSatClassification
from .hub import export_hub, load_hub
from .names import omnisat, omnisat_classification, omnisat_pretraining
from .pretraining import OmniSatPretraining
from .segmentation import OmniSatSegmentation
from .supervised import SupervisedTask

__all__ = [
    'OmniSatClassification',
    'OmniSatPretraining',
    'OmniSatSegmentation',
    'OmniSatTask',
    'SupervisedTask',
    'export_hub',
    'load_hub',
    'omnisat',
    'omnisat_classification',
    'omnisat_pretraining',
]
