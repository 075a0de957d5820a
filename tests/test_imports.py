"""Who may import whom, by package. Walks the sources, and imports none of them."""

import ast
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("indexer", "scorer_api")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
ROOT_MODULES_MAX = 10

# Every package with those that it may import, lower ones first: nothing may import a package that stands below its own line.
MAY_IMPORT: dict[str, set[str]] = {
    "indexer": set(),  # masking, errors, limits
    "indexer.compiled": set(),
    "indexer.tracing": {"indexer"},
    "indexer.core": {"indexer", "indexer.compiled"},
    "indexer.metrics": {"indexer", "indexer.core"},
    "indexer.wire": {"indexer", "indexer.compiled", "indexer.core"},
    "indexer.receiving": {"indexer", "indexer.compiled"},
    "indexer.engines": {"indexer", "indexer.core", "indexer.metrics", "indexer.receiving"},
    "indexer.config": {"indexer", "indexer.engines"},
    "indexer.discovery": {"indexer", "indexer.core", "indexer.metrics", "indexer.engines", "indexer.config"},
    "indexer.store.client": {"indexer"},
    "indexer.store": {
        "indexer.tracing",
        *("indexer", "indexer.core", "indexer.metrics", "indexer.engines", "indexer.config", "indexer.store.client"),
    },
    "indexer.streams": {
        "indexer.tracing",
        *("indexer", "indexer.compiled", "indexer.core", "indexer.metrics", "indexer.wire", "indexer.receiving", "indexer.engines"),
        *("indexer.config", "indexer.store"),
    },
    "indexer.ownership": {
        *("indexer", "indexer.core", "indexer.metrics", "indexer.receiving", "indexer.engines", "indexer.config", "indexer.discovery"),
        *("indexer.store", "indexer.streams"),
    },
    "indexer.workers": set(),
    "indexer.http": {
        *("indexer", "indexer.compiled", "indexer.metrics", "indexer.engines", "indexer.config", "indexer.streams"),
        *("indexer.workers", "indexer.tracing"),
    },
    "indexer.main": {
        "indexer.tracing",
        *("indexer", "indexer.compiled", "indexer.metrics", "indexer.receiving", "indexer.engines", "indexer.config"),
        *("indexer.store", "indexer.store.client", "indexer.ownership", "indexer.discovery", "indexer.workers", "indexer.http"),
    },
    "indexer.__main__": {"indexer.main"},
    "indexer.simulation": {"indexer", "indexer.wire", "indexer.receiving", "indexer.engines"},
    "scorer_api": set(),
    "scorer_api.client": set(),
    "scorer_api.index": {"indexer.compiled", "indexer.core", "indexer.engines", "indexer.config"},
    "scorer_api.metrics": {"indexer.core", "scorer_api.index"},
    "scorer_api.explain": {"indexer.core", "scorer_api.index"},
    "scorer_api.routing": {"indexer.core", "indexer.engines", "indexer.config", "scorer_api.index", "scorer_api.metrics"},
    "scorer_api.fleet": {"indexer", "indexer.core", "indexer.engines", "indexer.config", "scorer_api.index", "scorer_api.routing"},
    "scorer_api.tokens": {
        "indexer.tracing",
        *("indexer", "indexer.compiled", "indexer.core", "indexer.engines", "indexer.config", "indexer.http"),
        *("scorer_api.index", "scorer_api.metrics"),
    },
    "scorer_api.following": {
        "indexer.tracing",
        *("indexer", "indexer.core", "indexer.engines", "indexer.config", "indexer.store", "indexer.streams", "indexer.ownership"),
        *("indexer.workers", "scorer_api.index", "scorer_api.metrics"),
    },
    "scorer_api.api": {
        "indexer.tracing",
        *("indexer", "indexer.compiled", "indexer.core", "indexer.engines", "indexer.config", "indexer.streams", "indexer.workers", "indexer.http"),
        *("scorer_api.index", "scorer_api.metrics", "scorer_api.explain", "scorer_api.routing", "scorer_api.tokens"),
    },
    "scorer_api.rpc": {"indexer.core", "indexer.config", "indexer.http", "indexer.streams", "indexer.tracing", "scorer_api.client", "scorer_api.api"},
    "scorer_api.gateway": {"indexer", "indexer.config", "indexer.http", "scorer_api.api", "indexer.tracing", "scorer_api.rpc"},
    "scorer_api.compat": {
        *("indexer", "indexer.core", "indexer.engines", "indexer.config", "indexer.streams", "indexer.http"),
        *("scorer_api.index", "scorer_api.tokens", "scorer_api.api"),
    },
    "scorer_api.cells": {
        *("indexer", "indexer.engines", "indexer.config", "indexer.http", "indexer.metrics", "indexer.streams"),
        *("scorer_api.api", "scorer_api.routing"),
    },
    "scorer_api.app": {
        *("indexer", "indexer.metrics", "indexer.config", "indexer.ownership", "indexer.workers", "indexer.http"),
        *("scorer_api.index", "scorer_api.metrics", "scorer_api.tokens", "scorer_api.following", "scorer_api.api", "scorer_api.gateway"),
        *("scorer_api.cells", "scorer_api.compat", "scorer_api.rpc"),
    },
    "scorer_api.doctor.checks": {"indexer", "indexer.core", "indexer.store"},
    "scorer_api.doctor.probes": {"indexer", "indexer.wire", "indexer.receiving", "indexer.engines", "scorer_api.doctor.checks"},
    "scorer_api.doctor": {"indexer", "indexer.store", "scorer_api.doctor.checks", "scorer_api.doctor.probes"},
    "scorer_api.cli": {
        *("indexer", "indexer.compiled", "indexer.core", "indexer.engines", "indexer.config", "indexer.store", "indexer.store.client"),
        *("indexer.http", "indexer.main", "indexer.simulation", "scorer_api.client", "scorer_api.routing", "scorer_api.app", "scorer_api.doctor"),
        *("scorer_api.doctor.checks", "scorer_api.fleet"),
    },
    "scorer_api.__main__": {"scorer_api.cli"},
}
# A root module whose place in the order is its own; the other root modules come before everything.
OWN_PLACE = {"indexer.metrics", "indexer.__main__", "scorer_api.metrics", "scorer_api.app", "scorer_api.__main__"}

