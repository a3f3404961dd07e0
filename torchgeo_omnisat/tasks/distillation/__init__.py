# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Self-distillation in pre-training: a teacher, at several granularities."""
