"""Oracle: every choice of small problems, tried; literals."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen35.allocate import Choice, allocate
from qwen35.sensitivity import buckets, chosen_windows

A = [Choice("q4", 4, 8.0), Choice("q5", 5, 2.0), Choice("q8", 8, 1.0)]
B = [Choice("q4", 40, 9.0), Choice("q5", 50, 3.0), Choice("q8", 80, 0.0)]


@pytest.mark.parametrize(
    ("budget", "want"),
    [
        (44, ("q4", "q4")),
        (45, ("q5", "q4")),
        (53, ("q8", "q4")),
        (55, ("q5", "q5")),
        (58, ("q8", "q5")),
        (88, ("q8", "q8")),
        (10**9, ("q8", "q8")),
    ],
)
def test_steepest_first(budget: int, want: tuple[str, str]) -> None:
    assert tuple(allocate({"a": A, "b": B}, budget).values()) == want


def test_what_does_not_fit_at_all() -> None:
    with pytest.raises(ValueError, match="43 bytes: expected at least 44"):
        allocate({"a": A, "b": B}, 43)


def test_a_finer_type_that_costs_more_is_never_taken() -> None:
    choices = [Choice("q4", 4, 2.0), Choice("q5", 5, 3.0), Choice("q6", 6, 2.0)]
    assert allocate({"a": choices}, 100) == {"a": "q4"}


choice = st.builds(
    Choice, st.text("abc", min_size=1, max_size=4), st.integers(1, 30), st.floats(0, 10)
)


@given(st.lists(st.lists(choice, min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_within_the_budget_and_near_the_best(
    problem: list[list[Choice]], data: st.DataObject
) -> None:
    """The best of all combinations is beaten by no more than the largest single choice costs: what
    the last step may leave undone.
    """
    problem = [[Choice(f"{i}", c.nbytes, c.cost) for i, c in enumerate(one)] for one in problem]
    least = sum(min(c.nbytes for c in one) for one in problem)
    budget = data.draw(st.integers(least, least + 60))
    found = allocate({str(i): one for i, one in enumerate(problem)}, budget)
    chosen = [one[int(found[str(i)])] for i, one in enumerate(problem)]
    assert sum(c.nbytes for c in chosen) <= budget
    fitting = [
        sum(c.cost for c in combination)
        for combination in itertools.product(*problem)
        if sum(c.nbytes for c in combination) <= budget
    ]
    worst = max(c.cost for one in problem for c in one)
    assert sum(c.cost for c in chosen) <= min(fitting) + worst + 1e-9


def test_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone where there are few; else neighbouring layers together, kind by kind."""
    root = "model.language_model."
    names = [f"{root}layers.{i}.mlp.{k}.weight" for i in range(8) for k in ("up", "down")]
    names.append("lm_head.weight")
    assert buckets(names) == [[name] for name in names]
    monkeypatch.setattr("qwen35.sensitivity.MEASUREMENTS", 9)
    found = buckets(names)
    assert len(found) == 9 and sorted(sum(found, [])) == sorted(names)
    assert [f"{root}layers.{i}.mlp.down.weight" for i in (2, 3)] in found
    assert ["lm_head.weight"] in found


def test_windows_that_are_measured_on() -> None:
    text = [[i] * 512 for i in range(10)]
    assert [w[0] for w in chosen_windows(text, 1000)] == [0, 2, 5, 7]  # type: ignore[arg-type]
    assert [w[0] for w in chosen_windows(text, 248_320)] == [0, 5]  # type: ignore[arg-type]
    assert [w[0] for w in chosen_windows(text, 10**9)] == [0]  # type: ignore[arg-type]
