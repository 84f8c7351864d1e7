"""A linear approximation of the tokenizer's decoder, for losses on meshes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mega_model.core.topology import Topology
from mega_model.geometry import project_weak, rot6d_to_matrix
from mega_model.image_encoding import ImageEncoding
from mega_model.tokenizer import MeshTokenizer
from mega_model.train.loop import Batch, Losses


class LinearDecoder(nn.Module):
    """The tokenizer's decoder as a linear map from latents to some vertices and the joints, by least squares.

    Its error is a centimetre. It is fast enough to compare every mesh of a batch with the true one.
    """

    def __init__(self, tokenizer: MeshTokenizer, topology: Topology, bodies: Tensor, vertices: int = 300) -> None:
        """bodies [n, V, 3]: at least as many as a mesh has latent numbers."""
        super().__init__()
        with torch.no_grad():
            latents, meshes = [], []
            for part in bodies.split(100):
                codes = tokenizer.quantizer.codebook[tokenizer.encode(part)]
                latents.append(codes.flatten(1))
                meshes.append(tokenizer.reconstruct(codes))
            z, mesh = torch.cat(latents), torch.cat(meshes)
            some = torch.randperm(mesh.shape[1])[:vertices]
            regressor = torch.from_numpy(topology.joint_regressor)
            points = torch.cat([mesh[:, some], regressor @ mesh], dim=1).flatten(1)
            centre, middle = z.mean(dim=0), points.mean(dim=0)
            # ridge regression, for directions in which bodies hardly vary
            ridge = 0.3 * z.std() * torch.eye(z.shape[1])
            left = torch.cat([z - centre, ridge])
            right = torch.cat([points - middle, points.new_zeros(z.shape[1], points.shape[1])])
            weight = torch.linalg.lstsq(left, right).solution
        self.joints = len(regressor)  # an imported tokenizer may have no joints
        buffers = {"some": some, "regressor": regressor, "weight": weight, "bias": middle - centre @ weight}
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        """[B, N, latent] -> points [B, vertices + joints, 3]"""
        return (latents.flatten(1) @ self.get_buffer("weight") + self.get_buffer("bias")).unflatten(1, (-1, 3))

    def losses(self, latents: Tensor, seen: ImageEncoding, batch: Batch) -> Losses:
        """Losses on the meshes of latents: canonical, rotated into the camera, and their joints in the crop."""
        points = self(latents)
        joints = self.get_buffer("regressor") @ batch["vertices"]
        truth = torch.cat([batch["vertices"][:, self.get_buffer("some")], joints], dim=1)
        posed = points @ rot6d_to_matrix(seen.rot6d.float()).mT
        losses = {
            "mesh": 5 * (points - truth).norm(dim=-1).mean(),
            "posed": 5 * (posed - truth @ batch["rotation"].mT).norm(dim=-1).mean(),
        }
        if self.joints:
            joints2d = project_weak(posed[:, -self.joints :], seen.camera.float())
            # some sets label other joints than the body's
            same = (batch["joints"][:, : self.joints] - joints).norm(dim=-1) < 0.001
            off = (joints2d - batch["joints2d"][:, : self.joints]).abs().clamp(max=1)
            losses["joints2d"] = 2 * weighted_mean(off, same * batch["confidence"][:, : self.joints])
        return losses


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values [B, J, 2] by weights [B, J]; 0 where all weights are."""
    weights = weights[..., None].expand_as(values)
    return (weights * values).sum() / weights.sum().clamp(min=1e-6)
