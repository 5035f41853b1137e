"""Exact sparse prefix caching for recurrent and hybrid language models.

With the cache and without it, the same bits. Every public name is on this page;
a name loads what it needs when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from sparse_prefix_jax.cache import CapacityError as CapacityError
  from sparse_prefix_jax.cache import PrefixCache as PrefixCache
  from sparse_prefix_jax.cache import SequenceHandle as SequenceHandle
  from sparse_prefix_jax.cache import StoreStats as StoreStats
  from sparse_prefix_jax.cache import prometheus_text as prometheus_text
  from sparse_prefix_jax.cache.index import Ranked as Ranked
  from sparse_prefix_jax.cache.index import Reason as Reason
  from sparse_prefix_jax.cache.index import (
    register_eviction as register_eviction,
  )
  from sparse_prefix_jax.evaluation import Capacity as Capacity
  from sparse_prefix_jax.evaluation import ModelSizes as ModelSizes
  from sparse_prefix_jax.evaluation import parse_capacity as parse_capacity
  from sparse_prefix_jax.evaluation import simulate as simulate
  from sparse_prefix_jax.layers import Branch as Branch
  from sparse_prefix_jax.layers import CapturedScan as CapturedScan
  from sparse_prefix_jax.layers import Norm as Norm
  from sparse_prefix_jax.layers import Numerics as Numerics
  from sparse_prefix_jax.layers import scan_with_capture as scan_with_capture
  from sparse_prefix_jax.models import HybridDecoder as HybridDecoder
  from sparse_prefix_jax.models import ModelConfig as ModelConfig
  from sparse_prefix_jax.models import hybrid as hybrid
  from sparse_prefix_jax.models import load_pretrained as load_pretrained
  from sparse_prefix_jax.models import preset as preset
  from sparse_prefix_jax.models import read_config as read_config
  from sparse_prefix_jax.models.cost import PrefillCost as PrefillCost
  from sparse_prefix_jax.models.cost import prefill_flops as prefill_flops
  from sparse_prefix_jax.models.sizes import page_bytes as page_bytes
  from sparse_prefix_jax.models.sizes import state_bytes as state_bytes
  from sparse_prefix_jax.placement import DemandTree as DemandTree
  from sparse_prefix_jax.placement import OverlapHistogram as OverlapHistogram
  from sparse_prefix_jax.placement import Placement as Placement
  from sparse_prefix_jax.placement import PlacementPolicy as PlacementPolicy
  from sparse_prefix_jax.placement import TreePlacement as TreePlacement
  from sparse_prefix_jax.placement import observe as observe
  from sparse_prefix_jax.placement import (
    register_placement as register_placement,
  )
  from sparse_prefix_jax.placement import solve_placement as solve_placement
  from sparse_prefix_jax.placement import solve_tree as solve_tree
  from sparse_prefix_jax.placement import solve_tree_priced as solve_tree_priced
  from sparse_prefix_jax.runtime.memory_plan import memory_plan as memory_plan
  from sparse_prefix_jax.serving.answers import Completion as Completion
  from sparse_prefix_jax.serving.answers import Delta as Delta
  from sparse_prefix_jax.serving.answers import Generation as Generation
  from sparse_prefix_jax.serving.decode import DecodeOutput as DecodeOutput
  from sparse_prefix_jax.serving.decode import decode as decode
  from sparse_prefix_jax.serving.engine import Engine as Engine
  from sparse_prefix_jax.serving.measure import (
    measure_prefill as measure_prefill,
  )
  from sparse_prefix_jax.serving.prefill import PrefillOutput as PrefillOutput
  from sparse_prefix_jax.serving.prefill import PrefillReport as PrefillReport
  from sparse_prefix_jax.serving.prefill import prefill as prefill
  from sparse_prefix_jax.serving.sampling import Sampling as Sampling
  from sparse_prefix_jax.serving.scheduler import Ending as Ending
  from sparse_prefix_jax.serving.scheduler import Finished as Finished
  from sparse_prefix_jax.serving.scheduler import (
    RequestHandle as RequestHandle,
  )
  from sparse_prefix_jax.serving.scheduler import Scheduler as Scheduler
  from sparse_prefix_jax.serving.scheduler import Started as Started
  from sparse_prefix_jax.serving.scheduler import TokenEvent as TokenEvent
  from sparse_prefix_jax.serving.text.tokenizer import (
    TextTokenizer as TextTokenizer,
  )
  from sparse_prefix_jax.workloads import Trace as Trace
  from sparse_prefix_jax.workloads import interleave as interleave
  from sparse_prefix_jax.workloads import load_mooncake as load_mooncake
  from sparse_prefix_jax.workloads import load_token_file as load_token_file
  from sparse_prefix_jax.workloads import save_token_file as save_token_file
  from sparse_prefix_jax.workloads import token_trace as token_trace

_MODULES = {
  "cache": (
    "CapacityError",
    "PrefixCache",
    "SequenceHandle",
    "StoreStats",
    "prometheus_text",
  ),
  "cache.index": ("Ranked", "Reason", "register_eviction"),
  "evaluation": ("Capacity", "ModelSizes", "parse_capacity", "simulate"),
  "layers": (
    "Branch",
    "CapturedScan",
    "Norm",
    "Numerics",
    "scan_with_capture",
  ),
  "models": (
    "HybridDecoder",
    "ModelConfig",
    "hybrid",
    "load_pretrained",
    "preset",
    "read_config",
  ),
  "models.cost": ("PrefillCost", "prefill_flops"),
  "models.sizes": ("page_bytes", "state_bytes"),
  "placement": (
    "DemandTree",
    "OverlapHistogram",
    "Placement",
    "PlacementPolicy",
    "TreePlacement",
    "observe",
    "register_placement",
    "solve_placement",
    "solve_tree",
    "solve_tree_priced",
  ),
  "runtime.memory_plan": ("memory_plan",),
  "serving.answers": ("Completion", "Delta", "Generation"),
  "serving.decode": ("DecodeOutput", "decode"),
  "serving.engine": ("Engine",),
  "serving.measure": ("measure_prefill",),
  "serving.prefill": ("PrefillOutput", "PrefillReport", "prefill"),
  "serving.sampling": ("Sampling",),
  "serving.scheduler": (
    "Ending",
    "Finished",
    "RequestHandle",
    "Scheduler",
    "Started",
    "TokenEvent",
  ),
  "serving.text.tokenizer": ("TextTokenizer",),
  "workloads": (
    "Trace",
    "interleave",
    "load_mooncake",
    "load_token_file",
    "save_token_file",
    "token_trace",
  ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
  """Loads a public name from its module, once."""
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
  globals()[name] = value = getattr(module, name)
  return value


def __dir__() -> list[str]:
  """The public names, for `dir` and completion."""
  return sorted({*globals(), *_HOMES})
