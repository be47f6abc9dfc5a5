"""MaxText: top-k logits in ArrayRecord files of tf.train.Example, read without TensorFlow."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers.base import NO_TOKEN, LogprobRecord, shorten

# The messages of tensorflow/core/example, with the same field numbers.
SCHEMA = """
name: "example.proto" package: "kd_jax" syntax: "proto3"
message_type { name: "Bytes" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "Float" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type {
  name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".kd_jax.Bytes" oneof_index: 0 }
  field { name: "float" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".kd_jax.Float" oneof_index: 0 }
  field { name: "int64" number: 3 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".kd_jax.Int64" oneof_index: 0 }
}
message_type {
  name: "Features"
  field {
    name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".kd_jax.Features.FeatureEntry"
  }
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".kd_jax.Feature" }
  }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".kd_jax.Features" }
}
"""
POOL = descriptor_pool.DescriptorPool()  # of its own: the default pool may hold TensorFlow's messages
POOL.Add(text_format.Parse(SCHEMA, descriptor_pb2.FileDescriptorProto()))
Example = message_factory.GetMessageClass(POOL.FindMessageTypeByName("kd_jax.Example"))
FIELDS = {"inputs": "int64", "top_k_logits": "float", "top_k_indices": "int64"}
DTYPES = {"int64": np.int64, "float": np.float64}
NUM_READ = 64  # records that are read at once


def read(path: Path) -> Iterator[LogprobRecord]:
    """Yield the records of a file: row t of `top_k_logits`, [S k] flattened, predicts token t + 1.

    The logits are raw: they have no log Z. `sequence_hash` is ignored.
    """
    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
    except (RuntimeError, ValueError, IndexError) as error:
        raise KdError(f"{path}: expected ArrayRecord, got an error ({shorten(error)}). Check the file.") from error
    for start in range(0, count, NUM_READ):
        stop = min(count, start + NUM_READ)
        try:
            records = reader.read(start, stop)
        except (RuntimeError, ValueError, IndexError) as error:
            where = f"{path}, records {start + 1} to {stop}"
            raise KdError(f"{where}: expected records, got an error ({shorten(error)}). Check the file.") from error
        for i, record in enumerate(records, start + 1):
            yield parse(f"{path}, record {i}", record)


def parse(where: str, record: bytes) -> LogprobRecord:
    """Return the record of a serialised tf.train.Example."""
    try:
        example: Any = Example.FromString(record)  # the class is built at run time, so its fields have no types
        features = example.features.feature
    except message.DecodeError as error:
        raise KdError(f"{where}: expected a tf.train.Example of MaxText, got other bytes. Check --format.") from error
    arrays = {}
    for name, kind in FIELDS.items():
        if name not in features or features[name].WhichOneof("kind") != kind:
            raise KdError(
                f"{where}: expected a field {name} of {kind} numbers, got the fields "
                f"{', '.join(sorted(features))[:200]}. Check --format."
            )
        arrays[name] = np.asarray(getattr(features[name], kind).value, DTYPES[kind])
    tokens_S, logits_X, ids_X = (arrays[name] for name in FIELDS)
    if not len(tokens_S) or not len(logits_X) or len(logits_X) % len(tokens_S) or len(ids_X) != len(logits_X):
        raise KdError(
            f"{where}: expected k logits and k indices for each of {len(tokens_S)} tokens, got {len(logits_X)} logits "
            f"and {len(ids_X)} indices. Write the file again."
        )
    shape = (len(tokens_S), -1)
    ids_X = np.where(logits_X == -np.inf, NO_TOKEN, ids_X)  # a logit of -inf names no token
    return LogprobRecord(
        where, tokens_S, np.arange(1, len(tokens_S) + 1), ids_X.reshape(shape), logits_X.reshape(shape)
    )
