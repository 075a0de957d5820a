"""Everything that can be found: how grave it is, what it means, what to do about it. Codes are stable: scripts may compare them."""

from enum import StrEnum

from msgspec import Struct


class Severity(StrEnum):
    """How grave a finding is, mildest first."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """For comparing: higher is graver."""
        return list(Severity).index(self)


class Kind(Struct, frozen=True):
    """A thing that can be found. `severity`: unless a finding says otherwise. `mend`: what to do about it."""

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
        "use https:// where the service has --tls-cert, and give --ca-file the authority of its certificate",
    ),
    "service_other": Kind(
        ERROR,
        "something else than this service answers at --url",
        "give --url the address and port of kv-indexer serve or api, without a path",
    ),
    "token_missing": Kind(
        ERROR,
        "the service wants a token and none was given",
        "give --token-file a file with a token of the service's --api-token-file",
    ),
    "token_wrong": Kind(
        ERROR,
        "the service does not know the token",
        "compare the first token in --token-file with the service's --api-token-file, which is read again when it changes",
    ),
    "service_starting": Kind(WARNING, "the service is not ready yet", "wait until /readyz says 200; the reasons say what it waits for"),
    "service_degraded": Kind(
        WARNING,
        "the service is ready, and says that not all is as it should be",
        "look at each reason; findings about pods and Redis say more",
    ),
    "metrics_unreachable": Kind(WARNING, "/metrics of the service gives no metrics", "look at the service's log; Prometheus sees none of it either"),
    "events_refused": Kind(
        WARNING,
        "the service counted messages or events that it could not use, so some blocks are missing",
        "the table of refusals in the reference of metrics says what each reason means; compare the engine's version with those that are supported",
    ),
    "no_pods": Kind(ERROR, "the service knows no pod", "register pods: --engine, the config file, --listen, or PUT /v1/pods/{pod}"),
    "model_unknown": Kind(
        ERROR,
        "no pod of this model is registered",
        "use the very name that the pods are registered with, or register them with the name that requests use",
    ),
    "pods_left_out": Kind(NOTE, "there are more pods than are looked at in one run", "name a --model, or ask for a few with --pod"),
    "pod_unknown": Kind(ERROR, "a pod that was asked for is not registered", "see GET /v1/pods for the names"),
    "service_clock_off": Kind(
        WARNING,
        "the service's clock differs from the others",
        "keep time with NTP on the service's machine: ages of events are wrong, no score is",
    ),
    "clock_here_off": Kind(
        NOTE,
        "all clocks agree but the one where the doctor runs",
        "keep time with NTP here; nothing of the service depends on it",
    ),
}
_STREAMS = {
    "stream_well": Kind(OK, "the service is connected, and what it holds is complete"),
    "not_followed": Kind(
        ERROR,
        "a pod is registered and no indexer follows its events",
        "check that kv-indexer ingest (or serve) runs with the same --redis and --namespace, and look at its log",
    ),
    "not_connected": Kind(
        ERROR,
        "the service is not connected to the engine's events, though they can be reached from here",
        "look for what lies between service and engine: network policy, firewall, another address of the name; the service's log and "
        "last_error in /v1/pods say more",
    ),
    "dials_not": Kind(
        ERROR,
        "a pod that should dial the service is not connected",
        "check the engine's endpoint (host of the service, port of --listen + rank), its topic (kv@pod@model), and what lies between them",
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
        "what is held is right, but some of the engine's blocks are not known",
        "give the engine a replay_endpoint and its spec replay=…; else it mends itself as the cache turns over",
    ),
    "never_announced": Kind(
        WARNING,
        "the service is connected, and the engine has never announced a block",
        "send it a prompt of several blocks (or use --probe); if it stays so, events or prefix caching are off, or the topic matches nothing",
    ),
    "no_replay": Kind(
        NOTE,
        "the pod has no replay endpoint, so a restart or a gap costs what is held",
        "set replay_endpoint in the engine's --kv-events-config, and replay=… in its spec",
    ),
    "engine_dials": Kind(NOTE, "the engine dials the service, so its sockets cannot be looked at from here"),
    "gaps_lost": Kind(
        WARNING,
        "batches were missing and no replay brought them",
        "give the engine a replay endpoint, or look why it does not answer",
    ),
}
_SOCKETS = {
    "events_well": Kind(OK, "the engine publishes, and what came can be read"),
    "replay_well": Kind(OK, "the engine answers replays by the protocol"),
    "unreachable_from_here": Kind(
        NOTE,
        "a socket that the service is connected to cannot be reached from where the doctor runs",
        "nothing is wrong with that; run the doctor where the service runs to look closer",
    ),
    "events_unreachable": Kind(
        ERROR,
        "the events endpoint cannot be reached, neither by the service nor from here",
        "check host and port of events=…, that the engine runs, and what lies in between",
    ),
    "events_port_closed": Kind(
        ERROR,
        "the engine's API answers, but nobody listens at its events endpoint: events are disabled, or at another port",
        'start the engine with --kv-events-config \'{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557", '
        '"replay_endpoint": "tcp://*:5558"}\', and give events=… the port of endpoint + rank',
    ),
    "events_disabled": Kind(
        ERROR,
        "the engine itself says that it publishes no events",
        'start the engine with --kv-events-config \'{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557", '
        '"replay_endpoint": "tcp://*:5558"}\'',
    ),
    "events_port_differs": Kind(ERROR, "the engine itself says that its events are at another port", "give events=… the port that the engine says"),
    "replay_port_differs": Kind(
        WARNING,
        "the engine itself says that its replays are at another port, or that it has none",
        "give replay=… the port that the engine says",
    ),
    "events_not_zmq": Kind(
        ERROR,
        "what listens at the events endpoint does not speak ZMQ",
        "give events=… the port of endpoint in --kv-events-config, not that of the API",
    ),
    "replay_not_zmq": Kind(
        WARNING,
        "what listens at the replay endpoint does not speak ZMQ",
        "give replay=… the port of replay_endpoint in --kv-events-config, or leave it out",
    ),
    "zmq_secured": Kind(
        ERROR,
        "the socket asks for a ZMQ security mechanism, which is not supported",
        "publish without CURVE or PLAIN inside a network that you trust",
    ),
    "ports_exchanged": Kind(ERROR, "events and replay are each other's ports", "exchange the ports of events=… and replay=…"),
    "events_is_replay": Kind(
        ERROR,
        "the events endpoint is a replay socket",
        "give events=… the port of endpoint in --kv-events-config: with several ranks, each is at port + rank",
    ),
    "replay_is_events": Kind(
        WARNING,
        "the replay endpoint is an events socket",
        "give replay=… the port of replay_endpoint in --kv-events-config, or leave it out",
    ),
    "events_not_pub": Kind(ERROR, "the events endpoint is a ZMQ socket of another kind", "give events=… the port of endpoint in --kv-events-config"),
    "replay_not_router": Kind(
        WARNING,
        "the replay endpoint is a ZMQ socket of another kind",
        "give replay=… the port of replay_endpoint in --kv-events-config",
    ),
    "topic_matches_nothing": Kind(
        ERROR,
        "the engine publishes, but no topic of it begins with the spec's topic",
        "make topic=… a beginning of the engine's topic, or leave it out, which takes everything",
    ),
    "topic_other_model": Kind(WARNING, "the topics name another model or pod than the spec does", "check that events=… is the port of this very pod"),
    "events_undecodable": Kind(
        ERROR,
        "messages come that are no batches of KV-cache events",
        "check that events=… is the engine's own port; compare its version with those that are supported",
    ),
    "events_idle": Kind(NOTE, "nothing was published while the doctor listened: an idle engine says nothing", "send it a prompt, or use --probe"),
    "service_misses_events": Kind(
        ERROR,
        "batches came here that the service does not have",
        "compare the service's events=… and topic=… with the engine; look at last_error in /v1/pods and at the service's log",
    ),
    "replay_unreachable": Kind(
        WARNING,
        "the replay endpoint cannot be reached",
        "check host and port of replay=…; leave it out if the engine has none",
    ),
    "replay_silent": Kind(
        WARNING,
        "the replay socket does not answer",
        "check that replay=… is the port of replay_endpoint + rank; restart the engine if it hangs",
    ),
    "replay_odd": Kind(WARNING, "the replay socket answers otherwise than engines do", "check that replay=… is the engine's own port"),
    "engine_clock_off": Kind(
        WARNING,
        "the engine's clock differs from the others",
        "keep time with NTP on the engine's machine: ages of events are wrong, no score is",
    ),
    "rank_differs": Kind(
        WARNING,
        "batches name another data-parallel rank than the spec has for this port",
        "give each rank's port its rank: ranks=N for port + r, or rank=R",
    ),
}
_ENGINES = {
    "engine_well": Kind(OK, "the engine's API answers, and agrees with what the service knows"),
    "api_unreachable": Kind(
        NOTE,
        "the engine's API cannot be reached from here",
        "give its spec http=http://host:port if http://<pod> is not where the API is; run the doctor where the service runs",
    ),
    "engine_unhealthy": Kind(ERROR, "the engine says that it is not well", "look at the engine's log, and restart it"),
    "prefix_caching_off": Kind(
        ERROR,
        "the engine runs without prefix caching, so it caches and announces nothing",
        "start vLLM with --enable-prefix-caching, SGLang without --disable-radix-cache",
    ),
    "block_size_differs": Kind(
        WARNING,
        "the engine says another block size than it announces",
        "check that events=… and http=… are the same engine; for hybrid models and offloading connectors the announced size is the right one",
    ),
    "model_not_served": Kind(
        ERROR,
        "the engine does not serve the model that it is registered with",
        "register the pod with a name that its /v1/models lists, or start it with --served-model-name",
    ),
    "adapters": Kind(OK, "the engine serves LoRA adapters: requests for them need lora_name"),
    "tokenize_missing": Kind(NOTE, "the engine has no /tokenize, so prompts cannot be turned into tokens by it", "ask for scores with token_ids"),
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
    "prompt_refused": Kind(WARNING, "the service refuses the question about the prompt", "do what its answer says"),
    "prompt_no_tokens": Kind(WARNING, "nobody turns the prompt into tokens", "see that a pod's /tokenize can be reached from here"),
    "explained": Kind(NOTE, "why a pod's match of the prompt ends where it does"),
    "hint": Kind(WARNING, "what the service itself takes for wrong with the model's pods, or with the prompt", "do what it says"),
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
        "the engine computed a new prompt, and none of its blocks appeared in the service",
        "see the findings about this pod's events; if there are none, the engine publishes no events",
    ),
    "probe_incomplete": Kind(
        WARNING,
        "only some blocks of the probe appeared in the service",
        "see the findings about this pod; with a small cache they may have been evicted at once",
    ),
    "probe_differs": Kind(
        WARNING,
        "the engine took another number of tokens from its cache than the service says",
        "see the findings about this pod; under load, or with several ranks, once is nothing: try again",
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
    "redis_refuses": Kind(ERROR, "Redis refuses what the doctor asks", "check user and password in --redis, and what its ACL allows"),
    "redis_old": Kind(ERROR, "this Redis is older than 6.2", "use Redis 6.2 or newer, or Valkey"),
    "redis_evicts": Kind(
        ERROR,
        "Redis may evict keys when it is full, and then the index is wrong without knowing",
        "set maxmemory-policy noeviction",
    ),
    "redis_full": Kind(ERROR, "Redis has no memory left, and refuses writes", "raise maxmemory; docs/operations.md says how much it takes"),
    "redis_nearly_full": Kind(WARNING, "Redis has used most of its memory", "raise maxmemory; docs/operations.md says how much it takes"),
    "redis_loading": Kind(WARNING, "Redis is loading its data, and answers nothing else", "wait; everything goes on by itself"),
    "redis_read_only": Kind(ERROR, "this Redis is a replica, which takes no writes", "give --redis the master"),
    "redis_write_errors": Kind(
        WARNING,
        "Redis cannot save to disk, and may take no writes for that",
        "mend its disk, or switch off stop-writes-on-bgsave-error",
    ),
    "redis_slow": Kind(WARNING, "Redis takes long for a PING", "see SLOWLOG and what else uses it, and the network in between"),
    "redis_clock_off": Kind(
        WARNING,
        "Redis's clock differs from the others",
        "keep time with NTP on its machine; leases are by its clock alone, ages that are shown are not",
    ),
    "redis_nothing_here": Kind(
        ERROR,
        "there is nothing of this namespace in this database",
        "give --redis and --namespace the values of the indexers, with the same database number",
    ),
    "redis_other_layout": Kind(
        WARNING,
        "another version of the service writes keys of another layout under this namespace",
        "replicas of different layouts share nothing: upgrade all of them",
    ),
    "no_indexer": Kind(
        ERROR,
        "no indexer is alive",
        "start kv-indexer ingest with the same --redis and --namespace, and with engines, and look at its log",
    ),
    "streams_unowned": Kind(ERROR, "streams have no living owner", "see that indexers run and can reach the engines; a takeover takes five seconds"),
}
_ITSELF = {
    "check_failed": Kind(NOTE, "a check did not come to its end in time, or failed in itself", "run the doctor again; the rest of the report stands"),
}

GROUPS: dict[str, dict[str, Kind]] = {
    "The service": _SERVICE,
    "Pods, as the service sees them": _STREAMS,
    "Event and replay sockets": _SOCKETS,
    "Engines": _ENGINES,
    "A prompt": _PROMPT,
    "The probe": _PROBE,
    "Redis": _REDIS,
    "The doctor itself": _ITSELF,
}
"""Heading → code → kind, as the documentation has them."""
KINDS: dict[str, Kind] = {code: kind for group in GROUPS.values() for code, kind in group.items()}
