#!/bin/sh
# Set up what the tests need besides the Rust toolchain: ps, flock, unshare, mkfs.ext4,
# strace, FUSE, nginx, systemd, Chromium, Node with its xmlrpc package, one Python
# environment for each version of openlock the tests run against, one with a FUSE library,
# one with schemathesis and a reader of Prometheus' format, and three versions of etcd.
# Run it as often as you like; when all is there it takes a moment.
set -eu

versions="1.1.1 1.2.1"
home=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)/target/python

need() { # PACKAGE, then a command that succeeds if it is there
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
has_library() { # NAME
    PATH="$PATH:/sbin:/usr/sbin" ldconfig -p | grep -q "$1"
}
look() {
    missing=
    need procps command -v ps
    need e2fsprogs command -v mkfs.ext4
    need util-linux command -v flock
    need util-linux command -v unshare
    need strace command -v strace
    need fuse3 command -v fusermount3
    need libfuse3-3 has_library libfuse3.so
    need python3-venv python3 -c 'import ensurepip, venv'
    need nodejs command -v node
    need npm command -v npm
    need chromium command -v chromium
    need openssl command -v openssl
    need curl command -v curl
    need systemd command -v systemd-socket-activate
    need systemd command -v systemd-analyze
    # Its place is not in the PATH of every user.
    need nginx-light test -x /usr/sbin/nginx
}
look

if [ -n "$missing" ]; then
    echo "setup: installing$missing"
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    if ! command -v apt-get >/dev/null || { [ -n "$sudo" ] && ! command -v sudo >/dev/null; }; then
        echo "setup: no apt-get that this user may run: install these yourself:$missing" >&2
        exit 1
    fi
    $sudo apt-get -o Acquire::Retries=5 update -qq
    # Split into words on purpose.
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=5 install \
        -y -qq --no-install-recommends $missing
    look
    for package in $missing; do
        case $package in
        python3-venv) echo "setup: $(command -v python3 || echo python3) has no venv module:" \
            "put Debian's /usr/bin first in PATH" >&2 ;;
        *) echo "setup: $package is installed, but what it brings is not in PATH" >&2 ;;
        esac
    done
    [ -z "$missing" ] || exit 1
fi

is_ready() { # VERSION
    "$home/openlock-$1/bin/python" -c \
        'import openlock, sys; sys.exit(openlock.__version__ != sys.argv[1])' "$1" 2>/dev/null
}

mkdir -p "$home"
exec 9<"$home"
flock 9 # two set-ups at once would build the same environments
for version in $versions; do
    if is_ready "$version"; then
        echo "setup: openlock $version is there"
        continue
    fi
    echo "setup: making $home/openlock-$version"
    python3 -m venv --clear "$home/openlock-$version"
    "$home/openlock-$version/bin/python" -m pip install --quiet --retries 10 \
        --disable-pip-version-check --no-deps "openlock==$version"
    if ! is_ready "$version"; then
        echo "setup: $home/openlock-$version does not work" >&2
        exit 1
    fi
done

fuse=$home/fuse
if "$fuse/bin/python" -c 'import mfusepy' 2>/dev/null; then
    echo "setup: mfusepy is there"
else
    echo "setup: making $fuse"
    python3 -m venv --clear "$fuse"
    "$fuse/bin/python" -m pip install --quiet --retries 10 \
        --disable-pip-version-check --no-deps mfusepy==3.1.1
fi

description=$home/schemathesis
if "$description/bin/python" -c 'import sys, prometheus_client
from importlib.metadata import version
sys.exit(version("schemathesis") != "4.32.5")' 2>/dev/null; then
    echo "setup: schemathesis and prometheus_client are there"
else
    echo "setup: making $description"
    python3 -m venv --clear "$description"
    "$description/bin/python" -m pip install --quiet --retries 10 \
        --disable-pip-version-check schemathesis==4.32.5 prometheus_client==0.26.0
fi

node=${home%/python}/node
mkdir -p "$node"
exec 8<"$node"
flock 8
if [ -e "$node/node_modules/xmlrpc/package.json" ]; then
    echo "setup: the xmlrpc package is there"
else
    echo "setup: making $node"
    npm install --prefix "$node" --no-fund --no-audit --silent --fetch-retries 5 xmlrpc@1.3.2
fi

# etcd is unpacked and never installed: the package would start a server on this machine
# and at each boot, and only one version of it could be there. Its programs need libc alone.
run_etcd() { # PROGRAM, arguments
    # etcd 3.4 starts on other processors than amd64 only if they are named.
    ETCD_UNSUPPORTED_ARCH=$(dpkg --print-architecture 2>/dev/null || uname -m) "$@" 2>/dev/null
}
has_etcd() { # VERSION: unpacked here, or the one in PATH
    for etcd in "${home%/python}/etcd-$1/usr/bin/etcd" etcd; do
        run_etcd "$etcd" --version | grep -q "^etcd Version: $1\." || continue
        ETCDCTL_API=3 run_etcd "${etcd}ctl" version | grep -q "version: $1\." && return
    done
    return 1
}
apt_in() { # FOLDER, arguments: apt-get with a source and lists of its own there
    folder=$1
    shift
    apt-get -qq -o Dir::State="$folder" -o Dir::State::status=/dev/null -o Dir::Cache="$folder" \
        -o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o APT::Sandbox::User= -o Acquire::Languages=none -o Acquire::Retries=3 \
        -o Acquire::http::Timeout=20 "$@"
}
unpack_etcd() { # VERSION DEBIAN_RELEASE MIRROR: apt checks the signature and what it brings
    apt=${home%/python}/etcd-$1.apt new=${home%/python}/etcd-$1.new
    rm -rf "$apt" "$new"
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$new"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $3 $2 main" \
        >"$apt/sources.list"
    apt_in "$apt" update && (cd "$apt" && apt_in "$apt" download etcd-server etcd-client) &&
        for package in "$apt"/*.deb; do dpkg-deb -x "$package" "$new" || return; done &&
        rm -rf "${new%.new}" && mv "$new" "${new%.new}" && has_etcd "$1"
}
bring_etcd() { # VERSION DEBIAN_RELEASE
    if has_etcd "$1"; then
        echo "setup: etcd $1 is there"
        return
    fi
    echo "setup: unpacking etcd $1 of Debian's $2 into ${home%/python}/etcd-$1"
    # A release that is no longer maintained moves to the archive.
    for mirror in http://deb.debian.org/debian http://archive.debian.org/debian; do
        if said=$(unpack_etcd "$1" "$2" "$mirror" 2>&1); then
            rm -rf "${home%/python}/etcd-$1.apt"
            return
        fi
    done
    rm -rf "${home%/python}/etcd-$1.apt" "${home%/python}/etcd-$1.new"
    echo "setup: etcd $1 cannot be had, so tests with it are skipped: $said" >&2
}
bring_etcd 3.4 bookworm
bring_etcd 3.5 trixie
# It is too old for lockkeeper, which has to say so.
bring_etcd 3.3 bullseye