PURE = (
    *(
        "indexer.masking",
        "indexer.errors",
        "indexer.extras",
        "indexer.limits",
        "indexer.metrics_text",
        "indexer.compiled",
        "indexer.core",
        "indexer.wire",
        "indexer.config.settings",
        "indexer.streams.adapter_blocks",
        "indexer.ownership.assignment",
        "indexer.ownership.pod_directory",
        "indexer.ownership.dead_registrations",
    ),
    *(f"indexer.engines.{name}" for name in ("spec", "networks", "load", "load_metrics", "iteration_stats", "discovered")),
    *(f"indexer.discovery.{name}" for name in ("source_spec", "found_engine", "kube_objects", "errors")),
    *(f"indexer.store.{name}" for name in ("keyspace", "records", "node_clock", "condition")),
    *(
        "indexer.simulation.capture",
        "scorer_api.index",
        "scorer_api.explain",
        "scorer_api.tokens.tokenize_input",
        "scorer_api.tokens.cache",
        "scorer_api.tokens.segments",
    ),
    *(f"scorer_api.routing.{name}" for name in ("costs", "pick", "policies", "prompt_tree", "queues", "speculation", "speculative_scores", "router")),
    *("scorer_api.doctor.checks", "scorer_api.doctor.report", "scorer_api.fleet"),
    *(f"scorer_api.compat.{name}" for name in ("dumps", "hash_chains", "instances", "local_hashes", "prompts")),
    "scorer_api.rpc.protobuf",
    *(f"scorer_api.gateway.{name}" for name in ("messages", "health", "usage", "exchange")),
)
"""Packages, and single modules of others, that do no I/O; nor does anything that they import."""
IMPURE = {"zmq", "redis", "asyncio", "fastapi", "starlette", "uvicorn", "uvloop", "httpx", "threading", "socket"}

