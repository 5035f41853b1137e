"""Headers of safetensors files: everything that can be wrong with one."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from sparse_prefix_jax.models.checkpoint.header import read_header
from tests.models.tiny_checkpoint import encode

TENSORS = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int8)}


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
  return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def file_of(tmp_path, header, data=8):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path = tmp_path / "model.safetensors"
  path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
  return path


def test_tensors_are_where_the_library_writes_them(tmp_path):
  path = tmp_path / "x.safetensors"
  values = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.int8)}
  save_file(values, path, metadata={"format": "pt"})
  content = path.read_bytes()
  found = {tensor.name: tensor for tensor in read_header(path)}
  assert found.keys() == values.keys()
  for name, value in values.items():
    tensor, size = found[name], value.nbytes
    assert tensor.shape == value.shape
    part = content[tensor.start : tensor.start + size]
    assert part == value.tobytes()
  assert [found[n].dtype for n in "ab"] == ["F32", "I8"]


def test_a_header_may_be_padded_and_empty(tmp_path):
  path = tmp_path / "x.safetensors"
  path.write_bytes(encode(TENSORS, pad=13))
  assert [tensor.name for tensor in read_header(path)] == ["a", "b"]
  assert read_header(file_of(tmp_path, {}, data=0)) == []


def test_types_of_less_than_a_byte_have_their_size(tmp_path):
  header = {"a": entry("F4", [4], [0, 2]), "b": entry("F6_E2M3", [8], [2, 8])}
  assert len(read_header(file_of(tmp_path, header))) == 2


@pytest.mark.parametrize(
  ("header", "message"),
  [
    (b"{", "the header of .* is not JSON"),
    (b"[]", "the header of .* holds no JSON object"),
    (b"\xff\xfe", "the header of .* is not JSON"),
    (b"[" * 100_000, "is not JSON: it is nested too deep"),
    (b'{"a": 1, "a": 2}', "the key 'a' stands there twice"),
    ({"a": 3}, "'a' has no dtype, shape and data_offsets"),
    ({"a": entry() | {"x": 1}}, "'a' has no dtype, shape and data_offsets"),
    ({"a": entry("F33")}, "'a' has the dtype 'F33'"),
    ({"a": entry([])}, r"'a' has the dtype \[\]"),
    ({"a": entry(shape=[-2])}, r"'a' has the shape \[-2\]"),
    ({"a": entry(shape=[True])}, r"'a' has the shape \[True\]"),
    ({"a": entry(shape=[2.0])}, r"'a' has the shape \[2\.0\]"),
    ({"a": entry(shape=2)}, "'a' has the shape 2"),
    ({"a": entry(shape=[1] * 9 + [2])}, "'a' has the shape"),
    ({"a": entry(shape=[10**400])}, "'a' has 8 bytes, which are not those"),
    ({"a": entry(offsets=[0, 8, 8])}, r"'a' lies at \[0, 8, 8\]"),
    ({"a": entry(offsets=[8, 0])}, "'a' has -8 bytes"),
    ({"a": entry(offsets=["0", 8])}, r"'a' lies at \['0', 8\]"),
    ({"a": entry(offsets=[0, 10**400])}, "'a' has 10* ?.* bytes"),
    ({"a": entry(offsets=[1, 9])}, "no tensor begins at byte 0"),
    ({"a": entry(), "b": entry()}, "no tensor begins at byte 8"),
    ({}, "its tensors have 0 bytes, and it holds 8"),
    ({"line\nbreak": 3}, r"'line\\nbreak' has no dtype"),
    ({"__metadata__": 3}, "__metadata__ must be an object of strings"),
    ({"__metadata__": {"a": 1}}, "__metadata__ must be an object of strings"),
    ({"__metadata__": {"format": "mlx"}}, "was written by MLX"),
  ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path, header, message):
  with pytest.raises(ValueError, match=message) as caught:
    read_header(file_of(tmp_path, header))
  assert "\n" not in str(caught.value)
  assert str(caught.value).endswith(".")
  assert len(str(caught.value)) < 400


@pytest.mark.parametrize("length", [2, 10**6, 2**63, 2**64 - 1])
def test_a_length_beyond_the_file_is_refused(tmp_path, length):
  path = tmp_path / "x.safetensors"
  path.write_bytes(length.to_bytes(8, "little") + b"{")
  with pytest.raises(ValueError, match="bytes cannot hold the header"):
    read_header(path)
