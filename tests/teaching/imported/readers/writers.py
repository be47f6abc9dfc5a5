"""Files as four programs write them, from log-probabilities [S, V]: row t predicts token t + 1 of the sequence.

Written from the formats' descriptions, without any code of the readers.
"""

import json
import struct

import numpy as np
import pyarrow
from array_record.python.array_record_module import ArrayRecordWriter
from pyarrow import parquet


def most_likely(logp_V, k):
    return [int(i) for i in np.argsort(-logp_V, kind="stable")[:k]]


def with_scored(logp_V, k, token):
    """Return (id, rank) of the scored token and then of the k most likely, in vLLM's order."""
    ranks = {i: rank for rank, i in enumerate(most_likely(logp_V, len(logp_V)), 1)}
    return [(token, ranks[token])] + [(i, ranks[i]) for i in most_likely(logp_V, k)]


def vllm_response(tokens, logp_SV, k):
    """Return a server's response to a completion: entry t scores token t, the first is null."""
    entries = [None]
    for token, logp_V in zip(tokens[1:], logp_SV, strict=False):
        named = with_scored(logp_V, k, token)
        entries.append(
            {str(i): {"logprob": max(float(logp_V[i]), -9999.0), "rank": r, "decoded_token": "x"} for i, r in named}
        )
    choice = {"index": 0, "text": "", "prompt_logprobs": entries, "prompt_token_ids": tokens}
    return {"id": "cmpl-0", "object": "text_completion", "choices": [choice]}


def vllm_flat(tokens, logp_SV, k):
    """Return an offline output whose prompt_logprobs is a FlatLogprobs."""
    names = ("start_indices", "end_indices", "token_ids", "logprobs", "ranks", "decoded_tokens")
    flat = {name: [] for name in names}
    flat["start_indices"].append(0)
    flat["end_indices"].append(0)
    for token, logp_V in zip(tokens[1:], logp_SV, strict=False):
        flat["start_indices"].append(len(flat["token_ids"]))
        for i, rank in with_scored(logp_V, k, token):
            flat["token_ids"].append(i)
            flat["logprobs"].append(float(logp_V[i]))
            flat["ranks"].append(rank)
            flat["decoded_tokens"].append(None)
        flat["end_indices"].append(len(flat["token_ids"]))
    return {"prompt_token_ids": tokens, "prompt_logprobs": flat}


def sglang_response(tokens, logp_SV, k):
    scored, top = [[None, tokens[0], None]], [None]
    for token, logp_V in zip(tokens[1:], logp_SV, strict=False):
        scored.append([float(logp_V[token]), token, None])
        top.append([[float(logp_V[i]), i, None] for i in most_likely(logp_V, k)])
    meta = {"prompt_tokens": len(tokens), "input_token_logprobs": scored, "input_top_logprobs": top}
    return {"text": "", "meta_info": meta}


def lines(path, responses):
    path.write_text("".join(json.dumps(one) + "\n" for one in responses))
    return path


def packed_bits(numbers, bits):
    """Return bytes of numbers of so many bits, most significant first, padded with zeros."""
    text = "".join(format(number, f"0{bits}b") for number in numbers)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


# 4 exact values; for the others a polynomial of the rank and its root, residuals in 12 and in 4 bits, one rank without.
COMPRESSION = """\
d: 60
k: 16
exact_k: 4
exact_dtype: float32
polynomial_terms: [0, 1, sqrt]
term_dtype: float32
residual_bins:
- {scale_dtype: float32, element_bits: 12, num_elements: 8}
- {scale_dtype: float16, element_bits: 4, num_elements: 3}
delta_encoding: true
error_diffusion: false
normalize_t: false
"""


def distillkit_row(logp_V):
    """Return (bytes of the values, bytes of the indices) of one position, by COMPRESSION."""
    ids = most_likely(logp_V, 16)
    deltas = np.diff(logp_V[ids].astype(np.float32), prepend=np.float32(0))
    rank = np.arange(12, dtype=np.float32)
    terms = np.stack([rank**0, rank, np.sqrt(rank)], axis=-1)
    coefficients = np.linalg.lstsq(terms, deltas[4:], rcond=None)[0].astype(np.float32)
    residuals = deltas[4:] - terms @ coefficients
    data = list(deltas[:4].tobytes() + coefficients.tobytes())
    for start, stop, bits, dtype in ((0, 8, 12, "<f4"), (8, 11, 4, "<f2")):
        scale = np.asarray(np.abs(residuals[start:stop]).max() / 2 ** (bits - 1) or 1.0, dtype)
        steps = np.clip(np.round(residuals[start:stop] / np.float32(scale)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        data += list(scale.tobytes()) + packed_bits([int(q) + 2 ** (bits - 1) for q in steps], bits)
    return data, packed_bits(ids, 6)


def distillkit(path, sequences):
    """Write (tokens, logp_SV) of each sequence; one row fewer than tokens."""
    path.with_name("compression_config.yaml").write_text(COMPRESSION)
    rows = [[distillkit_row(logp_V) for logp_V in logp_SV[: len(tokens) - 1]] for tokens, logp_SV in sequences]
    of_bytes = pyarrow.list_(pyarrow.list_(pyarrow.uint8()))
    columns = {
        "input_ids": pyarrow.array([tokens for tokens, _ in sequences], pyarrow.list_(pyarrow.uint64())),
        "compressed_logprobs": pyarrow.array([[row[0] for row in one] for one in rows], of_bytes),
        "bytepacked_indices": pyarrow.array([[row[1] for row in one] for one in rows], of_bytes),
    }
    parquet.write_table(pyarrow.table(columns), path)
    return path


def varint(number):
    number %= 2**64
    data = b""
    while number > 127:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


def tagged(field, data):
    """Return a length-delimited field of a protobuf message."""
    return varint(field << 3 | 2) + varint(len(data)) + data


def example(**features):
    """Return a serialised tf.train.Example: floats in field 2 of a Feature, integers in field 3."""
    entries = b""
    for name, values in features.items():
        if values and type(values[0]) is float:
            feature = tagged(2, tagged(1, struct.pack(f"<{len(values)}f", *values)))
        else:
            feature = tagged(3, tagged(1, b"".join(map(varint, values))))
        entries += tagged(1, tagged(1, name.encode()) + tagged(2, feature))
    return tagged(1, entries)


def maxtext(path, sequences, k, shift=7.5):
    """Write (tokens, logp_SV) of each sequence: a row of logits for each token, then padding."""
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for tokens, logp_SV in sequences:
        padded, rows = [*tokens, 0, 0], [*logp_SV[: len(tokens)], *[np.zeros(logp_SV.shape[1])] * 2]
        ids = [most_likely(logp_V, k) for logp_V in rows]
        logits = [float(logp_V[i]) + shift for logp_V, row in zip(rows, ids, strict=True) for i in row]
        features = {"inputs": padded, "top_k_logits": logits, "top_k_indices": [i for row in ids for i in row]}
        writer.write(example(**features, sequence_hash=[-3]))
    writer.close()
    return path
