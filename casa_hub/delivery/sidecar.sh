# Keeps a private copy of a Secret volume: sh -c TEXT casa-hub-files SOURCE TARGET
#
# A Secret's files are root's in a volume, and HTCondor and XRootD's ztn ignore a token that isn't the user's own and
# 0600. So this runs as the user and copies them, into the layout of casa_hub/delivery/layout.py. Both paths are absolute.
# For any POSIX shell; `mv -T` is in coreutils and busybox.

source=$1 target=$2
umask 077
# A container's first process gets no signal that it doesn't ask for; kubelet would wait 30 s.
trap 'exit 0' TERM

# Whether $1 is still kubelet's present set. It moves the link ..data first and removes the old set afterwards, so what
# was read of a set before it was seen to be the present one is complete. Only builtins: this is asked every second.
present() { cd -P "$source/..data" && [ "$PWD" = "$1" ]; }

# All sets in the target but the one in use. Kubelet's names begin with the year.
remove_others() {
    used=$(cd -P "$target/..data" 2>/dev/null && pwd) used=${used##*/}
    for old in "$target"/..[0-9]*; do
        [ "${old##*/}" = "$used" ] || rm -rf "$old"
    done
}

# Every file of the set in the current directory to $1. A key has ".." where the path has "/".
copy() {
    mkdir "$1" || return
    chmod g-s "$1" || return # volumes with an fsGroup hand it down
    for key in * .[!.]*; do
        [ -e "$key" ] || continue # a pattern that matches nothing
        path=$key
        case $key in
            *..*) path=${key%%..*}/${key#*..} && { [ -d "$1/${path%/*}" ] || mkdir "$1/${path%/*}" || return; } ;;
        esac
        cat <"./$key" >"$1/$path" || return
    done
}

# Put the set in $1 in place: as kubelet does, new names after there is something behind them, old ones go last.
switch() {
    rm -f "$target/..new" && ln -s "${1##*/}" "$target/..new" && mv -T "$target/..new" "$target/..data" || return
    for entry in "$1"/* "$1"/.[!.]*; do
        name=${entry##*/}
        [ ! -e "$entry" ] || [ -L "$target/$name" ] || ln -s "..data/$name" "$target/$name" || return
    done
    for link in "$target"/* "$target"/.[!.]*; do
        [ -e "$link" ] || [ ! -L "$link" ] || rm -f "$link" || return
    done
}

seconds=0
while :; do
    if ! present "$set" && cd -P "$source/..data"; then
        set=$PWD new=${PWD##*/} seconds=0
        # Readers may still be at the set in use, not at one before it; what a run that was killed left goes as well.
        remove_others
        if [ "$used" != "$new" ]; then
            if ! copy "$target/$new"; then
                present "$set" && exit 1 # no room, say: kubelet shows that a container fails, and starts it again
                continue
            fi
            present "$set" || continue
            switch "$target/$new" || exit
            echo "$new is in place"
        fi
        : >"$target/..ready" # what the container's postStart waits for
    fi
    sleep 1 &
    wait $!
    seconds=$((seconds + 1))
    [ $seconds -ne 30 ] || remove_others
done
