#!/bin/bash
# Boots systemd over this machine's files, in namespaces of its own, and runs one command there as a service. As root.
#
#   tests/system/booted.sh FOLDER COMMAND...
#
# What the booted system sees: this machine's / under an overlay whose writes are lost, FOLDER as it is, the checkout and
# its .venv in /opt/wirelane (no unit can see one in /home), our units, users and configuration as `setup --install` puts
# them; none of this machine's own services. Its own PID 1, network, /proc, /sys, /dev, /run, cgroups; the same kernel,
# whose settings outside /proc/sys/net are this machine's: open them, write nothing. Output of the command: FOLDER/output;
# of systemd: FOLDER/console. It ends with the command, or with this script.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=wirelane-booted.target

if [ -z "${WIRELANE_BOOTED-}" ]; then
  WIRELANE_BOOTED=cgroup exec unshare --mount --propagation private -- "$0" "$@"
fi

if [ "$WIRELANE_BOOTED" = cgroup ]; then
  mount -t cgroup2 cgroup2 /mnt # wherever this machine has it, or has it not
  cgroup=$(mktemp -d /mnt/wirelane-booted.XXXXXX)
  trap 'find "$cgroup" -depth -type d -exec rmdir {} +' EXIT
  export WIRELANE_BOOTED=inside
  (
    echo "$BASHPID" > "$cgroup/cgroup.procs"
    exec setpriv --pdeathsig KILL unshare --cgroup --mount --pid --net --uts --ipc --fork --kill-child \
      --propagation private -- "$0" "$@"
  )
  exit
fi

folder=$1
shift
umount /mnt
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/{upper,work,venv-upper,venv-work,new}
new=/mnt/new
mount -t overlay overlay -o "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work" $new
mount -t proc proc $new/proc
mount -t sysfs sysfs $new/sys # of this network namespace
mount -t cgroup2 cgroup2 $new/sys/fs/cgroup
mount -t tmpfs -o mode=1777 tmpfs $new/tmp
for name in run dev; do mount -t tmpfs -o mode=755 tmpfs $new/$name; done
mkdir $new/dev/{pts,shm,net} $new/run/booted
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 net/tun:10:200; do
  IFS=: read -r name major minor <<< "$node"
  mknod -m 666 "$new/dev/$name" c "$major" "$minor"
done
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts $new/dev/pts
ln -s pts/ptmx $new/dev/ptmx
: > "$folder/console"
touch $new/dev/console
mount --bind "$folder/console" $new/dev/console
mount --bind "$folder" $new/run/booted

rm -rf $new/opt/wirelane $new/etc/wirelane $new/var/lib/wirelane-{agent,gateway}
mkdir -p $new/opt/wirelane/{checkout,.venv}
mount --bind -o ro "$root" $new/opt/wirelane/checkout
mount -t overlay overlay -o "lowerdir=$root/.venv,upperdir=/mnt/venv-upper,workdir=/mnt/venv-work" $new/opt/wirelane/.venv
sed -i '1s,.*,#!/opt/wirelane/.venv/bin/python,' $new/opt/wirelane/.venv/bin/wirelane-{agent,gateway}
echo /opt/wirelane/checkout > "$(echo $new/opt/wirelane/.venv/lib/python3*/site-packages)/booted.pth"
install -D -t $new/etc/wirelane "$root"/systemd/*.toml
for kind in sysusers tmpfiles; do install -D -t "$new/etc/$kind.d" -m 644 "$root/systemd/$kind.d/wirelane.conf"; done
rm -rf $new/etc/systemd/system $new/etc/fstab
install -D -t $new/etc/systemd/system -m 644 "$root"/systemd/*.service
printf '[Unit]\nRequires=sysinit.target wirelane-booted.service\nAfter=sysinit.target\n' > $new/etc/systemd/system/$target
cat > $new/etc/systemd/system/wirelane-booted.service << UNIT
[Unit]
After=sysinit.target systemd-sysusers.service systemd-tmpfiles-setup.service
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=$*
StandardOutput=file:/run/booted/output
StandardError=file:/run/booted/output
UNIT

cd $new
pivot_root . mnt
umount -l /mnt
mount --make-rshared / # as PID 1 of a machine does; without it no service sees its credentials
hostname booted
ip link set lo up
exec env -i container=wirelane PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
  /lib/systemd/systemd --unit=$target --log-target=console --show-status=0
