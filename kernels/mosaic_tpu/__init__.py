"""What the kernels for TPU share (Mosaic TPU, `pltpu`).

scan        restore, scan and capture around the cell of an operation
heads       the same for matrix states, several heads a step
algebra     decays, products and the triangular solve of one chunk
fit         which shapes and types fit, and sizes for them
"""

from sparse_prefix_jax.kernels.mosaic_tpu.scan import Config as Config
