"""How a training begins: what recurrent heads remember, and what reaches them.

A head forgets with the time constant tau = 1 / (rate * step). Checkpoints begin
with rates drawn from a range, which leaves most heads with tens of tokens, and
a fact a thousand tokens back has no gradient to be learned by. Here the heads
of a layer begin with time constants that are evenly spaced in the logarithm,
and with gates that hardly depend on the input yet.

A head finds again what it has kept where the query equals the key. Drawn apart,
the two have to find each other first; here they begin as the same function.

Two keys differ by the words that they are made of. Branches drawn at full size
add more to the residual stream than the embedding of a word is, and taps drawn
at random mix the words under a convolution, so that keys of different facts
begin alike; a model then comes to follow one word of a name and drowns the
other, and keys that differ in that one alone overwrite each other, so that no
gradient brings it back. Here branches begin small, and each channel of a key
sees one word.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sparse_prefix_jax.layers import GatedDeltaNet, Mamba2
from sparse_prefix_jax.layers.choices import is_int
from sparse_prefix_jax.models.decoder import HybridDecoder

SHORTEST, LONGEST = 8.0, 8192.0
"""Time constants of the first and of the last head of a layer, in tokens."""
_GATES = 0.1  # what the projections of the gates are multiplied by
_BRANCHES = 0.05  # what the last projections of layers are multiplied by
_LAST_PROJECTIONS = ("out", "down")


def initialize_for_recall(model: HybridDecoder) -> None:
  """Prepares drawn weights for learning to recall, by all that follows here.

  Args:
    model: What is changed.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import preset
    >>> model = HybridDecoder(preset("recall"), rngs=nnx.Rngs(0))
    >>> initialize_for_recall(model)
    >>> model.branches[4].sub.conv[...][:, 1].tolist()
    [0.0, 1.0, 0.0, 0.0, 0.0]
  """
  set_time_constants(model)
  tie_queries_to_keys(model)
  separate_taps(model)
  quieten_branches(model)


def set_time_constants(
  model: HybridDecoder, shortest: float = SHORTEST, longest: float = LONGEST
) -> None:
  """Gives the heads of each recurrent layer time constants from short to long.

  The rates of Gated DeltaNet and Mamba-2 are changed in place, and the
  projections of their gates are made small. A Mamba-2 layer begins with steps
  of one token: steps scale its inputs too.

  Args:
    model: What is changed.
    shortest: Time constant of the first head, in tokens.
    longest: Time constant of the last one.

  Raises:
    ValueError: If the time constants are not above 0 and ascending.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> set_time_constants(model, 10.0, 1000.0)
    >>> layer = model.branches[0].sub
    >>> step = np.logaddexp(0, layer.decay_bias[...])
    >>> np.round(1 / (np.exp(layer.log_rate[...]) * step)).tolist()
    [10.0, 46.0, 215.0, 1000.0]
  """
  if not 0 < shortest <= longest < math.inf:
    raise ValueError(
      f"time constants are {shortest} to {longest}; they must be above 0 and "
      "ascending."
    )
  for branch in model.branches:
    layer = branch.sub
    if isinstance(layer, GatedDeltaNet):
      heads = layer.config.value_heads
      layer.in_decay_beta[...] = layer.in_decay_beta[...] * _GATES
      step = jax.nn.softplus(layer.decay_bias[...])
    elif isinstance(layer, Mamba2):
      heads = layer.config.heads
      layer.in_step[...] = layer.in_step[...] * _GATES
      layer.step_bias[...] = jnp.full(heads, math.log(math.e - 1), jnp.float32)
      step = jnp.ones(heads, jnp.float32)
    else:
      continue
    tau = np.geomspace(shortest, longest, heads).astype(np.float32)
    layer.log_rate[...] = -jnp.log(tau * step)


def tie_queries_to_keys(model: HybridDecoder) -> None:
  """Lets queries of recurrent layers begin as the same function as keys.

  Projections and convolutions of Gated DeltaNet and Mamba-2 are changed in
  place; training takes them apart.

  Args:
    model: What is changed.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> tie_queries_to_keys(model)
    >>> weight = model.branches[0].sub.in_qkv[...]
    >>> bool((weight[:64] == weight[64:128]).all())
    True
  """
  for branch in model.branches:
    layer = branch.sub
    if isinstance(layer, GatedDeltaNet):
      width = layer.config.key_heads * layer.config.key_width
      _repeat(layer, "in_qkv", slice(width, 2 * width), slice(width))
    elif isinstance(layer, Mamba2):
      start, width = layer.config.inner_width, layer.config.mixed_width
      keys = (width - start) // 2
      key = slice(start, start + keys)
      _repeat(layer, "in_mixed", key, slice(start + keys, None))


def quieten_branches(model: HybridDecoder) -> None:
  """Lets branches begin by adding little, so that words pass unchanged.

  The last projections of layers that stand alone in their branch are changed in
  place; those inside a parallel branch or of shared experts stay as they are.

  Args:
    model: What is changed.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> before = model.branches[0].sub.out[...]
    >>> quieten_branches(model)
    >>> round(float((model.branches[0].sub.out[...] / before).mean()), 4)
    0.05
  """
  for branch in model.branches:
    for name in _LAST_PROJECTIONS:
      if hasattr(branch.sub, name):
        weight = getattr(branch.sub, name)
        weight[...] = weight[...] * _BRANCHES


def separate_taps(model: HybridDecoder, words: int = 2) -> None:
  """Lets channels of keys begin with one word each, and values with theirs.

  In the convolutions of Gated DeltaNet, channel i of every head of queries and
  keys begins as tap i mod words, 0 the one furthest back, and every channel of
  values as the last, the token at hand. They are changed in place.

  Args:
    model: What is changed.
    words: How many words a key begins with, those furthest back that the taps
      reach; no more than there are taps.

  Raises:
    ValueError: If words is no int, or below 1.

  Example:
    >>> from flax import nnx
    >>> from sparse_prefix_jax import preset
    >>> model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
    >>> separate_taps(model)
    >>> conv = model.branches[0].sub.conv[...]
    >>> conv[:, 0].tolist(), conv[:, -1].tolist()
    ([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0])
  """
  if not is_int(words) or words < 1:
    raise ValueError(f"words is {words!r}; it must be an int of at least 1.")
  for branch in model.branches:
    layer = branch.sub
    if not isinstance(layer, GatedDeltaNet):
      continue
    width = layer.config.key_width
    keys = 2 * layer.config.key_heads * width
    conv = layer.conv
    window, channels = conv.shape
    channel = jnp.arange(channels, dtype=jnp.int32)
    key_tap = channel % width % min(words, window)
    tap = jnp.where(channel < keys, key_tap, window - 1)
    conv[...] = jax.nn.one_hot(tap, window, axis=0, dtype=conv.dtype)


def _repeat(
  layer: GatedDeltaNet | Mamba2, name: str, source: slice, target: slice
) -> None:
  """Copies channels of a projection and of its convolution."""
  weight, taps = getattr(layer, name), layer.conv
  weight[...] = weight[...].at[target].set(weight[...][source])
  taps[...] = taps[...].at[:, target].set(taps[...][:, source])
