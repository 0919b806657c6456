"""Every failure a user can cause, as one exception that names the file, the key, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ApetError(Exception):
    """Base of all errors that are the input's fault: the command line prints the message alone, and exits with 2."""

    status = 2


class ParamsError(ApetError):
    """A study, task or model file says something that cannot be run."""


class DataError(ApetError):
    """A source or a prepared file does not hold what it should."""


class ModelError(ApetError):
    """A PLM cannot be had, or is not of a supported family."""


class BudgetError(ApetError):
    """A budget that a placement cannot meet on a PLM."""


class CorruptError(ApetError):
    """A result on disk is not what its own digest says."""


class MismatchError(ApetError):
    """A rerun that did not give the same bytes."""

    status = 1


class Interrupted(BaseException):
    """SIGTERM or SIGINT: the work is kept, and going on is left to the next run. No failure, so no `Exception`.

    Its exit status says so too: 75 is EX_TEMPFAIL of sysexits.h, "try again".
    """

    status = 75


class located:
    """Puts the place (a file, a key) in front of the message of any ApetError raised inside."""

    def __init__(self, place: object):
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ApetError):
            raise type(error)(f"{self.place}: {error}") from None


MOST_SHOWN = 100
"""Characters of a value that a message shows, so that a large one leaves it readable."""


def shown(value: object) -> str:
    """A value as a message shows it: in one line, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def unknown(what: str, value: object, allowed: Iterable[str], where: str = "") -> str:
    """One sentence for a name outside a closed set, with the nearest allowed name as a suggestion."""
    names = sorted(map(str, allowed))
    folded = {name.casefold(): name for name in names}
    near = get_close_matches(str(value)[:MOST_SHOWN].casefold(), folded, n=1)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    some = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"{where + ': ' if where else ''}unknown {what} {shown(value)}.{hint} Allowed: {some}."
