"""`kv-indexer doctor`: why scores are zero, or what else is wrong.

    service, engines, sockets, Redis ──▶ observations ──▶ findings ──▶ report, exit code
        probes, indexer.store.inspection           checks       report

Probing and checking are apart: `checks` is pure, and knows nothing of how an observation was made. `examination` runs both.
"""
