"""Every kind of finding: its severity, what it means, what to do about it. A table of data. Codes are stable: scripts may compare them."""

from enum import StrEnum

from msgspec import Struct


class Severity(StrEnum):
    """How severe a finding is, mildest first."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """For comparing: a higher rank is more severe."""
        return list(Severity).index(self)


class Kind(Struct, frozen=True):
    """A kind of finding. `severity`: the usual one; a finding may have another. `mend`: what to do about it."""

    severity: Severity
    meaning: str
    mend: str = ""


OK, NOTE, WARNING, ERROR = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.ERROR

_SERVICE = {
    "service_well": Kind(OK, "the service answers, and says that it is ready"),
    "service_unreachable": Kind(
        ERROR,
        "nothing answers at --url",
        "check host and port in --url, and that the service runs: its log says where it listens",
    ),
    "service_tls": Kind(
        ERROR,
        "--url and the service do not agree about TLS, or its certificate is not trusted",
        "use https:// if the service has --tls-cert, and give --ca-file the authority of its certificate",
    ),
    "service_other": Kind(
        ERROR,
        "something else than this service answers at --url",
        "give --url the address and port of kv-indexer serve or api, without a path",
    ),
    "token_wrong": Kind(
        ERROR,
        "the service wants a token, and none or another one was given",
        "give --token-file a file whose first token is in the service's --api-token-file, which is read again when it changes",
    ),
    "service_degraded": Kind(
        WARNING,
        "the service is not ready yet, or it is ready and reports that something is wrong",
        "read the reasons that /readyz gives; findings about pods and Redis say more",
    ),
    "metrics_unreachable": Kind(
        WARNING, "/metrics of the service returns no metrics", "look at the service's log; Prometheus does not get them either"
    ),
    "events_refused": Kind(
        WARNING,
        "some messages or events cannot be used, so some blocks are missing",
        "docs/reference/metrics.md explains the reasons under kv_indexer_refused_total; check that events=… is the engine's own port, and compare "
        "its version with those that are supported",
    ),
    "announcements_refused": Kind(
        ERROR,
        "nearly all that an engine announces cannot be used",
        "GET /v1/pods shows the reasons, and docs/reference/metrics.md explains them under kv_indexer_refused_total; compare the version with "
        "those that are supported, and check that events=… is the engine's own port",
    ),
    "groups_undecided": Kind(
        NOTE,
        "the engine does not tell all that its hits depend on, so scores may be too high or too low",
        'nothing is to be done: see "Groups" in docs/explanation/wire-format.md',
    ),
    "no_pods": Kind(ERROR, "the service knows no pod", "register pods: --engine, the config file, --listen, or PUT /v1/pods/{pod}"),
    "pod_unknown": Kind(
        ERROR,
        "no pod of the requested name or model is registered",
        "use the names that GET /v1/pods shows, or register the pods with the model name that requests use",
    ),
    "pods_left_out": Kind(NOTE, "there are more pods than one run looks at", "name a --model, or select some with --pod"),
    "clock_off": Kind(
        WARNING,
        "a clock differs from the others: of the service, of an engine, of Redis, or of the machine where the doctor runs",
        "keep time with NTP there. Ages in answers are wrong, scores are not; leases depend on the clock of Redis alone",
    ),
}
_STREAMS = {
    "stream_well": Kind(OK, "the service is connected, and what it holds is complete"),
    "not_followed": Kind(
        ERROR,
        "no indexer follows the events of a pod, or of some of its streams",
        "check that kv-indexer ingest (or serve) runs with the same --redis and --namespace and can reach the engines, and look at its log; a "
        "takeover takes five seconds",
    ),
    "not_connected": Kind(
        ERROR,
        "the service is not connected to the engine's events, though nothing is wrong with them from here",
        "look for what lies between service and engine: network policy, firewall, another address of the name; the service's log and "
        "last_error in /v1/pods say more. If the engine dials the service, check its endpoint (port of --listen + rank) and its topic (kv@pod@model)",
    ),
    "stream_expired": Kind(
        ERROR,
        "the pod was away for too long, and its blocks were dropped",
        "bring the engine back, or forget the pod with DELETE /v1/pods/{pod}",
    ),
    "stream_stale": Kind(
        WARNING,
        "connected, but what is held is not confirmed",
        "see last_error in /v1/pods; most often the replay endpoint does not answer",
    ),
    "stream_partial": Kind(
        NOTE,
        "batches of the engine are missing, so some of its blocks are not known; what is known is right. A warning if no replay ever brought any",
        "give the engine a replay_endpoint and its spec replay=…, or find out why it does not answer; the gap closes as the cache turns over",
    ),
    "never_announced": Kind(
        WARNING,
        "the service is connected, and the engine has never announced a block",
        "send it a prompt of several blocks, or use --probe; if that changes nothing, events or prefix caching are off, or no topic matches",
    ),
    "no_replay": Kind(
        NOTE,
        "the pod has no replay endpoint, so a restart or a gap costs what is held",
        "set replay_endpoint in the engine's --kv-events-config, and replay=… in its spec",
    ),
}
_SOCKETS = {
    "events_well": Kind(OK, "the engine publishes, and its messages can be read"),
    "replay_well": Kind(OK, "the engine answers replays by the protocol"),
    "unreachable_from_here": Kind(
        NOTE,
        "a socket or an engine's API cannot be reached from where the doctor runs; the service may reach it all the same",
        "run the doctor where the service runs to look closer. If http://<pod> is not the engine's API, give its spec http=http://host:port. Sockets "
        "of an engine that dials the service cannot be looked at",
    ),
    "events_unreachable": Kind(
        ERROR,
        "the events endpoint cannot be reached, neither by the service nor from here",
        "check host and port of events=…, that the engine runs, and what lies in between",
    ),
    "events_disabled": Kind(
        ERROR,
        "the engine publishes no events: it says so itself, or nothing listens at its events endpoint while its API answers",
        'start the engine with --kv-events-config \'{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557", '
        '"replay_endpoint": "tcp://*:5558"}\', and give events=… the port of endpoint + rank',
    ),
    "events_port_differs": Kind(
        ERROR,
        "events=… is not the port of this engine's events: by what the engine says, by what listens there, or by the topics",
        "give events=… the port of endpoint in the engine's --kv-events-config, plus the rank; not the port of replays or of the API",
    ),
    "replay_port_differs": Kind(
        WARNING,
        "replay=… is not the port of this engine's replays: by what the engine says, or by what listens there",
        "give replay=… the port of replay_endpoint in the engine's --kv-events-config, plus the rank, or leave it out if it has none",
    ),
    "zmq_secured": Kind(
        ERROR,
        "the socket asks for a ZMQ security mechanism, which is not supported",
        "publish without CURVE or PLAIN inside a network that you trust",
    ),
    "topic_matches_nothing": Kind(
        ERROR,
        "the engine publishes, but none of its topics begins with the spec's topic",
        "make topic=… a beginning of the engine's topic, or leave it out, which takes everything",
    ),
    "events_idle": Kind(NOTE, "nothing was published while the doctor listened: an idle engine says nothing", "send it a prompt, or use --probe"),
    "service_misses_events": Kind(
        ERROR,
        "batches arrived here that the service does not have",
        "compare the service's events=… and topic=… with the engine; look at last_error in /v1/pods and at the service's log",
    ),
    "replay_unreachable": Kind(
        WARNING,
        "the replay endpoint cannot be reached, does not answer, or answers what no engine answers",
        "check that replay=… has the host and port of replay_endpoint + rank; leave it out if the engine has none; restart an engine that hangs",
    ),
    "rank_differs": Kind(
        WARNING,
        "batches name another data-parallel rank than the spec has for this port",
        "give each rank's port its rank: ranks=N for port + r, or rank=R; where ranks share a port, ranks=N,ranks_share_port=true",
    ),
}
_ENGINES = {
    "engine_well": Kind(OK, "the engine's API answers, and agrees with what the service knows"),
    "engine_unhealthy": Kind(ERROR, "the engine says that it is not well", "look at the engine's log, and restart it"),
    "prefix_caching_off": Kind(
        ERROR,
        "the engine runs without prefix caching, so it caches and announces nothing",
        "start vLLM with --enable-prefix-caching, SGLang without --disable-radix-cache",
    ),
    "block_size_differs": Kind(
        WARNING,
        "the engine reports another block size than it announces",
        "check that events=… and http=… are the same engine; for hybrid models and offloading connectors the announced size is the right one",
    ),
    "model_not_served": Kind(
        ERROR,
        "the engine does not serve the model that it is registered with",
        "register the pod with a name that its /v1/models lists, or start it with --served-model-name",
    ),
    "tokenize_missing": Kind(
        NOTE,
        "an engine has no /tokenize; a warning if nothing turns the prompt into tokens",
        "ask for scores with token_ids; for --prompt, see that a pod's /tokenize can be reached from here",
    ),
    "engine_metrics_missing": Kind(
        NOTE,
        "the engine's /metrics does not say how it caches",
        "start SGLang with --enable-metrics; nothing of the service depends on it",
    ),
    "tokenizers_differ": Kind(
        WARNING,
        "engines of one model turn the prompt into different tokens",
        "give all pods of the model the same tokenizer and revision",
    ),
}
_PROMPT = {
    "prompt_matches": Kind(OK, "a pod holds a beginning of the prompt"),
    "prompt_unmatched": Kind(
        WARNING,
        "no pod holds the prompt's first block",
        "the other findings and hints say why; a prompt that no engine has seen yet cannot match: try --probe",
    ),
    "prompt_too_short": Kind(
        NOTE,
        "the prompt is shorter than a block and one token, so nothing of it can match",
        "ask with a prompt of several blocks",
    ),
    "prompt_refused": Kind(WARNING, "the service refuses the request about the prompt", "do what its answer says"),
    "explained": Kind(NOTE, "why a pod's match of the prompt ends where it does"),
    "hint": Kind(WARNING, "a hint of the service: what may be wrong with the model's pods, or with the prompt", "do what it says"),
}
_PROBE = {
    "probe_well": Kind(OK, "the blocks of a new prompt appeared in the service, and the engine's own count agrees"),
    "probe_refused": Kind(
        WARNING,
        "the engine did not complete the probe",
        "do what its answer says; a key that the engine's API wants cannot be given here",
    ),
    "probe_unseen": Kind(
        ERROR,
        "the engine computed a new prompt, and its blocks did not appear in the service; a warning if some of them did",
        "see the findings about this pod's events; if there are none, the engine publishes no events, or its small cache evicted the blocks at once",
    ),
    "probe_differs": Kind(
        WARNING,
        "the engine took another number of tokens from its cache than the service says",
        "see the findings about this pod; under load, or with several ranks, try again before you believe it",
    ),
    "probe_uncounted": Kind(
        NOTE,
        "the engine does not say how much it took from its cache",
        "start vLLM with --enable-prompt-tokens-details, SGLang with --enable-cache-report",
    ),
}
_REDIS = {
    "redis_well": Kind(OK, "Redis answers, and is set up as it should be"),
    "redis_unreachable": Kind(ERROR, "Redis cannot be reached from here", "check host and port of --redis, and what lies in between"),
    "redis_refuses": Kind(ERROR, "Redis refuses the doctor's commands", "check user and password in --redis, and what its ACL allows"),
    "redis_old": Kind(ERROR, "this Redis is older than 6.2", "use Redis 6.2 or newer, or Valkey"),
    "redis_evicts": Kind(
        ERROR,
        "Redis may evict keys when it is full, and then the index is wrong without knowing",
        "set maxmemory-policy noeviction",
    ),
    "redis_full": Kind(
        ERROR,
        "Redis has no memory left and refuses writes; a warning if it has little left",
        "raise maxmemory; docs/operations.md says how much it takes",
    ),
    "redis_loading": Kind(WARNING, "Redis is loading its data, and answers nothing else", "wait; everything goes on by itself"),
    "redis_read_only": Kind(ERROR, "this Redis is a replica, which takes no writes", "give --redis the master"),
    "redis_write_errors": Kind(
        WARNING,
        "Redis cannot save to disk, and may refuse writes for that reason",
        "mend its disk, or switch off stop-writes-on-bgsave-error",
    ),
    "redis_slow": Kind(WARNING, "Redis takes long for a PING", "see SLOWLOG and what else uses it, and the network in between"),
    "redis_other_layout": Kind(
        WARNING,
        "another version of the service writes keys of another layout under this namespace",
        "replicas of different layouts share nothing: upgrade all of them",
    ),
    "no_indexer": Kind(
        ERROR,
        "no indexer is alive in this namespace and database",
        "start kv-indexer ingest with engines and with this --redis and --namespace, and look at its log; if it runs, give the doctor its values, "
        "with the same database number",
    ),
}
_DOCTOR = {
    "check_failed": Kind(NOTE, "a check failed, or did not end in time", "run the doctor again; the rest of the report stands"),
}

GROUPS: dict[str, dict[str, Kind]] = {
    "The service": _SERVICE,
    "Pods, as the service sees them": _STREAMS,
    "Event and replay sockets": _SOCKETS,
    "Engines": _ENGINES,
    "A prompt": _PROMPT,
    "The probe": _PROBE,
    "Redis": _REDIS,
    "The doctor itself": _DOCTOR,
}
"""Heading → code → kind, as the documentation shows them."""
KINDS: dict[str, Kind] = {code: kind for group in GROUPS.values() for code, kind in group.items()}
