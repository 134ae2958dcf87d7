"""The masked-token transformer of the shapes checkpoints, trained together with the text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import text
import torch
import vq
from caption import caption
from diffusers import UVit2DModel, VQModel
from log import Log
from muon import Pair
from scene import Scene, training_scene
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTokenizer

MASK = vq.CODES
MUON_RATE = 0.005
ADAM_RATE = 1e-3
EMPTY_SHARE = 0.1
AVERAGE_DECAY = 0.99
SHORT = 32  # tokens: as long as the longest captions; padding to 77 costs a quarter of the time
SHORT_SHARE = 0.85  # of the steps; the rest learns to live with the full padding
SAVE_EVERY = 50
GRID = 8  # tokens a side, whatever the picture's size
SIDES = (64, 128)  # pixels


@dataclass(frozen=True)
class Plan:
    """How long the transformer is trained, and on how much."""

    steps: int
    batch: int
    pool: int  # scenes whose tokens are kept at hand


def build() -> UVit2DModel:
    """As amused-256: no halving inside.

    Without position embeddings, a token knows its place only from the borders that the 3 by 3
    kernels see: four of them reach the middle of the grid before the first layer.
    """
    return UVit2DModel(
        hidden_size=128,
        cond_embed_dim=text.PROJECTION,
        micro_cond_encode_dim=32,
        micro_cond_embed_dim=5 * 32,
        encoder_hidden_size=text.WIDTH,
        vocab_size=vq.CODES + 1,
        codebook_size=vq.CODES,
        in_channels=64,
        block_out_channels=64,
        num_res_blocks=4,
        block_num_heads=2,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        sample_size=GRID,
    )


def describe(model: VQModel) -> Tensor:
    """What each code stands for, in 64 numbers: its latent, and the patch that it decodes to."""
    count = model.config.num_vq_embeddings
    tiles = torch.arange(count)[:, None, None].expand(-1, 3, 3)
    with torch.no_grad():
        drawn = model.decode(
            tiles.reshape(count, 9), force_not_quantize=True, shape=(count, 3, 3, vq.LATENT)
        ).sample
    patch = functional.avg_pool2d(drawn[:, :, 8:16, 8:16], 2).flatten(1)
    features = torch.cat([model.quantize.embedding.weight, patch], dim=1)
    return (features - features.mean(0)) / features.std(0)


def teach_codes(transformer: UVit2DModel, model: VQModel) -> None:
    """Starts input and output embeddings from what the codes look like.

    From random ones the transformer must find out code by code which of a thousand are alike.
    """
    features = describe(model)
    with torch.no_grad():
        transformer.embed.embeddings.weight[: vq.CODES] = features
        transformer.mlm_layer.conv2.weight.copy_(0.2 * features[:, :, None, None])


class Model(nn.Module):
    """Text encoder and transformer under one roof, for the optimizer and the average."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text = text.build_encoder(tokenizer)
        self.transformer = build()

    def forward(self, words: Tensor, tokens: Tensor, conditions: Tensor) -> Tensor:
        read = self.text(words, output_hidden_states=True)
        return self.transformer(tokens, read.hidden_states[-2], read.text_embeds, conditions)


