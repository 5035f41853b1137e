"""Foreign names of the Granite-4 hybrids, dense and mixtures of experts."""

from collections.abc import Iterator

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
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Family,
  Source,
  rows_of,
  same,
  transposed,
)
from sparse_prefix_jax.models.families.fields import Fields, shown
from sparse_prefix_jax.models.families.rope import Rope, read_rope
from sparse_prefix_jax.models.families.state_space import (
  check_inner_width,
  check_plain,
  mamba2_sources,
)

_MOST_LAYERS = 1024
_BRANCHES_PER_LAYER = 2
_MAMBA = ("mamba", "linear_attention")
_ATTENTION = ("attention", "full_attention")
_FACTORS = {"least": 1e-6, "most": 1e6}


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: a mixer, then feed-forward layers, per layer."""
  check_plain(fields)
  fields.only("attention_bias", False)
  eps = fields.number("rms_norm_eps", 1e-6, least=1e-30, most=1e3)
  rope = read_rope(fields, _head_width(fields), 1.0)
  norm = Norm(centred=False, eps=eps)
  scale = fields.number("residual_multiplier", 1.0, **_FACTORS)
  feed_forward = Branch(_feed_forward(fields), pre=norm, scale=scale)
  mamba, attention = _mamba2(fields, eps), _attention(fields, rope)
  branches = []
  for kind in _layer_types(fields):
    mixer = mamba if kind in _MAMBA else attention
    branches += [Branch(mixer, pre=norm, scale=scale), feed_forward]
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=fields.count("hidden_size"),
    branches=tuple(branches),
    final_norm=norm,
    embedding_scale=fields.number("embedding_multiplier", 1.0, **_FACTORS),
    # Logits are divided by what the file says.
    logits_scale=1 / fields.number("logits_scaling", 1.0, **_FACTORS),
    numerics=Numerics(ladder=SINGLE_RUNG, max_length=rope.length),
  )


def _head_width(fields: Fields) -> int:
  """Reads the width of a head of attention, or derives it."""
  width = fields.count("hidden_size")
  heads = fields.count("num_attention_heads")
  return fields.count("head_dim", max(1, width // heads))


def _mamba2(fields: Fields, eps: float) -> Mamba2Config:
  """Reads the recurrent layers; their heads may be left to be derived."""
  heads, times = fields.count("mamba_n_heads"), fields.count("mamba_expand", 2)
  derived = fields.get("mamba_d_head") in (None, "auto")
  inner = times * fields.count("hidden_size")
  sub = Mamba2Config(
    heads=heads,
    groups=fields.count("mamba_n_groups", 1),
    head_width=max(1, inner // heads)
    if derived
    else fields.count("mamba_d_head"),
    state_width=fields.count("mamba_d_state"),
    window=fields.count("mamba_d_conv", 4),
    bias=fields.flag("mamba_proj_bias", False),
    conv_bias=fields.flag("mamba_conv_bias", True),
    eps=eps,
  )
  check_inner_width(fields, "mamba_expand", sub)
  return sub


def _attention(fields: Fields, rope: Rope) -> AttentionConfig:
  """Reads the layers of attention; most models tell no positions apart."""
  fields.only("position_embedding_type", "rope", "nope")
  rotated = fields.get("position_embedding_type") == "rope"
  heads = fields.count("num_attention_heads")
  return AttentionConfig(
    heads=heads,
    kv_heads=fields.count("num_key_value_heads", heads),
    head_width=_head_width(fields),
    rotary_width=rope.width if rotated else None,
    rope_theta=rope.theta,
    rope_scaling=rope.scaling if rotated else None,
    gate=False,
    head_norm=False,
    scale=fields.number("attention_multiplier", 1.0, **_FACTORS),
  )


def _feed_forward(fields: Fields) -> Sublayer:
  """Reads SwiGLU, or experts beside it."""
  shared = SwiGLUConfig(hidden=fields.count("shared_intermediate_size"))
  hidden = fields.count("intermediate_size", 1)
  chosen = fields.count("num_experts_per_tok", 1)
  if not fields.get("num_local_experts"):
    return shared
  experts = ExpertsConfig(
    experts=fields.count("num_local_experts"), chosen=chosen, hidden=hidden
  )
  return ParallelConfig((experts, shared))


def _layer_types(fields: Fields) -> list[str]:
  """Reads the kinds of the layers, under either name of the key.

  Raises:
    ValueError: If a kind is unknown, or if there are not as many as
      `num_hidden_layers` says.
  """
  keys = ("layer_types", "layers_block_type")
  found = [(key, fields.texts(key)) for key in keys]
  given = [(key, kinds) for key, kinds in found if kinds is not None]
  if not given:
    raise ValueError(f"{fields.where} lacks layer_types.")
  key, kinds = given[0]
  if any(other != kinds for _, other in given):
    raise fields.error(key, "layers_block_type says something else")
  for kind in kinds:
    if kind not in (*_MAMBA, *_ATTENTION):
      raise ValueError(
        f"{key} in {fields.where} holds {shown(kind)}; it may hold "
        f"{', '.join((*_MAMBA, *_ATTENTION))}."
      )
  layers = fields.count("num_hidden_layers", max(1, len(kinds)))
  if layers != len(kinds) or layers > _MOST_LAYERS:
    raise ValueError(
      f"{key} in {fields.where} names {len(kinds)} layers; it must name "
      f"num_hidden_layers = {layers}, at most {_MOST_LAYERS}."
    )
  return kinds


def _parameters(config: ModelConfig) -> Iterator[tuple[str, Source]]:
  """Pairs every parameter of the model with its source."""
  yield "embedding", same(GRANITE_HYBRID.embedding, rank=2)
  yield "norm", same("norm.weight")
  if not config.tie_embeddings:
    yield "unembedding", same(GRANITE_HYBRID.head, rank=2)
  for index, branch in enumerate(config.branches):
    inside = f"layers.{index // _BRANCHES_PER_LAYER}."
    for path, source in _sources(branch.sub).items():
      yield f"branches.{index}.{path}", source.inside(inside)


def _sources(sub: Sublayer) -> dict[str, Source]:
  """Where the parameters of a branch come from, by its sublayer."""
  before = {"pre": same("input_layernorm.weight")}
  if isinstance(sub, Mamba2Config):
    return before | mamba2_sources(sub, "mamba.")
  if isinstance(sub, AttentionConfig):
    return before | {
      "sub.in_query_gate": transposed("self_attn.q_proj.weight"),
      "sub.in_key": transposed("self_attn.k_proj.weight"),
      "sub.in_value": transposed("self_attn.v_proj.weight"),
      "sub.out": transposed("self_attn.o_proj.weight"),
    }
  return {"pre": same("post_attention_layernorm.weight")} | _mlp(sub)


def _mlp(sub: Sublayer) -> dict[str, Source]:
  """Where feed-forward layers come from: gate and up are one tensor."""
  if isinstance(sub, ParallelConfig):
    shared = {
      path.replace("sub.", "sub.subs.1."): source
      for path, source in _mlp(sub.subs[1]).items()
    }
    prefix = "block_sparse_moe."
    return shared | {
      "sub.subs.0.router": transposed(prefix + "router.layer.weight"),
      "sub.subs.0.gate_up": same(prefix + "input_linear.weight", rank=3),
      "sub.subs.0.down": same(prefix + "output_linear.weight", rank=3),
    }
  if not isinstance(sub, SwiGLUConfig):
    raise ValueError(f"sub is {sub!r}; it must be SwiGLU, or experts with it.")
  both = "shared_mlp.input_linear.weight"
  return {
    "sub.gate": rows_of(both, 0, sub.hidden),
    "sub.up": rows_of(both, sub.hidden, 2**30),
    "sub.down": transposed("shared_mlp.output_linear.weight"),
  }


GRANITE_HYBRID = Family(
  model_types=("granitemoehybrid",),
  read=_read,
  parameters=_parameters,
  embedding="embed_tokens.weight",
  head="lm_head.weight",
  # Chunks of another implementation, and what only training normalises.
  harmless_keys=frozenset({"mamba_chunk_size", "normalization_function"}),
  harmless_tensors=(),
)
"""Mamba-2 and plain attention, SwiGLU with or without experts, factors."""
