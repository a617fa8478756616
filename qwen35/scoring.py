"""How likely given continuations of a prompt are: the prompt is read once, then each of them from
there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .prompt import check_fits
from .results import Score
from .session import Session

if TYPE_CHECKING:
    from .model import Model


def score(model: Model, prompt: Any, continuations: Sequence[str | Sequence[int]]) -> list[Score]:
    """`Model.score`."""
    if isinstance(continuations, str | bytes):
        raise TypeError(
            "continuations must be a list of texts or id sequences, got one text; put it in a list"
        )
    model._checkpoint.check_unchanged()
    made = model._prompts.numeric(prompt, where="prompt")
    wanted = [
        model._prompts.numeric(continuation, where=f"continuations[{index}]").ids
        for index, continuation in enumerate(continuations)
    ]
    check_fits(len(made), context=model.context, room=max(map(len, wanted), default=0))
    session, branch = model._pool.take(made.keys, model)
    session._sync(made, branch=branch)
    start = session.snapshot()
    scores = []
    for continuation in wanted:
        scores.append(_score(session, continuation))
        session.restore(start)
    model._pool.give_back(session)
    return scores


def _score(session: Session, ids: NDArray[np.int32]) -> Score:
    logprobs, best = session._open().score(ids)
    return Score(
        float(np.sum(logprobs, dtype=np.float64)),
        logprobs.tolist(),
        bool(np.array_equal(best, ids)),
    )
