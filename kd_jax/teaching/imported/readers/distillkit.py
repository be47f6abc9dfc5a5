"""DistillKit: compressed log-probabilities in parquet, with compression_config.yaml beside the files."""

import dataclasses
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kd_jax.config import is_count
from kd_jax.errors import KdError
from kd_jax.teaching.imported.readers.base import NO_TOKEN, LogprobRecord, shorten

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
COLUMNS = ("input_ids", "compressed_logprobs", "bytepacked_indices")
TERMS = {"sqrt": np.sqrt, "exp": np.exp}  # besides integer powers
MAX_SIZE = 2**20  # of d, k and exact_k
REMEDY = "Use the file that DistillKit wrote."
NUM_READ = 16  # rows that are read at once
MAX_SETTINGS = 2**16  # bytes of the settings
MAX_VALUES_PER_BYTE = 100  # of a parquet file; values that repeat take less room


@dataclasses.dataclass(frozen=True)
class Bin:
    """Residuals that share one scale; `element_bits` are the bits of each."""

    scale_dtype: str
    element_bits: int
    num_elements: int


@dataclasses.dataclass(frozen=True)
class Compression:
    """compression_config.yaml; names and defaults are DistillKit's.

    Attributes:
      d: ids are below it.
      k: values of a position: the first exact_k as they are, the others a polynomial of their rank and residuals.
      residual_bins: the residuals, in the order of rank.
      polynomial_terms: powers of the rank, "sqrt" or "exp".
      delta_encoding: whether values are differences to the previous value.
      error_diffusion: how residuals were rounded; it does not change reading.
      normalize_t: whether ranks go from 0 to 1.
    """

    d: int
    k: int
    exact_k: int
    residual_bins: tuple[Bin, ...]
    exact_dtype: str = "float32"
    polynomial_terms: tuple[int | str, ...] = ()
    term_dtype: str = "float32"
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    def check(self, where: str) -> None:
        """Check the fields; `where` is the file, for messages."""
        for is_valid, field, expected, value in self._conditions():
            if not is_valid:
                raise KdError(f"{where}: {field}: expected {expected}, got {reprlib.repr(value)}. {REMEDY}")

    def _conditions(self) -> Iterator[tuple[bool, str, str, Any]]:
        """Yield (whether it holds, field, expected, value); a condition may rely on the ones before."""
        bins, terms, flags = self.residual_bins, self.polynomial_terms, (self.delta_encoding, self.normalize_t)
        for field, value, least in (("d", self.d, 2), ("k", self.k, 1), ("exact_k", self.exact_k, 0)):
            yield is_count(value, least) and value <= MAX_SIZE, field, f"an integer from {least} to {MAX_SIZE}", value
        for dtype in (self.exact_dtype, self.term_dtype, *(one.scale_dtype for one in bins)):
            yield dtype in DTYPES, "dtypes", f"one of {', '.join(DTYPES)}", dtype
        for one in bins:
            yield is_count(one.element_bits, 1) and one.element_bits <= 64, "residual_bins", "1 to 64 element_bits", one
            yield is_count(one.num_elements, 1), "residual_bins", "num_elements of at least 1", one
        powers = [term for term in terms if term not in TERMS]
        yield all(is_count(x, 0) and x < 64 for x in powers), "polynomial_terms", "powers below 64, sqrt or exp", terms
        needed = self.exact_k + sum(one.num_elements for one in bins)
        yield needed <= self.k, "k", "at least exact_k and the bins' elements together", self.k
        yield all(type(flag) is bool for flag in flags), "delta_encoding, normalize_t", "true or false", flags


