"""A Redis that Sentinels monitor: always the present master.

    redis+sentinel://[user:password@]host:port,host:port/service[/database][?sentinel_username=…&sentinel_password=…&…]

Every second each Sentinel is asked who the master is, and since which epoch; the report of the newest epoch counts. A master that is cut off from its
Sentinels and replicas goes on answering, so no connection error would show that there is another. When the master changes, all connections to the
former one are dropped, those in use too, and the commands that wait on them fail as if Redis had gone away.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import partial
from typing import Any, Final, TypeAlias
from urllib.parse import unquote, urlsplit

import redis.asyncio
from msgspec import Struct
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ReadOnlyError, RedisError, ResponseError

from indexer.masking import masked

log = logging.getLogger(__name__)

Address: TypeAlias = tuple[str, int]

SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")
SHAPE: Final = (
    "redis+sentinel://user:password@host:port,host:port/service/database, the hosts being Sentinels and the service what they call their master"
)
SENTINEL_PORT = 26379
POLL_S = 1.0
# Sentinels are not asked more often than this, whatever goes wrong.
POLL_PAUSE_S = 0.1
# An older epoch than the known one counts once most Sentinels reported it this long: they were set up again. One that lags behind does not count.
OLDER_EPOCH_AFTER_S = 10.0


class MasterReport(Struct, frozen=True):
    """A Sentinel's answer. `epoch` grows with each failover."""

    address: Address
    epoch: int


class SentinelSettings(Struct, frozen=True):
    """What a URL says. `options` are those of connections to the master, `sentinel_options` of those to Sentinels."""

    sentinels: tuple[Address, ...]
    service: str
    is_tls: bool
    options: Mapping[str, Any]
    sentinel_options: Mapping[str, Any]


def is_sentinel(url: str) -> bool:
    """Whether a URL is one of Sentinels."""
    return url.partition("://")[0].lower() in SCHEMES


def parse(url: str) -> SentinelSettings:
    """Read a URL. Raises ValueError, whose text holds nothing of the URL."""
    split = urlsplit(url)
    is_tls = split.scheme == "rediss+sentinel"
    userinfo, at, hosts = split.netloc.rpartition("@")
    sentinels = tuple(_address(host) for host in hosts.split(","))
    service, slash, database = split.path.removeprefix("/").partition("/")
    if not service:
        raise ValueError("names no service")
    if slash and not (database.isascii() and database.isdigit()):
        raise ValueError("has a database that is no number")
    single = f"{'rediss' if is_tls else 'redis'}://{userinfo}{at}host/{database or 0}" + (f"?{split.query}" if split.query else "")
    try:
        options: dict[str, Any] = dict(parse_url(single))
    except ValueError:
        raise ValueError("has a parameter of a wrong value") from None
    for name in ("host", "connection_class"):
        options.pop(name, None)
    of_sentinels = {name: options.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in options}
    of_sentinels |= {name: value for name, value in options.items() if name.startswith("ssl_")}
    return SentinelSettings(sentinels, unquote(service), is_tls, options, of_sentinels)


def _address(host: str) -> Address:
    try:
        split = urlsplit(f"//{host}")
        name, port = split.hostname, split.port
    except ValueError:
        raise ValueError("has a port that is none") from None
    if not name or split.path:
        raise ValueError("has an empty host")
    return name, port or SENTINEL_PORT


def choose_master(known: MasterReport | None, reports: Collection[MasterReport], sentinels: int) -> tuple[MasterReport | None, bool]:
    """The master by what is known and what was reported; `sentinels`: how many there are, those that do not answer included.

    The second value is whether most of them report an older epoch than the known one, and none a newer: right only if they were set up again.
    """
    if not reports:
        return known, False
    newest = max(reports, key=lambda report: report.epoch)
    if known is None or newest.epoch > known.epoch:
        return newest, False
    if newest.epoch < known.epoch:
        return known, 2 * len(reports) > sentinels
    return (known if known in reports else newest), False


