"""Before all tests: both packages set what gRPC reads once, when it is imported (see their __init__.py)."""

import agent  # noqa: F401
import gateway  # noqa: F401
