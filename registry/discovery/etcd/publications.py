"""What this process publishes in an etcd: all of it under one lease, which is renewed.

A lease that is over is replaced, and everything written again. What became of a write that was not
answered is seen later, since etcd tells which keys hang on the lease: what is missing is written
again, unless somebody else has put their own there, and what was withdrawn goes.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from registry.discovery.etcd.failures import (
    INVALID_ARGUMENT,
    NOT_FOUND,
    EtcdRefusal,
    TooMuchAnswered,
)
from registry.discovery.etcd.gateway import Body, EtcdGateway
from registry.discovery.etcd.messages import (
    KeepAliveAnswer,
    LeaseAnswer,
    WrittenAnswer,
    base64_of,
)
from registry.errors import DiscoveryUnavailable, Invalid
from registry.network.deadline import at_most

JOB_MAX_S = 9.0
"""Less than whoever waits for the keeper does."""

LEASES_REMEMBERED = 16
BATCH_KEYS = 50
BATCH_MAX_BYTES = 512 << 10
"""etcd takes 128 steps and 1.5 MiB in one transaction, unless it is told otherwise."""

KEYS_MAX_BYTES = 16 << 20

log = logging.getLogger("registry.discovery")


class Publications:
    """Written, withdrawn and kept live by one thread.

    Args:
        ttl_s: how long records outlive this process.
    """

    def __init__(self, gateway: EtcdGateway, ttl_s: float) -> None:
        self._gateway = gateway
        self._ttl_s = ttl_s
        self._published: dict[bytes, bytes] = {}
        self._unsure: set[bytes] = set()
        self._lease = 0
        self._earlier: deque[int] = deque(maxlen=LEASES_REMEMBERED)
        self._renewed = -math.inf
        self._fails = False

    def put(self, key: bytes, content: bytes) -> None:
        """Write a record in place of another, and keep it live.

        Raises:
            DiscoveryUnavailable: it may be there or not.
            Invalid: it is larger than this etcd takes.
        """
        with at_most(JOB_MAX_S):
            self._unsure.add(key)
            if self._ages():
                self._renew()
            self._put(key, content)
            self._unsure.discard(key)
            self._published[key] = content

    def delete(self, key: bytes) -> None:
        """Take a record away, whoever wrote it."""
        with at_most(JOB_MAX_S):
            self._gateway.call("kv/deleterange", {"key": base64_of(key)}, WrittenAnswer)
            self._published.pop(key, None)

    def replace(self, key: bytes, revision: int, content: bytes) -> bool:
        """Write what stands there since a revision anew, on the lease that it hangs on; whether it
        still stood there."""
        is_own = key in self._published
        if is_own:
            self._unsure.add(key)
        put = {"key": base64_of(key), "value": base64_of(content), "ignore_lease": True}
        condition = {"key": base64_of(key), "target": "MOD", "mod_revision": str(revision)}
        is_done = self._txn([condition], [{"request_put": put}]).succeeded
        if is_own:
            self._unsure.discard(key)
            if is_done:
                self._published[key] = content
        return is_done

    def renew(self) -> bool:
        """Keep everything live; whether there is anything to keep."""
        try:
            with at_most(JOB_MAX_S):
                self._renew()
                self._repair()
        except (DiscoveryUnavailable, TimeoutError, Invalid) as error:
            if not self._fails:
                log.warning("records of this worker may lapse: %s", error)
            self._fails = True
        else:
            self._fails = False
        return bool(self._published or self._unsure)

    # The lease

    def _ages(self) -> bool:
        return time.monotonic() - self._renewed > self._ttl_s / 3

    def _renew(self) -> None:
        if self._lease and not self._keep_alive():
            self._replace_lease()
        if not self._lease:
            answer = self._gateway.call(
                "lease/grant", {"TTL": max(1, round(self._ttl_s))}, LeaseAnswer
            )
            if not answer.id:
                raise DiscoveryUnavailable(f"{self._gateway} grants no lease. See its log.")
            self._lease = answer.id
        self._renewed = time.monotonic()

    def _keep_alive(self) -> bool:
        """Whether the lease is renewed. One that is over is answered as if nothing were wrong, but
        has no time left."""
        answer = self._gateway.call("lease/keepalive", {"ID": str(self._lease)}, KeepAliveAnswer)
        return answer.result.ttl_s > 0

    def _replace_lease(self) -> None:
        if self._published:
            log.info(
                "the lease of %d records was over; there will be a new one", len(self._published)
            )
        # In an etcd that was restored, records may hang on a lease that was over before.
        self._earlier.append(self._lease)
        self._lease = 0

    # Writing

    def _put(self, key: bytes, content: bytes) -> None:
        try:
            self._write("kv/put", self._put_request(key, content))
        except EtcdRefusal as refusal:
            if refusal.grpc_code != NOT_FOUND:
                raise self._gateway.refused(refusal) from None
            # The lease ended while nobody looked; the other records went with it.
            self._replace_lease()
            self._renew()
            self._repair()
            self._gateway.call("kv/put", self._put_request(key, content), WrittenAnswer)

    def _put_request(self, key: bytes, content: bytes) -> dict[str, str]:
        return {
            "key": base64_of(key),
            "value": base64_of(content),
            "lease": str(self._lease),
        }

    def _write(self, path: str, body: Body) -> WrittenAnswer:
        try:
            return self._gateway.ask(path, body, WrittenAnswer)
        except EtcdRefusal as refusal:
            if refusal.grpc_code == INVALID_ARGUMENT and refusal.says("too large"):
                raise Invalid(
                    f"The record is larger than {self._gateway} takes. Leave fields out of it, or "
                    "raise its limit (--max-request-bytes)."
                ) from None
            raise

    # What became of it

    def _repair(self) -> None:
        """Make what hangs on the lease what was published."""
        there = self._keys_of_lease()
        for key in there - self._published.keys():
            # It came late, after it was withdrawn or given up.
            self._if_lease(key, {"request_delete_range": {"key": base64_of(key)}})
        for key in self._unsure & there & self._published.keys():
            self._if_lease(key, self._put_step(key))
        missing = [key for key in self._published if key not in there]
        for batch in self._batches(missing):
            self._write_again(batch)
        self._unsure.clear()

    def _keys_of_lease(self) -> set[bytes]:
        body = {"ID": str(self._lease), "keys": True}
        try:
            answer = self._gateway.ask(
                "lease/timetolive", body, LeaseAnswer, page_max_bytes=KEYS_MAX_BYTES
            )
        except TooMuchAnswered:
            raise DiscoveryUnavailable(
                f"{self._gateway} tells of more keys than this process has written."
            ) from None
        except EtcdRefusal as refusal:
            raise self._gateway.refused(refusal) from None
        return set(answer.keys)

    def _batches(self, keys: Iterable[bytes]) -> Iterator[list[bytes]]:
        batch: list[bytes] = []
        size = 0
        for key in keys:
            size += len(self._published[key])
            if batch and (len(batch) == BATCH_KEYS or size > BATCH_MAX_BYTES):
                yield batch
                batch, size = [], len(self._published[key])
            batch.append(key)
        if batch:
            yield batch

    def _write_again(self, keys: Sequence[bytes]) -> None:
        """Write what is not there any more. What another has put in its place stays, and so does
        what another writes meanwhile: the next time will tell."""
        reads = [{"request_range": {"key": base64_of(key), "keys_only": True}} for key in keys]
        answers = self._txn([], reads).responses
        conditions, steps = [], []
        for key, answer in zip(keys, answers, strict=False):
            found = next(iter(answer.response_range.kvs), None)
            if found is None or found.lease in self._earlier:
                revision = str(0 if found is None else found.mod_revision)
                conditions.append(
                    {"key": base64_of(key), "target": "MOD", "mod_revision": revision}
                )
                steps.append(self._put_step(key))
        if steps:
            self._txn(conditions, steps)

    def _put_step(self, key: bytes) -> Body:
        return {"request_put": self._put_request(key, self._published[key])}

    def _if_lease(self, key: bytes, step: Body) -> None:
        """Do something with a key that still hangs on the lease."""
        condition = {"key": base64_of(key), "target": "LEASE", "lease": str(self._lease)}
        self._txn([condition], [step])

    def _txn(self, conditions: Sequence[Body], steps: Sequence[Body]) -> WrittenAnswer:
        compare = [{"result": "EQUAL", **condition} for condition in conditions]
        try:
            return self._write("kv/txn", {"compare": compare, "success": steps})
        except EtcdRefusal as refusal:
            raise self._gateway.refused(refusal) from None