def read(path: Path) -> Iterator[LogprobRecord]:
    """Yield the records of a file: row i of a sequence predicts token i + 1, so there is one row fewer than tokens."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise KdError("--format distillkit: expected pyarrow, got none. Run `pip install 'kd_jax[import]'`.") from error
    compression = read_compression(path.with_name("compression_config.yaml"))
    try:
        file = parquet.ParquetFile(path)
        if not set(COLUMNS) <= set(file.schema_arrow.names):
            raise KdError(
                f"{path}: expected the columns {', '.join(COLUMNS)}, got {', '.join(file.schema_arrow.names)[:200]}. "
                "Sample again with the present version of DistillKit; its older form is not read."
            )
        for name in COLUMNS:
            kind = file.schema_arrow.field(name).type
            while pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
                kind = kind.value_type
            if not pyarrow.types.is_integer(kind):
                raise KdError(f"{path}: {name}: expected integers, as DistillKit writes them, got {kind}. {REMEDY}")
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        values = sum(group.column(i).num_values for group in groups for i in range(group.num_columns))
        if values > MAX_VALUES_PER_BYTE * path.stat().st_size:
            raise KdError(f"{path}: expected bytes of log-probabilities, got {values} repeated values. {REMEDY}")
        number = 0
        for batch in file.iter_batches(NUM_READ, columns=list(COLUMNS)):
            for row in batch.to_pylist():
                number += 1
                yield _record(f"{path}, record {number}", row, compression)
    except (pyarrow.ArrowException, OSError) as error:
        raise KdError(f"{path}: expected a parquet file, got an error ({shorten(error)}). Check the file.") from error


def read_compression(path: Path) -> Compression:
    """Return the settings of the parquet files in the same folder."""
    import yaml

    if not path.is_file():
        raise KdError(f"{path}: expected the file that DistillKit writes beside the parquet files, got none. Copy it.")
    if path.stat().st_size > MAX_SETTINGS:
        raise KdError(f"{path}: expected DistillKit's settings, got a file above {MAX_SETTINGS} bytes. Copy its own.")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        bins = tuple(Bin(**one) for one in fields.pop("residual_bins"))
        terms = tuple(fields.pop("polynomial_terms", None) or ())
        compression = Compression(residual_bins=bins, polynomial_terms=terms, **fields)
        compression.check(str(path))
    except (yaml.YAMLError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise KdError(f"{path}: expected DistillKit's settings, got an error ({shorten(error)}). {REMEDY}") from error
    return compression


def _record(where: str, row: Mapping[str, Any], compression: Compression) -> LogprobRecord:
    try:
        tokens_S = np.asarray(row["input_ids"], np.uint64).astype(np.int64)
        logp_bytes_NX, ids_bytes_NX = (np.asarray(row[name], np.uint8) for name in COLUMNS[1:])
    except (TypeError, ValueError, OverflowError) as error:
        raise KdError(f"{where}: expected lists of bytes of one length, got others. Write the file again.") from error
    if tokens_S.ndim != 1 or logp_bytes_NX.ndim != 2 or ids_bytes_NX.ndim != 2:
        raise KdError(f"{where}: expected rows for the tokens, got none. Remove the record.")
    if not len(tokens_S) - 1 == len(logp_bytes_NX) == len(ids_bytes_NX):
        raise KdError(
            f"{where}: expected {len(tokens_S) - 1} rows for {len(tokens_S)} tokens, got {len(logp_bytes_NX)} and "
            f"{len(ids_bytes_NX)}. Write the file again."
        )
    ids_NK = decode_indices(where, ids_bytes_NX, compression)  # first: it checks that k values fit into the bytes
    logp_NK = decode_values(where, logp_bytes_NX, compression)
    # Missing ranks are -inf and have any id; sums behind them are nan.
    named_NK = ~np.logical_or.accumulate(logp_NK == -np.inf, axis=-1)
    ids_NK, logp_NK = np.where(named_NK, ids_NK, NO_TOKEN), np.where(named_NK, logp_NK, -np.inf)
    return LogprobRecord(where, tokens_S, np.arange(1, len(tokens_S)), ids_NK, logp_NK)


def decode_indices(where: str, bytes_NX: np.ndarray, compression: Compression) -> np.ndarray:
    """Return the ids, int64 [N, k], of ceil(log2 d) bits each."""
    bits = int(np.ceil(np.log2(np.float32(compression.d))))
    ids_NK, rest_NX = _unpack_bits(where, bytes_NX, bits, compression.k)
    _check_no_bytes_left(where, rest_NX)
    return ids_NK.astype(np.int64)


def decode_values(where: str, bytes_NX: np.ndarray, compression: Compression) -> np.ndarray:
    r"""Return the log-probabilities, float64 [N, k], in the order of rank.

    .. math:: v_r = \sum_j c_j t_r^{e_j} + s_b (q_r - 2^{b-1})

    for the ranks behind the exact ones. With delta_encoding the result is their cumulative sum, in float32.
    """
    exact_NX, bytes_NX = _split_floats(where, bytes_NX, compression.exact_dtype, compression.exact_k)
    others = compression.k - compression.exact_k
    coefficients_NX, bytes_NX = _split_floats(
        where, bytes_NX, compression.term_dtype, len(compression.polynomial_terms)
    )
    value_NX = np.zeros((len(bytes_NX), others), np.float32)
    start = 0
    for one in compression.residual_bins:
        scale_N1, bytes_NX = _split_floats(where, bytes_NX, one.scale_dtype, 1)
        steps_NX, bytes_NX = _unpack_bits(where, bytes_NX, one.element_bits, one.num_elements)
        steps_NX = steps_NX.astype(np.float32)
        level_NX = 2 * steps_NX - 1 if one.element_bits == 1 else steps_NX - np.float32(2.0 ** (one.element_bits - 1))
        value_NX[:, start : start + one.num_elements] = level_NX * scale_N1.astype(np.float32)
        start += one.num_elements
    _check_no_bytes_left(where, bytes_NX)
    with np.errstate(over="ignore", invalid="ignore"):
        if compression.polynomial_terms:
            value_NX = value_NX + coefficients_NX.astype(np.float64) @ _polynomial(compression, others).T
        value_NK = np.concatenate([exact_NX.astype(np.float32), value_NX], axis=-1, dtype=np.float32)
        return (np.cumsum(value_NK, axis=-1) if compression.delta_encoding else value_NK).astype(np.float64)


def _polynomial(compression: Compression, ranks: int) -> np.ndarray:
    """Return each term at each rank, [ranks, terms]."""
    t_X = np.linspace(0, 1, ranks) if compression.normalize_t else np.arange(ranks, dtype=np.float64)
    terms = compression.polynomial_terms
    return np.stack([TERMS[term](t_X) if term in TERMS else t_X ** int(term) for term in terms], axis=-1)


def _split_floats(where: str, bytes_NX: np.ndarray, dtype: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (the first `count` little-endian numbers of each row, the remaining bytes)."""
    kind = np.dtype(DTYPES[dtype])
    head_NX, rest_NX = _split_bytes(where, bytes_NX, count * kind.itemsize)
    return np.ascontiguousarray(head_NX).view(kind).reshape(len(bytes_NX), count), rest_NX


def _unpack_bits(where: str, bytes_NX: np.ndarray, bits: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (the first `count` integers of `bits` bits of each row, most significant first, the remaining bytes)."""
    head_NX, rest_NX = _split_bytes(where, bytes_NX, -(-bits * count // 8))
    bits_NX = np.unpackbits(head_NX, axis=-1, count=bits * count)
    weight_X = np.uint64(1) << np.arange(bits - 1, -1, -1, dtype=np.uint64)
    return bits_NX.reshape(len(bytes_NX), count, bits).astype(np.uint64) @ weight_X, rest_NX


def _split_bytes(where: str, bytes_NX: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    if bytes_NX.shape[1] < size:
        raise KdError(f"{where}: expected at least {size} bytes a row, got {bytes_NX.shape[1]}. {REMEDY}")
    return bytes_NX[:, :size], bytes_NX[:, size:]


def _check_no_bytes_left(where: str, bytes_NX: np.ndarray) -> None:
    if bytes_NX.shape[1]:
        raise KdError(f"{where}: expected no bytes beyond the compression's, got {bytes_NX.shape[1]} more. {REMEDY}")
