"""MaxText: top-k logits in ArrayRecord files of tf.train.Example, read without TensorFlow."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format

from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers.base import NO_TOKEN, LogprobRecord

# tensorflow/core/example's messages, by the numbers of their fields; protobuf knows the wire.
SCHEMA = """
name: "example.proto" package: "stored" syntax: "proto3"
message_type { name: "Bytes" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "Float" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type {
  name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".stored.Bytes" oneof_index: 0 }
  field { name: "float" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".stored.Float" oneof_index: 0 }
  field { name: "int64" number: 3 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".stored.Int64" oneof_index: 0 }
}
message_type {
  name: "Features"
  field {
    name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".stored.Features.FeatureEntry"
  }
  nested_type {
    name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".stored.Feature" }
  }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".stored.Features" }
}
"""
FIELDS = {"inputs": "int64", "top_k_logits": "float", "top_k_indices": "int64"}
ROWS = 64  # read at once


def read(path: Path) -> Iterator[LogprobRecord]:
    """The records of a file: row t of `top_k_logits`, [S k] flattened, predicts token t + 1.

    The logits are raw: they have no log Z. `sequence_hash` is ignored.

    Raises:
      KdError: names the file, the record and what is wrong with it.
    """
    try:
        reader = ArrayRecordReader(str(path))
        count = reader.num_records()
    except (RuntimeError, ValueError, IndexError) as error:
        raise KdError(f"{path}: no ArrayRecord that can be read ({' '.join(str(error).split())[:120]})") from error
    for start in range(0, count, ROWS):
        try:
            records = reader.read(start, min(count, start + ROWS))
        except (RuntimeError, ValueError, IndexError) as error:
            raise KdError(
                f"{path}, records {start + 1} to {min(count, start + ROWS)}: cannot be read "
                f"({' '.join(str(error).split())[:120]})"
            ) from error
        for i, record in enumerate(records, start + 1):
            yield parse(f"{path}, record {i}", record)


def parse(where: str, record: bytes) -> LogprobRecord:
    """One tf.train.Example; raises KdError where it is none, or lacks a field."""
    try:
        features = Example.FromString(record).features.feature
    except message.DecodeError as error:
        raise KdError(f"{where}: no tf.train.Example; wanted MaxText's files of a teacher's top-k logits") from error
    arrays = {}
    for name, kind in FIELDS.items():
        if name not in features or features[name].WhichOneof("kind") != kind:
            raise KdError(f"{where}: no field {name} of {kind} numbers; it has {', '.join(sorted(features))[:200]}")
        one = features[name]
        arrays[name] = np.asarray(one.float.value, float) if kind == "float" else np.asarray(one.int64.value, np.int64)
    tokens_S, logits_X, ids_X = arrays.values()
    if not len(tokens_S) or not len(logits_X) or len(logits_X) % len(tokens_S) or len(ids_X) != len(logits_X):
        raise KdError(
            f"{where}: {len(logits_X)} logits and {len(ids_X)} indices for {len(tokens_S)} tokens; wanted k "
            "of each for each token"
        )
    shape = (len(tokens_S), -1)
    ids_X = np.where(logits_X == -np.inf, NO_TOKEN, ids_X)  # a logit of -inf names nothing, whatever its id
    return LogprobRecord(
        where, tokens_S, np.arange(1, len(tokens_S) + 1), ids_X.reshape(shape), logits_X.reshape(shape)
    )


def _example() -> type[message.Message]:
    """tf.train.Example's class, in a pool of its own: TensorFlow may be at home in the common one."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("stored.Example"))


Example = _example()
