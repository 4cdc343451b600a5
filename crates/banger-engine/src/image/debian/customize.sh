# Makes a fresh Debian tree an image for machines: run by mmdebstrap as root (of the host, or of a user namespace) after
# all packages are installed, with the tree as $1. Everything here is about two things: no trace of the host that built
# it, nothing that two machines of the image must not share; and a quick, quiet start.
set -eu
root="$1"
unit_dir="$root/etc/systemd/system"

# --- what belongs to one machine is made by that machine ---------------------------------------------------------
# An empty machine-id is filled in by systemd at the first start, without the questions and presets of a "first boot"
# that the word "uninitialized" would bring about.
: > "$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed" "$root"/etc/ssh/ssh_host_*
ln -s /etc/machine-id "$root/var/lib/dbus/machine-id"
cat > "$unit_dir/banger-ssh-host-keys.service" <<'UNIT'
[Unit]
Description=SSH host keys of this machine
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service ssh.socket

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
RequiredBy=ssh.service
UNIT
# The name is set by the agent before systemd starts, which keeps it where there is no such file.
rm -f "$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"
# So are the name servers.
rm -f "$root/etc/resolv.conf"
: > "$root/etc/resolv.conf"
: > "$root/etc/fstab"
echo 'LANG=C.UTF-8' > "$root/etc/default/locale"
# Locked: a shell comes by way of the agent, or with a key.
chroot "$root" usermod --password '*' root

# --- a quick start -----------------------------------------------------------------------------------------------
chroot "$root" systemctl --quiet enable banger-ssh-host-keys.service
chroot "$root" systemctl --quiet set-default multi-user.target
# The console is a log, not a terminal; the agent is the way in. Upkeep by timers is for machines that live for months,
# scrubbing and trimming for disks of their own, and the kernel's modules for these mounts are not there.
chroot "$root" systemctl --quiet mask \
    getty@tty1.service serial-getty@ttyS0.service console-getty.service \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    e2scrub_reap.service systemd-pstore.service systemd-firstboot.service \
    proc-sys-fs-binfmt_misc.automount dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount
chroot "$root" systemctl --quiet disable remote-fs.target

# --- a small image -----------------------------------------------------------------------------------------------
# Documentation and translations are a fifth of it; packages that are installed later bring theirs. Licences stay.
find "$root/usr/share/doc" ! -type d ! -name copyright -delete
find "$root/usr/share/doc" -type d -empty -delete
rm -rf "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/locale/* "$root"/usr/share/lintian

# --- no traces ---------------------------------------------------------------------------------------------------
# The sources are those of any Debian, whichever mirror was used to build.
if [ -e "$root/etc/apt/sources.list.default" ]; then
    mv "$root/etc/apt/sources.list.default" "$root/etc/apt/sources.list"
fi
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
# /tmp, and apt's lists and cache, are mmdebstrap's to empty, after this: it keeps its own configuration of apt there,
# and without that it would go on with the host's apt.
rm -rf "$root"/var/cache/debconf/*-old "$root"/var/cache/ldconfig/aux-cache "$root"/var/lib/dpkg/*-old "$root"/var/backups/* \
    "$root"/var/tmp/* "$root"/run/* "$root"/root/.bash_history "$root"/etc/.pwd.lock \
    "$root"/etc/passwd- "$root"/etc/group- "$root"/etc/shadow- "$root"/etc/gshadow- \
    "$root"/etc/subuid- "$root"/etc/subgid-
find "$root/var/log" -type f -delete
