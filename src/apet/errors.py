"""Errors, whose messages have one form: `file: key: problem. Fix.`."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

TEMPORARY_NAME = re.compile(r"(?<![^/\s'\"(`])\.([^/]+?)\.[0-9a-f]{8}\.[^/\s]*?\.part\b")
"""Name of a temporary file or folder of `apet.core.atomic`, which contains the final name."""


class ApetError(Exception):
    """Base class of errors that the user can fix. The command line prints only the message.

    Args:
        message: Lines of the form `file: key: problem. Fix.`. Names of temporary files and folders are replaced by the
            final names. Characters that a terminal cannot print, which can come from a damaged file or from the message
            of a library, are replaced by their escape sequences.

    Attributes:
        status: Exit status of the command.
    """

    status = 2

    def __init__(self, message: str = "") -> None:
        message = TEMPORARY_NAME.sub(r"\1", message)
        super().__init__("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in message))


class ConfigError(ApetError):
    """A study, task or model file that is invalid."""


class DataError(ApetError):
    """A source or prepared file with missing or invalid content."""


class ModelError(ApetError):
    """A PLM that is missing, incomplete, or of an unsupported family."""


class BudgetError(ApetError):
    """A budget that a placement cannot meet on a PLM."""


class CellsFailedError(ApetError):
    """Failed cells in a job whose other cells were trained and saved."""


class CorruptError(ApetError):
    """A file that does not match its checksum."""


class MismatchError(ApetError):
    """A rerun that gave other bytes."""

    status = 1


class StorageError(ApetError):
    """A disk that is full, read-only, failing, or not writable for this user."""


class PathError(ApetError):
    """A path that cannot be used: wrong type, name too long, … Other paths on the disk still work."""


class Interrupted(BaseException):
    """A stop by SIGTERM or SIGINT after the work was saved. Not an `Exception`, because nothing failed."""

    status = 75
    """EX_TEMPFAIL of sysexits.h: try again."""


class ErrorCollector:
    """Errors of independent checks, to be raised together."""

    def __init__(self) -> None:
        self.errors: list[ApetError] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep an ApetError of the block."""
        try:
            yield
        except ApetError as error:
            self.errors.append(error)

    def raise_all(self) -> None:
        """Raise the errors, if any, as one error with a line for each. Its type is theirs, or ConfigError."""
        kinds = {type(error) for error in self.errors}
        if kinds:
            raise (kinds.pop() if len(kinds) == 1 else ConfigError)("\n".join(map(str, self.errors)))


@contextmanager
def error_context(location: object) -> Iterator[None]:
    """Prefix each line of the message of any ApetError raised in the block with a location, a file or key."""
    try:
        yield
    except ApetError as error:
        raise type(error)("\n".join(f"{location}: {line}" for line in str(error).splitlines())) from None


STORAGE_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE,
}  # fmt: skip
"""System errors of a whole disk: StorageError."""

PATH_ERRNOS = {
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EBUSY, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
"""System errors of one path: PathError."""

TARGET_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG}
"""System errors that are reported for the file to be written. Others name the file that the system names."""

RERUN_HINT = "Fix it and run the same command again; finished work is kept."


def storage_error(error: Exception, path: object = None) -> StorageError | PathError | None:
    """Convert a system error into an error that names the file and a fix.

    Args:
        error: An OSError, or an error with the number only in its text, such as those of libraries written in Rust.
        path: The file that was to be written, if known.

    Returns:
        A StorageError or PathError, or None for any other error.
    """
    in_text = re.search(r"(?:os error|Errno) (\d+)", str(error))
    number = error.errno if isinstance(error, OSError) and error.errno else int(in_text[1]) if in_text else None
    if number not in STORAGE_ERRNOS | PATH_ERRNOS:
        return None
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    file = path or named if number in TARGET_ERRNOS else named or path
    reason = os.strerror(number)
    kind = StorageError if number in STORAGE_ERRNOS else PathError
    return kind(f"{file or 'output'}: {reason[0].lower()}{reason[1:]}. {RERUN_HINT}")


@contextmanager
def renamed_in_errors(path: object, name: object) -> Iterator[None]:
    """Write `name` for a temporary path in the message of any ApetError raised in the block."""
    try:
        yield
    except ApetError as error:
        text = str(error)
        for shown in (str(path), TEMPORARY_NAME.sub(r"\1", str(path))):
            text = text.replace(shown, str(name))
        if text == str(error):
            raise
        raise type(error)(text) from None


@contextmanager
def storage_errors(path: object) -> Iterator[None]:
    """Raise the system errors of the block as `storage_error` converts them.

    Args:
        path: The file or folder that is written.

    Yields:
        Nothing.

    Raises:
        StorageError: The disk is full, read-only or fails.
        PathError: The path cannot be used.
    """
    try:
        yield
    except ApetError:
        raise
    except Exception as error:
        if converted := storage_error(error, path):
            raise converted from error
        raise


def first_line(error: Exception) -> str:
    """Return the first line of the message of another library's error, without the number of a system error."""
    system = error.strerror if isinstance(error, OSError) else None
    text = (system or str(error)).strip() or type(error).__name__
    return re.sub(r"\[Errno -?\d+\] | \(os error \d+\)", "", text.splitlines()[0])


MAX_REPR = 100
"""Most characters of a value in an error message."""


def truncated_repr(value: object) -> str:
    """Return a value's repr for an error message, truncated after MAX_REPR characters."""
    text = repr(value)
    return text if len(text) <= MAX_REPR else f"{text[:MAX_REPR]}…"


def without_secrets(text: str) -> str:
    """Remove secrets from the message of another program or library.

    Args:
        text: A message, which may contain a URL with user and password, or the value of an environment variable that
            holds a token, key or password.

    Returns:
        The text with `***` in place of each secret.
    """
    secret = re.compile("TOKEN|SECRET|PASSWORD|KEY", re.IGNORECASE)
    for value in (value for name, value in os.environ.items() if secret.search(name) and len(value) >= 8):
        text = text.replace(value, "***")
    return re.sub(r"(?<=://)[^\s/]*@", "***@", text)


def first_names(names: Sequence[str]) -> str:
    """Join up to three names, and count the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def unknown_name(what: str, value: object, allowed: Iterable[str], location: str = "") -> str:
    """Return the error message for a name outside a closed set, with the nearest allowed name as a suggestion.

    Args:
        what: The kind of name, such as `key`.
        value: The unknown name.
        allowed: All allowed names; at most 20 are listed.
        location: A file or key to begin with.

    Returns:
        One or two sentences.
    """
    names = sorted(map(str, allowed))
    # A part of a name counts too: `stpes` is near to `max_steps`.
    folded = {part.casefold(): name for name in names for part in name.split("_")}
    folded |= {name.casefold(): name for name in names}
    near = get_close_matches(str(value)[:MAX_REPR].casefold(), folded, n=1)
    suggestion = f" Did you mean {truncated_repr(folded[near[0]])}?" if near else ""
    listed = ", ".join(name if len(name) <= MAX_REPR else f"{name[:MAX_REPR]}…" for name in names[:20]) + (
        ", …" if len(names) > 20 else ""
    )
    prefix = f"{location}: " if location else ""
    return f"{prefix}unknown {what} {truncated_repr(value)}.{suggestion} Allowed: {listed}."
