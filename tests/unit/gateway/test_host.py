"""gateway/host.py: what GET /system/info says of the gateway's own host."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import host

KEYS = {
    *("cpu_model", "cpu_threads", "cpu_used_load1", "cpu_used_load5", "cpu_used_load15", "hostname", "memory_total"),
    *("memory_used", "memory_free", "memory_used_percent", "os_architecture", "os_name", "timezone"),
}
X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.60GHz\n"
ARM = "processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"


def test_this_host_is_told_in_texts() -> None:
    found = host.described("Europe/Berlin")
    assert set(found) == KEYS and all(isinstance(value, str) and value for value in found.values())
    assert int(found["memory_total"]) == int(found["memory_used"]) + int(found["memory_free"])
    assert found["timezone"] == "Europe/Berlin"


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [(X86, "Intel(R) Xeon(R) CPU @ 2.60GHz"), (ARM, "Raspberry Pi 4 Model B Rev 1.4"), ("processor\t: 0\n", "")],
)
def test_processor_memory_and_load_are_read_as_the_kernel_spells_them(tmp_path: Path, cpuinfo: str, model: str) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    (tmp_path / "meminfo").write_text(
        "MemTotal:        2048 kB\nMemFree:  12 kB\nMemAvailable:   512 kB\nHugePages_Total:  0\n"
    )
    (tmp_path / "loadavg").write_text("0.20 1.18 12.01 2/345 678\n")
    found = host.described("UTC", tmp_path)
    assert found["cpu_model"] == (model or found["os_architecture"])
    assert [found[f"memory_{what}"] for what in ("total", "used", "free", "used_percent")] == [
        *("2097152", "1572864", "524288"),
        "75.0",
    ]
    assert [found[f"cpu_used_load{minutes}"] for minutes in (1, 5, 15)] == ["0.20", "1.18", "12.01"]


def test_a_host_has_an_identity_that_does_not_tell_its_number(tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    assert host.identity(file) == ""
    file.write_text("\n")
    assert host.identity(file) == ""
    file.write_text("b08dfa6083e7567a1921a715000001fb\n")
    first = host.identity(file)
    assert len(first) == 32 and first != "b08dfa6083e7567a1921a715000001fb" and host.identity(file) == first
    file.write_text("b08dfa6083e7567a1921a715000001fc\n")
    assert host.identity(file) != first
