#!/bin/sh
# http://@PROXY@/setup/@CLIENT@: points this system at the discobot-proxy that handed it out.
# Nothing happens before the last line. Options: --help, or `| sudo sh -s -- --help`.
set -eu
umask 022
client=@CLIENT@
proxy=http://@PROXY@
direct=localhost,127.0.0.1
root='' restart='' remove='' unit='' runner='' registries='' dry_only='' dry='' changed=''
mode=644
state=/var/lib/discobot-setup

help() {
  cat <<'END'
Options:
  --dry-run     show what would be done, and do nothing
  --restart     restart what has to be, at the end
  --remove      take back all that this script did
  --root DIR    set up the system below DIR, such as an image that is being built
  --proxy URL   another address of the proxy, or one with a user: http://USER:PASSWORD@HOST:PORT
END
}

options() {
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) dry_only=1 ;;
      --restart) restart=1 ;;
      --remove) remove=1 ;;
      --help) help && more_help && exit 0 ;;
      --root | --proxy | --unit | --runner | --registry)
        [ -n "${2:-}" ] || die "$1 wants a value after it"
        # Not every client has a runner, or wants its registries named.
        # shellcheck disable=SC2034
        case $1 in
          --root) root=${2%/} ;;
          --proxy) proxy=${2%/} ;;
          --unit) unit=${2%.service} ;;
          --runner) runner=${2%/} ;;
          --registry) registries="$registries $2" ;;
        esac
        shift
        ;;
      *) die "there is no option $1; see --help" ;;
    esac
    shift
  done
  # It goes into files of several kinds: only what needs no quotes in any of them.
  case $proxy in
    http://?*) ;;
    *) die "--proxy wants http://HOST:PORT, not $proxy" ;;
  esac
  case ${proxy#http://} in
    *[!][A-Za-z0-9.:@%_~-]*) die "--proxy: write special characters of its user and password as %XX" ;;
    *@*) mode=600 ;;
  esac
  # What is said may be kept in the log of a job, and a password is nobody's business.
  shown=http://${proxy#http://}
  case $proxy in
    *@*) shown=http://${proxy##*@} ;;
  esac
  case $unit in
    *[!A-Za-z0-9.:@_-]*) die "--unit: no unit is called $unit" ;;
  esac
  case $registries in
    *[!A-Za-z0-9.:\ _-]*) die "--registry wants the name of a host, such as 1234.dkr.ecr.eu-west-1.amazonaws.com" ;;
  esac
  [ -z "$root" ] || [ -d "$root" ] || die "--root: there is no directory $root"
}

say() { printf '%s\n' "$*"; }

die() {
  printf 'discobot setup: %s\n' "$*" >&2
  exit 1
}

# have COMMAND: whether the system that is set up has it.
have() {
  for folder in usr/sbin usr/bin sbin bin usr/local/sbin usr/local/bin; do
    [ ! -x "$root/$folder/$1" ] || return 0
  done
  return 1
}

# there COMMAND...: runs it in that system.
there() {
  if [ -n "$root" ]; then chroot "$root" "$@"; else "$@"; fi
}

# folder DIR: makes it; --remove takes away again what was made.
folder() {
  [ -d "$root$1" ] && return
  folder "$(dirname "$1")"
  mkdir -m 755 "$root$1"
  say "$1" >>"$root$state/$client/folders"
}

# kept DIR: where what concerns this client is kept. It may be nobody else's business.
kept() {
  [ -d "$root$state" ] || { mkdir -p "$root$state" && chmod 700 "$root$state"; }
  mkdir -p "$root$state/$client$1"
}

