"""A fleet whose workers come and go while the registry is compared with discovery."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from attacks.arena import Findings, service
from registry.discovery import open_discovery
from registry.store.reads.audit import OF_DISCOVERY
from tests.compared import CONFIG, ComingAndGoing, card_record, counts, url_of, worker
from tests.support import ROOT, Server, wait_for

WORKERS = 200
FOR_S = 60


def coming_and_going(folder: Path, findings: Findings) -> None:
    """200 workers that come and go at random for a minute: neither the service nor the command
    finds anything. One card that stays and is not served: both find it."""
    url = f"file:{folder / 'kv'}"
    with service(folder, findings, discovery=url) as server:
        with ComingAndGoing(server, url, workers=WORKERS, seconds=FOR_S) as fleet:
            while fleet.is_on:
                found = (counts(server) or {}).keys() & OF_DISCOVERY.keys()
                findings.check(not found, f"the service finds {', '.join(sorted(found))}")
                for name in by_command(server, url):
                    findings.fail(f"the command finds {name}")
                findings.count("commands")
        findings.count("attached", fleet.attached)
        for error in fleet.errors:
            findings.fail(f"a worker failed: {error!r}")
        store = open_discovery(url)
        store.publish(card_record(worker(999), "Gone", [(url_of(server.url, CONFIG), b"gone")]))
        findings.check(by_command(server, url) == ["advertised_not_served"], "an outage is missed")
        wait_for(lambda: "advertised_not_served" in (counts(server) or {}), 60)
        store.close()


def by_command(server: Server, url: str) -> list[str]:
    """What the command finds, by class."""
    command = [sys.executable, "-m", "registry", "audit", "--discovery", url, "--json"]
    command += ["--database-url", f"sqlite:///{server.database}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return sorted(json.loads(done.stdout)["counts"].keys() & OF_DISCOVERY.keys())
