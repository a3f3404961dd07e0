# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""TorchGeo tasks for pre-training, segmentation, classification and regression.

The command line finds a task by the exact name of its class: ``omnisat``, ``omnisat_classification``,
``omnisat_regression`` and ``omnisat_pretraining`` are subclasses with short names.
"""

from .backbone import export_hub, load_hub
from .base import OmniSatTask
from .classification import OmniSatClassification, omnisat_classification
from .dense import DenseTask
from .deployment.inference import Predictor
from .pretraining import OmniSatPretraining, omnisat_pretraining
from .regression import OmniSatRegression, omnisat_regression
from .segmentation import OmniSatSegmentation, omnisat
from .supervised import SupervisedTask

__all__ = [
    'DenseTask',
    'OmniSatClassification',
    'OmniSatPretraining',
    'OmniSatRegression',
    'OmniSatSegmentation',
    'OmniSatTask',
    'Predictor',
    'SupervisedTask',
    'export_hub',
    'load_hub',
    'omnisat',
    'omnisat_classification',
    'omnisat_pretraining',
    'omnisat_regression',
]
