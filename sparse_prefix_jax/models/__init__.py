"""Hybrid decoders: configuration, branches in a row, cost, weights."""

from sparse_prefix_jax.models.checkpoint import (
  load_pretrained as load_pretrained,
)
from sparse_prefix_jax.models.checkpoint import read_config as read_config
from sparse_prefix_jax.models.config import ModelConfig as ModelConfig
from sparse_prefix_jax.models.decoder import HybridDecoder as HybridDecoder
from sparse_prefix_jax.models.presets import PRESETS as PRESETS
from sparse_prefix_jax.models.presets import preset as preset
from sparse_prefix_jax.models.qwen_form import hybrid as hybrid
