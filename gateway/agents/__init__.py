"""The door to the agents. `Agents` and its errors are all that the rest of the gateway knows of gRPC."""

from gateway.agents.client import AgentLacks, AgentRefused, Agents, StaleAgent

__all__ = ["AgentLacks", "AgentRefused", "Agents", "StaleAgent"]
