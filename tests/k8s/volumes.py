"""Folders of the node that are the volumes of pods."""

import os
from contextlib import suppress
from pathlib import Path

from tests.k8s.objects import Object, ObjectStore, Pod


def make_volume(root: Path, pod: Pod, volume: Object, store: ObjectStore) -> Path:
    """Return a folder with the content of a volume.

    Args:
        root: holds the folders of all pods.
        pod: gets the folder, which its `fsGroup` may write.
        volume: emptyDir, ConfigMap, Secret, claim or hostPath.
        store: has the ConfigMaps and Secrets.

    Raises:
        LookupError: a ConfigMap or a Secret is missing.
    """
    if "hostPath" in volume:
        return Path(volume["hostPath"]["path"])
    claim = volume.get("persistentVolumeClaim")
    path = root.joinpath(*("claims", claim["claimName"]) if claim else (pod.name, volume["name"]))
    path.mkdir(parents=True, exist_ok=True)
    for name, text in _files(volume, store).items():
        (path / name).write_text(text)
    group = pod.spec.get("securityContext", {}).get("fsGroup", 0)
    with suppress(OSError):  # only root can, outside of a user namespace. Processes do without
        for one in (path, *path.iterdir()):
            os.chown(one, 0, group)
    path.chmod(0o2770 if group else 0o777)
    return path


def _files(volume: Object, store: ObjectStore) -> dict[str, str]:
    for kind, key, name in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
        if key in volume:
            items = {one["key"]: one["path"] for one in volume[key].get("items", [])}
            return {items.get(one, one): text for one, text in store.texts(kind, volume[key][name]).items()}
    return {}
