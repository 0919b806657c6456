"""Every failure a user can cause, as one exception that names the file, the key, the value and what is allowed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches


class ApetError(Exception):
    """Base of all errors that are the input's fault: the command line prints the message alone, and exits with 2."""

    status = 2


class ConfigError(ApetError):
    """A study, task or model file says something that cannot be run."""


class DataError(ApetError):
    """A source or a prepared file does not hold what it should."""


class ModelError(ApetError):
    """A PLM cannot be had, or is not of a supported family."""


class BudgetError(ApetError):
    """A budget that a placement cannot meet on a PLM."""


class CellsFailedError(ApetError):
    """Some cells of a block failed; the others are saved."""


class CorruptError(ApetError):
    """A result on disk is not what its own digest says."""


class MismatchError(ApetError):
    """A rerun that did not give the same bytes."""

    status = 1


class StorageError(ApetError):
    """A disk that is full, read-only, or not ours to write."""


class PathError(ApetError):
    """A place on a disk that is another's: what else can be written is not lost, so it is no StorageError."""


class Interrupted(BaseException):
    """SIGTERM or SIGINT: the work is kept, and going on is left to the next run. No failure, so no `Exception`.

    Its exit status says so too: 75 is EX_TEMPFAIL of sysexits.h, "try again".
    """

    status = 75


class error_context:
    """Puts the place (a file, a key) in front of the message of any ApetError raised inside."""

    def __init__(self, place: object):
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ApetError):
            raise type(error)("\n".join(f"{self.place}: {line}" for line in str(error).splitlines())) from None


REFUSED = {
    errno.ENOSPC: ("the disk is full", "Free some space"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space"),
    errno.EROFS: ("the file system is read-only", "Make it writable"),
    errno.EACCES: ("permission is denied", "Give access to it"),
    errno.EPERM: ("it is not permitted", "Give access to it"),
    errno.EIO: ("the disk does not answer as it should (input/output error)", "See to the disk"),
    errno.ESTALE: ("the shared disk has lost it (stale file handle)", "Mount it anew"),
}
"""Number of a system's error -> what it says of a disk, and what to do."""

IN_THE_WAY = {
    errno.EEXIST: ("something else stands there, such as a link that leads nowhere", "Move it away, or mend it"),
    errno.ENOTDIR: ("a file stands where a folder must be", "Move it away, or name another"),
    errno.EISDIR: ("a folder stands where a file must be", "Move it away, or name another"),
    errno.EBUSY: ("the system uses it, as the place of another disk", "Name another"),
    errno.ENOTEMPTY: ("another process has just written it", "Wait for that one"),
    errno.ENAMETOOLONG: ("the name is too long", "Give a shorter one"),
    errno.ELOOP: ("links lead round in a circle", "Mend them"),
}
"""The same of one place."""

OF_WHAT_IS_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG)
"""Those that are told of what was to be written; the others, of the file that the system names."""


def storage_error(error: Exception, path: object = None) -> StorageError | PathError | None:
    """What a disk has refused to Python or to a library, as one message with the file and what to do: a StorageError,
    or a PlaceError where something stands in the way. None for any other error. path: what was to be written; the error
    says which file only where it may have been read.
    """
    # Libraries written in Rust give the number in their text alone.
    said = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
    known = REFUSED | IN_THE_WAY
    if number not in known:
        return None
    what, remedy = known[number]
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    file = path or named if number in OF_WHAT_IS_WRITTEN else named or path
    again = "and say the same command again: what was finished is kept."
    kind = StorageError if number in REFUSED else PathError
    return kind(f"{file or 'output'}: cannot be used: {what}. {remedy}, {again}")


class storage_errors:
    """Raises `storage_error` for what a disk refuses inside. shown_as: the name that a message gives to a temporary."""

    def __init__(self, path: object, shown_as: object = None):
        self.path, self.shown = path, shown_as or path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception):
            return
        found = error if isinstance(error, StorageError | PathError) else storage_error(error, self.path)
        if found:
            raise type(found)(str(found).replace(str(self.path), str(self.shown))) from error


MOST_SHOWN = 100
"""Characters of a value that a message shows, so that a large one leaves it readable."""


def truncated_repr(value: object) -> str:
    """A value as a message shows it: in one line, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def without_secrets(text: str) -> str:
    """What another program or library has said, without what it may have taken from a URL's user and password, or from
    a variable of the environment that holds a token, key or password.
    """
    secret = re.compile("TOKEN|SECRET|PASSWORD|KEY", re.IGNORECASE)
    for value in (value for name, value in os.environ.items() if secret.search(name) and len(value) >= 8):
        text = text.replace(value, "***")
    return re.sub(r"(?<=://)[^\s/]*@", "***@", text)


def unknown_name(what: str, value: object, allowed: Iterable[str], where: str = "") -> str:
    """One sentence for a name outside a closed set, with the nearest allowed name as a suggestion."""
    names = sorted(map(str, allowed))
    # A part of a name counts too: `stpes` is near to `max_steps`.
    folded = {part.casefold(): name for name in names for part in (*name.split("_"), name)}
    near = get_close_matches(str(value)[:MOST_SHOWN].casefold(), folded, n=1)
    hint = f" Did you mean {folded[near[0]]!r}?" if near else ""
    some = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"{where + ': ' if where else ''}unknown {what} {truncated_repr(value)}.{hint} Allowed: {some}."
