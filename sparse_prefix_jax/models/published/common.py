"""What named configurations share: numerics, and attention of plain heads."""

from typing import Any

from sparse_prefix_jax.layers import AttentionConfig, Branch, Norm, Numerics
from sparse_prefix_jax.models.config import ModelConfig

SMALL = Numerics(ladder=(1, 2, 4), max_length=4096)
"""Of the small models, for trials."""
FULL = Numerics(dtype="bfloat16", max_length=262144)
"""Of the published ones, whatever context they were trained for: `preset(NAME,
max_length=...)` says another, which page tables and memory plans follow."""


def alternating(
  vocab_size: int,
  width: int,
  layers: str,
  kinds: dict[str, tuple[Branch, ...]],
  **others: Any,
) -> ModelConfig:
  """Makes a model of a letter for each layer.

  Args:
    vocab_size: Number of token ids.
    width: Model width d.
    layers: A letter for each layer, in order.
    kinds: The branches of a layer, by its letter.
    **others: Other fields of `ModelConfig`; the final norm is that of the first
      branch unless it is given.

  Example:
    >>> from sparse_prefix_jax.layers import MLPConfig
    >>> branch = Branch(MLPConfig(hidden=64), pre=Norm(eps=1e-5))
    >>> len(alternating(8, 64, "--", {"-": (branch,)}, numerics=SMALL).branches)
    2
  """
  branches = tuple(branch for letter in layers for branch in kinds[letter])
  norm = branches[0].pre or Norm(centred=False)
  fields: dict[str, Any] = {"final_norm": norm, "numerics": FULL} | others
  return ModelConfig(
    vocab_size=vocab_size, width=width, branches=branches, **fields
  )


def plain_attention(
  heads: int, kv_heads: int, head_width: int, **choices: Any
) -> AttentionConfig:
  """Attention without a gate and without norms of heads.

  Args:
    heads: Query heads.
    kv_heads: Heads of keys and values.
    head_width: Width of a head.
    **choices: Other fields of `AttentionConfig`; positions are not told apart
      unless `rotary_width` is given.
  """
  fields: dict[str, Any] = {"rotary_width": None, "gate": False} | choices
  fields = {"head_norm": False} | fields
  return AttentionConfig(
    heads=heads, kv_heads=kv_heads, head_width=head_width, **fields
  )