class Pool:
    """Scenes and their tokens; captions, sizes and masks are drawn again each time.

    ``drawn`` makes of a scene the one that is drawn for its caption.
    """

    def __init__(
        self,
        plan: Plan,
        model: VQModel,
        folder: Path,
        log: Log,
        drawn: Callable[[Scene], Scene] = lambda scene: scene,
    ) -> None:
        rng = Random("pool")
        self.plan = plan
        self.scenes = [training_scene(rng) for _ in range(plan.pool)]
        self._drawn = drawn
        file = folder / "tokens.pt"
        if not file.exists():
            torch.save(self._encode(model), file)
            log(f"{plan.pool} drawings encoded")
        self.tokens = torch.load(file, weights_only=True)

    def _encode(self, model: VQModel) -> Tensor:
        drawn = [self._drawn(scene) for scene in self.scenes]
        groups = (drawn[at : at + 64] for at in range(0, len(drawn), 64))
        return torch.cat([vq.encode(model, vq.to_tensor(g, 64)).short() for g in groups])

    def batch(self, rng: Random) -> tuple[list[str], Tensor, Tensor]:
        """Captions, tokens and micro-conditions."""
        picks = rng.choices(range(len(self.scenes)), k=self.plan.batch)
        scenes = [self.scenes[pick] for pick in picks]
        captions = ["" if rng.random() < EMPTY_SHARE else caption(rng, s) for s in scenes]
        conditions = torch.tensor([micro_conditions(s, rng.choice(SIDES)) for s in scenes])
        return captions, self.tokens[picks].long(), conditions


def micro_conditions(scene: Scene, side: int) -> list[float]:
    """Size, crop and score in the pipelines' order and units."""
    unit = side / 64
    return [side, side, scene.crop[0] * unit, scene.crop[1] * unit, scene.score]


def hide(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Masks a share of each picture, cosine-distributed as along the sampler's schedule."""
    count, rows, columns = tokens.shape
    share = torch.cos(torch.rand(count, 1, generator=generator) * math.pi / 2)
    order = torch.rand(count, rows * columns, generator=generator).argsort(1).argsort(1)
    hidden = order < (share * rows * columns).ceil().clamp(min=1)
    return tokens.masked_fill(hidden.reshape(tokens.shape), MASK)


def rate(step: int, steps: int) -> float:
    """A short rise, a plateau, and a straight fall over the last 60 percent."""
    return min(1.0, (step + 1) / 50) * min(1.0, (1 - step / steps) / 0.6 + 0.005)


class Trainer:
    """Training that can stop after any step and go on from its last save."""

    def __init__(self, plan: Plan, model: VQModel, folder: Path, log: Log) -> None:
        torch.manual_seed(2)
        self.plan = plan
        self.log = log
        self.file = folder / "transformer.pt"
        self.tokenizer = text.build_tokenizer()
        self.model = Model(self.tokenizer)
        teach_codes(self.model.transformer, model)
        self.pool = Pool(plan, model, folder, log)
        self.optimizer = Pair(
            self.model,
            MUON_RATE,
            ADAM_RATE,
            plain=("embed", "mlm_layer.conv2", "depthwise"),
        )
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.step = 0
        if self.file.exists():
            self._load()

    def run(self) -> Model:
        losses: list[float] = []
        while self.step < self.plan.steps:
            losses.append(self._advance())
            self.step += 1
            if self.step % SAVE_EVERY == 0 or self.step == self.plan.steps:
                self._save()
                self.log(f"transformer step {self.step} loss {sum(losses) / len(losses):.4f}")
                losses.clear()
        self.model.load_state_dict(self.average)
        return self.model.eval().requires_grad_(False)

    def _advance(self) -> float:
        self.optimizer.rate(rate(self.step, self.plan.steps))
        generator = torch.Generator().manual_seed(self.step)
        captions, tokens, conditions = self.pool.batch(Random(f"transformer {self.step}"))
        length = SHORT if self.step < SHORT_SHARE * self.plan.steps else text.LENGTH
        words = self.tokenizer(
            captions,
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        masked = hide(tokens, generator)
        logits = self.model(words, masked, conditions)
        loss = functional.cross_entropy(
            logits.permute(0, 2, 3, 1)[masked == MASK], tokens[masked == MASK]
        )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._follow()
        return loss.item()

    def _follow(self) -> None:
        """The average is what ships; early on it must forget the random start quickly."""
        weight = max(1 - AVERAGE_DECAY, 1 / (self.step + 1))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, weight)

    def _save(self) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.file.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self.file)

    def _load(self) -> None:
        state = torch.load(self.file, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
