"""Oracle: str.find over the whole text, whatever pieces it is fed in."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen35.stop import StopStrings

STOPS = st.lists(st.text("abc🙂", min_size=1, max_size=4), min_size=1, max_size=4)
TEXT = st.text("abc🙂", max_size=24)


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Text before the match that begins first, and the shortest string that matches there."""
    begin = min((text.find(stop) for stop in stops if stop in text), default=-1)
    if begin < 0:
        return text, None
    return text[:begin], min((s for s in stops if text.startswith(s, begin)), key=len)


def fed(text: str, stops: list[str], cuts: list[int]) -> tuple[str, str | None]:
    stream = StopStrings(stops)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    out = "".join(stream.push(text[a:b]) for a, b in pairwise(places))
    return out + stream.flush(), stream.matched


@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 24)))
@example(text="abcb", stops=["abcd", "bc"], cuts=[1, 2, 3])
@example(text="abc", stops=["abcd", "bc"], cuts=[1, 2])
@example(text="aab", stops=["ab"], cuts=[1, 2])
def test_pieces_do_not_matter(text: str, stops: list[str], cuts: list[int]) -> None:
    assert fed(text, stops, cuts) == expected(text, stops)


def test_match_across_five_pieces() -> None:
    stream = StopStrings(["STOP!"])
    assert [stream.push(c) for c in "hi STOP! there"] == ["h", "i", " ", *[""] * 11]
    assert stream.matched == "STOP!"
    assert stream.flush() == ""


def test_partial_match_is_held_and_comes_when_it_fails() -> None:
    stream = StopStrings(["###"])
    assert [stream.push(p) for p in ("a#", "#", "b")] == ["a", "", "##b"]
    assert stream.matched is None


def test_partial_match_is_flushed_at_the_end() -> None:
    stream = StopStrings(["###"])
    assert (stream.push("a##"), stream.flush(), stream.matched) == ("a", "##", None)


def test_goes_on_after_a_flush() -> None:
    """Parts that are not searched (reasoning) interrupt the text: flush, then go on."""
    stream = StopStrings(["##"])
    assert (stream.push("a#"), stream.flush()) == ("a", "#")
    assert (stream.push("#b##c"), stream.matched) == ("#b", "##")


def test_nothing_is_shown_after_a_match() -> None:
    stream = StopStrings(["x"])
    assert (stream.push("ax"), stream.push("more"), stream.flush()) == ("a", "", "")


def test_without_stops_everything_passes() -> None:
    assert StopStrings([]).push("text") == "text"


@pytest.mark.parametrize("stops", [[""], ["a", ""], [b"a"], [None]])
def test_stops_are_nonempty_strings(stops: list) -> None:
    with pytest.raises(ValueError, match="at least one character"):
        StopStrings(stops)
