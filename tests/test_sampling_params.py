"""Oracle: literals, from vLLM's meanings of the fields and the model cards' presets."""

import copy
import math
import pickle
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen35.errors import ModelFormatError
from qwen35.sampling import PRESETS, SamplingParams, defaults_for, size_name

NAN, INF = math.nan, math.inf
BAD: dict[str, list[Any]] = {
    "max_tokens": [-1, 2**63, 1.5, True, "5", NAN],
    "temperature": [NAN, INF, -INF, -1, "0.7", 1e-40, 1e6, None, True, 1j],
    "top_p": [0, 1.1, -0.1, NAN, "1", None],
    "top_k": [-2, 2**40, 1.5, True, None],
    "min_p": [2, -0.1, NAN, None],
    "presence_penalty": [NAN, 3, -3, None],
    "frequency_penalty": [NAN, 3, -3, None],
    "repetition_penalty": [NAN, 0, -1, INF, None],
    "seed": [-1, 2**64, 1.5, "1", True],
    "stop": ["", [""], [b"a"], b"a", 5, ["a"] * 1000, ["a", None], {"a": 1}, "x" * 2000],
    "stop_token_ids": [[-1], [1.5], "12", [True], 5, [2**40], {"1": 1}],
    "logprobs": [-2, 10**6, 1.5, True],
    "logit_bias": [{-1: 1}, {1: INF}, {1: NAN}, {1: "x"}, {"a": 1}, [1], {1: 101}, {True: 1}],
    "ignore_eos": [1, 0, None, "yes"],
    "min_tokens": [-1, 1.5, True, None],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(n, v, id=f"{n}={v!r:.20}") for n, values in BAD.items() for v in values],
)
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})


def test_every_field_has_bad_values() -> None:
    assert set(BAD) == {field.name for field in fields(SamplingParams)}


def test_message_says_value_and_range() -> None:
    with pytest.raises(ValueError, match=r"^top_p=1\.1: expected a number from 0 to 1$"):
        SamplingParams(top_p=1.1)


def test_a_hostile_value_is_escaped_and_cut_in_the_message() -> None:
    with pytest.raises(ValueError) as caught:
        SamplingParams(temperature="\x1b[31m" * 1000)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_defaults_are_vllms_but_for_max_tokens() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert (params.max_tokens, params.seed, params.logprobs) == (None, None, None)
    assert params.repetition_penalty == 1.0


def test_forms_that_mean_the_same() -> None:
    assert SamplingParams(top_k=-1).top_k == 0
    assert SamplingParams(stop="a").stop == ("a",)
    assert SamplingParams(stop=None, stop_token_ids=None, logit_bias=None) == SamplingParams()
    assert SamplingParams(logit_bias={"7": 1}).logit_bias == {7: 1.0}
    assert SamplingParams(stop_token_ids={3, 1}).stop_token_ids == (1, 3)
    numpy = SamplingParams(seed=np.int64(3), temperature=np.float32(0.5), max_tokens=np.uint8(7))
    assert numpy == SamplingParams(seed=3, temperature=0.5, max_tokens=7)
    assert [type(v) for v in (numpy.seed, numpy.temperature, numpy.max_tokens)] == [int, float, int]


def test_edges_are_allowed() -> None:
    SamplingParams(max_tokens=0, temperature=0, top_p=1, top_k=0, seed=2**64 - 1, logprobs=-1)
    SamplingParams(min_p=1, presence_penalty=-2, frequency_penalty=2, logprobs=0)


