#!/bin/sh
# Set up what the tests need besides the Rust toolchain: ps, flock, unshare, mkfs.ext4,
# strace, FUSE, nginx, systemd, Chromium, Node with its xmlrpc package, one Python
# environment for each version of openlock the tests run against, one with a FUSE library,
# one with schemathesis and a reader of Prometheus' format, three versions of etcd, and
# PostgreSQL 15 with PgBouncer.
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

# Servers are unpacked and never installed: their packages would start one on this machine
# and at each boot, and only one version of it could be there.
target=${home%/python}
apt_in() { # FOLDER, arguments: apt-get with a source and lists of its own there
    folder=$1
    shift
    apt-get -qq -o Dir::State="$folder" -o Dir::State::status=/dev/null -o Dir::Cache="$folder" \
        -o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o APT::Sandbox::User= -o Acquire::Languages=none -o Acquire::Retries=3 \
        -o Acquire::http::Timeout=20 "$@"
}
unpack() { # FOLDER DEBIAN_RELEASE PACKAGES MIRROR: apt checks the signature and what it brings
    apt=$1.apt new=$1.new
    rm -rf "$apt" "$new"
    mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$new"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $4 $2 main" \
        >"$apt/sources.list"
    # Split into words on purpose.
    apt_in "$apt" update && packages=$("$3" "$apt") &&
        (cd "$apt" && apt_in "$apt" download $packages) &&
        for package in "$apt"/*.deb; do dpkg-deb -x "$package" "$new" || return; done &&
        rm -rf "$1" && mv "$new" "$1"
}
bring() { # NAME FOLDER DEBIAN_RELEASE PACKAGES, then a command that succeeds if it is there
    name=$1 into=$2 release=$3 list=$4
    shift 4
    if "$@" >/dev/null 2>&1; then
        echo "setup: $name is there"
        return
    fi
    echo "setup: unpacking $name of Debian's $release into $into"
    said=
    # A release that is no longer maintained moves to the archive.
    for mirror in http://deb.debian.org/debian http://archive.debian.org/debian; do
        if said="$said$(unpack "$into" "$release" "$list" "$mirror" 2>&1 && "$@" 2>&1)"; then
            rm -rf "$into.apt"
            return
        fi
    done
    rm -rf "$into.apt" "$into.new"
    echo "setup: $name cannot be had, so tests with it are skipped: $said" >&2
}

# The programs of etcd need libc alone.
run_etcd() { # PROGRAM, arguments
    # etcd 3.4 starts on other processors than amd64 only if they are named.
    ETCD_UNSUPPORTED_ARCH=$(dpkg --print-architecture 2>/dev/null || uname -m) "$@" 2>/dev/null
}
has_etcd() { # VERSION: unpacked here, or the one in PATH
    for etcd in "$target/etcd-$1/usr/bin/etcd" etcd; do
        run_etcd "$etcd" --version | grep -q "^etcd Version: $1\." || continue
        ETCDCTL_API=3 run_etcd "${etcd}ctl" version | grep -q "version: $1\." && return
    done
    return 1
}
packages_of_etcd() {
    echo etcd-server etcd-client
}
bring_etcd() { # VERSION DEBIAN_RELEASE
    bring "etcd $1" "$target/etcd-$1" "$2" packages_of_etcd has_etcd "$1"
}
bring_etcd 3.4 bookworm
bring_etcd 3.5 trixie
# It is too old for lockkeeper, which has to say so.
bring_etcd 3.3 bullseye

# PostgreSQL's programs need some fifty libraries, which are unpacked beside them: a machine
# without a database has few of them. Those of C itself have to be the machine's own.
packages_of_postgres() { # FOLDER of apt
    apt_in "$1" install --simulate --no-install-recommends \
        postgresql-15 postgresql-client-15 pgbouncer | awk '
        $1 != "Inst" || $2 ~ /^lib(c6|c-bin|c-l10n|perl.*|llvm.*|z3-.*|.*-perl|.*-common|.*-modules.*)$/ { next }
        $2 ~ /^(lib.*|zlib1g|postgresql-15|postgresql-client-15|pgbouncer)$/ { print $2 }'
}
runs_postgres() { # ROOT of the programs and their libraries, or nothing
    libraries=$(printf '%s:' "$1"/lib/*-linux-gnu* "$1"/usr/lib/*-linux-gnu*)
    for program in lib/postgresql/15/bin/postgres lib/postgresql/15/bin/psql sbin/pgbouncer; do
        LD_LIBRARY_PATH=${1:+$libraries} "$1/usr/$program" --version || return
    done
}
has_postgres() { # unpacked here, or installed
    runs_postgres "$target/postgres" || runs_postgres ""
}
bring "PostgreSQL 15" "$target/postgres" bookworm packages_of_postgres has_postgres
