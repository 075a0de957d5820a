"""Making the settings from flags, variables and a file. Flags win over variables, variables over the file."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import msgspec

from indexer import compiled
from indexer.config.settings import PREFIX, Field, Settings, check_listen_address, fields, limit_fields, moved, read_pairs
from indexer.discovery.source_spec import DiscoverSpec
from indexer.engines.networks import EngineNetworks
from indexer.engines.spec import EngineSpec, ListenSpec, check_replay_template, check_together, is_http_base
from indexer.errors import SettingError
from indexer.limits import Limits
from indexer.masking import HIDDEN
from indexer.store.client.connection import check_url
from indexer.store.keyspace import check_namespace

NOT_FIELDS = (PREFIX + "ENGINES", PREFIX + "CONFIG", compiled.VARIABLE)
# Kubernetes sets these in every pod beside a service named kv-indexer, or kv-indexer-anything: they are not ours.
_SERVICE_LINK = re.compile(r"KV_INDEXER_(\w+_)?(SERVICE_(HOST|PORT)\w*|PORT_\d+_\w+)")


def read_settings(
    flags: Mapping[str, str | list[str]], engines: Sequence[str], environ: Mapping[str, str], file: Mapping[str, Any] | None = None
) -> Settings:
    """Make the settings from flags (field name → text), `--engine` texts, the environment's variables and a file's entries.

    Raises SettingError that names the flag, variable or entry, the value and what is allowed.
    """
    _check_core(environ.get(compiled.VARIABLE, "auto"))
    known = {field.name: field for field in fields()}
    limits = {field.name: field for field in limit_fields()}
    values = _file_values(file or {}, known, limits)
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in NOT_FIELDS or _is_service_link(variable, text):
            continue
        name = variable.removeprefix(PREFIX).lower()
        field = known.get(name)
        if field is None or field.variable != variable:
            if name in limits:
                raise SettingError(variable, text, moved(name))
            allowed = f"unknown variable; known are {', '.join(NOT_FIELDS)} and {PREFIX}* for each flag of kv-indexer serve --help"
            raise SettingError(variable, HIDDEN, allowed)
        values[field.name] = _converted(field, variable, text)
    for name, given in flags.items():
        values[name] = _converted(known[name], known[name].flag, given)
    if values.get("discover") and "kube_api" not in values and (in_cluster := _kube_api(environ)) is not None:
        values["kube_api"] = in_cluster
    settings = Settings(engines=_engines(engines, environ, file or {}), limits=_limits(file or {}, limits), **values)
    _check_texts(settings)
    return settings


def _check_core(choice: str) -> None:
    if choice not in compiled.CHOICES:
        raise SettingError(compiled.VARIABLE, choice, f"should be {', '.join(compiled.CHOICES[:-1])} or {compiled.CHOICES[-1]}")
    if choice == "compiled" and compiled.core is None:
        raise SettingError(compiled.VARIABLE, choice, f"the compiled core cannot be used: {compiled.WHY_NOT}")


def _kube_api(environ: Mapping[str, str]) -> str | None:
    """The API server of the cluster that this process runs in, if it does."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    return None if not host else f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _check_texts(settings: Settings) -> None:
    check_namespace(settings.namespace, "--namespace")
    if settings.redis is not None:
        check_url(settings.redis, "--redis")
    EngineNetworks.from_text(settings.allowed_engine_networks)
    for prefix, cert, key in (("--", settings.tls_cert, settings.tls_key), ("--gateway-", settings.gateway_tls_cert, settings.gateway_tls_key)):
        for name, value, other in (("tls-cert", cert, "tls-key"), ("tls-key", key, "tls-cert")):
            if value is not None and None in (cert, key):
                raise SettingError(prefix + name, value, f"needs {prefix}{other} too: TLS takes both")
    _check_gateway(settings)
    for flag, pairs in (("--tokenizer", settings.tokenizer), ("--lora", settings.lora)):
        read_pairs(pairs, flag)
    sources = [DiscoverSpec.from_text(text) for text in settings.discover]
    if settings.kube_api is not None and not is_http_base(settings.kube_api):
        raise SettingError("--kube-api", settings.kube_api, "should be https://host[:port], or http:// without a token")
    if settings.kube_api is None and any(source.kind != "dns" for source in sources):
        raise SettingError("--kube-api", None, "is required for --discover outside of a cluster")
    if settings.listen is not None:
        ListenSpec.from_text(settings.listen)
    if settings.listen_replay is not None:
        check_replay_template(settings.listen_replay, "--listen-replay")
    for spec in settings.engines:
        if spec.events is None and settings.listen is None:
            raise SettingError("--engine", spec.pod, "events is required: without --listen no pod can dial in")


def _check_gateway(settings: Settings) -> None:
    if settings.gateway_listen is not None:
        check_listen_address(settings.gateway_listen, "--gateway-listen")
    elif settings.gateway_self_signed or settings.gateway_tls_cert is not None:
        raise SettingError("--gateway-listen", None, "is required where TLS for gateways is set")
    if settings.gateway_self_signed and settings.gateway_tls_cert is not None:
        raise SettingError("--gateway-self-signed", "true", "does not go with --gateway-tls-cert, which is another certificate")


def _file_values(file: Mapping[str, Any], known: Mapping[str, Field], limits: Mapping[str, Field]) -> dict[str, Any]:
    values = {}
    for key, value in file.items():
        if key in ("engines", "limits"):
            continue
        if key in limits:
            raise SettingError(key, value, moved(key))
        if key not in known:
            raise SettingError(key, HIDDEN, f"unknown entry; known are engines, limits, {', '.join(known)}")
        values[key] = _converted(known[key], key, value, strict=True)
    return values


def _limits(file: Mapping[str, Any], known: Mapping[str, Field]) -> Limits:
    table = file.get("limits", {})
    if not isinstance(table, dict):
        raise SettingError("limits", table, "should be a table, [limits]")
    for key in table:
        if key not in known:
            raise SettingError(f"limits.{key}", HIDDEN, f"unknown entry; known in [limits] are {', '.join(known)}")
    return Limits.of(**{key: _converted(known[key], f"limits.{key}", value, strict=True) for key, value in table.items()})


def _engines(texts: Sequence[str], environ: Mapping[str, str], file: Mapping[str, Any]) -> tuple[EngineSpec, ...]:
    """From flags, else from the variable, else from the file."""
    if not texts and (variable := environ.get(PREFIX + "ENGINES", "")):
        source, texts = PREFIX + "ENGINES", [text for text in variable.split(";") if text.strip()]
    else:
        source = "--engine"
    if texts:
        specs = tuple(EngineSpec.from_text(text, source) for text in texts)
    else:
        source = "engines"
        tables = file.get("engines", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise SettingError(source, tables, "should be tables, [[engines]], with the keys of an engine spec")
        specs = tuple(EngineSpec.from_mapping(table, source) for table in tables)
    check_together(specs, source)
    return specs


def _converted(field: Field, source: str, value: Any, *, strict: bool = False) -> Any:
    if field.is_list and isinstance(value, str) and not strict:
        value = [word.strip() for word in value.split(";") if word.strip()]
    try:
        return msgspec.convert(value, field.type, strict=strict)
    except msgspec.ValidationError as error:
        plain = get_args(field.type)[0]
        choices = get_args(plain) if get_origin(plain) is Literal else ()
        raise SettingError(source, value, f"should be {' or '.join(choices)}" if choices else str(error)) from None


def _is_service_link(variable: str, text: str) -> bool:
    return _SERVICE_LINK.fullmatch(variable) is not None or (variable.endswith("_PORT") and text.startswith(("tcp://", "udp://")))
