"""Deformable DETR: queries that attend to a few points of the features, each object one query's, no suppression."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from detsearch_cli import schema
from detsearch_cli.detectors._backbones import build_backbone
from detsearch_cli.detectors._heads import PRIOR_PROBABILITY, groups_of
from detsearch_cli.detectors.base import ClassRows, Detector
from detsearch_cli.errors import RecipeError
from detsearch_cli.parts import Part
from detsearch_cli.slots.assigners.hungarian import Hungarian
from detsearch_cli.slots.losses.focal_l1_giou import FocalL1GIoU
from detsearch_cli.slots.priors.points import Points
from detsearch_cli.structures import Dense, Priors, Targets

HEADS, POINTS = 8, 4
"""Of attention, and of sampled points a head and level. Source: Zhu et al. 2021, section 5."""
WIDENING = 4
"""Units of the feed-forward layers for each of neck.channels: 1024 for 256."""
SLOW_RATE = 0.1
EARLIER = ".earlier"
"""Ends the names of terms that are sums over the layers before the last."""
INITIAL_SIZE = -2.0
"""Logit of every width and height at first: .12 of the image. Source: released code."""


class DeformableDETR(Detector):
    """Source: Zhu et al. 2021 (Deformable DETR), section 4.1, without refinement and without its second stage; encoder and
    decoder are transformers', which its released code was carried over to. `head` of the recipe is not used.

    Every feature of `neck.levels` is projected to `neck.channels`; one level, [5, 5], is what a search can afford, four,
    [3, 6], are the paper's. Levels above the backbone's come from strided convolutions. Boxes are parts of the padded
    batch: nothing is masked, so that an image's detections depend a little on the images that it shares a batch with.

    The priors are the queries' reference points, of one level, with a square cell each, as if the queries tiled the image:
    so any assigner of points means something here. Every layer of the decoder makes a prediction, has an assignment of its
    own, and all of the loss; those before the last are summed in the log. With an assigner that
    gives an object several queries they are found several times, unless `test.nms_iou` suppresses them.
    """

    class Options(Part):
        queries: int = Field(default=300, ge=1, le=10_000, description="each predicts one box")
        layers: int = Field(default=6, ge=1, le=64, description="of the encoder, and of the decoder")
        dropout: float = Field(default=0.1, ge=0, lt=1, description="in encoder and decoder")

    options: Options
    default_levels: ClassVar[tuple[int, int]] = (3, 6)
    default_nms_iou: ClassVar[float] = 1.0  # suppresses nothing
    default_score_threshold: ClassVar[float] = 0.0
    max_count: ClassVar[int] = 25  # as FCOS, which predicts from points too: HPS-Det does not name it

    def __init__(self, recipe: schema.Recipe, num_classes: int) -> None:
        if recipe.priors is not None:
            raise RecipeError(
                "detector deformable_detr has the reference points of its queries as priors, got priors: "
                f"{recipe.priors.name}; set priors to null"
            )
        super().__init__(recipe, num_classes)
        if self.assigner.compares_shapes:
            raise RecipeError(
                f"detector deformable_detr predicts from points, assign: {recipe.assign and recipe.assign.name} compares "
                "shapes of anchors; use assign: hungarian or dynamic"
            )
        width = recipe.neck.channels
        if width % HEADS:
            raise RecipeError(
                f"neck.channels must be a multiple of {HEADS}, the heads of deformable_detr's attention, got {width}; set "
                f"it to {round(width / HEADS) * HEADS}"
            )
        first, last = recipe.neck.levels
        self.backbone = build_backbone(recipe.backbone, (first, last))
        known = dict(zip(self.backbone.levels, self.backbone.channels, strict=True))
        if first not in known:
            raise RecipeError(
                f"neck.levels must begin at one of the backbone's ({', '.join(map(str, known))}), got {first}; set "
                "neck.levels or take another backbone"
            )
        self.feature_levels = range(first, last + 1)
        self.project = _projections(
            [known[n] for n in self.feature_levels if n in known], width, last - first + 1
        )
        transformers = _transformers()
        self.position = transformers.DeformableDetrSinePositionEmbedding(width // 2, normalize=True)
        self.level_embedding = nn.Parameter(torch.empty(last - first + 1, width))
        self.encoder, self.decoder = _encoder_and_decoder(
            transformers, width, last - first + 1, self.options.layers, self.options.dropout
        )
        # of each query: what is added to it where it attends, and what it is at first
        self.queries = nn.Embedding(self.options.queries, 2 * width)
        self.reference = nn.Linear(width, 2)
        self.head = QueryHead(width, num_classes)
        nn.init.normal_(self.level_embedding)
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)

    @classmethod
    def pyramid_levels(cls, recipe: schema.Recipe) -> tuple[int, int]:
        """Queries look at every level and predict on none, which counts as one: the coarsest."""
        return recipe.neck.levels[1], recipe.neck.levels[1]

    def class_layers(self) -> dict[str, ClassRows]:
        return {"head.cls": ClassRows()}

    def rate_of(self, name: str) -> float:
        """A tenth for the backbone and for what says where to look. Source: Zhu et al. 2021, section 5."""
        slow = name.startswith(("backbone.", "reference.")) or ".sampling_offsets." in name
        return SLOW_RATE if slow else 1.0

    def default_priors(self) -> Points:
        return Points()  # of one level: its range is open. Where they lie the queries learn

    def default_assigner(self) -> Hungarian:
        return Hungarian()

    def default_loss(self) -> FocalL1GIoU:
        return FocalL1GIoU()

    def features(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> projected features of all levels, fine to coarse, (B, d, H_l, W_l)."""
        known = dict(zip(self.backbone.levels, self.backbone(images), strict=True))
        sources = [known[level] for level in self.feature_levels if level in known]
        projected = [project(source) for project, source in zip(self.project, sources, strict=False)]
        # the first added level comes from the backbone's last feature as it is, later ones from the level below
        below = sources[-1]
        for project in self.project[len(sources) :]:
            below = project(below)
            projected.append(below)
        return projected

    def decoded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What every decoder layer makes of the queries, (B, layers, A, d), and logits of the reference points, (A, 2)."""
        features = self.features(images)
        sizes = [(f.shape[2], f.shape[3]) for f in features]
        flat = torch.cat([f.flatten(2).transpose(1, 2) for f in features], 1)
        placed = [
            # of one image: all of a batch have the same positions
            self.position(f[:1].shape, f.device, torch.float32).flatten(2).transpose(1, 2) + embedding
            for f, embedding in zip(features, self.level_embedding, strict=True)
        ]
        areas = [height * width for height, width in sizes]
        where: dict[str, Any] = {
            "spatial_shapes": torch.tensor(sizes, device=flat.device),
            "spatial_shapes_list": sizes,
            "level_start_index": torch.tensor(
                [sum(areas[:i]) for i in range(len(areas))], device=flat.device
            ),
            "valid_ratios": flat.new_ones(len(flat), len(sizes), 2, dtype=torch.float32),  # nothing is masked
        }
        memory = self.encoder(
            inputs_embeds=flat, spatial_position_embeddings=torch.cat(placed, 1), **where
        ).last_hidden_state
        added, first = self.queries.weight.split(self.queries.embedding_dim // 2, 1)
        with torch.autocast(flat.device.type, enabled=False):
            reference = self.reference(added)
        layers: Tensor = self.decoder(
            inputs_embeds=first.expand(len(flat), -1, -1),
            object_queries_position_embeddings=added.expand(len(flat), -1, -1),
            encoder_hidden_states=memory,
            reference_points=reference.sigmoid().expand(len(flat), -1, -1),
            **where,
        ).intermediate_hidden_states
        return layers, reference

    def every_layer(self, images: Tensor) -> list[Dense]:
        """The predictions of every decoder layer, first to last. images (B, 3, H, W), sides multiples of 32."""
        layers, reference = self.decoded(images)
        image = (images.shape[2], images.shape[3])
        priors = query_priors(reference.detach().sigmoid(), image)
        found = []
        for layer in layers.unbind(1):
            logits, deltas = self.head(layer)
            # float32 under autocast too: half precision tells 2,048 places apart
            logits, deltas = logits.float(), deltas.float()
            found.append(Dense((logits,), decode(priors, reference, deltas), deltas, priors))
        return found

    def forward(self, images: Tensor) -> Dense:
        return self.every_layer(images)[-1]

    def training_loss(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named scalar terms to be summed: of the last layer, and of all before it together as `NAME.earlier`."""
        *before, last = self.every_layer(images)
        terms = self.dense_loss(last, targets)
        # summed: six layers of three terms each would fill a line of the log
        for dense in before:
            for name, term in self.dense_loss(dense, targets).items():
                key = f"{name}{EARLIER}"
                terms[key] = terms[key] + term if key in terms else term
        return terms

    def stuck(self, terms: Mapping[str, float]) -> bool:
        """Where all layers are: they share the head, so that one with a slope moves the others."""
        last = {name: value for name, value in terms.items() if not name.endswith(EARLIER)}
        # the mean of the layers before: no layer's term lies beyond where it is stuck
        before = {
            n: terms[f"{n}{EARLIER}"] / (self.options.layers - 1) for n in last if f"{n}{EARLIER}" in terms
        }
        return self.loss.stuck(last) and (not before or self.loss.stuck(before))