class MasterConnection(Connection):
    """Calls `on_read_only` when the server turns out to be a replica."""

    def __init__(self, *, on_read_only: Callable[[], None], **options: Any) -> None:
        super().__init__(**options)
        self._on_read_only = on_read_only

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except ResponseError as error:
            # Older servers report an error inside of a script in a text of their own.
            if isinstance(error, ReadOnlyError) or "READONLY" in str(error):
                self._on_read_only()
            raise


class SSLMasterConnection(MasterConnection, SSLConnection):
    """The same by TLS."""


class MasterPool(ConnectionPool):
    """Connections to one master, until `retire`: from then on it hands out none."""

    def __init__(self, client: "SentinelClient", options: Mapping[str, Any]) -> None:
        super().__init__(redis_connect_func=self._check_role, on_read_only=client.poll_soon, **options)
        self._client = client
        self.is_retired = False

    def __repr__(self) -> str:
        return f"<MasterPool {self.connection_kwargs.get('host')}:{self.connection_kwargs.get('port')}>"

    def set_address(self, address: Address) -> None:
        """Where to connect to from now on."""
        self.connection_kwargs["host"], self.connection_kwargs["port"] = address

    async def get_connection(self, *arguments: Any, **options: Any) -> Any:
        """Raises redis.exceptions.RedisError, also where no Sentinel names a master in time."""
        await self._client.wait_for_master()
        self._check_in_use()
        try:
            return await super().get_connection(*arguments, **options)  # type: ignore[no-untyped-call]
        except RedisError:
            self._client.poll_soon()
            raise

    async def _check_role(self, connection: Any) -> None:
        """Of a new connection, or of one that connects again after all were dropped."""
        self._check_in_use()
        await connection.on_connect()
        await connection.send_command("INFO", "replication")
        try:
            answer = await connection.read_response()
        except NoPermissionError:
            answer = b""
        self._check_in_use()
        if b"role:slave" in (answer if isinstance(answer, bytes) else str(answer).encode()):
            self._client.poll_soon()
            raise ReadOnlyError("READONLY: what Sentinels name as the master is a replica")

    def _check_in_use(self) -> None:
        if self.is_retired:
            raise RedisConnectionError("the master is another one now")

    async def retire(self) -> None:
        """Drop all connections."""
        self.is_retired = True
        try:
            await self.disconnect()
        except (RedisError, OSError) as error:
            log.info("connection to the former master not closed in order", extra={"error": masked(str(error))})


