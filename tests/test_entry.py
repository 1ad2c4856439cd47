"""Proof of patterns/entry.py."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterns.entry import JSON, MISS, Json, Unreadable, Unwritable, decode, encode, stale_ms

ROOM = 10_000
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def encodable(value: Any) -> bool:
    """Return whether UTF-8 can hold all texts of `value`."""
    try:
        repr(value).encode()
        JSON.encode(value)
    except UnicodeEncodeError:
        return False
    return True


@given(VALUES.filter(encodable), st.integers(0, 10**12))
def test_what_was_encoded_can_be_read_again(value: Any, stale: int) -> None:
    """Any JSON comes back equal, with its stale time; None has none, for it stands in for nothing."""
    entry = encode(JSON, value, stale_ms=stale, max_bytes=ROOM)
    assert decode(JSON, entry) == value
    assert stale_ms(entry) == (0 if value is None else stale)


@pytest.mark.parametrize("value", [0, 0.0, "", False, [], {}])
def test_empty_values_are_values(value: Any) -> None:
    """Nothing that is falsy is taken for None, nor None for one of them."""
    entry = encode(JSON, value, stale_ms=0, max_bytes=ROOM)
    assert decode(JSON, entry) == value
    assert type(decode(JSON, entry)) is type(value)
    assert entry != encode(JSON, None, stale_ms=0, max_bytes=ROOM)
    assert decode(JSON, encode(JSON, None, stale_ms=7, max_bytes=ROOM)) is None


def test_the_form_is_as_the_scripts_read_it() -> None:
    """One line of version, stale milliseconds and sign, then the payload as the codec gave it."""
    assert encode(JSON, {"a": "é"}, stale_ms=1500, max_bytes=ROOM) == '1 1500 +\n{"a":"é"}'.encode()
    assert encode(JSON, None, stale_ms=1500, max_bytes=ROOM) == b"1 0 -\n"


class Raw:
    """Bytes as they are: the payload may hold anything."""

    def encode(self, value: Any) -> bytes:
        return bytes(value)

    def decode(self, data: bytes) -> Any:
        return data


@given(st.binary(max_size=200))
def test_any_payload_is_kept_as_it_is(payload: bytes) -> None:
    """Line feeds, and what looks like a head, included."""
    assert decode(Raw(), encode(Raw(), payload, stale_ms=0, max_bytes=ROOM)) == payload


NO_ENTRIES = [
    b"",
    b"1",
    b"1 0 +",
    b"2 0 +\n1",
    b"1  +\n1",
    b"1 -1 +\n1",
    b"1 0 *\n1",
    b" 1 0 +\n1",
    b'{"a":1}',
]


@pytest.mark.parametrize("entry", [*NO_ENTRIES, b"1 1234567890123456 +\n1", b"\x80\x04N."])
def test_what_is_no_entry_is_told_from_values(entry: bytes) -> None:
    """Unreadable carries the bytes, and does not show them."""
    for read in (lambda: decode(JSON, entry), lambda: stale_ms(entry)):
        with pytest.raises(Unreadable) as told:
            read()
        assert (told.value.entry, told.value.reason, str(told.value)) == (entry, *2 * ("not an entry",))


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_else(garbage: bytes) -> None:
    """Whatever is found is a value or Unreadable, also behind a good head."""
    for entry in (garbage, b"1 0 +\n" + garbage):
        try:
            decode(JSON, entry)
        except Unreadable:
            continue


def test_an_entry_of_another_codec_is_unreadable() -> None:
    """The reason names the codec's error, not the bytes."""
    with pytest.raises(Unreadable, match=r"^the codec raised JSONDecodeError$") as told:
        decode(JSON, b"1 0 +\nsecret")
    assert "secret" not in str(told.value)


class Text(Json):
    """Forgets to encode."""

    def encode(self, value: Any) -> Any:
        return super().encode(value).decode()


class OneWay(Json):
    """Encodes what it cannot read."""

    def decode(self, data: bytes) -> Any:
        raise KeyError(data)


@pytest.mark.parametrize(
    ("codec", "value", "why"),
    [
        (JSON, {1, 2}, "the codec raised TypeError"),
        (JSON, math.nan, "the codec raised ValueError"),
        (JSON, math.inf, "the codec raised ValueError"),
        (JSON, "\ud800", "the codec raised UnicodeEncodeError"),
        (JSON, "x" * 9, "11 bytes are more than max_bytes=10"),
        (Text(), "secret", "the codec gave str, not bytes"),
        (OneWay(), "secret", "the codec raised KeyError"),
    ],
)
def test_what_cannot_be_read_again_is_refused(codec: Any, value: Any, why: str) -> None:
    """Before anything is written, in a sentence that does not show the value."""
    with pytest.raises(Unwritable) as told:
        encode(codec, value, stale_ms=0, max_bytes=10)
    assert str(told.value) == why


def test_the_largest_value_just_fits() -> None:
    """`max_bytes` counts the payload, not the head."""
    assert decode(JSON, encode(JSON, "x" * 8, stale_ms=10**12, max_bytes=10)) == "x" * 8


def test_there_is_one_miss() -> None:
    """MISS stays itself however it is copied, so that `is MISS` may be asked anywhere."""
    assert copy.deepcopy(MISS) is MISS
    assert pickle.loads(pickle.dumps(MISS)) is MISS
    assert repr(MISS) == "<Miss.MISS: 'miss'>"
