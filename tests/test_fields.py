"""Types of fields: values of another type are refused with field, expected type and value."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.errors import KdError
from kd_jax.fields import check_fields

if TYPE_CHECKING:
    from decimal import Decimal


class Named(Protocol):
    @property
    def name(self) -> str: ...

    def check(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Inner:
    value: int = 1
    name: str = ""

    def check(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int = 0
    rate: float = 0.5
    flag: bool = False
    text: str = ""
    sizes: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "a")
    kind: Literal["a", "b"] = "a"
    maybe: Inner | None = None
    parts: Mapping[str, Inner] = dataclasses.field(default_factory=dict)
    function: Callable[[Any], Any] = abs
    named: Named = Inner()
    anything: Any = None


VALID = {
    "count": [0, -1, np.int64(3), 2**62],
    "rate": [1, 0.5, np.float32(2), 1e300, float("nan")],
    "flag": [True, False],
    "text": ["", "a"],
    "sizes": [(), (1, 2), [1, 2]],
    "pair": [(2, "b")],
    "kind": ["a", "b"],
    "maybe": [None, Inner()],
    "parts": [{}, {"a": Inner()}],
    "function": [len, functools.partial(max, 1), Inner],
    "named": [Inner()],
    "anything": [None, 1, "a", object()],
}


@pytest.mark.parametrize("field", VALID)
def test_a_value_of_its_type_is_accepted(field):
    for value in VALID[field]:
        check_fields(Outer(**{field: value}))


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("count", "5", "count: expected an integer, got '5'."),
        ("count", 5.0, "count: expected an integer, got 5.0."),
        ("count", True, "count: expected an integer, got True."),
        ("count", None, "count: expected an integer, got None."),
        ("rate", "0.5", "rate: expected a number, got '0.5'."),
        ("rate", True, "rate: expected a number, got True."),
        ("flag", 1, "flag: expected True or False, got 1."),
        ("text", b"a", "text: expected a string, got b'a'."),
        ("text", "a\0b", "text: expected text without NUL, got 'a\\x00b'."),
        ("sizes", 32, "sizes: expected a tuple of integers, got 32. Write (32,)."),
        ("sizes", (1, "2"), "sizes: expected a tuple of integers, got (1, '2')."),
        ("sizes", "12", "sizes: expected a tuple of integers, got '12'. Write ('12',)."),
        ("pair", (1,), "pair: expected a tuple of integers or strings, got (1,)."),
        ("kind", "c", "kind: expected a or b, got 'c'."),
        ("maybe", Outer(), "maybe: expected Inner or None, got Outer."),
        ("maybe", Inner, "maybe: expected Inner or None, got the class Inner. Write Inner(...)."),
        ("maybe", Inner("x"), "maybe.value: expected an integer, got 'x'."),
        ("parts", [Inner()], "parts: expected a dict of names and Inner, got a list of Inner."),
        ("parts", {"a": 1}, "parts.a: expected Inner, got 1."),
        ("parts", {1: Inner()}, "parts: expected names (strings) as keys, got 1."),
        ("parts", {"a": Inner("x")}, "parts.a.value: expected an integer, got 'x'."),
        ("function", "abs", "function: expected a function, got 'abs'."),
        ("named", "x", "named: expected Named, got 'x'."),
        ("named", Outer(), "named: expected Named, got Outer."),
        ("anything", Inner("x"), "anything.value: expected an integer, got 'x'."),
    ],
)
def test_a_value_of_another_type_is_refused(field, value, message):
    with pytest.raises(KdError) as error:
        check_fields(Outer(**{field: value}))
    assert str(error.value).startswith(message)


def test_an_integer_that_python_refuses_to_write_is_refused():
    with pytest.raises(KdError, match="count: expected an integer of at most 18 digits, got an integer of 20001 bits."):
        check_fields(Outer(count=2**20000))


def test_names_stand_for_functions_and_foreign_classes_on_disk():
    foreign = {"class": "mine.Source", "fields": {}}
    read = Outer(function="mine.loss", named=foreign, maybe=foreign)
    check_fields(read, names=True)
    with pytest.raises(KdError, match="maybe: expected Inner or None"):
        check_fields(read)


def test_types_that_only_a_checker_sees_are_not_checked():
    @dataclasses.dataclass
    class Mine:
        price: "Decimal"

    check_fields(Mine("x"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(VALID)), JSON)
def test_any_value_is_accepted_or_refused_by_its_field(field, value):
    try:
        check_fields(Outer(**{field: value}), names=True)
    except KdError as error:
        assert str(error).startswith(field) and "\n" not in str(error)
