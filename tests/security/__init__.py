"""What docs/security.md says of the service's surface, rule by rule: a test says with `@pytest.mark.rule` which one it is about."""
