// HPS-Det's Algorithm 2 on a GPU, first kernel: a block of threads for every ground truth chooses its k candidates of
// lowest loss. Candidates, bounds and losses are those of candidates.h, to the last bit.

#pragma once

#include "assign/loss.h"
#include "common/grid_gpu.h"

namespace detsearch::gpu {

constexpr int kThreads = 256;
constexpr int kMaxCounts = 256;

// The arguments of both kernels. In `truth` the rows of an image lie together. `choices` and all that follows have an
// element or more for every row, and are written by the kernels.
struct AssignArguments {
  DeviceGrid grid;
  Scores scores[kMaxLevels];
  int32_t counts[kMaxCounts];                     // count_rows x bins
  float edges[kMaxCounts];                        // count_rows x (bins - 1)
  int32_t count_rows, bins, max_count, capacity;  // max_count: the largest count; capacity: of a pool
  int32_t rows, images, classes;
  float alpha, min_iou;
  bool joined_levels;  // the scores of all levels are one (B, A, C)
  const Box *boxes, *truth;
  const int64_t *label, *splits;
  int64_t* matched;
  uint64_t* choices;  // rows x max_count: keys, lowest first
  uint64_t* request;
  int32_t *num_chosen, *num_owned, *asker, *owned, *queue, *sorted, *state;
};

static_assert(sizeof(AssignArguments) <= 4096, "the arguments of a kernel may take 4 KiB");

// A key: 32 bits of a loss, or of a bound of it, above 31 bits of the prior. Keys order as candidates are chosen: by
// loss, then prior. kLossKnown marks that it is the loss; it lies in between and is the same for all keys compared.
constexpr uint64_t kLossKnown = uint64_t(1) << 31;

__device__ inline uint64_t key_of(float loss, int32_t prior) {
  // losses are never negative, so their bits order as they do; the sign is cleared for a NaN, which may have one
  return static_cast<uint64_t>(float_to_bits(loss) & 0x7fffffffu) << 32 | static_cast<uint32_t>(prior);
}

__device__ inline uint32_t bits_of(uint64_t key) { return static_cast<uint32_t>(key >> 32); }
__device__ inline int32_t prior_of(uint64_t key) { return static_cast<int32_t>(key & (kLossKnown - 1)); }

// One ground truth, with the image it belongs to.
struct GroundTruth {
  int32_t image;
  int64_t label;
  Box box;
};

// The scores of a prior's classes, and the step between them.
struct ClassScores {
  const float* first;
  int64_t step;
};

__device__ inline ClassScores class_scores(const AssignArguments& args, int32_t image, int32_t prior) {
  if (args.joined_levels)
    return {args.scores[0].at(image, 0, 0, 0) + prior * args.scores[0].shape_stride, args.scores[0].class_stride};
  const DevicePosition cell = position_of(args.grid, prior);
  const Scores& scores = args.scores[cell.level];
  return {scores.at(image, cell.row, cell.column, cell.shape), scores.class_stride};
}

__device__ inline float bound_at(const AssignArguments& args, const GroundTruth& gt, const ClassScores& classes,
                                 int32_t prior) {
  const Box predicted = args.boxes[int64_t(gt.image) * args.grid.priors + prior];
  return bound_of(classes.first[gt.label * classes.step], iou(predicted, gt.box), args.alpha);
}

// The image of a row: the last whose rows begin at or before it.
__device__ inline int32_t image_of(const AssignArguments& args, int64_t row) {
  int32_t low = 0, high = args.images;
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    (args.splits[middle] <= row ? low : high) = middle;
  }
  return low;
}

__device__ inline GroundTruth ground_truth_at(const AssignArguments& args, int32_t image, int32_t g) {
  return {image, args.label[g], args.truth[g]};
}

// The CPU refuses labels that are no classes; telling the host would stall it, so here such a row chooses nothing.
__device__ inline bool is_class(const AssignArguments& args, int64_t label) {
  return label >= 0 && label < args.classes;
}

// The candidates that a block of threads holds in shared memory: `used` keys, and a list of the numbers of some.
struct Pool {
  uint64_t* key;
  uint16_t* list;
  int32_t *used, *listed;
  uint32_t* limit;
};

