"""Foreign names of RecurrentGemma: RG-LRU and attention within a window."""

import ml_dtypes

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  Norm,
  Numerics,
  RGLRUConfig,
  SwiGLUConfig,
)
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import plain
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Family,
  Source,
  in_a_row,
  same,
  taps_first,
)
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.rope import Rope, read_rope

_KINDS = ("recurrent", "attention")


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: a mixer, then a gated gelu, per layer."""
  plain.check_decoder(fields)
  fields.only("hidden_activation", "gelu_pytorch_tanh")
  fields.only("embeddings_scale_by_sqrt_dim", True)
  width, heads = (
    fields.count("hidden_size"),
    fields.count("num_attention_heads"),
  )
  head_width = fields.count("head_dim", max(1, width // heads))
  rope = read_rope(fields, head_width, 0.5)
  if rope.scaling is not None:
    raise ValueError(
      f"rope_parameters in {fields.where} scales frequencies "
      f"({rope.scaling.kind}); this family rotates without."
    )
  norm = Norm(eps=fields.number("rms_norm_eps", 1e-6, **plain.EPS))
  mixers = {
    "recurrent": RGLRUConfig(
      channels=fields.count("lru_width", width),
      heads=heads,
      window=fields.count("conv1d_width", 4),
    ),
    "attention": _attention(fields, rope, head_width),
  }
  feed_forward = SwiGLUConfig(
    # Gate and up are half of it each.
    hidden=max(1, fields.count("intermediate_size") // 2),
    activation="gelu_tanh",
    bias=True,
  )
  branches = []
  for kind in _kinds(fields):
    branches += [Branch(mixers[kind], pre=norm), Branch(feed_forward, pre=norm)]
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=width,
    branches=tuple(branches),
    final_norm=norm,
    # Rounded to this type whatever the model is held in.
    embedding_scale=float(ml_dtypes.bfloat16(width**0.5)),
    logits_cap=fields.number("logits_soft_cap", 30.0, **plain.FACTORS),
    numerics=Numerics(ladder=SINGLE_RUNG, max_length=rope.length),
  )


def _kinds(fields: Fields) -> list[str]:
  """Reads the kinds of the layers: a few that are repeated."""
  kinds = fields.texts("block_types")
  if kinds is None:
    kinds = [_KINDS[0], _KINDS[0], _KINDS[1]]
  if not kinds:
    raise fields.error("block_types", "it must name a kind of layers")
  plain.check_kinds(fields, "block_types", kinds, _KINDS)
  layers = fields.count("num_hidden_layers", most=plain.MOST_LAYERS)
  return (kinds * layers)[:layers]


def _attention(fields: Fields, rope: Rope, head_width: int) -> AttentionConfig:
  """Reads the layers of attention."""
  heads = fields.count("num_attention_heads")
  return AttentionConfig(
    heads=heads,
    kv_heads=fields.count("num_key_value_heads", heads),
    head_width=head_width,
    rotary_width=rope.width,
    rope_theta=rope.theta,
    gate=False,
    head_norm=False,
    attention_window=fields.count("attention_window_size", 2048),
    bias=fields.flag("attention_bias", False),
    out_bias=True,
  )


def _sources(branch: Branch) -> dict[str, Source]:
  """Where the parameters of a branch come from, by its sublayer."""
  sub = branch.sub
  before = {"pre": same("temporal_pre_norm.weight")}
  if isinstance(sub, RGLRUConfig):
    return before | _recurrent()
  if isinstance(sub, AttentionConfig):
    return before | plain.attention_sources(sub, "temporal_block.")
  if not isinstance(sub, SwiGLUConfig):
    raise ValueError(f"sub is {sub!r}; it must be of RecurrentGemma.")
  sources = plain.feed_forward_sources(sub, "mlp_block.")
  return sources | {"pre": same("channel_pre_norm.weight")}


def _recurrent() -> dict[str, Source]:
  """Where a recurrent layer comes from."""
  prefix = "temporal_block."
  products = {
    "in_mixed": "linear_x",
    "in_gate": "linear_y",
    "out": "linear_out",
  }
  sources = {}
  for ours, theirs in products.items():
    sources[f"sub.{ours}"] = same(f"{prefix}{theirs}.weight", rank=2)
    sources[f"sub.{ours}_bias"] = same(f"{prefix}{theirs}.bias")
  for gate in ("input_gate", "recurrent_gate"):
    name = f"{prefix}rg_lru.{gate}"
    sources[f"sub.{gate}"] = same(f"{name}_weight", rank=3)
    sources[f"sub.{gate}_bias"] = in_a_row(f"{name}_bias", rank=2)
  return sources | {
    "sub.conv": taps_first(f"{prefix}conv_1d.weight"),
    "sub.conv_bias": same(f"{prefix}conv_1d.bias"),
    "sub.rate": same(f"{prefix}rg_lru.recurrent_param"),
  }


RECURRENT_GEMMA = Family(
  model_types=("recurrent_gemma",),
  read=_read,
  sources=_sources,
  norm="final_norm.weight",
  embedding="embed_tokens.weight",
  head="lm_head.weight",
  # How weights were initialised; the kinds of all layers, derived from a few.
  harmless_keys=frozenset(
    {"w_init_variance_scale", "final_w_init_variance_scale"}
    | {"layers_block_type", "layer_types", "_block_types"}
  ),
  harmless_tensors=(),
  tied=True,
)
"""RG-LRU and attention within a window, a gated gelu behind each."""
