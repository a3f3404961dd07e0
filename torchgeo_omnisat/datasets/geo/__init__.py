# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Join geospatial datasets of different resolution and dates, and cut the area into tiles."""
