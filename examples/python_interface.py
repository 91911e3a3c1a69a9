"""The ten lines a notebook needs: search, compare, train, evaluate, predict.

python examples/python_interface.py            # rendered faces, a few minutes on a CPU
DATA=path/to/set IMAGE_SIZE=512 EPOCHS=12 TRIALS=30 SEEDS=3 python examples/python_interface.py
"""

from __future__ import annotations

import os

from detsearch_cli import api
from detsearch_cli.verdicts import sentence

RECIPE = {
    "detector": "fcos",
    "backbone": os.environ.get("BACKBONE", "tiny"),
    "neck": {"channels": 32, "levels": [3, 5]},
    "head": {"convs": 1},
    "data": {"source": os.environ.get("DATA", "faces:images=240,val=120,test=300,size=96")},
    "augment": {"image_size": int(os.environ.get("IMAGE_SIZE", "96"))},
    "optim": {"name": "adamw", "lr": 0.003, "batch_size": 4},
    "schedule": {"epochs": int(os.environ.get("EPOCHS", "12")), "eval_every": 0},
}
TRIALS, SEEDS = int(os.environ.get("TRIALS", "8")), int(os.environ.get("SEEDS", "2"))
IMAGES = os.environ.get("IMAGES", "").split()

if __name__ == "__main__":  # a search trains in processes of its own
    found = api.search("assign", RECIPE, options={"bins": "1"}, trials=TRIALS, name="python")
    print(found.outcome.reason, found.fragment or "nothing better than the recipe as given")
    if found.fragment:
        comparison = api.compare(found.recipe, found.recipe_with_finding, seeds=SEEDS)
        difference = comparison.against["b"].decisive
        print(f"{100 * difference.difference:+.1f} AP", sentence("b", "a", difference.low, difference.high))
    run = api.train(found.recipe_with_finding)
    print(f"AP {100 * api.evaluate(run.folder).coco['AP']:.1f} on the test split; run in {run.folder}")
    for image in api.predict(run.folder, IMAGES) if IMAGES else []:
        print(image.image, len(image.boxes), "boxes")
