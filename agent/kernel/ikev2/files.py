"""What the two programs are told, as texts. PURE but for `write`.

strongSwan: `load` names every plugin, so nothing of the host's configuration comes in. What is loaded over its control
socket (certificate, key, connection) is in no file. FreeRADIUS: the whole server is one file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from string import Template

BEFORE = "random nonce openssl x509 revocation constraints pubkey pkcs1 pkcs8 pem sha1 sha2 hmac md5 kdf"
BEHIND = "kernel-netlink socket-default vici eap-identity eap-radius"
USERSPACE_ESP = "kernel-libipsec"
# Half-open handshakes of one address. strongSwan's own 5 locks out whoever is behind a carrier's NAT with others.
COOKIES, COOKIES_OF_ONE, REFUSED_FROM_ONE = 200, 100, 1001


@dataclass(frozen=True, slots=True)
class Paths:
    """In the folder of one responder."""

    folder: Path

    @property
    def control(self) -> Path:
        return self.folder / "charon.vici"

    @property
    def charon(self) -> Path:
        return self.folder / "strongswan.conf"

    @property
    def radius(self) -> Path:
        return self.folder / "radiusd.conf"

    @property
    def users(self) -> Path:
        return self.folder / "users.db"

    @property
    def running(self) -> Path:
        return self.folder / "running.json"

    @property
    def asked(self) -> Path:
        """What radius.py has to know of the FreeRADIUS that runs."""
        return self.folder / "radius.json"


def write(path: Path, text: str) -> None:
    """Readable by nobody else at any moment."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)


def charon(paths: Paths, port: int, secret: str, *, userspace: bool) -> str:
    """strongswan.conf. `port`: of FreeRADIUS, on loopback."""
    return STRONGSWAN.substitute(
        plugins=" ".join([BEFORE, *([USERSPACE_ESP] if userspace else []), BEHIND]),
        cookies=COOKIES,
        cookies_of_one=COOKIES_OF_ONE,
        refused_from_one=REFUSED_FROM_ONE,
        control=paths.control,
        port=port,
        secret=secret,
    )


def radius(paths: Paths, port: int, secret: str) -> str:
    """radiusd.conf."""
    row = "FROM logins WHERE username = '%{SQL-User-Name}' AND enabled = 1"
    replies = " UNION ALL ".join(
        f"SELECT id, username, '{attribute}', {column}, '+=' {row} AND {column} <> ''"
        for attribute, column in (
            ("Framed-IP-Address", "address"),
            ("MS-Primary-DNS-Server", "dns_1"),
            ("MS-Secondary-DNS-Server", "dns_2"),
            ("Framed-IPv6-Address", "address_ipv6"),
            ("DNS-Server-IPv6-Address", "dns_1_ipv6"),
            ("DNS-Server-IPv6-Address", "dns_2_ipv6"),
        )
    )
    return RADIUSD.substitute(
        folder=paths.folder, port=port, secret=secret, users=paths.users, row=row, replies=replies
    )


STRONGSWAN = Template("""\
charon-systemd {
  load = $plugins
  threads = 16
  install_virtual_ip = no
  install_routes = no
  cookie_threshold = $cookies
  cookie_threshold_ip = $cookies_of_one
  block_threshold = $refused_from_one
  journal {
    default = -1
  }
  filelog {
    stderr {
      default = 0
    }
  }
  syslog {
    daemon {
      default = -1
    }
    auth {
      default = -1
    }
  }
  plugins {
    vici {
      socket = unix://$control
    }
    eap-radius {
      accounting = no
      servers {
        own {
          address = 127.0.0.1
          auth_port = $port
          secret = $secret
          sockets = 16
        }
      }
    }
  }
}
""")

# One item a line, or its parser refuses it.
RADIUSD = Template("""\
prefix = /usr
name = radiusd
libdir = /usr/lib/freeradius
run_dir = $folder
logdir = $folder
pidfile = $folder/radiusd.pid
max_request_time = 10
cleanup_delay = 2
max_requests = 16384
hostname_lookups = no
log {
  destination = stderr
  auth = no
}
security {
  allow_core_dumps = no
  max_attributes = 200
  reject_delay = 0
  status_server = yes
}
thread pool {
  start_servers = 2
  max_servers = 8
  min_spare_servers = 1
  max_spare_servers = 4
  max_requests_per_server = 0
}
client own {
  ipaddr = 127.0.0.1
  secret = $secret
  require_message_authenticator = yes
}
modules {
  eap {
    default_eap_type = mschapv2
    timer_expire = 30
    max_sessions = 16384
    mschapv2 {
    }
  }
  mschap {
    use_mppe = yes
    require_encryption = yes
    require_strong = yes
    with_ntdomain_hack = no
  }
  always reject {
    rcode = reject
  }
  sql {
    driver = "rlm_sql_sqlite"
    dialect = "sqlite"
    sqlite {
      filename = "$users"
      busy_timeout = 1000
    }
    pool {
      start = 1
      min = 1
      max = 8
      spare = 1
      retry_delay = 1
      uses = 0
      lifetime = 0
      idle_timeout = 0
    }
    read_groups = no
    read_profiles = no
    sql_user_name = "%{User-Name}"
    authorize_check_query = "SELECT id, username, 'NT-Password', '0x' || nt_hash, ':=' $row"
    authorize_reply_query = "$replies"
  }
}
server default {
  listen {
    type = auth
    ipaddr = 127.0.0.1
    port = $port
  }
  authorize {
    eap {
      ok = return
    }
    sql
    if (notfound) {
      reject
    }
  }
  authenticate {
    Auth-Type MS-CHAP {
      mschap
    }
    eap
  }
}
""")
