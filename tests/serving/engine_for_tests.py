"""Small engines: random weights, chunks of 16, texts of the demo's BPE."""

import functools

from flax import nnx

from sparse_prefix_jax import HybridDecoder, PrefixCache
from sparse_prefix_jax.serving.engine import Engine
from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer
from tests.models_for_tests import last_placement, small_model
from tests.serving.text.tokenizers_for_tests import KINDS

TEMPLATE = (
  "{% for m in messages %}<{{ m.role }}>"
  "{% if m.role == 'assistant' and '</think>' in m.content"
  " and messages[-1].role != 'tool' %}"
  "{{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}\n"
  "{% endfor %}{% if add_generation_prompt %}<assistant>{{ hint }}{% endif %}"
)
"""As those of models that think: the past has no thoughts, but for tools."""


@functools.cache
def demo_tokenizer():
  """2,048 byte-level pieces, an added and a special token."""
  return TextTokenizer(KINDS["byte_level"](), chat_template=TEMPLATE)


@functools.cache
def text_model():
  """A model of that vocabulary."""
  return small_model(vocab_size=2112, ladder=(4,))


@functools.cache
def other_model():
  """The same with other weights."""
  return HybridDecoder(text_model().config, rngs=nnx.Rngs(1))


def new_engine(placement=None, **changes):
  """An engine with an empty cache."""
  placement = last_placement() if placement is None else placement
  fields = {"capacity": 1 << 20, "placement": placement} | changes
  cache = PrefixCache(text_model(), **fields)
  return Engine(text_model(), cache, demo_tokenizer())
