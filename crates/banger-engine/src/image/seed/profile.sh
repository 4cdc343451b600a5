# ~/.profile: read by login shells. From Banger, because the image's home had none; it is yours to change.
case ":${PATH-}:" in
*:/usr/sbin:*) ;;
*) PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin${PATH:+:$PATH} ;;
esac
[ -d "$HOME/.local/bin" ] && PATH=$HOME/.local/bin:$PATH
export PATH
[ -n "${TERM-}" ] || TERM=linux
export TERM

if [ -n "${BASH_VERSION-}" ]; then
    [ ! -r "$HOME/.bashrc" ] || . "$HOME/.bashrc"
else
    # The machine's name and where one is; $PWD is looked at for each prompt.
    PS1="$(id -un 2>/dev/null || echo root)@$(hostname 2>/dev/null || cat /proc/sys/kernel/hostname):\$PWD\$ "
    [ "$(id -u 2>/dev/null)" != 0 ] || PS1="${PS1%\$ }# "
fi
