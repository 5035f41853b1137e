"""Words, ids and names that training never sees."""

import itertools

import pytest

from sparse_prefix_jax.workloads.recall import vocabulary


def test_every_word_has_an_id_of_its_own_below_the_size() -> None:
  ids = [vocabulary.word_id(word) for word in vocabulary.WORDS]
  assert ids == list(range(vocabulary.FIRST_WORD, max(ids) + 1))
  assert max(ids) < vocabulary.VOCAB_SIZE
  assert vocabulary.VOCAB_SIZE % 64 == 0


def test_no_word_is_of_two_kinds() -> None:
  kinds = (
    vocabulary.FIRST_NAMES,
    vocabulary.LAST_NAMES,
    vocabulary.TOWNS,
    vocabulary.KEPT,
    vocabulary.NOUNS,
    vocabulary.ADJECTIVES,
  )
  for kind in kinds:
    assert len(set(kind)) == len(kind)
  for one, other in itertools.combinations(kinds, 2):
    assert not set(one) & set(other)
  assert not any(word[0] in "aeiou" for word in vocabulary.KEPT)  # "a goat"


def test_names_are_divided_and_every_word_is_learned() -> None:
  training = vocabulary.name_pairs(held_out=False).tolist()
  tests = vocabulary.name_pairs(held_out=True).tolist()
  assert sorted(training + tests) == [
    [i, j] for i in range(64) for j in range(64)
  ]
  assert len(tests) == 64 * 64 // 8
  assert {first for first, _ in training} == set(range(64))
  assert {last for _, last in training} == set(range(64))


def test_a_word_that_is_none_is_refused() -> None:
  with pytest.raises(ValueError, match="word is 'Atlantis'; it must be one"):
    vocabulary.ids_of("Anna Berg lives in Atlantis .")
