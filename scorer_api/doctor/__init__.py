"""`kv-indexer doctor`: why scores are zero, or what else is wrong.

    service, engines, sockets, Redis ──asked──▶ what was seen ──judged──▶ findings ──▶ report, exit code
       service_api  engine_api  wire_probe  indexer.store.inspection     *_checks   findings    report

Asking and judging are apart: `*_checks` are pure, and know nothing of how it was come by what they judge.
"""
