"""Exact sparse prefix caching for recurrent and hybrid language models.

With the cache and without it, the same bits.
"""

from sparse_prefix_jax.cache import CapacityError as CapacityError
from sparse_prefix_jax.cache import PrefixCache as PrefixCache
from sparse_prefix_jax.cache import Sequence as Sequence
from sparse_prefix_jax.cost import PrefillCost as PrefillCost
from sparse_prefix_jax.cost import measure_prefill as measure_prefill
from sparse_prefix_jax.cost import page_bytes as page_bytes
from sparse_prefix_jax.cost import prefill_flops as prefill_flops
from sparse_prefix_jax.cost import state_bytes as state_bytes
from sparse_prefix_jax.decode import DecodeOutput as DecodeOutput
from sparse_prefix_jax.decode import decode as decode
from sparse_prefix_jax.evaluation import parse_capacity as parse_capacity
from sparse_prefix_jax.evaluation import simulate as simulate
from sparse_prefix_jax.layers import CapturedScan as CapturedScan
from sparse_prefix_jax.layers import scan_with_capture as scan_with_capture
from sparse_prefix_jax.models import HybridDecoder as HybridDecoder
from sparse_prefix_jax.models import ModelConfig as ModelConfig
from sparse_prefix_jax.models import load_pretrained as load_pretrained
from sparse_prefix_jax.models import preset as preset
from sparse_prefix_jax.placement import OverlapHistogram as OverlapHistogram
from sparse_prefix_jax.placement import Placement as Placement
from sparse_prefix_jax.placement import PlacementPolicy as PlacementPolicy
from sparse_prefix_jax.placement import observe as observe
from sparse_prefix_jax.placement import solve_placement as solve_placement
from sparse_prefix_jax.prefill import PrefillOutput as PrefillOutput
from sparse_prefix_jax.prefill import Report as Report
from sparse_prefix_jax.prefill import prefill as prefill
