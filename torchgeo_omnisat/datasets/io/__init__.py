# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Open, read and download files: the one way to read a raster, an array or an archive."""
