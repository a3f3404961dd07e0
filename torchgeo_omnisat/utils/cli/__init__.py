# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Console of the command line: output, errors in one line, and help texts."""
