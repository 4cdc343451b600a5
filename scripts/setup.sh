#!/usr/bin/env bash
# Installs what building and running Banger needs and this machine lacks: Debian packages in one apt-get call, and
# vhost-device-vsock into target/tools. Quick and silent when nothing is missing. A script and not part of xtask because
# it has to run where there is no linker yet.
#
#   scripts/setup.sh        to build and run
#   scripts/setup.sh test   to test as well
set -euo pipefail
cd "$(dirname "$0")/.."

VHOST_DEVICE_VSOCK=0.3.0
target=${CARGO_TARGET_DIR:-target}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing=()
# need PROGRAM PACKAGE…: the packages are wanted when the program is not in PATH.
need() {
    local program=$1
    shift
    command -v "$program" >/dev/null || missing+=("$@")
}

need cc gcc libc6-dev
need make make
need qemu-system-x86_64 qemu-system-x86
need mmdebstrap mmdebstrap
need mke2fs e2fsprogs
# Disk images of QEMU's, to register.
need qemu-img qemu-utils
# What the network's bridge and `banger ssh` take of the host.
need nft nftables
need ssh openssh-client
# A busybox that is linked dynamically does not run in an image that has no libraries.
if ! command -v busybox >/dev/null || [[ -n $(dpkg-query -W -f '${Version}' busybox 2>/dev/null || true) ]]; then
    missing+=(busybox-static)
fi
if [[ $EUID -ne 0 ]]; then
    # mmdebstrap unpacks packages as a user by way of user namespaces.
    need newuidmap uidmap
fi
if [[ ${1:-} == test ]]; then
    need zstd zstd
    # libFuzzer.
    need g++ g++
    need unzip unzip
    # File systems that share blocks, for system disks of that kind.
    need mkfs.xfs xfsprogs
    need mkfs.btrfs btrfs-progs
    # Names on the host: a message bus of the tests' own. systemd-resolved itself is unpacked, never installed.
    need dbus-daemon dbus-daemon
    need ip iproute2
    # The user-mode network of machines without privileges, where it is installed.
    need passt passt
    # Tables of partitions, made by others.
    need sfdisk fdisk
    need rsync rsync
    # Images made and unpacked by others, to compare with.
    need umoci umoci
    need skopeo skopeo
    # A clock that jumps.
    [[ -e /usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1 ]] || missing+=(libfaketime)
    # Any way to reach pip will do; the test bed fetches a wheel with it.
    command -v pip3 >/dev/null || python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
fi

as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "error: this needs root and there is no sudo; run as root: $*" >&2
        exit 1
    fi
}

# Says what is being done, shows the output only when it fails.
quietly() {
    local log=$target/setup.log
    mkdir -p "$target"
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        echo "error: failed: $* (the output above is kept in $log)" >&2
        exit 1
    fi
}

if ! command -v apt-get >/dev/null; then
    if [[ ${#missing[@]} -gt 0 ]]; then
        echo "error: missing, and this is no Debian to install it on: ${missing[*]}" >&2
        exit 1
    fi
else
    # Banger fetches its default kernel and its image's packages through apt, so apt has to know about packages at all.
    if [[ ${#missing[@]} -gt 0 ]] || ! apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1; then
        if [[ $EUID -ne 0 ]] && command -v sudo >/dev/null; then
            sudo -v # asks for the password here, where it can be seen
        fi
        echo "setup: reading package lists"
        quietly as_root apt-get -q update
    fi
    if [[ ${#missing[@]} -gt 0 ]]; then
        echo "setup: installing ${missing[*]}"
        quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends "${missing[@]}"
    fi
fi

if ! command -v cargo >/dev/null; then
    echo "error: no cargo in PATH; install a Rust toolchain first" >&2
    exit 1
fi
if ! grep -qs "\"vhost-device-vsock $VHOST_DEVICE_VSOCK " "$target/tools/.crates.toml"; then
    echo "setup: building vhost-device-vsock $VHOST_DEVICE_VSOCK (about a minute)"
    quietly cargo install --quiet --locked --root "$target/tools" "vhost-device-vsock@$VHOST_DEVICE_VSOCK"
fi
