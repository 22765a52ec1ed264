#!/bin/busybox sh
# First program of the VM (/init of the initramfs that vm.py packs): mounts the host's / over 9p, read-only, under a
# tmpfs overlay, and makes it the root. Everything that is written is lost at the end, but what is shared by --share.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
die() { echo "vm: FAILED: $*" > /dev/console; $B poweroff -f; }
while read -r module; do $B insmod "/modules/$module" || die "insmod $module"; done < /modules/order

P9=trans=virtio,version=9p2000.L,msize=512000
$B mount -t 9p -o ro,cache=loose,$P9 root /lower || die "the host's root over 9p"
$B mount -t tmpfs -o size=75%,mode=755 upper /upper || die tmpfs
$B mkdir /upper/files /upper/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work over /new || die overlay
for folder in proc sys dev run mnt; do $B mkdir -p /new/$folder; done
$B mount -t proc proc /new/proc
$B mount -t sysfs sys /new/sys
$B mount -t devtmpfs dev /new/dev
$B mkdir -p /new/dev/pts /new/dev/shm
$B mount -t devpts -o mode=620,ptmxmode=666 devpts /new/dev/pts
$B mount -t tmpfs -o mode=1777 shm /new/dev/shm
$B mount -t tmpfs -o mode=755 run /new/run # hides the host's namespaces, sockets and locks
$B mount -t tmpfs -o mode=755 mnt /new/mnt
$B mkdir -p /new/run/lock /new/run/netns /new/run/vm
$B mount -t cgroup2 cgroup /new/sys/fs/cgroup
$B mount -t bpf bpf /new/sys/fs/bpf
$B mount -t 9p -o rw,cache=none,$P9 control /new/run/vm || die "the control folder over 9p"

version=$($B uname -r)
$B mkdir -p "/new/usr/lib/modules/$version"
$B mount --bind "/lower$($B cat /new/run/vm/modules)" "/new/usr/lib/modules/$version" || die "kernel modules"
i=0
while read -r folder; do
  $B mkdir -p "/new$folder"
  $B mount -t 9p -o rw,cache=none,$P9 share$i "/new$folder" || die "share $folder"
  i=$((i + 1))
done < /new/run/vm/shares
for port in /sys/class/virtio-ports/*; do
  read -r name < "$port/name"
  $B ln -s "/dev/${port##*/}" "/new/run/port.$name"
done
$B ip link set lo up
$B hostname vm
$B umount /proc /sys /dev 2> /dev/null
# PID 1 itself changes the root: kernel threads share its root, and only then does the kernel's own module loading
# (`ip link add ... type wireguard`) find /sbin/modprobe.
exec $B switch_root /new /bin/bash /run/vm/start
