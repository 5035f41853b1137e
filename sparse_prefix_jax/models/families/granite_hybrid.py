"""Foreign names of the Granite-4 hybrids, dense and mixtures of experts."""

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  ExpertsConfig,
  Mamba2Config,
  Norm,
  Numerics,
  ParallelConfig,
  Sublayer,
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
)
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.rope import Rope, read_whole_rope
from sparse_prefix_jax.models.families.state_space import (
  STEP_KEYS,
  check_plain,
  mamba2_sources,
  read_mamba2,
)

_MAMBA = ("mamba", "linear_attention")
_ATTENTION = ("attention", "full_attention")


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: a mixer, then feed-forward layers, per layer."""
  check_plain(fields)
  eps = fields.number("rms_norm_eps", 1e-6, **plain.EPS)
  rope = read_whole_rope(fields, plain.head_width(fields))
  norm = Norm(centred=False, eps=eps)
  scale = fields.number("residual_multiplier", 1.0, **plain.FACTORS)
  feed_forward = Branch(_feed_forward(fields), pre=norm, scale=scale)
  mamba, attention = read_mamba2(fields, eps), _attention(fields, rope)
  branches = []
  for kind in _layer_types(fields):
    mixer = mamba if kind in _MAMBA else attention
    branches += [Branch(mixer, pre=norm, scale=scale), feed_forward]
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=fields.count("hidden_size"),
    branches=tuple(branches),
    final_norm=norm,
    embedding_scale=fields.number("embedding_multiplier", 1.0, **plain.FACTORS),
    # Logits are divided by what the file says.
    logits_scale=1 / fields.number("logits_scaling", 1.0, **plain.FACTORS),
    numerics=Numerics(ladder=SINGLE_RUNG, max_length=rope.length),
  )


def _attention(fields: Fields, rope: Rope) -> AttentionConfig:
  """Reads the layers of attention; most models tell no positions apart."""
  fields.only("position_embedding_type", "rope", "nope")
  rotated = fields.get("position_embedding_type") == "rope"
  heads = fields.count("num_attention_heads")
  bias = fields.flag("attention_bias", False)
  return AttentionConfig(
    heads=heads,
    kv_heads=fields.count("num_key_value_heads", heads),
    head_width=plain.head_width(fields),
    rotary_width=rope.width if rotated else None,
    rope_theta=rope.theta,
    rope_scaling=rope.scaling if rotated else None,
    gate=False,
    head_norm=False,
    bias=bias,
    out_bias=bias,
    scale=fields.number("attention_multiplier", 1.0, **plain.FACTORS),
  )


def _feed_forward(fields: Fields) -> Sublayer:
  """Reads SwiGLU, or experts beside it."""
  shared = SwiGLUConfig(hidden=fields.count("shared_intermediate_size"))
  if not fields.get("num_local_experts"):
    for key in ("intermediate_size", "num_experts_per_tok"):
      fields.get(key)  # of experts that the model does not have
    return shared
  experts = ExpertsConfig(
    experts=fields.count("num_local_experts"),
    chosen=fields.count("num_experts_per_tok", 2),
    hidden=fields.count("intermediate_size"),
  )
  return ParallelConfig((experts, shared))


def _layer_types(fields: Fields) -> list[str]:
  """Reads the kinds of the layers, under either name of the key."""
  keys = ("layer_types", "layers_block_type")
  kinds = plain.layer_kinds(fields, keys)
  if kinds is None:
    raise ValueError(f"{fields.where} lacks layer_types.")
  plain.check_kinds(fields, keys[0], kinds, (*_MAMBA, *_ATTENTION))
  return kinds


def _sources(branch: Branch) -> dict[str, Source]:
  """Where the parameters of a branch come from, by its sublayer."""
  sub = branch.sub
  before = {"pre": same("input_layernorm.weight")}
  if isinstance(sub, Mamba2Config):
    return before | mamba2_sources(sub, "mamba.")
  if isinstance(sub, AttentionConfig):
    return before | plain.attention_sources(sub, "self_attn.")
  return {"pre": same("post_attention_layernorm.weight")} | _mlp(sub)


def _mlp(sub: Sublayer) -> dict[str, Source]:
  """Where feed-forward layers come from: gate and up are one tensor."""
  if isinstance(sub, ParallelConfig):
    shared = plain.inside_pair(_mlp(sub.subs[1]), 1)
    prefix = "block_sparse_moe."
    return shared | {
      "sub.subs.0.router": same(prefix + "router.layer.weight", rank=2),
      "sub.subs.0.gate_up": same(prefix + "input_linear.weight", rank=3),
      "sub.subs.0.down": same(prefix + "output_linear.weight", rank=3),
    }
  if not isinstance(sub, SwiGLUConfig):
    raise ValueError(f"sub is {sub!r}; it must be SwiGLU, or experts with it.")
  both = "shared_mlp.input_linear.weight"
  return {
    "sub.gate": rows_of(both, 0, sub.hidden),
    "sub.up": rows_of(both, sub.hidden, 2**30),
    "sub.down": same("shared_mlp.output_linear.weight", rank=2),
  }


GRANITE_HYBRID = Family(
  model_types=("granitemoehybrid",),
  read=_read,
  sources=_sources,
  embedding="embed_tokens.weight",
  head="lm_head.weight",
  # Chunks of another implementation, how weights were initialised, and what
  # only training normalises.
  harmless_keys=STEP_KEYS
  | {"mamba_chunk_size", "normalization_function", "init_method"},
  harmless_tensors=(),
)
"""Mamba-2 and plain attention, SwiGLU with or without experts, factors."""
