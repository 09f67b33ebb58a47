from tests.host.distributions import site

__all__ = ["site"]
