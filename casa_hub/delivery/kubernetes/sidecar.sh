# Keeps a private copy of a Secret volume: sh -c TEXT casa-hub-files SOURCE TARGET (absolute paths)
# The files of a Secret volume belong to root, but HTCondor and XRootD's ztn ignore a token that isn't the user's own
# with mode 0600. So this runs as the user and copies them, laid out as in casa_hub/delivery/file_layout.py. It runs in any
# POSIX shell; `mv -T` is in coreutils and busybox.
source=$1 target=$2
umask 077
trap 'exit 0' TERM # a container's first process gets only signals that it handles: else kubelet would wait 30 s

# Whether $1 is kubelet's present set. Kubelet moves the link ..data first and removes the old set afterwards. So if a
# set is still the present one after it was read, the copy is complete. Builtins only, because it is called often.
present() { cd -P "$source/..data" && [ "$PWD" = "$1" ]; }

# Removes all sets in the target but the one in use, $used. Sets have kubelet's names, which begin with the year.
remove_others() {
    used=$(cd -P "$target/..data" 2>/dev/null && pwd) used=${used##*/}
    for old in "$target"/..[0-9]*; do
        [ "${old##*/}" = "$used" ] || rm -rf "$old"
    done
}

# Copies every file of the set in the current directory to $1. A key has ".." where the path has "/".
copy() {
    mkdir "$1" && chmod g-s "$1" || return # a volume with an fsGroup passes that bit on to its directories
    for key in * .[!.]*; do
        [ -e "$key" ] || continue # a pattern that matches nothing
        case $key in
            *..*) path=${key%%..*}/${key#*..} && mkdir -p "$1/${key%%..*}" || return ;;
            *) path=$key ;;
        esac
        cat <"./$key" >"$1/$path" || return
    done
}

# Makes links to the files of the set in use, $1, and removes links whose file is gone.
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
        remove_others # but the set in use, which may still be read; others are older, or left by a killed run
        if [ "$used" != "$new" ]; then
            copy "$target/$new" || ! present "$set" || exit 1 # e.g. no space: kubelet shows it, and starts this again
            present "$set" || continue
            rm -f "$target/..new" && ln -s "$new" "$target/..new" && mv -T "$target/..new" "$target/..data" || exit
        fi
        link "$target/$new" && : >"$target/..ready" || exit # the container's postStart waits for ..ready
        echo "$new is in place"
    fi
    sleep 2 & # kubelet itself looks about once a minute; a process each second for each server would cost too much
    wait $!
    [ $((rounds += 1)) -ne 15 ] || remove_others
done