class QueryHead(nn.Module):
    """Class scores by one linear layer, boxes by three, the same for every layer of the decoder."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.cls = nn.Linear(width, num_classes)
        self.reg = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )
        nn.init.constant_(self.cls.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
        # at first every box lies around its reference point. Source: released code
        nn.init.zeros_(self.reg[-1].weight)  # type: ignore[arg-type]
        with torch.no_grad():
            self.reg[-1].bias.copy_(torch.tensor([0.0, 0.0, INITIAL_SIZE, INITIAL_SIZE]))  # type: ignore[operator]

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(B, A, d) -> logits (B, A, C), box outputs (B, A, 4)."""
        return self.cls(queries), self.reg(queries)


def query_priors(reference: Tensor, image: tuple[int, int]) -> Priors:
    """The reference points (A, 2), xy as parts of an image of this height and width px, as points of one level.

    Their cells are squares that would cover the image if they lay side by side; its side is the level's stride.
    """
    height, width = image
    count = len(reference)
    stride = math.sqrt(height * width / count)
    points = reference * reference.new_tensor([width, height])
    return Priors(
        boxes=torch.cat((points - stride / 2, points + stride / 2), 1),
        points=points,
        level=torch.zeros(count, dtype=torch.int64, device=points.device),
        strides=points.new_tensor([stride]),
        counts=(count,),
        ranges=points.new_tensor([[0.0, math.inf]]),
        sizes=((count, 1),),
        image=image,
    )


