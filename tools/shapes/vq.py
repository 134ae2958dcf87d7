"""The VQ model of the shapes checkpoints: its layout, its training, its tokens."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import VQModel
from log import Log
from muon import Pair
from scene import Scene, combinations, crowd, draw, pair, single, training_scene
from torch import Tensor
from torch.nn import functional

CODES = 1024
LATENT = 16
CODE_STEPS = 2400  # then the encoder and the codes stand, and tokens can be trained on
STEPS = 3000  # the decoder alone learns on, beside the transformers
WARM_STEPS = 1100  # plain autoencoder first: a codebook fitted to random latents never recovers
BATCH = 16
MUON_RATE = 0.03
ADAM_RATE = 2e-3
ENLARGED_STEPS = 700
ENLARGED_RATE = 2e-3
CODE_DECAY = 0.99
REVIVE_EVERY = 50
SAVE_EVERY = 100


def build(side: int = 64) -> VQModel:
    """Grids of 8 by 8 tokens: three halvings for 64 pixels, four for 128."""
    channels = (16, 32, 48, 48) if side == 64 else (16, 16, 32, 48, 48)
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT,
        sample_size=side,
        num_vq_embeddings=CODES,
        norm_num_groups=8,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
        force_upcast=True,
    )


def to_tensor(scenes: list[Scene], side: int) -> Tensor:
    """Drawings as the pipelines hand them to the VQ model: floats from 0 to 1."""
    pixels = np.stack([draw(scene, side) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def scenes_of(step: int) -> list[Scene]:
    """The step's own scenes: a resumed run sees what an unbroken one would have seen."""
    rng = Random(f"vq {step}")
    kinds = (crowd, crowd, training_scene)
    return [rng.choice(kinds)(rng) for _ in range(BATCH)]


def batch(step: int) -> Tensor:
    return to_tensor(scenes_of(step), 64)


def held_out_scenes(count: int) -> list[Scene]:
    """Plain scenes of combinations that training never draws, one in four a pair."""
    rng = Random("held out")
    kept = list(combinations(kept_out=True))
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = pair(rng) if len(scenes) % 4 == 3 else single(rng, *rng.choice(kept))
        if scene.held_out:
            scenes.append(scene)
    return scenes


def loss_of(decoded: Tensor, target: Tensor) -> Tensor:
    """Error with the edges counted sevenfold: flat areas are most pixels and easily right."""
    smooth = functional.avg_pool2d(target, 5, stride=1, padding=2, count_include_pad=False)
    edge = ((target - smooth).abs().sum(1, keepdim=True) > 0.05).float()
    error = decoded - target
    return ((error.abs() + 4 * error.square()) * (1 + 6 * edge)).mean()


@dataclass
class Codebook:
    """A codebook that follows the mean of the latents it attracts."""

    codes: Tensor
    counts: Tensor
    sums: Tensor

    @classmethod
    def fit(cls, latents: Tensor, rounds: int = 12) -> Codebook:
        """K-means, seeded far apart: flat patches are common and would take every seed."""
        chosen = latents[:1]
        nearest = torch.cdist(latents, chosen)[:, 0]
        generator = torch.Generator().manual_seed(0)
        for _ in range(CODES - 1):
            pick = torch.multinomial(nearest.square() + 1e-9, 1, generator=generator)
            chosen = torch.cat([chosen, latents[pick]])
            nearest = torch.minimum(nearest, torch.cdist(latents, latents[pick])[:, 0])
        for _ in range(rounds):
            chosen, counts = _means(latents, chosen)
        return cls(chosen, counts, chosen * counts[:, None])

    def nearest(self, latents: Tensor) -> Tensor:
        return torch.cdist(latents, self.codes).argmin(1)

    def follow(self, latents: Tensor, ids: Tensor) -> None:
        counts = torch.bincount(ids, minlength=CODES).float()
        sums = torch.zeros_like(self.sums).index_add_(0, ids, latents)
        self.counts.mul_(CODE_DECAY).add_(counts, alpha=1 - CODE_DECAY)
        self.sums.mul_(CODE_DECAY).add_(sums, alpha=1 - CODE_DECAY)
        self.codes = self.sums / self.counts.clamp(min=1e-3)[:, None]

    def revive(self, latents: Tensor, ids: Tensor, generator: torch.Generator) -> int:
        """Moves codes that nobody uses to latents that fit worst."""
        dead = (self.counts < 0.02).nonzero()[:, 0]
        misfit = (latents - self.codes[ids]).square().sum(1)
        dead = dead[: int((misfit > 0).sum())]
        if len(dead) == 0:
            return 0
        picks = torch.multinomial(misfit, len(dead), generator=generator)
        self.codes[dead] = latents[picks]
        self.counts[dead] = 0.5
        self.sums[dead] = latents[picks] * 0.5
        return len(dead)


