# Makes a fresh Debian tree the host of the suite `host`: run by mmdebstrap as root (of this machine, or of a user
# namespace) after all packages are installed, with the tree as $1. $KERNEL_PACKAGE is the package of the kernel that
# boots it: all its modules go into the tree, as a host has them, with the package itself for the guests in that host.
set -eu
root="$1"

# Beside the tree, not into it: the package holds /lib, which is a link in the tree and has to stay one.
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
dpkg-deb --extract "$KERNEL_PACKAGE" "$unpacked"
release=$(ls "$unpacked/lib/modules")
mkdir -p "$root/usr/lib/modules" "$root/srv"
cp -a "$unpacked/lib/modules/$release" "$root/usr/lib/modules/"
chroot "$root" depmod "$release"
cp "$KERNEL_PACKAGE" "$root/srv/kernel.deb"
chmod 0644 "$root/srv/kernel.deb"

: > "$root/etc/machine-id"
rm -f "$root/etc/hostname" "$root/etc/resolv.conf" "$root/var/lib/dbus/machine-id"
: > "$root/etc/resolv.conf"
: > "$root/etc/fstab"
# The suite reads the journal of the time before a reboot.
mkdir -p "$root/var/log/journal"

# The agent is the way in, and nobody keeps this host up to date. What is left is what a host has: udev above all, which
# looks into every disk that appears.
chroot "$root" systemctl --quiet set-default multi-user.target
chroot "$root" systemctl --quiet mask \
    getty@tty1.service serial-getty@ttyS0.service console-getty.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    e2scrub_reap.service systemd-firstboot.service ssh.service ssh.socket
find "$root/usr/share/doc" ! -type d ! -name copyright -delete
rm -rf "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/locale/* "$root"/run/* \
    "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
