// HPS-Det's Algorithm 2 on a GPU, first kernel: a block of threads for every ground truth chooses its k candidates of
// lowest loss. Candidates, bounds and losses are those of losses.h, to the last bit.

#pragma once

#include "grid_gpu.h"

namespace detsearch::gpu {

constexpr int kThreads = 256;
constexpr int kMostCounts = 256;

// What both kernels are told. Of `truth`, the rows of an image lie together; `choices`, `taken` and what follows are
// by row, and written by the kernels.
struct Task {
  Tiles tiles;
  Scores scores[kMostLevels];
  int32_t counts[kMostCounts];  // count_rows x bins
  float edges[kMostCounts];     // count_rows x (bins - 1)
  int32_t count_rows, bins, widest, capacity;  // widest: the largest count; capacity: of a pool
  int32_t rows, images, classes;
  float alpha, min_iou;
  bool whole;  // the scores of all levels are one (B, A, C)
  const Box *boxes, *truth;
  const int64_t *label, *splits;
  int64_t* matched;
  uint64_t* choices;  // rows x widest: keys, lowest first
  uint64_t* wish;
  int32_t *taken, *kept, *asker, *owned, *queue, *sorted, *state;
};

static_assert(sizeof(Task) <= 4096, "the arguments of a kernel may take 4 KiB");

// A loss, or a bound of it, and the prior: ordered as candidates are chosen. kSettled: it is the loss.
constexpr uint64_t kSettled = uint64_t(1) << 31;

__device__ inline uint64_t key_of(float loss, int32_t prior) {
  // without the sign, which a NaN may have
  return static_cast<uint64_t>(float_to_bits(loss) & 0x7fffffffu) << 32 | static_cast<uint32_t>(prior);
}

__device__ inline uint32_t bits_of(uint64_t key) { return static_cast<uint32_t>(key >> 32); }
__device__ inline int32_t prior_of(uint64_t key) { return static_cast<int32_t>(key & (kSettled - 1)); }

// A ground truth.
struct Row {
  int32_t image;
  int64_t label;
  Box box;
};

// The scores of a prior's classes, and the step between them.
struct Classes {
  const float* first;
  int64_t step;
};

__device__ inline Classes classes_of(const Task& task, int32_t image, int32_t prior) {
  if (task.whole) return {task.scores[0].at(image, 0, 0, 0) + prior * task.scores[0].of_shape, task.scores[0].of_class};
  const Cell cell = cell_of(task.tiles, prior);
  const Scores& scores = task.scores[cell.level];
  return {scores.at(image, cell.row, cell.column, cell.shape), scores.of_class};
}

__device__ inline float bound_at(const Task& task, const Row& row, const Classes& classes, int32_t prior) {
  const Box predicted = task.boxes[int64_t(row.image) * task.tiles.priors + prior];
  return bound_of(classes.first[row.label * classes.step], iou(predicted, row.box), task.alpha);
}

// The image of a row: the last whose rows begin at or before it.
__device__ inline int32_t image_of(const Task& task, int64_t row) {
  int32_t low = 0, high = task.images;
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    (task.splits[middle] <= row ? low : high) = middle;
  }
  return low;
}

__device__ inline Row row_of(const Task& task, int32_t image, int32_t g) {
  return {image, task.label[g], task.truth[g]};
}

// The CPU refuses labels that are no classes; telling the host would stall it, so here such a row chooses nothing.
__device__ inline bool is_class(const Task& task, int64_t label) { return label >= 0 && label < task.classes; }

// The candidates that a block holds: the keys of `used` of them, and a list of some.
struct Pool {
  uint64_t* key;
  uint16_t* list;
  int32_t *used, *listed;
  uint32_t* limit;
};

// Every thread of a warp adds one or none.
__device__ inline void push(const Pool& pool, bool fits, int32_t prior) {
  const unsigned votes = __ballot_sync(kWholeWarp, fits), lane = threadIdx.x % kWarp;
  int32_t place = 0;
  if (lane == 0 && votes) place = atomicAdd(pool.used, __popc(votes));
  place = __shfl_sync(kWholeWarp, place, 0) + __popc(votes & ((1u << lane) - 1));
  if (fits) pool.key[place] = static_cast<uint32_t>(prior);
}

constexpr int kRoughBits = 17;  // a limit within 1 / 64 of the value is as good

// The value that at least k of all keys do not exceed and hardly more do; k is at most their number.
__device__ inline uint32_t rough_limit(const Pool& pool, int32_t used, int32_t k, Votes& votes) {
  uint32_t value = 0;
  for (int bit = 30; bit >= kRoughBits; --bit) {
    const uint32_t trial = value | 1u << bit;
    int32_t below = 0;
    for (int32_t i = threadIdx.x; i < used; i += blockDim.x) below += bits_of(pool.key[i]) < trial;
    if (sum_of_block(below, votes) < k) value = trial;
  }
  return value | ((1u << kRoughBits) - 1);
}

// Lists the keys up to a limit; returns their number.
__device__ inline int32_t list(const Pool& pool, int32_t used, uint32_t limit) {
  if (threadIdx.x == 0) *pool.listed = 0;
  __syncthreads();
  for (int32_t i = threadIdx.x; i < used; i += blockDim.x) {
    if (bits_of(pool.key[i]) <= limit) pool.list[atomicAdd(pool.listed, 1)] = static_cast<uint16_t>(i);
  }
  __syncthreads();
  return *pool.listed;
}

