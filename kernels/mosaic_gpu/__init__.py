"""What the kernels for NVIDIA GPUs share (Mosaic GPU, `plgpu`).

devices     which GPUs they are for, what differs between these
launch      one kernel: config, buffers in shared memory, products
segments    which chunks one program scans, and how its loads run ahead
chunk       decays, Gram matrices and the triangular solve of one chunk
pairs       Gram matrices where decays are per channel
heads       the preparations of operations on matrix states
state       restore, scan and capture of matrix states: [k v] per head
rows        the same for states of independent channels
step        one token of matrix states, in decoding
rows_step   one token of states of independent channels
"""

from sparse_prefix_jax.kernels.mosaic_gpu.launch import (
  MosaicGpuConfig as MosaicGpuConfig,
)
