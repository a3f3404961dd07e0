# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Commands: what ``python -m torchgeo_omnisat`` runs besides TorchGeo."""
