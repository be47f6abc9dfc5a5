"""Alignment of two tokenizations of one text: the smallest chunks whose ends are the same bytes of the text.

Every token of the supported tokenizers stands for fixed bytes, so a tokenization divides the bytes of a text. A chunk
ends wherever both divisions have an end. Rules:

- Spaces at the beginning and at the end of a text are not compared: SentencePiece writes one before every text, and
  drops others.
- The end tokens of both sides are the last chunk; that of one side alone is in none. Other tokens without bytes belong
  to the chunk of the token before them, at the beginning to the first chunk.
- A text with an unknown token, or whose bytes differ, as after different normalisations, is not aligned.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SPACE = b" "
SHOWN = 20  # bytes of a text that is not aligned


class ChunkEnds(NamedTuple):
    """The chunks of a text: the number of tokens of each side up to the end of each chunk, int32 [C], ascending.

    Attributes:
      student: of the student's tokens.
      teacher: of the teacher's tokens.
    """

    student: np.ndarray
    teacher: np.ndarray


class Unaligned(NamedTuple):
    """Why two tokenizations are not aligned, with bytes of both texts from a little before the first difference on."""

    reason: str
    student: bytes = b""
    teacher: bytes = b""


@dataclasses.dataclass(frozen=True)
class TokenBytes:
    """The bytes that the tokens of a vocabulary stand for.

    Attributes:
      bytes_V: of each token; b"" for special tokens, None for a token that stands for no fixed text (an unknown one).
      ends: ids that end a text.
    """

    bytes_V: Sequence[bytes | None]
    ends: frozenset[int]

    def of(self, ids: Sequence[int]) -> list[bytes] | None:
        """Return the bytes of each token, without spaces around the text; None if a token is unknown.

        Examples:
          >>> vocabulary = TokenBytes([b"", b" a", b"b", None], ends=frozenset({0}))
          >>> vocabulary.of([1, 2, 0]), vocabulary.of([1, 3])
          ([b'a', b'b', b''], None)
        """
        parts: list[bytes] = []
        for i in ids:
            part = self.bytes_V[i]
            if part is None:
                return None
            parts.append(part)
        for order, strip in ((range(len(parts)), bytes.lstrip), (reversed(range(len(parts))), bytes.rstrip)):
            for n in order:
                parts[n] = strip(parts[n], SPACE)
                if parts[n]:
                    break
        return parts


def align(
    student_ids: Sequence[int], teacher_ids: Sequence[int], student: TokenBytes, teacher: TokenBytes
) -> ChunkEnds | Unaligned:
    """Return the chunks of a text's two tokenizations, in time linear in its bytes.

    Args:
      student_ids: the student's tokens, with or without an end token.
      teacher_ids: the teacher's.
      student: the student's vocabulary.
      teacher: the teacher's.

    Examples:
      >>> words = TokenBytes([b"", b" the", b" cat", b"s"], frozenset({0}))
      >>> letters = TokenBytes([b"", *(bytes([c]) for c in b"the cas")], frozenset({0}))
      >>> chunks = align([1, 2, 3, 0], [1, 2, 3, 4, 5, 6, 1, 7, 0], words, letters)
      >>> chunks.student.tolist(), chunks.teacher.tolist()  # "the", " cat", "s" and the end
      ([1, 2, 3, 4], [3, 7, 8, 9])
      >>> align([1, 0], [1, 2, 0], words, letters)
      Unaligned(reason='other text', student=b'the', teacher=b'th')
    """
    student_parts, teacher_parts = student.of(student_ids), teacher.of(teacher_ids)
    if student_parts is None or teacher_parts is None:
        return Unaligned("unknown token")
    student_text, teacher_text = b"".join(student_parts), b"".join(teacher_parts)
    if student_text != teacher_text:
        start = max(0, _first_difference(student_text, teacher_text) - SHOWN // 2)
        return Unaligned("other text", *(text[start : start + SHOWN] for text in (student_text, teacher_text)))
    has_ends = [
        bool(len(ids)) and ids[-1] in side.ends for ids, side in ((student_ids, student), (teacher_ids, teacher))
    ]
    student_ends, teacher_ends = (
        np.cumsum([len(part) for part in parts[: len(parts) - has_end]], dtype=np.int64)
        for parts, has_end in zip((student_parts, teacher_parts), has_ends, strict=True)
    )
    is_student_end, is_teacher_end = (np.zeros(len(student_text) + 1, bool) for _ in range(2))
    is_student_end[student_ends] = is_teacher_end[teacher_ends] = True
    common = np.flatnonzero(is_student_end[1:] & is_teacher_end[1:]) + 1
    chunks = [np.searchsorted(ends, common, side="right") for ends in (student_ends, teacher_ends)]
    if all(has_ends):
        chunks = [np.append(ends, len(ids)) for ends, ids in zip(chunks, (student_ids, teacher_ids), strict=True)]
    return ChunkEnds(*(ends.astype(np.int32) for ends in chunks))


def _first_difference(a: bytes, b: bytes) -> int:
    """Return the first place at which texts differ, or the length of the shorter one."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