// Every thread of a warp adds one prior or none. One atomic serves the whole warp: 32 on one address would queue up.
__device__ inline void push(const Pool& pool, bool fits, int32_t prior) {
  const unsigned votes = __ballot_sync(kWholeWarp, fits), lane = threadIdx.x % kWarp;
  int32_t at = 0;
  if (lane == 0 && votes) at = atomicAdd(pool.used, __popc(votes));
  at = __shfl_sync(kWholeWarp, at, 0) + __popc(votes & ((1u << lane) - 1));
  if (fits) pool.key[at] = static_cast<uint32_t>(prior);
}

constexpr int kRoughBits = 17;  // a limit within 1 / 64 of the value is as good

// The value that at least k of all keys do not exceed and hardly more do; k is at most their number.
__device__ inline uint32_t rough_limit(const Pool& pool, int32_t used, int32_t k, WarpPartials& partials) {
  // bit by bit from the highest: the largest number that fewer than k keys lie below
  uint32_t value = 0;
  for (int bit = 30; bit >= kRoughBits; --bit) {
    const uint32_t trial = value | 1u << bit;
    int32_t below = 0;
    for (int32_t i = threadIdx.x; i < used; i += blockDim.x) below += bits_of(pool.key[i]) < trial;
    if (sum_of_block(below, partials) < k) value = trial;
  }
  return value | ((1u << kRoughBits) - 1);
}

// Lists the keys up to a limit; returns their number.
__device__ inline int32_t list_keys(const Pool& pool, int32_t used, uint32_t limit) {
  if (threadIdx.x == 0) *pool.listed = 0;
  __syncthreads();
  for (int32_t i = threadIdx.x; i < used; i += blockDim.x) {
    if (bits_of(pool.key[i]) <= limit) pool.list[atomicAdd(pool.listed, 1)] = static_cast<uint16_t>(i);
  }
  __syncthreads();
  return *pool.listed;
}

// Computes the losses of the listed keys that are bounds. Sixteen threads take a prior, one for each partial sum.
__device__ inline void compute_losses(const AssignArguments& args, const GroundTruth& gt, const Pool& pool,
                                      int32_t listed) {
  const unsigned lane = threadIdx.x % kLanes, others = 0xffffu << (threadIdx.x / kLanes * kLanes % kWarp);
  for (int32_t j = threadIdx.x / kLanes; j < listed; j += blockDim.x / kLanes) {
    const uint64_t key = pool.key[pool.list[j]];
    if (key & kLossKnown) continue;  // all sixteen read the same key, so none is missing in the shuffle below
    const ClassScores classes = class_scores(args, gt.image, prior_of(key));
    float sum = 0.0f;
#pragma unroll 5
    for (int32_t c = lane; c < args.classes; c += kLanes) sum += negative_focal(classes.first[c * classes.step]);
    for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_down_sync(others, sum, step, kLanes);
    if (lane > 0) continue;  // only the first of sixteen has the whole sum
    const float own = classes.first[gt.label * classes.step];
    pool.key[pool.list[j]] = key_of(loss_of(bits_to_float(bits_of(key)), own, sum), prior_of(key)) | kLossKnown;
  }
  __syncthreads();
}

// Writes the k lowest of the listed keys out in order, and the value of the last to *pool.limit.
__device__ inline void write_lowest(const Pool& pool, int32_t listed, int32_t k, uint64_t* choices) {
  for (int32_t j = threadIdx.x; j < listed; j += blockDim.x) {
    const uint64_t key = pool.key[pool.list[j]];
    int32_t before = 0;
    // keys are distinct, so each has a place of its own; k is small, and this needs no barrier, as sorting would
    for (int32_t i = 0; i < listed; ++i) before += pool.key[pool.list[i]] < key;
    if (before < k) choices[before] = key;
    if (before == k - 1) *pool.limit = bits_of(key);
  }
  __syncthreads();
}

