#!/bin/sh
# Run a program for Windows under wine, as cargo's `runner`: PROGRAM, then its arguments.
# tests/wine/setup.sh has to have run.
set -eu

home=$(CDPATH='' cd -- "$(dirname -- "$0")/../../target/wine" && pwd)
export WINEPREFIX="$home/prefix" WINEDEBUG="${WINEDEBUG--all}" LOCKKEEPER_WINE=1
# Where Windows looks for libraries.
export WINEPATH="$home"
# Wine's own processes outlive the last program for a while. They must not keep the
# caller's pipes open.
exec wine "$@"
