"""Users of a load: the same for everybody who serves, and so are answers."""

import itertools

import numpy as np
from flax import nnx

from benchmarks.serving_load import Load, Server, arrivals, serve, summary
from sparse_prefix_jax import HybridDecoder, PrefixCache, preset

LOAD = Load(
  documents=2,
  document=128,
  question=5,
  answer=3,
  opening=40,
  conversations=2,
  turns=3,
)


def test_what_is_asked_does_not_depend_on_how_often():
  slow = itertools.islice(arrivals(LOAD, 1.0, 1e3), 40)
  fast = itertools.islice(arrivals(LOAD, 8.0, 1e3), 40)
  for x, y in zip(slow, fast, strict=True):
    np.testing.assert_array_equal(x.prompt, y.prompt)
    assert x[3:] == y[3:]
    assert 7.9 < x.at / y.at < 8.1


def test_conversations_end_after_their_turns_and_others_begin():
  drawn = list(itertools.islice(arrivals(LOAD, 1.0, 1e3), 60))
  talks = [x for x in drawn if x.conversation is not None]
  for number in {x.conversation for x in talks}:
    turns = [x for x in talks if x.conversation == number]
    assert [x.prompt.size for x in turns] == [40, 5, 5][: len(turns)]
    assert [x.ends for x in turns] == [False, False, True][: len(turns)]
  assert len({x.conversation for x in talks}) > 2


def test_every_placement_gives_the_same_answers_and_keeps_conversations():
  model = HybridDecoder(preset("tiny"), rngs=nnx.Rngs(0))
  stream = [x._replace(at=0.0) for x in arrivals(LOAD, 1.0, 16.0)]
  answers = []
  for placement in ("no_cache", "last"):
    cache = PrefixCache(model, capacity="8MiB", placement=placement)
    served = serve(Server(model, cache, LOAD.answer, 256), stream, 1e3)
    assert sorted(x.number for x in served) == [x.number for x in stream]
    assert all(x.arrived <= x.first <= x.last for x in served)
    answers.append({x.number: x.ids for x in served})
    told = summary(served, len(stream))
    assert told["answered"] == 1
    assert (told["restored_share"] > 0) == (placement == "last")
  assert answers[0] == answers[1]
