"""Engine: the same text with and without the cache, turns that resume."""

import itertools

import numpy as np
import pytest

from sparse_prefix_jax import CapacityError, PrefixCache, decode, prefill
from sparse_prefix_jax.placement import PlacementPolicy
from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.serving.engine import Engine
from sparse_prefix_jax.serving.sampling import Sampling
from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer
from sparse_prefix_jax.workloads.demo_corpus import load_demo_corpus
from tests.models_for_tests import small_model
from tests.serving.engine_for_tests import (
  demo_tokenizer,
  new_engine,
  other_model,
  text_model,
)
from tests.serving.text.tokenizers_for_tests import KINDS

CHUNK = 16
TEXT = load_demo_corpus()[0].text
PROMPT, OTHER = TEXT[:200], TEXT[:150] + " Another question?"
WARM = Sampling(temperature=0.8, top_p=0.95, seed=4)
NO_CACHE = PlacementPolicy("no_cache", chunk=CHUNK)


def user(text):
  return {"role": "user", "content": text}


def assistant(text):
  return {"role": "assistant", "content": text}


def assert_nothing_runs(engine):
  engine.cache.audit()
  assert engine.cache.sequences == ()


def test_greedy_ids_are_those_of_prefill_and_decode():
  engine = new_engine()
  (out,) = engine.generate([PROMPT], max_tokens=20)
  model, cache = text_model(), new_engine(NO_CACHE).cache
  ids = demo_tokenizer().encode(PROMPT)
  step = prefill(model, cache, [ids])
  logits, sequences, expected = step.logits[0], step.sequences, []
  for _ in range(20):
    expected.append(int(logits.argmax()))
    stepped = decode(model, cache, sequences, expected[-1:])
    sequences, logits = stepped.sequences, stepped.logits[0]
  (one,) = out.completions
  assert list(one.ids) == expected
  assert one.text == out.text == demo_tokenizer().decode(expected)
  assert (one.finish_reason, len(one.logprobs)) == ("length", 20)
  assert out.prompt_ids == tuple(ids.tolist())
  assert_nothing_runs(engine)


@pytest.mark.parametrize("sampling", [Sampling(), WARM])
def test_texts_are_the_same_with_and_without_a_cache(sampling):
  cached, cold = new_engine(), new_engine(NO_CACHE)
  for round_, prompt in enumerate([PROMPT, OTHER, PROMPT, OTHER]):
    (ours,) = cached.generate([prompt], sampling, max_tokens=12)
    (theirs,) = cold.generate([prompt], sampling, max_tokens=12)
    assert ours.completions == theirs.completions
    assert theirs.restored == 0
    length = len(ours.prompt_ids)
    assert ours.restored + ours.computed == length
    if round_ >= 2:
      assert ours.restored == (length - 1) // CHUNK * CHUNK
      assert ours.reason in ("complete", "last_token")


def test_a_prompt_draws_the_same_beside_others():
  engine = new_engine()
  penalised = Sampling(temperature=1.0, repetition_penalty=1.3, seed=9)
  alone = [
    engine.generate([p], penalised, max_tokens=8)[0].completions
    for p in (PROMPT, OTHER)
  ]
  together = engine.generate([OTHER, PROMPT, OTHER], penalised, max_tokens=8)
  assert [one.completions for one in together] == [alone[1], alone[0], alone[1]]


def test_deltas_in_a_row_are_the_text():
  engine = new_engine()
  asked = Sampling(temperature=1.0, seed=1, best=2)
  (whole,) = engine.generate([PROMPT], asked, max_tokens=30, n=2)
  deltas = list(engine.stream(PROMPT, asked, max_tokens=30, n=2))
  for sample, one in enumerate(whole.completions):
    ours = [delta for delta in deltas if delta.sample == sample]
    assert "".join(delta.text for delta in ours) == one.text
    assert sum((delta.ids for delta in ours), ()) == one.ids
    assert sum((delta.logprobs for delta in ours), ()) == one.logprobs
    assert sum((delta.best for delta in ours), ()) == one.best
    assert [delta.finish_reason for delta in ours][-1] == "length"
    assert all(delta.text for delta in ours[:-1])
    assert len(one.best) == 30 and len(one.best[0].ids) == 2
  assert deltas[0].restored + deltas[0].computed == len(whole.prompt_ids)
  assert_nothing_runs(engine)


