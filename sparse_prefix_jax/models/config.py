"""The one frozen configuration of a model: its architecture and numerics."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from sparse_prefix_jax.kinds import brief, check_class
from sparse_prefix_jax.layers.branch import Branch
from sparse_prefix_jax.layers.choices import check_values, is_int, is_positive
from sparse_prefix_jax.layers.normalization import Norm
from sparse_prefix_jax.layers.numerics import Numerics

_LANES = 64
_NORM = Norm()
_NUMERICS = Numerics()


def check_fields(changes: Mapping[str, Any]) -> None:
  """Refuses names that are no field of `ModelConfig` or `Numerics`.

  Constructors raise TypeError for these; they are a caller's mistake like a
  value out of its range, and get the same kind of sentence.

  Args:
    changes: Values by the names of the fields they replace.

  Raises:
    ValueError: Naming the first of them.

  Example:
    >>> check_fields({"width": 64, "chunk": 16})
  """
  known = [*_names(ModelConfig), *_names(Numerics)]
  for name, value in changes.items():
    if name not in known:
      raise ValueError(
        f"{name} is {value!r}, but no such field exists; the fields are "
        f"{', '.join(known)}."
      )


def split_numerics(
  changes: Mapping[str, Any], numerics: Numerics
) -> tuple[Numerics, dict[str, Any]]:
  """Separates what changes numerics from what changes the architecture.

  Args:
    changes: Fields of `ModelConfig` or of `Numerics`, by name.
    numerics: What is changed, unless `changes` holds `numerics`.

  Returns:
    The numerics, and the other fields of `ModelConfig`.

  Raises:
    ValueError: If a field does not exist, or one of numerics is out of range.

  Example:
    >>> split_numerics({"chunk": 128, "width": 64}, Numerics())[1]
    {'width': 64}
  """
  check_fields(changes)
  inner = {n: x for n, x in changes.items() if n in _names(Numerics)}
  rest = {n: x for n, x in changes.items() if n not in inner}
  numerics = rest.pop("numerics", numerics)
  _check_kind("numerics", numerics, Numerics)
  return dataclasses.replace(numerics, **inner), rest


def _check_kind(name: str, value: Any, kind: type) -> None:
  """Refuses what is of another class than a field must be."""
  if not isinstance(value, kind):
    raise ValueError(f"{name} is {value!r}; it must be a {kind.__name__}.")


def _names(kind: Any) -> list[str]:
  """The names of the fields of a dataclass."""
  return [field.name for field in dataclasses.fields(kind)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Static choices of a decoder; hashable, hence a static argument.

  A model is an embedding, a flat tuple of residual branches, a final norm and a
  head. No part of it knows a family of models: what differs between two of them
  is which sublayers stand in the branches, and with what choices.

  Attributes:
    vocab_size: Number of token ids.
    width: Model width d.
    branches: The residual branches, in order. A layer of Qwen3.5 is two: a
      mixer, then a feed-forward layer.
    final_norm: The norm before the head.
    tie_embeddings: Whether the head is the transposed embedding.
    embedding_scale: What embeddings are multiplied by as they enter.
    logits_scale: What logits are multiplied by.
    logits_cap: What they are bounded by then, cap * tanh(logits / cap); None
      leaves them.
    end_ids: Token ids that end a text, for whoever decodes; no logits depend
      on them.
    numerics: Everything else that bits depend on, but the weights.

  Raises:
    ValueError: If a field has another type or is out of its range, or if the
      ladder of the numerics does not fit the widths; the sentence names it, its
      value and what is allowed.

  Example:
    >>> ModelConfig(vocab_size=8, width=64, branches=())
    Traceback (most recent call last):
    ValueError: branches is empty; a model has at least one branch.
  """

  vocab_size: int
  width: int
  branches: tuple[Branch, ...]
  final_norm: Norm = _NORM
  tie_embeddings: bool = True
  embedding_scale: float = 1.0
  logits_scale: float = 1.0
  logits_cap: float | None = None
  end_ids: tuple[int, ...] = ()
  numerics: Numerics = _NUMERICS

  def __post_init__(self) -> None:
    """Refuses what cannot work, or cannot keep the contract."""
    check_values(self)
    self._check_parts()
    self._check_widths()

  def __hash__(self) -> int:
    """A hash of what is cheap to hash: it is taken at every program call.

    Models that differ in their branches alone have the same, and are told
    apart by comparison.
    """
    few = self.vocab_size, self.width, len(self.branches), self.numerics
    return hash(few)

  def replace(self, **changes: Any) -> "ModelConfig":
    """Returns the configuration with other values of some fields.

    Args:
      **changes: Fields of `ModelConfig`, or of its `numerics`.

    Raises:
      ValueError: If a field does not exist, or a value is out of its range.

    Example:
      >>> from sparse_prefix_jax import preset
      >>> preset("tiny").replace(vocab_size=64, chunk=128).numerics.chunk
      128
    """
    numerics, rest = split_numerics(changes, self.numerics)
    return dataclasses.replace(self, numerics=numerics, **rest)

  def to_json(self) -> dict[str, Any]:
    """All choices under the names of the fields, and kinds, ready for JSON."""
    return _plain(self)

  def _check_parts(self) -> None:
    """Refuses branches, norms and numerics that are none."""
    if not self.branches:
      raise ValueError("branches is empty; a model has at least one branch.")
    for index, branch in enumerate(self.branches):
      _check_kind(f"branches[{index}]", branch, Branch)
    size = self.vocab_size
    if not all(is_int(token) and 0 <= token < size for token in self.end_ids):
      raise ValueError(
        f"end_ids is {self.end_ids}; it must hold token ids, ints from 0 and "
        f"below vocab_size = {size}."
      )
    if self.logits_cap is not None and not is_positive(self.logits_cap):
      raise ValueError(
        f"logits_cap is {brief(self.logits_cap)}; it must be a finite "
        "number above 0 or None."
      )
    _check_kind("final_norm", self.final_norm, Norm)
    _check_kind("numerics", self.numerics, Numerics)
    page_dtype = self.numerics.page_dtype
    if page_dtype is not None and not self._keeps_pages():
      raise ValueError(
        f"page_dtype is {page_dtype!r}; no branch keeps keys and values, so it "
        "must be None."
      )

  def _keeps_pages(self) -> bool:
    """Whether any branch keeps something of each chunk."""
    return any(
      jax.tree.leaves(branch.sub.keeps(self.width, self.numerics).pages)
      for branch in self.branches
    )

  def _check_widths(self) -> None:
    """Refuses several rungs of products whose bits would differ."""
    ladder = self.numerics.ladder
    for name, width in self._product_widths():
      if len(ladder) > 1 and width % _LANES:
        raise ValueError(
          f"ladder is {ladder} and {name} is {width}; with several rungs every "
          f"product must be a multiple of {_LANES} wide, since narrower ones "
          "change their bits with the number of rows: use a single rung."
        )

  def _product_widths(self) -> Iterator[tuple[str, int]]:
    """Columns of every product that runs on all rows of a program.

    Those of the head are left out: it has rows of its own, always as many.
    """
    yield "width", self.width
    for branch in self.branches:
      yield from branch.sub.product_widths().items()


