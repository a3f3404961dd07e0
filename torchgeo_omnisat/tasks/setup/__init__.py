# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""What a task is set up with: hyper-parameters in plain types, the optimiser and its schedule."""
