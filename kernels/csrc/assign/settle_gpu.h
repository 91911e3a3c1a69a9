// HPS-Det's Algorithm 2 on a GPU, second kernel: a block of threads for every image gives each prior to one of the rows
// that chose it, then gives a prior to the rows that lost all of theirs. The steps are those of orphans.h; instead of
// sorted lists of candidates, threads search for the lowest one. The host is told nothing, because it would have to
// wait.

#pragma once

#include "assign/choose_gpu.h"

namespace detsearch::gpu {

constexpr int kSettleThreads = 1024;
constexpr int kRounds = 8;  // as in orphans.h: another number gives other assignments

// The rows of an image and what belongs to it.
struct Image {
  int32_t number, begin, end;
  int64_t* matched;
};

__device__ inline Image image_at(const AssignArguments& args, int32_t number) {
  // whatever stands in splits, two images never share a row, which both would write, and no row lies beyond the last
  int64_t begin = 0;
  for (int32_t i = 0; i <= number; ++i) begin = max(begin, min(int64_t(args.rows), args.splits[i]));
  const int64_t end = max(begin, min(int64_t(args.rows), args.splits[number + 1]));
  return {number, static_cast<int32_t>(begin), static_cast<int32_t>(end),
          args.matched + int64_t(number) * args.grid.priors};
}

// Calls act(row, its key, where the prior is matched) for every choice of an image's rows, a thread a choice.
template <typename Act>
__device__ void for_choices(const AssignArguments& args, const Image& image, const Act& act) {
  const int32_t choices = (image.end - image.begin) * args.max_count;
  for (int32_t i = threadIdx.x; i < choices; i += blockDim.x) {
    const int32_t g = image.begin + i / args.max_count, k = i % args.max_count;
    if (k >= args.num_chosen[g]) continue;
    const uint64_t key = args.choices[int64_t(g) * args.max_count + k];
    act(g, key, image.matched + prior_of(key));
  }
}

// The claim of a row on a prior: the lowest loss wins, of equal ones the lower row. As an unsigned number every claim
// is lower than -1, the background.
__device__ inline unsigned long long claim_of(uint64_t key, int32_t g) {
  return static_cast<unsigned long long>(bits_of(key)) << 32 | static_cast<uint32_t>(g);
}

// Gives every prior to its lowest claim, and counts what each row owns.
__device__ inline void settle_conflicts(const AssignArguments& args, const Image& image) {
  for (int32_t g = image.begin + threadIdx.x; g < image.end; g += blockDim.x) args.num_owned[g] = 0;
  for_choices(args, image, [](int32_t g, uint64_t key, int64_t* matched) {
    atomicMin(reinterpret_cast<unsigned long long*>(matched), claim_of(key, g));
  });
  __syncthreads();  // all claims are made
  for_choices(args, image, [&](int32_t g, uint64_t key, int64_t* matched) {
    // without a barrier: a loser reads the winner's claim or the winner's row, and neither is the loser's own claim
    if (static_cast<unsigned long long>(*matched) != claim_of(key, g)) return;
    *matched = g;
    atomicAdd(&args.num_owned[g], 1);
  });
  __syncthreads();
}

__device__ inline bool is_orphan(const AssignArguments& args, int32_t g) {
  return args.num_chosen[g] > 0 && args.num_owned[g] == 0;
}

// The loss of a candidate, by one thread; rounds as compute_losses() does.
__device__ inline uint64_t loss_key(const AssignArguments& args, const GroundTruth& gt, int32_t prior, uint64_t limit) {
  const ClassScores classes = class_scores(args, gt.image, prior);
  const float bound = bound_at(args, gt, classes, prior);
  if (key_of(bound, 0) > limit) return kNone;  // the loss is no lower
  float lane[kLanes];
  // not unrolled: sixteen copies of the loop below would cost registers, and this path is rare
#pragma unroll 1
  for (int32_t i = 0; i < kLanes; ++i) {
    lane[i] = 0.0f;
    for (int32_t c = i; c < args.classes; c += kLanes) lane[i] += negative_focal(classes.first[c * classes.step]);
  }
  return key_of(loss_of(bound, classes.first[gt.label * classes.step], sum_of_lanes(lane)), prior);
}

// Whether a prior can be given to an orphan: it is background, or its owner has another.
__device__ inline bool is_spare(const AssignArguments& args, int64_t holder) {
  return holder < 0 || args.num_owned[holder] >= 2;
}

// The key of the candidate of lowest loss among those that can be given, kNone without one. Calls
// visit_held(gt, prior, holder) for the others.
template <typename Held>
__device__ uint64_t lowest_spare(const AssignArguments& args, const Image& image, int32_t g, Windows& windows,
                                 WarpPartials& partials, const Held& visit_held) {
  const GroundTruth gt = ground_truth_at(args, image.number, g);
  uint64_t lowest = kNone;
  visit_near(args.grid, gt.box, args.min_iou, windows, [&](const PriorCheck& check) {
    if (!check.fits) return;
    const int64_t holder = image.matched[check.prior];
    if (is_spare(args, holder)) {
      lowest = min(lowest, loss_key(args, gt, check.prior, lowest));
    } else {
      visit_held(gt, check.prior, static_cast<int32_t>(holder));
    }
  });
  return least_of_block(lowest, partials);
}

// Whether no other orphan has a lower claim on the same prior of the background, or on a prior of the same owner.
__device__ inline bool is_granted(const AssignArguments& args, const Image& image, int32_t g) {
  const uint64_t own = args.request[g];
  const int64_t holder = image.matched[prior_of(own)];
  for (int32_t other = image.begin; other < image.end; ++other) {
    if (other == g || !is_orphan(args, other) || args.request[other] == kNone) continue;
    const int64_t held = image.matched[prior_of(args.request[other])];
    const bool same = holder < 0 ? prior_of(own) == prior_of(args.request[other]) : held == holder;
    if (same && claim_of(args.request[other], other) < claim_of(own, g)) return false;
  }
  return true;
}

// One request of every orphan; false when there was none.
__device__ inline bool grant(const AssignArguments& args, const Image& image, Windows& windows,
                             WarpPartials& partials) {
  bool any = false;
  for (int32_t g = image.begin; g < image.end; ++g) {
    if (!is_orphan(args, g)) continue;
    const uint64_t request =
        lowest_spare(args, image, g, windows, partials, [](const GroundTruth&, int32_t, int32_t) {});
    if (threadIdx.x == 0) args.request[g] = request;
    any |= request != kNone;
  }
  __syncthreads();
  // what is granted is decided for all before anything is given: is_granted() reads the owners of before
  for (int32_t g = image.begin + threadIdx.x; g < image.end; g += blockDim.x) {
    args.state[g] = is_orphan(args, g) && args.request[g] != kNone && is_granted(args, image, g);
  }
  __syncthreads();
  for (int32_t g = image.begin + threadIdx.x; g < image.end; g += blockDim.x) {
    if (!args.state[g]) continue;
    int64_t& holder = image.matched[prior_of(args.request[g])];
    if (holder >= 0)
      --args.num_owned[holder];  // no atomic: one request to an owner is granted, so nobody else changes it
    holder = g;
    args.num_owned[g] = 1;
  }
  __syncthreads();
  return any;
}

// Whether a search for a path has reached a row. kClosed: a search that failed has reached it, so later ones skip it.
enum State : int32_t { kFresh = 0, kReached = 1, kClosed = 2 };

// Sorts the rows that an asker has reached, queue[begin..end - 1], by its losses: the threads put them there in any
// order, and the path that is found depends on the order.
__device__ inline void sort_queue(const AssignArguments& args, int32_t begin, int32_t end) {
  for (int32_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    int32_t before = begin;
    for (int32_t j = begin; j < end; ++j) before += args.request[args.queue[j]] < args.request[args.queue[i]];
    args.sorted[before] = args.queue[i];
  }
  __syncthreads();
  for (int32_t i = begin + threadIdx.x; i < end; i += blockDim.x) args.queue[i] = args.sorted[i];
  __syncthreads();
}

// Gives `prior` to the asker, the prior that the asker owned to the row that had asked for that, and so on back to the
// orphan. By one thread.
__device__ inline void move_along_path(const AssignArguments& args, const Image& image, int32_t orphan, int32_t asker,
                                       int32_t prior) {
  const int64_t holder = image.matched[prior];
  if (holder >= 0) --args.num_owned[holder];
  args.num_owned[orphan] = 1;
  while (true) {
    image.matched[prior] = asker;
    if (asker == orphan) return;
    prior = args.owned[asker];
    asker = args.asker[asker];
  }
}

// Searches an augmenting path from one orphan. A row that cannot spare a prior owns exactly one, so it is reached at
// most once, and by one thread: no two threads write its state.
__device__ inline void search(const AssignArguments& args, const Image& image, int32_t orphan, Windows& windows,
                              WarpPartials& partials, int32_t& reached) {
  if (threadIdx.x == 0) {
    args.queue[image.begin] = orphan;
    args.state[orphan] = kReached;
    reached = image.begin + 1;
  }
  __syncthreads();
  int32_t head = image.begin, tail = image.begin + 1;
  while (head < tail) {
    const int32_t asker = args.queue[head++];
    const uint64_t end =
        lowest_spare(args, image, asker, windows, partials, [&](const GroundTruth& gt, int32_t prior, int32_t holder) {
          if (args.state[holder] != kFresh) return;
          args.state[holder] = kReached;
          args.asker[holder] = asker;
          args.owned[holder] = prior;
          args.request[holder] = loss_key(args, gt, prior, kNone);
          args.queue[atomicAdd(&reached, 1)] = holder;
        });
    if (end != kNone) {
      if (threadIdx.x == 0) move_along_path(args, image, orphan, asker, prior_of(end));
      break;
    }
    sort_queue(args, tail, reached);
    tail = reached;
  }
  __syncthreads();
  // where nobody could move, nobody can later: these rows are closed. Others are free for the next orphan
  const State after = args.num_owned[orphan] ? kFresh : kClosed;
  for (int32_t i = image.begin + threadIdx.x; i < reached; i += blockDim.x) args.state[args.queue[i]] = after;
  __syncthreads();
}

// Augmenting paths (Berge 1957), one orphan after the other.
__device__ inline void augment(const AssignArguments& args, const Image& image, Windows& windows,
                               WarpPartials& partials, int32_t& reached) {
  for (int32_t g = image.begin + threadIdx.x; g < image.end; g += blockDim.x) args.state[g] = kFresh;
  __syncthreads();
  for (int32_t g = image.begin; g < image.end; ++g) {
    if (is_orphan(args, g)) search(args, image, g, windows, partials, reached);
  }
}

__global__ void __launch_bounds__(kSettleThreads) settle(const __grid_constant__ AssignArguments args) {
  __shared__ Windows windows;
  __shared__ WarpPartials partials;
  __shared__ int32_t reached;
  const Image image = image_at(args, static_cast<int32_t>(blockIdx.x));
  settle_conflicts(args, image);
  for (int round = 0; round <= kRounds; ++round) {
    bool mine = false;
    for (int32_t g = image.begin + threadIdx.x; g < image.end; g += blockDim.x) mine |= is_orphan(args, g);
    if (!__syncthreads_or(mine)) return;
    if (round == kRounds || !grant(args, image, windows, partials)) break;
  }
  augment(args, image, windows, partials, reached);
}

}  // namespace detsearch::gpu
