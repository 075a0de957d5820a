"""The scorer over gRPC, as `scorer.proto` describes it. Its answers are those of the HTTP API, whose handlers make them."""
