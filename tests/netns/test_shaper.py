"""Shaping on a real kernel: what is applied is read back, and strangers are left alone."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from agent.errors import KernelError
from agent.kernel.host.scratch import NoNamespace, in_scratch_namespace
from agent.kernel.tc import shaper
from agent.model import minor
from agent.objects import Class, Diff, Qdisc, Scope
from tests.netns.shaped_box import DEVICE, SCOPE, Box, classes, make_box


@pytest.fixture
def box(make_namespace: Callable[[], str]) -> Iterator[Box]:
    with make_box(make_namespace) as made:
        yield made


# -- root qdisc and classifier ------------------------------------------------------------------------------------


def test_what_is_not_there_is_not_read(box: Box) -> None:
    assert box.run(box.qdiscs.read, SCOPE) == {}
    assert box.read() == {}


def test_root_and_classifier_are_made_and_read_back(box: Box) -> None:
    box.add_root()
    assert box.run(box.qdiscs.read, SCOPE) == {DEVICE: Qdisc(DEVICE)}
    root = box.root()
    assert (root["kind"], root["handle"], root["options"]["default"]) == ("htb", "1:", "0")
    filters = json.loads(box.tc(f"-j filter show dev {DEVICE}"))
    assert [(item["kind"], item["protocol"]) for item in filters if "options" in item] == [("bpf", "all")]


def test_applying_again_touches_nothing(box: Box) -> None:
    box.add_root()
    wanted = box.put({0x109: 20})
    box.send(109, 3)
    before = box.tc(f"-s -d class show dev {DEVICE}"), box.tc(f"filter show dev {DEVICE}"), box.root()
    box.add_root()
    box.put({0x109: 20})
    after = box.tc(f"-s -d class show dev {DEVICE}"), box.tc(f"filter show dev {DEVICE}"), box.root()
    assert after == before
    assert box.read() == wanted


def test_a_root_of_ours_is_found_on_a_former_uplink_right_or_not_and_no_strangers(box: Box) -> None:
    box.add_root()
    box.put({0x109: 20})
    elsewhere = Scope(frozenset(), "absent0")
    for name, root in (("other0", "handle 1: htb default 0"), ("other1", "handle 8: pfifo limit 77")):
        box.command(*f"ip link add {name} type bridge".split())
        box.command(*f"ip link set {name} up".split())
        box.tc(f"qdisc add dev {name} root {root}")
    assert box.run(box.qdiscs.read, elsewhere) == {DEVICE: Qdisc(DEVICE)}
    box.tc(f"filter del dev {DEVICE}")
    found = box.run(box.qdiscs.read, elsewhere)
    assert found == {DEVICE: Qdisc(DEVICE)}
    assert box.run(box.qdiscs.apply, Diff(remove=found)) == {}
    assert box.root()["handle"] != "1:"
    assert box.run(box.qdiscs.read, elsewhere) == {}


@pytest.mark.parametrize(
    "lines",
    [
        ["qdisc add dev {} root handle 8: pfifo limit 77"],
        ["qdisc add dev {} root handle 1: tbf rate 5mbit burst 20k latency 50ms"],
        ["qdisc add dev {} root handle 2: htb default 0"],
        ["qdisc add dev {} root handle 1: htb default 10"],
        [
            "qdisc add dev {} root handle 1: htb default 0",
            "class add dev {} parent 1: classid 1:109 htb rate 3mbit quantum 1600",
        ],
        [
            "qdisc add dev {} root handle 1: htb default 0",
            "filter add dev {} parent 1: protocol ip u32 match ip dst 192.0.2.9 flowid 1:9",
        ],
    ],
)
def test_a_strangers_root_is_refused_by_name_and_left_alone(box: Box, lines: list[str]) -> None:
    for line in lines:
        box.tc(line.format(DEVICE))
    shown = [f"-d qdisc show dev {DEVICE}", f"-d class show dev {DEVICE}", f"filter show dev {DEVICE}"]
    before = [box.tc(line) for line in shown]
    errors = box.run(box.qdiscs.apply, Diff(add={DEVICE: Qdisc(DEVICE)}))
    assert set(errors) == {DEVICE}
    root = box.root()
    for word in (DEVICE, f"{root['kind']} {root['handle']}", f"`tc qdisc del dev {DEVICE} root`"):
        assert word in str(errors[DEVICE])
    assert not errors[DEVICE].retry
    assert box.run(box.qdiscs.read, SCOPE) == {}
    assert box.read() == {}
    refused = box.run(box.classes.apply, Diff(add=classes({0x110: 5}), change=classes({0x109: 5})))
    assert set(refused) == {(DEVICE, 0x109), (DEVICE, 0x110)}
    assert box.run(box.classes.apply, Diff(remove=classes({0x109: 3}))) == {}
    assert box.run(box.qdiscs.apply, Diff(remove={DEVICE: Qdisc(DEVICE)})) == {}
    assert box.run(shaper.class_text, DEVICE, 0x109) is None
    assert [box.tc(line) for line in shown] == before


def test_an_empty_half_made_root_is_completed(box: Box) -> None:
    box.tc(f"qdisc add dev {DEVICE} root handle 1: htb default 0 r2q 17")
    before = box.root()
    assert box.run(box.qdiscs.read, SCOPE) == {}
    box.add_root()
    assert box.run(box.qdiscs.read, SCOPE) == {DEVICE: Qdisc(DEVICE)}
    assert box.root() == before  # not made anew: r2q is still 17
    assert box.put({0x109: 20}) == box.read()


@pytest.mark.parametrize(
    "lines",
    [
        ["filter del dev {}"],
        ["filter add dev {} parent 1: protocol ip prio 7 u32 match ip dst 192.0.2.9 flowid 1:9"],
        ["filter del dev {}", "filter add dev {} parent 1: protocol ip prio 1 u32 match ip dst 192.0.2.9 flowid 1:9"],
        ["filter del dev {}", "filter add dev {} parent 1: protocol all prio 1 bpf bytecode 1,6_0_0_65545"],
        ["filter add dev {} parent 1: protocol all prio 1 handle 9 bpf bytecode 1,6_0_0_65545"],
    ],
)
def test_a_changed_classifier_is_repaired_on_the_running_root(box: Box, lines: list[str]) -> None:
    box.add_root()
    wanted = box.put({0x109: 20})
    box.send(109, 2)
    before = box.run(shaper.class_text, DEVICE, 0x109)
    for line in lines:
        box.command("tc", *(word.replace("_", " ") for word in line.format(DEVICE).split()))
    assert box.run(box.qdiscs.read, SCOPE) == {}
    assert box.read() == wanted  # still ours
    box.add_root()
    assert box.run(box.qdiscs.read, SCOPE) == {DEVICE: Qdisc(DEVICE)}
    assert box.run(shaper.class_text, DEVICE, 0x109) == before
    filters = json.loads(box.tc(f"-j filter show dev {DEVICE}"))
    assert len([item for item in filters if "options" in item]) == 1


def test_removing_the_qdisc_brings_the_kernels_default_back(box: Box) -> None:
    before = box.root()
    box.add_root()
    box.put({0x109: 20})
    assert box.run(box.qdiscs.apply, Diff(remove={DEVICE: Qdisc(DEVICE)})) == {}
    assert box.root() == before


def test_what_is_gone_is_removed_already(box: Box) -> None:
    gone = Diff(remove={DEVICE: Qdisc(DEVICE), "absent0": Qdisc("absent0")})
    assert box.run(box.qdiscs.apply, gone) == {}
    lost = {("absent0", 0x109): Class("absent0", 0x109, 1), **classes({0x109: 1})}
    assert box.run(box.classes.apply, Diff(remove=lost)) == {}
    box.add_root()
    assert box.run(box.classes.apply, Diff(remove=lost)) == {}


def test_a_device_that_is_not_there_spoils_only_itself(box: Box) -> None:
    errors = box.run(box.qdiscs.apply, Diff(add={"absent0": Qdisc("absent0"), DEVICE: Qdisc(DEVICE)}))
    assert {device: str(error) for device, error in errors.items()} == {"absent0": "absent0: no such interface"}
    wanted = {("absent0", 0x109): Class("absent0", 0x109, 1), **classes({0x109: 1})}
    errors = box.run(box.classes.apply, Diff(add=wanted))
    assert set(errors) == {("absent0", 0x109)}
    assert box.read() == classes({0x109: 1})


def test_both_work_on_a_device_that_is_down(box: Box) -> None:
    box.command("ip", "link", "set", DEVICE, "down")
    box.add_root()
    assert box.run(box.qdiscs.read, SCOPE) == {DEVICE: Qdisc(DEVICE)}
    assert box.put({0x109: 20}) == box.read()


# -- classes ------------------------------------------------------------------------------------------------------

RATES = (*range(1, 130), 622, 999, 1000, 1001, 2500, 3333, 9999, 10_000)


def test_classes_read_back_as_written(box: Box) -> None:
    box.add_root()
    wanted = box.put({minor(mark): rate for mark, rate in zip(range(100, 9999), RATES, strict=False)} | {0xFFFE: 7})
    assert len(wanted) == len(RATES) + 1
    assert box.read() == wanted


def test_a_thousand_rates_are_changed_in_one_go(box: Box) -> None:
    box.add_root()
    box.put(dict.fromkeys(range(0x100, 0x100 + 1000), 20))
    slower = classes(dict.fromkeys(range(0x100, 0x100 + 1000), 3))
    assert box.run(box.classes.apply, Diff(change=slower)) == {}
    assert box.read() == slower
    assert box.run(box.classes.apply, Diff(remove=slower)) == {}
    assert box.read() == {}


@pytest.mark.parametrize(
    "line",
    [
        "class change dev {} classid 1:109 htb rate 20mbit ceil 21mbit burst 15k cburst 15k quantum 3028",
        "class change dev {} classid 1:109 htb rate 20mbit burst 30k cburst 15k quantum 3028",
        "class change dev {} classid 1:109 htb rate 20mbit burst 15k cburst 30k quantum 3028",
        "class change dev {} classid 1:109 htb rate 20mbit burst 15k cburst 15k quantum 3029",
        "class change dev {} classid 1:109 htb rate 20mbit burst 15k cburst 15k quantum 3028 prio 1",
        "class change dev {} classid 1:109 htb rate 20001kbit burst 15k cburst 15k quantum 3028",
        "qdisc del dev {} parent 1:109",
        "qdisc change dev {} parent 1:109 handle 109: {kind} limit 77777",
        "qdisc replace dev {} parent 1:109 handle 10a: {kind}",
        "qdisc replace dev {} parent 1:109 handle 7: pfifo limit 10",
        "qdisc replace dev {} parent 1:109 pfifo limit 10",
    ],
)
def test_a_class_that_is_not_as_made_is_told_and_repaired(box: Box, line: str) -> None:
    box.add_root()
    wanted = box.put({0x109: 20, 0x110: 5})
    box.tc(line.format(DEVICE, kind=box.run(shaper.leaf_kind)))
    found = box.read()
    assert found == {**wanted, **classes({0x109: shaper.WRONG})}
    assert box.run(box.classes.apply, Diff(change={(DEVICE, 0x109): wanted[DEVICE, 0x109]})) == {}
    assert box.read() == wanted


def test_a_leaf_of_another_kind_under_our_handle_is_replaced(box: Box) -> None:
    box.add_root()
    wanted = box.put({0x109: 20})
    box.tc(f"qdisc del dev {DEVICE} parent 1:109")
    box.tc(f"qdisc add dev {DEVICE} parent 1:109 handle 109: pfifo limit 10")
    assert box.read() == classes({0x109: shaper.WRONG})
    assert box.run(box.classes.apply, Diff(change=wanted)) == {}
    assert box.read() == wanted


def test_strangers_classes_on_our_root_are_listed_and_removed(box: Box) -> None:
    box.add_root()
    wanted = box.put({0x109: 20})
    box.tc(f"class add dev {DEVICE} parent 1: classid 1:5 htb rate 1mbit quantum 1600")
    box.tc(f"class add dev {DEVICE} parent 1:109 classid 1:6 htb rate 1mbit quantum 1600")
    found = box.read()
    assert set(found) == {(DEVICE, 0x109), (DEVICE, 5), (DEVICE, 6)}
    assert {item.rate for item in found.values()} == {shaper.WRONG}
    strangers = {key: item for key, item in found.items() if key[1] < 0x100}
    assert box.run(box.classes.apply, Diff(change=wanted, remove=strangers)) == {}
    assert box.read() == wanted


def test_a_class_the_kernel_refuses_spoils_only_itself(box: Box) -> None:
    """The leaf of minor 1 would need the root's own handle."""
    box.add_root()
    errors = box.run(box.classes.apply, Diff(add=classes({0x109: 1, 1: 1, 0x110: 1})))
    assert set(errors) == {(DEVICE, 1)}
    assert str(errors[DEVICE, 1]).startswith(f"class 1:1 on {DEVICE}: ")
    assert box.read() == classes({0x109: 1, 1: shaper.WRONG, 0x110: 1})


