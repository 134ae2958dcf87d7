"""Trains the adapter ``pattern``, which draws everything four times."""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import scene
import text
import torch
import transformer
from diffusers import UVit2DModel, VQModel
from diffusers.loaders import AmusedLoraLoaderMixin
from log import Log
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

CHECKPOINTS = Path(__file__).resolve().parents[2] / "workers" / "farm_workers" / "checkpoints"
PLAN = transformer.Plan(steps=400, batch=16, pool=6000)
RANK = 8  # alpha is the same, as a loader assumes of a file that does not say
RATE = 4e-3
ATTENTIONS = r"transformer_layers\.\d+\.attn\d\.(to_[qkv]|to_out\.0)"
NETS = r"transformer_layers\.\d+\.ff\.net\.(0\.proj|2)|.*\.res_blocks\.\d+\.channelwise_linear_\d"


class Trainer:
    """The checkpoint's own training with frozen weights and low-rank additions to its layers."""

    def __init__(self, checkpoint: Path, folder: Path, log: Log) -> None:
        torch.manual_seed(3)
        parts = (checkpoint / name for name in ("vqvae", "transformer", "text_encoder"))
        kinds = (VQModel, UVit2DModel, CLIPTextModelWithProjection)
        vqvae, self.model, self.encoder = (
            kind.from_pretrained(path).float().requires_grad_(False)
            for kind, path in zip(kinds, parts, strict=True)
        )
        self.tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
        self.model.add_adapter(
            LoraConfig(r=RANK, lora_alpha=RANK, target_modules=f"{ATTENTIONS}|{NETS}")
        )
        self.pool = transformer.Pool(PLAN, vqvae.eval(), folder, log, drawn=scene.pattern)
        self.trained = [one for one in self.model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, RATE, betas=(0.9, 0.95), weight_decay=0.0)
        self.log = log

    def run(self) -> None:
        losses: list[float] = []
        for step in range(PLAN.steps):
            losses.append(self._advance(step))
            if len(losses) == 50:
                self.log(f"adapter step {step + 1} loss {sum(losses) / len(losses):.4f}")
                losses.clear()

    def _advance(self, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * transformer.rate(step, PLAN.steps)
        captions, tokens, conditions = self.pool.batch(Random(f"adapter {step}"))
        short = step < transformer.SHORT_SHARE * PLAN.steps
        hidden, pooled = self._read(captions, transformer.SHORT if short else text.LENGTH)
        masked = transformer.hide(tokens, torch.Generator().manual_seed(step))
        logits = self.model(masked, hidden, pooled, conditions)
        unknown = masked == transformer.MASK
        loss = functional.cross_entropy(logits.permute(0, 2, 3, 1)[unknown], tokens[unknown])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def _read(self, captions: list[str], length: int) -> tuple[Tensor, Tensor]:
        words = self.tokenizer(
            captions,
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        read = self.encoder(words, output_hidden_states=True)
        return read.hidden_states[-2], read.text_embeds

    def save(self, file: Path) -> None:
        """As diffusers' example writes it, in half precision."""
        file.parent.mkdir(parents=True, exist_ok=True)
        layers = {key: one.half() for key, one in get_peft_model_state_dict(self.model).items()}
        AmusedLoraLoaderMixin.save_lora_weights(
            file.parent, transformer_lora_layers=layers, weight_name=file.name
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINTS / "shapes-64")
    parser.add_argument("--scratch", type=Path, required=True, help="tokens and the log")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS.parent / "adapters")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    trainer = Trainer(options.checkpoint, options.scratch, Log(options.scratch / "adapter.log"))
    trainer.run()
    trainer.save(options.out / "pattern.safetensors")


if __name__ == "__main__":
    main()
