"""The server in a process of its own, as its users start it."""

import http.client
import os
import pathlib
import subprocess
import sys
import urllib.parse

import openai

import sparse_prefix_jax

ROOT = pathlib.Path(sparse_prefix_jax.__file__).parents[1]


class Server:
  """A process that serves the demo's model; what it compiles, it does late."""

  def __init__(self, *flags):
    flags = ("--port=0", "--warm_up=false", *flags)
    self.process = subprocess.Popen(
      [sys.executable, "-m", "sparse_prefix_jax", "serve", *flags],
      env={**os.environ, "PYTHONPATH": str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    line = self.process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), self.process.stderr.read()
    self.url = line.split()[0]
    self.address = urllib.parse.urlparse(self.url).netloc
    self.model = line.split()[-1]
    self.client = self.client_of(openai.OpenAI)

  def client_of(self, kind):
    return kind(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

  def end(self):
    self.client.close()
    self.process.kill()
    self.process.communicate()

  def send(self, method, path, body=b"", **headers):
    connection = http.client.HTTPConnection(self.address, timeout=120)
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    content = reply.read().decode()
    connection.close()
    return reply, content

  def figure(self, name):
    _, text = self.send("GET", "/metrics")
    (value,) = [x.split()[1] for x in text.splitlines() if x.startswith(name)]
    return float(value)