// Losses for the listed keys that are bounds. Sixteen threads take a prior, each one of the partial sums of kLanes.
__device__ inline void settle(const Task& task, const Row& row, const Pool& pool, int32_t listed) {
  const unsigned lane = threadIdx.x % kLanes, others = 0xffffu << (threadIdx.x / kLanes * kLanes % kWarp);
  for (int32_t j = threadIdx.x / kLanes; j < listed; j += blockDim.x / kLanes) {
    const uint64_t key = pool.key[pool.list[j]];
    if (key & kSettled) continue;
    const Classes classes = classes_of(task, row.image, prior_of(key));
    float sum = 0.0f;
#pragma unroll 5
    for (int32_t c = lane; c < task.classes; c += kLanes) sum += away(classes.first[c * classes.step]);
    for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_down_sync(others, sum, step, kLanes);
    if (lane > 0) continue;
    const float own = classes.first[row.label * classes.step];
    pool.key[pool.list[j]] = key_of(loss_of(bits_to_float(bits_of(key)), own, sum), prior_of(key)) | kSettled;
  }
  __syncthreads();
}

// Writes the k lowest of the listed keys out in order, and the value of the last to *pool.limit.
__device__ inline void rank(const Pool& pool, int32_t listed, int32_t k, uint64_t* choices) {
  for (int32_t j = threadIdx.x; j < listed; j += blockDim.x) {
    const uint64_t key = pool.key[pool.list[j]];
    int32_t before = 0;
    for (int32_t i = 0; i < listed; ++i) before += pool.key[pool.list[i]] < key;
    if (before < k) choices[before] = key;
    if (before == k - 1) *pool.limit = bits_of(key);
  }
  __syncthreads();
}

// The k candidates of lowest loss among all `used`, of which the first `known` are settled -> their number, and they
// themselves in `choices`. As select() in assign.cpp: losses for the lowest bounds, which limit the rest.
__device__ inline int32_t select(const Task& task, const Row& row, const Pool& pool, int32_t known, int32_t used,
                                 int32_t k, uint64_t* choices, Votes& votes) {
  for (int32_t i = known + threadIdx.x; i < used; i += blockDim.x) {
    const int32_t prior = prior_of(pool.key[i]);
    pool.key[i] = key_of(bound_at(task, row, classes_of(task, row.image, prior), prior), prior);
  }
  __syncthreads();
  if (used <= k) {
    settle(task, row, pool, list(pool, used, ~0u));
    rank(pool, used, k, choices);
    return used;
  }
  uint32_t limit = rough_limit(pool, used, k, votes);
  for (int pass = 0; pass < 2; ++pass) {
    const int32_t listed = list(pool, used, limit);
    settle(task, row, pool, listed);
    rank(pool, listed, k, choices);
    limit = *pool.limit;
  }
  return k;
}

// Background everywhere, written by all blocks together while they wait for other memory.
__device__ inline void clear(const Task& task) {
  const int64_t all = int64_t(task.images) * task.tiles.priors, share = (all + gridDim.x - 1) / gridDim.x;
  const int64_t end = min(all, share * (blockIdx.x + 1));
  for (int64_t i = share * blockIdx.x + threadIdx.x; i < end; i += blockDim.x) task.matched[i] = -1;
}

__device__ inline int32_t count_of(const Task& task, const Box& truth, int32_t level) {
  const int32_t row = task.count_rows > 1 && level > 0 ? level : 0;
  const int64_t bin = bin_of(truth, task.edges + row * (task.bins - 1), task.bins);
  return task.counts[row * task.bins + bin];
}

extern __shared__ uint64_t shared_memory[];

// At least as many blocks as there are rows. A pool that is full keeps the best it may need, and goes on.
__global__ void __launch_bounds__(kThreads) choose(const __grid_constant__ Task task) {
  __shared__ Windows windows;
  __shared__ Votes votes;
  __shared__ int32_t pool_used, pool_listed;
  __shared__ uint32_t pool_limit;
  clear(task);
  const int32_t g = static_cast<int32_t>(blockIdx.x);
  if (g >= task.rows) return;
  const Pool pool = {shared_memory, reinterpret_cast<uint16_t*>(shared_memory + task.capacity), &pool_used,
                     &pool_listed, &pool_limit};
  uint64_t* choices = task.choices + int64_t(g) * task.widest;
  const Row row = row_of(task, image_of(task, g), g);
  if (threadIdx.x == 0) pool_used = 0;
  if (!is_class(task, row.label)) {
    if (threadIdx.x == 0) task.taken[g] = 0;
    return;
  }
  uint64_t nearest = kNone;
  int32_t known = 0, used = 0;
  for (int32_t first = 0; first < task.tiles.windows(); first += kWindows) {
    const int32_t cells = open_windows(task.tiles, row.box, task.min_iou, first, windows);
    for (int32_t begin = 0; begin < cells;) {
      if (task.capacity - used < kThreads) {
        // how many the row may choose is not known yet, but never more than the largest count
        known = used = select(task, row, pool, known, used, task.widest, choices, votes);
        for (int32_t i = threadIdx.x; i < used; i += blockDim.x) pool.key[i] = choices[i];
        if (threadIdx.x == 0) pool_used = used;
        __syncthreads();
      }
      const int32_t end = min(cells, begin + task.capacity - used);
      visit_cells(task.tiles, row.box, task.min_iou, windows, begin, end, [&](const Look& look) {
        push(pool, look.fits, look.prior);
        if (look.fits) nearest = min(nearest, rank_of(look));
      });
      __syncthreads();
      used = pool_used;
      __syncthreads();
      begin = end;
    }
  }
  const int32_t level = best_level(task.tiles, row.box, least_of_block(nearest, votes));
  const int32_t taken = select(task, row, pool, known, used, count_of(task, row.box, level), choices, votes);
  if (threadIdx.x == 0) task.taken[g] = taken;
}

}  // namespace detsearch::gpu
