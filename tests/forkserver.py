"""Programs that start in milliseconds, as forks of one process that has imported their libraries.

`programs()` is a folder with `apet`, `dvc` and `snakemake`. Each passes its arguments, folder, environment and open
files to the server, which forks; it forwards signals, and exits as the fork does. A process of its own takes 2 to 7 s
of CPU for its imports. What depends on these (variables that libraries read then, limits of memory) needs a process of
its own, and so do the end-to-end runs.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

MAINS = {"apet": "apet.cli.app", "dvc": "dvc.cli", "snakemake": "snakemake.cli"}
"""Program -> module with its function `main`."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip
"""Variables that libraries read when they are imported, as `apet` sets them."""

LIBRARIES = (
    "accelerate", "datasets", "matplotlib.pyplot", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg",
    "scipy.stats", "scipy.optimize", "pyarrow.parquet", "statsmodels.stats.multitest", "tokenizers", "transformers",
    *(f"transformers.models.{family}.modeling_{family}" for family in ("bert", "bloom", "gpt_neox", "llama", "t5")),
    *("snakemake.api", "snakemake.workflow", "snakemake.report.html_reporter"),
    *("dvc.repo", "dvc.stage", "dvc.commands.repro", "dvc.commands.data_sync", "dvc.fs", "dvc_data.index", "dvc_s3"),
)  # fmt: skip
RUNNING = ExitStack()
"""What must be stopped at the end of a session."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@cache
def programs() -> Path:
    """Start a server, which ends with this process or with `RUNNING`, and return the folder of its programs."""
    folder = Path(tempfile.mkdtemp(prefix="apet-programs-"))
    for name in MAINS:
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "{folder}/socket" {name} "$@"\n')
        program.chmod(0o755)
    command = [sys.executable, "-P", __file__, f"{folder}/socket"]
    server = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    RUNNING.callback(stop, server, folder)
    assert server.stdout.readline() == b"ready\n"
    return folder


def stop(server: subprocess.Popen, folder: Path) -> None:
    server.stdin.close()
    server.wait()
    shutil.rmtree(folder)


def call(address: str, *words: str) -> int:
    """Let the server run a program, and return its exit status."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        os.umask(mask := os.umask(0))
        message = json.dumps([words, os.getcwd(), dict(os.environ), mask]).encode("utf-8", "surrogateescape")
        socket.send_fds(server, [len(message).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(message)
        group = int.from_bytes(received(server), "big")
        for number in FORWARDED:
            signal.signal(number, lambda sign, _: suppressed_kill(group, sign))
        return int.from_bytes(received(server), "big", signed=True)


def received(server: socket.socket) -> bytes:
    """Wait for four bytes of the server. They are missing if the server has ended."""
    message = server.recv(4)
    assert message, "the server of forks has ended"
    return message


def suppressed_kill(group: int, number: int) -> None:
    """Send a signal to a process group that may have ended."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def serve(address: str) -> None:
    """Import all libraries, and fork for each caller, until standard input is closed."""
    import gc
    import pkgutil
    from importlib import import_module

    import apet

    for module in pkgutil.walk_packages(apet.__path__, "apet."):
        import_module(module.name)
    for module in (*MAINS.values(), *LIBRARIES):
        import_module(module)
    gc.collect()
    gc.freeze()
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    os.write(1, b"ready\n")
    forks: dict[int, tuple[int, socket.socket]] = {}
    while True:
        callers = {caller.fileno(): fork for fork, caller in forks.values()}
        for file in select.select([0, server.fileno(), *forks, *callers], [], [])[0]:
            if file == 0:
                return
            if file == server.fileno():
                caller, _ = server.accept()
                fork = start(caller, [server, *(other for _, other in forks.values())])
                forks[os.pidfd_open(fork)] = fork, caller
            elif file in callers:  # it was killed
                suppressed_kill(callers[file], signal.SIGKILL)
            elif file in forks:
                fork, caller = forks.pop(file)
                os.close(file)
                status = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
                with caller, suppress(ConnectionError):  # it was killed
                    caller.send(status.to_bytes(4, "big", signed=True))


def start(caller: socket.socket, others: list[socket.socket]) -> int:
    """Run a program in a fork, and tell its number to the caller. others: sockets that the fork must not keep open."""
    size, files, _, _ = socket.recv_fds(caller, 4, 3)
    message = caller.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    ready, made = os.pipe()
    if not (fork := os.fork()):
        os.setsid()
        os.close(ready)
        os.close(made)
        for other in (caller, *others):
            other.close()
        run(*json.loads(message.decode("utf-8", "surrogateescape")), files)
    os.close(made)
    os.read(ready, 1)  # until the fork leads a group
    with suppress(ConnectionError):  # it was killed
        caller.send(fork.to_bytes(4, "big"))
    for file in (ready, *files):
        os.close(file)
    return fork


def run(words: list[str], folder: str, environment: dict[str, str], mask: int, files: list[int]) -> None:
    """Run a program in this process, named like it and its first argument, and exit."""
    import time

    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.umask(mask)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    Path("/proc/self/comm").write_text(" ".join(words[:2])[:15])
    sys.argv = words
    try:
        status = sys.modules[MAINS[words[0]]].main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)  # Python's own end takes as long as its start


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
        os._exit(0)
    status = call(*sys.argv[1:])
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)
