"""What this kernel and host can do, found out by doing it; and which backend is chosen for it."""

from agent.kernel.trials import probe
from agent.kernel.trials.backend import BACKENDS, Backend, choose_backend, refusal

__all__ = ["BACKENDS", "Backend", "choose_backend", "probe", "refusal"]
