#!/usr/bin/env bash
# The main job on a real image, step by step: load, list, mount, run, change, diff, unmount.
#
#   make demo                     on an image made of Debian's packages, built once by mmdebstrap and umoci
#   make demo IMAGE=path          on any archive of yours (docker save, OCI archive) or OCI layout directory
#
# Every line that starts with "$" is a command to repeat by hand. All that is made lies in one scratch directory, which
# is removed at the end, also after a failure.
set -euo pipefail

if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null; then
        echo "The kernel lets only root mount; going on through sudo."
        exec sudo --preserve-env=XDG_CACHE_HOME,TMPDIR env "PATH=$PATH" "$0" "$@"
    fi
    echo "The kernel lets only root mount: run this as root." >&2
    exit 1
fi

work=$(mktemp -d "${TMPDIR:-/var/tmp}/layerfs-demo.XXXXXX")
export LAYERFS_ROOT=$work/store LAYERFS_RUNROOT=$work/run
mnt=./mnt

clean_up() {
    status=$?
    cd "$work"
    if mountpoint -q "$mnt" 2>/dev/null; then umount "$mnt" || umount --lazy "$mnt"; fi
    cd /
    rm -rf --one-file-system "$work"
    [ $status = 0 ] || echo "demo: a step failed (exit $status); everything was cleaned up" >&2
}
trap clean_up EXIT
trap 'exit 130' INT TERM

names=() times=()

# step NAME: what is done next, in words.
step() { if [ -t 1 ]; then printf '\n\033[1m# %s\033[0m\n' "$1"; else printf '\n# %s\n' "$1"; fi; }

# timed NAME COMMAND...: shows the command, runs it, keeps its time.
timed() {
    local name=$1 start end
    shift
    printf '$ %s\n' "$(quoted "$@")"
    start=$(date +%s%N)
    "$@"
    end=$(date +%s%N)
    names+=("$name") times+=($(((end - start) / 1000)))
}

shown() { printf '$ %s\n' "$(quoted "$@")"; "$@"; }

# quoted WORDS...: as they would be typed.
quoted() {
    local word out=()
    for word in "$@"; do
        if [[ $word =~ ^[A-Za-z0-9_./:=@,+-]+$ ]]; then out+=("$word")
        elif [[ $word == *\'* && $word != *[\"\$\`\\]* ]]; then out+=("\"$word\"")
        else out+=("'${word//\'/\'\\\'\'}'")
        fi
    done
    printf '%s' "${out[*]}"
}

# transport PATH: how skopeo calls this form of an image.
transport() {
    if [ -d "$1" ]; then echo oci
    elif tar -tf "$1" 2>/dev/null | grep -qx 'manifest.json'; then echo docker-archive
    else echo oci-archive
    fi
}

image=${1:-}
if [ -z "$image" ]; then
    step "The image: Debian's base, python3 and git on top; made once, by tools that are not ours"
    image=$(cd "$(dirname "$0")/.." && python -m bench.corpus demo)/oci.tar
fi
[ -e "$image" ] || { echo "demo: $image does not exist" >&2; exit 1; }
image=$(realpath "$image")
printf '%s\n' "$(du -sh "$image")"

step "Load it into an empty store: one pass, verified, durable when the command ends"
printf '$ cd %s\n$ export LAYERFS_ROOT=$PWD/store LAYERFS_RUNROOT=$PWD/run\n' "$work"
cd "$work"
timed "load" layerfs load --input "$image"
timed "load again" layerfs load --input "$image"

step "What is there"
shown layerfs images
name=$(layerfs images --format '{{.Repository}}:{{.Tag}}' | head -n 1)
[[ $name == *'<none>'* ]] && name=$(layerfs images --quiet | head -n 1)
shown layerfs layers "$name"

step "Mount it with a writable layer of its own"
shown mkdir "$mnt"
timed "mount" layerfs mount "$name" "$mnt" --name demo

step "Run a program of the image inside it"
if [ -x "$mnt/usr/bin/python3" ]; then
    timed "run" chroot "$mnt" /usr/bin/python3 -c 'import sys; print(sys.version); print(open("/etc/os-release").readline())'
elif [ -e "$mnt/bin/sh" ] || [ -L "$mnt/bin/sh" ]; then
    timed "run" chroot "$mnt" /bin/sh -c 'echo "hello from inside"; ls /'
else
    echo "(this image has neither python3 nor a shell)"
fi

step "Change, delete and add"
mkdir -p "$mnt/etc" "$mnt/srv"
shown sh -c "echo '# changed in the demo' >> $mnt/etc/profile"
victim=$mnt/usr/share/common-licenses/GPL-3
[ -f "$victim" ] || victim=$(find "$mnt" -xdev -type f | sort | sed -n 1p)
shown rm "$victim"
shown mkdir "$mnt/srv/demo"
shown sh -c "date > $mnt/srv/demo/created"

step "What the container changed: read from its writable layer alone"
timed "diff" layerfs diff demo

step "Unmount; the container stays, and is found again by its name"
timed "umount" layerfs umount "$mnt"
timed "mount again" layerfs mount --name demo "$mnt"
shown cat "$mnt/srv/demo/created"
shown layerfs umount demo
shown layerfs df

step "Beside it: tar -x of the same layers, which checks nothing and gives no layers to share"
source=$(transport "$image"):$image
printf '$ %s\n' "$(quoted skopeo copy "$source" dir:blobs)"
if skopeo copy --quiet "$source" dir:blobs 2>skopeo.log; then
    shown mkdir plain
    layers=$(python -c 'import json; print(*(layer["digest"].split(":")[1] for layer in json.load(open("blobs/manifest.json"))["layers"]))')
    untar="for layer in $layers; do tar --xattrs --xattrs-include='*' -xpf blobs/\$layer -C plain; done"
    printf '$ %s\n' "$untar"
    start=$(date +%s%N)
    bash -ec "$untar"
    names+=("tar -x") times+=($((($(date +%s%N) - start) / 1000)))
else
    echo "(skopeo could not read the image, so there is no comparison: $(tail -n 1 skopeo.log))"
fi

step "How long each step took"
for index in "${!names[@]}"; do
    printf '%-12s %9.3f s\n' "${names[$index]}" "$(printf '%de-6' "${times[$index]}")"
done
