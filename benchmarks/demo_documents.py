"""The demo's strategies on four written documents, and a larger model.

    python -m benchmarks.demo_documents --output=DIR

A hybrid of 2.7 million random weights is asked 57 questions, some of them
second turns. Nobody reads its answers: times, tokens and bits do not depend on
what a model has learned. `DIR` gets report.json and pareto.png, as from `demo`.
"""

from absl import app, flags

from benchmarks import command_line
from sparse_prefix_jax import demo
from sparse_prefix_jax.demo.stream import document_stream

_OUTPUT = flags.DEFINE_string("output", None, "Folder for the result.")


def main(argv: list[str]) -> None:
  """Serves the stream under every strategy, and compares."""
  with command_line.one_sentence(argv):
    if not _OUTPUT.value:
      raise ValueError("--output must name a folder")
  demo.run_demo(_OUTPUT.value, stream=document_stream())


if __name__ == "__main__":
  app.run(main)
