"""Print the counts a search has found, and what they do to a batch.

    python examples/export_counts.py studies/NAME/best.yaml --detector fcos --data path/to/set
    python examples/export_counts.py            # the paper's counts for FCOS, on rendered images

The table is what another framework needs; docs/search.md ends with the rule that uses it. The last lines run the
detector's own assigner and the searched one on the same batch, with untrained weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from detsearch_cli.data.loader import Loader
from detsearch_cli.data.source import open_source
from detsearch_cli.detectors import build
from detsearch_cli.recipe import Recipe, compose, read_fragment
from detsearch_cli.slots.assigners.base import Assigner
from detsearch_cli.slots.assigners.dynamic import Dynamic
from detsearch_cli.structures import Dense, Targets

PUBLISHED = Path(__file__).parent / "recipes" / "hps_fcos.yaml"


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Fragments over each other, the later one wins; a wrong key raises RecipeError that names it."""
    options = {
        "detector": arguments.detector,
        "backbone": "tiny",
        "data": {"source": arguments.data},
        "augment": {"image_size": arguments.image_size, "flip": 0},
    }
    return compose([("options", options), (str(arguments.fragment), read_fragment(arguments.fragment))])


def print_counts(recipe: Recipe, assigner: Dynamic) -> None:
    """A line a pyramid level; the columns are bins of height / width."""
    shared = len(assigner.counts) == 1
    levels = (
        ["all levels"] if shared else [f"P{recipe.neck.levels[0] + i}" for i in range(len(assigner.counts))]
    )
    for name, counts, edges in zip(levels, assigner.counts, assigner.edge_rows(), strict=True):
        print(
            f"{name:>10}  {'  '.join(f'{count:3d}' for count in counts)}   height / width edges {list(edges)}"
        )


def positives(assigner: Assigner, dense: Dense, targets: Targets) -> float:
    """Mean number of positive priors an object."""
    return assigner(dense, targets).positive.sum().item() / max(1, len(targets.boxes))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("fragment", type=Path, nargs="?", default=PUBLISHED)
    parser.add_argument("--detector", default="fcos")
    parser.add_argument("--data", default="shapes:images=8,size=128")
    parser.add_argument("--image-size", type=int, default=128)
    arguments = parser.parse_args()

    recipe = recipe_of(arguments)
    split = open_source(recipe.data.source).load("train")
    torch.manual_seed(recipe.seed)
    detector = build(recipe, len(split.classes)).eval()
    searched = detector.assigner
    if not isinstance(searched, Dynamic):
        parser.error(f"{arguments.fragment} holds no counts: the search found nothing better")
    print_counts(recipe, searched)

    loader = Loader(split, recipe.augment, batch_size=8, train=False, seed=0, device=torch.device("cpu"))
    batch = next(iter(loader.epoch(0)))
    dense = detector(batch.images).detached()
    print(f"positives an object, {len(batch.images)} images, {len(batch.targets.boxes)} objects:")
    print(f"{'own':>10}  {positives(detector.default_assigner(), dense, batch.targets):.1f}")
    print(f"{'searched':>10}  {positives(searched, dense, batch.targets):.1f}")


if __name__ == "__main__":
    main()