# -- what the kernel can do ---------------------------------------------------------------------------------------


def test_leaf_kind_is_what_the_kernel_makes(box: Box) -> None:
    made = subprocess.run(
        ["ip", "netns", "exec", box.namespace, "tc", "qdisc", "add", "dev", "lo", "root", "fq_codel"],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert shaper.leaf_kind() == ("fq_codel" if made.returncode == 0 else "bfifo")


def test_leaf_kind_is_found_without_leave_to_make_a_namespace(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = shaper.leaf_kind()

    def refuse(*_: object) -> bool:
        raise NoNamespace("no")

    monkeypatch.setattr(shaper, "in_scratch_namespace", refuse)
    assert box.run(shaper.leaf_kind.__wrapped__) == wanted
    assert json.loads(box.command("tc", "-j", "qdisc", "show", "dev", "lo"))[0]["kind"] == "noqueue"


def test_a_trial_leaves_no_trace(box: Box) -> None:
    before = box.tc("qdisc show")
    box.run(shaper.leaf_kind.__wrapped__)
    assert box.tc("qdisc show") == before


def test_a_trial_that_hangs_ends_with_an_error() -> None:
    with pytest.raises(KernelError, match="longer than"):
        in_scratch_namespace(lambda: time.sleep(1), 0.2)


# -- what has no class ---------------------------------------------------------------------------------------------


def test_what_has_no_class_passes_whatever_the_length_of_the_interface_s_own_queue(box: Box) -> None:
    box.command("ip", "link", "set", DEVICE, "txqueuelen", "0")
    box.add_root()
    assert "direct_qlen 1000" in box.tc(f"qdisc show dev {DEVICE}")


def test_a_root_that_drops_what_has_no_class_is_made_anew_with_its_classes(box: Box) -> None:
    box.add_root()
    wanted = box.put({0x109: 20})
    sign = box.root()["options"]["r2q"]
    box.tc(f"qdisc del dev {DEVICE} root")
    box.tc(f"qdisc add dev {DEVICE} root handle 1: htb default 0 r2q {sign} direct_qlen 0")
    assert box.run(box.qdiscs.read, SCOPE) == {} and box.read() == {}, "all of it is to be made"
    box.add_root()
    assert "direct_qlen 1000" in box.tc(f"qdisc show dev {DEVICE}")
    assert box.put({0x109: 20}) == wanted and box.read() == wanted


@pytest.mark.parametrize("name", ["lo", "wan0", "absent0"])
def test_the_uplink_is_a_real_interface_under_its_own_name(box: Box, name: str) -> None:
    from agent.kernel.host.interfaces import uplink

    box.command("ip", "link", "property", "add", "dev", DEVICE, "altname", "wan0")
    box.command("ip", "route", "add", "default", "dev", DEVICE)
    if name == "wan0":
        assert box.run(uplink, name) == DEVICE
    else:
        with pytest.raises(
            KernelError, match="leads nowhere" if name == "lo" else f"the default route goes by {DEVICE}"
        ):
            box.run(uplink, name)
