"""TextTokenizer: folders, boundaries of messages, refusals."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from sparse_prefix_jax.serving.text.tokenizer import TextTokenizer
from sparse_prefix_jax.workloads.demo_corpus import load_demo_tokenizer
from tests.serving.text.tokenizers_for_tests import KINDS, text_tokenizer

MESSAGES = [
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": "When does the tide turn?"},
  {"role": "assistant", "content": "At noon."},
  {"role": "user", "content": "And then?"},
]
MARKED = (
  "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
  "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def folder_with(path, config=None, template=None, tokenizer="byte_level"):
  KINDS[tokenizer]().save(str(path / "tokenizer.json"))
  if config is not None:
    (path / "tokenizer_config.json").write_text(json.dumps(config))
  if template is not None:
    (path / "chat_template.jinja").write_text(template)
  return path


def spelled(tokenizer, ids):
  """The text of ids, special tokens as well."""
  return tokenizer._tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def test_a_folder_is_read(tmp_path):
  config = {"eos_token": {"content": "<|end|>"}, "chat_template": MARKED}
  read = TextTokenizer.from_directory(folder_with(tmp_path, config))
  assert read.end_ids == {read.vocab_size - 1}
  assert read.template.source == MARKED
  ids = read.encode("The tide turns.")
  assert (
    ids.dtype == np.int32 and read.decode(ids.tolist()) == "The tide turns."
  )


def test_special_tokens_lie_in_either_file(tmp_path):
  config = {"eos_token": None, "chat_template": "{{ bos_token }}"}
  folder = folder_with(tmp_path, config)
  tokens = {"eos_token": {"content": "<|end|>"}, "bos_token": "<tool>"}
  (tmp_path / "special_tokens_map.json").write_text(json.dumps(tokens))
  read = TextTokenizer.from_directory(folder)
  assert read.end_ids == {read.vocab_size - 1}
  assert spelled(read, read.encode_chat(MESSAGES).ids) == "<tool>"


def test_which_template_counts(tmp_path):
  several = [
    {"name": "tool_use", "template": "t"},
    {"name": "default", "template": "d"},
  ]
  folder = folder_with(tmp_path, {"chat_template": several})
  assert TextTokenizer.from_directory(folder).template.source == "d"
  tools, plain = ({"tools": []}, MESSAGES[:1])
  read = TextTokenizer.from_directory(folder)
  assert read.encode_chat(plain, **tools).ids.tolist() == [read.encode("t")[0]]
  with pytest.raises(ValueError, match="names \\['tool_use'\\]; one must be"):
    TextTokenizer.from_directory(
      folder_with(tmp_path, {"chat_template": several[:1]})
    )
  more = tmp_path / "additional_chat_templates"
  more.mkdir()
  (more / "tool_use.jinja").write_text("m")
  folder = folder_with(tmp_path, {"chat_template": several}, "f")
  read = TextTokenizer.from_directory(folder)
  assert read.encode_chat(plain, **tools).ids.tolist() == [read.encode("m")[0]]
  assert TextTokenizer.from_directory(folder).template.source == "f"
  (tmp_path / "chat_template.jinja").unlink()
  (tmp_path / "tokenizer_config.json").unlink()
  plain = TextTokenizer.from_directory(folder).template
  assert "message.role" in plain.source


def test_texts_are_neither_cut_nor_padded(tmp_path):
  cutting = tokenizers.Tokenizer.from_str(load_demo_tokenizer().to_str())
  cutting.enable_truncation(3)
  cutting.save(str(tmp_path / "tokenizer.json"))
  assert TextTokenizer.from_directory(tmp_path).encode("a b c d e f").size > 3
  with pytest.raises(ValueError, match="cuts or pads texts"):
    TextTokenizer(cutting)


@pytest.mark.parametrize("template", [None, MARKED])
def test_boundaries_lie_after_each_message(template):
  tokenizer = TextTokenizer(KINDS["byte_level"](), chat_template=template)
  prompt = tokenizer.encode_chat(MESSAGES)
  assert len(prompt.boundaries) == 4
  for count, boundary in enumerate(prompt.boundaries, 1):
    expected = tokenizer.template.render(
      MESSAGES[:count], generation_prompt=False
    )
    assert spelled(tokenizer, prompt.ids[:boundary]) == expected
  assert prompt.boundaries[-1] < prompt.ids.size


def test_the_next_turn_shares_the_last_boundary():
  tokenizer = TextTokenizer(KINDS["byte_level"](), chat_template=MARKED)
  first = tokenizer.encode_chat(MESSAGES[:2])
  second = tokenizer.encode_chat(MESSAGES)
  boundary = first.boundaries[-1]
  np.testing.assert_array_equal(second.ids[:boundary], first.ids[:boundary])
  assert boundary == second.boundaries[1]


def test_a_template_that_refuses_starts_has_fewer_boundaries():
  template = (
    "{% if messages[-1].role != 'user' %}{{ raise_exception('user last') }}"
    "{% endif %}" + MARKED
  )
  tokenizer = TextTokenizer(KINDS["byte_level"](), chat_template=template)
  assert len(tokenizer.encode_chat(MESSAGES).boundaries) == 2


def test_a_template_that_rewrites_the_past_has_fewer_boundaries():
  last_only = (
    "{% for m in messages %}{{ m.content if loop.last else '' }};{% endfor %}!"
  )
  tokenizer = TextTokenizer(KINDS["byte_level"](), chat_template=last_only)
  assert tokenizer.encode_chat(MESSAGES).boundaries == (
    tokenizer.encode_chat(MESSAGES).ids.size,
  )


def test_a_text_that_ends_without_an_answer_has_the_last_boundary():
  closed = MARKED.replace("{% endif %}", "{% else %}$ {% endif %}")
  open_, tokenizer = (
    TextTokenizer(KINDS["byte_level"](), chat_template=template)
    for template in (MARKED, closed)
  )
  prompt = tokenizer.encode_chat(MESSAGES)
  assert prompt.boundaries == open_.encode_chat(MESSAGES).boundaries[-1:]


def test_a_long_conversation_is_written_few_times(monkeypatch):
  tokenizer = TextTokenizer(KINDS["byte_level"](), chat_template=MARKED)
  few = tokenizer.encode_chat(MESSAGES).boundaries
  written, render = [], tokenizer.template.render

  def counting(messages, **options):
    written.append(len(messages))
    return render(messages, **options)

  monkeypatch.setattr(tokenizer.template, "render", counting)
  prompt = tokenizer.encode_chat(MESSAGES * 50)
  assert sum(written) < 12 * 200
  assert prompt.boundaries[:4] == few
  assert prompt.boundaries[-1] < prompt.ids.size


@pytest.mark.parametrize("kind", KINDS)
def test_another_vocabulary_is_refused(kind):
  tokenizer = text_tokenizer(kind)
  tokenizer.check_vocabulary(tokenizer.vocab_size)
  for size in (tokenizer.vocab_size - 1, 2 * tokenizer.vocab_size):
    with pytest.raises(ValueError, match="do not belong together"):
      tokenizer.check_vocabulary(size)


def test_faults_of_a_folder_are_one_sentence(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"holds no tokenizer\.json"):
    TextTokenizer.from_directory(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{}")
  sentence = r"tokenizer\.json is no folder; tokenizer\.json lies in one\."
  with pytest.raises(FileNotFoundError, match=sentence):
    TextTokenizer.from_directory(tmp_path / "tokenizer.json")
  with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
    TextTokenizer.from_directory(tmp_path)
  folder = folder_with(tmp_path, {"chat_template": 5})
  with pytest.raises(ValueError, match=r"chat_template in .* is 5"):
    TextTokenizer.from_directory(folder)
  folder_with(tmp_path, {"chat_template": "{% if %}"})
  with pytest.raises(ValueError, match="is no Jinja"):
    TextTokenizer.from_directory(folder)
  (tmp_path / "tokenizer_config.json").write_text("{")
  with pytest.raises(ValueError, match="is not JSON"):
    TextTokenizer.from_directory(folder)


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_tokenizer_or_text_is_refused():
  with pytest.raises(ValueError, match="tokenizer is a str"):
    TextTokenizer("tokenizer.json")
  with pytest.raises(ValueError, match="text is 5; it must be a string"):
    text_tokenizer("words").encode(5)
  half = [{"role": "user", "content": "\udcff"}]
  with pytest.raises(
    ValueError, match="conversation holds half of a character"
  ):
    text_tokenizer("words").encode_chat(half)
  with pytest.raises(ValueError, match="text holds half of a character"):
    text_tokenizer("words").encode("\udcff")


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
  "choice, sentence",
  [
    ({"chat_template": 5}, "chat_template is 5; it must be a text, or"),
    ({"chat_template": []}, r"chat_template is \[\]; it must be a text, or"),
    ({"special_tokens": {"a": "\ud800"}}, "special_tokens holds half of a"),
    ({"special_tokens": 5}, "special_tokens is 5; it must map names"),
    ({"special_tokens": {"eos_token": 5}}, "it must map names to texts"),
    ({"end_ids": 5}, "end_ids is 5; it must be a list"),
    ({"end_ids": ["x"]}, "end_ids: an id must be an integer"),
  ],
)
def test_what_cannot_be_meant_is_refused(choice, sentence):
  with pytest.raises(ValueError, match=sentence):
    TextTokenizer(KINDS["words"](), **choice)


@pytest.mark.usefixtures("unchecked_types")
def test_ids_of_arrays_are_ids():
  tokenizer = TextTokenizer(KINDS["byte_fallback"]())
  for name in ("is_silent", "is_byte", "name_of", "bytes_of"):
    told = getattr(tokenizer, name)
    assert (
      told(3) == told(np.array(3)) == told(np.int8(3)) == told(jnp.array(3))
    )


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("wrong", [None, "7", 1.5, -1, 2**70, [7]])
def test_what_is_no_id_is_refused(wrong):
  tokenizer = TextTokenizer(KINDS["byte_fallback"]())
  for name in ("is_silent", "is_byte", "name_of", "bytes_of"):
    with pytest.raises(ValueError, match="; it must be an id"):
      getattr(tokenizer, name)(wrong)
  with pytest.raises(ValueError, match="; it must be a list of ids"):
    tokenizer.decode([wrong])
