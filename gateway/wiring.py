"""Builds the real objects, joins them, and runs them. The only file of the gateway that knows all the others.

One asyncio loop and one TaskGroup: the HTTP listener, the sync loops, collect, the watchdog. A task that ends
with an error is a bug: it takes the process with it, and systemd starts it again. SIGTERM and SIGINT stop: requests
that are under way are answered first, within bounds. SIGHUP reads the certificate again and nothing else: a change of
the configuration is taken over by a restart, which touches no tunnel.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from gateway import host
from gateway.accounts import Accounts
from gateway.agents import Agents
from gateway.collect import Collect
from gateway.config import Config, advice, listen_address
from gateway.creation import Creation
from gateway.credentials import OwnCredentials
from gateway.enrolment import Enrolment
from gateway.errors import ConfigError
from gateway.fields import network
from gateway.filter_rules import FilterRules
from gateway.http.app import HttpSettings, Services, build_app
from gateway.http.certificate import Certificate
from gateway.http.listener import Listener
from gateway.http.ports import bound_socket, may_listen, port_cure
from gateway.ikev2 import Ikev2Service
from gateway.keys import Keys
from gateway.notify import keep_watchdog, tell
from gateway.one_time_links import OneTimeLinks
from gateway.placement import Placement
from gateway.port_forwards import PortForwards
from gateway.renewal import Renewal
from gateway.secret_files import database_url, is_there, read_key
from gateway.servers import Servers
from gateway.store import Store, is_empty, migrate, only_gateway, open_store, parsed_url
from gateway.store import settings as setting_rows
from gateway.sync import Sync
from gateway.system import System
from gateway.tuning import TUNABLE, Tuning

log = logging.getLogger(__name__)


class _Line(logging.Formatter):
    """`time=... level=... room=... key=value ...`: one line, whatever is in it; a traceback follows on its own."""

    def __init__(self) -> None:
        super().__init__("time=%(asctime)s level=%(levelname)s room=%(name)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return super().formatMessage(record).replace("\n", "\\n").replace("\r", "\\r")


def start_logging(level: str) -> None:
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(_Line())
    logging.basicConfig(level=level.upper(), handlers=[lines], force=True)
    # Of these, only what is wrong: uvicorn's warnings are about what clients send, and are answered already.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    for name in ("alembic", "asyncio", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.WARNING)


# -- the database -----------------------------------------------------------------------------------------------------


async def prepare_database(config: Config) -> None:
    """Makes or upgrades the schema, and the key with the first database. Raises ConfigError, DatabaseUnavailable."""
    url = database_url(config)
    read_key(config, may_make=await is_empty(url))
    await migrate(url)
    await (await open_store(url, read_key(config))).close()  # is it this key's database?


async def copy_database(config: Config, source: str) -> dict[str, int]:
    """Makes the database of the configuration and copies everything of `source` into it: rows by table.

    Raises ConfigError: it is not empty, `source` is of another version or another key's. DatabaseUnavailable.
    """
    await migrate(database_url(config))
    key = read_key(config)
    async with await open_store(source, key) as old, await open_store(database_url(config), key) as new:
        return await new.copy_from(old)


@asynccontextmanager
async def opened_store(config: Config) -> AsyncIterator[Store]:
    """A database that is there, with its own key. Raises ConfigError, DatabaseUnavailable."""
    if config.sqlite_file and not is_there("database", config.sqlite_file):
        raise ConfigError([f"database: {config.sqlite_file} does not exist: `wirelane-gateway migrate` makes it"])
    async with await open_store(database_url(config), read_key(config)) as store:
        yield store


@asynccontextmanager
async def opened_creation(config: Config, *, rehearsal: bool) -> AsyncIterator[tuple[Store, Creation]]:
    """For the command line. `rehearsal`: on a copy of the database, which is forgotten afterwards."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened_store(config))
        if rehearsal:
            store = await stack.enter_async_context(store.rehearsal())
        yield store, _creation(config, store)


def _creation(config: Config, store: Store) -> Creation:
    return Creation(store, config.account_limit, config.address_rest_seconds)


# -- the process ------------------------------------------------------------------------------------------------------


def _listener(
    config: Config, certificate: Certificate | None, store: Store, agents: Agents, sync: Sync, collect: Collect
) -> Listener:
    tuning = tuning_of(config)
    services = Services(
        accounts=Accounts(store, _creation(config, store), sync, collect, agents),
        servers=Servers(store, sync, agents, config.endpoint, tuning),
        one_time_links=OneTimeLinks(store, tuning),
        keys=Keys(store),
        system=System(store, sync, collect, agents, config.account_limit, tuning),
        enrolment=Enrolment(store),
        ikev2=Ikev2Service(store, sync, agents),
        port_forwards=PortForwards(store, sync),
        filter_rules=FilterRules(store, sync),
        ping=store.ping,
    )
    settings = HttpSettings(
        public_url=config.public_url.rstrip("/"),
        http_status=config.http_status,
        trusted_proxies=tuple(map(network, config.trusted_proxies)),
        metrics_networks=tuple(map(network, config.metrics_networks)),
        tabs=config.config_tabs,
        time_zone=config.time_zone,
    )
    return Listener(build_app(services, settings), certificate, lambda: _ready(config), settings.trusted_proxies)


