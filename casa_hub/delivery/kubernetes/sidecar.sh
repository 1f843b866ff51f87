# Keeps a private copy of a Secret volume: sh -c TEXT casa-hub-files SOURCE TARGET (absolute paths)
# A Secret's files are root's in a volume, and HTCondor and XRootD's ztn ignore a token that isn't the user's own and
# 0600. So this runs as the user and copies them, laid out as in casa_hub/delivery/layout.py. For any POSIX shell;
# `mv -T` is in coreutils and busybox.
source=$1 target=$2
umask 077
trap 'exit 0' TERM # a container's first process gets no signal that it doesn't ask for: kubelet would wait 30 s

# Whether $1 is kubelet's present set. It moves the link ..data first and removes the old set afterwards, so what was
# read of a set before it was seen to be the present one is complete. Only builtins: it is asked all the time.
present() { cd -P "$source/..data" && [ "$PWD" = "$1" ]; }

# All sets in the target but the one in use, $used. Kubelet's names, which are kept, begin with the year.
remove_others() {
    used=$(cd -P "$target/..data" 2>/dev/null && pwd) used=${used##*/}
    for old in "$target"/..[0-9]*; do
        [ "${old##*/}" = "$used" ] || rm -rf "$old"
    done
}

# Every file of the set in the current directory to $1. A key has ".." where the path has "/".
copy() {
    mkdir "$1" && chmod g-s "$1" || return # volumes with an fsGroup hand that bit down
    for key in * .[!.]*; do
        [ -e "$key" ] || continue # a pattern that matches nothing
        case $key in
            *..*) path=${key%%..*}/${key#*..} && mkdir -p "$1/${key%%..*}" || return ;;
            *) path=$key ;;
        esac
        cat <"./$key" >"$1/$path" || return
    done
}

# The links to the files of the set in use, $1: what is new has something behind it by now, what is gone has not.
link() {
    for entry in "$1"/* "$1"/.[!.]*; do
        name=${entry##*/}
        [ ! -e "$entry" ] || [ -L "$target/$name" ] || ln -s "..data/$name" "$target/$name" || return
    done
    for entry in "$target"/* "$target"/.[!.]*; do
        [ -e "$entry" ] || [ ! -L "$entry" ] || rm -f "$entry" || return
    done
}

while :; do
    if ! present "$set" && cd -P "$source/..data"; then
        set=$PWD new=${PWD##*/} rounds=0
        remove_others # readers may still be at the set in use; others are older, or what a run that was killed left
        if [ "$used" != "$new" ]; then
            copy "$target/$new" || ! present "$set" || exit 1 # no room, say: kubelet shows it, and starts this again
            present "$set" || continue
            rm -f "$target/..new" && ln -s "$new" "$target/..new" && mv -T "$target/..new" "$target/..data" || exit
        fi
        link "$target/$new" && : >"$target/..ready" || exit # which the container's postStart waits for
        echo "$new is in place"
    fi
    sleep 2 & # kubelet itself looks about once a minute; a process a second from each server would be felt
    wait $!
    [ $((rounds += 1)) -ne 15 ] || remove_others
done