# They receive, replay, or pass the context on and catch its errors; the simulation's engines are engines.
ZMQ = {
    "indexer.simulation",
    *("scorer_api.cli.demo_engine", "scorer_api.doctor.examination", "scorer_api.doctor.probes.sockets"),
}
REDIS = {"indexer.store"}
# What needs the extra `gateway` is imported where it is used.
HTTP2 = {"scorer_api.gateway.connection", "scorer_api.gateway.http2"}
CRYPTOGRAPHY = {"scorer_api.gateway.self_signed"}
# What needs the extra `dns`.
DNS = {"indexer.discovery.dns_source", "indexer.discovery.dns_sockets"}
WEB = {"indexer.http", "indexer.main.app", "scorer_api.api", "scorer_api.cells", "scorer_api.compat"}
# The core is chosen when it is imported.
ENVIRONMENT = {"indexer.compiled", *(f"indexer.main.{name}" for name in ("command", "own_redis", "serving", "supervisor", "workers"))}


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> set[str]:
    """Every name that a module imports, anywhere in it; `from a import b` counts as a and as a.b."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def third_party(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports(module)} - set(PACKAGES)


def named(module: str) -> set[str]:
    """The project's modules that a module imports by name."""
    return imports(module) & MODULES.keys()


def own(module: str) -> set[str]:
    """The project's modules that a module imports, and the packages that they are in."""
    return named(module) | {name.rpartition(".")[0] for name in named(module) if "." in name}


def reached(module: str, by: Callable[[str], set[str]] = own) -> set[str]:
    """The module and everything of the project that comes with it."""
    found, new = set(), {module}
    while new:
        found |= new
        new = {name for start in new for name in by(start)} - found
    return found


def is_in(module: str, places: set[str] | tuple[str, ...]) -> bool:
    """Whether it is one of these modules or lies in one of these packages."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def package_of(module: str) -> str:
    """The package that a module counts to: the one it lies in, or itself."""
    if module in OWN_PLACE or MODULES[module].name == "__init__.py":
        return module
    return module.rpartition(".")[0]


def imported_packages(module: str) -> set[str]:
    """What the table above speaks of: packages of the modules that a module takes names from, but its own."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                source = name if name in MODULES else node.module
                if source in MODULES:
                    found.add(package_of(source))
    return found - {package_of(module)}


def test_the_walk_sees_the_project() -> None:
    assert {"indexer", "indexer.wire.decoder", "scorer_api", "scorer_api.cli.main"} <= MODULES.keys()
    assert "socket" in third_party("indexer.receiving.subscription")
    assert "indexer.core.block_keys" in reached("scorer_api.index.view")
    assert imported_packages("scorer_api.metrics") == {"indexer.core", "scorer_api.index"}


def test_every_package_is_in_the_table() -> None:
    assert {package_of(module) for module in MODULES} == MAY_IMPORT.keys()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_what_the_table_says(package: str) -> None:
    found = {(module, other) for module in MODULES if package_of(module) == package for other in imported_packages(module)}
    assert {(module, other) for module, other in found if other not in MAY_IMPORT[package]} == set()
    assert MAY_IMPORT[package] - {other for _, other in found} == set(), "the table allows what nobody uses"


def test_the_table_has_no_cycle() -> None:
    order = list(MAY_IMPORT)
    assert {(package, other) for package, others in MAY_IMPORT.items() for other in others if order.index(other) >= order.index(package)} == set()


def test_the_indexer_never_imports_the_scorer() -> None:
    of_indexer = [module for module in MODULES if module.partition(".")[0] == "indexer"]
    assert [module for module in of_indexer if "scorer_api" in {name.partition(".")[0] for name in imports(module)}] == []


