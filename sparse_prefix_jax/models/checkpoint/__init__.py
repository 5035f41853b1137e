"""Hugging Face directories: what config.json and the weights say."""

from sparse_prefix_jax.models.checkpoint.description import (
  read_config as read_config,
)
from sparse_prefix_jax.models.checkpoint.loading import (
  load_pretrained as load_pretrained,
)
