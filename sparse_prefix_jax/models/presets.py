"""Named configurations, and the hybrid that they are."""

from typing import Any

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  GatedDeltaNetConfig,
  Norm,
  Numerics,
  Sublayer,
  SwiGLUConfig,
)
from sparse_prefix_jax.layers.rotary import RopeScaling
from sparse_prefix_jax.models.config import ModelConfig

GATED_DELTA_NET = GatedDeltaNetConfig.kind
ATTENTION = AttentionConfig.kind
_NUMERICS = Numerics()


def hybrid(
  *,
  vocab_size: int,
  width: int,
  hidden: int,
  layer_types: tuple[str, ...],
  key_heads: int = 16,
  value_heads: int = 16,
  key_width: int = 128,
  value_width: int = 128,
  window: int = 4,
  heads: int = 8,
  kv_heads: int = 2,
  head_width: int = 256,
  rotary_width: int = 64,
  rope_theta: float = 1e7,
  rope_scaling: RopeScaling | None = None,
  eps: float = 1e-6,
  tie_embeddings: bool = True,
  numerics: Numerics = _NUMERICS,
) -> ModelConfig:
  """Makes a hybrid decoder in the form of Qwen3.5: two branches per layer.

  Each layer is a mixer, then SwiGLU, both under a centred norm. The defaults
  are those of Qwen3.5-0.8B.

  Args:
    vocab_size: Number of token ids.
    width: Model width d.
    hidden: Width of the feed-forward layers.
    layer_types: One of "gated_delta_net" or "attention" per layer.
    key_heads: Gated DeltaNet: heads h of queries and keys.
    value_heads: Gated DeltaNet: heads hv of values.
    key_width: Gated DeltaNet: width k of a head.
    value_width: Gated DeltaNet: width v of a head.
    window: Gated DeltaNet: taps w of the short convolution.
    heads: Attention: query heads.
    kv_heads: Attention: heads hkv of keys and values.
    head_width: Attention: width of a head.
    rotary_width: Attention: leading channels that are rotated.
    rope_theta: Attention: base of the frequencies.
    rope_scaling: Attention: how the frequencies are scaled; None leaves them.
    eps: What every norm adds to the mean square.
    tie_embeddings: Whether the head is the transposed embedding.
    numerics: Everything else that bits depend on.

  Returns:
    A frozen configuration.

  Raises:
    ValueError: If a value is out of its range, naming it and what is allowed.

  Example:
    >>> config = hybrid(
    ...   vocab_size=512, width=1024, hidden=3584, layer_types=("attention",)
    ... )
    >>> [branch.sub.kind for branch in config.branches]
    ['attention', 'swiglu']
  """
  norm = Norm(eps=eps)
  mixers: dict[str, Sublayer] = {
    GATED_DELTA_NET: GatedDeltaNetConfig(
      key_heads=key_heads,
      value_heads=value_heads,
      key_width=key_width,
      value_width=value_width,
      window=window,
      eps=eps,
    ),
    ATTENTION: AttentionConfig(
      heads=heads,
      kv_heads=kv_heads,
      head_width=head_width,
      rotary_width=rotary_width,
      rope_theta=rope_theta,
      rope_scaling=rope_scaling,
      eps=eps,
    ),
  }
  _check_layer_types(layer_types, tuple(mixers))
  feed_forward = Branch(SwiGLUConfig(hidden=hidden), pre=norm)
  branches = []
  for kind in layer_types:
    branches += [Branch(mixers[kind], pre=norm), feed_forward]
  return ModelConfig(
    vocab_size=vocab_size,
    width=width,
    branches=tuple(branches),
    final_norm=norm,
    tie_embeddings=tie_embeddings,
    numerics=numerics,
  )


def _check_layer_types(layer_types: Any, known: tuple[str, ...]) -> None:
  """Refuses kinds of layers that are not known, and models without layers."""
  if not isinstance(layer_types, tuple):
    raise ValueError(f"layer_types is {layer_types!r}; it must be a tuple.")
  for kind in layer_types:
    if kind not in known:
      raise ValueError(
        f"layer_types holds {kind!r}; it may hold {' and '.join(known)}."
      )
  if not layer_types:
    raise ValueError("layer_types is empty; a model has at least one layer.")


def _groups(count: int) -> tuple[str, ...]:
  """Lists three Gated DeltaNet layers and one of attention, `count` times."""
  return ((GATED_DELTA_NET,) * 3 + (ATTENTION,)) * count


PRESETS: dict[str, ModelConfig] = {
  # For tests: compiles in seconds, every mechanism present.
  "tiny": hybrid(
    vocab_size=512,
    width=64,
    hidden=128,
    layer_types=(GATED_DELTA_NET, ATTENTION),
    key_heads=2,
    value_heads=4,
    key_width=32,
    value_width=32,
    heads=4,
    kv_heads=2,
    head_width=32,
    rotary_width=16,
    numerics=Numerics(ladder=(1, 2, 4), max_length=4096),
  ),
  # For the demonstration: a few million parameters, vocabulary of its BPE; few
  # rungs, since each is compiled before the first request is served.
  "demo": hybrid(
    vocab_size=2048,
    width=256,
    hidden=512,
    layer_types=_groups(1),
    key_heads=2,
    value_heads=2,
    key_width=64,
    value_width=64,
    heads=2,
    kv_heads=1,
    head_width=64,
    rotary_width=16,
    numerics=Numerics(ladder=(1, 4, 16), max_length=4096),
  ),
  # One layer group of Qwen3.5-0.8B, as the paper measures it.
  "qwen3_5_0_8b_group": hybrid(
    vocab_size=512, width=1024, hidden=3584, layer_types=_groups(1)
  ),
  "qwen3_5_0_8b": hybrid(
    vocab_size=248320, width=1024, hidden=3584, layer_types=_groups(6)
  ),
}
"""Every configuration that `preset` knows, by name."""


def preset(name: str, **changes: Any) -> ModelConfig:
  """Returns the configuration of that name, with some fields replaced.

  Args:
    name: A key of PRESETS.
    **changes: Fields of `ModelConfig` or of `Numerics`, for example
      `dtype="bfloat16"`.

  Returns:
    A frozen configuration.

  Raises:
    ValueError: If the name is unknown, a field does not exist, or a value is
      out of its range.

  Example:
    >>> preset("tiny", dtype="bfloat16").numerics.dtype
    'bfloat16'
  """
  if name not in PRESETS:
    raise ValueError(
      f"preset is {name!r}; the presets are {', '.join(PRESETS)}."
    )
  return PRESETS[name].replace(**changes)
