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
FIELDS = {"inputs": "int64", "top_k_logits": "float", "top_k_indices": "int64"}
NUM_READ = 64  # records that are read at once


def read(path: Path) -> Iterator[LogprobRecord]:
    """Yield the records of a file: row t of `top_k_logits`, [S k] flattened, predicts token t + 1.

    The logits are raw: they have no log Z. `sequence_hash` is ignored.
    """
    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
    except (RuntimeError, ValueError, IndexError) as error:
        raise KdError(
            f"{path}: expected an ArrayRecord file, got an error ({shorten(error)}). Check the file."
        ) from error
    for start in range(0, count, NUM_READ):
        try:
            records = reader.read(start, min(count, start + NUM_READ))
        except (RuntimeError, ValueError, IndexError) as error:
            raise KdError(
                f"{path}, records {start + 1} to {min(count, start + NUM_READ)}: expected records, got an error "
                f"({shorten(error)}). Check the file."
            ) from error
        for i, record in enumerate(records, start + 1):
            yield parse(f"{path}, record {i}", record)


def parse(where: str, record: bytes) -> LogprobRecord:
    """Return the record of a serialised tf.train.Example."""
    try:
        example: Any = Example.FromString(record)  # the class is built at run time, so its fields have no types
        features = example.features.feature
    except message.DecodeError as error:
        raise KdError(
            f"{where}: expected a tf.train.Example with a teacher's top-k logits, as MaxText writes it, got other "
            "bytes. Check --format."
        ) from error
    arrays = {}
    for name, kind in FIELDS.items():
        if name not in features or features[name].WhichOneof("kind") != kind:
            raise KdError(
                f"{where}: expected a field {name} of {kind} numbers, got the fields "
                f"{', '.join(sorted(features))[:200]}. Check --format."
            )
        values = features[name]
        arrays[name] = (
            np.asarray(values.float.value, float) if kind == "float" else np.asarray(values.int64.value, np.int64)
        )
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


def _example() -> type[message.Message]:
    """Return the class of tf.train.Example, from its own pool: the default pool may hold TensorFlow's."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kd_jax.Example"))


Example = _example()
