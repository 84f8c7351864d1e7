"""Anny (Apache-2.0, CC0 assets): the default body. From poses and phenotypes to canonical meshes and a Topology."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from scipy.spatial.transform import Rotation

from mega_model.core.topology import SMPL_JOINTS, Topology

AXES = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)
"""From Anny's axes (x left, y back, z up) to the canonical ones (x left, y up, z forward)."""

HIERARCHY_SEEDS = (967, 609, 276, 99, 1091, 408, 1137, 165, 803, 494)
"""Seed vertices of the default topology's pooling hierarchy. They give exactly 54 tokens."""

# SMPL joint -> the Anny bone whose head it is; hands and feet have none
_JOINT_BONES = {
    "pelvis": "root", "spine1": "spine04", "spine2": "spine02", "spine3": "spine01", "neck": "neck01", "head": "head",
    "hip": "upperleg01", "knee": "lowerleg01", "ankle": "foot",
    "collar": "clavicle", "shoulder": "upperarm01", "elbow": "lowerarm01", "wrist": "wrist",
}  # fmt: skip
# further bones -> the joint whose part they move
_BETWEEN = {
    "pelvis": "pelvis", "spine05": "pelvis", "spine03": "spine1", "neck02": "neck", "neck03": "neck",
    "upperleg02": "hip", "lowerleg02": "knee", "shoulder01": "collar", "upperarm02": "shoulder", "lowerarm02": "elbow",
}  # fmt: skip


class AnnyBody:
    """Anny with the bones of the pose data, on the 1229-vertex topology."""

    def __init__(self) -> None:
        import anny  # takes seconds, so arguments are checked first

        rig, topology = "anny-nohands-notoes-noexpression", "notoes_collapse10pc"
        self.model = anny.Anny(rig=rig, topology=topology).float().eval()
        self.faces = self.model.get_triangular_faces().numpy().astype(np.int32)

    def canonical(
        self, poses: np.ndarray, bones: list[str], phenotypes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bodies without global rotation.

        poses [B, K, 3]: rotation vectors (radians, Anny's axes) of K bones, the root first; phenotypes [B, 6].
        Returns vertices [B, V, 3], bone heads [B, bones, 3] (both canonical, metres) and the root's rotation [B, 3, 3].
        """
        matrices = Rotation.from_rotvec(poses.reshape(-1, 3)).as_matrix().reshape(*poses.shape[:2], 3, 3)
        transforms = torch.eye(4).repeat(len(poses), self.model.bone_count, 1, 1)
        for k, bone in enumerate(bones[1:], start=1):
            transforms[:, self.model.bone_labels.index(bone), :3, :3] = torch.from_numpy(matrices[:, k]).float()
        with torch.no_grad():
            out = self.model(
                pose_parameters=transforms,
                phenotype_kwargs=torch.from_numpy(phenotypes).float(),
                pose_parameterization="local-ref",
            )
        vertices = out["vertices"].numpy() @ AXES.T
        heads = out["bone_poses"][:, :, :3, 3].numpy() @ AXES.T
        centre = vertices.mean(axis=1, keepdims=True)
        return vertices - centre, heads - centre, (AXES @ matrices[:, 0] @ AXES.T).astype(np.float32)

    def topology(self, poses: np.ndarray, bones: list[str], phenotypes: np.ndarray) -> Topology:
        """Template, faces, parts, and SMPL's 24 joints as a regressor fitted to the given bodies."""
        rest = np.zeros((1, len(bones), 3)), bones, np.full((1, 6), 0.5)
        template = self.canonical(*rest)[0][0].astype(np.float32)
        parts = self._parts()
        vertices, heads, _ = self.canonical(poses, bones, phenotypes)
        regressor = np.zeros((len(SMPL_JOINTS), len(template)), np.float32)
        for j, joint in enumerate(SMPL_JOINTS):
            side, _, name = joint.rpartition("_")
            if name == "hand":  # the middle of the hand
                regressor[j] = parts == SMPL_JOINTS.index(f"{side}_wrist")
            elif name == "foot":  # the ball of the foot: its front half
                foot = parts == SMPL_JOINTS.index(f"{side}_ankle")
                regressor[j] = foot & (template[:, 2] > np.median(template[foot, 2]))
            else:
                bone = _JOINT_BONES[name] + (f".{side[0].upper()}" if side else "")
                head = heads[:, self.model.bone_labels.index(bone)]
                near = np.argsort(np.linalg.norm(vertices - head[:, None], axis=-1).mean(axis=0))[:60]
                # an additional equation with a large weight: the weights sum to one
                a = np.concatenate(
                    [vertices[:, near].transpose(0, 2, 1).reshape(-1, len(near)), np.full((1, 60), 100.0)]
                )
                regressor[j, near] = nnls(a, np.append(head.reshape(-1), 100.0))[0]
            regressor[j] /= regressor[j].sum()
        return Topology(template, self.faces, regressor, parts)

    def _parts(self) -> np.ndarray:
        strongest = self.model.vertex_bone_weights.argmax(dim=1, keepdim=True)
        bones = self.model.vertex_bone_indices.gather(1, strongest)[:, 0].tolist()
        joint_of = {bone: joint for joint, bone in _JOINT_BONES.items()} | _BETWEEN
        parts = []
        for bone in bones:
            name, _, side = self.model.bone_labels[bone].partition(".")
            joint = joint_of[name]
            if side and joint != "pelvis":
                joint = {"L": "left_", "R": "right_"}[side] + joint
            parts.append(SMPL_JOINTS.index(joint))
        return np.array(parts, np.int32)