def tuning_of(config: Config) -> Tuning:
    return Tuning(**{name: getattr(config, name) for name in TUNABLE})


async def set_by_api(config: Config) -> list[str]:
    """A sentence for each value that holds instead of the file's. Raises ConfigError, DatabaseUnavailable."""
    if config.sqlite_file and not is_there("database", config.sqlite_file):
        return []  # `check` may come before the first start
    if await is_empty(database_url(config)):
        return []
    async with opened_store(config) as store:
        found = await store.read(setting_rows.set_by_api)
    return [f"{name} = {value}: set by the API, it wins over the file" for name, value in sorted(found.items())]


def check_files(config: Config) -> None:
    """Opens what the configuration names and `serve` will need. Raises ConfigError with every problem."""
    problems: list[str] = []
    try:
        _certificate(config)
    except ConfigError as error:
        problems.extend(error.problems)
    try:
        parsed_url(database_url(config))
        if is_there("key_file", Path(config.key_file)):
            read_key(config)
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)


def check_port(config: Config) -> None:
    """Whether the service may listen where the configuration says. Raises ConfigError with the cure."""
    _, port = listen_address(config.listen)
    if not may_listen(port):
        raise ConfigError([f"listen: {config.listen}: {port_cure(port)}"])


def _certificate(config: Config) -> Certificate | None:
    """Raises ConfigError."""
    if not config.tls_certificate:
        return None
    try:
        return Certificate(config.tls_certificate, config.tls_key)
    except OSError as error:
        raise ConfigError([f"tls_certificate, tls_key: {error.strerror or error}"]) from None


async def serve(config: Config) -> None:
    """Runs until SIGTERM or SIGINT. Raises ConfigError, DatabaseUnavailable when it cannot start."""
    check_files(config)
    certificate = _certificate(config)
    calm_garbage_collection()
    with _listening(config) as listening, only_gateway(database_url(config)):
        for sentence in advice(config):
            log.warning("event=advice text=%r", sentence)
        if await is_empty(database_url(config)):
            await prepare_database(config)
        async with opened_store(config) as store, _agents(store, credentials := OwnCredentials(store)) as agents:
            await store.change(lambda tx: setting_rows.set_time_zone(tx, config.time_zone))
            sync = Sync(store, agents, config.settle_seconds)
            collect = Collect(
                store, agents, config.collect_seconds, config.usage_months, config.time_zone, absent=sync.absent
            )
            placement = Placement(store, sync, collect)
            listener = _listener(config, certificate, store, agents, sync, collect)
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, _stop, listener)
            _on_hangup(certificate)
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(sync.run(), name="sync"),
                    group.create_task(collect.run(), name="collect"),
                    group.create_task(credentials.run(), name="credentials"),
                    group.create_task(Renewal(store, agents, sync.statuses).run(), name="renewal"),
                    group.create_task(placement.run(), name="placement"),
                    group.create_task(keep_watchdog(), name="watchdog"),
                ]
                if certificate is not None:
                    loops.append(group.create_task(certificate.watch(), name="certificate"))
                await listener.serve([listening])
                for loop in loops:
                    loop.cancel()
    log.info("event=stopped")


def _listening(config: Config) -> socket.socket:
    address, port = listen_address(config.listen)
    try:
        return bound_socket(address, port)
    except OSError as error:
        cure = f": {port_cure(port)}" if isinstance(error, PermissionError) else ""
        raise ConfigError([f"listen: {config.listen}: {error.strerror}{cure}"]) from None


def _on_hangup(certificate: Certificate | None) -> None:
    if certificate is None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    else:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, certificate.look_now)


def calm_garbage_collection() -> None:
    """Python's garbage collection looks at everything that lives after each 700 new objects, and a list of ten thousand
    accounts is 200,000 of them: a third of its time. What the program consists of is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@asynccontextmanager
async def _agents(store: Store, credentials: OwnCredentials) -> AsyncIterator[Agents]:
    agents = Agents(lambda: credentials.current, host.identity() if store.is_shared else "")
    try:
        yield agents
    finally:
        await agents.close()


def _ready(config: Config) -> None:
    tell("READY=1")
    log.info("event=ready listen=%s tls=%s", config.listen, "yes" if config.tls_certificate else "no")


def _stop(listener: Listener) -> None:
    tell("STOPPING=1")
    log.info("event=stopping")
    listener.should_exit = True
