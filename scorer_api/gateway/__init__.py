"""The endpoint picker: Envoy's ext_proc protocol over gRPC, in front of the picks of `/v1/pick`."""