def _means(latents: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    ids = torch.cdist(latents, codes).argmin(1)
    counts = torch.bincount(ids, minlength=CODES).float()
    sums = torch.zeros_like(codes).index_add_(0, ids, latents)
    means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], codes)
    return means, counts


def flatten(latents: Tensor) -> Tensor:
    return latents.permute(0, 2, 3, 1).reshape(-1, LATENT)


def collect(model: VQModel, batches: int) -> Tensor:
    """Latents of fresh drawings, for the first fit of the codebook."""
    with torch.no_grad():
        return torch.cat([flatten(model.encode(batch(-1 - i)).latents) for i in range(batches)])


def psnr(model: VQModel, scenes: list[Scene], side: int) -> float:
    """PSNR of the round trip in 8-bit pixels, the mean over the pictures."""
    values = []
    for start in range(0, len(scenes), 16):
        target = to_tensor(scenes[start : start + 16], side)
        with torch.no_grad():
            decoded = model(target).sample.clip(0, 1)
        error = ((decoded * 255).round() / 255 - target).square().mean((1, 2, 3))
        values += (-10 * torch.log10(error.clamp(min=1e-9))).tolist()
    return sum(values) / len(values)


def rate(step: int) -> float:
    """The share of the full learning rate: a short rise, half a cosine, a lower one again."""
    if step < CODE_STEPS:
        return min(1.0, (step + 1) / 50) * cosine(step / CODE_STEPS)
    return 0.2 * cosine((step - CODE_STEPS) / (STEPS - CODE_STEPS))