// Writes the k candidates of lowest loss among all `used` to `choices` and returns their number. The losses of the
// first `num_known` are known already. As in top_k.h, the losses of the lowest bounds are computed first and limit the
// rest.
__device__ inline int32_t select(const AssignArguments& args, const GroundTruth& gt, const Pool& pool,
                                 int32_t num_known, int32_t used, int32_t k, uint64_t* choices,
                                 WarpPartials& partials) {
  for (int32_t i = num_known + threadIdx.x; i < used; i += blockDim.x) {
    const int32_t prior = prior_of(pool.key[i]);
    pool.key[i] = key_of(bound_at(args, gt, class_scores(args, gt.image, prior), prior), prior);
  }
  __syncthreads();
  if (used <= k) {
    compute_losses(args, gt, pool, list_keys(pool, used, ~0u));
    write_lowest(pool, used, k, choices);
    return used;
  }
  uint32_t limit = rough_limit(pool, used, k, partials);
  // the first pass gives the k-th lowest loss of some, the second computes all whose bound does not exceed it
  for (int pass = 0; pass < 2; ++pass) {
    const int32_t listed = list_keys(pool, used, limit);
    compute_losses(args, gt, pool, listed);
    write_lowest(pool, listed, k, choices);
    limit = *pool.limit;
  }
  return k;
}

// Writes background everywhere. All blocks share it here, where they would otherwise wait for memory that they read.
__device__ inline void clear(const AssignArguments& args) {
  const int64_t all = int64_t(args.images) * args.grid.priors, share = (all + gridDim.x - 1) / gridDim.x;
  const int64_t end = min(all, share * (blockIdx.x + 1));
  for (int64_t i = share * blockIdx.x + threadIdx.x; i < end; i += blockDim.x) args.matched[i] = -1;
}

__device__ inline int32_t count_of(const AssignArguments& args, const Box& truth, int32_t level) {
  const int32_t row = args.count_rows > 1 && level > 0 ? level : 0;
  const int64_t bin = bin_of(truth, args.edges + row * (args.bins - 1), args.bins);
  return args.counts[row * args.bins + bin];
}

extern __shared__ uint64_t shared_memory[];

// Needs at least as many blocks as there are rows. A full pool keeps the best it may need and goes on.
__global__ void __launch_bounds__(kThreads) choose(const __grid_constant__ AssignArguments args) {
  __shared__ Windows windows;
  __shared__ WarpPartials partials;
  __shared__ int32_t pool_used, pool_listed;
  __shared__ uint32_t pool_limit;
  clear(args);
  const int32_t g = static_cast<int32_t>(blockIdx.x);
  if (g >= args.rows) return;
  const Pool pool = {shared_memory, reinterpret_cast<uint16_t*>(shared_memory + args.capacity), &pool_used,
                     &pool_listed, &pool_limit};
  uint64_t* choices = args.choices + int64_t(g) * args.max_count;
  const GroundTruth gt = ground_truth_at(args, image_of(args, g), g);
  if (threadIdx.x == 0) pool_used = 0;
  if (!is_class(args, gt.label)) {
    if (threadIdx.x == 0) args.num_chosen[g] = 0;
    return;
  }
  uint64_t best_rank = kNone;
  int32_t num_known = 0, used = 0;
  for (int32_t first = 0; first < args.grid.windows(); first += kWindows) {
    const int32_t cells = open_windows(args.grid, gt.box, args.min_iou, first, windows);
    for (int32_t begin = 0; begin < cells;) {
      if (args.capacity - used < kThreads) {
        // how many the row may choose depends on its level, which is known only after all candidates; it is never more
        // than the largest count
        num_known = used = select(args, gt, pool, num_known, used, args.max_count, choices, partials);
        for (int32_t i = threadIdx.x; i < used; i += blockDim.x) pool.key[i] = choices[i];
        if (threadIdx.x == 0) pool_used = used;
        __syncthreads();
      }
      // even if every cell is a candidate they fit
      const int32_t end = min(cells, begin + args.capacity - used);
      visit_cells(args.grid, gt.box, args.min_iou, windows, begin, end, [&](const PriorCheck& check) {
        push(pool, check.fits, check.prior);
        if (check.fits) best_rank = min(best_rank, rank_of(check));
      });
      __syncthreads();
      used = pool_used;
      __syncthreads();  // all have read it before the next push changes it
      begin = end;
    }
  }
  const int32_t level = best_level(args.grid, gt.box, least_of_block(best_rank, partials));
  const int32_t num_chosen = select(args, gt, pool, num_known, used, count_of(args, gt.box, level), choices, partials);
  if (threadIdx.x == 0) args.num_chosen[g] = num_chosen;
}

}  // namespace detsearch::gpu
