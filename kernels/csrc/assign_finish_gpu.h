// HPS-Det's Algorithm 2 on a GPU, second kernel: a block of threads for every image gives each prior to one of the rows
// that chose it, then serves the rows that lost all of theirs. The steps are those of orphans.h, with threads that look
// for the lowest wish instead of sorted lists of wishes. Nothing is told the host, which would have to wait for it.

#pragma once

#include "assign_gpu.h"

namespace detsearch::gpu {

constexpr int kFinishThreads = 1024;
constexpr int kRounds = 8;  // as in orphans.h

// The rows of an image and what belongs to it.
struct Image {
  int32_t number, begin, end;
  int64_t* matched;
};

__device__ inline Image image_at(const Task& task, int32_t number) {
  // images never share a row, nor have one that is not there, whatever stands in splits
  int64_t begin = 0;
  for (int32_t i = 0; i <= number; ++i) begin = max(begin, min(int64_t(task.rows), task.splits[i]));
  const int64_t end = max(begin, min(int64_t(task.rows), task.splits[number + 1]));
  return {number, static_cast<int32_t>(begin), static_cast<int32_t>(end),
          task.matched + int64_t(number) * task.tiles.priors};
}

// Calls act(row, its key, where the prior is matched) for every choice of an image's rows, a thread a choice.
template <typename Act>
__device__ void for_choices(const Task& task, const Image& image, const Act& act) {
  const int32_t slots = (image.end - image.begin) * task.widest;
  for (int32_t i = threadIdx.x; i < slots; i += blockDim.x) {
    const int32_t g = image.begin + i / task.widest, slot = i % task.widest;
    if (slot >= task.taken[g]) continue;
    const uint64_t key = task.choices[int64_t(g) * task.widest + slot];
    act(g, key, image.matched + prior_of(key));
  }
}

// The claim of a row on a prior: the lowest loss wins, of equal ones the lower row. Below that of the background, -1.
__device__ inline unsigned long long claim_of(uint64_t key, int32_t g) {
  return static_cast<unsigned long long>(bits_of(key)) << 32 | static_cast<uint32_t>(g);
}

// Every prior to its lowest claim, and how many each row keeps.
__device__ inline void settle_conflicts(const Task& task, const Image& image) {
  for (int32_t g = image.begin + threadIdx.x; g < image.end; g += blockDim.x) task.kept[g] = 0;
  for_choices(task, image, [](int32_t g, uint64_t key, int64_t* matched) {
    atomicMin(reinterpret_cast<unsigned long long*>(matched), claim_of(key, g));
  });
  __syncthreads();
  for_choices(task, image, [&](int32_t g, uint64_t key, int64_t* matched) {
    // a loser reads the winner's claim or already its row: neither is the loser's claim
    if (static_cast<unsigned long long>(*matched) != claim_of(key, g)) return;
    *matched = g;
    atomicAdd(&task.kept[g], 1);
  });
  __syncthreads();
}

__device__ inline bool is_orphan(const Task& task, int32_t g) { return task.taken[g] > 0 && task.kept[g] == 0; }

// The loss of a candidate, by one thread; rounds as settle() does.
__device__ inline uint64_t wish_of(const Task& task, const Row& row, int32_t prior, uint64_t limit) {
  const Classes classes = classes_of(task, row.image, prior);
  const float bound = bound_at(task, row, classes, prior);
  if (key_of(bound, 0) > limit) return kNone;  // the loss is no lower
  float lane[kLanes];
#pragma unroll 1
  for (int32_t i = 0; i < kLanes; ++i) {
    lane[i] = 0.0f;
    for (int32_t c = i; c < task.classes; c += kLanes) lane[i] += away(classes.first[c * classes.step]);
  }
  return key_of(loss_of(bound, classes.first[row.label * classes.step], sum_of_lanes(lane)), prior);
}

// Whether a prior can be given away: it is background, or its owner has another.
__device__ inline bool to_spare(const Task& task, int64_t holder) { return holder < 0 || task.kept[holder] >= 2; }

// The lowest wish of a row among the priors to spare, kNone without one; visit_held(row, prior, holder) sees those
// that are not to spare.
template <typename Held>
__device__ uint64_t lowest_wish(const Task& task, const Image& image, int32_t g, Windows& windows, Votes& votes,
                                const Held& visit_held) {
  const Row row = row_of(task, image.number, g);
  uint64_t lowest = kNone;
  visit_near(task.tiles, row.box, task.min_iou, windows, [&](const Look& look) {
    if (!look.fits) return;
    const int64_t holder = image.matched[look.prior];
    if (to_spare(task, holder)) {
      lowest = min(lowest, wish_of(task, row, look.prior, lowest));
    } else {
      visit_held(row, look.prior, static_cast<int32_t>(holder));
    }
  });
  return least_of_block(lowest, votes);
}

// Whether no other orphan wants the same prior of the background, or a prior of the same owner, more.
__device__ inline bool is_granted(const Task& task, const Image& image, int32_t g) {
  const uint64_t own = task.wish[g];
  const int64_t holder = image.matched[prior_of(own)];
  for (int32_t other = image.begin; other < image.end; ++other) {
    if (other == g || !is_orphan(task, other) || task.wish[other] == kNone) continue;
    const int64_t held = image.matched[prior_of(task.wish[other])];
    const bool same = holder < 0 ? prior_of(own) == prior_of(task.wish[other]) : held == holder;
    if (same && claim_of(task.wish[other], other) < claim_of(own, g)) return false;
  }
  return true;
}

// One request of every orphan; false when nothing could be granted.
__device__ inline bool grant(const Task& task, const Image& image, Windows& windows, Votes& votes) {
  bool any = false;
  for (int32_t g = image.begin; g < image.end; ++g) {
    if (!is_orphan(task, g)) continue;
    const uint64_t wish = lowest_wish(task, image, g, windows, votes, [](const Row&, int32_t, int32_t) {});
    if (threadIdx.x == 0) task.wish[g] = wish;
    any |= wish != kNone;
  }
  __syncthreads();
  for (int32_t g = image.begin + threadIdx.x; g < image.end; g += blockDim.x) {
    task.state[g] = is_orphan(task, g) && task.wish[g] != kNone && is_granted(task, image, g);
  }
  __syncthreads();
  for (int32_t g = image.begin + threadIdx.x; g < image.end; g += blockDim.x) {
    if (!task.state[g]) continue;
    int64_t& holder = image.matched[prior_of(task.wish[g])];
    if (holder >= 0) --task.kept[holder];  // one request of an owner is granted: nobody else changes it
    holder = g;
    task.kept[g] = 1;
  }
  __syncthreads();
  return any;
}

// The queue of a search: rows that were reached and what they own, in the order in which they ask.
enum State : int32_t { kFresh = 0, kReached = 1, kClosed = 2 };

// Puts the rows that an asker has reached, queue[begin..end - 1], in the order of its wishes.
__device__ inline void sort_queue(const Task& task, int32_t begin, int32_t end) {
  for (int32_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    int32_t before = begin;
    for (int32_t j = begin; j < end; ++j) before += task.wish[task.queue[j]] < task.wish[task.queue[i]];
    task.sorted[before] = task.queue[i];
  }
  __syncthreads();
  for (int32_t i = begin + threadIdx.x; i < end; i += blockDim.x) task.queue[i] = task.sorted[i];
  __syncthreads();
}

// Whoever asks takes the prior asked for; what it owned goes to the one who asked for that, back to the orphan.
__device__ inline void shift(const Task& task, const Image& image, int32_t orphan, int32_t asker, int32_t prior) {
  const int64_t holder = image.matched[prior];
  if (holder >= 0) --task.kept[holder];
  task.kept[orphan] = 1;
  while (true) {
    image.matched[prior] = asker;
    if (asker == orphan) return;
    prior = task.owned[asker];
    asker = task.asker[asker];
  }
}

// Searches an augmenting path from one orphan. A row that has nothing to spare owns one prior, so it is reached once.
__device__ inline void search(const Task& task, const Image& image, int32_t orphan, Windows& windows, Votes& votes,
                              int32_t& reached) {
  if (threadIdx.x == 0) {
    task.queue[image.begin] = orphan;
    task.state[orphan] = kReached;
    reached = image.begin + 1;
  }
  __syncthreads();
  int32_t head = image.begin, tail = image.begin + 1;
  while (head < tail) {
    const int32_t asker = task.queue[head++];
    const uint64_t end =
        lowest_wish(task, image, asker, windows, votes, [&](const Row& row, int32_t prior, int32_t holder) {
          if (task.state[holder] != kFresh) return;
          task.state[holder] = kReached;
          task.asker[holder] = asker;
          task.owned[holder] = prior;
          task.wish[holder] = wish_of(task, row, prior, kNone);
          task.queue[atomicAdd(&reached, 1)] = holder;
        });
    if (end != kNone) {
      if (threadIdx.x == 0) shift(task, image, orphan, asker, prior_of(end));
      break;
    }
    sort_queue(task, tail, reached);
    tail = reached;
  }
  __syncthreads();
  // where nobody could move, nobody can later: these rows are never searched again
  const State after = task.kept[orphan] ? kFresh : kClosed;
  for (int32_t i = image.begin + threadIdx.x; i < reached; i += blockDim.x) task.state[task.queue[i]] = after;
  __syncthreads();
}

// Augmenting paths (Berge 1957), one orphan after the other.
__device__ inline void augment(const Task& task, const Image& image, Windows& windows, Votes& votes, int32_t& reached) {
  for (int32_t g = image.begin + threadIdx.x; g < image.end; g += blockDim.x) task.state[g] = kFresh;
  __syncthreads();
  for (int32_t g = image.begin; g < image.end; ++g) {
    if (is_orphan(task, g)) search(task, image, g, windows, votes, reached);
  }
}

__global__ void __launch_bounds__(kFinishThreads) finish(const __grid_constant__ Task task) {
  __shared__ Windows windows;
  __shared__ Votes votes;
  __shared__ int32_t reached;
  const Image image = image_at(task, static_cast<int32_t>(blockIdx.x));
  settle_conflicts(task, image);
  for (int round = 0; round <= kRounds; ++round) {
    bool mine = false;
    for (int32_t g = image.begin + threadIdx.x; g < image.end; g += blockDim.x) mine |= is_orphan(task, g);
    if (!__syncthreads_or(mine)) return;
    if (round == kRounds || !grant(task, image, windows, votes)) break;
  }
  augment(task, image, windows, votes, reached);
}

}  // namespace detsearch::gpu