def cosine(done: float) -> float:
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """VQ training that can stop after any step and go on from its last save."""

    def __init__(self, folder: Path, log: Log) -> None:
        torch.manual_seed(1)
        self.file = folder / "vq.pt"
        self.log = log
        self.model = build()
        with torch.no_grad():  # start from grey, not from the first layers' noise
            self.model.decoder.conv_out.weight.zero_()
            self.model.decoder.conv_out.bias.fill_(0.5)
        self.optimizer = Pair(
            self.model, MUON_RATE, ADAM_RATE, plain=("conv_in", "conv_out", "quantize")
        )
        self.book: Codebook | None = None
        self.step = 0
        if self.file.exists():
            self._load()

    def run(self, steps: int) -> VQModel:
        while self.step < steps:
            if self.step == WARM_STEPS and self.book is None:
                self.book = Codebook.fit(collect(self.model, 60))
            loss = self._advance()
            self.step += 1
            if self.step % SAVE_EVERY == 0 or self.step == steps:
                self._save()
                self._report(loss)
        self._install()
        return self.model.eval().requires_grad_(False)

    @property
    def _standing(self) -> bool:
        return self.step >= CODE_STEPS

    def _advance(self) -> float:
        self.optimizer.rate(rate(self.step))
        generator = torch.Generator().manual_seed(self.step)
        target = batch(self.step)
        with torch.set_grad_enabled(not self._standing):
            latents = self.model.quant_conv(self.model.encoder(target))
        used, commitment = self._quantise(latents, generator)
        decoded = self.model.decoder(self.model.post_quant_conv(used))
        loss = loss_of(decoded, target) + 0.25 * commitment
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def _quantise(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes with straight-through gradients; before there are codes, latents with noise."""
        if self.book is None:
            noise = torch.randn(latents.shape, generator=generator)
            return latents + 0.15 * latents.detach().std() * noise, torch.zeros(())
        flat = flatten(latents)
        rows = flat.detach()
        ids = self.book.nearest(rows)
        chosen = self.book.codes[ids]
        if not self._standing:
            self.book.follow(rows, ids)
            if self.step % REVIVE_EVERY == 0 and self.step < 0.8 * CODE_STEPS:
                self.book.revive(rows, ids, generator)
        scale = rows.var().clamp(min=1e-4)
        commitment = (flat - chosen).square().mean() / scale
        b, _, h, w = latents.shape
        codes = chosen.reshape(b, h, w, LATENT).permute(0, 3, 1, 2)
        return latents + (codes - latents).detach(), commitment

    def _install(self) -> None:
        if self.book is not None:
            self.model.quantize.embedding.weight.data.copy_(self.book.codes)

    def _report(self, loss: float) -> None:
        self.log(f"vq step {self.step} loss {loss:.4f}")
        if self.book is not None:
            self._install()
            found = psnr(self.model, held_out_scenes(32), 64)
            used = int((self.book.counts > 0.02).sum())
            self.log(f"vq psnr {found:.2f} codes in use: {used}")

    def _save(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "book": None if self.book is None else vars(self.book),
        }
        partial = self.file.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self.file)

    def _load(self) -> None:
        state = torch.load(self.file, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.book = None if state["book"] is None else Codebook(**state["book"])


class Enlarged:
    """Trains a VQ model of 128 pixels that reads and writes the codes of the one of 64.

    A drawing has the same tokens at both sizes, so one transformer serves both. It starts as the
    small model between a halving and a doubling: only what 128 pixels show more is left to learn.
    """

    def __init__(self, small: VQModel, folder: Path, log: Log) -> None:
        torch.manual_seed(3)
        self.small = small
        self.file = folder / "vq-128.pt"
        self.log = log
        self.model = build(128)
        self._start_from(small)
        learned = [*self.model.encoder.parameters(), *self.model.quant_conv.parameters()]
        learned += [*self.model.decoder.parameters(), *self.model.post_quant_conv.parameters()]
        self.optimizer = torch.optim.AdamW(learned, ENLARGED_RATE, (0.9, 0.99), weight_decay=0.0)
        self.step = 0
        if self.file.exists():
            self._load()

    def _start_from(self, small: VQModel) -> None:
        """Blocks are numbered from the picture inwards in the encoder, outwards in the decoder."""
        own = self.model.state_dict()
        for name, value in small.state_dict().items():
            level = re.match(r"(encoder\.down_blocks\.)(\d+)(.*)", name)
            own[f"{level[1]}{int(level[2]) + 1}{level[3]}" if level else name].copy_(value)
        halving, doubling = self.model.encoder.down_blocks[0], self.model.decoder.up_blocks[-1]
        same = torch.eye(small.config.block_out_channels[0])
        with torch.no_grad():
            for resnet in (*halving.resnets, *doubling.resnets):
                resnet.conv2.weight.zero_()
                resnet.conv2.bias.zero_()
            mean = halving.downsamplers[0].conv
            mean.weight.zero_()
            mean.weight[:, :, :2, :2] = same[:, :, None, None] / 4
            mean.bias.zero_()
            copy = self.model.decoder.up_blocks[-2].upsamplers[0].conv
            copy.weight.zero_()
            copy.weight[:, :, 1, 1] = same
            copy.bias.zero_()

    def run(self, steps: int) -> VQModel:
        self.model.quantize.requires_grad_(False)
        while self.step < steps:
            loss = self._advance(steps)
            self.step += 1
            if self.step % SAVE_EVERY == 0 or self.step == steps:
                self._save()
                found = psnr(self.model, held_out_scenes(32), 128)
                same = self.agreement(held_out_scenes(32))
                self.log(f"vq-128 step {self.step} loss {loss:.4f}")
                self.log(f"vq-128 psnr {found:.2f} tokens as at 64: {same:.3f}")
        return self.model.eval().requires_grad_(False)

    def agreement(self, scenes: list[Scene]) -> float:
        """The share of tokens that both models read alike."""
        small = encode(self.small, to_tensor(scenes, 64))
        return (encode(self.model, to_tensor(scenes, 128)) == small).float().mean().item()

    def _advance(self, steps: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = ENLARGED_RATE * min(1.0, (self.step + 1) / 50) * cosine(self.step / steps)
        scenes = scenes_of(self.step)[: BATCH // 2]
        target = to_tensor(scenes, 128)
        with torch.no_grad():
            wanted = self.small.encode(to_tensor(scenes, 64)).latents
            codes = self.small.quantize(wanted)[0]
        latents = self.model.quant_conv(self.model.encoder(target))
        misread = (latents - wanted).square().mean() / wanted.var()
        decoded = self.model.decoder(self.model.post_quant_conv(codes))
        loss = loss_of(decoded, target) + misread
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    def _save(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.file.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self.file)

    def _load(self) -> None:
        state = torch.load(self.file, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def encode(model: VQModel, pictures: Tensor) -> Tensor:
    """Token ids, (pictures, rows, columns)."""
    with torch.no_grad():
        latents = model.encode(pictures).latents
        ids = model.quantize(latents)[2][2]
    return ids.reshape(latents.shape[0], latents.shape[2], latents.shape[3])
