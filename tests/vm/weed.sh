# shellcheck shell=sh
# weed.sh - a real S3 server (SeaweedFS) for tests. Sourced by sh or bash; works in the guest (busybox sh; pass
# `--bin weed` to `run`) and on the host.
#
#   weed_start FOLDER PORT     starts it with all its state in FOLDER (made if missing; an earlier state is kept)
#                              and returns when objects can be written: S3 at http://127.0.0.1:PORT, access key
#                              `testkey`, secret `testsecret0123`, path-style addresses, any region
#   weed_bucket NAME [FOLDER]  makes an empty bucket, if there is none
#   weed_stop [FOLDER]         ends it, at once and for certain; no error if it does not run
#
# FOLDER is that of the last weed_start in this shell, if not given. Each returns non-zero, with a message, on
# failure. The log is FOLDER/weed.log, the process id FOLDER/weed.pid. It uses the ports PORT to PORT+7, all on
# 127.0.0.1, so several can run side by side. It reports to nobody: its telemetry is on by default, and off here.
# Needs busybox for its wget, for a host may have no other client.

weed_cache="${ZFS_BACKUP_CACHE:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/zfs-backup}"

weed_start() {
  mkdir -p "$1/data" && WEED_FOLDER=$(cd "$1" && pwd) || return
  if [ -x "$weed_cache/venv/bin/weed" ]; then weed_program=$weed_cache/venv/bin/weed; else weed_program=weed; fi
  command -v "$weed_program" >/dev/null || { echo "weed_start: no weed; run scripts/deps" >&2; return 1; }
  weed_stop
  echo "$2" >"$WEED_FOLDER/weed.port"
  cat >"$WEED_FOLDER/identities.json" <<END
{"identities": [{"name": "test", "credentials": [{"accessKey": "testkey", "secretKey": "testsecret0123"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
END
  # One volume at a time for each bucket, where seven are usual: each is a file, and they are limited.
  printf '[master.volume_growth]\ncopy_1 = 1\n' >"$WEED_FOLDER/master.toml"
  : >"$WEED_FOLDER/weed.log" # what an earlier run wrote must not be taken for this one's
  # In that folder, for it reads master.toml from there. Ports default to 10000 more for grpc: too far apart to
  # keep two servers from meeting. Iceberg and Lance are further services with fixed ports. With an earlier state it
  # waits for an election, 10 s if not told otherwise. In User-Mode Linux the kernel ends a process that holds more than
  # about 256 MiB: Go is told to collect its garbage early.
  (
    export GOMEMLIMIT=96MiB GOGC=50
    cd "$WEED_FOLDER" && exec "$weed_program" -logtostderr=true server -dir="$WEED_FOLDER/data" \
      -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false -master.electionTimeout=1s \
      -master.volumeSizeLimitMB=64 -volume.max=60 \
      -filer -s3 -s3.config="$WEED_FOLDER/identities.json" -s3.port.iceberg=0 -s3.port.lance=0 \
      -s3.port="$2" -s3.port.grpc=$(($2 + 1)) -filer.port=$(($2 + 2)) -filer.port.grpc=$(($2 + 3)) \
      -master.port=$(($2 + 4)) -master.port.grpc=$(($2 + 5)) -volume.port=$(($2 + 6)) -volume.port.grpc=$(($2 + 7)) \
      >"$WEED_FOLDER/weed.log" 2>&1 </dev/null
  ) &
  echo $! >"$WEED_FOLDER/weed.pid"
  # The log says that it is our server which answers, not another on that port. S3 answers before the disk is ready:
  # wait until a file can be written too, by way of the filer, which takes a form as a browser sends it.
  weed_form=$(printf -- '--x\r\nContent-Disposition: form-data; name="file"; filename="ready"\r\n\r\nready\r\n--x--\r\n.')
  weed_form=${weed_form%.}
  weed_tries=1500
  until grep -q 'Start Seaweed S3 API Server' "$WEED_FOLDER/weed.log" 2>/dev/null &&
    busybox wget -q -O /dev/null "http://127.0.0.1:$2/healthz" 2>/dev/null &&
    busybox wget -q -O /dev/null --header 'Content-Type: multipart/form-data; boundary=x' --post-data "$weed_form" \
      "http://127.0.0.1:$(($2 + 2))/ready" 2>/dev/null; do
    weed_tries=$((weed_tries - 1))
    if [ $weed_tries -le 0 ] || ! kill -0 "$(cat "$WEED_FOLDER/weed.pid")" 2>/dev/null; then
      echo "weed_start: SeaweedFS does not answer on port $2; its log ends:" >&2
      tail -n 10 "$WEED_FOLDER/weed.log" >&2
      weed_stop
      return 1
    fi
    sleep 0.2
  done
}

# A bucket is a folder under /buckets of the filer, and that needs no S3 client. An empty type says that the
# address is a folder to make, and not a file to write.
weed_bucket() {
  weed_port=$(cat "${2:-$WEED_FOLDER}/weed.port") || return
  weed_address=http://127.0.0.1:$((weed_port + 2))/buckets/$1/
  busybox wget -q -O /dev/null "$weed_address" 2>/dev/null ||
    busybox wget -q -O /dev/null --header 'Content-Type:' --post-data '' "$weed_address" ||
    { echo "weed_bucket: could not make $1" >&2; return 1; }
}

weed_stop() {
  weed_folder=${1:-${WEED_FOLDER:-}}
  weed_pid=$(cat "$weed_folder/weed.pid" 2>/dev/null) || return 0
  # SIGTERM does not end it in 15 s. What it acknowledged is in its files already.
  if kill -9 "$weed_pid" 2>/dev/null; then
    wait "$weed_pid" 2>/dev/null || true
    while [ -s "/proc/$weed_pid/cmdline" ]; do sleep 0.1; done # it may be the child of another shell
  fi
  # Its sockets: no option moves those for grpc, and in our folder their path could be too long. Their names are
  # made of our ports.
  weed_port=$(cat "$weed_folder/weed.port")
  for weed_socket in s3-"$weed_port" s3-grpc-$((weed_port + 1)) filer-$((weed_port + 2)) filer-grpc-$((weed_port + 3)) \
    master-grpc-$((weed_port + 5)) volume-grpc-$((weed_port + 7)); do
    rm -f "/tmp/seaweedfs-$weed_socket.sock"
  done
  rm -f "$weed_folder/weed.pid"
}
