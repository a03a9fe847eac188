"""What the state API raises."""

from __future__ import annotations


class RayStateApiException(Exception):
    """A list would be incomplete: somebody who should have answered has not."""


class DataSourceUnavailable(RayStateApiException):
    """A process or node that was asked by name does not answer."""
