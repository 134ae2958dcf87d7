#!/usr/bin/env bash
# The secrets and settings of a farm on several machines: a folder for each host, its /etc/farm.
#
#   infra/make-secrets.sh FOLDER DATA HEAD WORKER...
#
# The hosts are IP addresses. From the environment: FARM_STORE, AWS_ACCESS_KEY_ID and
# AWS_SECRET_ACCESS_KEY; and if they should not be as below, FARM_CHECKPOINTS, FARM_WORKERS,
# FARM_WORKER_GPUS and FARM_WORKER_CPUS. Called again, it adds workers that are new. It takes OpenSSL
# 1.1.1 or newer.
set -euo pipefail
umask 077
[ $# -ge 4 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
folder=$1 data=$2 head=$3 workers=("${@:4}")
infra=$(cd "$(dirname "$0")" && pwd)

new() { openssl rand -hex 32; }
# An address as it stands before a port.
at() { case $1 in *:*) echo "[$1]" ;; *) echo "$1" ;; esac; }
digest() { printf %s "$1" | sha256sum | cut -d' ' -f1; }

# What every host has: a certificate, and whom to trust.
host() {
  mkdir "$1"
  cp ca.pem "$1"
  openssl req -new -newkey rsa:2048 -nodes -subj "/CN=$1" -keyout "$1/host.key" 2>/dev/null |
    openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 -out "$1/host.pem" \
      -extfile <(printf '%s\n' "subjectAltName=IP:$1" keyUsage=critical,digitalSignature \
        authorityKeyIdentifier=keyid subjectKeyIdentifier=hash) 2>/dev/null
  printf 'NODE_ADDRESS=%s\n' "$1" >"$1/farm.env"
}

# What Ray's nodes have: one token, and TLS between their processes.
node() {
  cp ray-token "$1"
  cat >>"$1/farm.env" <<END
RAY_ADDRESS=$(at "$head"):6379
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN_PATH=/etc/farm/ray-token
RAY_USAGE_STATS_ENABLED=0
RAY_USE_TLS=1
RAY_TLS_SERVER_CERT=/etc/farm/host.pem
RAY_TLS_SERVER_KEY=/etc/farm/host.key
RAY_TLS_CA_CERT=/etc/farm/ca.pem
END
}

if [ -d "$folder" ] && [ ! -f "$folder/without-ray.env" ]; then
  echo "$folder is not whole, since an earlier run failed: remove it" >&2
  exit 1
elif [ -d "$folder" ]; then
  cd "$folder"
  for worker in "${workers[@]}"; do
    if [ ! -d "$worker" ]; then
      host "$worker"
      node "$worker"
      echo "$folder/$worker is new"
    fi
  done
  exit
fi

: "${FARM_STORE:?names the bucket: s3://BUCKET/PREFIX?endpoint_url=https://HOST}"
: "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}"
mkdir "$folder"
cd "$folder"
openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=farm -keyout ca.key -out ca.pem \
  -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
new >ray-token
for one in $(printf '%s\n' "$data" "$head" "${workers[@]}" | sort -u); do host "$one"; done
for one in $(printf '%s\n' "$head" "${workers[@]}" | sort -u); do node "$one"; done

# The queue: its users, and its server's settings.
farm=$(new) worker=$(new)
sed "/^user farm/s/PASSWORD_SHA256/$(digest "$farm")/; /^user worker/s/PASSWORD_SHA256/$(digest "$worker")/" \
  "$infra/valkey/users.acl" >"$data/users.acl"
cp "$infra/valkey/valkey.conf" "$data"
queue="$(at "$data"):6380/0?ssl_ca_certs=/etc/farm/ca.pem"

# What renders: where the store is. One with a certificate of this authority is told by its address.
cat >store.env <<END
FARM_STORE=$FARM_STORE
AWS_ACCESS_KEY_ID=$AWS_ACCESS_KEY_ID
AWS_SECRET_ACCESS_KEY=$AWS_SECRET_ACCESS_KEY
FARM_CHECKPOINTS=${FARM_CHECKPOINTS:-shapes-64}
END
case $FARM_STORE in *"endpoint_url=https://$(at "$data")"*) echo AWS_CA_BUNDLE=/etc/farm/ca.pem >>store.env ;; esac

# Gateway and scheduler.
new >api-key
printf '{"%s": {"tenant": "me"}}\n' "$(digest "$(cat api-key)")" >"$head/keys.json"
cat store.env - >>"$head/farm.env" <<END
REDIS_URL=rediss://farm:$farm@$queue
FARM_WORKERS=${FARM_WORKERS:-${#workers[@]}}
FARM_WORKER_GPUS=${FARM_WORKER_GPUS:-1}
FARM_WORKER_CPUS=${FARM_WORKER_CPUS:-1}
FARM_HOST=$head
FARM_PORT=8400
FARM_KEYS=/etc/farm/keys.json
FARM_SECRET=$(new)
FARM_TLS_CERT=/etc/farm/host.pem
FARM_TLS_KEY=/etc/farm/host.key
END

# For hosts with workers but without Ray.
cat store.env - >without-ray.env <<END
REDIS_URL=rediss://worker:$worker@$queue
END
rm store.env
echo "$folder has a folder for each host; what is beside them belongs to you"
