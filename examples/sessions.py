"""Sessions and scores: read a long text once, then ask about it, rank endings, and keep it in a
file.
"""

import tempfile
from pathlib import Path

import qwen35

STORY = "The blue box holds a coin. The red box holds a key. The green box holds a ring."
QUESTION = STORY + " The red box holds a"
ENDINGS = [" coin", " key", " ring"]

with qwen35.load("tiny") as model:
    session = model.session()
    session.sync(STORY)
    print("tokens read:", session.position)
    print("of the longer text,", session.sync(QUESTION), "tokens were there already")

    twin = session.fork()  # a future of its own, the past shared
    twin.sync(QUESTION + " key")
    print("after the fork:", session.position, "and", twin.position, "tokens")

    for ending, score in zip(ENDINGS, model.score(QUESTION, ENDINGS), strict=True):
        print(f"{ending!r:>8} {score.logprob:8.3f}{'  <- greedy' if score.is_greedy else ''}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "story.session"
        session.save(path)
        later = model.session()
        later.load(path)
        print("from the file:", later.position, "tokens,", f"{path.stat().st_size:,} bytes")
