"""The command `serve` before it serves; that is tests/serving/server."""

import socket

import pytest

from tests.commands.refusal import refused


def test_a_port_that_is_taken_or_none_is_told(command):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    assert refused(command("serve", f"--port={port}")) == (
      f"sparse_prefix_jax: cannot listen at 127.0.0.1:{port}: Address already"
      " in use"
    )
  assert "port is 65536; it must be 0 to 65535" in refused(
    command("serve", "--port=65536")
  )


@pytest.mark.parametrize("host", ["é.ü..", "é" * 70])
def test_a_host_that_no_name_can_be_is_told(command, host):
  told = refused(command("serve", f"--host={host}", "--port=0"))
  assert "host is " in told and "must be a name or an address" in told


def test_keys_are_read_before_anything_is_loaded(command, tmp_path):
  path = tmp_path / "keys"
  for content, sentence in (
    (b"", "holds no API key"),
    (b" \n\n", "holds no API key"),
    (b"\xff", "is not UTF-8"),
  ):
    path.write_bytes(content)
    assert sentence in refused(command("serve", f"--api_keys={path}"))
  assert "No such file" in refused(
    command("serve", f"--api_keys={tmp_path / 'none'}")
  )


@pytest.mark.parametrize(
  ("flag", "sentence"),
  [
    ("--max_running=0", "max_running is 0; it must be at least 1."),
    ("--max_waiting=-1", "max_waiting is -1; it must be at least 0."),
    ("--token_budget=0", "token_budget is 0; it must be at least 1."),
    ("--placement=best", "--placement must be one of "),
    ("--placement=block:64", "'block:64'; the budget is given apart"),
    ("--budget=2", "--budget is for a --placement"),
    ("--eviction=random", "random"),
    ("--state_share=undivided", "--state_share must be a number"),
    ("--state_share=1", "--state_share must be a number in (0, 1)"),
  ],
)
def test_what_is_out_of_range_is_told_before_anything_is_loaded(
  command, monkeypatch, flag, sentence
):
  def load(*arguments, **options):
    raise AssertionError("weights were read")

  monkeypatch.setattr(
    "sparse_prefix_jax.commands.serve.open_served_model", load
  )
  assert sentence in refused(command("serve", "--port=0", flag))


def test_the_cache_is_made_as_simulate_would_have_it(command, monkeypatch):
  made = {}

  def run(model, cache, tokenizer, **options):
    made.clear()
    made.update(options, cache=cache)

  monkeypatch.setattr("sparse_prefix_jax.serving.server.serve.run_server", run)
  command(
    "serve",
    "--port=0",
    "--capacity=16MiB",
    "--placement=conditional",
    "--budget=2",
    "--eviction=fifo",
    "--state_share=0.4",
    "--warm_up=false",
    "--token_budget=128",
    "--max_waiting=0",
  )
  assert made["warm_up"] is False
  assert (made["token_budget"], made["max_waiting"]) == (128, 0)
  budget = made["cache"].store.index.budget
  assert budget.slots * budget.slot_bytes <= 0.4 * 16 * 2**20
  command("serve", "--port=0", "--capacity=16MiB", "--eviction=index")
  assert made["warm_up"] and "token_budget" not in made
