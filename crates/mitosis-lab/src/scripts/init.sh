# Pid 1 of a lab node. Arguments: the node's name, then the host paths it shares.
#
# It gives the node its own /proc, /run, /tmp, /var/lib and /dev/shm, so that nothing written by
# one node can be reached by another, then reaps orphans (the shell does, on SIGCHLD) until the
# lab closes its end of the pipe; with pid 1 the kernel ends everything in the node.
set -eu
name=$1
shift
# /proc is still the host's here, so this is the pid as the lab sees it.
read -r host_pid _ </proc/self/stat
echo "$name" >/proc/sys/kernel/hostname

# Shared paths below the directories that are about to be hidden are kept on a stage meanwhile.
mount -t tmpfs -o mode=700 lab-stage /mnt
staged=()
for path in "$@"; do
    case $path in /run/* | /tmp/* | /var/lib/* | /dev/shm/*) ;; *) continue ;; esac
    if [ -d "$path" ]; then mkdir "/mnt/${#staged[@]}"; else : >"/mnt/${#staged[@]}"; fi
    mount --bind "$path" "/mnt/${#staged[@]}"
    staged+=("$path")
done
for private in /run /tmp /var/lib /dev/shm; do
    mkdir -p "$private"
    mount -t tmpfs -o mode=755 "lab-$name" "$private"
done
chmod 1777 /tmp /dev/shm
for i in "${!staged[@]}"; do
    path=${staged[$i]}
    mkdir -p "$(dirname "$path")"
    if [ -d "/mnt/$i" ]; then mkdir -p "$path"; else : >"$path"; fi
    mount --bind "/mnt/$i" "$path"
    mount -o remount,bind,ro "$path"
done
umount -R -l /mnt
mount -t proc proc /proc
mkdir -p /run/lab
ip link set lo up
echo "ready $host_pid"
while read -r _; do :; done
