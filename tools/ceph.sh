#!/usr/bin/env bash
# An S3 server that is not ours, for the tests and measurements of the S3 store: Ceph's object gateway
# with a monitor and one OSD, all in memory and on loopback.
#
#   tools/ceph.sh PORT MONITOR_PORT FOLDER [ADDRESS [CERTIFICATE KEY]]
#
# runs until SIGTERM or Ctrl-C. It is ready, after some 15 s, when http://127.0.0.1:PORT answers; the
# keys are "test" and "testsecret". FOLDER gets the configuration (ceph.conf) and the logs, and can be
# removed afterwards. Both this and MONITOR_PORT + 1 must be free. The gateway alone listens at
# ADDRESS instead, with TLS where there is a certificate; if it dies, it is started again.
#
# Debian: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
set -euo pipefail
port=${1:?port} monitor_port=${2:?monitor port} folder=$(mkdir -p "${3:?folder}" && cd "$3" && pwd)
address=${4:-127.0.0.1} endpoint="endpoint=${4:-127.0.0.1}:$port" scheme=http
if [ -n "${5:-}" ]; then
  scheme=https endpoint="ssl_endpoint=$address:$port ssl_certificate=$5 ssl_private_key=${6:?key}"
fi
mkdir -p "$folder"/{mon,osd,run,rgw}
fsid=$(cat /proc/sys/kernel/random/uuid)
cat >"$folder/ceph.conf" <<CONF
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:$monitor_port/0,v1:127.0.0.1:$((monitor_port + 1))/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
ms cluster mode = crc
ms service mode = crc
ms client mode = crc
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd crush chooseleaf type = 0
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon max pg per osd = 1000
mon data avail crit = 1
osd objectstore = memstore
memstore device bytes = 4294967296
mon data = $folder/mon
osd data = $folder/osd
crash dir = $folder/run
run dir = $folder/run
admin socket = $folder/run/\$name.\$pid.asok
pid file = $folder/run/\$name.pid
log file = $folder/\$name.log
keyring = $folder/keyring
[client.rgw.a]
rgw frontends = beast $endpoint
rgw data = $folder/rgw
keyring = $folder/keyring
rgw enable usage log = false
CONF
with=(-c "$folder/ceph.conf")
pids=() gateway=
stop() { # in memory: there is nothing that an orderly end would save
  trap - EXIT
  kill -9 "${pids[@]}" $gateway 2>/dev/null || true
  wait
}
trap stop EXIT
trap 'exit 0' TERM INT

ceph-authtool --create-keyring "$folder/keyring" --gen-key -n mon. --cap mon 'allow *' >/dev/null
for name in client.admin client.rgw.a; do
  ceph-authtool "$folder/keyring" --gen-key -n "$name" \
    --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
done
monmaptool --create --fsid "$fsid" "$folder/monmap" >/dev/null \
  --addv a "[v2:127.0.0.1:$monitor_port,v1:127.0.0.1:$((monitor_port + 1))]"
ceph-mon "${with[@]}" -i a --mkfs --monmap "$folder/monmap" --keyring "$folder/keyring"
ceph-mon "${with[@]}" -i a -f >"$folder/mon.out" 2>&1 &
pids+=($!)
osd=$(cat /proc/sys/kernel/random/uuid)
# By the system's Python, which has the command's bindings.
timeout 60 /usr/bin/python3 "$(command -v ceph)" "${with[@]}" osd new "$osd" >/dev/null
timeout 60 ceph-osd "${with[@]}" -i 0 --mkfs --osd-uuid "$osd"
ceph-osd "${with[@]}" -i 0 -f >"$folder/osd.out" 2>&1 &
pids+=($!)
timeout 120 radosgw-admin "${with[@]}" -n client.rgw.a user create --uid=test --display-name=test \
  --access-key=test --secret=testsecret >"$folder/user.json"
echo "S3 on $scheme://$address:$port"
while :; do
  radosgw "${with[@]}" -n client.rgw.a -f >>"$folder/rgw.out" 2>&1 &
  gateway=$!
  wait $gateway || sleep 1
done
