"""The process that owns the model: gRPC over a Unix socket."""
