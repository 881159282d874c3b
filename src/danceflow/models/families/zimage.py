"""Z-Image family: ``diffusers.ZImageTransformer2DModel`` as a velocity field.

A ``ZImagePipeline`` folder makes images from text. A ``ZImageOmniPipeline`` folder also edits: the
source's latents are clean tokens before the noisy ones, its SigLIP features follow, and the prompt
stands between two fixed pieces of text. The network counts time upwards and predicts x - eps.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from danceflow.fields import Condition, VelocityField
from danceflow.models.families.pipeline_folder import interpolated_mu
from danceflow.models.families.stock import (
    StockFamily,
    StockSettings,
    by_layout,
    sources_there,
    with_prompts,
)
from danceflow.models.frozen.codec import Codec, load_vae
from danceflow.models.frozen.language import (
    LanguageEncoder,
    load_language_encoder,
    load_part,
    ragged,
)
from danceflow.models.frozen.part import Part, pretrained_part
from danceflow.models.frozen.reading import Reading
from danceflow.models.layout import (
    VISION_TOKENS,
    Kept,
    Layout,
    State,
    Tokens,
    Transformer,
)
from danceflow.pictures import to_picture

NUM_PROMPT_TOKENS = 512
"""The stock pipelines' ``max_sequence_length``."""

_OMNI = "ZImageOmniPipeline"
_USER, _END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
_BEFORE_SOURCE = _USER + "<|vision_start|>"
_BEFORE_TARGET = "<|vision_end|>{}" + _END + "<|vision_start|>"
_AFTER_TARGET = "<|vision_end|><|im_end|>"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
_MULTIPLE = 32  # of the network's sequences