class SentinelClient(redis.asyncio.Redis):
    """A client of the master. It begins to ask the Sentinels when it is first used, and ends that with `aclose`.

    `server_epoch` counts how often the master became another server. What was asked and answered in one epoch came from one server.
    """

    def __init__(self, watched: SentinelSettings, timeout_s: float, options: Mapping[str, Any]) -> None:
        self._settings = watched
        self._timeout_s = timeout_s
        self._options = {**options, **watched.options, "connection_class": SSLMasterConnection if watched.is_tls else MasterConnection}
        self._sentinel_options = {**options, **watched.sentinel_options, "connection_class": SSLConnection if watched.is_tls else Connection}
        self.server_epoch = 0
        self._known: MasterReport | None = None
        self._older_since_s: float | None = None
        self._reports: dict[Address, MasterReport] = {}
        self._errors: dict[Address, str] = {}
        self._is_known = asyncio.Event()
        self._poll_now = {address: asyncio.Event() for address in watched.sentinels}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_polling = False
        self._is_closed = False
        self._pool = MasterPool(self, self._options)
        self._pool.make_connection()  # type: ignore[no-untyped-call] # raises TypeError for an option that there is not
        super().__init__(connection_pool=self._pool)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Idempotent."""
        self._is_closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await super().aclose(close_connection_pool)
        await self._pool.aclose()

    # Who is master

    def poll_soon(self) -> None:
        """Ask the Sentinels at once, since something is wrong with the master."""
        for event in self._poll_now.values():
            event.set()

    async def wait_for_master(self) -> None:
        """Wait until some Sentinel has named a master. Raises redis.exceptions.ConnectionError where none does in time."""
        if self._is_known.is_set():
            return
        self._begin_polling()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._is_known.wait()
        except TimeoutError:
            raise RedisConnectionError(f"no Sentinel names a master called {self._settings.service}: {self._reasons()}") from None

    def _reasons(self) -> str:
        return "; ".join(f"{host}:{port}: {self._errors.get((host, port), 'no answer')}" for host, port in self._settings.sentinels)

    def _begin_polling(self) -> None:
        if self._is_polling or self._is_closed:
            return
        self._is_polling = True
        for address in self._settings.sentinels:
            self._start(self._poll(address), f"watch sentinel {address[0]}:{address[1]}")

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(partial(_report, self._tasks))

    async def _poll(self, address: Address) -> None:
        """Ask one Sentinel again and again; each has its own task, so that one that hangs does not delay the others."""
        pool = ConnectionPool(host=address[0], port=address[1], **self._sentinel_options)
        sentinel = redis.asyncio.Redis(connection_pool=pool)
        soon = self._poll_now[address]
        try:
            # The library may swallow a cancellation.
            while not self._is_closed:
                soon.clear()
                try:
                    self._reports[address] = await self._read_report(sentinel)
                    self._errors.pop(address, None)
                except (RedisError, OSError, ValueError, RuntimeError) as error:  # the last from uvloop, for a connection that was closed at once
                    self._reports.pop(address, None)
                    self._errors[address] = masked(str(error).partition(", with args beginning with:")[0])
                self._decide()
                await asyncio.sleep(POLL_PAUSE_S)
                try:
                    async with asyncio.timeout(POLL_S - POLL_PAUSE_S):
                        await soon.wait()
                except TimeoutError:
                    pass
        finally:
            await pool.aclose()

    async def _read_report(self, sentinel: redis.asyncio.Redis) -> MasterReport:
        """Raises redis.exceptions.RedisError; ValueError for an answer that makes no sense."""
        pipeline = sentinel.pipeline(transaction=False)
        # During a failover only the first has the new address, and only the second the epoch.
        pipeline.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._settings.service)
        pipeline.execute_command("SENTINEL", "MASTER", self._settings.service)
        address, facts = await pipeline.execute(raise_on_error=False)
        if address is None:
            raise ValueError("knows no such master")
        for answer in (address, facts):
            if isinstance(answer, RedisError):
                raise answer
        host, port = address
        epoch = dict(zip(facts[::2], facts[1::2], strict=True)).get(b"config-epoch", b"")
        return MasterReport((str(host, "utf-8"), int(port)), int(epoch))

    def _decide(self) -> None:
        named, is_older = choose_master(self._known, self._reports.values(), len(self._settings.sentinels))
        if not is_older:
            self._older_since_s = None
        elif self._older_since_s is None:
            self._older_since_s = time.monotonic()
        elif time.monotonic() - self._older_since_s > OLDER_EPOCH_AFTER_S:
            self._older_since_s = None
            named, _ = choose_master(None, self._reports.values(), len(self._settings.sentinels))
        former, self._known = self._known, named
        if named is None or (former is not None and former.address == named.address):
            return
        if former is None:
            self._pool.set_address(named.address)
            self._is_known.set()
        else:
            self._change_master(former.address, named.address)

    def _change_master(self, former: Address, address: Address) -> None:
        log.warning("redis has another master", extra={"former": "{}:{}".format(*former), "master": "{}:{}".format(*address)})
        left, self._pool = self._pool, MasterPool(self, self._options)
        self._pool.set_address(address)
        self.connection_pool = self._pool
        self.server_epoch += 1
        left.is_retired = True
        self._start(left.retire(), "leave the former master")


def connect(url: str, timeout_s: float, options: Mapping[str, Any]) -> SentinelClient:
    """A client of the master, which asks the Sentinels when it is first used. `options` are those of every connection.

    Raises ValueError, TypeError for a URL that cannot be used.
    """
    return SentinelClient(parse(url), timeout_s, options)


def _report(tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
    tasks.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("task failed", extra={"task": task.get_name()}, exc_info=error)
