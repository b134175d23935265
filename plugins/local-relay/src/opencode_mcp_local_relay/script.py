"""What the POSIX sh on the relay is taught before it is asked for anything; asked by `relay.py`.

A file is taken for the instance's own only if it begins with its id, which is compared byte for byte.
"""

SCRIPT = r"""
umask 077
LC_ALL=C
export LC_ALL
nl='
'
me=$(id -u)
unset http_proxy HTTP_PROXY all_proxy ALL_PROXY CDPATH
say() { printf '\n%s %s\n' "$q" "$*"; }
end() { say = "$@"; }
ours() {
  [ -f "$1" ] && [ ! -h "$1" ] && [ "$(dd if="$1" bs="$size" count=1)" = "$prefix" ]
} 2>/dev/null
flat() { (IFS=$nl; set -f; e=$(printf '%s ' $1); printf %s "${e% }"); }
there() { [ -e "$1" ] || [ -h "$1" ]; }
judge() {
  set -f
  set -- $(ls -ldn "$1" 2>/dev/null)
  set +f
  fault=
  case $3 in '') fault=unknown ;; 0 | "$me") ;; *) fault="foreign $3" ;; esac
  case $1 in l*) ;; ????????w*) fault=open ;; esac
}
safe() {
  judge "$d/."
  if [ -z "$fault" ] && [ -h "$d" ]; then judge "$d"; fi
  case $trust$fault in '' | 1* | unknown) ;; *) end $fault; return 1 ;; esac
}
put() {
  e=$(mkdir -p "$d" 2>&1) || { end directory "$e"; return; }
  safe || return
  f=$d/$1
  mine=
  if ours "$f"; then mine=1; elif there "$f"; then end taken; return; fi
  rm -f "$t"
  e=$( (set -C; printf '%s\n' "$2" >"$t" && chmod 600 "$t") 2>&1) && ours "$t" ||
    { rm -f "$t"; end write "${e:-the file system may be full}"; return; }
  if [ -z "$mine" ] && ln "$t" "$f"; then
    rm -f "$t"
  elif [ -z "$mine" ] && there "$f"; then
    rm -f "$t"
    end taken
    return
  else
    e=$(mv -f "$t" "$f" 2>&1) || { rm -f "$t"; end write "$e"; return; }
  fi 2>/dev/null
  end ok "$d"
}
drop() {
  rm -f "$t"
  if ours "$d/$1"; then e=$(rm -f "$d/$1" 2>&1) || { end remove "$e"; return; }; fi
  end ok
} 2>/dev/null
find_ours() {
  [ ! -d "$d" ] || [ -r "$d" ] || { end unreadable; return; }
  for f in "$d"/*.json; do
    ours "$f" || continue
    [ "$f" != "$d/$2" ] || continue
    say "$(flat "$f")"
    say "$(dd if="$f" bs=65536 count=1 2>/dev/null)"
    [ -z "$1" ] || { e=$(rm -f "$f" 2>&1) || { end remove "$e"; return; }; }
  done
  if [ -n "$1" ]; then rm -f "$t"; fi
  end ok
} 2>/dev/null
list() (
  there "$d" || { end ok safe; exit; }
  [ -d "$d" ] || { end none; exit; }
  [ -r "$d" ] && [ -x "$d" ] || { end unreadable; exit; }
  safe || exit
  seen=0
  trusted=${fault:-safe}
  set -- "$1" "$d"/*.json
  limit=$1
  shift
  for f; do
    case ${f##*/} in '~'* | '#'*) continue ;; esac
    there "$f" || continue
    [ "$seen" -lt "$limit" ] || { end ok "$trusted" more; exit; }
    seen=$((seen + 1))
    judge "$f"
    if [ -h "$f" ] || [ ! -f "$f" ]; then fault=special; fi
    case ${f##*/} in *"$nl"*) fault=name ;; esac
    text=
    case $fault:$trust in
      special:* | name:*) ;;
      :* | unknown:* | *:1) text=$(dd if="$f" bs=65537 count=1) ;;
    esac
    say "$fault/$(flat "${f##*/}")/$(IFS=$nl; set -f; printf '%s ' $text)"
  done
  end ok "$trusted"
) 2>/dev/null
loopback() {
  case $1 in 127.* | ::1[:.]* | '[::1]:'* | ::ffff:127.* | '[::ffff:127.'*) ;; *) false ;; esac
}
exposed() (
  set -f
  hex=$(printf %04X "$1")
  known=
  a=
  b=
  for c in $(dd if=/proc/net/tcp bs=65536; dd if=/proc/net/tcp6 bs=65536); do
    case $a,$c in
      ??????7F:"$hex",0A | 7F000001:"$hex",0A) ;;
      00000000000000000000000001000000:"$hex",0A | 00000000000000000000000000000001:"$hex",0A) ;;
      0000000000000000FFFF0000??????7F:"$hex",0A | 00000000000000000000FFFF7F??????:"$hex",0A) ;;
      *:"$hex",0A) end open; exit ;;
    esac
    known=1
    a=$b
    b=$c
  done
  [ -z "$known" ] || { end ok; exit; }
  for c in $(ss -ltn); do
    case $c in *:"$1") loopback "$c" || { end open; exit; } ;; esac
    known=1
  done
  [ -z "$known" ] || { end ok; exit; }
  for c in $(netstat -an); do
    case $a,$c in *[.:]"$1",LISTEN) loopback "$a" || { end open; exit; } ;; esac
    known=1
    a=$b
    b=$c
  done
  [ -n "$known" ] || { end unknown; exit; }
  end ok
) 2>/dev/null
probe() (
  u=http://127.0.0.1:$1/global/health
  if command -v curl >/dev/null; then
    case $(curl -s -o /dev/null -m "$2" --noproxy '*' -w '%{http_code}' "$u") in
      000 | '') end failed ;;
      *) end answered ;;
    esac
  elif command -v wget >/dev/null; then
    if e=$(wget -t 1 -T "$2" -O /dev/null "$u" 2>&1); then end answered; exit; fi
    case $e in *' 401 '* | *' 403 '*) end answered ;; *) end failed ;; esac
  else
    end unknown
  fi
) 2>/dev/null
"""
