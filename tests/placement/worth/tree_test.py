import numpy as np
import pytest

from sparse_prefix_jax.placement.worth.table import ROOT, Table
from sparse_prefix_jax.placement.worth.tree import Tree
from tests.placement.worth import streams


def grown(prompts, seed=0):
  """A tree with random candidates; prefixes of rows, and what was seen."""
  random = np.random.default_rng(seed)
  table, prefixes, numbers = Table(), {}, {}
  tree = Tree(table)
  for keys in prompts:
    way = tree.walk(keys)
    path = [keys[:k] for k in range(1, len(keys) + 1)]
    assert way.matched == sum(prefix in numbers for prefix in path)
    assert [prefixes[row] for row in way.rows] == [
      prefix for prefix in path[: way.matched] if prefix in prefixes.values()
    ]
    for prefix in path:
      numbers.setdefault(prefix, len(numbers) + 1)
    wanted = {len(keys), way.matched, *random.integers(1, 9, 2).tolist()}
    for depth in sorted(wanted):
      if 0 < depth <= len(keys) and way.row_at(depth) is None:
        row = tree.add(way, depth)
        table.kind[row] = 1
        prefixes[row] = keys[:depth]
    tree.finish(way)
  return tree, table, prefixes, numbers


@pytest.mark.parametrize("stream", [streams.conversations, streams.letters])
def test_structure_is_that_of_all_prefixes(stream):
  prompts = stream(1)
  tree, table, prefixes, numbers = grown(prompts)
  assert tree.remembered_blocks == len(numbers)
  rows = {prefix: row for row, prefix in prefixes.items()}
  for row, prefix in prefixes.items():
    above = [prefix[:k] for k in range(len(prefix)) if prefix[:k] in rows]
    assert table.parent[row] == (rows[above[-1]] if above else ROOT)
    assert table.depth[row] == len(prefix)
    assert table.number[row] == numbers[prefix]
    through = [p for p in prompts if p[: len(prefix)] == prefix]
    assert table.length[row] == len(through[-1])
  parents = table.parent[list(prefixes)]
  children = np.bincount(parents, minlength=table.size)
  assert np.array_equal(table.children[: table.size], children)


def test_the_last_prompt_through_the_middle_of_an_edge():
  tree, _, _, _ = grown(["abcdefgh", "abcdefgh"])
  assert tree.walk("abcx").length == 8
  assert tree.walk("x").length == 0


def test_a_removed_leaf_is_unknown_and_its_row_is_used_again():
  tree, table, prefixes, _ = grown(["abcdefgh", "abxy"])
  blocks = tree.remembered_blocks
  (leaf,) = (row for row, prefix in prefixes.items() if prefix == "abxy")
  tree.remove(leaf)
  assert tree.walk("abxy").matched < 4
  assert table.kind[leaf] == 0 and tree.remembered_blocks < blocks
  way = tree.walk("zab")
  assert tree.add(way, 3) == leaf
  tree.finish(way)
  assert tree.walk("zabc").matched == 3
