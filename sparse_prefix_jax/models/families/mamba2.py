"""Foreign names of the Mamba-2 models."""

from sparse_prefix_jax.layers import Branch, Mamba2Config, Norm, Numerics
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families import plain
from sparse_prefix_jax.models.families.family import (
  SINGLE_RUNG,
  Family,
  Source,
  same,
)
from sparse_prefix_jax.models.families.fields import Fields
from sparse_prefix_jax.models.families.state_space import (
  STEP_KEYS,
  check_inner_width,
  check_plain,
  mamba2_sources,
)


def _read(fields: Fields) -> ModelConfig:
  """Makes the configuration: Mamba-2 layers alone, one branch each."""
  check_plain(fields)
  eps = fields.number("layer_norm_epsilon", 1e-5, least=1e-30, most=1e3)
  sub = Mamba2Config(
    heads=fields.count("num_heads"),
    groups=fields.count("n_groups"),
    head_width=fields.count("head_dim"),
    state_width=fields.count("state_size"),
    window=fields.count("conv_kernel", 4),
    bias=fields.flag("use_bias", False),
    conv_bias=fields.flag("use_conv_bias", True),
    eps=eps,
  )
  check_inner_width(fields, "expand", sub)
  fields.only("intermediate_size", sub.inner_width)
  fields.only("rms_norm", True)  # without it layers would have no norm
  norm = Norm(centred=False, eps=eps)
  layers = fields.count("num_hidden_layers", most=plain.MOST_LAYERS)
  return ModelConfig(
    vocab_size=fields.count("vocab_size", most=2**24),
    width=fields.count("hidden_size"),
    branches=(Branch(sub, pre=norm),) * layers,
    final_norm=norm,
    numerics=Numerics(ladder=SINGLE_RUNG),
  )


def _sources(branch: Branch) -> dict[str, Source]:
  """Where the parameters of a branch come from: a norm and its mixer."""
  if not isinstance(branch.sub, Mamba2Config):
    raise ValueError(f"sub is {branch.sub!r}; it must be Mamba-2.")
  return mamba2_sources(branch.sub, "mixer.") | {"pre": same("norm.weight")}


MAMBA2 = Family(
  model_types=("mamba2",),
  read=_read,
  sources=_sources,
  norm="backbone.norm_f.weight",
  layers="backbone.layers.",
  branches_per_layer=1,
  embedding="backbone.embeddings.weight",
  head="lm_head.weight",
  # How steps and weights were initialised, chunks of another implementation,
  # the type of a residual stream that here has that of the activations, and
  # an order of norm and gate that no implementation asks for: gates are first.
  harmless_keys=STEP_KEYS
  | {"time_step_floor", "time_step_rank", "time_step_init_scheme"}
  | {"time_step_scale", "rescale_prenorm_residual", "chunk_size"}
  | {"residual_in_fp32", "norm_before_gate"},
  harmless_tensors=(),
)
"""Mamba-2 layers without feed-forward layers between them."""
