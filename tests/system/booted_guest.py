"""What happens in the booted system: both services start, an account connects, and each process says what it may write.

    python tests/system/booted_guest.py FACTS.json

Writes what it saw, judges nothing. The probe runs as ExecStartPost of the units, so within all of their sandbox. Called
by test_units.py (through booted.sh), which asserts on the facts.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.netns.ikev2_box import IDENTITY, client, is_in

API = "http://127.0.0.1:8080/api/v1"
SECONDS = 60.0  # for each command and each wait
BIN = Path("/opt/wirelane/.venv/bin")
KEY, ENCRYPTED = "/var/lib/wirelane-gateway/secret.key", "/etc/wirelane/secret.key"
CREDENTIAL = "/run/credentials/wirelane-gateway.service/secret.key"

# Opens without writing: these are the settings of the machine that tests. In a folder it makes a file and removes it.
PROBE = """
import errno, json, os, sys
found = {}
for path in sys.argv[2:]:
    try:
        if os.path.isdir(path):
            name = os.path.join(path, "wirelane-probe")
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            os.unlink(name)
        else:
            os.close(os.open(path, os.O_WRONLY))
        found[path] = ""
    except OSError as error:
        found[path] = errno.errorcode[error.errno]
open(sys.argv[1], "w").write(json.dumps(found))
"""
PING = """
import socket, struct, sys, time
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
raw.settimeout(0.5)
until = time.monotonic() + 20
while time.monotonic() < until:
    raw.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FE, 1, 0), (sys.argv[1], 0))
    try:
        if raw.recv(200)[20] == 0:
            sys.exit()
    except TimeoutError:
        pass
