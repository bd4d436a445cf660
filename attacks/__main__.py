"""Attack, one way after the other, each in a process of its own.

python -m attacks [NAME,NAME]      only these

One line for each: its name, how long it took, its figures, and `ok` or what is wrong. Exit 1 if
anything is wrong, 2 if there is no attack of that name.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from attacks import clients, crashes, discovery, files, history, peers, resources
from attacks.arena import CannotTry, Findings

Attack = Callable[[Path, Findings], None]

ATTACKS: dict[str, tuple[Attack, int]] = {
    "kills-one": (crashes.kills_of_one, 300),
    "kills-two": (crashes.kills_of_two, 300),
    "removed": (crashes.removed_files, 240),
    "descriptors": (resources.descriptors, 180),
    "memory": (resources.memory, 400),
    "threads": (resources.threads, 120),
    "tls": (resources.silent_handshakes, 120),
    "hung-mount": (files.hung_mount, 180),
    "slow-mount": (files.slow_mount, 120),
    "dead-mount": (files.dead_mount, 120),
    "mapped-writers": (files.mapped_writers, 120),
    "escapes": (files.escapes, 120),
    "dripping": (peers.dripping, 120),
    "pipelines": (peers.pipelines, 240),
    "mutations": (peers.mutations, 240),
    "hostile-registry": (clients.hostile_registry, 240),
    "hostile-card": (clients.hostile_cards, 120),
    "hostile-cache": (clients.hostile_cache, 180),
    "hostile-discovery": (clients.hostile_discovery, 120),
    "coming-and-going": (discovery.coming_and_going, 240),
    "heartbeat": (clients.heartbeat, 120),
    "history": (history.linearizable, 180),
}
"""Every attack, with the seconds that it may take."""

GRACE_S = 60
OK, WRONG, UNKNOWN, CANNOT = 0, 1, 2, 77


def main(arguments: list[str]) -> int:
    """Make the attacks that were asked for; the exit code."""
    if arguments[:1] == ["--one"]:
        return one(arguments[1])
    wanted = [name for name in ",".join(arguments).replace(" ", "").split(",") if name]
    unknown = [name for name in wanted if name not in ATTACKS]
    if unknown:
        print(f"there is no {', '.join(unknown)}; there are {', '.join(ATTACKS)}", file=sys.stderr)
        return UNKNOWN
    started, worst = time.monotonic(), OK
    for name in wanted or ATTACKS:
        worst = max(worst, _in_a_process(name))
    print(f"{time.monotonic() - started:.0f} s, {'ok' if worst == OK else 'WRONG'}")
    return worst


def _in_a_process(name: str) -> int:
    command = [sys.executable, "-m", "attacks", "--one", name]
    child = subprocess.Popen(command, start_new_session=True)
    try:
        code = child.wait(ATTACKS[name][1] + GRACE_S)
    except subprocess.TimeoutExpired:
        print(f"{name:<18} WRONG: did not end")
        code = WRONG
    except BaseException:
        os.killpg(child.pid, signal.SIGTERM)
        raise
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return OK if code in (OK, CANNOT) else WRONG


def one(name: str) -> int:
    """Make one attack, within its time."""
    attack, seconds = ATTACKS[name]
    logging.disable()  # Of the clients in this process.
    signal.signal(signal.SIGALRM, _late)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(WRONG))  # What was started is ended.
    signal.alarm(seconds)
    findings, started = Findings(), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="registry-attack-"))
    try:
        attack(folder, findings)
    except CannotTry as error:
        print(f"{name:<18} {'-':>5}    not tried: {error}", flush=True)
        return CANNOT
    except Exception as error:
        findings.fail(f"{type(error).__name__}: {str(error)[:500]}")
        if not isinstance(error, AssertionError | TimeoutError):
            traceback.print_exc()
    finally:
        signal.alarm(0)
        shutil.rmtree(folder, ignore_errors=True)
    verdict = "WRONG" if findings.wrong else "ok"
    taken = time.monotonic() - started
    print(f"{name:<18} {taken:5.0f} s  {verdict:<5} {findings.line}", flush=True)
    for what, times in findings.wrong.most_common(10):
        print(f"    {times} times: {what}", flush=True)
    return WRONG if findings.wrong else OK


def _late(_signal: int, _frame: object) -> NoReturn:
    raise TimeoutError("it takes longer than it may")


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # A thread that hangs, in an attack that found one, is not waited for.
