"""The one frozen configuration of a model and of its numerics."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

from sparse_prefix_jax.layers.attention import AttentionConfig
from sparse_prefix_jax.layers.gated_delta_net import GatedDeltaNetConfig
from sparse_prefix_jax.layers.rotary import RopeScaling

GATED_DELTA_NET = "gated_delta_net"
ATTENTION = "attention"
_DTYPES = ("float32", "bfloat16")
_PRECISIONS = ("default", "high", "highest")
_IMPLEMENTATIONS = ("auto", "xla", "mosaic_gpu", "mosaic_tpu")
_LEAST = {"decode_rows": 2, "head_rows": 2, "window": 2}
_MOST = 2**30  # positions and token ids are int32, with room to add chunks
_LANES = 64
_LEAST_ROWS = 64  # measured: 16 rows differ from 64, 64 to 1,024 agree


def is_int(value: Any) -> TypeGuard[int]:
  """Whether `value` is an int, and not a bool, a float or of NumPy.

  Integers of NumPy are refused since those of 32 bits overflow in products of
  sizes, which Python's do not.

  Example:
    >>> is_int(64), is_int(64.0), is_int(True)
    (True, False, False)
  """
  return isinstance(value, int) and not isinstance(value, bool)


def is_positive(value: Any) -> TypeGuard[float]:
  """Whether `value` is a finite number above 0, an int or a float.

  With an epsilon of 0 a norm of zeros is not a number; a base of 0 or below has
  no real powers.

  Example:
    >>> is_positive(1e-6), is_positive(float("nan")), is_positive("1")
    (True, False, False)
  """
  number = is_int(value) or isinstance(value, float)
  # Compared, not converted: an int of 400 digits is above every float.
  return number and 0 < value <= sys.float_info.max


def check_fields(changes: Mapping[str, Any]) -> None:
  """Refuses names that are no field of `ModelConfig`.

  Constructors raise TypeError for these; they are a caller's mistake like a
  value out of its range, and get the same kind of sentence.

  Args:
    changes: Values by the names of the fields they replace.

  Raises:
    ValueError: Naming the first of them.

  Example:
    >>> check_fields({"width": 64})
  """
  known = [field.name for field in dataclasses.fields(ModelConfig)]
  for name, value in changes.items():
    if name not in known:
      raise ValueError(
        f"{name} is {value!r}, but no such field exists; the fields are "
        f"{', '.join(known)}."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Static choices of a hybrid decoder; hashable, hence a static argument.

  Everything here is part of the *numerics*: two configurations that differ in
  one field do not promise equal bits, and a cache belongs to one of them.

  Attributes:
    vocab_size: Number of token ids.
    width: Model width d.
    hidden: Width of the feed-forward layers.
    layer_types: One of "gated_delta_net" or "attention" per layer.
    key_heads: Gated DeltaNet: heads h of queries and keys.
    value_heads: Gated DeltaNet: heads hv of values.
    key_width: Gated DeltaNet: width k of a head.
    value_width: Gated DeltaNet: width v of a head.
    window: Taps w of the short convolution.
    heads: Attention: query heads.
    kv_heads: Attention: heads hkv of keys and values.
    head_width: Attention: width of a head.
    rotary_width: Attention: leading channels that are rotated.
    rope_theta: Attention: base of the frequencies.
    rope_scaling: Attention: how the frequencies are scaled; None leaves them.
    eps: What every norm adds to the mean square.
    tie_embeddings: Whether the head is the transposed embedding.
    dtype: "float32" or "bfloat16": weights, activations, keys and values.
    precision: The precision of products, as `jax.lax.Precision` names it.
    implementation: Which implementation of the operations runs: "auto" is the
      best that fits device and shapes; of the names, "xla" runs everywhere.
    chunk: Chunk length c in tokens; the lattice is its multiples.
    ladder: Packed chunks that one prefill program may take, ascending; one
      compilation each. Several rungs need widths that are multiples of 64 and
      at least 64 rows in the smallest.
    decode_rows: Rows of the decode program, at least 2.
    head_rows: Rows of the head program, at least 2.
    max_length: Longest sequence in tokens, prompt and decoded.
    end_ids: Token ids that end a text, for whoever decodes; no logits depend
      on them.

  Raises:
    ValueError: If a field has another type or is out of its range; the sentence
      names it, its value and what is allowed. No count is above 2**30.

  Example:
    >>> ModelConfig(vocab_size=8, width=64, hidden=64, layer_types=())
    Traceback (most recent call last):
    ValueError: layer_types is empty; a model has at least one layer.
  """

  vocab_size: int
  width: int
  hidden: int
  layer_types: tuple[str, ...]
  key_heads: int = 16
  value_heads: int = 16
  key_width: int = 128
  value_width: int = 128
  window: int = 4
  heads: int = 8
  kv_heads: int = 2
  head_width: int = 256
  rotary_width: int = 64
  rope_theta: float = 1e7
  rope_scaling: RopeScaling | None = None
  eps: float = 1e-6
  tie_embeddings: bool = True
  dtype: str = "float32"
  precision: str = "highest"
  implementation: str = "auto"
  chunk: int = 64
  ladder: tuple[int, ...] = (1, 2, 4, 8, 16)
  decode_rows: int = 4
  head_rows: int = 4
  max_length: int = 32768
  end_ids: tuple[int, ...] = ()

  def __post_init__(self) -> None:
    """Refuses what cannot work, or cannot keep the contract.

    Raises:
      ValueError: Naming the field, its value and what is allowed.
    """
    self._check_types()
    self._check_counts()
    self._check_multiples()
    self._check_choices()
    self._check_ladder()

  @property
  def _implementation(self) -> str | None:
    """The implementation as operations take it, where None chooses."""
    return None if self.implementation == "auto" else self.implementation

  @property
  def gated_delta_net(self) -> GatedDeltaNetConfig:
    """The choices of one Gated DeltaNet layer."""
    return GatedDeltaNetConfig(
      width=self.width,
      key_heads=self.key_heads,
      value_heads=self.value_heads,
      key_width=self.key_width,
      value_width=self.value_width,
      window=self.window,
      eps=self.eps,
      dtype=self.dtype,
      precision=self.precision,
      implementation=self._implementation,
    )

  @property
  def attention(self) -> AttentionConfig:
    """The choices of one attention layer."""
    return AttentionConfig(
      width=self.width,
      heads=self.heads,
      kv_heads=self.kv_heads,
      head_width=self.head_width,
      rotary_width=self.rotary_width,
      theta=self.rope_theta,
      eps=self.eps,
      dtype=self.dtype,
      precision=self.precision,
      implementation=self._implementation,
      scaling=self.rope_scaling,
    )

  def _check_types(self) -> None:
    """Refuses what only looks like a value: 64.0 rows, lists, "false".

    Nobody checks annotations outside the tests, and a list would be found only
    where the configuration is hashed, a static argument of the first program.
    """
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int:
        fits, allowed = is_int(value), "an int"
      elif field.type is float:
        fits, allowed = is_positive(value), "a finite number above 0"
      elif field.type is bool:
        fits, allowed = isinstance(value, bool), "True or False"
      elif field.type is str:
        fits, allowed = isinstance(value, str), "a string"
      elif field.name == "rope_scaling":
        fits = value is None or isinstance(value, RopeScaling)
        allowed = "None or a RopeScaling"
      else:
        fits, allowed = isinstance(value, tuple), "a tuple"
      if not fits:
        raise ValueError(f"{field.name} is {value!r}; it must be {allowed}.")

  def _check_counts(self) -> None:
    """Refuses counts that are too small, or too large for int32."""
    for field in dataclasses.fields(self):
      value, least = getattr(self, field.name), _LEAST.get(field.name, 1)
      if field.type is int and not least <= value <= _MOST:
        raise ValueError(
          f"{field.name} is {value}; it must be at least {least} and at most "
          f"{_MOST}."
        )

  def _check_multiples(self) -> None:
    """Refuses heads that cannot share, and channels that cannot pair."""
    for many, one in (("value_heads", "key_heads"), ("heads", "kv_heads")):
      if getattr(self, many) % getattr(self, one):
        raise ValueError(
          f"{many} is {getattr(self, many)}; it must be a multiple of "
          f"{one} = {getattr(self, one)}."
        )
    if self.rotary_width % 2 or self.rotary_width > self.head_width:
      raise ValueError(
        f"rotary_width is {self.rotary_width}; it must be even and at most "
        f"head_width = {self.head_width}."
      )

  def _check_choices(self) -> None:
    """Refuses names that are not known."""
    known = (GATED_DELTA_NET, ATTENTION)
    for kind in self.layer_types:
      if kind not in known:
        raise ValueError(
          f"layer_types holds {kind!r}; it may hold {' and '.join(known)}."
        )
    if not self.layer_types:
      raise ValueError("layer_types is empty; a model has at least one layer.")
    scaling = self.rope_scaling
    if scaling is not None and scaling.kind == "yarn" and self.rope_theta <= 1:
      raise ValueError(
        f"rope_theta is {self.rope_theta}; with yarn it must be above 1."
      )
    if not all(is_int(token) and token >= 0 for token in self.end_ids):
      raise ValueError(
        f"end_ids is {self.end_ids}; it must hold token ids, ints from 0."
      )
    choices = {
      "dtype": _DTYPES,
      "precision": _PRECISIONS,
      "implementation": _IMPLEMENTATIONS,
    }
    for name, allowed in choices.items():
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"{name} is {getattr(self, name)!r}; it must be one of "
          f"{', '.join(allowed)}."
        )

  def _check_ladder(self) -> None:
    """Refuses rungs that are no sizes, or whose bits would differ."""
    if (
      not self.ladder
      or not all(map(is_int, self.ladder))
      or min(self.ladder) < 1
      or list(self.ladder) != sorted(set(self.ladder))
    ):
      raise ValueError(
        f"ladder is {self.ladder}; it must be ascending ints, in chunks."
      )
    if self.chunk % 16:
      raise ValueError(f"chunk is {self.chunk}; it must be a multiple of 16.")
    rows = self.chunk * min(self.ladder)
    if len(self.ladder) > 1 and rows < _LEAST_ROWS:
      raise ValueError(
        f"ladder is {self.ladder} and chunk is {self.chunk}, so the smallest "
        f"program has {rows} rows; with several rungs it must have at least "
        f"{_LEAST_ROWS}, since products of fewer change their bits."
      )
    narrow = {n: w for n, w in self._product_widths().items() if w % _LANES}
    if len(self.ladder) > 1 and narrow:
      name, width = next(iter(narrow.items()))
      raise ValueError(
        f"ladder is {self.ladder} and {name} is {width}; with several rungs "
        f"every product must be a multiple of {_LANES} wide, since narrower "
        "ones change their bits with the number of rows: use a single rung."
      )

  def _product_widths(self) -> dict[str, int]:
    """Columns of every product that runs on all rows of a program.

    Those of the head are left out: it has rows of its own, always as many.
    """
    widths = {"width": self.width, "hidden": self.hidden}
    if GATED_DELTA_NET in self.layer_types:
      net = self.gated_delta_net
      widths["key_heads * key_width"] = net.key_heads * net.key_width
      widths["value_heads * value_width"] = net.value_heads * net.value_width
    if ATTENTION in self.layer_types:
      widths["kv_heads * head_width"] = self.kv_heads * self.head_width
    return widths
