"""What others rely on, compared with the snapshots in tests/data/contract/: OpenAPI documents, metrics, the JSON of /v1, the content of Redis, the
command line.

A test here fails when one of these changes, and shows the difference. Where the change is meant, write the snapshots anew, read the difference in
the commit, and add a line to CHANGELOG.md:

    UPDATE_CONTRACT=1 .venv/bin/python -m pytest tests/contract
"""
