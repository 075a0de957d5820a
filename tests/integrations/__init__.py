"""Other people's gateways in front of two demo engines, with the files of deploy/examples. Only in `make test-integrations`."""
