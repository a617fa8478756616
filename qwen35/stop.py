"""Stop strings in streamed text: found wherever token boundaries fall, nothing after the match
delivered.

Text that may be the beginning of a stop string is held back until that is decided. Which text is
searched (not reasoning, by default) is the caller's decision.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Give pieces of text to `push`; what it returns may be shown. After a match nothing comes any
    more.

    The match that begins first wins; of those that begin at one place, the shortest. So what is
    delivered does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        if not all(isinstance(stop, str) and stop for stop in self._stops):
            raise ValueError(f"stop={list(stops)!r}: expected strings of at least one character")
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """What of the text so far is certain not to be part of a stop string."""
        if self.matched is not None:
            return ""
        return self._deliver(self._held + text, more=True)

    def flush(self) -> str:
        """What was held back, at the end of the text or of the part that is searched."""
        return self._deliver(self._held, more=False)

    def _deliver(self, text: str, *, more: bool) -> str:
        """The text before a match, or before the first place where one may still begin if `more`
        text can follow."""
        end = len(text)
        for begin in range(len(text)):
            found = [stop for stop in self._stops if text.startswith(stop, begin)]
            if found:
                self.matched = min(found, key=len)
            if found or (more and any(stop.startswith(text[begin:]) for stop in self._stops)):
                end = begin
                break
        self._held = "" if self.matched is not None else text[end:]
        return text[:end]
