"""The hybrid that the Qwen families and most presets are."""

from typing import Any

from sparse_prefix_jax.layers import (
  AttentionConfig,
  Branch,
  ExpertsConfig,
  GatedDeltaNetConfig,
  Norm,
  Numerics,
  ParallelConfig,
  SharedExpertConfig,
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
  layer_types: tuple[str, ...],
  hidden: int | None = None,
  feed_forwards: tuple[Sublayer, ...] | None = None,
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

  Each layer is a mixer, then a feed-forward layer, both under a centred norm.
  The defaults are those of Qwen3.5-0.8B.

  Args:
    vocab_size: Number of token ids.
    width: Model width d.
    layer_types: One of "gated_delta_net" or "attention" per layer.
    hidden: Width of the feed-forward layers, where all are SwiGLU.
    feed_forwards: The feed-forward layers, one per layer, where they are not.
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
  branches = []
  subs = _feed_forwards(len(layer_types), hidden, feed_forwards)
  for kind, sub in zip(layer_types, subs, strict=True):
    branches += [Branch(mixers[kind], pre=norm), Branch(sub, pre=norm)]
  return ModelConfig(
    vocab_size=vocab_size,
    width=width,
    branches=tuple(branches),
    final_norm=norm,
    tie_embeddings=tie_embeddings,
    numerics=numerics,
  )


def _feed_forwards(
  layers: int, hidden: int | None, given: tuple[Sublayer, ...] | None
) -> tuple[Sublayer, ...]:
  """Makes equal feed-forward layers of a width, or takes those given."""
  if hidden is not None and given is None:
    return (SwiGLUConfig(hidden=hidden),) * layers
  if hidden is not None or given is None:
    raise ValueError(
      f"hidden is {hidden!r} and feed_forwards is {given!r}; one of them must "
      "be given."
    )
  if len(given) != layers:
    raise ValueError(
      f"feed_forwards holds {len(given)} sublayers; it must hold one for each "
      f"of {layers} layers."
    )
  return given


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


def groups_of_layers(count: int) -> tuple[str, ...]:
  """Lists three Gated DeltaNet layers and one of attention, `count` times.

  Args:
    count: How many groups of these four layers.
  """
  return ((GATED_DELTA_NET,) * 3 + (ATTENTION,)) * count


def mixture(
  *,
  experts: int,
  chosen: int,
  hidden: int,
  shared: int,
  normalized: bool = True,
) -> ParallelConfig:
  """Makes experts, and beside them one that computes every token.

  Args:
    experts: How many there are.
    chosen: How many compute each token.
    hidden: Width of the inner products of each.
    shared: Width of the inner products of the shared one.
    normalized: Whether the weights of the chosen are divided by their sum.

  Example:
    >>> mixture(experts=8, chosen=2, hidden=64, shared=64).subs[0].chosen
    2
  """
  chosen_ones = ExpertsConfig(
    experts=experts, chosen=chosen, hidden=hidden, normalized=normalized
  )
  return ParallelConfig((chosen_ones, SharedExpertConfig(hidden=shared)))
