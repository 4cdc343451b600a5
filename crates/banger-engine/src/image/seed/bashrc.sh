# ~/.bashrc: read by interactive bash. From Banger, because the image's home had none; it is yours to change.
case $- in
*i*) ;;
*) return ;;
esac
HISTCONTROL=ignoreboth
shopt -s checkwinsize histappend
PS1='\u@\h:\w\$ '
