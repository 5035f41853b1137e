"""Chat templates see what they see elsewhere, and nothing of the machine."""

import datetime

import pytest

from sparse_prefix_jax.serving.text.template import (
  PLAIN_TEMPLATE,
  ChatTemplate,
  checked_messages,
  checked_variables,
)

USER = {"role": "user", "content": "<Hi> & 'ä'"}


def render(source, messages=(USER,), **variables):
  return ChatTemplate(source, {"bos_token": "<s>"}).render(
    list(messages), **variables
  )


@pytest.mark.parametrize(
  "source, text",
  [
    ("{{ bos_token }}{{ messages[0]['role'] }}", "<s>user"),
    ("{{ messages[0].content }}", USER["content"]),
    ("{{ messages[0].content | tojson }}", "\"<Hi> & 'ä'\""),
    (
      "{{ {'b': 1, 'a': [2]} | tojson(indent=1) }}",
      '{\n "b": 1,\n "a": [\n  2\n ]\n}',
    ),
    (
      "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}"
      "{% endfor %}",
      "01",
    ),
    ("{% generation %}{{ 1 + 1 }}{% endgeneration %}!", "2!"),
    ("{% if tools %}t{% endif %}{% if tools is none %}n{% endif %}", "n"),
    ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
    ("{{ enable_thinking is defined }}", "False"),
    ("{%- set ns = namespace(x=0) %}{% set ns.x = 3 %}{{ ns.x }}", "3"),
  ],
)
def test_templates_read_as_elsewhere(source, text):
  assert render(source) == text


def test_variables_reach_the_template():
  assert render("{{ enable_thinking }}", enable_thinking=False) == "False"
  assert render("{{ tools[0].name }}", tools=[{"name": "f"}]) == "f"
  assert render("{{ add_generation_prompt }}") == "True"
  assert (
    render("{{ add_generation_prompt }}", generation_prompt=False) == "False"
  )
  year = str(datetime.datetime.now().year)
  assert render("{{ strftime_now('%Y') }}") in (year, str(int(year) + 1))


@pytest.mark.parametrize(
  "source, sentence",
  [
    (
      "{{ raise_exception('no system, please') }}",
      "messages: no system, please.",
    ),
    ("{{ messages[7].content }}", "refuses the messages"),
    ("{{ 1 / 0 }}", "refuses the messages: division by zero."),
    ("{{ ''.__class__.__mro__ }}", "refuses the messages"),
    ("{% for i in range(10000000) %}{% endfor %}", "refuses the messages"),
    ("{{ messages.append(1) }}", "refuses the messages"),
    ("{% if %}", "chat template is no Jinja"),
  ],
)
def test_what_fails_is_one_sentence(source, sentence):
  with pytest.raises(ValueError) as caught:
    render(source)
  assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_messages_are_not_changed():
  messages = [dict(USER)]
  with pytest.raises(ValueError, match="refuses"):
    render("{{ messages[0].update({'role': 'x'}) }}", messages)
  assert messages == [USER]


def test_the_plain_template_names_who_speaks():
  answer = {"role": "assistant", "content": "Hello."}
  assert ChatTemplate(PLAIN_TEMPLATE).render([USER, answer, USER]) == (
    f"user: {USER['content']}\nassistant: Hello.\nuser: {USER['content']}\n"
    "assistant:"
  )


@pytest.mark.parametrize(
  "messages, sentence",
  [
    ([], "messages is empty"),
    ("hi", "messages is 'hi'; it must be a list"),
    (
      [{"content": "x"}],
      "messages[0] is {'content': 'x'}; it must have a role",
    ),
    ([USER, 7], "messages[1] is 7"),
    ([{"role": "user"}], "messages[0] has the content None"),
    ([{"role": "user", "content": 5}], "has the content 5"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "type text"),
  ],
)
def test_what_are_no_messages_is_refused(messages, sentence):
  with pytest.raises(ValueError) as caught:
    checked_messages(messages)
  assert sentence in str(caught.value)


def test_a_call_of_tools_needs_no_content():
  call = {"role": "assistant", "tool_calls": [{"name": "f"}]}
  assert checked_messages([call | {"content": None}]) == [call]


def test_what_is_none_is_missing_for_a_template():
  """As clients dump the messages that they got."""
  got = {"role": "assistant", "content": "Hi.", "tool_calls": None}
  template = ChatTemplate("{{ 'tool_calls' in messages[1] }}")
  assert template.render(checked_messages([USER, got])) == "False"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_thinking_is_found_under_each_of_its_names(name):
  (got,) = checked_messages([USER | {name: "Hm."}])
  assert got["reasoning_content"] == got["thinking"] == "Hm."
  assert checked_messages([USER]) == [USER]


@pytest.mark.parametrize(
  "variables, sentence",
  [
    ("x", "template is 'x'; it must map names"),
    ({1: 2}, "template is {1: 2}; it must map names"),
    ({"messages": []}, "template names messages"),
    ({"generation_prompt": False}, "template names generation_prompt"),
  ],
)
def test_what_are_no_variables_is_refused(variables, sentence):
  with pytest.raises(ValueError) as caught:
    checked_variables("template", variables)
  assert str(caught.value).startswith(sentence)