def test_min_tokens_above_max_tokens() -> None:
    with pytest.raises(ValueError, match="min_tokens=5: expected at most max_tokens=4"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_unknown_keyword_gets_the_nearest_name() -> None:
    with pytest.raises(TypeError, match="'temprature'; did you mean 'temperature'"):
        SamplingParams(temprature=1)
    with pytest.raises(TypeError, match="'max_token'; did you mean 'max_tokens'"):
        SamplingParams().replace(max_token=1)
    with pytest.raises(TypeError, match="'seeed'; did you mean 'seed'"):
        SamplingParams.merge(SamplingParams(), None, seeed=1)


def test_frozen_hashable_picklable() -> None:
    params = SamplingParams(stop=["a"], logit_bias={1: 2})
    with pytest.raises(FrozenInstanceError):
        params.seed = 1
    assert hash(params) == hash(SamplingParams(stop=["a"], logit_bias={1: 2}))
    assert pickle.loads(pickle.dumps(params)) == copy.deepcopy(params) == params


def test_the_callers_mapping_is_copied() -> None:
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = NAN
    assert params.logit_bias == {1: 2.0}


def test_merge_takes_given_whole_and_then_the_changes() -> None:
    defaults = SamplingParams(temperature=0.7, top_k=20)
    assert SamplingParams.merge(defaults, None, seed=1) == defaults.replace(seed=1)
    given = SamplingParams(top_p=0.5)
    merged = SamplingParams.merge(defaults, given, max_tokens=3)
    assert merged == SamplingParams(top_p=0.5, max_tokens=3)
    with pytest.raises(TypeError, match="sampling must be SamplingParams, not dict"):
        SamplingParams.merge(defaults, {"seed": 1})


def test_ids_outside_the_vocabulary() -> None:
    SamplingParams(logit_bias={99: 1}, stop_token_ids=[99]).check_vocabulary(100)
    with pytest.raises(ValueError, match="logit_bias: token id 100 is outside"):
        SamplingParams(logit_bias={100: 1}).check_vocabulary(100)
    with pytest.raises(ValueError, match="stop_token_ids: token id 100"):
        SamplingParams(stop_token_ids=[100]).check_vocabulary(100)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.just(0) | st.floats(1e-4, 100),
            "top_p": st.floats(0, 1, exclude_min=True),
            "top_k": st.integers(-1, 2**31 - 1),
            "seed": st.none() | st.integers(0, 2**64 - 1),
            "stop": st.lists(st.text(min_size=1, max_size=5), max_size=3),
            "logit_bias": st.dictionaries(st.integers(0, 300_000), st.floats(-100, 100)),
        },
    )
)
def test_replace_with_nothing_changes_nothing(given_fields: dict[str, Any]) -> None:
    params = SamplingParams(**given_fields)
    assert params.replace() == params


# Defaults


def checkpoint(config: dict[str, Any], hidden: int = 1024, layers: int = 24) -> Any:
    text = SimpleNamespace(hidden_size=hidden, layer_types=("x",) * layers)
    return SimpleNamespace(
        path=Path("model"), generation_config=config, config=SimpleNamespace(text=text)
    )


@pytest.mark.parametrize(("thinking", "temperature"), [(False, 0.7), (True, 1.0)])
@pytest.mark.parametrize(
    ("hidden", "layers"), [(1024, 24), (2048, 24), (2560, 32), (4096, 32), (5120, 64), (96, 4)]
)
def test_presets_without_a_file(
    hidden: int, layers: int, thinking: bool, temperature: float
) -> None:
    for config in ({}, {"eos_token_id": [1, 2], "transformers_version": "5"}):
        params = defaults_for(checkpoint(config, hidden, layers), thinking=thinking)
        assert (params.temperature, params.top_k) == (temperature, 20)
        assert params.top_p == (0.95 if thinking else 0.8)
        assert params.presence_penalty == 1.5


def test_the_file_comes_first() -> None:
    config = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True, "min_p": None}
    params = defaults_for(checkpoint(config), thinking=True)
    assert params == SamplingParams(temperature=0.6, top_k=20, top_p=0.95)


def test_greedy_file() -> None:
    config = {"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1}
    params = defaults_for(checkpoint(config), thinking=False)
    assert params == SamplingParams(temperature=0, repetition_penalty=1.1)


def test_length_in_the_file() -> None:
    params = defaults_for(checkpoint({"max_new_tokens": 50}), thinking=True)
    assert (params.max_tokens, params.temperature) == (50, 1.0)


def test_bad_value_in_the_file() -> None:
    with pytest.raises(ModelFormatError, match=r"generation_config\.json: top_p=7"):
        defaults_for(checkpoint({"top_p": 7}), thinking=True)


def test_sizes() -> None:
    assert [size_name(h, n) for h, n in ((1024, 24), (5120, 64), (3000, 30))] == [
        "0.8B",
        "27B",
        "4B",
    ]
    assert set(PRESETS) == {"0.8B", "2B", "4B", "9B", "27B"}
