"""Foreign names of LFM2: short convolutions and attention, SwiGLU."""

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  Norm,
  Numerics,
  ShortConvConfig,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import plain
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Family,
  Source,
  rows_of,
  same,
  taps_first,
)
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.rope import Rope, read_whole_rope

_KINDS = ("conv", "full_attention")


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: a mixer, then SwiGLU, per layer."""
  plain.check_decoder(fields)
  fields.only("tie_embedding", True)
  fields.only("use_pos_enc", True)
  eps = fields.number("norm_eps", 1e-5, **plain.EPS)
  rope = _rope(fields)
  norm, width = Norm(centred=False, eps=eps), fields.count("hidden_size")
  mixers = {
    "conv": ShortConvConfig(
      channels=width,
      window=fields.count("conv_L_cache", 3),
      bias=fields.flag("conv_bias", False),
    ),
    "full_attention": _attention(fields, rope, eps),
  }
  feed_forward = SwiGLUConfig(hidden=_hidden(fields))
  branches = []
  for kind in _kinds(fields):
    branches += [Branch(mixers[kind], pre=norm), Branch(feed_forward, pre=norm)]
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=width,
    branches=tuple(branches),
    final_norm=norm,
    numerics=Numerics(ladder=SINGLE_RUNG, max_length=rope.length),
  )


def _rope(fields: Fields) -> Rope:
  """Reads the rotary embedding, whose base the first release called theta.

  Raises:
    ValueError: If both names are there and differ.
  """
  theta = fields.number("theta", 1e6, least=1.0, most=1e30)
  rope = read_whole_rope(fields, plain.head_width(fields), theta=theta)
  if fields.get("theta") is not None and rope.theta != theta:
    raise fields.error("theta", "rope_theta says something else")
  return rope


def _kinds(fields: Fields) -> list[str]:
  """Reads the kinds of the layers: a list, or the numbers of those that attend.

  Raises:
    ValueError: If a kind is unknown, or the two say different things.
  """
  kinds = plain.layer_kinds(fields, ("layer_types",))
  if kinds is None:
    layers = fields.count("num_hidden_layers", most=plain.MOST_LAYERS)
    return _listed(fields, layers) or [_KINDS[1]] * layers
  plain.check_kinds(fields, "layer_types", kinds, _KINDS)
  if _listed(fields, len(kinds)) not in (None, kinds):
    raise fields.error("layer_types", "full_attn_idxs says something else")
  return kinds


def _listed(fields: Fields, layers: int) -> list[str] | None:
  """The kinds by the numbers of the layers that attend, or None.

  Raises:
    ValueError: If a number is none of a layer.
  """
  attending = fields.ids("full_attn_idxs")
  if any(layer >= layers for layer in attending):
    raise fields.error("full_attn_idxs", f"there are {layers} layers, from 0")
  if fields.get("full_attn_idxs") is None:
    return None
  return [_KINDS[layer in attending] for layer in range(layers)]


def _hidden(fields: Fields) -> int:
  """Reads the width of SwiGLU, which most files adjust to a multiple."""
  width = fields.count("block_ff_dim", fields.count("intermediate_size", 12288))
  multiple = fields.count("block_multiple_of", 256)
  factor = fields.number("block_ffn_dim_multiplier", 1.0, **plain.FACTORS)
  if not fields.flag("block_auto_adjust_ff_dim", True):
    return width
  if fields.values.get("block_ffn_dim_multiplier", factor) is None:
    return int(2 * width / 3)  # null is not 1: nothing is rounded then
  adjusted = int(factor * int(2 * width / 3))
  return max(1, -(-adjusted // multiple)) * multiple


def _attention(fields: Fields, rope: Rope, eps: float) -> AttentionConfig:
  """Reads the layers of attention, whose heads are normalised."""
  heads = fields.count("num_attention_heads")
  return AttentionConfig(
    heads=heads,
    kv_heads=fields.count("num_key_value_heads", heads),
    head_width=plain.head_width(fields),
    rotary_width=rope.width,
    rope_theta=rope.theta,
    rope_scaling=rope.scaling,
    eps=eps,
    gate=False,
    centred=False,
  )


def _sources(branch: Branch) -> dict[str, Source]:
  """Where the parameters of a branch come from, by its sublayer."""
  sub = branch.sub
  before = {"pre": same("operator_norm.weight")}
  if isinstance(sub, ShortConvConfig):
    return before | _convolution(sub)
  if isinstance(sub, AttentionConfig):
    sources = plain.attention_sources(sub, "self_attn.")
    return (
      before
      | sources
      | {
        "sub.out": same("self_attn.out_proj.weight", rank=2),
        "sub.query_norm": same("self_attn.q_layernorm.weight"),
        "sub.key_norm": same("self_attn.k_layernorm.weight"),
      }
    )
  if not isinstance(sub, SwiGLUConfig):
    raise ValueError(f"sub is {sub!r}; it must be of an LFM2 model.")
  names = {"gate": "w1", "up": "w3", "down": "w2"}
  return {"pre": same("ffn_norm.weight")} | {
    f"sub.{ours}": same(f"feed_forward.{theirs}.weight", rank=2)
    for ours, theirs in names.items()
  }


def _convolution(sub: ShortConvConfig) -> dict[str, Source]:
  """Where a short convolution comes from: one projection is cut into three."""
  weight, bias = "conv.in_proj.weight", "conv.in_proj.bias"
  d = sub.channels
  cuts = {"enter": (0, d), "leave": (d, 2 * d), "mixed": (2 * d, 2**30)}
  sources = {
    f"sub.in_{name}": rows_of(weight, *cut) for name, cut in cuts.items()
  }
  if sub.bias:
    sources |= {
      f"sub.in_{name}_bias": rows_of(bias, *cut, rank=1)
      for name, cut in cuts.items()
    }
    sources["sub.conv_bias"] = same("conv.conv.bias")
    sources["sub.out_bias"] = same("conv.out_proj.bias")
  return sources | {
    "sub.conv": taps_first("conv.conv.weight"),
    "sub.out": same("conv.out_proj.weight", rank=2),
  }


LFM2 = Family(
  model_types=("lfm2",),
  read=_read,
  sources=_sources,
  norm="embedding_norm.weight",
  embedding="embed_tokens.weight",
  head="lm_head.weight",
  # How weights were initialised, and names of the first release that repeat
  # others.
  harmless_keys=frozenset(
    {"block_dim", "block_mlp_init_scale", "block_norm_eps"}
    | {"block_out_init_scale", "block_use_swiglu", "block_use_xavier_init"}
    | {"conv_dim", "conv_dim_out", "conv_use_xavier_init", "num_heads"}
  ),
  harmless_tensors=(),
  tied=True,
)
"""Gated short convolutions and normed attention, SwiGLU behind each."""
