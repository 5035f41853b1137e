"""Sampling: what is refused, in one sentence, and how rows are packed."""

import dataclasses

import numpy as np
import pytest

from sparse_prefix_jax.serving.sampling import (
  Sampling,
  SamplingRow,
  packed_mask,
  sampling_rows,
)

pytestmark = pytest.mark.usefixtures("unchecked_types")


@pytest.mark.parametrize(
  "fields, sentence",
  [
    (
      {"temperature": float("nan")},
      "temperature is nan; it must be a number, at least 0",
    ),
    (
      {"temperature": -1},
      "temperature is -1; it must be a number, at least 0 and finite",
    ),
    ({"temperature": 1e-9}, "it must be 0, or at least 0.0001"),
    ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
    ({"temperature": True}, "temperature is True; it must be a number"),
    ({"top_p": 0}, "top_p is 0; it must be a number, above 0 and at most 1"),
    ({"top_p": 1.5}, "top_p is 1.5"),
    (
      {"min_p": -0.1},
      "min_p is -0.1; it must be a number, at least 0 and at most 1",
    ),
    ({"top_k": -1}, "top_k is -1; it must be 0 to"),
    ({"top_k": 1.5}, "top_k must be an integer, got 1.5"),
    (
      {"repetition_penalty": 0},
      "repetition_penalty is 0; it must be a number, above 0",
    ),
    ({"presence_penalty": float("inf")}, "is inf; it must be a number, finite"),
    ({"seed": 2**32}, "seed is 4294967296; it must be 0 to 4294967295"),
    ({"seed": None}, "seed must be an integer, got None"),
    ({"best": 21}, "best is 21; it must be 0 to 20"),
    ({"logit_bias": 5}, "logit_bias is 5; it must map ids to numbers"),
    ({"logit_bias": np.array(5)}, "it must map ids to numbers"),
    ({"temperature": np.timedelta64(3, "s")}, "temperature is np.timedelta64"),
    ({"logit_bias": {-1: 1.0}}, "names id -1; ids are from 0, each once"),
    ({"logit_bias": ((1, 1.0), (1, 2.0))}, "names id 1"),
    ({"logit_bias": {1: float("nan")}}, "of id 1 is nan"),
    ({"logit_bias": dict.fromkeys(range(301), 1.0)}, "has 301 ids"),
    ({"allowed": [1, 2]}, "allowed is [1, 2]; it must be a function"),
  ],
)
def test_what_cannot_be_meant_is_refused(fields, sentence):
  with pytest.raises(ValueError) as caught:
    Sampling(**fields)
  text = str(caught.value)
  assert sentence in text and "\n" not in text and text.endswith(".")


def test_a_sampling_is_a_value():
  one = Sampling(logit_bias={3: 1, 1: 2})
  assert one == Sampling(logit_bias=iter([(3, 1.0), (1, 2.0)]))
  assert one == Sampling(logit_bias=((1, 2.0), (3, 1.0)))
  assert hash(one) == hash(Sampling(logit_bias={1: 2.0, 3: 1.0}))
  assert dataclasses.replace(one, seed=2).logit_bias == one.logit_bias
  assert not one.has_penalties and Sampling(presence_penalty=1).has_penalties


def test_a_bias_outside_of_the_vocabulary_is_refused():
  Sampling(logit_bias={9: 1}).check_vocabulary(10)
  with pytest.raises(ValueError, match="id 9; the vocabulary is 0 to 8"):
    Sampling(logit_bias={9: 1}).check_vocabulary(9)


@pytest.mark.parametrize(
  "answer, sentence",
  [
    (np.ones(4), "float64 of shape"),
    (np.ones(5, bool), "must return bools of shape"),
    (np.zeros(4, bool), "lets no id follow the 2"),
  ],
)
def test_a_grammar_must_answer_with_a_mask(answer, sentence):
  sampling = Sampling(allowed=lambda _: answer)
  with pytest.raises(ValueError, match=sentence):
    sampling.allowed_after([1, 2], 4)


def test_a_grammar_is_asked_with_what_was_decoded():
  sampling = Sampling(allowed=lambda ids: np.arange(4) == len(ids))
  mask = sampling.allowed_after([7, 7], 4)
  assert mask is not None and mask.tolist() == [False, False, True, False]
  assert Sampling().allowed_after([7], 4) is None


def test_masks_are_packed_bit_by_bit():
  mask = np.random.default_rng(0).random(100) < 0.5
  words = packed_mask(mask, 100)
  bits = [words[i // 32] >> np.uint32(i % 32) & 1 for i in range(100)]
  assert words.dtype == np.uint32 and words.size == 4
  assert [bool(bit) for bit in bits] == mask.tolist()


def test_rows_have_one_shape_whatever_they_ask():
  asked = Sampling(temperature=1.0, logit_bias={3: 1.0}, seed=2**32 - 1, best=2)
  rows = sampling_rows([asked, None, SamplingRow(Sampling(), 3, 1)], 70)
  plain = sampling_rows([None] * 3, 70)
  for x, y in zip(rows, plain, strict=True):
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
  assert rows.active.tolist() == [True, False, True]
  assert rows.seed[0] == 2**32 - 1 and rows.counts.tolist() == [-1, -1, 1]
  assert rows.bias_ids[0, :2].tolist() == [3, -1]
