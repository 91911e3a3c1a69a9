"""The guarantee that a ground truth with a candidate keeps a positive, wherever that is possible.

When several ground truths select the same priors, the ones of higher loss may lose all of theirs: orphans.
They are served in two ways. In rounds, batched: every orphan asks for its candidate of lowest loss that is
background or belongs to a ground truth with at least two positives. What is left, orphans all of whose
candidates are the only positives of others, is served by augmenting paths: the orphan takes a prior, its
owner moves to another of its own candidates, and so on until somebody ends at a prior that is to spare. That
keeps every assignment off the path as it was, where a matching from scratch would reshuffle whole images; it
is a maximum matching all the same (Berge 1957): an orphan stays one only when no assignment could help it.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from detsearch_cli.slots.assigners._candidates import lowest_by

ROUNDS = 8  # almost always one or two; boxes on top of each other gain one orphan a round, so paths take over


def serve_orphans(owner: Tensor, num_gt: int, gt: Tensor, prior: Tensor, loss: Tensor) -> None:
    """Change `owner` in place until every ground truth that can have a positive has one.

    owner (P,) int64: ground truth owning the prior, or -1. The candidates gt (N,), prior (N,), loss (N,) are
    sorted by ground truth, then loss. Deterministic; of equal losses the lower ground truth goes first.
    """
    owned = torch.bincount(owner[owner >= 0], minlength=num_gt)
    asking = (gt, prior, loss)
    for _ in range(ROUNDS):
        (rows,) = torch.nonzero(owned[asking[0]] == 0, as_tuple=True)
        if len(rows) == 0:
            return
        # only orphans ask again, so every round is smaller
        asking = (asking[0][rows], asking[1][rows], asking[2][rows])
        if not _round(owner, owned, *asking):
            break
    left = torch.unique(asking[0][owned[asking[0]] == 0])
    if len(left):
        _augment(owner, owned, left.tolist(), gt, prior)


def _round(owner: Tensor, owned: Tensor, gt: Tensor, prior: Tensor, loss: Tensor) -> bool:
    """One request of every orphan; a prior goes to the lowest loss, and an owner gives up at most one."""
    holder = owner[prior]
    (spare,) = torch.nonzero((holder < 0) | (owned[holder] >= 2), as_tuple=True)
    if len(spare) == 0:
        return False
    gt, prior, loss, holder = gt[spare], prior[spare], loss[spare], holder[spare]
    # sorted by ground truth, then loss: the first spare candidate of each is its cheapest
    first = torch.cat([gt.new_ones(1, dtype=torch.bool), gt[1:] != gt[:-1]])
    gt, prior, loss, holder = gt[first], prior[first], loss[first], holder[first]
    # keyed by the free prior, or by the owner: an owner that gave up two at once might keep none
    granted = lowest_by(torch.where(holder < 0, prior + len(owned), holder), loss)
    gt, prior, holder = gt[granted], prior[granted], holder[granted]
    owner[prior] = gt
    owned[gt] = 1
    owned[holder[holder >= 0]] -= 1
    return True


def _augment(owner: Tensor, owned: Tensor, orphans: list[int], gt: Tensor, prior: Tensor) -> None:
    """Serve orphans by augmenting paths, one after the other, on the CPU (rare, and a sequential problem)."""
    starts = torch.searchsorted(gt, torch.arange(len(owned) + 1, device=gt.device)).tolist()
    priors, holder, positives = prior.cpu().numpy(), owner.cpu().numpy(), owned.cpu().numpy()
    closed: set[int] = set()
    for orphan in orphans:
        seeker, through, queue = {}, {orphan: -1}, deque([orphan])  # prior -> who asks, asker -> what it owns
        end = -1
        while queue and end < 0:
            asker = queue.popleft()
            for wanted in priors[starts[asker] : starts[asker + 1]].tolist():
                if wanted in seeker:
                    continue
                seeker[wanted] = asker
                held_by = int(holder[wanted])
                if held_by < 0 or positives[held_by] >= 2:
                    end = wanted
                    break
                if held_by not in through and held_by not in closed:
                    through[held_by] = wanted
                    queue.append(held_by)
        if end < 0:
            closed.update(through)  # nobody here can move, now or later: never search it again
            continue
        if holder[end] >= 0:
            positives[holder[end]] -= 1
        positives[orphan] = 1
        while end >= 0:
            holder[end] = seeker[end]
            end = through[seeker[end]]
    # on a CPU numpy shares the memory of `owner`, which is changed already
    if owner.device.type != "cpu":
        owner.copy_(torch.from_numpy(holder))
