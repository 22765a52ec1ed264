#!/bin/sh
# The life of the program on a box without systemd running: installed, installed again, used, removed. Changes the whole
# machine, so only where that is thrown away or kept for it: called by the rung `release`, in its chroot.
set -eu
cd "$(dirname "$0")/../.."
[ "${WIRELANE_THROWAWAY-}" = yes ] || { echo "box: this changes /etc, /opt and /var; WIRELANE_THROWAWAY=yes says that it may" >&2; exit 2; }

failed() { echo "box: $*" >&2; exit 1; }

scripts/setup --uninstall > /dev/null # of a run that was cut off
rm -rf /etc/wirelane /var/lib/wirelane-agent /var/lib/wirelane-gateway
scripts/setup --install --gateway-only > /dev/null
[ ! -e /etc/systemd/system/wirelane-agent.service ] && [ ! -e /etc/wirelane/agent.toml ] || failed "--gateway-only brought an agent"
wirelane-gateway node list | grep -q local && failed "--gateway-only registered a node"
scripts/setup --install
for program in wirelane-agent wirelane-gateway; do
  [ "$(command -v $program)" = "/usr/local/bin/$program" ] || failed "$program is not in PATH"
  $program --version | grep -q "^$program [0-9]" || failed "$program --version"
  $program check > /dev/null || failed "$program check"
done
wirelane-gateway node list | grep -q '^local ' || failed "this box is not registered"
again=$(scripts/setup --install)
echo "$again" | grep -qE 'writing|linking|installing|registering' && failed "a second --install did something: $again"
key=$(wirelane-gateway key add billing --ip 192.0.2.10 2> /dev/null)
[ ${#key} = 80 ] || failed "no access key"
[ "$(stat -c '%U %a' /var/lib/wirelane-gateway/gateway.db)" = "wirelane-gateway 600" ] || failed "whose file is gateway.db"

# A node on another host, in one command; the gateway is the one that was just installed.
token=$(mktemp) # 0600
wirelane-gateway node add far --address 127.0.0.1:7443 --gateway http://127.0.0.1:8080 > "$token" 2> /dev/null
runuser -u wirelane-gateway -- wirelane-gateway serve 2> /dev/null &
serving=$!
trap 'kill $serving' EXIT
for _ in 1 2 3 4 5 6 7 8 9 10; do runuser -u wirelane-gateway -- /opt/wirelane/.venv/bin/python -c "import socket; socket.create_connection((\"127.0.0.1\", 8080))" 2> /dev/null && break || sleep 1; done
joined=$(head -c 60 "$token" | scripts/setup --install --agent-only --join - 2>&1 || true)
echo "$joined" | grep -q "copy it again, whole" || failed "half a token was taken: $joined"
joined=$(scripts/setup --install --agent-only --join - < "$token")
echo "$joined" | grep -q "this host is node far" || failed "this host did not become a node: $joined"
rm "$token"
[ "$(stat -c '%U %a' /var/lib/wirelane-agent/identity/identity.pem)" = "root 600" ] || failed "whose file is identity.pem"
grep -q '^listen_fleet = "0.0.0.0:7443"$' /etc/wirelane/agent.toml || failed "listen_fleet is not set"
wirelane-gateway node list | grep '^far ' | grep -q "nothing listens at 127.0.0.1:7443" || failed "node list does not say that the agent is off"
kill $serving
wait $serving || true
trap - EXIT

echo "# mine" >> /etc/wirelane/agent.toml
scripts/setup --uninstall
left=$(find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /root -o -path /wirelane -o -path /venv -o -path /mnt -o -path /etc/postgresql-common \) -prune -o \
  -iname '*wirelane*' -print | grep -vE '^/(etc/wirelane|var/lib/wirelane-(agent|gateway))(/|$)' || true)
[ -z "$left" ] || failed "still there after --uninstall: $left"
grep -q '# mine' /etc/wirelane/agent.toml && [ -s /var/lib/wirelane-gateway/gateway.db ] || failed "configuration or data are gone"
scripts/setup --install > /dev/null
wirelane-gateway key list | grep -q '^billing ' || failed "what was known before is not known after it came back"
scripts/setup --uninstall > /dev/null
echo "box: installed, installed again, used, removed, and back: all held"
