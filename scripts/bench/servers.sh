# shellcheck shell=bash
# Sourced by bench.sh: the servers, each at its best, all with one worker and without logs. start_NAME
# leaves its process in $pid and the ways to it in $plain, $plain_way, $tls, $tls_way and $ca.

: "${scratch:=}" "${here:=}" # set by bench.sh

has_floor() { :; }
has_proxy() { :; }
has_nginx() { [ -n "$(command -v nginx)" ]; }
has_squid() { [ -n "$(command -v squid)" ] && squid -v | grep -q enable-ssl-crtd; }

has_ats() { [ -n "$(command -v traffic_server)" ]; }
has_haproxy() { [ -n "$(command -v haproxy)" ]; }
has_direct() { :; }
has_logged() { :; }
has_two() { :; }
has_entries() { [ "$round" = 1 ]; }

# pinned COMMAND...: on the server's core.
pinned() { exec taskset -c "${cores:-0}" "$@"; }

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
    # Whatever is asked for is there, and nobody has it.
    location ~ /cold/ { try_files $PIECE =404; }
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

start_direct() {
  pid=$origin tls_pid=$origin running=()
  plain=http://127.0.0.2:18080 plain_way=() tls=https://127.0.0.2:18443 tls_way=()
  ca=$scratch/tls/ca.crt
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

start_logged() { log="level: info, file: $scratch/hits.log" start_proxy; }
start_two() { workers=2 cores=0,1 start_proxy; }
start_entries() { start_proxy; }

start_proxy() {
  local dir=$scratch/proxy
  mkdir "$dir"
  cat >"$dir/config.yaml" <<CONFIG
proxy: {bind: 127.0.0.3, port: 17080, api_bind: 127.0.0.3, api_port: 17081, workers: ${workers:-1}, deny_destinations: []}
tls: {cert_dir: $dir/certs, intercept: ["127.0.0.2"], upstream_ca: [$scratch/tls/ca.crt]}
cache:
  dir: $dir/cache
  access: trust
  max_size: 20GB
  patterns: ["^/v2/.*/blobs/sha256:.*", "^/v2/.*/manifests/sha256:.*", "^/v2/bench/cold/"]
# All clients have one address here.
limits: {max_connections_per_client: 20000}
logging: {${log:-level: warn}}
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

start_ats() {
  local dir=$scratch/ats
  mkdir "$dir" "$dir/etc" "$dir/cache" "$dir/run" "$dir/log"
  cat >"$dir/runroot.yaml" <<CONFIG
{prefix: $dir, exec_prefix: $dir, bindir: /usr/bin, sbindir: /usr/sbin, sysconfdir: $dir/etc,
 datadir: $dir/cache, includedir: /usr/include, libdir: /usr/lib, libexecdir: $dir/run,
 localstatedir: $dir/run, runtimedir: $dir/run, logdir: $dir/log, cachedir: $dir/cache}
CONFIG
  cat >"$dir/etc/records.config" <<CONFIG
CONFIG proxy.config.exec_thread.autoconfig INT 0
CONFIG proxy.config.exec_thread.limit INT 1
CONFIG proxy.config.accept_threads INT 0
CONFIG proxy.config.http.server_ports STRING 18080:ip-in=127.0.0.3 18443:ssl:ip-in=127.0.0.3
CONFIG proxy.config.http.cache.required_headers INT 0
CONFIG proxy.config.http.cache.when_to_revalidate INT 3
CONFIG proxy.config.cache.enable_read_while_writer INT 1
CONFIG proxy.config.http.background_fill_active_timeout INT 0
CONFIG proxy.config.http.background_fill_completed_threshold FLOAT 0.0
CONFIG proxy.config.http.cache.open_read_retry_time INT 10
CONFIG proxy.config.http.cache.max_open_read_retries INT 100
CONFIG proxy.config.cache.max_doc_size INT 0
CONFIG proxy.config.cache.ram_cache.size INT 4G
CONFIG proxy.config.cache.ram_cache_cutoff INT 2G
CONFIG proxy.config.net.connections_throttle INT 15000
CONFIG proxy.config.net.max_connections_in INT 15000
CONFIG proxy.config.log.logging_enabled INT 0
CONFIG proxy.config.ssl.client.verify.server.policy STRING ENFORCED
CONFIG proxy.config.ssl.client.verify.server.properties STRING SIGNATURE
CONFIG proxy.config.ssl.client.CA.cert.filename STRING $scratch/tls/ca.crt
CONFIG proxy.config.admin.user_id STRING trafficserver
CONFIG proxy.config.url_remap.remap_required INT 1
CONFIG proxy.config.http.insert_response_via_str INT 0
CONFIG proxy.config.http.keep_alive_no_activity_timeout_in INT 600
CONFIG proxy.config.ssl.TLSv1_2 INT 0
CONFIG proxy.config.http.transaction_no_activity_timeout_in INT 600
CONFIG proxy.config.http.transaction_no_activity_timeout_out INT 600
CONFIG proxy.config.http.cache.heuristic_min_lifetime INT 31536000
CONFIG proxy.config.http.cache.heuristic_max_lifetime INT 31536000
CONFIG
  printf 'map http://127.0.0.3:18080/ http://127.0.0.2:18080/\nmap https://127.0.0.3:18443/ %s\n' \
    https://127.0.0.2:18443/ >"$dir/etc/remap.config"
  echo "$dir/cache 8G" >"$dir/etc/storage.config"
  echo "dest_ip=* ssl_cert_name=$scratch/tls/srv.crt ssl_key_name=$scratch/tls/srv.key" \
    >"$dir/etc/ssl_multicert.config"
  cat >"$dir/etc/ip_allow.yaml" <<CONFIG
ip_allow: [{apply: in, ip_addrs: 127.0.0.0/8, action: allow, methods: ALL}]
CONFIG
  # It gives up root for this user.
  chown -R trafficserver: "$dir"
  chmod a+r "$scratch/tls/srv.key"
  pinned traffic_server --run-root="$dir/runroot.yaml" >"$scratch/ats.log" 2>&1 &
  pid=$! tls_pid=$!
  running=("$pid")
  plain=http://127.0.0.3:18080 plain_way=() tls=https://127.0.0.3:18443 tls_way=()
  ca=$scratch/tls/ca.crt
  until_open 127.0.0.3 18443 "$pid"
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
  rm -rf "$scratch/nginx" "$scratch/proxy" "$scratch/squid" "$scratch/ats"
}

end() {
  kill "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}