sys.exit("no echo")
"""
PROBED = {
    "agent": (
        "/proc/sys/kernel/core_pattern", "/proc/sys/fs/suid_dumpable", "/proc/sys/vm/drop_caches",
        "/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/core/somaxconn", "/sys/bus/platform/drivers_autoprobe",
        "/sys/fs/cgroup", "/run", "/run/systemd", "/run/lock", "/dev", "/etc", "/usr", "/var", "/opt/wirelane",
        "/proc/sys/net/ipv4/conf/uplink/forwarding", "/proc/sys/net/ipv4/conf/wg1/forwarding",
        "/sys/class/net/wg1/threaded", "/run/xtables.lock", "/run/wireguard", "/run/wirelane-agent",
        "/var/lib/wirelane-agent", "/dev/net/tun", "/tmp",
    ),
    "gateway": (
        "/run", "/run/lock", "/run/systemd", "/dev", "/etc", "/usr", "/var", "/opt/wirelane", "/sys/fs/cgroup",
        "/run/wirelane-agent", "/var/lib/wirelane-gateway", "/tmp",
    ),
}  # fmt: skip
RESULT = {"agent": Path("/run/wirelane-agent/probe"), "gateway": Path("/var/lib/wirelane-gateway/probe")}

NETWORK = """
ip netns add client
ip link add uplink type veth peer name eth0 netns client
ip address add 198.51.100.2/24 dev uplink
ip link set uplink up
ip route add default via 198.51.100.1
ip -n client address add 198.51.100.1/24 dev eth0
ip -n client link set eth0 up
"""


def run(*command: str | Path, data: str | None = None) -> str:
    done = subprocess.run(command, input=data, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: status {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def gateway(*words: str) -> str:
    return run(BIN / "wirelane-gateway", *words)


def write_drop_ins() -> None:
    Path("/run/probe.py").write_text(PROBE)
    for process, paths in PROBED.items():
        folder = Path(f"/run/systemd/system/wirelane-{process}.service.d")
        folder.mkdir(parents=True)
        command = f"{BIN}/python /run/probe.py {RESULT[process]} {' '.join(paths)}"
        (folder / "probe.conf").write_text(f"[Service]\nExecStartPost={command}\n")


def call(cookie: str, path: str, method: str | None = None, **fields: str) -> Any:
    data = urllib.parse.urlencode(fields).encode() if fields else None
    request = urllib.request.Request(API + path, data, {"Cookie": f"access_hash={cookie}"}, method=method)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        read = json.load(answer)
    if read["error"]:
        raise RuntimeError(f"{path}: {read['error']}")
    return read["msg"]


def connect(server: dict[str, Any], account: dict[str, Any]) -> None:
    """The customer's side, with the same WireGuard as the node's where the kernel has none."""
    inside = ["ip", "netns", "exec", "client"]
    kernel = subprocess.run(
        ["ip", "-n", "client", "link", "add", "wgc", "type", "wireguard"], capture_output=True, timeout=SECONDS
    )
    if kernel.returncode:
        run(*inside, "wireguard-go", "wgc")
    key = Path("/run/client.key")
    key.write_text(account["private_key"])
    endpoint = f"198.51.100.2:{server['listen_port']}"
    peer = ["peer", server["public_key"], "endpoint", endpoint, "allowed-ips", "10.0.0.0/8"]
    run(*inside, "wg", "set", "wgc", "private-key", key, *peer)
    run("ip", "-n", "client", "address", "add", f"{account['allowed_IPs']}/32", "dev", "wgc")
    run("ip", "-n", "client", "link", "set", "wgc", "up")
    run("ip", "-n", "client", "route", "add", "10.0.0.0/8", "dev", "wgc")
    run(*inside, BIN / "python", "-c", PING, server["address"].partition("/")[0])


def by_ikev2(cookie: str) -> dict[str, Any]:
    """The same account, by the programs that the agent starts within its sandbox."""
    call(cookie, "/ikev2/generate_ca_rsa", "PUT", ca_common_name="CA", ca_organization="Booted")
    own = {"server_domain": IDENTITY, "server_ip": "198.51.100.2", "server_common_name": IDENTITY}
    call(cookie, "/ikev2/generate_server_rsa", "PUT", **own, server_organization="Booted")
    call(cookie, "/ikev2", "PUT", enabled="1")
    call(cookie, "/wireguard/fra1", "PUT", ikev2="1")
    account = call(cookie, "/account/anna")
    profile = json.loads(call(cookie, "/account/anna/ikev2_profile"))
    authority = ssl.DER_cert_to_PEM_cert(base64.b64decode(profile["remote"]["cert"]))
    run("ip", "-n", "client", "link", "del", "wgc")
    name, password = account["username"], account["password"]
    with client("client", Path("/run/client"), name, password, authority, "198.51.100.2") as says:
        until = time.monotonic() + SECONDS
        while not is_in(says) and time.monotonic() < until:
            time.sleep(0.2)
        node = call(cookie, "/system/status")["nodes"][0]
        online = [one["name"] for one in call(cookie, "/ikev2/online")]
        return {"is_in": is_in(says), "online": online, "failures": node["failures"], "problem": node["problem"]}


def probed() -> dict[str, Any]:
    return {process: json.loads(path.read_text()) for process, path in RESULT.items()}


def tell(facts: dict[str, Any]) -> None:
    facts["systemd"] = run("systemctl", "--version").split()[1]
    for line in NETWORK.strip().splitlines():
        run(*line.split())
    as_gateway = ["runuser", "-u", "wirelane-gateway", "--", str(BIN / "wirelane-gateway")]
    run(*as_gateway, "migrate")
    run(*as_gateway, "node", "add", "local", "unix:/run/wirelane-agent/agent.sock", "--endpoint", "198.51.100.2")
    cookie = gateway("key", "add", "me", "--ip", "127.0.0.1").split()[0]
    run("systemctl", "start", "wirelane-agent", "wirelane-gateway")
    server = call(cookie, "/wireguard", name="fra1")
    account = call(cookie, "/account", wg_name="fra1", name="anna", b_download="50", b_upload="20")
    connect(server, account)
    facts["dump"] = call(cookie, "/account/anna/dump")
    facts["system"] = call(cookie, "/system/info")
    facts["links"] = run("ip", "-o", "link", "show", "wg1").split(":")[0]
    write_drop_ins()
    move_key_into_a_credential()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "wirelane-agent", "wirelane-gateway")
    facts["links_after"] = run("ip", "-o", "link", "show", "wg1").split(":")[0]
    facts["probed"] = probed()
    until = time.monotonic() + SECONDS
    while (status := call(cookie, "/system/status"))["status"] != "OK" and time.monotonic() < until:
        time.sleep(0.5)
    facts["status"] = status
    facts["private_key_kept"] = call(cookie, "/account/anna")["private_key"] == account["private_key"]
    facts["keys"] = gateway("key", "list")
    facts["ikev2"] = by_ikev2(cookie)
    facts["active"] = run("systemctl", "is-active", "wirelane-agent", "wirelane-gateway").split()


def move_key_into_a_credential() -> None:
    """As the comment of the unit tells it, without encryption: that needs a TPM or a key of the machine."""
    Path(KEY).rename(ENCRYPTED)
    drop_in = Path("/run/systemd/system/wirelane-gateway.service.d/credential.conf")
    drop_in.write_text(f"[Service]\nLoadCredential=secret.key:{ENCRYPTED}\n")
    with Path("/etc/wirelane/gateway.toml").open("a") as config:
        config.write(f'\nkey_file = "{CREDENTIAL}"\n')


def main(target: Path) -> None:
    facts: dict[str, Any] = {"error": ""}
    try:
        tell(facts)
    except Exception as error:
        facts["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        print(run("journalctl", "--no-pager", "--lines", "200"))
        target.write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
