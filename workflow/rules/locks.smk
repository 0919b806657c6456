"""Snakemake's locks, which vanish when another run of the working copy ends, with their folder."""

import os
from contextlib import suppress
from functools import wraps

from snakemake.persistence.file import FilePersistence

# Times that they are tried again: each time, another run must have ended in that very moment.
PATIENCE = 100


def patient(method):
    """The method, tried again where what it reads or writes to has been removed under its hands. Without this, a run
    that begins while another ends stops with a traceback; which of two runs may go on is said by `acquire_lock`.
    """

    @wraps(method)
    def again(self, *arguments):
        kept = [given if isinstance(given, str) else [*given] for given in arguments]
        for _ in range(PATIENCE):
            os.makedirs(self._lockdir, exist_ok=True)
            with suppress(FileNotFoundError):
                return [*(method(self, *kept) or ())]
        return [*(method(self, *kept) or ())]

    return again


for name in ("_read_locks", "_write_locks", "_delete_locks"):
    setattr(FilePersistence, name, patient(getattr(FilePersistence, name)))
