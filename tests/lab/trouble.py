"""Trouble in the lab's network: hosts that are cut off, links that are slow. Called by lab.py.

All of it is done in the internet host, through which every packet between two lab hosts goes: no host's own rules and
qdiscs are touched, and nothing is remembered but in the kernel.
"""

from __future__ import annotations

from tests.lab.hosts import in_network, run
from tests.lab.topology import Host

# A node is cut from all gateways and keeps its customers; a gateway is cut from everybody.
RULES = """
table inet trouble {
  set nodes { type ifname; }
  set gateways { type ifname; }
  chain cut {
    iifname @gateways drop
    oifname @gateways drop
    iifname @nodes oifname "to-g*" drop
    iifname "to-g*" oifname @nodes drop
  }
  chain through { type filter hook forward priority -10; jump cut; }
  chain in { type filter hook input priority -10; jump cut; }
  chain out { type filter hook output priority -10; jump cut; }
}
"""
QUEUE_SECONDS = 3.0  # what a slow link holds back before it drops


def prepare(internet: Host) -> None:
    run([*in_network(internet), "nft", "-f", "-"], stdin=RULES)


def cut(internet: Host, host: Host) -> None:
    """Drop every packet between a node and the gateways, or a gateway and everybody, in both directions."""
    run([*in_network(internet), "nft", "add", "element", "inet", "trouble", _set_of(host), f"{{ {host.port} }}"])


def slow(internet: Host, host: Host, rate: str) -> None:
    """Hold both directions of its uplink to a rate such as "256kbit"; what waits longer than 3 s is dropped."""
    restore(internet, host)
    bucket = f"tbf rate {rate} burst 16kb latency {QUEUE_SECONDS * 1000:g}ms"
    _tc(
        internet,
        f"qdisc replace dev {host.port} root {bucket}",
        f"qdisc add dev {host.port} ingress",
    )
    run(["ip", "-netns", internet.namespace, "link", "add", _aside(host), "type", "ifb"])
    run(["ip", "-netns", internet.namespace, "link", "set", _aside(host), "up"])
    _tc(
        internet,
        f"qdisc replace dev {_aside(host)} root {bucket}",
        f"filter add dev {host.port} ingress protocol ip u32 match u32 0 0"
        f" action mirred egress redirect dev {_aside(host)}",
    )


def heal(internet: Host, host: Host) -> None:
    """Undo `cut` and `slow`; nothing to undo is no error."""
    element = [_set_of(host), f"{{ {host.port} }}"]
    run([*in_network(internet), "nft", "add", "element", "inet", "trouble", *element])  # then it is there to be deleted
    run([*in_network(internet), "nft", "delete", "element", "inet", "trouble", *element])
    restore(internet, host)


def restore(internet: Host, host: Host) -> None:
    """Undo `slow`."""
    for kind in ("root", "ingress"):
        run(["tc", "-netns", internet.namespace, "qdisc", "delete", "dev", host.port, kind], check=False)
    run(["ip", "-netns", internet.namespace, "link", "delete", _aside(host)], check=False)


def _set_of(host: Host) -> str:
    return {"n": "nodes", "g": "gateways"}[host.name[0]]


def _aside(host: Host) -> str:
    """Where what comes from the host waits."""
    return f"from-{host.name}"


def _tc(internet: Host, *commands: str) -> None:
    run(["tc", "-netns", internet.namespace, "-batch", "-"], stdin="".join(f"{line}\n" for line in commands))