def _padded(count: int) -> int:
    return -(-count // _MULTIPLE) * _MULTIPLE


def _tokens(state: State) -> Tokens:
    image = _padded(state.image)
    # The Omni layout embeds two times, of clean and of noisy tokens, whatever the state has.
    sample = 2 if state.edits else 1
    if not state.num_sources:
        return Tokens(image, _padded(state.prompt), sample=sample)
    frame = 2 * _MULTIPLE  # the texts before the source and behind the target
    vision = _padded(state.vision) + _MULTIPLE
    return Tokens(2 * image, _padded(state.prompt) + frame, vision, sample)


def _prompt_values(
    transformer: Transformer, prompt: int, sources: Sequence[tuple[int, int]]
) -> int:
    seen = 0 if not sources else VISION_TOKENS * int(transformer["siglip_feat_dim"])
    return prompt * int(transformer["cap_feat_dim"]) + seen


_LAYOUT = Layout(
    usual=("z-image", "z-image-omni"),
    side=lambda _: 2,
    channels=lambda transformer: int(transformer["in_channels"]),
    tokens=_tokens,
    prompt_values=_prompt_values,
    streams=(
        (r"t_embedder\..*|.*adaLN_modulation\..*", "sample"),
        (r"cap_embedder\..*|context_refiner\..*", "prompt"),
        (r"siglip_embedder\..*|siglip_refiner\..*", "vision"),
        (r"all_x_embedder\..*|noise_refiner\..*", "image"),
        (r"layers\..*|all_final_layer\..*", "all"),
    ),
    attention=(
        (r"noise_refiner\.\d+\.attention", "image"),
        (r"context_refiner\.\d+\.attention", "prompt"),
        (r"siglip_refiner\.\d+\.attention", "vision"),
        (r"layers\.\d+\.attention", "all"),
    ),
    kept=(
        Kept(whole=1.72, adapter=1.17, half=1.53),
        Kept(whole=1.93, adapter=1.36, half=1.72),  # every token has its own modulation
    ),
)


class Vision:
    """A frozen SigLIP 2 and its processor."""

    def __init__(self, processor: Any, part: Part, width: int) -> None:
        """Join a processor and a model.

        Args:
            processor: of ``transformers``.
            part: the vision model.
            width: its features per token.
        """
        self.processor, self.part, self.width = processor, part, width

    @torch.no_grad()
    def __call__(self, image_3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the features [h * w, C] of an image in [0, 1], and (h, w)."""
        model = self.part.network
        inputs = self.processor(images=[to_picture(image_3HW)], return_tensors="pt")
        inputs = inputs.to(self.part.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        height, width = (int(side) for side in inputs.spatial_shapes[0])
        features: Tensor = model(**inputs).last_hidden_state[0, : height * width]
        return features.float(), (height, width)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Vision":
        """Keep the model on ``device``, as ``dtype`` if one is given, and return this object."""
        self.part.to(device, dtype)
        return self

    def networks(self) -> dict[str, nn.Module]:
        """Return the model by the name of its folder."""
        return {"siglip": self.part.network}

    def release(self) -> None:
        """Give the model's memory back until it is asked again."""
        self.part.release()

    def save(self, folder: Path) -> None:
        """Write model (float16) and processor to ``folder``."""
        self.processor.save_pretrained(folder / "siglip_processor")
        self.part.save(folder / "siglip")


class ZImageField:
    """v(z, sigma, cond) of one Z-Image transformer: minus its output at time 1 - sigma."""

    def __init__(self, backbone: nn.Module, frame: tuple[Tensor, Tensor] | None) -> None:
        """Wrap ``backbone``.

        Args:
            backbone: the transformer.
            frame: embeddings of the text before the source and after the target, in the Omni
                layout; ``None`` is the plain layout.
        """
        self.backbone = backbone
        self.frame = frame

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition, /) -> Tensor:
        """Return the velocity, [B, C, H, W] float32."""
        return by_layout(z_BCHW, sigma_B, condition, self._velocity)

    def _velocity(
        self, z: Tensor, sigma: Tensor, condition: Condition, sources: Sequence[Tensor]
    ) -> Tensor:
        dtype = next(self.backbone.parameters()).dtype
        tensors = condition.tensors
        states = list(z.to(dtype).unsqueeze(2))
        prompts = [
            row[there]
            for row, there in zip(
                tensors["prompt_embeds"].to(dtype), tensors["prompt_mask"], strict=True
            )
        ]
        if self.frame is None:
            outputs = self.backbone(states, 1 - sigma, prompts, return_dict=False)[0]
        else:
            texts, images, visions = self._omni(states, prompts, tensors, sources)
            outputs = self.backbone(
                x=images,
                t=1 - sigma,
                cap_feats=texts,
                siglip_feats=visions,
                image_noise_mask=[[*[0] * len(sources), 1]] * len(states),
                return_dict=False,
            )[0]
        return -torch.stack([output.float() for output in outputs]).squeeze(2)

    def _omni(
        self, states: Any, prompts: Any, tensors: Any, sources: Sequence[Tensor]
    ) -> tuple[Any, Any, Any]:
        """Return texts, images and visions of every row, in the order of their tokens."""
        if not sources:
            return [[p] for p in prompts], [[z] for z in states], [None] * len(states)
        assert self.frame is not None
        first, last = (text.to(prompts[0]) for text in self.frame)
        [source] = sources
        pictures = source.to(states[0].dtype).unsqueeze(2)
        visions = []
        for row, (height, width) in zip(
            tensors["vision"], tensors["vision_size"].tolist(), strict=True
        ):
            seen = row[: height * width].to(states[0].dtype)
            visions.append([seen.view(height, width, -1), None])
        return (
            [[first, prompt, last] for prompt in prompts],
            [[picture, z] for picture, z in zip(pictures, states, strict=True)],
            visions,
        )


class ZImageFamily(StockFamily):
    """Frozen parts of a Z-Image model; see ``family.ModelFamily`` for the contract."""

    name: ClassVar[str] = "zimage"
    pipelines: ClassVar[tuple[str, ...]] = ("ZImagePipeline", _OMNI)
    edit_pipelines: ClassVar[tuple[str, ...]] = (_OMNI,)
    layout: ClassVar[Layout] = _LAYOUT
    adapter_targets: tuple[str, ...] = (*_ATTENTION, *_FEED_FORWARD)

    def __init__(
        self,
        settings: StockSettings,
        codec: Codec,
        language: LanguageEncoder,
        vision: Vision | None,
    ) -> None:
        """Join the frozen parts; ``vision`` makes it a model that edits."""
        super().__init__(settings, codec)
        self.language = language
        self.vision = vision

    @staticmethod
    def transformer_class() -> Any:
        """Return ``diffusers.ZImageTransformer2DModel``."""
        from diffusers import ZImageTransformer2DModel

        return ZImageTransformer2DModel

    @classmethod
    def open(cls, folder: Path, settings: StockSettings) -> Self:
        """Return the family of the frozen parts in ``folder``."""
        from transformers import (
            Qwen3Model,
            Siglip2ImageProcessor,
            Siglip2VisionConfig,
            Siglip2VisionModel,
        )

        language = load_language_encoder(folder, Qwen3Model)
        vision = None
        if settings.pipeline == _OMNI:
            vision = Vision(
                load_part(folder / "siglip_processor", Siglip2ImageProcessor),
                pretrained_part(Siglip2VisionModel, folder / "siglip"),
                int(Siglip2VisionConfig.from_pretrained(folder / "siglip").hidden_size),
            )
        return cls(settings, load_vae(folder), language, vision)

    @property
    def sees_source(self) -> bool:
        """Whether SigLIP looks at the source image."""
        return self.vision is not None

    def parts(self) -> Sequence[Any]:
        """Return the encoders."""
        return [self.language] if self.vision is None else [self.language, self.vision]

    def mu(self, num_tokens: int, num_steps: int) -> float:  # noqa: ARG002
        """Return the shift that grows with the number of tokens."""
        return interpolated_mu(self.settings.scheduler, num_tokens)

    def prompt_tensors(
        self, prompts: Sequence[str], images: Sequence[Sequence[Tensor]]
    ) -> dict[str, Tensor]:
        """Return prompt embeddings, their mask and, in the Omni layout, SigLIP's features."""
        texts = [
            self._text(prompt, edits=bool(seen))
            for prompt, seen in zip(prompts, images, strict=True)
        ]
        embeds, mask = self._embed(texts)
        if self.vision is None:
            return {"prompt_embeds": embeds, "prompt_mask": mask}
        blank = embeds.new_zeros(1, self.vision.width), (0, 0)
        seen = [self.vision(*pictures) if pictures else blank for pictures in images]
        return {
            "prompt_embeds": embeds,
            "prompt_mask": mask,
            "vision": ragged([features for features, _ in seen])[0],
            "vision_size": torch.tensor([size for _, size in seen], device=embeds.device),
        }

    def readings(self, prompt: str, *, edits: bool = False) -> tuple[Reading, ...]:
        """Return how much of ``prompt`` the language model reads."""
        text_of = partial(self._text, edits=edits)
        return (self.language.reading(prompt, text_of, NUM_PROMPT_TOKENS),)

    def null(self, condition: Condition) -> Condition:
        """Return ``condition`` with the empty prompt in each row's own layout."""
        rows = [self._one(self._text("", edits=bool(found))) for found in sources_there(condition)]
        embeds, mask = ragged(rows)
        return with_prompts(condition, {"prompt_embeds": embeds, "prompt_mask": mask})

    def field(self, backbone: nn.Module) -> VelocityField:
        """Return the velocity field of ``backbone``."""
        frame = None
        if self.vision is not None:
            frame = self._one(_BEFORE_SOURCE), self._one(_AFTER_TARGET)
        return ZImageField(backbone, frame)

    def _text(self, prompt: str, *, edits: bool) -> str:
        """Return what the language model reads for ``prompt``."""
        if edits:
            return _BEFORE_TARGET.format(prompt)
        if self.vision is not None:
            return _USER + prompt + _END
        return self.language.chat(prompt, thinking=True)

    def _embed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the last but one hidden states of ``texts``, [B, L, D], and their mask."""
        states, mask = self.language.hidden(texts, NUM_PROMPT_TOKENS)
        return ragged([row[there] for row, there in zip(states[-2], mask, strict=True)])

    def _one(self, text: str) -> Tensor:
        """Return the embedding [L, D] of a text that is used again and again."""
        return self.fixed_text(text, lambda: self._embed([text])[0][0])

    def fixed_texts(self) -> dict[str, Tensor]:
        """Return the embeddings of the empty prompt and of the texts around source and target."""
        edits = [False] if self.vision is None else [False, True]
        frame = [] if self.vision is None else [_BEFORE_SOURCE, _AFTER_TARGET]
        for text in (*(self._text("", edits=edit) for edit in edits), *frame):
            self._one(text)
        return self.fixed
