"""The verbs with one line about each: what ``layerfs --help`` shows without importing any of them."""

from __future__ import annotations

from typing import Final

__all__ = ["ALIASES", "SECTIONS", "VERBS"]

#: Verb to summary, by section. A test compares the summaries with the verbs' own.
SECTIONS: Final[dict[str, dict[str, str]]] = {
    "Images": {
        "load": "Load images from an archive, a layout or standard input.",
        "pull": "Pull images from a registry, or through another transport.",
        "push": "Push an image to a registry.",
        "save": "Write images into an archive that other tools load.",
        "import": "Make an image of a plain file tree.",
        "images": "List images.",
        "inspect": "Show images and containers as JSON.",
        "history": "Show the steps in which an image was made.",
        "layers": "List the layers of an image.",
        "explore": "Browse the layers and files of an image.",
        "report": "Show where the bytes of an image are.",
        "squash": "Make one layer of an image's layers.",
        "rebase": "Put an image's own layers on another base.",
        "tag": "Give an image further names.",
        "rmi": "Remove images, or names of images.",
    },
    "Registries": {
        "login": "Log in to a registry.",
        "logout": "Log out of a registry.",
        "copy": "Copy an image between registries, archives, directories and the store.",
        "tags": "List the tags of a repository on a registry.",
    },
    "Files of an image, without a mount": {
        "ls": "List files of an image.",
        "cat": "Write files of an image to standard output.",
        "extract": "Write files of an image into a directory.",
        "export": "Write all files of a container or an image as a tar.",
        "which": "Show which layers provide or hide a path.",
    },
    "Mounts and containers": {
        "mount": "Mount an image, or list mounts.",
        "umount": "Unmount images and containers.",
        "ps": "List containers.",
        "diff": "Show what was changed in a container, or between images.",
        "commit": "Make an image of a container.",
        "apply": "Change a container as a layer says.",
        "rm": "Remove containers.",
    },
    "Store": {
        "df": "Show how much the store takes and what sharing saves.",
        "info": "Show this store and what works on this machine.",
        "check": "Read the whole store and report what is damaged.",
        "gc": "Remove what nothing refers to.",
        "version": "Show versions.",
        "completion": "Print the completion script for a shell.",
    },
}

VERBS: Final = {verb: summary for section in SECTIONS.values() for verb, summary in section.items()}

#: Other words that users of docker, podman and mount(8) know.
ALIASES: Final = {"unmount": "umount", "prune": "gc"}