def test_a_stop_string_across_tokens_is_cut_exactly():
  engine = new_engine()
  (free,) = engine.generate([PROMPT], WARM, max_tokens=30)
  text = free.text
  for start, size in [(3, 1), (7, 6), (len(text) // 2, 9)]:
    stop = text[start : start + size]
    (out,) = engine.generate([PROMPT], WARM, max_tokens=30, stop=["\0no", stop])
    assert out.text == text[: text.index(stop)]
    (one,) = out.completions
    assert one.finish_reason == "stop"
    assert one.ids == free.completions[0].ids[: len(one.ids)]
    streamed = engine.stream(PROMPT, WARM, max_tokens=30, stop=stop)
    assert "".join(delta.text for delta in streamed) == out.text
  assert_nothing_runs(engine)


def test_an_end_id_ends_a_text_and_has_none():
  (free,) = new_engine().generate([PROMPT], WARM, max_tokens=10)
  ids = free.completions[0].ids
  tokenizer = TextTokenizer(KINDS["byte_level"](), end_ids=ids[4:5])
  engine = Engine(text_model(), new_engine().cache, tokenizer)
  (out,) = engine.generate([PROMPT], WARM, max_tokens=10)
  first = ids.index(ids[4])
  (one,) = out.completions
  assert (one.ids, one.finish_reason) == (ids[: first + 1], "stop")
  assert out.text == demo_tokenizer().decode(list(ids[:first]))


def test_the_end_ids_of_a_model_count_too():
  model = small_model(vocab_size=2112, end_ids=(7,))
  cache = PrefixCache(model, capacity=1 << 20, placement=NO_CACHE)
  assert Engine(model, cache, demo_tokenizer())._end_ids == {7}


def test_samples_differ_and_each_is_itself():
  engine = new_engine()
  (few,) = engine.generate([PROMPT], WARM, max_tokens=10, n=2)
  (many,) = engine.generate([PROMPT], WARM, max_tokens=10, n=6)
  assert many.completions[:2] == few.completions
  assert len({one.ids for one in many.completions}) == 6
  assert_nothing_runs(engine)


def test_only_the_chosen_sample_is_stored_with_its_answer():
  engine = new_engine()
  (out,) = engine.generate(
    [PROMPT], WARM, max_tokens=40, n=3, choose=lambda samples: 1
  )
  assert out.chosen == 1 and out.text == out.completions[1].text
  for sample, one in enumerate(out.completions):
    past = [*out.prompt_ids, *one.ids]
    (report,) = prefill(text_model(), engine.cache, [past]).reports
    # The last id of an answer is never computed.
    assert (report.overlap == len(past) - 1) == (sample == 1)


def test_a_second_turn_resumes_at_the_boundary():
  engine = new_engine()
  talk = [{"role": "system", "content": TEXT[:120]}, user("What is it?")]
  prompt = demo_tokenizer().encode_chat(talk)
  (first,) = engine.generate([talk], max_tokens=24)
  boundary = prompt.boundaries[-1]
  assert boundary < len(first.prompt_ids)
  # The client edits the answer, so the turns share nothing behind the boundary.
  talk += [assistant("Something else."), user("Why?")]
  (second,) = engine.generate([talk], max_tokens=4)
  assert second.restored >= boundary // CHUNK * CHUNK > 0
  (cold,) = new_engine(NO_CACHE).generate([talk], max_tokens=4)
  assert second.completions == cold.completions
  assert_nothing_runs(engine)


def only(text):
  """A grammar that lets one text come."""
  ids = demo_tokenizer().encode(text).tolist()

  def allowed(decoded):
    return np.arange(2112) == ids[len(decoded)]

  return Sampling(allowed=allowed), len(ids)


def test_a_turn_that_repeats_the_answer_resumes_in_it():
  engine, talk = new_engine(), [user(TEXT[:100])]
  sampling, size = only(TEXT[100:250])
  (first,) = engine.generate([talk], sampling, max_tokens=size)
  talk += [assistant(first.text), user("And then?")]
  (second,) = engine.generate([talk], max_tokens=2)
  total = len(first.prompt_ids) + size - 1
  assert second.restored == total // CHUNK * CHUNK > len(first.prompt_ids)
  (cold,) = new_engine(NO_CACHE).generate([talk], max_tokens=2)
  assert second.completions == cold.completions


@pytest.mark.parametrize(
  "close, tools, dropped",
  [
    ("</think>", [], True),
    ("</think>", [{}], False),
    ("</thought>", [], False),
  ],
)
def test_thinking_that_the_template_drops_is_not_stored(close, tools, dropped):
  engine, talk = new_engine(), [user(TEXT[:100])]
  text = "Let me see." * 4 + close + "Noon."
  sampling, size = only(text)
  (out,) = engine.generate(
    [talk], sampling, max_tokens=size, template={"tools": tools}
  )
  assert out.text == text
  whole = [*out.prompt_ids, *out.completions[0].ids]
  (report,) = prefill(text_model(), engine.cache, [whole]).reports
  length = len(out.prompt_ids)
  if dropped:
    assert length // CHUNK * CHUNK <= report.overlap <= length
  else:
    assert report.overlap == length + size - 1


def test_what_the_template_reads_is_passed_on():
  engine, talk = new_engine(), [user("Hi.")]
  (out,) = engine.generate([talk], max_tokens=1, template={"hint": "Tide"})
  ids = demo_tokenizer().encode_chat(talk, hint="Tide").ids
  assert out.prompt_ids == tuple(ids.tolist())


def test_ids_are_a_prompt_too():
  engine, ids = new_engine(), demo_tokenizer().encode(PROMPT)
  outs = engine.generate([ids, ids.tolist(), PROMPT], max_tokens=3)
  assert len({out.text for out in outs}) == 1


def test_the_longest_sequence_ends_by_length():
  engine = new_engine()
  ids = np.arange(254)
  (out,) = engine.generate([ids], max_tokens=50)
  (one,) = out.completions
  assert (len(one.ids), one.finish_reason) == (3, "length")
  assert_nothing_runs(engine)


def test_whoever_stops_to_listen_ends_the_answer():
  engine = new_engine()
  deltas = engine.stream(PROMPT, max_tokens=50, n=2)
  next(deltas)
  assert len(engine.cache.sequences) == 2
  deltas.close()
  assert_nothing_runs(engine)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_step_leaves_nothing_behind(interruption, monkeypatch):
  engine = new_engine()
  (expected,) = engine.generate([PROMPT], WARM, max_tokens=8)
  decode_step, steps = programs.decode_step, iter(range(100))

  def broken(*arguments):
    if next(steps) == 3:
      raise interruption
    return decode_step(*arguments)

  with monkeypatch.context() as patch, pytest.raises(interruption):
    patch.setattr(programs, "decode_step", broken)
    engine.generate([PROMPT, OTHER], WARM, max_tokens=8)
  assert_nothing_runs(engine)
  (again,) = engine.generate([PROMPT], WARM, max_tokens=8)
  assert again.completions == expected.completions


def test_a_grammar_that_fails_ends_only_its_call():
  engine = new_engine()
  sampling = Sampling(allowed=lambda ids: np.zeros(2112, bool))
  with pytest.raises(ValueError, match="lets no id follow"):
    engine.generate([PROMPT], sampling)
  assert_nothing_runs(engine)
  assert engine.generate([PROMPT], max_tokens=2)[0].text


def test_prompts_that_do_not_fit_at_once_wait():
  engine, cold = new_engine(), new_engine(NO_CACHE)
  (many,) = engine.generate([PROMPT], WARM, max_tokens=4, n=30)
  assert_nothing_runs(engine)
  (few,) = cold.generate([PROMPT], WARM, max_tokens=4, n=3)
  assert many.completions[:3] == few.completions
  prompts = [TEXT[start : start + 30] for start in range(30)]
  outs = engine.generate(prompts, max_tokens=2)
  for i in (0, 15, 29):
    (expected,) = cold.generate(prompts[i : i + 1], max_tokens=2)
    assert outs[i].completions == expected.completions
  assert_nothing_runs(engine)


def test_a_cache_that_others_hold_is_told():
  engine = new_engine()
  tokens = demo_tokenizer().encode(TEXT)[:250]
  held, salts = [], map(bytes, itertools.product(range(256)))
  for size in (250, 20):
    with pytest.raises(CapacityError):
      for salt in salts:
        out = prefill(engine.model, engine.cache, [tokens[:size]], salt=salt)
        held += out.sequences
  with pytest.raises(CapacityError, match="sequences of others hold"):
    engine.generate([TEXT[:900]], max_tokens=2)
  engine.cache.release(held)
  assert engine.generate([TEXT[:900]], max_tokens=2)[0].text


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
  "arguments, sentence",
  [
    ({"prompts": "text"}, "prompts is 'text'; it must be a list"),
    ({"prompts": 5}, "prompts is 5"),
    ({"prompts": [user("Hi.")]}, "prompts[0] is one message"),
    ({"prompts": [[]]}, "prompts[0] is empty"),
    ({"prompts": [""]}, "prompts[0] is empty"),
    ({"prompts": ["x", [2112]]}, "prompts[1] holds id 2112"),
    ({"prompts": [[user("x"), 5]]}, "messages[1] is 5"),
    ({"prompts": [[{"role": "user"}]]}, "messages[0] has the content None"),
    ({"prompts": [np.zeros(300, int)]}, "prompts[0] has 300 tokens"),
    ({"n": 0}, "n is 0; it must be 1 to 128"),
    ({"n": 1.5}, "n must be an integer"),
    ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1"),
    ({"stop": 7}, "stop is 7; it must be a string"),
    ({"sampling": 0.7}, "sampling is 0.7; it must be a Sampling"),
    ({"sampling": Sampling(logit_bias={9999: 1.0})}, "names id 9999"),
    ({"choose": lambda samples: 4}, "choose returned 4; there are 1"),
    ({"choose": None}, "choose is None; it must be a function"),
    ({"template": "x"}, "template is 'x'; it must map names"),
    ({"prompts": ["\ud800"]}, "text holds half of a character"),
  ],
)
def test_what_cannot_be_meant_is_one_sentence(arguments, sentence):
  engine = new_engine()
  with pytest.raises(ValueError) as caught:
    engine.generate(**({"prompts": ["a"], "max_tokens": 1} | arguments))
  assert sentence in str(caught.value) and "\n" not in str(caught.value)
  assert_nothing_runs(engine)


@pytest.mark.usefixtures("unchecked_types")
def test_a_stream_refuses_at_once():
  with pytest.raises(ValueError, match="n is 0"):
    new_engine().stream("a", n=0)
  with pytest.raises(ValueError, match="max_tokens is 0"):
    new_engine().stream("a", max_tokens=0)
  with pytest.raises(ValueError, match="names messages"):
    new_engine().stream("a", template={"messages": []})
  with pytest.raises(ValueError, match="one message"):
    new_engine().stream(user("Hi."))


@pytest.mark.usefixtures("unchecked_types")
def test_what_does_not_belong_together_is_refused():
  engine = new_engine()
  with pytest.raises(ValueError, match="cache is a HybridDecoder"):
    Engine(text_model(), text_model(), demo_tokenizer())
  with pytest.raises(ValueError, match="do not belong together"):
    model = small_model()
    cache = PrefixCache(model, capacity=1 << 20, placement=NO_CACHE)
    Engine(model, cache, demo_tokenizer())
  with pytest.raises(ValueError, match="tokenizer is a str"):
    Engine(text_model(), engine.cache, "tokenizer.json")


def test_who_releases_the_sequence_of_a_stream_is_told():
  engine = new_engine()
  other = prefill(engine.model, engine.cache, [np.arange(20)]).sequences
  pieces = engine.stream(PROMPT, max_tokens=30)
  next(pieces)
  (ours,) = set(engine.cache.sequences) - set(other)
  engine.cache.release([ours])
  with pytest.raises(RuntimeError, match="request was released"):
    list(pieces)
  assert engine.cache.sequences == other
  engine.cache.release(other)
  assert engine.generate([PROMPT], max_tokens=2)[0].restored > 0
  engine.cache.replace_weights(other_model())
  assert engine.generate([PROMPT], max_tokens=2)[0].restored == 0


def test_an_answer_that_is_complete_is_not_lost_with_its_sequence():
  engine = new_engine()

  def release_all(completions):
    engine.cache.release(engine.cache.sequences)
    return len(completions) - 1

  outs = [
    each.generate([PROMPT], max_tokens=3, n=2, choose=choose)[0]
    for each, choose in ((engine, release_all), (new_engine(), lambda _: 1))
  ]
  assert outs[0].completions == outs[1].completions
  assert_nothing_runs(engine)