def _plain(value: Any) -> Any:
  """A value as JSON knows it: dataclasses are objects, with their kind."""
  if isinstance(value, tuple):
    return [_plain(item) for item in value]
  if not _is_choices(value):
    return value
  kind = {"kind": value.kind} if hasattr(value, "kind") else {}
  return kind | {n: _plain(getattr(value, n)) for n in _names(value)}


def _is_choices(value: Any) -> bool:
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def differences(given: Any, known: Any) -> Iterator[tuple[str, Any, Any]]:
  """Compares two configurations choice by choice.

  Args:
    given: A frozen dataclass.
    known: Another.

  Yields:
    The path to a choice that differs, and both values.

  Example:
    >>> from sparse_prefix_jax import preset
    >>> tiny = preset("tiny")
    >>> list(differences(tiny, tiny.replace(head_rows=8)))
    [('numerics.head_rows', 4, 8)]
  """
  for path, x, y in _pairs(given, known, ""):
    if x != y:
      yield path, x, y


def check_config_kind(config: Any) -> None:
  """Refuses what is no configuration.

  Args:
    config: What a user gave.

  Raises:
    ValueError: If it is anything else.
  """
  check_class("config", config, ModelConfig, "of `preset` or `read_config`")


def _pairs(given: Any, known: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
  """All choices of two configurations, as deep as both have the same form."""
  if _is_choices(given) and type(given) is type(known):
    for name in _names(given):
      inner = f"{path}.{name}" if path else name
      yield from _pairs(getattr(given, name), getattr(known, name), inner)
    return
  same = isinstance(given, tuple) and isinstance(known, tuple)
  if same and len(given) == len(known) and any(map(_is_choices, given)):
    for index, (x, y) in enumerate(zip(given, known, strict=True)):
      yield from _pairs(x, y, f"{path}[{index}]")
    return
  yield path, given, known
