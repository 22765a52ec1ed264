"""What stands before a gateway on the internet: nothing, or Debian's nginx, HAProxy or Caddy, set up as people do.

Each is a process of ours with a configuration of its own on a free port of the loopback; the machine's are not touched.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 20

NGINX = """
daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  upstream gateway {{ server 127.0.0.1:{gateway}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://gateway;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "upgrade";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
}}
"""

HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  timeout http-request 10s
frontend world
  bind 127.0.0.1:{port}
  default_backend gateway
backend gateway
  option forwardfor
  http-reuse always
  server one 127.0.0.1:{gateway}
"""

CADDY = """
{{
  admin off
  auto_https off
}}
http://:{port} {{
  bind 127.0.0.1
  reverse_proxy 127.0.0.1:{gateway}
}}
"""

Command = Callable[[str], tuple[str, ...]]
PROXIES: dict[str, tuple[str, Command]] = {
    "nginx": (NGINX, lambda file: ("nginx", "-e", "stderr", "-c", file)),
    "haproxy": (HAPROXY, lambda file: ("haproxy", "-db", "-f", file)),
    "caddy": (CADDY, lambda file: ("caddy", "run", "--adapter", "caddyfile", "--config", file)),
}
FRONTS = ("direct", *PROXIES)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing(front: str) -> bool:
    return front in PROXIES and shutil.which(front, path=f"{os.environ['PATH']}:/usr/sbin") is None


@contextmanager
def standing(front: str, gateway: int, folder: Path) -> Iterator[int]:
    """The port that the world calls. `gateway`: the port behind it."""
    if front == "direct":
        yield gateway
        return
    text, command = PROXIES[front]
    port, file = free_port(), folder / f"{front}.conf"
    file.write_text(text.format(folder=folder, port=port, gateway=gateway))
    environment = {**os.environ, "HOME": str(folder), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    environment |= {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with open(folder / f"{front}.out", "wb") as out:
        process = subprocess.Popen(command(str(file)), stdout=out, stderr=out, env=environment)
    try:
        _await(port, process, folder / f"{front}.out")
        yield port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(port: int, process: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"the proxy does not listen: {out.read_text()}")
