"""The command `serve` before it serves; that is tests/serving/server."""

import socket

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
