"""Nodes come, are shared, and go when nobody needs them."""

import tracemalloc

import numpy as np
import pytest

from sparse_prefix_jax.cache.index import token_blocks
from sparse_prefix_jax.cache.index.remembered import NODE_BYTES
from sparse_prefix_jax.cache.index.tree import (
  Entry,
  Node,
  extend,
  hashes_along,
  keys_along,
  nodes_below,
  prune,
  walk,
)


def test_walking_stops_where_nothing_is_stored():
  root = Node()
  path = extend(root, "abc", [5, 6, 7])
  assert walk(root, "abx") == path[:2]
  assert walk(root, "x") == walk(root, "") == walk(None, "abc") == []
  assert [node.depth for node in path[-1].upwards()] == [3, 2, 1]


def test_a_depth_above_a_node_is_an_ancestor():
  path = extend(Node(), "abc", [0, 1, 2])
  assert [path[2].at_depth(d) for d in (1, 2, 3, 9)] == [*path, path[2]]
  assert set(nodes_below(path[0].parent)) == set(path)


def test_edges_stay_sorted_whether_asked_for_early_or_late():
  early, late = Node(), Node()
  for node in (early, late):
    if node is early:
      assert node.fringe == []
    extend(node, [b"m"], [0])
    extend(node, [b"c"], [1])
    node.ends[b"a"] = Entry(node, b"", b"a")
    node.add_edge(b"a")
    del node.children[b"m"]
    node.drop_edge(b"m")
    extend(node, [b"x"], [2])
    assert node.fringe == [b"a", b"c", b"x"]


def test_keys_that_are_not_bytes_have_no_order():
  root = Node()
  extend(root, [3, 1], [0, 1])
  extend(root, [(2, "x")], [2])
  assert root.fringe == []


def test_an_entry_knows_its_keys():
  entry = Entry(extend(Node(), "abc", [0, 1, 2])[-1], b"", b"tail")
  assert entry.blocks == ("a", "b", "c") and entry.depth == 3
  assert repr(entry) == "Entry(3 blocks, 4 bytes of tail)"


def walked_one_by_one(root, blocks):
  """What `walk` is to return: a child after another."""
  path = []
  for key in blocks:
    root = root.children.get(key)
    if root is None:
      break
    path.append(root)
  return path


def prompts(random, kind):
  """One whose keys are all of one width, or hashes, or bytes of two widths."""
  letters = random.integers(0, 3, random.integers(1, 150))
  if random.random() < 0.7:  # Long chains in common, to compare many at once.
    letters[: random.integers(0, letters.size)] = 0
  if kind == "tokens":
    return token_blocks(np.repeat(letters, 2), 2)[0]
  if kind == "hashes":
    return tuple(letters.tolist())
  return tuple(b"ab"[: 1 + letter % 2] + bytes([letter]) for letter in letters)


@pytest.mark.parametrize("kind", ["tokens", "hashes", "widths"])
def test_chains_are_walked_as_their_nodes_one_by_one(kind):
  """Whatever was added below, cut off and added again."""
  random, root = np.random.default_rng(0), Node()
  for _ in range(200):
    blocks = prompts(random, kind)
    path = walk(root, blocks)
    assert path == walked_one_by_one(root, blocks)
    assert keys_along(path) == [node.key for node in path]
    assert [*hashes_along(path)] == [hash(node.key) for node in path]
    rest = blocks[len(path) :]
    extend(path[-1] if path else root, rest, range(len(rest)))
    assert walk(root, blocks) == walked_one_by_one(root, blocks)
    for leaf in [node for node in nodes_below(root) if not node.children]:
      while random.random() < 0.5 and leaf is not root and not leaf.children:
        prune(leaf)
        leaf = leaf.parent
    assert walk(root, blocks) == walked_one_by_one(root, blocks)


@pytest.mark.parametrize(("paths", "length"), [(1000, 1), (500, 2), (5, 200)])
def test_a_node_takes_no_more_than_is_counted_for_it(paths, length):
  """Alone under a root, which is the most, and behind each other."""
  keys = [
    [bytes([*path.to_bytes(2), place]) for place in range(length)]
    for path in range(paths)
  ]
  root, pages = Node(), range(length)
  tracemalloc.start()
  for path in keys:
    extend(root, path, pages)
  taken = tracemalloc.get_traced_memory()[0]
  tracemalloc.stop()
  assert taken <= NODE_BYTES * paths * length
