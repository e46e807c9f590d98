"""gRPC: the contract in `saccade.proto`, and its server."""