@pytest.mark.parametrize("module", [module for module in MODULES if is_in(module, PURE)])
def test_the_core_is_pure_with_all_that_comes_with_it(module: str) -> None:
    impure = {f"{name} imports {outside}" for name in reached(module) for outside in third_party(name) & IMPURE}
    assert impure == set()


def test_every_pure_place_exists() -> None:
    assert [place for place in PURE if place not in MODULES] == []


def outside(libraries: set[str], places: set[str]) -> set[str]:
    """Modules that import one of these libraries outside of these places, and places where nobody does."""
    users = {module for module in MODULES if third_party(module) & libraries}
    return {module for module in users if not is_in(module, places)} | {place for place in places if not any(is_in(user, {place}) for user in users)}


def test_only_what_talks_to_engines_knows_zmq() -> None:
    assert outside({"zmq"}, ZMQ) == set()


def touches_environment_or_signals(module: str) -> bool:
    names = ("environ", "environb", "getenv", "putenv")
    if "signal" in third_party(module) or imports(module) & {f"os.{name}" for name in names}:
        return True
    attributes = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute) and node.attr in names]
    return any(isinstance(node.value, ast.Name) and node.value.id == "os" for node in attributes)


def test_only_the_command_line_and_the_core_read_the_environment_and_the_first_owns_signals() -> None:
    assert {module for module in MODULES if touches_environment_or_signals(module)} == ENVIRONMENT


def test_only_the_store_knows_redis() -> None:
    assert outside({"redis", "valkey", "aioredis", "coredis", "glide", "hiredis"}, REDIS) == set()


def test_only_the_endpoint_picker_knows_http2_and_nothing_comes_with_it() -> None:
    assert outside({"grpc"}, set()) == set()
    assert outside({"h2", "hyperframe"}, HTTP2) == set()
    assert outside({"cryptography"}, CRYPTOGRAPHY) == set()
    assert {module for module in MODULES if named(module) & HTTP2} == {"scorer_api.gateway.server", "scorer_api.gateway.connection"}
    assert {module for module in MODULES if named(module) & ({"scorer_api.gateway.server"} | CRYPTOGRAPHY)} == set()


def test_only_one_source_of_engines_knows_dns_and_nothing_comes_with_it() -> None:
    assert outside({"dns"}, DNS) == set()
    assert {module for module in MODULES if named(module) & DNS} == {"indexer.discovery.dns_source"}


def test_only_what_serves_http_knows_a_web_framework() -> None:
    assert outside({"fastapi", "fastapi_offline", "starlette", "uvicorn", "httptools"}, WEB) == set()


def test_the_client_comes_without_what_the_service_is_made_of() -> None:
    of_client = {module for module in MODULES if module.startswith("scorer_api.client")}
    assert {"scorer_api.client", "scorer_api.client.synchronous", "scorer_api.client.asynchronous"} <= of_client
    assert {name for module in of_client for name in reached(module)} - of_client <= {"scorer_api"}
    libraries = {name for module in of_client for name in third_party(module)} - sys.stdlib_module_names
    assert libraries == {"httpx", "msgspec"}


def test_the_settings_come_without_sockets_and_redis() -> None:
    assert {name for module in reached("indexer.config.settings") for name in third_party(module)} & {"zmq", "redis"} == set()


def test_no_two_modules_import_each_other() -> None:
    def comes_back(module: str) -> bool:
        # A package that hands on what its modules have comes with each of them; that is no import of theirs.
        return any(module in reached(name, named) for name in named(module) if name not in PACKAGES)

    assert {module for module in MODULES if module not in PACKAGES and comes_back(module)} == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_root_of_a_package_holds_few_modules(package: str) -> None:
    assert len(list((ROOT / package).glob("*.py"))) <= ROOT_MODULES_MAX


def test_every_import_is_at_the_top() -> None:
    late = {
        f"{module}:{node.lineno}"
        for module in MODULES
        for function in ast.walk(tree(module))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert late == set()
