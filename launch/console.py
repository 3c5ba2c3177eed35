"""Progress for people: a live status line on a terminal, plain lines elsewhere; always stderr."""

import sys
import time

from rich.console import Console
from rich.text import Text

from data.errors import printable


class Progress:
    """Reports progress. A terminal keeps the last line of each stage, a file keeps all."""

    def __init__(self):
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.status("") if self._console.is_terminal else None
        self._stage = ""
        self._start = time.perf_counter()

    def stage(self, name: str) -> None:
        """Lines from now on belong to this stage."""
        self._stage = name
        if self._live:
            self._live.start()

    def log(self, line: str) -> None:
        """One line of progress."""
        text = self._stamped(line)
        if self._live:
            self._live.update(Text(text))
        else:
            print(text, file=sys.stderr, flush=True)

    def note(self, line: str) -> None:
        """One line that stays."""
        self.log(line)
        if self._live:
            self._console.print(self._stamped(line), markup=False)

    def _stamped(self, line: str) -> str:
        secs = time.perf_counter() - self._start
        text = f"[{secs:7.1f}s] {self._stage}: {line}"
        return printable(text, len(text))

    def close(self) -> None:
        """Ends the live line."""
        if self._live:
            self._live.stop()