# put FILE: it becomes what is in $work/new. $work/base, where there is one, is what it was without us.
put() {
  now=$root$1 before=$root$state/$client/before$1 ours=$root$state/$client/ours$1
  if [ -L "$now" ]; then
    die "$1 is a link to $(readlink "$now"): put the proxy, $shown, into the file behind it by hand"
  fi
  if cmp -s "$work/new" "$now"; then
    [ -z "$dry" ] || say "  $1: is as it should be"
    return
  fi
  if [ -n "$dry" ]; then
    if [ -e "$now" ]; then
      say "  $1: change (what is there is kept as $state/$client/before$1)"
    else
      say "  $1: write"
    fi
    return
  fi
  kept "/before$(dirname "$1")"
  kept "/ours$(dirname "$1")"
  folder "$(dirname "$1")"
  if [ ! -e "$ours" ] && [ -e "$now" ]; then
    cp -p "$now" "$before"
  elif [ -e "$ours" ] && [ -s "$work/base" ] && ! cmp -s "$work/base" "$now"; then
    # Where the two are the same, what is ours could not be told from the rest.
    cat "$work/base" >"$before"
  fi
  cp "$work/new" "$ours"
  becomes "$now" "$work/new"
  changed=1
}

# becomes FILE CONTENT: whole or not at all, with the owner and mode of before. The new file has a name
# that nobody could know: the folder may belong to somebody who is not root.
becomes() {
  part=$(mktemp "$1.XXXXXX")
  if [ -e "$1" ]; then
    cp -p "$1" "$part"
    [ "$mode" = 644 ] || chmod go-rwx "$part"
  else
    chown "$(stat -c %u:%g "$(dirname "$1")")" "$part"
    chmod "$mode" "$part"
  fi
  cat "$2" >"$part"
  mv "$part" "$1"
}

# take_back FILE: as it was before. What somebody changed since is only taken away whole where the
# file is ours alone.
take_back() {
  now=$root$1 before=$root$state/$client/before$1 ours=$root$state/$client/ours$1
  [ -e "$ours" ] || return 0
  [ ! -L "$now" ] || die "$1 is a link by now: take the proxy out of the file behind it by hand"
  if [ -e "$now" ] && ! cmp -s "$now" "$ours" && [ -e "$work/base" ]; then
    if cmp -s "$work/base" "$now" && grep -qi http.proxy "$now"; then
      say "  $1: was changed since: take the proxy out by hand (before: $state/$client/before$1)"
      return
    fi
    [ -z "$dry" ] || say "  $1: take our line out (the file was changed since)"
    [ -n "$dry" ] || becomes "$now" "$work/base"
  elif [ -e "$before" ]; then
    [ -z "$dry" ] || say "  $1: put back as it was"
    [ -n "$dry" ] || { part=$(mktemp "$now.XXXXXX") && cp -p "$before" "$part" && mv "$part" "$now"; }
  else
    [ -z "$dry" ] || say "  $1: remove"
    [ -n "$dry" ] || rm -f "$now"
  fi
  [ -n "$dry" ] || rm -f "$ours" "$before"
  changed=1
}

# The certificate store of this system: $anchors and $update.
find_store() {
  if [ -d "$root/etc/pki/ca-trust/source/anchors" ] && have update-ca-trust; then
    anchors=/etc/pki/ca-trust/source/anchors update=update-ca-trust
  elif [ -d "$root/etc/pki/trust/anchors" ] && have update-ca-certificates; then
    anchors=/etc/pki/trust/anchors update=update-ca-certificates
  elif have update-ca-certificates; then
    anchors=/usr/local/share/ca-certificates update=update-ca-certificates
  else
    die "no certificate store is known here: install the package ca-certificates first"
  fi
}

certificate() {
  cat <<'discobot-end'
@CA@
discobot-end
}

# The CA is shared: each client that was set up has a mark, and the last one's removal takes it away.
trust() {
  find_store
  anchor=$anchors/discobot-proxy.crt
  certificate >"$work/ca.crt"
  if cmp -s "$work/ca.crt" "$root$anchor" && [ -e "$root$state/trusted" ]; then
    [ -z "$dry" ] || say "  $anchor: the CA is there"
  elif [ -n "$dry" ]; then
    sum=$(sha256sum <"$work/ca.crt")
    say "  $anchor: write the proxy's CA (sha256 ${sum%% *}), then $update"
  else
    kept ''
    folder "$anchors"
    cp "$work/ca.crt" "$root$anchor"
    chmod 644 "$root$anchor"
    there "$update" >/dev/null 2>&1 || die "$update failed"
    : >"$root$state/trusted"
    changed=1
  fi
  [ -n "$dry" ] || { kept '' && : >"$root$state/$client/trusts"; }
}

