"""Foreign names of Falcon-H1: Mamba-2 beside attention, scaled everywhere."""

import math

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  Mamba2Config,
  Norm,
  Numerics,
  ParallelConfig,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import plain
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Family,
  Source,
  same,
)
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.rope import Rope, read_whole_rope
from sparse_prefix_jax.models.families.state_space import (
  STEP_KEYS,
  check_plain,
  mamba2_sources,
  read_mamba2,
)


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: two mixers, then SwiGLU, per layer."""
  check_plain(fields)
  eps = fields.number("rms_norm_eps", 1e-5, **plain.EPS)
  fields.only("mamba_use_mlp", True)
  rope = read_whole_rope(fields, plain.head_width(fields))
  norm = Norm(centred=False, eps=eps)
  pair = ParallelConfig(
    (_mamba2(fields, eps), _attention(fields, rope)),
    in_scales=(
      _factor(fields, "ssm_in_multiplier"),
      _factor(fields, "attention_in_multiplier"),
    ),
    out_scales=(
      _factor(fields, "ssm_out_multiplier"),
      _factor(fields, "attention_out_multiplier"),
    ),
  )
  gate_scale, out_scale = _factors(fields, "mlp_multipliers", 2)
  feed_forward = SwiGLUConfig(
    hidden=fields.count("intermediate_size"),
    bias=fields.flag("mlp_bias", False),
    gate_scale=gate_scale,
  )
  layers = fields.count("num_hidden_layers", most=plain.MOST_LAYERS)
  layer = (
    Branch(pair, pre=norm),
    Branch(feed_forward, pre=norm, scale=out_scale),
  )
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=fields.count("hidden_size"),
    branches=layer * layers,
    final_norm=norm,
    embedding_scale=_factor(fields, "embedding_multiplier"),
    logits_scale=_factor(fields, "lm_head_multiplier"),
    numerics=Numerics(ladder=SINGLE_RUNG, max_length=rope.length),
  )


def _factor(fields: Fields, key: str) -> float:
  """Reads a factor; 1 where the file does not say."""
  return fields.number(key, 1.0, **plain.FACTORS)


def _factors(fields: Fields, key: str, size: int) -> tuple[float, ...]:
  """Reads a list of factors.

  Raises:
    ValueError: If there are not so many, or one is no finite number above 0.
  """
  values = fields.get(key)
  if values is None:
    return (1.0,) * size
  numbers = isinstance(values, list) and all(
    isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf
    for x in values
  )
  if not numbers or len(values) != size or max(values) > plain.FACTORS["most"]:
    raise fields.error(key, f"it must hold {size} finite numbers above 0")
  return tuple(float(x) for x in values)


def _mamba2(fields: Fields, eps: float) -> Mamba2Config:
  """Reads the recurrent half of a layer."""
  norm = "none"
  first = fields.flag("mamba_norm_before_gate", True)
  if fields.flag("mamba_rms_norm", False):
    norm = "before_gate" if first else "behind_gate"
  return read_mamba2(
    fields,
    eps,
    norm=norm,
    part_scales=_factors(fields, "ssm_multipliers", 5),
    out_bias=fields.flag("projectors_bias", False),
  )


def _attention(fields: Fields, rope: Rope) -> AttentionConfig:
  """Reads the attending half of a layer."""
  heads = fields.count("num_attention_heads")
  bias = fields.flag("attention_bias", False)
  return AttentionConfig(
    heads=heads,
    kv_heads=fields.count("num_key_value_heads", heads),
    head_width=plain.head_width(fields),
    rotary_width=rope.width,
    rope_theta=rope.theta,
    rope_scaling=rope.scaling,
    gate=False,
    head_norm=False,
    key_scale=_factor(fields, "key_multiplier"),
    bias=bias,
    out_bias=bias,
  )


def _sources(branch: Branch) -> dict[str, Source]:
  """Where the parameters of a branch come from, by its sublayer."""
  if isinstance(branch.sub, SwiGLUConfig):
    sources = plain.feed_forward_sources(branch.sub, "feed_forward.")
    return sources | {"pre": same("pre_ff_layernorm.weight")}
  if not isinstance(branch.sub, ParallelConfig):
    raise ValueError(f"sub is {branch.sub!r}; it must be of Falcon-H1.")
  mamba, attention = branch.sub.subs
  if not isinstance(mamba, Mamba2Config) or not isinstance(
    attention, AttentionConfig
  ):
    raise ValueError(f"subs is {branch.sub.subs!r}; it must be of Falcon-H1.")
  recurrent = mamba2_sources(mamba, "mamba.")
  attending = plain.attention_sources(attention, "self_attn.")
  pair = plain.inside_pair(recurrent, 0) | plain.inside_pair(attending, 1)
  return pair | {"pre": same("input_layernorm.weight")}


FALCON_H1 = Family(
  model_types=("falcon_h1",),
  read=_read,
  sources=_sources,
  norm="final_layernorm.weight",
  embedding="embed_tokens.weight",
  head="lm_head.weight",
  # Chunks of another implementation, and what a sampler asks for.
  # `intermediate_size` holds, not what it is of the width.
  harmless_keys=STEP_KEYS
  | {"mamba_chunk_size", "num_logits_to_keep", "mlp_expansion_factor"},
  harmless_tensors=(),
)
"""Mamba-2 and rotated attention side by side, SwiGLU, and 14 factors."""
