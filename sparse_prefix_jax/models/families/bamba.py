"""Foreign names of Bamba: Mamba-2 and attention, SwiGLU behind each."""

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  Mamba2Config,
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
)
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.rope import Rope, read_rope
from sparse_prefix_jax.models.families.state_space import (
  STEP_KEYS,
  check_plain,
  mamba2_sources,
  read_mamba2,
)


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: a mixer, then SwiGLU, per layer."""
  check_plain(fields)
  eps = fields.number("rms_norm_eps", 1e-5, **plain.EPS)
  fields.only("partial_rotary_factor", 0.5)  # transformers overwrites it
  rope = read_rope(fields, plain.head_width(fields), 0.5)
  fields.only("attn_rotary_emb", rope.width)  # the same, in channels
  norm = Norm(centred=False, eps=eps)
  mamba = Branch(read_mamba2(fields, eps), pre=norm)
  attention = Branch(_attention(fields, rope), pre=norm)
  feed_forward = SwiGLUConfig(
    hidden=fields.count("intermediate_size"),
    bias=fields.flag("mlp_bias", False),
  )
  layers = fields.count("num_hidden_layers", most=plain.MOST_LAYERS)
  attended = fields.ids("attn_layer_indices")
  if any(layer >= layers for layer in attended):
    raise fields.error(
      "attn_layer_indices", f"there are {layers} layers, from 0"
    )
  branches = []
  for layer in range(layers):
    mixer = attention if layer in attended else mamba
    branches += [mixer, Branch(feed_forward, pre=norm)]
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=fields.count("hidden_size"),
    branches=tuple(branches),
    final_norm=norm,
    numerics=Numerics(ladder=SINGLE_RUNG, max_length=rope.length),
  )


def _attention(fields: Fields, rope: Rope) -> AttentionConfig:
  """Reads the layers of attention."""
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
    bias=bias,
    out_bias=bias,
  )


def _sources(branch: Branch) -> dict[str, Source]:
  """Where the parameters of a branch come from, by its sublayer."""
  sub = branch.sub
  before = {"pre": same("input_layernorm.weight")}
  if isinstance(sub, Mamba2Config):
    return before | mamba2_sources(sub, "mamba.")
  if isinstance(sub, AttentionConfig):
    return before | plain.attention_sources(sub, "self_attn.")
  if not isinstance(sub, SwiGLUConfig):
    raise ValueError(f"sub is {sub!r}; it must be of a Bamba model.")
  sources = plain.feed_forward_sources(sub, "feed_forward.")
  return {"pre": same("pre_ff_layernorm.weight")} | sources


BAMBA = Family(
  model_types=("bamba",),
  read=_read,
  sources=_sources,
  norm="final_layernorm.weight",
  embedding="embed_tokens.weight",
  head="lm_head.weight",
  # Chunks of another implementation, and what training adds to its loss.
  harmless_keys=STEP_KEYS
  | {"mamba_chunk_size", "num_logits_to_keep", "z_loss_coefficient"}
  | {"use_mamba_kernels"},
  harmless_tensors=(),
)
"""Mamba-2 and rotated attention, SwiGLU behind each."""
