"""gateway/account_file.py: every line stands alone, whatever is in it."""

from __future__ import annotations

import io
import json
import os
import re
import tracemalloc
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.account_file import (
    COLUMNS,
    MAX_LINE,
    Line,
    Lines,
    format_of,
    guarded,
    header,
    open_private,
    unguarded,
    written,
)
from gateway.errors import ConfigError
from gateway.fields import new_account
from gateway.model import Account, Secret

ACCOUNT = Account(
    id=1,
    name="bob",
    username="user_1",
    password=Secret('a,"b;=c'),
    server="s",
    node="local",
    address=IPv4Address("10.0.0.2"),
    private_key=Secret(),
    public_key="7C5u5vZk051iA5W2zfbxjlZDgAdm7HdRFRgarI8nBw4=",
    mark=100,
    download=20,
    upload=0,
    enabled=False,
)


def read(content: bytes, format_name: str = "csv") -> list[Line]:
    return list(Lines(io.BytesIO(content), format_name))


def shown(lines: list[Line]) -> list[tuple[int, dict[str, str] | str]]:
    return [(line.number, line.problem.text if line.problem else dict(line.form)) for line in lines]


def test_a_csv_line_is_a_form() -> None:
    lines = read(b'name,wg_name,password\nbob,s,"a,b"\n\n"al",s,\r\nlast,s,x')
    assert shown(lines) == [
        (2, {"name": "bob", "wg_name": "s", "password": "a,b"}),
        (4, {"name": "al", "wg_name": "s", "password": ""}),
        (5, {"name": "last", "wg_name": "s", "password": "x"}),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_spellings_of_spreadsheets_are_read(delimiter: str) -> None:
    content = "\ufeffName,WG_name,allowed_ips\nbob,s,10.0.0.2\n,,\n".replace(",", delimiter).encode()
    assert shown(read(content)) == [(2, {"name": "bob", "wg_name": "s", "allowed_IPs": "10.0.0.2"})]


def test_a_broken_line_spoils_nothing_after_it() -> None:
    long = b"x" * (3 * MAX_LINE)
    lines = shown(read(b'name,wg_name\n"open,s\na,s\n\xff\xfe,s\nb,s\nc\nd,s,e\n' + long + b",s\nf,s\n"))
    good = {number: found["name"] for number, found in lines if isinstance(found, dict)}
    bad = {number: found for number, found in lines if isinstance(found, str)}
    assert good == {3: "a", 5: "b", 9: "f"}
    assert bad == {
        2: "Malformed line (only a CSV line in UTF-8, quotes closed)",
        4: "Malformed line (only a CSV line in UTF-8, quotes closed)",
        6: "Malformed line (only 2 values, as the header, it has 1)",
        7: "Malformed line (only 2 values, as the header, it has 3)",
        8: "Malformed line (only a CSV line in UTF-8, quotes closed)",
    }


def test_a_json_line_is_a_form() -> None:
    line = '{"name":"bob","wg_name":"s","b_download":20,"password":null,"allowed_ips_ipv6":"fd00::2","mangle":"1"}'
    text = line + '\n[1]\n{"a":{}}\n{'
    wrong = "Malformed line (only a JSON object of texts and numbers, in UTF-8)"
    assert shown(read(text.encode(), "jsonl")) == [
        (1, {"name": "bob", "wg_name": "s", "b_download": "20", "allowed_IPs_ipv6": "fd00::2", "mangle": "1"}),
        (2, wrong),
        (3, wrong),
        (4, wrong),
    ]


@pytest.mark.parametrize(
    "unknown", ["enabled", "preshared", "Statuses", "b_downlaod", "password2", "private-key", "allowed_ips6"]
)
def test_what_is_not_understood_is_an_error_and_never_dropped(unknown: str) -> None:
    with pytest.raises(ConfigError, match=f"columns that are not understood: '{unknown}'"):
        read(f"name,wg_name,{unknown}\nbob,s,false\n".encode())
    lines = shown(
        read(f'{{"name":"a","wg_name":"s","{unknown}":false}}\n{{"name":"b","wg_name":"s"}}\n'.encode(), "jsonl")
    )
    assert str(lines[0][1]).startswith(f"Unknown field '{unknown}' (only name, ") and "status" in str(lines[0][1])
    assert lines[1] == (2, {"name": "b", "wg_name": "s"})


ALONE = ("=1+1", "+1", "-1", "@x", "\tx", "'=x", "''x", "'x", "'", "", "x=1", "'+", "'\t'", "-", "''")
SEPARATED = ("x;=cmd|' /C calc'!A0;y", "x;'=y", "x\t+y", "x\n@y", ";;''-", "x;y", "x;'y", "\t=x", ";\t'=;'")


@pytest.mark.parametrize("cell", [*ALONE, *SEPARATED])
def test_a_cell_that_a_spreadsheet_would_run_is_guarded_and_comes_back_as_it_was(cell: str) -> None:
    assert not guarded(cell).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert not any(part.startswith(("=", "+", "-", "@")) for part in re.split("[;\t\r\n]", guarded(cell)))
    assert unguarded(guarded(cell)) == cell


def test_files_of_others_with_plain_quotes_are_read_as_they_are() -> None:
    (line,) = read(b"name,wg_name,password\nbob,s,'secret\n")
    assert line.form["password"] == "'secret"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"bob,s\n", "line 1: a header is needed, with the columns name, wg_name"),
        (b"\n\nname,b_download\n", "line 3: a header is needed, with the columns wg_name"),
        (b"name,wg_name,name\n", "line 1: columns that are there twice: name"),
        (b"\xff\n", "line 1: a header is needed, with the columns name, wg_name"),
    ],
)
def test_a_header_that_cannot_be_right_ends_it(content: bytes, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(content)
    assert caught.value.problems == (text,)


@pytest.mark.parametrize("format_name", ["csv", "jsonl"])
def test_an_empty_file_has_no_lines(format_name: str) -> None:
    assert read(b"", format_name) == read(b"\n \n", format_name) == []


@given(st.binary(max_size=300))
def test_no_bytes_are_more_than_broken_lines(content: bytes) -> None:
    for format_name, first in (("csv", b"name,wg_name\n"), ("jsonl", b"")):
        for line in read(first + content, format_name):
            assert line.number > 0 and (line.problem is None or not line.form)


@pytest.mark.parametrize("format_name", ["csv", "jsonl"])
def test_what_is_written_is_read_as_the_same_account(format_name: str) -> None:
    content = header(format_name) + written([ACCOUNT, ACCOUNT], format_name)
    lines = read(content, format_name)
    assert len(lines) == 2 and lines[0].form == lines[1].form
    new = new_account(lines[0].form)
    for name in ("name", "username", "password", "server", "address", "public_key", "download", "upload", "enabled"):
        assert getattr(new, name) == getattr(ACCOUNT, name), name
    assert new.private_key is None
    if format_name == "jsonl":
        assert list(json.loads(content.splitlines()[0])) == list(COLUMNS)


def test_memory_does_not_grow_with_the_file() -> None:
    class Endless(io.RawIOBase):
        def __init__(self, count: int) -> None:
            self._rows: Iterator[bytes] = iter([b"name,wg_name\n", *[b"bob,server\n"] * count])

        def readline(self, size: int | None = -1) -> bytes:
            return next(self._rows, b"")

    def peak(count: int) -> int:
        lines = Lines(Endless(count), "csv")  # type: ignore[arg-type]
        tracemalloc.start()
        assert sum(1 for _ in lines) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(10_000) < peak(1000) + 20_000


def test_the_format_is_the_named_one_or_that_of_the_name() -> None:
    assert [format_of(path, None) for path in ("a.csv", "b.JSONL")] == ["csv", "jsonl"]
    assert format_of("/dev/stdin", "jsonl") == "jsonl"
    with pytest.raises(ConfigError, match="--format"):
        format_of("accounts.txt", None)


def test_a_file_of_secrets_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    open_private(str(path), overwrite=False).close()
    with pytest.raises(ConfigError, match="it exists already; --force overwrites it"):
        open_private(str(path), overwrite=False)
    path.write_text("old and longer")
    path.chmod(0o644)
    with open_private(str(path), overwrite=True) as file:
        file.write(b"new")
    assert path.read_text() == "new" and os.stat(path).st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="No such file or directory"):
        open_private(str(tmp_path / "nowhere" / "out"), overwrite=True)


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="it is no file"):
            open_private(str(pipe), overwrite=overwrite)
        with pytest.raises(ConfigError, match="Is a directory"):
            open_private(str(tmp_path), overwrite=overwrite)
    assert pipe.is_fifo()


def test_a_key_with_two_values_is_no_line() -> None:
    (line,) = read(b'{"name":"a","wg_name":"s","b_download":"7","b_download":"9"}\n', "jsonl")
    assert line.problem is not None
