"""What is done on the relay, by a POSIX sh there that reads it from its standard input.

Every value reaches it quoted by `shlex.quote`, so that it is a value whatever it holds. A file is taken for
the instance's own only if it begins with its id, which is compared byte for byte.
"""

import dataclasses
import hashlib
import shlex
from collections.abc import Sequence

from opencode_mcp import TransportError, clean_line
from opencode_mcp_local_relay.registration import SUFFIX, Registration, UnusableError, id_prefix, parse
from opencode_mcp_local_relay.ssh import Shell

_REPLY_SECONDS = 20.0
_PROBE_SECONDS = 10

SCRIPT = r"""
umask 077
LC_ALL=C
export LC_ALL
unset http_proxy HTTP_PROXY all_proxy ALL_PROXY CDPATH
say() { printf '\n%s %s\n' "$q" "$*"; }
end() { say = "$@"; }
ours() {
  [ -f "$1" ] && [ ! -h "$1" ] && [ "$(dd if="$1" bs="$size" count=1)" = "$prefix" ]
} 2>/dev/null
there() { [ -e "$1" ] || [ -h "$1" ]; }
safe() {
  [ -z "$trust" ] || return 0
  set -- $(ls -ldn "$d/." 2>/dev/null)
  case $1 in ????????w*) end open; return 1 ;; esac
  case $3 in 0 | '' | "$(id -u)") ;; *) end foreign "$3"; return 1 ;; esac
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
  if ours "$d/$1"; then rm -f "$d/$1"; fi
  rm -f "$t"
  end ok
} 2>/dev/null
find_ours() {
  [ ! -d "$d" ] || [ -r "$d" ] || { end unreadable; return; }
  for f in "$d"/*.json; do
    ours "$f" || continue
    say "$f"
    say "$(dd if="$f" bs=65536 count=1 2>/dev/null)"
    [ -z "$1" ] || { e=$(rm -f "$f" 2>&1) || { end remove "$e"; return; }; }
  done
  if [ -n "$1" ]; then rm -f "$t"; fi
  end ok
} 2>/dev/null
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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A registration file on the relay that holds the id: where it is, and what it says if it can be read."""

    path: str
    registration: Registration | None


class Relay:
    """The registry directory on the relay, for one instance."""

    def __init__(self, shell: Shell, directory: str, instance_id: str, *, trust_any_owner: bool) -> None:
        """Prepare to use a shell on the relay.

        Args:
            shell: Whose process has just been started.
            directory: An absolute path, or one below `~`.
            instance_id: Whose registrations these are.
            trust_any_owner: Whether the directory may belong to, or be open to, others.
        """
        self._shell = shell
        self._shown = f"{clean_line(directory, 1000)} on the relay"
        self._instance_id = instance_id
        digest = hashlib.sha256(instance_id.encode(errors="surrogatepass")).hexdigest()[:16]
        prefix = id_prefix(instance_id)
        self._setup = (
            f"{SCRIPT}d={quoted_path(directory)}\nt=$d/.{digest}.tmp\n"
            f"prefix={shlex.quote(prefix)}\nsize={len(prefix)}\ntrust={'1' if trust_any_owner else ''}\n"
        )

    async def arrive(self, seconds: float) -> None:
        """Wait until the shell answers.

        Raises:
            EndedError: If ssh ends instead.
            TimeoutError: If it takes longer.
        """
        await self._shell.tell(self._setup)
        await self._shell.ask("end ok", seconds)

    async def put(self, name: str, content: str) -> bool:
        """Write a registration into the file `name`, in one step; False if that is not ours to write.

        Raises:
            TransportError: If it cannot be written, or the relay does not answer.
            EndedError: If ssh ends.
        """
        status, detail = await self._run(f"put {shlex.quote(name)} {shlex.quote(content)}")
        if status not in ("ok", "taken"):
            raise self._failure(status, detail)
        return status == "ok"

    async def drop(self, name: str, seconds: float) -> None:
        """Remove the file `name` if it is ours.

        Raises:
            EndedError: If ssh ends.
            TimeoutError: If it takes longer.
        """
        await self._shell.ask(f"drop {shlex.quote(name)}", seconds)

    async def find(self, *, remove: bool = False) -> Sequence[Found]:
        """Find the registrations with our id, whatever their names are, and remove them if so wished.

        Raises:
            TransportError: If that is not possible, or the relay does not answer.
            EndedError: If ssh ends.
        """
        lines: list[str] = []
        status, detail = await self._run(f"find_ours {'1' if remove else chr(39) * 2}", lines)
        if status != "ok":
            raise self._failure(status, detail)
        return [
            Found(path=clean_line(path, 1000), registration=_parsed(path, content))
            for path, content in zip(lines[::2], lines[1::2], strict=False)
        ]

    async def probe(self, port: int) -> bool | None:
        """Whether `port` of the relay leads to a web server; None if the relay has nothing to ask it with."""
        try:
            reply = await self._shell.ask(f"probe {port} {_PROBE_SECONDS} &", _REPLY_SECONDS)
        except TimeoutError:
            return False
        return {"answered": True, "failed": False}.get(reply[-1].removeprefix("= "))

    async def _run(self, command: str, lines: list[str] | None = None) -> tuple[str, str]:
        try:
            *said, last = await self._shell.ask(command, _REPLY_SECONDS)
        except TimeoutError:
            raise TransportError(
                f"The relay has not answered for {_REPLY_SECONDS:.0f} s. Its connection is made anew; "
                "if that does not help, see whether the machine is well."
            ) from None
        if lines is not None:
            lines += said
        status, _, detail = last.removeprefix("= ").partition(" ")
        return status, clean_line(detail, 300)

    def _failure(self, status: str, detail: str) -> TransportError:
        about = f"The registry directory {self._shown}"
        other = "set RELAY_REGISTRY_DIR to a directory of your own there"
        trust = "; or set RELAY_TRUST_ANY_OWNER=1 if that is meant to be, as in a container."
        sentences = {
            "directory": f"{about} cannot be created: {detail}. Instead, {other}.",
            "write": f"{about} cannot be written: {detail}. Make room there, or {other}.",
            "remove": f"{about} holds a registration that cannot be removed: {detail}. Remove it by hand.",
            "unreadable": f"{about} cannot be read. Run `chmod u+rx` on it, or {other}.",
            "open": f"{about} can be written by everybody, so that others could send your messages "
            f"elsewhere. Run `chmod o-w` on it there, or {other}{trust}",
            "foreign": f"{about} belongs to another user (uid {detail}), who could send your messages "
            f"elsewhere; {other}{trust}",
        }
        return TransportError(sentences.get(status, f"{about} cannot be used: the relay said {status}."))


def quoted_path(directory: str) -> str:
    """Write a path for a shell on another machine; `~` is the home there."""
    if directory == "~" or directory.startswith("~/"):
        return '"${HOME:?}"' + shlex.quote(directory[1:])
    return shlex.quote(directory)


def _parsed(path: str, content: str) -> Registration | None:
    stem = path.rpartition("/")[2].removesuffix(SUFFIX)
    try:
        return parse(content.encode(errors="replace"), stem)
    except UnusableError:
        return None
