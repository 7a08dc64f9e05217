# shellcheck shell=bash
# Sourced by bench.sh: the servers, each at its best, all with one worker and without logs. start_NAME
# leaves its process in $pid and the ways to it in $plain, $plain_way, $tls, $tls_way and $ca.

: "${scratch:=}" "${here:=}" # set by bench.sh

has_floor() { :; }
has_proxy() { :; }
has_nginx() { [ -n "$(command -v nginx)" ]; }
has_squid() { [ -n "$(command -v squid)" ] && squid -v | grep -q enable-ssl-crtd; }

has_haproxy() { [ -n "$(command -v haproxy)" ]; }

# pinned COMMAND...: on the server's core.
pinned() { exec taskset -c 0 "$@"; }

start_origin() {
  local dir=$scratch/origin
  mkdir "$dir"
  nginx_head "$dir" >"$dir/nginx.conf"
  cat >>"$dir/nginx.conf" <<CONFIG
  server {
    listen 127.0.0.2:18080 backlog=4096; listen 127.0.0.2:18443 ssl backlog=4096;
    listen 127.0.0.4:18443 ssl backlog=4096;
    ssl_certificate $scratch/tls/srv.crt; ssl_certificate_key $scratch/tls/srv.key;
    root $scratch/www; default_type application/octet-stream;
    add_header Docker-Distribution-Api-Version registry/2.0;
    # A manifest of no type of its own is not served from a cache that knows what it is.
    location ~ /manifests/ { default_type application/vnd.oci.image.manifest.v1+json; }
    access_log $dir/access.log bytes;
  }
}
CONFIG
  taskset -c 1 nginx -p "$dir" -c "$dir/nginx.conf" 2>"$scratch/origin.log" &
  origin=$!
  until_open 127.0.0.2 18443 "$origin"
}

stop_origin() {
  [ -z "${origin:-}" ] || end "$origin"
}

