# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Values of tensors: dates, coordinates, valid pixels, pooling, devices."""
