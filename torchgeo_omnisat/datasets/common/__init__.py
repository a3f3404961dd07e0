# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Parts that the datasets share: arguments, dates of series, classes, integrity of files, plots."""