nginx_head() {
  local dir=$1
  cat <<CONFIG
user $(id -un);
daemon off; master_process off; worker_processes 1; pid $dir/pid; error_log $dir/error.log error;
events { worker_connections 32000; }
http {
  client_body_temp_path $dir/body; fastcgi_temp_path $dir/fastcgi; uwsgi_temp_path $dir/uwsgi;
  scgi_temp_path $dir/scgi; proxy_temp_path $dir/temp;
  log_format bytes '\$body_bytes_sent \$request_uri'; access_log off;
  sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 600s;
  open_file_cache max=1000 inactive=600s; open_file_cache_valid 600s;
  ssl_protocols TLSv1.3; ssl_session_cache off; ssl_session_tickets off;
CONFIG
}

start_floor() {
  pinned "$FLOOR" "$scratch/www" 127.0.0.3:18080 2>"$scratch/floor.log" &
  pid=$!
  pinned "$FLOOR" "$scratch/www" 127.0.0.3:18443 "$scratch/tls/srv.crt" "$scratch/tls/srv.key" \
    2>"$scratch/floor-tls.log" &
  tls_pid=$!
  running=("$pid" "$tls_pid")
  plain=http://127.0.0.3:18080 plain_way=() tls=https://127.0.0.3:18443 tls_way=()
  ca=$scratch/tls/ca.crt
  until_open 127.0.0.3 18443 "$tls_pid"
}

start_nginx() {
  local dir=$scratch/nginx
  mkdir "$dir"
  nginx_head "$dir" >"$dir/nginx.conf"
  cat >>"$dir/nginx.conf" <<CONFIG
  proxy_cache_path $dir/cache levels=1:2 keys_zone=c:10m max_size=20g inactive=1y use_temp_path=off;
  proxy_cache c; proxy_cache_valid 200 1y; proxy_cache_lock on; proxy_cache_lock_timeout 600s;
  proxy_cache_lock_age 600s; proxy_max_temp_file_size 20000m; proxy_http_version 1.1;
  proxy_set_header Connection ""; proxy_ssl_trusted_certificate $scratch/tls/ca.crt;
  proxy_ssl_verify on; proxy_ssl_name bench.test; proxy_ssl_protocols TLSv1.3;
  upstream plain { server 127.0.0.2:18080; keepalive 64; }
  upstream secure { server 127.0.0.2:18443; keepalive 64; }
  server { listen 127.0.0.3:18080 reuseport backlog=4096; location / { proxy_pass http://plain; } }
  server {
    listen 127.0.0.3:18443 ssl reuseport backlog=4096;
    ssl_certificate $scratch/tls/srv.crt; ssl_certificate_key $scratch/tls/srv.key;
    location / { proxy_pass https://secure; }
  }
}
CONFIG
  pinned nginx -p "$dir" -c "$dir/nginx.conf" 2>"$scratch/nginx.log" &
  pid=$! tls_pid=$!
  running=("$pid")
  plain=http://127.0.0.3:18080 plain_way=() tls=https://127.0.0.3:18443 tls_way=()
  ca=$scratch/tls/ca.crt
  until_open 127.0.0.3 18443 "$pid"
}

start_proxy() {
  local dir=$scratch/proxy
  mkdir "$dir"
  cat >"$dir/config.yaml" <<CONFIG
proxy: {bind: 127.0.0.3, port: 17080, api_bind: 127.0.0.3, api_port: 17081, workers: 1, deny_destinations: []}
tls: {cert_dir: $dir/certs, intercept: ["127.0.0.2"], upstream_ca: [$scratch/tls/ca.crt]}
cache: {dir: $dir/cache, access: trust, max_size: 20GB}
logging: {level: warn}
CONFIG
  ulimit -n 65536 2>/dev/null || true
  pinned "$PROXY" --config "$dir/config.yaml" >"$scratch/proxy.log" 2>&1 &
  pid=$! tls_pid=$!
  running=("$pid")
  through 17080 "$dir/certs/ca.crt"
}

start_squid() {
  local dir=$scratch/squid
  mkdir "$dir" "$dir/cache"
  authority "$dir" "squid CA"
  # Its leaves are good for names alone.
  echo "127.0.0.2 bench.test" >"$dir/hosts"
  /usr/lib/squid/security_file_certgen -c -s "$dir/leaves" -M 4MB >/dev/null
  cat >"$dir/squid.conf" <<CONFIG
http_port 127.0.0.3:17080 ssl-bump generate-host-certificates=on dynamic_cert_mem_cache_size=4MB tls-cert=$dir/ca.crt tls-key=$dir/ca.key
sslcrtd_program /usr/lib/squid/security_file_certgen -s $dir/leaves -M 4MB
sslcrtd_children 1
acl relayed dst 127.0.0.4
ssl_bump splice relayed
ssl_bump bump all
tls_outgoing_options cafile=$scratch/tls/ca.crt
http_access allow all
hosts_file $dir/hosts
cache_effective_user proxy
cache_dir rock $dir/cache 8000 slot-size=32768
cache_mem 64 MB
maximum_object_size 10 GB
range_offset_limit none
quick_abort_min -1 KB
read_ahead_gap 1 MB
collapsed_forwarding on
digest_generation off
refresh_pattern . 525600 100% 525600 override-expire override-lastmod ignore-reload ignore-no-store ignore-private
access_log none
cache_store_log none
cache_log $dir/cache.log
pid_filename $dir/pid
coredump_dir $dir
shutdown_lifetime 0 seconds
client_lifetime 1 day
max_filedescriptors 32768
CONFIG
  # It gives up root for this user.
  chown -R proxy:proxy "$dir"
  squid -n bench -z -N -f "$dir/squid.conf" >"$scratch/squid.log" 2>&1
  pinned squid -n bench --foreground -f "$dir/squid.conf" >>"$scratch/squid.log" 2>&1 &
  pid=$! tls_pid=$!
  running=("$pid")
  through 17080 "$dir/ca.crt"
  tls=https://bench.test:18443
  # The workers are up before the store is.
  sleep 3
}

# Relays bytes and nothing else.
start_haproxy() {
  cat >"$scratch/haproxy.cfg" <<CONFIG
global
  nbthread 1
  maxconn 4000
defaults
  mode tcp
  option splice-auto
  timeout connect 10s
  timeout client 600s
  timeout server 600s
listen relay
  bind 127.0.0.3:18443
  server origin 127.0.0.4:18443
CONFIG
  pinned haproxy -db -f "$scratch/haproxy.cfg" >"$scratch/haproxy.log" 2>&1 &
  pid=$! tls_pid=$!
  running=("$pid")
  tls=https://127.0.0.4:18443 tls_way=(--connect 127.0.0.3:18443) ca=$scratch/tls/ca.crt
  until_open 127.0.0.3 18443 "$pid"
}

# through PORT CA: ways to a forward proxy.
through() {
  plain=http://127.0.0.2:18080 plain_way=(--proxy "127.0.0.3:$1")
  tls=https://127.0.0.2:18443 tls_way=(--proxy "127.0.0.3:$1")
  ca=$2
  until_open 127.0.0.3 "$1" "$pid"
}

until_open() {
  local _
  for _ in $(seq 300); do
    (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null && return 0
    kill -0 "$3" 2>/dev/null || break
    sleep 0.1
  done
  echo "bench.sh: nothing came to listen at $1:$2" >&2
  exit 1
}

stop_server() {
  local one
  for one in "${running[@]}"; do
    end "$one"
  done
  running=()
  rm -rf "$scratch/nginx" "$scratch/proxy" "$scratch/squid"
}

end() {
  kill "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}
