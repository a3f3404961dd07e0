# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What all datamodules share: statistics, sampling and plausibility."""
