"""Who may import whom. Walks the sources, and imports none of them."""

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
PURE_OF_INDEXER = (
    "wire",
    "wire_types",
    "event_outline",
    "events",
    "sequence",
    "owners",
    "block_keys",
    "change",
    "held_keys",
    "stream_state",
    "orphans",
    "errors",
    "capture",
    "msgpack_split",
    "masking",
    "engine_networks",
    "store",
    "store.keyspace",
    "store.records",
    "store.clock",
    "store.condition",
)
CHECKS_OF_DOCTOR = ("service", "stream", "engine", "clock", "prompt", "probe", "redis")
PURE_OF_DOCTOR = ("kinds", "findings", "reply", "seen", "report", *(f"{name}_checks" for name in CHECKS_OF_DOCTOR))
PURE_OF_SCORER = (
    *("prefix_index", "scoring", "removals", "explaining", "hints", "engine_hashes", "tokens.wording", "tokens.cache"),
    *(f"routing.{name}" for name in ("costs", "policies", "prompt_tree", "queues", "speculation")),
)
PURE = [*(f"indexer.{name}" for name in PURE_OF_INDEXER), *(f"scorer_api.{name}" for name in PURE_OF_SCORER)]
PURE += [f"scorer_api.doctor.{name}" for name in PURE_OF_DOCTOR]
IMPURE = {"zmq", "redis", "asyncio", "fastapi", "starlette", "uvicorn", "uvloop", "httpx", "threading", "socket"}
PLAYING = ("publisher", "playing", "recording")
# They receive, replay, or pass the context on and catch its errors; the demo engine is an engine.
ZMQ = {
    f"indexer.{name}" for name in ("subscriber", "subscription", "listening", "replay", "stream", "streams", "endpoints", "demo_engine", *PLAYING)
} | {"scorer_api.cli", "scorer_api.doctor.examination", "scorer_api.doctor.wire_probe"}
WEB = {f"indexer.http.{name}" for name in ("access", "app", "connection", "negotiation", "openapi", "problems", "routes", "server")} | {
    "indexer.app",
    "scorer_api.page",
    "scorer_api.routes",
    "scorer_api.answers",
}
REDIS = {f"indexer.store.{name}" for name in ("cluster", "connection", "inspection", "loads", "scripts", "redis", "reader", "registry", "sentinel")}


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


def test_the_walk_sees_the_project() -> None:
    assert {"indexer", "indexer.wire", "scorer_api", "scorer_api.cli"} <= MODULES.keys()
    assert "zmq" in third_party("indexer.subscriber")
    assert "indexer.block_keys" in reached("scorer_api.view")


def test_the_indexer_never_imports_the_scorer() -> None:
    of_indexer = [module for module in MODULES if module.partition(".")[0] == "indexer"]
    assert [module for module in of_indexer if "scorer_api" in {name.partition(".")[0] for name in imports(module)}] == []


@pytest.mark.parametrize("module", PURE)
def test_the_core_is_pure_with_all_that_comes_with_it(module: str) -> None:
    impure = {f"{name} imports {outside}" for name in reached(module) for outside in third_party(name) & IMPURE}
    assert impure == set()


def test_only_what_talks_to_engines_knows_zmq() -> None:
    assert {module for module in MODULES if "zmq" in third_party(module)} == ZMQ


def touches_environment_or_signals(module: str) -> bool:
    names = ("environ", "environb", "getenv", "putenv")
    if "signal" in third_party(module) or imports(module) & {f"os.{name}" for name in names}:
        return True
    attributes = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute) and node.attr in names]
    return any(isinstance(node.value, ast.Name) and node.value.id == "os" for node in attributes)


def test_only_the_command_line_reads_the_environment_and_owns_signals() -> None:
    assert {module for module in MODULES if touches_environment_or_signals(module)} == {"indexer.command"}


def test_only_the_store_knows_redis() -> None:
    assert {module for module in MODULES if third_party(module) & {"redis", "valkey", "aioredis", "coredis", "glide", "hiredis"}} == REDIS


def test_only_what_serves_http_knows_a_web_framework() -> None:
    assert {module for module in MODULES if third_party(module) & {"fastapi", "fastapi_offline", "starlette", "uvicorn", "httptools"}} == WEB


def test_the_client_comes_without_what_the_service_is_made_of() -> None:
    of_client = {module for module in MODULES if module.startswith("scorer_api.client")}
    assert {"scorer_api.client", "scorer_api.client.synchronous", "scorer_api.client.asynchronous"} <= of_client
    assert {name for module in of_client for name in reached(module)} - of_client <= {"scorer_api"}
    outside = {name for module in of_client for name in third_party(module)} - sys.stdlib_module_names
    assert outside == {"httpx", "msgspec"}


def test_no_two_modules_import_each_other() -> None:
    def comes_back(module: str) -> bool:
        # A package that hands on what its modules have comes with each of them; that is no import of theirs.
        return any(module in reached(name, named) for name in named(module) if name not in PACKAGES)

    assert {module for module in MODULES if module not in PACKAGES and comes_back(module)} == set()


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
