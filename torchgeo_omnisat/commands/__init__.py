# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Commands of ``python -m torchgeo_omnisat`` besides those of TorchGeo."""
