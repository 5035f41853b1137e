"""Exact sparse prefix caching for recurrent and hybrid language models.

With the cache and without it, the same bits.
"""

from sparse_prefix_jax.cache import CapacityError as CapacityError
from sparse_prefix_jax.cache import PrefixCache as PrefixCache
from sparse_prefix_jax.cache import Sequence as Sequence
from sparse_prefix_jax.decode import DecodeOutput as DecodeOutput
from sparse_prefix_jax.decode import decode as decode
from sparse_prefix_jax.kernels.gated_delta_rule import (
  gated_delta_rule as gated_delta_rule,
)
from sparse_prefix_jax.layers import CapturedScan as CapturedScan
from sparse_prefix_jax.layers import scan_with_capture as scan_with_capture
from sparse_prefix_jax.models import HybridDecoder as HybridDecoder
from sparse_prefix_jax.models import ModelConfig as ModelConfig
from sparse_prefix_jax.models import load_pretrained as load_pretrained
from sparse_prefix_jax.models import preset as preset
from sparse_prefix_jax.prefill import PrefillOutput as PrefillOutput
from sparse_prefix_jax.prefill import Report as Report
from sparse_prefix_jax.prefill import prefill as prefill
