"""A stream that Python finalises where nobody asked it to."""

from sparse_prefix_jax.runtime import programs
from sparse_prefix_jax.workloads.demo_corpus import load_demo_corpus
from tests.serving.engine_for_tests import new_engine

TEXT = load_demo_corpus()[0].text
PROMPT, OTHER = TEXT[:200], TEXT[:150] + " Another question?"


def test_a_stream_that_is_gone_amid_a_call_ends_after_it(monkeypatch):
  """Garbage is collected anywhere; what the stream leaves is stored later."""
  (expected,) = new_engine().generate([OTHER], max_tokens=3)
  engine, running = new_engine(), []
  stream = engine.stream(PROMPT, max_tokens=40)
  next(stream)

  def collecting(*arguments):
    stream.close()
    running.append(len(engine.cache.sequences))
    return gather_rows(*arguments)

  gather_rows = programs.gather_rows
  monkeypatch.setattr(programs, "gather_rows", collecting)
  (out,) = engine.generate([OTHER], max_tokens=3)
  assert (running[0], running[-1]) == (2, 1)
  assert out.completions == expected.completions
  engine.cache.audit()
  assert engine.cache.sequences == ()