distrust() {
  [ -e "$root$state/$client/trusts" ] || return 0
  find_store
  anchor=$anchors/discobot-proxy.crt
  for mark in "$root$state"/*/trusts; do
    [ "$mark" = "$root$state/$client/trusts" ] && continue
    [ -z "$dry" ] || say "  $anchor: stays for other clients that were set up"
    [ -n "$dry" ] || rm "$root$state/$client/trusts"
    return 0
  done
  if [ -n "$dry" ]; then
    say "  $anchor: remove, then $update"
    return
  fi
  rm -f "$root$anchor" "$root$state/trusted"
  # Debian's removes the links of what is gone only when told to begin afresh.
  if [ "$update" = update-ca-certificates ]; then
    there "$update" --fresh >/dev/null 2>&1 || there "$update" >/dev/null 2>&1 || die "$update failed"
  else
    there "$update" >/dev/null 2>&1 || die "$update failed"
  fi
  rm "$root$state/$client/trusts"
  changed=1
}

forget() {
  if [ -e "$root$state/$client/folders" ]; then
    # The deepest first.
    sort -r "$root$state/$client/folders" | while read -r made; do
      rmdir "$root$made" 2>/dev/null || :
    done
    rm "$root$state/$client/folders"
  fi
  [ ! -d "$root$state" ] || find "$root$state" -depth -type d -exec rmdir {} \; 2>/dev/null || :
}

# drop_in UNIT: $work/new becomes the environment that points a systemd unit at the proxy.
drop_in() {
  if [ ! -d "$root/usr/lib/systemd" ] && [ ! -d "$root/lib/systemd" ]; then
    die "no systemd here: start $1 with HTTP_PROXY=$shown HTTPS_PROXY=$shown NO_PROXY=$direct"
  fi
  # A % means something to systemd.
  escaped=$(say "$proxy" | sed 's/%/%%/g')
  cat >"$work/new" <<END
# From $client's set-up for the discobot-proxy; --remove takes it away.
[Service]
Environment=HTTP_PROXY=$escaped HTTPS_PROXY=$escaped NO_PROXY=$direct
END
  rm -f "$work/base"
  put "/etc/systemd/system/$1.service.d/discobot-proxy.conf"
}

# began_anew UNIT: it has to be restarted: says so, or does it.
began_anew() {
  if [ -n "$root" ]; then
    say "Nothing runs in $root: it counts from the next start of $1 on."
  elif [ -z "$restart" ]; then
    say "It counts once $1 is restarted (or run this again with --restart):"
    say "  systemctl daemon-reload && systemctl restart $1"
  elif [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl restart "$1" || die "$1 did not restart: systemctl status $1"
    say "$1 was restarted."
  elif have rc-service; then
    rc-service "$1" restart || die "$1 did not restart"
  else
    die "neither systemd nor OpenRC runs here: restart $1 by its own means"
  fi
}

main() {
  options "$@"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  trap 'exit 1' HUP INT TERM
  if [ -n "$remove" ]; then
    say "$client, as it was before it went through a discobot-proxy:"
  else
    say "$client, through $shown:"
  fi
  # Once to show all of it, and to refuse before anything was changed.
  dry=1
  step
  [ -z "$dry_only" ] || exit 0
  [ -w "$root/etc" ] || die "this needs root: | sudo sh"
  dry='' changed=''
  step
  if [ -n "$changed" ]; then say "Done."; else say "Nothing was to be done."; fi
  # What was set up earlier may still want its restart.
  if [ -z "$remove" ] || [ -n "$changed" ]; then afterwards; fi
}

step() {
  if [ -n "$remove" ]; then
    unset_up
    distrust
    [ -n "$dry" ] || forget
  else
    set_up
    trust
  fi
}
