"""Protobuf messages of `protos/`, generated when the package is built and never committed."""
