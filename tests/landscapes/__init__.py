# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Made-up landscapes in the layouts of FLAIR, FLAIR-HUB and TreeSatAI, for tests and benchmarks."""