def decode(priors: Priors, reference: Tensor, deltas: Tensor) -> Tensor:
    """Boxes of the head's outputs: sigmoids, whose centres start at the reference points, times the image's sides.

    reference (A, 2) logits, with gradient; deltas (B, A, 4) cx cy w h -> (B, A, 4) xyxy px.
    """
    center, size = (deltas[..., :2] + reference).sigmoid(), deltas[..., 2:].sigmoid()
    return torch.cat((center - size / 2, center + size / 2), -1) * priors.sides()


def _projections(channels: list[int], width: int, num_levels: int) -> nn.ModuleList:
    """One convolution and group norm a level: 1x1 of the backbone's features, 3x3 of stride 2 of what is added."""
    made = [nn.Conv2d(given, width, 1) for given in channels]
    for number in range(num_levels - len(channels)):
        made.append(nn.Conv2d(width if number else channels[-1], width, 3, stride=2, padding=1))
    for conv in made:
        nn.init.xavier_uniform_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(groups_of(width), width)) for conv in made)


def _transformers() -> Any:
    """The module of transformers with encoder and decoder: seconds to import, so only when such a detector is built.

    Raises RecipeError where it is not installed.
    """
    try:
        from transformers.models.deformable_detr import modeling_deformable_detr
    except ImportError as error:
        raise RecipeError(
            f"detector deformable_detr needs transformers, which cannot be imported ({error}); pip install 'detsearch[detr]'"
        ) from error
    return modeling_deformable_detr


def _encoder_and_decoder(
    transformers: Any, width: int, num_levels: int, layers: int, dropout: float
) -> tuple[nn.Module, nn.Module]:
    """Both with random weights, drawn as in the paper's code. The model around them, which would want a backbone of
    transformers' own and freeze its batch norms, is never made.
    """
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False,
        d_model=width,
        num_feature_levels=num_levels,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_n_points=POINTS,
        decoder_n_points=POINTS,
        encoder_ffn_dim=WIDENING * width,
        decoder_ffn_dim=WIDENING * width,
        dropout=dropout,
    )
    with warnings.catch_warnings():
        # that a kernel which nobody installs would be faster with other widths
        warnings.filterwarnings("ignore", message="You'd better set embed_dim")
        made = transformers.DeformableDetrEncoder(config), transformers.DeformableDetrDecoder(config)
    for module in made:
        for name, parameter in module.named_parameters():
            # offsets and weights of the sampled points keep their own pattern: one direction a head, all weights equal
            if parameter.ndim > 1 and not any(
                own in name for own in ("sampling_offsets", "attention_weights")
            ):
                nn.init.xavier_uniform_(parameter)
    return made
