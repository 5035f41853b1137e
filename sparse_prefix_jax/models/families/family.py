"""What one family of foreign models says: its names, and nothing else."""

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from sparse_prefix_jax.layers import Branch
from sparse_prefix_jax.models.config import ModelConfig
from sparse_prefix_jax.models.families.fields import Fields


class Source(NamedTuple):
  """Where the values of one parameter come from.

  Attributes:
    names: Names of tensors, without prefixes such as "model.".
    ranks: How many axes each of them has.
    convert: Makes the parameter of them. It only moves values, and so can be
      tried on arrays without memory.
    order: How tensors are laid out in memory, "C" or "F", for `convert` to need
      no copy.
    otherwise: Where they come from in files that do not hold these tensors.
  """

  names: tuple[str, ...]
  ranks: tuple[int, ...]
  convert: Callable[..., np.ndarray]
  order: Literal["C", "F"] = "C"
  otherwise: "Source | None" = None

  def inside(self, prefix: str) -> "Source":
    """The same source with a prefix before every name."""
    other = self.otherwise and self.otherwise.inside(prefix)
    names = tuple(prefix + name for name in self.names)
    return self._replace(names=names, otherwise=other)

  def found_in(self, names: Container[str]) -> "Source":
    """The form that a file with these names holds; this one if it has none.

    One of its names is enough: of several, the first may be what is missing.
    """
    other = self.otherwise
    if other is None or any(name in names for name in self.names):
      return self
    return other if any(name in names for name in other.names) else self


SINGLE_RUNG = (4,)
"""The ladder of a model whose widths do not allow several rungs."""


class Family(NamedTuple):
  """Foreign names of one architecture.

  Attributes:
    model_types: The values of `model_type` that it goes by.
    read: Makes the configuration of a model of the text configuration, with
      one rung, which fits all widths, and the model's context. It reads every
      key that changes the logits, and refuses values that are not computed
      here.
    sources: Where the parameters of a branch come from, by their paths in it,
      within a layer.
    embedding: Name of the tensor of embeddings.
    head: Name of the tensor of the head, where the embeddings are not used.
    harmless_keys: Keys that change no logits, beside `HARMLESS_KEYS`.
    harmless_tensors: How names of tensors begin that are no part of the text
      model.
    harmless_ends: How names of tensors end that others are made of, which are
      read: what another implementation computes in advance.
    tied: Whether the head is the embeddings where the file does not say.
    norm: Name of the weight of the final norm.
    layers: How names of tensors begin that stand in a layer.
    branches_per_layer: How many branches a layer has.
  """

  model_types: tuple[str, ...]
  read: Callable[[Fields], ModelConfig]
  sources: Callable[[Branch], dict[str, Source]]
  embedding: str
  head: str
  harmless_keys: frozenset[str]
  harmless_tensors: tuple[str, ...]
  harmless_ends: tuple[str, ...] = ()
  tied: bool = False
  norm: str = "norm.weight"
  layers: str = "layers."
  branches_per_layer: int = 2

  def parameters(self, config: ModelConfig) -> Iterator[tuple[str, Source]]:
    """Pairs every parameter of a model, a dotted path, with its source.

    Args:
      config: The model's configuration.
    """
    yield "embedding", same(self.embedding, rank=2)
    yield "norm", same(self.norm)
    if not config.tie_embeddings:
      yield "unembedding", same(self.head, rank=2)
    for index, branch in enumerate(config.branches):
      inside = f"{self.layers}{index // self.branches_per_layer}."
      for path, source in self.sources(branch).items():
        yield f"branches.{index}.{path}", source.inside(inside)


def same(name: str, rank: int = 1) -> Source:
  """A tensor that is stored as it is used."""
  return Source((name,), (rank,), lambda x: x)


def in_a_row(name: str, rank: int) -> Source:
  """A tensor of several axes that is used as one, a head behind the other."""
  return Source((name,), (rank,), lambda x: x.reshape(-1))


def taps_first(name: str) -> Source:
  """A convolution that is stored as [channels 1 w] and used as [w channels].

  Several channels of inputs would be another convolution; they leave a shape
  that no parameter has.
  """

  def convert(x: np.ndarray) -> np.ndarray:
    return np.squeeze(x, 1).T if x.shape[1] == 1 else x

  return Source((name,), (3,), convert, "F")


def side_by_side(*names: str, shares: Sequence[int]) -> Source:
  """Weights [outputs inputs] that become one product, in this order.

  Args:
    *names: Names of the tensors.
    shares: What of all outputs each has, in proportion: in other proportions
      one would take rows for those of another.
  """
  return Source(names, (2,) * len(names), joined_in(shares))


def joined_in(shares: Sequence[int]) -> Callable[..., np.ndarray]:
  """What puts tensors behind each other, each with its share of the whole.

  Those in other proportions make something of a shape that no parameter has.

  Args:
    shares: Of the first axis, in proportion.

  Example:
    >>> two, three, four = map(np.zeros, (2, 3, 4))
    >>> join = joined_in((2, 1))
    >>> join(four, two).shape, join(three, three).shape
    ((6,), (1, 6))
  """

  def convert(*parts: np.ndarray) -> np.ndarray:
    whole = np.concatenate(parts)
    rows = [part.shape[0] * sum(shares) for part in parts]
    return whole if rows == [len(whole) * s for s in shares] else whole[None]

  return convert


def stack_of(*names: str) -> Source:
  """Weights [outputs inputs] of one shape, stacked as they are stored.

  Weights of several shapes make something of a shape that no parameter has.
  """

  def convert(*parts: np.ndarray) -> np.ndarray:
    same_shape = len({part.shape for part in parts}) == 1
    return np.stack(parts) if same_shape else np.concatenate(parts)

  return Source(names, (2,) * len(names), convert)


def stack_of_pairs(*names: str) -> Source:
  """Weights [outputs inputs] in pairs, such as gate and up of every expert.

  The second of a pair stands below the first, and the pairs are stacked.
  """
  single = stack_of(*names)

  def convert(*parts: np.ndarray) -> np.ndarray:
    rows = single.convert(*parts)
    # Of several shapes they are no stack, and make no parameter.
    if rows.ndim != 3:
      return rows
    return rows.reshape(len(names) // 2, -1, rows.shape[-1])

  return single._replace(convert=convert)


def numbered_experts(
  prefix: str, count: int, gate: str, up: str, down: str
) -> tuple[Source, Source]:
  """Experts that are stored one by one: gate above up, and down, stacked.

  Args:
    prefix: What stands before the number of an expert.
    count: How many there are.
    gate: Name of the weight behind the number, as of the other two.
    up: See `gate`.
    down: See `gate`.

  Example:
    >>> numbered_experts("e.", 2, "w1", "w3", "w2")[0].names
    ('e.0.w1.weight', 'e.0.w3.weight', 'e.1.w1.weight', 'e.1.w3.weight')
  """
  numbers = range(count)
  pairs = (f"{prefix}{n}.{w}.weight" for n in numbers for w in (gate, up))
  single = (f"{prefix}{n}.{down}.weight" for n in numbers)
  return stack_of_pairs(*pairs), stack_of(*single)


def rows_of(name: str, first: int, last: int, rank: int = 2) -> Source:
  """Some rows of a tensor, [outputs inputs] or a bias: one of several products.

  Args:
    name: Name of the tensor.
    first: The first row.
    last: The one after the last; the last part takes all that are left, so that
      a tensor of more rows makes a shape that no parameter has.
    rank: 2 for a weight, 1 for a bias.
  """
  return Source((name,), (rank,), lambda x: x[first:last])
