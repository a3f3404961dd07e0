# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Time series from folders of rasters: GeoTIFF, NetCDF, Sentinel products, STAC items."""
