#!/bin/sh
# Makes a virtual environment that holds exactly what a hash-pinned list says, and does nothing if it stands.
# usage: [PYTHON=python3.12] sh tools/venv.sh FOLDER LIST
# It runs before there is any Python to trust, so it is POSIX sh, and each thing that can be wrong is one sentence.
set -eu
folder=$1 list=$2

say() { printf '%s\n' "$*" >&2; }
stop() { say "$*"; exit 1; }

# Without PYTHON an environment that stands keeps the Python it was made with.
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  if [ -f "$folder/made-from" ] && "$folder/bin/python" -c '' 2>/dev/null; then python=$folder/bin/python; fi
fi
command -v "$python" >/dev/null 2>&1 ||
  stop "There is no '$python' here: install Python 3.11, 3.12 or 3.13, or name one with PYTHON=/path/to/python3.12."
version=$("$python" -c 'import sys; sys.stdout.write("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) ||
  stop "'$python' does not run as a Python: name one with PYTHON=/path/to/python3.12."
case $version in
  3.11.* | 3.12.* | 3.13.*) ;;
  3.14.*) say "Python $version: the handbook is tested on 3.11, 3.12 and 3.13; on 3.14 it is not." ;;
  3.[0-9].* | 3.10.* | [0-2].*)
    stop "'$python' is Python $version, which is too old: the handbook needs 3.11, 3.12 or 3.13; name one with PYTHON=/path/to/python3.12." ;;
  *)
    stop "'$python' is Python $version, which is too new: the handbook needs 3.11, 3.12 or 3.13; name one with PYTHON=/path/to/python3.12." ;;
esac

made_from="Python $version, $list $(cksum <"$list")"
if [ -f "$folder/made-from" ] && [ "$(cat "$folder/made-from")" = "$made_from" ]; then exit 0; fi

if [ "$python" != "$folder/bin/python" ]; then
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    stop "'$python' cannot make a virtual environment: its venv module is missing (Debian and Ubuntu: apt install python3-venv)."
  clear=
  case $(cat "$folder/made-from" 2>/dev/null) in "" | "Python $version,"*) ;; *) clear=--clear ;; esac
  say "Making $folder with Python $version ..."
  "$python" -m venv $clear "$folder" >&2 || stop "'$python -m venv $folder' failed."
fi
rm -f "$folder/made-from"

total=$(grep -c '^[A-Za-z0-9]' "$list")
say "Installing the packages of $list into $folder; the first time takes about a minute."
log=$folder/pip.log
{
  PIP_USER=0 "$folder/bin/python" -m pip install --require-hashes --disable-pip-version-check \
    --no-input --progress-bar off -r "$list" 2>&1 && echo pip-is-done
} | tee "$log" | {
  # On a terminal one line that changes; elsewhere every twentieth package.
  n=0
  while IFS= read -r line; do
    case $line in
      "Collecting "* | "Processing "*) # the second: a wheel that lies on this machine
        n=$((n + 1))
        package=${line#* } package=${package%% *} package=${package##*/}
        if [ -t 2 ]; then printf '\r\033[K  %s of at most %s: %s' "$n" "$total" "$package" >&2
        elif [ $((n % 20)) = 1 ]; then say "  $n of at most $total: $package"; fi ;;
      "Installing collected "*)
        if [ -t 2 ]; then printf '\r\033[K  unpacking ...' >&2; else say "  unpacking ..."; fi ;;
    esac
  done
  if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}
[ "$(tail -n 1 "$log")" = pip-is-done ] || {
  tail -n 15 "$log" >&2
  stop "The packages of $list could not be installed; the whole of pip's report is in $log."
}
printf '%s\n' "$made_from" >"$folder/made-from"
