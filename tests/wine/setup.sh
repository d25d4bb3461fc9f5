#!/bin/sh
# Set up what programs for Windows need to be built and run here: the compiler's library
# for them, mingw-w64's linker, wine, and a directory of its own for what wine keeps.
# Run it as often as you like. Exits 77, with the reason, where there can be no wine.
set -eu

target=x86_64-pc-windows-gnu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
home=$here/../../target/wine

skip() {
    echo "wine: $*: skipped" >&2
    exit 77
}
[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || skip "it runs programs of this processor only"

missing=
need() { # PACKAGE, then a command that it brings
    command -v "$2" >/dev/null || missing="$missing $1"
}
look() {
    missing=
    need wine wine
    need wine64 wineserver
    need gcc-mingw-w64-x86-64 x86_64-w64-mingw32-gcc
}
look
if [ -n "$missing" ]; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    if ! command -v apt-get >/dev/null || { [ -n "$sudo" ] && ! command -v sudo >/dev/null; }; then
        skip "there is no apt-get that this user may run, and no$missing"
    fi
    # Split into words on purpose.
    { $sudo apt-get -o Acquire::Retries=5 update -qq &&
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=5 install \
            -y -qq --no-install-recommends $missing; } >/dev/null ||
        skip "cannot be installed:$missing"
    look
    [ -z "$missing" ] || skip "what$missing should bring is not in PATH"
fi

[ -d "$(rustc --print target-libdir --target "$target")" ] || rustup target add "$target"

mkdir -p "$home"
x86_64-w64-mingw32-gcc -shared -O1 -o "$home/bcryptprimitives.dll" "$here/random.c" -ladvapi32

# The first program that is run makes it, which takes some seconds.
WINEPREFIX=$home/prefix WINEDEBUG=-all WINEDLLOVERRIDES="mscoree=;mshtml=" \
    timeout 300 wine cmd /c exit >/dev/null 2>&1 || skip "it does not run here"
