"""The secrets that lie in files beside the configuration: the key that seals those in the database, and the database's
password. Owns: who may read such a file, and the making of the key. Every error names the cure. Called by wiring.py.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from urllib.parse import quote, urlsplit

from gateway.config import Config
from gateway.errors import ConfigError

CREDENTIALS = Path("/run/credentials")  # systemd guards what is in here by more than modes
KEY_BYTES = 32


def database_url(config: Config) -> str:
    """The database with its password. Raises ConfigError."""
    if not config.database_password_file:
        return config.database
    password = _read_secret("database_password_file", Path(config.database_password_file), 0o007).rstrip("\r\n")
    url = urlsplit(config.database)
    user, _, host = url.netloc.rpartition("@")
    user = user.partition(":")[0]
    return url._replace(netloc=f"{user}:{quote(password, safe='')}@{host}").geturl()


def read_key(config: Config, *, may_make: bool = False) -> bytes:
    """The key that seals secrets in the database. `may_make`: there is no database yet that would need an older one.

    Raises ConfigError, which names the cure.
    """
    path = Path(config.key_file)
    if may_make and not is_there("key_file", path):
        _make_key(path)
    text = _read_secret("key_file", path, 0 if CREDENTIALS in path.parents else 0o077).strip()
    if len(text) != 2 * KEY_BYTES or not set(text) <= set("0123456789abcdefABCDEF"):
        raise ConfigError([f"key_file: {path} must hold {2 * KEY_BYTES} hex digits: put it back from your backup"])
    return bytes.fromhex(text)


def is_there(name: str, path: Path) -> bool:
    """`name`: of the key that gives the path. Raises ConfigError: a folder on the way to it is closed to this user."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unreadable(name, path, error) from None
    return True


def _read_secret(name: str, path: Path, forbidden: int) -> str:
    """`forbidden`: bits of the mode that let too many people read it."""
    try:
        with open(path, encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(4096)
    except FileNotFoundError:
        raise ConfigError([f"{name}: {path} is missing: put it back from your backup"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{name}: {path} cannot be read: it is not plain text"]) from None
    except OSError as error:
        raise _unreadable(name, path, error) from None
    if mode & forbidden:
        raise ConfigError(
            [f"{name}: {path} can be read by others (mode {mode:04o}): chmod {mode & ~forbidden:o} {path}"]
        )
    return text


def _unreadable(name: str, path: Path, error: OSError) -> ConfigError:
    closed = isinstance(error, PermissionError)
    cure = ": let the gateway's user read it, and pass through the folders above it" if closed else ""
    return ConfigError([f"{name}: {path} cannot be read: {error.strerror}{cure}"])


def _make_key(path: Path) -> None:
    """Whole or not at all, also when several processes start at once: the first one's key counts."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{secrets.token_hex(KEY_BYTES)}\n".encode())
            os.fsync(descriptor)
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            os.close(descriptor)
            os.unlink(draft)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        cure = f"make the folder {path.parent} for the gateway's user, with mode 0700"
        raise ConfigError([f"key_file: {path} cannot be made: {error.strerror}: {cure}"]) from None
