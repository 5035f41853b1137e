"""Foreign names of OLMo-hybrid: Gated DeltaNet, attention normed behind."""

import numpy as np

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  GatedDeltaNetConfig,
  Norm,
  Numerics,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import plain
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Family,
  Source,
  same,
  side_by_side,
  taps_first,
)
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.rope import Rope, read_whole_rope

_KINDS = ("linear_attention", "full_attention")
_EVERY = 4
# As the recurrent layers were trained, whatever the other norms add.
_GATED_EPS = 1e-5


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: a mixer, then SwiGLU, per layer.

  The norms of a recurrent layer stand in front, those of attention behind.
  """
  plain.check_decoder(fields)
  fields.only("hidden_act", "silu")
  norm = Norm(
    centred=False, eps=fields.number("rms_norm_eps", 1e-6, **plain.EPS)
  )
  kinds = _kinds(fields)
  rope = _rope(fields)
  feed_forward = SwiGLUConfig(hidden=fields.count("intermediate_size"))
  recurrent, attention = _gated_delta_net(fields), _attention(fields, rope)
  layers = {
    "linear_attention": (
      Branch(recurrent, pre=norm),
      Branch(feed_forward, pre=norm),
    ),
    "full_attention": (
      Branch(attention, pre=None, post=norm),
      Branch(feed_forward, pre=None, post=norm),
    ),
  }
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=fields.count("hidden_size"),
    branches=tuple(branch for kind in kinds for branch in layers[kind]),
    final_norm=norm,
    numerics=Numerics(
      ladder=SINGLE_RUNG,
      max_length=rope.length
      if rope
      else fields.count("max_position_embeddings", 65536, most=2**30),
    ),
  )


def _rope(fields: Fields) -> Rope | None:
  """Reads the rotary embedding; where its base is null nothing is rotated."""
  found = [fields.within(key) for key in ("rope_parameters", "rope_scaling")]
  rope = next((each for each in found if each and each.values), None)
  stated = rope if rope and "rope_theta" in rope.values else fields
  if stated.values.get("rope_theta", 0) is None:
    if rope is not None:
      rope.get("rope_theta")
      rope.only("rope_type", "default")
      rope.refuse_unread(())
    return None
  return read_whole_rope(fields, plain.head_width(fields))


def _kinds(fields: Fields) -> list[str]:
  """Reads the kinds of the layers; without a list each fourth attends."""
  kinds = plain.layer_kinds(fields, ("layer_types",))
  if kinds is not None:
    plain.check_kinds(fields, "layer_types", kinds, _KINDS)
    return kinds
  layers = fields.count("num_hidden_layers", most=plain.MOST_LAYERS)
  kinds = [_KINDS[(i + 1) % _EVERY == 0] for i in range(layers)]
  return kinds if layers >= _EVERY else [*kinds[:-1], _KINDS[1]]


def _gated_delta_net(fields: Fields) -> GatedDeltaNetConfig:
  """Reads the recurrent layers, whose beta may reach 2."""
  heads = fields.count("num_attention_heads")
  key_heads = fields.count("linear_num_key_heads", heads)
  width = int(0.75 * fields.count("hidden_size") / key_heads)
  key_width = fields.count("linear_key_head_dim", max(1, width))
  negative = fields.flag("linear_allow_neg_eigval", True)
  fields.only("linear_use_gate", True)
  return GatedDeltaNetConfig(
    key_heads=key_heads,
    value_heads=fields.count("linear_num_value_heads", heads),
    key_width=key_width,
    value_width=fields.count("linear_value_head_dim", 2 * key_width),
    window=fields.count("linear_conv_kernel_dim", 4),
    eps=_GATED_EPS,
    beta_scale=2.0 if negative else 1.0,
  )


def _attention(fields: Fields, rope: Rope | None) -> AttentionConfig:
  """Reads the layers of attention; queries and keys are normed in one row."""
  heads = fields.count("num_attention_heads")
  bias = fields.flag("attention_bias", False)
  return AttentionConfig(
    heads=heads,
    kv_heads=fields.count("num_key_value_heads", heads),
    head_width=plain.head_width(fields),
    rotary_width=rope.width if rope else None,
    rope_theta=rope.theta if rope else 1e4,
    rope_scaling=rope.scaling if rope else None,
    eps=fields.number("rms_norm_eps", 1e-6, **plain.EPS),
    gate=False,
    head_norm=False,
    row_norm=True,
    centred=False,
    bias=bias,
    out_bias=bias,
  )


def _sources(branch: Branch) -> dict[str, Source]:
  """Where the parameters of a branch come from, by its sublayer."""
  if isinstance(branch.sub, SwiGLUConfig):
    sources = plain.feed_forward_sources(branch.sub, "mlp.")
    if branch.pre is None:
      return sources | {"post": same("post_feedforward_layernorm.weight")}
    before = _renamed("post_attention_layernorm", "feedforward_layer_norm")
    return sources | {"pre": before}
  if isinstance(branch.sub, GatedDeltaNetConfig):
    before = _renamed("input_layernorm", "attention_layer_norm")
    return _recurrent(branch.sub) | {"pre": before}
  if not isinstance(branch.sub, AttentionConfig):
    raise ValueError(f"sub is {branch.sub!r}; it must be of OLMo-hybrid.")
  return plain.attention_sources(branch.sub, "self_attn.") | {
    "sub.query_norm": same("self_attn.q_norm.weight"),
    "sub.key_norm": same("self_attn.k_norm.weight"),
    "post": _renamed("post_attention_layernorm", "feedforward_layer_norm"),
  }


def _renamed(name: str, published: str) -> Source:
  """A norm under the name that it was published with, or another."""
  return same(f"{published}.weight")._replace(otherwise=same(f"{name}.weight"))


def _recurrent(sub: GatedDeltaNetConfig) -> dict[str, Source]:
  """Where a recurrent layer comes from: every projection is a tensor."""
  prefix, keys = "linear_attn.", sub.key_heads * sub.key_width
  shares = keys, keys, sub.value_heads * sub.value_width

  def weights(parts: str, shares: tuple[int, ...]) -> Source:
    names = (f"{prefix}{part}_proj.weight" for part in parts)
    return side_by_side(*names, shares=shares)

  return {
    "sub.in_qkv": weights("qkv", shares),
    "sub.in_gate": same(f"{prefix}g_proj.weight", rank=2),
    "sub.in_decay_beta": weights("ab", (1, 1)),
    "sub.conv": _taps(prefix),
    "sub.log_rate": same(f"{prefix}A_log"),
    "sub.decay_bias": same(f"{prefix}dt_bias"),
    "sub.norm": same(f"{prefix}o_norm.weight"),
    "sub.out": same(f"{prefix}o_proj.weight", rank=2),
  }


def _taps(prefix: str) -> Source:
  """Three convolutions side by side, or one of all channels."""
  whole = taps_first(f"{prefix}conv1d.weight")

  def convert(*parts: np.ndarray) -> np.ndarray:
    # transformers cuts them in thirds when it writes, however wide each is.
    return whole.convert(np.concatenate(parts))

  names = tuple(f"{prefix}{part}_conv1d.weight" for part in "qkv")
  return Source(names, (3,) * len(names), convert, otherwise=whole)


OLMO_HYBRID = Family(
  model_types=("olmo_hybrid",),
  read=_read,
  sources=_sources,
  embedding="embed_tokens.weight",
  head="lm_head.weight",
  # How decays and steps were initialised.
  harmless_keys=frozenset(
    {"linear_a_log_max", "linear_a_log_min", "linear_dt_init_floor"}
    | {"linear_dt_max", "linear_dt_min"}
  ),
  harmless_tensors=(),
)
"""Gated DeltaNet whose beta reaches 2, and attention with norms behind."""
